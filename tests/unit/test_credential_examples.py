"""examples/rotation.yaml, rds-iam.yaml and tls.yaml: what they hold fits together, so that nothing is blocked."""

import base64
from pathlib import Path
from typing import Any

import yaml

from poolfleet.api import names
from poolfleet.plan import logins, tokens
from poolfleet.plan.managed import refusal
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.secrets import Login, credentials
from tests.unit.pool_fixtures import pool_body, server_body, view

EXAMPLES = Path(__file__).parents[2] / "examples"
Body = dict[str, Any]


def documents(name: str, kind: str) -> list[Body]:
    """The documents of that kind in an example."""
    return [each for each in yaml.safe_load_all((EXAMPLES / name).read_text()) if each["kind"] == kind]


def as_observed(name: str, **more: Any) -> PoolView:
    """The example's pool, with its PgServer and its Secrets."""
    [pool], [server] = documents(name, names.POOL_KIND), documents(name, names.SERVER_KIND)
    body = pool_body(**{"server": None, **pool["spec"]})
    title = server["metadata"]["name"]
    found = {each["metadata"]["name"]: each for each in documents(name, "Secret")}
    contents = {key: {k: v.encode() for k, v in each["stringData"].items()} for key, each in found.items()}
    live = {
        ("demo", key): {
            **each,
            "metadata": {**each["metadata"], "creationTimestamp": "2027-01-01T00:00:00Z", "uid": key},
            "data": {k: base64.b64encode(v).decode() for k, v in contents[key].items()},
        }
        for key, each in found.items()
    }
    observed = server_body(title) | {"spec": server["spec"]}
    return view(body, observed, secrets=contents, secret_bodies=live, **more)


def test_the_roles_that_rotate_are_managed_and_so_are_their_secrets() -> None:
    given = as_observed("rotation.yaml")
    assert given.spec is not None
    assert given.server_spec is not None
    assert given.server_spec.admin_secret_ref is not None
    managed = set(given.server_spec.managed_roles)
    secrets = {each["metadata"]["name"]: each for each in documents("rotation.yaml", "Secret")}
    strategies = set()
    for database in given.spec.databases:
        assert database.rotation is not None
        assert database.credentials_secret_ref is not None
        strategies.add(database.rotation.strategy)
        secret = secrets[database.credentials_secret_ref.name]
        assert not refusal(secret)
        roles = database.rotation.roles or [secret["stringData"]["username"]]
        assert secret["stringData"]["username"] in roles
        assert set(roles) <= managed
    assert strategies == {"Password", "AlternatingRoles"}


def test_the_clients_rotation_is_not_blocked() -> None:
    given = as_observed("rotation.yaml", fresh_password="f" * 43)
    [line] = logins.plan(given, {}).lines
    assert (line.secret, line.login, line.reason) == ("shop-app", "web", "")


def test_rds_gets_a_token_for_the_role_of_the_secret_without_a_password() -> None:
    given = as_observed("rds-iam.yaml")
    [request] = tokens.requests(given)
    assert (request.role, request.region) == ("shop", "eu-central-1")
    assert request.host.endswith(".eu-central-1.rds.amazonaws.com")
    loaded = credentials(as_observed("rds-iam.yaml", tokens={"shop": "a-token"}))
    assert loaded.databases == {"shop": Login("shop", "a-token")}


def test_certificates_are_made_out_for_what_they_are_used_for() -> None:
    made = {each["spec"]["secretName"]: each["spec"] for each in documents("tls.yaml", "Certificate")}
    [pool], [server] = documents("tls.yaml", names.POOL_KIND), documents("tls.yaml", names.SERVER_KIND)
    shown = made[pool["spec"]["tls"]["secretRef"]["name"]]
    assert shown["usages"] == ["server auth"]
    where = pool["metadata"]
    assert f"{where['name']}.{where['namespace']}.svc" in shown["dnsNames"]
    assert made[server["spec"]["tls"]["clientCertSecretRef"]["name"]]["usages"] == ["client auth"]
    assert all(each["secretTemplate"]["labels"] == {names.LABEL_WATCH: "true"} for each in made.values())
