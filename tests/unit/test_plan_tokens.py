"""Which roles need a token, what a command printed, and when the next one is due."""

from typing import Any

import pytest

from poolfleet.api.conditions import Reason
from poolfleet.plan.checks import Part
from poolfleet.plan.model import Problem
from poolfleet.plan.pool import plan
from poolfleet.plan.secrets import Login, credentials
from poolfleet.plan.tokens import NoToken, Request, Token, read_output, refresh_in, requests, retry_in
from tests.unit.pool_fixtures import SECRETS, Body, data, of, pool_body, server_body, settled, view

NOW = 1_800_000_000.0
AWS: Body = {"awsIam": {"region": "eu-central-1", "roles": ["app", "job"]}}
WORD = "token-" + "x" * 1994


def with_roles(*roles: str, provider: Body | None = AWS, **keys: bytes) -> dict[str, Any]:
    """Arguments of `view`: a pool whose databases use these roles by Secrets without a password."""
    databases = [{"name": f"d{i}", "credentialsSecretRef": {"name": f"role-{i}"}} for i in range(len(roles))]
    server: Body = {"host": "postgres", "maxConnections": 100}
    if provider is not None:
        server["tokenProvider"] = provider
    secrets = {f"role-{i}": {"username": role.encode(), **keys} for i, role in enumerate(roles)}
    return {"body": pool_body(databases=databases, server=server), "secrets": {**SECRETS, **secrets}}


def request(role: str, **more: str) -> Request:
    return Request("uid-server", "demo", "shop", "postgres.demo.svc", 5432, role, **more)


def test_a_listed_role_without_a_password_needs_a_token() -> None:
    found = requests(view(**with_roles("app", "other", "job", "app")))
    assert found == (request("app", region="eu-central-1"), request("job", region="eu-central-1"))
    by_command: Body = {"exec": {"name": "vend", "roles": ["app"]}}
    assert requests(view(**with_roles("app", provider=by_command))) == (request("app", command="vend"),)


def test_nobody_else_does() -> None:
    assert requests(view()) == ()
    assert requests(view(**with_roles("app", provider=None))) == ()
    assert requests(view(**with_roles("app", password=b"own"))) == (), "a password in the Secret wins"
    assert requests(view(**{**with_roles("app"), "secrets": SECRETS})) == (), "there is no Secret"
    assert requests(view(**with_roles("app"), no_server=True)) == ()


def test_a_pool_that_may_not_use_the_server_gets_no_token() -> None:
    body = pool_body(
        server=None,
        serverRef={"name": "db", "namespace": "dba"},
        databases=[{"name": "shop", "credentialsSecretRef": {"name": "role"}}],
    )
    secrets = {**SECRETS, "role": {"username": b"app"}}
    server = server_body("db")
    server["metadata"] |= {"namespace": "dba", "ownerReferences": []}
    server["spec"] = {
        "host": "10.1.2.3",
        "maxConnections": 9,
        "tokenProvider": AWS,
        "allowedNamespaces": {"from": "All"},
    }
    (found,) = requests(view(body, server, secrets=secrets))
    assert (found.namespace, found.server, found.host) == ("dba", "db", "10.1.2.3")
    server["spec"]["allowedNamespaces"] = {"from": "Same"}
    assert requests(view(body, server, secrets=secrets)) == ()
    server["status"]["pools"] = [{"namespace": "demo", "name": "shop", "uid": "uid-pool", "admitted": True}]
    assert requests(view(body, server, secrets=secrets)) == (), "what it has it keeps, but no more"


def test_the_token_is_the_password() -> None:
    given = credentials(view(**with_roles("app"), tokens={"app": WORD}))
    assert given.problems == ()
    assert given.databases == {"d0": Login("app", WORD)}
    assert WORD not in repr(given)
    assert WORD not in repr(view(**with_roles("app"), tokens={"app": WORD}))
    planned = plan(view(**with_roles("app"), tokens={"app": WORD}))
    assert f"user='app' password='{WORD}'" in data(of(planned, "Secret", "shop-config"))["pgbouncer.ini"]


def test_no_client_gets_a_token_as_its_password() -> None:
    arguments = with_roles("app")
    arguments["secrets"]["shop-app"] = {"username": b"app"}
    (problem,) = credentials(view(**arguments, tokens={"app": WORD})).problems
    assert (problem.reason, "users[0].secretRef.passwordKey" in problem.message) == (Reason.SECRET_KEY_NOT_FOUND, True)


def test_without_a_token_the_last_good_fleet_stays() -> None:
    arguments = with_roles("app")
    before = settled(**arguments, tokens={"app": WORD})
    problem = Problem(Reason.TOKEN_UNAVAILABLE, "There is none.")
    live = view(arguments["body"], dict(before.server or {}), secrets=arguments["secrets"], live=before.children,
                tokens={"app": problem})  # fmt: skip
    planned = plan(live)
    assert [(f.reason, f.message, f.blocks) for f in planned.findings] == [
        (Reason.TOKEN_UNAVAILABLE, "There is none.", Part.CONTENT)
    ]
    assert planned.apply == () and planned.delete == ()


