"""The passwords of server roles change while clients of four styles are at work: none of them sees an error, and the
wait is short. What must not be rotated is not, and says why."""

import secrets
import statistics
from collections.abc import Callable, Iterator

import pytest

from poolfleet.api import names
from tests.e2e import kit, rotation, styles
from tests.e2e.guard import guarded
from tests.e2e.rotation import Place, Watch

ROTATIONS = 20
# Seconds that a query may wait in a rotation. Told beside what was reached; red only far beyond: two cores are shared
# by the cluster, the database, and all its clients.
GOAL = 0.5

Report = Callable[[str], None]


@pytest.fixture(scope="module")
def postgres(kubectl: kit.Kubectl, namespace: str) -> kit.Postgres:
    """A PostgreSQL of this module's own: with an admin login, the demo's would be one server for all modules."""
    postgres = kit.Postgres(kubectl, namespace).ensure()
    kubectl.namespace(namespace)  # its labels, which the demo's namespace does not have
    return postgres


@pytest.fixture(scope="module")
def place(postgres: kit.Postgres) -> Iterator[Place]:
    place = Place.make(postgres, "shop")
    place.pool.ready()
    kit.await_until(lambda: place.pool.status().get("readyReplicas") == 3, 60, "three pods", interval=0.3)
    place.former.append(place.stored())
    yield place


def test_twenty_rotations_and_nobody_sees_an_error(place: Place, clients: kit.Clients, report: Report) -> None:
    rotations = []
    with guarded(place.target(), clients, place.pool, report, f"{ROTATIONS} rotations"), Watch(place.pool) as watch:
        patient = clients.start("patient", place.client, "--seconds", "30", "--until-eof")
        kit.await_until(patient.lines, 20, "transactions of 30 s")
        with styles.at_work(clients, place.client, rotation.STYLES) as outcomes:
            for _ in range(ROTATIONS):
                rotations.append(place.rotate(watch))
                place.assert_only_the_stored_password_works()
        lines = patient.stop()
    took, stalled = [each.took for each in rotations], rotation.stalls(rotations, outcomes)
    transactions = rotation.assert_patient(lines, rotations)
    report(
        f"{ROTATIONS} rotations of a password, 3 pods: each {statistics.median(took):.1f} s (p50), at most "
        f"{max(took):.1f} s; longest wait of a query in each p50 {statistics.median(stalled):.2f} s, at most "
        f"{max(stalled):.2f} s (goal {GOAL:g}); {transactions} transactions of 30 s went through"
    )
    for outcome in outcomes:
        report(f"  {outcome}")
    assert [outcome.errors[:3] for outcome in outcomes if outcome.errors] == []
    assert min(outcome.summary["queries"] for outcome in outcomes) > 20 * ROTATIONS / 5
    assert max(stalled) > 0, "nobody waited: the probe sees nothing"
    assert max(stalled) <= 3 * GOAL
    events = place.pool.events()
    assert "Rotated" in events, events


def test_a_role_behind_a_lock_fails_in_words_and_is_rotated_later(
    place: Place, clients: kit.Clients, report: Report
) -> None:
    superuser = kit.Superuser(place.postgres)
    with (
        styles.at_work(clients, place.client, [rotation.PROBE, rotation.PER_QUERY]) as outcomes,
        Watch(place.pool) as watch,
    ):
        before = watch.last.line(place.secret).get("lastRotationTime")
        superuser.sql(f"BEGIN; ALTER ROLE {place.role} CONNECTION LIMIT 55")
        place.ask()
        kit.await_until(lambda: watch.last.line(place.secret).get("phase") == "Failed", 20, "it says that it failed")
        words = watch.last.line(place.secret)["message"]
        assert watch.last.condition("CredentialsCurrent")[1] == "RotationFailed"
        assert place.works(place.stored()) and place.stored() == place.former[-1], "the former password is still valid"
        superuser.sql("ROLLBACK")
        rotation.await_rotated(watch, place.secret, before, 40)
    superuser.close()
    place.assert_only_the_stored_password_works()
    report(f"ALTER ROLE behind a lock: {words}")
    assert "lock" in words
    for outcome in outcomes:
        report(f"  {outcome}")
        assert outcome.errors == []


