"""The generated CRDs: no drift, a description on every field, bounds where CEL counts on them, nothing unstructural."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from poolfleet.api import crd

CRDS = Path(__file__).parents[2] / "crds"
DEFINITIONS = {"PgPool": crd.pgpool_crd(), "PgServer": crd.pgserver_crd()}


def version(kind: str) -> Any:
    return DEFINITIONS[kind]["spec"]["versions"][0]


def root(kind: str) -> Any:
    return version(kind)["schema"]["openAPIV3Schema"]


def fields(schema: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every schema at and below `schema`."""
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from fields(each, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from fields(schema["additionalProperties"], f"{path}.*")


def test_checked_in_files_are_the_generated_ones() -> None:
    on_disk = {file.name: file.read_text() for file in CRDS.glob("*.yaml")}
    assert on_disk == crd.files(), "run `make crds`"


def test_main_writes_the_files(tmp_path: Path) -> None:
    assert crd.main([str(tmp_path / "new" / "folder")]) == 0
    assert {file.name: file.read_text() for file in (tmp_path / "new" / "folder").iterdir()} == crd.files()


@pytest.mark.parametrize("argv", [["--help"], ["a", "b"]])
def test_main_refuses_other_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(argv) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_every_field_is_described(kind: str) -> None:
    without = [
        path
        for path, schema in fields(root(kind), "")
        if "description" not in schema and not path.endswith(("[]", ".*", ".metadata"))
    ]
    assert without == []


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_everything_in_spec_is_bounded(kind: str) -> None:
    unbounded = []
    for path, schema in fields(root(kind)["properties"]["spec"], "spec"):
        wanted = {"string": "maxLength", "array": "maxItems"}.get(schema.get("type", ""))
        if "additionalProperties" in schema:
            wanted = "maxProperties"
        if wanted and wanted not in schema and "enum" not in schema:
            unbounded.append(path)
    assert unbounded == []


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_every_integer_in_spec_has_a_minimum(kind: str) -> None:
    spec = fields(root(kind)["properties"]["spec"], "spec")
    assert [path for path, schema in spec if schema.get("type") == "integer" and "minimum" not in schema] == []


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_every_rule_has_a_message(kind: str) -> None:
    for path, schema in fields(root(kind), ""):
        for rule in schema.get("x-kubernetes-validations", []):
            assert len(rule["message"]) > 20, path
            assert not rule["message"].endswith((" ", ";")), path


def test_lists_that_are_maps() -> None:
    lists = {
        (kind, path): schema.get("x-kubernetes-list-map-keys", schema.get("x-kubernetes-list-type"))
        for kind in DEFINITIONS
        for path, schema in fields(root(kind), "")
        if schema.get("type") == "array" and "networkPolicy" not in path and "service" not in path
    }
    assert lists == {
        ("PgPool", ".spec.databases"): ["name"],
        ("PgPool", ".spec.users"): "atomic",
        ("PgPool", ".status.conditions"): ["type"],
        ("PgPool", ".status.rotations"): ["secret"],
        ("PgPool", ".spec.databases[].rotation.roles"): "atomic",
        ("PgPool", ".spec.server.allowedNamespaces.selector.matchExpressions"): "atomic",
        ("PgPool", ".spec.server.allowedNamespaces.selector.matchExpressions[].values"): "atomic",
        ("PgPool", ".spec.server.managedRoles"): "set",
        ("PgPool", ".spec.server.tokenProvider.awsIam.roles"): "set",
        ("PgPool", ".spec.server.tokenProvider.exec.roles"): "set",
        ("PgServer", ".spec.tokenProvider.awsIam.roles"): "set",
        ("PgServer", ".spec.tokenProvider.exec.roles"): "set",
        ("PgServer", ".spec.allowedNamespaces.selector.matchExpressions"): "atomic",
        ("PgServer", ".spec.allowedNamespaces.selector.matchExpressions[].values"): "atomic",
        ("PgServer", ".spec.managedRoles"): "set",
        ("PgServer", ".status.discovery.databaseLimits"): ["name"],
        ("PgServer", ".status.discovery.roleLimits"): ["name"],
        ("PgServer", ".status.roleLimits"): ["role"],
        ("PgServer", ".status.pools"): ["namespace", "name"],
        ("PgServer", ".status.ledger.entries"): ["pod", "database"],
        ("PgServer", ".status.ledger.resting"): "atomic",
        ("PgServer", ".status.conditions"): ["type"],
    }


def test_both_ways_to_name_a_server_have_the_same_fields() -> None:
    inline = root("PgPool")["properties"]["spec"]["properties"]["server"]
    own = root("PgServer")["properties"]["spec"]
    assert inline["properties"] == own["properties"]
    assert inline["required"] == own["required"]
    assert inline["x-kubernetes-validations"] == own["x-kubernetes-validations"]


def test_an_object_that_may_be_left_out_gets_no_default() -> None:
    spec = root("PgPool")["properties"]["spec"]["properties"]
    assert {name for name, schema in spec.items() if schema.get("default") == {}} == {
        "share",
        "service",
        "networkPolicy",
        "drain",
    }


def test_int_or_string_keeps_the_bounds_of_the_string() -> None:
    parameters = root("PgPool")["properties"]["spec"]["properties"]["pgbouncer"]["properties"]["parameters"]
    assert parameters["additionalProperties"] == {
        "maxLength": 1024,
        "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "x-kubernetes-int-or-string": True,
    }


class Forbidden(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int = 0


class Tuple(BaseModel):
    a: tuple[int, str] = (0, "")


class Union(BaseModel):
    a: int | bool = 0


class OpenMap(BaseModel):
    a: dict[str, Any] = {}


class Exclusive(BaseModel):
    a: Annotated[int, Field(gt=0)] = 1


@pytest.mark.parametrize("model", [Forbidden, Tuple, Union, OpenMap, Exclusive])
def test_what_no_structural_schema_can_say_is_refused(model: type[BaseModel]) -> None:
    with pytest.raises(crd.SchemaError):
        crd.structural(model)