@pytest.mark.parametrize(("provider", "says"), [(AWS, 'does not list role "other"'), (None, "or add the key.")])
def test_a_role_that_no_provider_lists_needs_its_password(provider: Body | None, says: str) -> None:
    (problem,) = credentials(view(**with_roles("other", provider=provider))).problems
    assert problem.reason == Reason.SECRET_KEY_NOT_FOUND
    assert 'Secret "role-0" has no key "password"; it has: username.' in problem.message
    assert problem.message.rstrip(".").endswith(says.rstrip("."))


def test_a_token_that_no_file_can_carry_is_refused_without_being_told() -> None:
    word = "secret" + "x" * 70000
    (problem,) = credentials(view(**with_roles("app"), tokens={"app": word})).problems
    assert problem.reason == Reason.TOKEN_UNAVAILABLE
    assert problem.message.startswith('The token for role "app" of PgServer "shop" is 70006 bytes long')
    assert "secret" not in problem.message


@pytest.mark.parametrize(
    ("output", "life"),
    [
        ('{"token": "word", "expiresInSeconds": 30}', 30),
        ('{"token": "word", "expiresInSeconds": 0.5}\n', 0.5),
        ('  {"token": "word", "expiresAt": "2027-01-15T09:00:00Z"}', 3600),
        ('{"token": "word", "expiresAt": "2027-01-15T09:00:30+01:00"}', 30),
        ('{"token": "word"}', 900),
        ("word\n", 900),
    ],
)
def test_what_a_command_may_print(output: str, life: float) -> None:
    assert read_output(output.encode(), NOW) == Token("word", NOW, NOW + life)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (b"", "no token"),
        (b" \n", "no token"),
        (b"hidden\nhidden", "more than a token"),
        (b"hidden hidden", "more than a token"),
        (b'{"token": "hid\\nden"}', "more than a token"),
        (b"hidden\0", "more than a token"),
        (b"\xffhidden", "UTF-8"),
        (b'{"token": "hidden"', "no JSON"),
        (b"{" * 5000, "no JSON"),
        (b'{"token": ["hidden"]}', 'without a text "token"'),
        (b'{"password": "hidden"}', 'without a text "token"'),
        (b'{"token": "hidden", "expiresInSeconds": 0}', "expired already"),
        (b'{"token": "hidden", "expiresAt": "2027-01-15T08:00:00Z"}', "expired already"),
        (b'{"token": "hidden", "expiresAt": "2027-01-15T09:00:00"}', "RFC 3339"),
        (b'{"token": "hidden", "expiresAt": "hidden"}', "RFC 3339"),
        (b'{"token": "hidden", "expiresAt": 7}', "RFC 3339"),
        (b'{"token": "hidden", "expiresInSeconds": "hidden"}', "no number"),
        (b'{"token": "hidden", "expiresInSeconds": Infinity}', "no number"),
        (b'{"token": "hidden", "expiresInSeconds": true}', "no number"),
        (b"hidden" * 20000, "more than 65536 bytes"),
    ],
)
def test_all_else_is_refused_without_being_told(output: bytes, says: str) -> None:
    with pytest.raises(NoToken) as refused:
        read_output(output, NOW)
    assert says in str(refused.value)
    assert "hid" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("life", "chance", "after"),
    [
        (900, 0.0, 600),  # two thirds
        (900, 1.0, 540),
        (150, 0.0, 90),  # a minute before the end
        (30, 0.0, 15),  # half of a short life
        (30, 1.0, 13.5),
    ],
)
def test_the_next_token_is_made_ahead(life: float, chance: float, after: float) -> None:
    token = Token("word", NOW, NOW + life)
    assert refresh_in(token, NOW, chance) == pytest.approx(after)
    assert refresh_in(token, NOW + 5, chance) == pytest.approx(after - 5)
    assert refresh_in(token, NOW + 10 * life, chance) == 0.0


def test_tries_become_rarer_but_never_miss_the_token_s_end() -> None:
    assert [retry_in(n, None, NOW, 0.0) for n in (1, 2, 3, 6, 999)] == [1, 2, 4, 30, 30]
    assert retry_in(1, None, NOW, 1.0) == pytest.approx(0.9)
    token = Token("word", NOW, NOW + 900)
    assert retry_in(9, token, NOW, 0.0) == 30
    assert retry_in(9, token, NOW + 835, 0.0) == 5, "it is late then"
    assert retry_in(9, token, NOW + 893, 0.0) == 7, "it ends then"
    assert retry_in(9, token, NOW + 900, 0.0) == 30
