"""The models: verdicts of the corpus, defaults of design section 2, errors for people."""

from typing import Any

import pytest
from pydantic import ValidationError

from poolfleet.api.base import explain
from poolfleet.api.pgpool import PgPoolSpec
from poolfleet.api.pgserver import PgServerSpec
from tests.api_corpus import FULL_POOL, INVALID, MODELS, POOL, VALID, Manifest, changed


@pytest.mark.parametrize("name", VALID)
def test_accepts(name: str) -> None:
    MODELS[VALID[name]["kind"]].model_validate(VALID[name])


@pytest.mark.parametrize("name", INVALID)
def test_refuses(name: str) -> None:
    manifest, _ = INVALID[name]
    with pytest.raises(ValidationError):
        MODELS[manifest["kind"]].model_validate(manifest)


def test_defaults() -> None:
    spec = PgPoolSpec.model_validate(POOL["spec"])
    said = spec.model_dump(by_alias=True, exclude_none=True)
    assert said == {
        "server": {
            "host": "postgres",
            "port": 5432,
            "tls": {"mode": "prefer"},
            "maxConnections": 100,
            "headroom": "10%",
            "discoveryIntervalSeconds": 300,
            "allowedNamespaces": {"from": "Same"},
            "roleLimits": "Off",
            "managedRoles": [],
        },
        "share": {"weight": 1},
        "poolMode": "transaction",
        "databases": [{"name": "shop", "weight": 1}],
        "users": [{"secretRef": {"name": "shop-app", "usernameKey": "username", "passwordKey": "password"}}],
        "maxClientConnections": 10000,
        "replicas": 2,
        "paused": False,
        "service": {
            "type": "ClusterIP",
            "port": 6432,
            "annotations": {},
            "labels": {},
            "loadBalancerSourceRanges": [],
        },
        "networkPolicy": {"enabled": True, "from": []},
        "drain": {"timeoutSeconds": 60},
        "agentUpdate": "OnRollout",
        "pgbouncer": {"parameters": {}},
        "template": {},
    }


def test_ca_key_default() -> None:
    spec = PgServerSpec.model_validate({"host": "h", "maxConnections": 1, "tls": {"caSecretRef": {"name": "ca"}}})
    assert spec.tls.ca_secret_ref is not None
    assert spec.tls.ca_secret_ref.key == "ca.crt"


def test_everything_that_is_said_is_read() -> None:
    spec = PgPoolSpec.model_validate(FULL_POOL["spec"])
    assert spec.model_dump(by_alias=True, exclude_unset=True) == FULL_POOL["spec"]


def test_names_that_follow_from_others() -> None:
    databases = PgPoolSpec.model_validate(FULL_POOL["spec"]).databases
    assert [database.dbname for database in databases] == ["Shop é", "shop_session"]


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (changed(POOL, "server.host", "a b"), "server.host: must be one DNS name or IP address"),
        (changed(POOL, "server", {"host": "a"}), "server: set maxConnections"),
        (changed(POOL, "databases.0.name", "*"), "databases[0]: a database cannot be named"),
        (changed(POOL, "databases", [{"name": "a"}, {"name": "a"}]), 'databases: the database name "a" is there twice'),
        (changed(POOL, "pgbouncer.parameters", {"a\nb": 1.5}), "pgbouncer.parameters['a\\nb']"),
    ],
)
def test_errors_name_the_place(manifest: Manifest, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PgPoolSpec.model_validate(manifest["spec"])
    assert said in explain(caught.value)
    assert "\n" not in explain(caught.value)


def test_errors_do_not_repeat_values() -> None:
    spec: dict[str, Any] = {**POOL["spec"], "replicas": "hunter2", "server": {"host": "hunter2 x", "maxConnections": 1}}
    with pytest.raises(ValidationError) as caught:
        PgPoolSpec.model_validate(spec)
    assert "hunter2" not in explain(caught.value)


def test_frozen() -> None:
    spec = PgPoolSpec.model_validate(POOL["spec"])
    with pytest.raises(ValidationError):
        spec.replicas = 3