# -- two roles --------------------------------------------------------------------------------------------------------

OWNER, TWO = "listener", ("listener_a", "listener_b")
LISTENER_SECRET = "listener-role"


@pytest.fixture(scope="module")
def listening(postgres: kit.Postgres, place: Place) -> Iterator[Place]:
    """A pool in session mode on the same server, with two roles that stand in for each other."""
    password = secrets.token_urlsafe(18)
    first, second = TWO
    postgres.sql(
        f"CREATE ROLE {OWNER}; CREATE ROLE {first} LOGIN PASSWORD {kit.quoted(password)} IN ROLE {OWNER};"
        f"CREATE ROLE {second} NOLOGIN IN ROLE {OWNER}; ALTER ROLE {first} SET role = {OWNER};"
        f"ALTER ROLE {second} SET role = {OWNER}; GRANT ALL ON DATABASE {rotation.ROLE} TO {OWNER}"
    )
    rotation.may_alter(postgres, *TWO)
    namespace = postgres.namespace
    postgres.kubectl.apply(rotation.handed_over(kit.basic_auth(namespace, LISTENER_SECRET, first, password)))
    place.pool.patch(server=rotation.server(postgres, rotation.ROLE, *TWO))
    pool = kit.Pool(postgres.kubectl, namespace, "sessions")
    pool.apply(
        {
            "serverRef": {"name": place.pool.name},
            "databases": [
                rotation.database("live", LISTENER_SECRET, "session", strategy="AlternatingRoles", roles=[*TWO])
            ],
            "users": [{"secretRef": {"name": rotation.CLIENT}}],
            "share": {"min": 30},
            "drain": {"timeoutSeconds": 20},
        }
    )
    pool.ready()
    kit.await_until(lambda: pool.status().get("readyReplicas") == 2, 60, "two pods", interval=0.3)
    login = kit.Login(
        f"{pool.name}.{namespace}.svc", names.PGBOUNCER_PORT, rotation.CLIENT, place.client.password, "live"
    )
    yield Place(postgres, pool, login, first, LISTENER_SECRET)


def test_two_roles_take_turns_and_nobody_waits(listening: Place, clients: kit.Clients, report: Report) -> None:
    before = set(listening.pool.uids().values())
    work = [rotation.PER_QUERY, rotation.PSYCOPG_POOL, styles.PGXPOOL]
    with styles.at_work(clients, listening.client, work) as outcomes, Watch(listening.pool) as watch:
        took = listening.rotate(watch, timeout=90).took
        kit.await_until(lambda: roles_that_log_in(listening.postgres) == {TWO[1]}, 60, "the former role is disabled")
        assert listening.postgres.sessions(TWO[0]) == 0
    after = listening.pool.kubectl.secret(listening.pool.namespace, LISTENER_SECRET)
    assert after["username"] == TWO[1]
    login = kit.Login(listening.postgres.host, 5432, after["username"], after["password"], rotation.ROLE)
    assert listening.postgres.psql(login, "SELECT current_user") == OWNER
    assert not before & set(listening.pool.uids().values()), "the pods were replaced"
    report(f"two roles, session mode, pods replaced: over in {took:.0f} s")
    for outcome in outcomes:
        report(f"  {outcome}")
    assert [outcome.errors[:3] for outcome in outcomes if outcome.errors] == []
    per_query, *pooled = (float(outcome.summary["slowest_s"]) for outcome in outcomes)
    assert max(pooled) <= 2 * GOAL
    # Who connects anew may come to a pod that is just born, has one connection, and that one has a session.
    assert per_query <= 3


