"""The CRDs on a real API server: it serves them, and it says of every manifest what the models say."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError

from poolfleet.api import crd, names
from tests.api_corpus import (
    FULL_POOL,
    INVALID,
    MODELS,
    PLURALS,
    POOL,
    REF_POOL,
    SERVER,
    VALID,
    Manifest,
    changed,
    manifest,
    manifests,
)
from tests.integration.conftest import ApiServer

EXAMPLES = Path(__file__).parents[2] / "examples"
UNKNOWN = ("keda.sh", "cert-manager.io", "secrets.hashicorp.com", "external-secrets.io")
"""Groups of others in the examples, which this API server does not know."""


class Api:
    """The two resources in a namespace of the test module."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server, self.namespace = server, namespace

    def path(self, kind: str, name: str = "") -> str:
        base = f"/apis/{names.API_VERSION}/namespaces/{self.namespace}/{PLURALS[kind]}"
        return f"{base}/{name}" if name else base

    def dry_run(self, obj: Manifest) -> tuple[int, Any]:
        query = "dryRun=All&fieldValidation=Strict"
        return self.server.request("POST", f"{self.path(obj['kind'])}?{query}", obj)

    def apply(self, obj: Manifest, subresource: str = "") -> tuple[int, Any]:
        return self.server.apply(self.path(obj["kind"], obj["metadata"]["name"]) + subresource, obj)

    def delete(self, kind: str, name: str) -> None:
        assert self.server.request("DELETE", self.path(kind, name))[0] == 200


@pytest.fixture(scope="module")
def api(apiserver: ApiServer) -> Api:
    apiserver.install_crds()
    return Api(apiserver, apiserver.namespace())


def test_the_schemas_are_structural(api: Api) -> None:
    for definition in (crd.pgpool_crd(), crd.pgserver_crd()):
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{definition['metadata']['name']}"
        conditions = {each["type"]: each["status"] for each in api.server.get(path)["status"]["conditions"]}
        assert conditions == {"Established": "True", "NamesAccepted": "True"}


@pytest.mark.parametrize("name", VALID)
def test_accepts_and_fills_in_the_defaults_of_the_models(api: Api, name: str) -> None:
    status, answer = api.dry_run(VALID[name])
    assert status == 201, answer
    model = MODELS[VALID[name]["kind"]]
    assert model.model_validate(answer).spec == model.model_validate(VALID[name]).spec


@pytest.mark.parametrize("name", INVALID)
def test_refuses_in_words(api: Api, name: str) -> None:
    obj, said = INVALID[name]
    status, answer = api.dry_run(obj)
    assert status == 422, answer
    assert said in answer["message"]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(obj=manifests())
def test_the_models_reach_the_same_verdict(api: Api, obj: Manifest) -> None:
    try:
        MODELS[obj["kind"]].model_validate(obj)
        refused = ""
    except ValidationError as error:
        refused = str(error)
    status, answer = api.dry_run(obj)
    assert (status == 201) == (not refused), f"{json.dumps(obj)}\nmodels: {refused}\nAPI server: {answer}"


def test_a_typing_error_in_a_field_is_refused(api: Api) -> None:
    status, answer = api.dry_run(changed(POOL, "replica", 3))
    assert (status, answer["message"].rpartition(": ")[2]) == (400, 'unknown field "spec.replica"')


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (REF_POOL, changed(REF_POOL, "serverRef.name", "other"), "serverRef cannot be changed"),
        (REF_POOL, changed(REF_POOL, "serverRef", {"name": "shop-db"}), "serverRef cannot be changed"),
        (REF_POOL, POOL, "cannot change between server and serverRef"),
        (POOL, REF_POOL, "cannot change between server and serverRef"),
    ],
)
def test_the_server_of_a_pool_stays(api: Api, before: Manifest, after: Manifest, said: str) -> None:
    status, stored = api.server.request("POST", api.path("PgPool"), before)
    assert status == 201, stored
    try:
        replacement = {**after, "metadata": stored["metadata"]}
        status, answer = api.server.request("PUT", api.path("PgPool", "shop"), replacement)
        assert status == 422
        assert said in answer["message"]
    finally:
        api.delete("PgPool", "shop")


