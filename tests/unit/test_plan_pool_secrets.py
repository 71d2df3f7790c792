"""Secrets: what is in them, what is missing in them, and users that were removed."""

from collections.abc import Mapping

import pytest

from poolfleet.api.conditions import Reason
from poolfleet.plan import config
from poolfleet.plan.pool import plan
from poolfleet.plan.secrets import Login, credentials, former_users, userlist
from tests.certificates import Authority
from tests.unit.pool_fixtures import KEY, NOW, SECRETS, Body, data, of, pool_body, server_body, settled, view

REF = {"secretRef": {"name": "shop-app"}}


def problem(
    body: Body, secrets: Mapping[str, Mapping[str, bytes] | None], server: Body | None = None
) -> tuple[str, str]:
    (found,) = credentials(view(body, server, secrets=secrets)).problems
    return found.reason, found.message


def test_users_and_server_logins_are_read() -> None:
    body = pool_body(
        users=[
            REF,
            {"secretRef": {"name": "other", "usernameKey": "u", "passwordKey": "p"}},
            {"secretRef": {"name": "bare"}, "username": "bare"},
        ],
        databases=[{"name": "shop"}, {"name": "forced", "credentialsSecretRef": {"name": "role"}}],
    )
    given = credentials(
        view(
            body,
            secrets={
                **SECRETS,
                "other": {"u": "ü".encode(), "p": b"2"},
                "bare": {"password": b"3"},
                "role": {"username": b"shop", "password": b"4"},
            },
        )
    )
    assert given.problems == ()
    assert given.users == (Login("shop", "pass word"), Login("ü", "2"), Login("bare", "3"))
    assert given.databases == {"forced": Login("shop", "4")}
    assert "pass word" not in repr(given)


def test_a_missing_secret_is_named_with_its_place() -> None:
    reason, message = problem(pool_body(), {})
    assert reason == Reason.SECRET_NOT_FOUND
    assert message == 'Secret "shop-app" (users[0].secretRef) does not exist in namespace "demo". Create it.'


def test_a_missing_key_is_named_with_those_there() -> None:
    reason, message = problem(pool_body(), {"shop-app": {"username": b"shop", "pw": b"hidden"}})
    assert reason == Reason.SECRET_KEY_NOT_FOUND
    assert message == (
        'Secret "shop-app" has no key "password"; it has: pw, username. '
        "Set users[0].secretRef.passwordKey or add the key."
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"username": b"shop", "password": b"top-secret\n"}, "--from-literal"),
        ({"username": b"shop", "password": b"top-secret\0"}, "NUL"),
        ({"username": b"shop", "password": b"\xfftop-secret"}, "not UTF-8"),
        ({"username": b"shop", "password": b""}, "empty"),
        ({"username": b"", "password": b"top-secret"}, "empty"),
        ({"username": b"pgbouncer", "password": b"top-secret"}, "admin console"),
        ({"username": b"u" * 64, "password": b"top-secret"}, "at most 63"),
        ({"username": b"shop", "password": b"SCRAM-SHA-256$top-secret"}, "hash"),
    ],
)
def test_what_no_file_can_carry_is_refused_without_being_told(content: dict[str, bytes], says: str) -> None:
    reason, message = problem(pool_body(), {"shop-app": content})
    assert reason == Reason.INVALID_CREDENTIALS
    assert says in message
    assert '"shop-app"' in message
    assert "top-secret" not in message


def test_a_server_login_is_checked_too() -> None:
    body = pool_body(databases=[{"name": "shop", "credentialsSecretRef": {"name": "role"}}])
    reason, message = problem(body, {**SECRETS, "role": {"username": b"a", "password": b"b\r"}})
    assert reason == Reason.INVALID_CREDENTIALS
    assert '"role"' in message


def test_two_users_of_one_name() -> None:
    reason, message = problem(pool_body(users=[REF, REF]), SECRETS)
    assert reason == Reason.INVALID_SPEC
    assert 'users[1] has the user name "shop"' in message