def roles_that_log_in(postgres: kit.Postgres) -> set[str]:
    """Those of the two."""
    listed = ", ".join(kit.quoted(role) for role in TWO)
    return {row[0] for row in postgres.sql(f"SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolname IN ({listed})")}


# -- what is not rotated ----------------------------------------------------------------------------------------------

REFUSED = {
    "not_handed_over": "poolfleet.dev/managed",
    "not_listed": "managedRoles",
    "not_grantable": "ADMIN OPTION",
    "superuser": "SUPERUSER",
    "somebody_elses": "does not log in",
}
"""Roles that must not be altered, and a word of the reason."""


def test_what_must_not_be_altered_is_not_and_says_why(postgres: kit.Postgres, place: Place, report: Report) -> None:
    namespace = postgres.namespace
    for role in REFUSED:
        postgres.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'their own'")
        password = "guessed" if role == "somebody_elses" else "their own"
        secret = kit.basic_auth(namespace, secret_of(role), role, password)
        postgres.kubectl.apply(secret if role == "not_handed_over" else rotation.handed_over(secret))
    postgres.sql("ALTER ROLE superuser SUPERUSER")
    rotation.may_alter(postgres, *[role for role in REFUSED if role not in ("not_grantable", "superuser")])
    managed = [role for role in REFUSED if role != "not_listed"]
    place.pool.patch(server=rotation.server(postgres, rotation.ROLE, *TWO, *managed))
    verifiers = passwords_of(postgres)
    pool = kit.Pool(postgres.kubectl, namespace, "refused")
    pool.apply(
        {
            "serverRef": {"name": place.pool.name},
            "databases": [rotation.database(role, secret_of(role), strategy="Password") for role in REFUSED],
            "users": [{"secretRef": {"name": rotation.CLIENT}}],
            "replicas": 1,
        }
    )
    # not Ready: somebody else's role lets nobody in
    kit.await_until(lambda: pool.status().get("readyReplicas") == 1, 60, "a pod", interval=0.3)
    rotation.annotate(pool, "now")

    def refused() -> dict[str, str]:
        lines = pool.status().get("rotations") or ()
        words = {line["secret"]: line["message"] for line in lines if line.get("phase") in ("Blocked", "Failed")}
        return words if set(words) == {secret_of(role) for role in REFUSED} else {}

    words = kit.await_until(refused, 30, "all of them are refused", interval=0.2)
    for role, expected in REFUSED.items():
        report(f"not rotated: {words[secret_of(role)]}")
        assert expected in words[secret_of(role)]
    assert pool.conditions()["CredentialsCurrent"]["reason"] in ("RotationBlocked", "RotationFailed")
    assert passwords_of(postgres) == verifiers, "nothing was altered"
    found = postgres.kubectl.get_json("-n", namespace, "secrets")["items"]
    # that the admin login may not alter a role is known only when it tries
    nexts = {names.next_secret(secret_of(role)) for role in REFUSED if role != "not_grantable"}
    assert not nexts & {secret["metadata"]["name"] for secret in found}
    for role in REFUSED:
        if role != "somebody_elses":
            host = f"{pool.name}.{namespace}.svc"
            login = kit.Login(host, names.PGBOUNCER_PORT, rotation.CLIENT, place.client.password, role)
            assert postgres.psql(login, "SELECT current_user") == role, "it is served as before"


def secret_of(role: str) -> str:
    """The Secret of a role."""
    return f"role-{role.replace('_', '-')}"


def passwords_of(postgres: kit.Postgres) -> dict[str, str]:
    """The SCRAM verifiers of the roles that must not be altered."""
    listed = ", ".join(kit.quoted(role) for role in REFUSED)
    return {
        row[0]: row[1]
        for row in postgres.sql(f"SELECT rolname, rolpassword FROM pg_authid WHERE rolname IN ({listed})")
    }