def test_host_of_an_inline_server_may_change(api: Api) -> None:
    assert api.apply(POOL)[0] == 201
    status, answer = api.apply(changed(POOL, "server.host", "standby"))
    assert (status, answer["spec"]["server"]["host"]) == (200, "standby")
    api.delete("PgPool", "shop")


def test_scale(api: Api) -> None:
    assert api.apply(POOL)[0] == 201
    said = {"apiVersion": names.API_VERSION, "kind": "PgPool", "metadata": {"name": "shop"}}
    assert api.apply({**said, "status": {"replicas": 1, "selector": "poolfleet.dev/pool=shop"}}, "/status")[0] == 200
    scale = api.server.get(api.path("PgPool", "shop") + "/scale")
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 1, "selector": "poolfleet.dev/pool=shop"}
    done = api.server.kubectl("scale", "-n", api.namespace, "pgpool/shop", "--replicas=5")
    assert done.returncode == 0, done.stderr
    assert api.server.get(api.path("PgPool", "shop"))["spec"]["replicas"] == 5
    api.delete("PgPool", "shop")


def sample(schema: Any) -> Any:
    """A value with every field that `schema` knows."""
    if "enum" in schema:
        return schema["enum"][0]
    if "properties" in schema:
        return {name: sample(each) for name, each in schema["properties"].items()}
    if "items" in schema:
        return [sample(schema["items"])]
    if "additionalProperties" in schema:
        return {"shop": sample(schema["additionalProperties"])}
    if schema.get("format") == "date-time":
        return "2026-11-22T09:47:26.123456Z"
    return {"string": "Text", "integer": 7, "boolean": True}[schema["type"]]


@pytest.mark.parametrize("obj", [POOL, SERVER])
def test_every_field_of_the_status_is_stored(api: Api, obj: Manifest) -> None:
    definition = {"PgPool": crd.pgpool_crd, "PgServer": crd.pgserver_crd}[obj["kind"]]()
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    status = sample(schema)
    assert api.apply(obj)[0] == 201
    said = {key: obj[key] for key in ("apiVersion", "kind", "metadata")}
    code, answer = api.apply({**said, "status": status}, "/status")
    assert code == 200, answer
    assert answer["status"] == status
    api.delete(obj["kind"], "shop")


def test_the_ledger_has_one_entry_per_pod_and_database(api: Api) -> None:
    assert api.apply(SERVER)[0] == 201
    said = {key: SERVER[key] for key in ("apiVersion", "kind", "metadata")}
    entries = [{"pod": "p1", "database": "a", "bound": 1}, {"pod": "p1", "database": "b", "bound": 2}]
    code, answer = api.apply({**said, "status": {"ledger": {"revision": 1, "entries": entries}}}, "/status")
    assert (code, answer["status"]["ledger"]["entries"]) == (200, entries)
    code, answer = api.apply({**said, "status": {"ledger": {"revision": 2, "entries": entries[:1]}}}, "/status")
    assert (code, answer["status"]["ledger"]["entries"]) == (200, entries[:1])
    twice = {"ledger": {"revision": 3, "entries": [entries[0], entries[0]]}}
    stored = api.server.get(api.path("PgServer", "shop"))
    code, answer = api.server.request("PUT", api.path("PgServer", "shop") + "/status", {**stored, "status": twice})
    assert code == 422
    assert "Duplicate value" in answer["message"]
    api.delete("PgServer", "shop")


def test_null_in_the_template_survives_apply(api: Api) -> None:
    assert api.apply(changed(POOL, "template", {"spec": {"nodeSelector": None, "tolerations": []}}))[0] == 201
    stored = api.server.get(api.path("PgPool", "shop"))
    assert stored["spec"]["template"] == {"spec": {"nodeSelector": None, "tolerations": []}}
    api.delete("PgPool", "shop")


