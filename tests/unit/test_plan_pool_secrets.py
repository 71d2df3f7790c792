"""Secrets: what is in them, what is missing in them, and users that were removed."""

from collections.abc import Mapping

import pytest

from poolfleet.api import names
from poolfleet.api.conditions import Reason
from poolfleet.plan import config
from poolfleet.plan.managed import next_login
from poolfleet.plan.objects.meta import annotation
from poolfleet.plan.pool import Plan, plan
from poolfleet.plan.secrets import Login, credentials, former_users, next_role_login, userlist
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


# Logins on the server: a next password is staged, another role needs other pods

ROLE: Mapping[str, Mapping[str, bytes] | None] = {**SECRETS, "role": {"username": b"app", "password": b"old"}}


def forced(rotation: Body | None = None) -> Body:
    database: Body = {"name": "shop", "credentialsSecretRef": {"name": "role"}}
    return pool_body(databases=[database if rotation is None else {**database, "rotation": rotation}])


def next_secret(username: str = "app", password: str = "new", uid: str = "uid-next") -> Body:
    about = {"kind": "role", "secret": "role"}
    body = next_login("role", "demo", {"username": username, "password": password}, about, "shop")
    return {**body, "metadata": {**body["metadata"], "uid": uid}}


def live(planned: Plan) -> dict[tuple[str, str], Body]:
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in planned.wanted}


def noted(planned: Plan) -> tuple[str | None, str | None, str | None]:
    """x-config's annotations STAGED and TURN, and the turn of the pods' template."""
    secret, template = of(planned, "Secret", "shop-config"), of(planned, "Deployment")["spec"]["template"]
    return annotation(secret, names.STAGED), annotation(secret, names.TURN), annotation(template, names.TURN)


def test_a_next_password_is_staged_and_rolls_nothing() -> None:
    before = plan(view(forced(), secrets=ROLE))
    assert noted(before) == (None, None, None)
    staged = plan(view(forced(), secrets=ROLE, live=live(before), next_secrets={"role": next_secret()}))
    assert noted(staged) == ("role=uid-next", None, None)
    assert "password='new'" in data(of(staged, "Secret", "shop-config"))["pgbouncer.ini"]
    stored = {**ROLE, "role": {"username": b"app", "password": b"new"}}
    after = plan(view(forced(), secrets=stored, live=live(staged), next_secrets={"role": next_secret()}))
    assert noted(after) == (None, None, None)
    files = [of(each, "Secret", "shop-config")["data"] for each in (staged, after)]
    assert files[0] == files[1]  # what is in force is what was staged
    templates = [of(each, "Deployment")["spec"]["template"] for each in (before, staged, after)]
    assert templates[0] == templates[1] == templates[2]


@pytest.mark.parametrize(
    "following",
    [
        next_secret("other"),  # of AlternatingRoles: it comes with the main Secret
        next_secret(password="ü"),
        next_secret(password=""),
        {**next_secret(), "data": {}},
        {**next_secret(), "metadata": {**next_secret()["metadata"], "annotations": {}}},
    ],
)
def test_what_is_no_next_password_is_not_staged(following: Body) -> None:
    planned = plan(view(forced(), secrets=ROLE, next_secrets={"role": following}))
    assert noted(planned) == (None, None, None)
    assert "password='old'" in data(of(planned, "Secret", "shop-config"))["pgbouncer.ini"]


def test_another_role_is_a_turn_and_needs_other_pods() -> None:
    planned = plan(view(forced(), secrets=ROLE))
    for turn, name in (("1", b"green"), ("2", b"blue")):
        changed = {**ROLE, "role": {"username": name, "password": b"old"}}
        first = plan(view(forced(), secrets=changed, live=live(planned)))
        assert noted(first) == (None, turn, turn)
        again = plan(view(forced(), secrets=changed, live=live(first)))
        assert noted(again) == (None, turn, turn)
        templates = [of(each, "Deployment")["spec"]["template"] for each in (planned, first)]
        assert templates[0] != templates[1]
        planned = again


def test_a_database_that_comes_or_goes_is_no_turn() -> None:
    """Nobody has sessions that would change their role. A login of its own instead of the clients' is another role."""
    more = [*forced()["spec"]["databases"], {"name": "late", "credentialsSecretRef": {"name": "second"}}]
    secrets = {**ROLE, "second": {"username": b"x", "password": b"y"}}
    first = plan(view(forced(), secrets=ROLE))
    both = plan(view(pool_body(databases=more), secrets=secrets, live=live(first)))
    assert noted(both) == (None, None, None)
    assert noted(plan(view(forced(), secrets=ROLE, live=live(both)))) == (None, None, None)
    assert noted(plan(view(pool_body(), live=live(first)))) == (None, "1", "1")


def test_the_turn_outlives_a_deleted_configuration() -> None:
    changed = {**ROLE, "role": {"username": b"green", "password": b"old"}}
    turned = plan(view(forced(), secrets=changed, live=live(plan(view(forced(), secrets=ROLE)))))
    last = of(turned, "Secret", "shop-config")
    again = plan(view(forced(), secrets=changed, last_config=last))
    assert noted(again) == (None, "1", "1")


def test_the_next_login_of_a_role() -> None:
    assert next_role_login(next_secret()) == Login("app", "new")
    assert next_role_login(None) is None
    user = next_login("role", "demo", {"username": "app", "password": "new"}, {"kind": "user"}, "shop")
    assert next_role_login(user) is None
