"""The chart's values: what the schema refuses, NOTES, and the copies that must not drift: README and schema."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.unit.chart_kit import (
    CHART,
    RENDERS,
    VALUES,
    Object,
    template,
)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (("replica=2",), "replica"),
        (("image.name=x",), "name"),
        (("image.digest=sha256:beef",), "/image/digest"),
        (("image.repository=UPPER",), "/image/repository"),
        (("fleet.image.tag=",), "/fleet/image/tag"),
        (("fleet.runAsUser=0",), "/fleet/runAsUser"),
        (("fleet.runAsUser=root",), "/fleet/runAsUser"),
        (("fleet.imagePullSecrets={plain}",), "/fleet/imagePullSecrets"),
        (("rbac.scope=Everything",), "/rbac/scope"),
        (("watchNamespaces={Not_A_Name}",), "/watchNamespaces"),
        (("operator.logLevel=loud",), "/operator/logLevel"),
        (("operator.workers=0",), "/operator/workers"),
        (("crds.install=perhaps",), "/crds/install"),
        (("fastLane=perhaps",), "/fastLane"),
        (("tokenCommands.vend.command={a}",), "namespaces"),
        (("tokenCommands.vend.command=a b", "tokenCommands.vend.namespaces={a}"), "/tokenCommands/vend/command"),
        (("tokenCommands.Vend.command={a}", "tokenCommands.Vend.namespaces={a}"), "Vend"),
        (("awsIam.namespaces={Not_A_Name}",), "/awsIam/namespaces"),
        (("metrics.serviceMonitor.interval=often",), "interval"),
        (("watchNamespaces={shop}",), "rbac.scope=Namespaced"),
    ],
)
def test_wrong_values_are_refused_by_name(values: tuple[str, ...], named: str) -> None:
    result = template(*values)
    assert result.returncode != 0
    assert named in result.stderr or named.strip("/").replace("/", ".") in result.stderr


def test_notes_say_what_to_type_next(tmp_path: Path) -> None:
    # `helm template` leaves NOTES.txt out and `helm install` wants a cluster: render them as part of an object.
    chart = shutil.copytree(CHART, tmp_path / "poolfleet")
    (chart / "templates" / "NOTES.txt").rename(chart / "notes.txt")
    wrapped = """{"kind": "Notes", "text": {{ tpl (.Files.Get "notes.txt") . | toJson }}}"""
    (chart / "templates" / "notes.yaml").write_text(wrapped)
    first = ["helm test poolfleet", "every namespace", "kubectl wait", "kind: PgPool", "keeps the Custom"]
    for values, wanted in (
        ((), [*first, "allowedNamespaces"]),
        (RENDERS["namespaced"], ["PgPools of namespace blog, shop", "--namespace blog"]),
        (RENDERS["no crds"], ["kubectl apply --server-side -f crds/"]),
        (RENDERS["crds not kept"], ["DELETES every PgPool"]),
    ):
        result = template(*values, chart=chart, only="templates/notes.yaml")
        assert result.returncode == 0, result.stderr
        notes = yaml.safe_load(result.stdout)["text"]
        assert [phrase for phrase in wanted if phrase not in notes] == []


def described_values() -> dict[str, str]:
    """Dotted path → description of each value: the `# --` comment above it in values.yaml."""
    found: dict[str, str] = {}
    path: list[str] = []
    description: str | None = None
    for line in (CHART / "values.yaml").read_text().splitlines():
        text = line.strip()
        if text.startswith("# --"):
            description = text.removeprefix("# --").strip()
        elif text.startswith("#") and description is not None:
            description += " " + text.removeprefix("#").strip()
        elif key := re.match(r"( *)([A-Za-z]+):", line):
            path[len(key[1]) // 2 :] = [key[2]]
            if description is not None:
                found[".".join(path)] = description
            description = None
    return found


def leaves(value: object, stop: set[str], path: str = "") -> Iterator[tuple[str, object]]:
    """(dotted path, value) of every value that is no map, or whose path is in `stop`."""
    if isinstance(value, dict) and value and path not in stop:
        for key, below in value.items():
            yield from leaves(below, stop, f"{path}.{key}".lstrip("."))
    else:
        yield path, value


def test_readme_lists_every_value_with_default_and_description() -> None:
    described = described_values()
    values = dict(leaves(VALUES, set(described)))
    assert values.keys() == described.keys(), "a value without a `# --` comment, or the reverse"
    table = [f"| `{path}` | `{json.dumps(values[path])}` | {described[path]} |" for path in values]
    assert [line for line in (CHART / "README.md").read_text().splitlines() if line.startswith("| `")] == table


def test_schema_knows_every_value_with_the_same_description_and_nothing_else() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    described = described_values()

    def properties(node: Object, path: str = "") -> Iterator[tuple[str, str]]:
        if "properties" in node and path not in described:
            assert node["additionalProperties"] is False, path
            for key, below in node["properties"].items():
                yield from properties(below, f"{path}.{key}".lstrip("."))
        else:
            yield path, node["description"]

    found = dict(properties(schema))
    del found["global"]  # Helm's own, for charts that have this one as a dependency
    assert found == described