def test_columns_short_names_and_category(api: Api) -> None:
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Serving",
        "message": "",
        "lastTransitionTime": "2026-11-22T09:47:26Z",
    }
    status: dict[str, Manifest] = {
        "PgPool": {
            "desiredReplicas": 2,
            "readyReplicas": 1,
            "connections": {"granted": 40, "budget": 85, "inUse": 3},
            "clients": {"active": 12},
            "conditions": [ready],
        },
        "PgServer": {
            "maxConnections": 100,
            "budget": 85,
            "granted": 40,
            "free": 45,
            "inUse": 3,
            "reserve": 2,
            "ghosts": 6,
            "conditions": [ready],
        },
    }
    for obj in (POOL, SERVER):
        assert api.apply(obj)[0] == 201
        said = {key: obj[key] for key in ("apiVersion", "kind", "metadata")}
        assert api.apply({**said, "status": status[obj["kind"]]}, "/status")[0] == 200

    def table(*arguments: str) -> list[list[str]]:
        lines = api.server.kubectl("get", "-n", api.namespace, *arguments).stdout.splitlines()
        return [line.replace("READY REPLICAS", "READY-REPLICAS").replace("IN USE", "IN-USE").split() for line in lines]

    head, row = table("pgp", "-o", "wide")
    connections = ["GRANTED", "BUDGET", "IN-USE"]
    assert head == ["NAME", "READY", "REPLICAS", "READY-REPLICAS", *connections, "CLIENTS", "REASON", "AGE"]
    assert row[:-1] == ["shop", "True", "2", "1", "40", "85", "3", "12", "Serving"]
    head, row = table("pgs", "-o", "wide")
    assert head == ["NAME", "READY", "MAX", "BUDGET", "GRANTED", "FREE", "IN-USE", "RESERVE", "GHOSTS", "AGE"]
    assert row[:-1] == ["shop", "True", "100", "85", "40", "45", "3", "2", "6"]
    listed = {line[0] for line in table("poolfleet", "-o", "name")}
    assert listed == {"pgpool.poolfleet.dev/shop", "pgserver.poolfleet.dev/shop"}
    for kind in ("PgPool", "PgServer"):
        api.delete(kind, "shop")


def test_explain(api: Api) -> None:
    said = api.server.kubectl("explain", "pgpool.spec.databases.credentialsSecretRef.usernameKey")
    assert "Key of the Secret that holds the user name." in said.stdout, said.stderr


def test_examples_are_accepted(api: Api) -> None:
    for file in sorted(EXAMPLES.glob("*.yaml")):
        for obj in yaml.safe_load_all(file.read_text()):
            obj["metadata"].pop("namespace")
            if obj["kind"] in PLURALS:
                status, answer = api.dry_run(obj)
            elif obj["apiVersion"].partition("/")[0] in UNKNOWN:
                continue
            else:
                plural = {"Secret": "secrets", "HorizontalPodAutoscaler": "horizontalpodautoscalers"}[obj["kind"]]
                root = "/api/v1" if obj["apiVersion"] == "v1" else f"/apis/{obj['apiVersion']}"
                path = f"{root}/namespaces/{api.namespace}/{plural}?dryRun=All&fieldValidation=Strict"
                status, answer = api.server.request("POST", path, obj)
            assert status == 201, f"{file.name}: {answer}"


def test_the_largest_pool_fits(api: Api) -> None:
    spec = {
        **FULL_POOL["spec"],
        "databases": [{"name": f"database-{n}"} for n in range(100)],
        "users": [{"secretRef": {"name": f"user-{n}"}} for n in range(200)],
    }
    status, answer = api.dry_run(manifest("PgPool", spec, "a" * 52))
    assert status == 201, answer
