"""The operator ends at every step of a rotation, and what it rotates for fails in the midst of one: the rotation is
finished afterwards, and a stored password is valid at every moment."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from poolfleet.api import names
from tests.e2e import kit, node, operators, rotation, styles
from tests.e2e.operators import Operators
from tests.e2e.rotation import Place, Watch

Report = Callable[[str], None]

# From the last step to the first: an operator that finishes the rotation before its own passes none of its failpoint.
POINTS = [
    f"rotation-{effect}-{when}" for effect in ("remove", "store", "alter", "create") for when in ("after", "before")
]
STALL_BY_ANNOTATION = 2.5  # seconds
SLOW_ROTATIONS = 5


@pytest.fixture(scope="module")
def postgres(kubectl: kit.Kubectl, namespace: str) -> kit.Postgres:
    """A PostgreSQL of this module's own: it is restarted here."""
    postgres = kit.Postgres(kubectl, namespace).ensure()
    kubectl.namespace(namespace)  # its labels, which the demo's namespace does not have
    return postgres


@pytest.fixture(scope="module")
def place(postgres: kit.Postgres) -> Place:
    place = Place.make(postgres, "shop")
    place.pool.ready()
    kit.await_until(lambda: place.pool.status().get("readyReplicas") == 3, 60, "three pods", interval=0.3)
    place.former.append(place.stored())
    return place


@pytest.fixture(scope="module")
def own(kubectl: kit.Kubectl, place: Place) -> Iterator[Operators]:
    """The operators of this module; the release's are back afterwards."""
    with operators.alone(kubectl) as own:
        yield own


def stored_passwords_that_work(place: Place) -> list[str]:
    """Of the main and of the next Secret, the ones whose password logs in."""
    secrets = (place.secret, names.next_secret(place.secret))
    return [secret for secret in secrets if (password := place.stored(secret)) and place.works(password)]


def test_an_operator_that_ends_at_any_step_leaves_a_valid_password_and_the_next_one_finishes(
    place: Place, clients: kit.Clients, own: Operators, report: Report
) -> None:
    begun, away = time.time(), []
    with (
        styles.at_work(clients, place.client, [rotation.PER_QUERY, rotation.PROBE]) as outcomes,
        Watch(place.pool) as watch,
    ):
        before = watch.last.line(place.secret).get("lastRotationTime")
        operator = own.start(failpoint=POINTS[0])
        own.lead(operator)
        for point, following in zip(POINTS, [*POINTS[1:], ""], strict=True):
            successor = own.start(failpoint=following)
            place.ask()
            operator.crashed()
            assert f"failpoint {point}" in operator.log
            crashed, operator = time.time(), successor
            # before anybody leads: two Secrets are not read at the same time
            assert stored_passwords_that_work(place), f"after {point} no stored password is valid"
            own.lead(operator)
            away.append(time.time() - crashed)
            before = finish(place, watch, before, operator)
    slowest = max(float(outcome.summary["slowest_s"]) for outcome in outcomes)
    report(
        f"{len(POINTS)} rotations, the operator killed in each, the next one led after {statistics.median(away):.1f} s "
        f"(p50), {time.time() - begun:.0f} s in all: longest wait of a query {slowest:.1f} s"
    )
    for outcome in outcomes:
        report(f"  {outcome}")
        assert outcome.errors == []


def finish(place: Place, watch: Watch, before: str | None, operator: operators.Process) -> str:
    """Wait until the rotation is over that another operator has begun; returns its time."""
    try:
        rotation.await_rotated(watch, place.secret, before)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{operator.code}: {operator.log[-3000:]}") from None
    assert operator.code is None, operator.log[-3000:]
    place.assert_only_the_stored_password_works()
    assert place.stored(names.next_secret(place.secret)) == ""
    return str(watch.last.line(place.secret)["lastRotationTime"])


def kill(process: str) -> Callable[[Place], None]:
    """SIGKILL to this process of one pod."""

    def do(place: Place) -> None:
        node.sigkill(place.pool.pods()[0], process)

    return do


def restart(place: Place) -> None:
    """PostgreSQL ends and is started again by the kubelet, with its data."""
    where = ("-n", place.postgres.namespace)
    started = place.postgres.sql("SELECT pg_postmaster_start_time()")
    stop = 'exec pg_ctl stop -m immediate -W -D "$(psql -U postgres -Atc "SHOW data_directory")"'
    place.postgres.kubectl.exec(place.postgres.namespace, "postgres-0", "bash", "-c", stop)
    back = ("rollout", "status", "statefulset/postgres", "--timeout=60s")

    def again() -> bool:
        return place.postgres.sql("SELECT pg_postmaster_start_time()") != started

    kit.await_until(again, 60, "PostgreSQL is back", interval=0.5, tolerate=(kit.KubectlError,))
    place.postgres.kubectl.run(*where, *back, timeout=70)


FAULTS = (
    # while clients are held and the password is set, but nowhere loaded: the worst moment for either
    ("the agent", "rotation-alter-after", kill("python3"), True),
    ("PgBouncer", "rotation-alter-after", kill("pgbouncer"), False),
    # while clients are held and the password is not set yet
    ("PostgreSQL", "rotation-alter-before", restart, False),
)
"""Who fails, when, how, and whether clients must not notice: with the others their connections are cut."""


def test_who_fails_amid_a_rotation_does_not_keep_it_from_its_end(
    place: Place, clients: kit.Clients, own: Operators, report: Report
) -> None:
    noticed = []
    own.kill()
    with Watch(place.pool) as watch:
        operator = own.start(failpoint=FAULTS[0][1])
        own.lead(operator)
        for number, (who, _, fault, unnoticed) in enumerate(FAULTS):
            successor = own.start(failpoint=FAULTS[number + 1][1] if number + 1 < len(FAULTS) else "")
            before = watch.last.line(place.secret).get("lastRotationTime")
            with styles.at_work(clients, place.client, [rotation.PER_QUERY]) as outcomes:
                place.ask()
                operator.crashed()
                begun, operator = time.time(), successor
                fault(place)
                own.lead(operator)
                finish(place, watch, before, operator)
            report(f"{who} fails amid a rotation: finished after {time.time() - begun:.0f} s; {outcomes[0]}")
            noticed += outcomes[0].errors[:3] if unnoticed else []
            for ip in place.pool.ips().values():
                login = replace(place.client, host=ip)
                assert place.postgres.psql(login, "SELECT 1") == "1"
    assert noticed == []


def test_by_annotation_alone_nobody_sees_an_error_either(
    place: Place, clients: kit.Clients, own: Operators, report: Report
) -> None:
    rotations = []
    own.kill()
    with Watch(place.pool) as watch, styles.at_work(clients, place.client, rotation.STYLES) as outcomes:
        own.lead(own.start("--no-fast-lane"))
        for _ in range(SLOW_ROTATIONS):
            rotations.append(place.rotate(watch))
            place.assert_only_the_stored_password_works()
    stalled = rotation.stalls(rotations, outcomes)
    report(
        f"{SLOW_ROTATIONS} rotations by annotation alone: each {statistics.median(r.took for r in rotations):.1f} s "
        f"(p50); longest wait of a query in each p50 {statistics.median(stalled):.2f} s, at most {max(stalled):.2f} s "
        f"(≤ {STALL_BY_ANNOTATION:g})"
    )
    for outcome in outcomes:
        report(f"  {outcome}")
    assert [outcome.errors[:3] for outcome in outcomes if outcome.errors] == []
    assert 0 < max(stalled) <= STALL_BY_ANNOTATION