def test_two_words_for_one_user_name() -> None:
    reason, message = problem(pool_body(users=[{**REF, "username": "else"}]), SECRETS)
    assert reason == Reason.INVALID_SPEC
    assert "users[0].username" in message


def test_the_servers_ca() -> None:
    tls = {"mode": "verify-full", "caSecretRef": {"name": "ca"}}
    server = server_body()
    body = pool_body(server={"host": "postgres", "maxConnections": 100, "tls": tls})
    assert problem(body, SECRETS, server)[0] == Reason.SECRET_NOT_FOUND
    assert problem(body, {**SECRETS, "ca": {"ca.crt": b"nonsense"}}, server)[0] == Reason.INVALID_CERTIFICATE
    pem = Authority("ca", NOW).certificate
    planned = plan(view(body, server, secrets={**SECRETS, "ca": {"ca.crt": pem}}))
    files = data(of(planned, "Secret", "shop-config"))
    assert files["server-ca.crt"] == pem.decode()
    assert "server_tls_ca_file = /run/pgbouncer/server-ca.crt" in files["pgbouncer.ini"]


def two_users() -> Body:
    return pool_body(users=[REF, {"secretRef": {"name": "guest"}}])


def test_a_removed_user_stays_with_a_password_nobody_knows() -> None:
    secrets = {**SECRETS, "guest": {"username": b"guest", "password": b"welcome"}}
    before = settled(two_users(), secrets=secrets)
    after = view(pool_body(), live=before.children)
    assert former_users(after) == ("guest", "shop")
    listed = userlist(after, (Login("shop", "pass word"),), KEY)
    assert list(listed) == ["shop", "guest"]
    assert listed["shop"] == "pass word"
    assert listed["guest"] != "welcome"
    assert len(listed["guest"]) == 64
    files = data(of(plan(after), "Secret", "shop-config"))
    assert f'"guest" "{listed["guest"]}"' in files["userlist.txt"]
    # And for ever: the next reconciliation remembers him from what this one has written.
    third = view(pool_body(), live={("Secret", "shop-config"): of(plan(after), "Secret", "shop-config")})
    assert data(of(plan(third), "Secret", "shop-config")) == files
    # Until he comes back.
    again = view(two_users(), live=third.children, secrets=secrets)
    assert '"guest" "welcome"' in data(of(plan(again), "Secret", "shop-config"))["userlist.txt"]


@pytest.mark.parametrize("annotation", ["", "{", "7", '{"a": 1}', '["a\\nb", 7, "pgbouncer", ""]'])
def test_a_spoilt_memory_of_users_harms_nothing(annotation: str) -> None:
    secret = of(plan(view()), "Secret", "shop-config")
    secret["metadata"]["annotations"]["poolfleet.dev/users"] = annotation
    spoilt = view(live={("Secret", "shop-config"): secret})
    assert former_users(spoilt) == ()
    assert plan(spoilt).findings == ()


def test_the_key_is_kept_while_anything_remembers_it() -> None:
    assert config.pool_key(view()) == KEY
    secret = of(plan(view()), "Secret", "shop-config")
    other = "cd" * 32
    assert config.pool_key(view(live={("Secret", "shop-config"): secret}, fresh_key=other)) == KEY
    assert config.pool_key(view(last_config=secret, fresh_key=other)) == KEY
    stranger = {**secret, "metadata": {**secret["metadata"], "ownerReferences": []}}
    assert config.pool_key(view(last_config=stranger, fresh_key=other)) == other
    spoilt = {**secret, "data": {**secret["data"], "key": "bm90IGhleA=="}}
    assert config.pool_key(view(live={("Secret", "shop-config"): spoilt}, fresh_key=other)) == other


@pytest.mark.parametrize(
    ("total", "replicas", "each"),
    [(10000, 0, 10000), (10000, 1, 10000), (10000, 2, 10000), (10000, 4, 3334), (1, 9, 1)],
)
def test_the_fleet_takes_its_clients_with_one_pod_lost(total: int, replicas: int, each: int) -> None:
    assert config.client_connections(total, replicas) == each
    assert replicas < 2 or each * (replicas - 1) >= total
