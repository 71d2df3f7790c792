"""Which sessions nobody accounts for."""

import pytest

from poolfleet.plan.model import Sessions
from poolfleet.plan.sessions import Backend, comparable, sort, unknown

ROLES = frozenset({"app", "job"})
APP, JOB, STRANGER = Backend(1, "app", "t1"), Backend(2, "job", "t2"), Backend(3, "psql", "t3")
OWN = Backend(4, "admin", "t4", operators=True)


def test_sessions_that_an_agent_knows_and_those_of_strangers_are_not_unknown() -> None:
    assert unknown([APP, JOB, STRANGER, OWN], ROLES, [1]) == {JOB}
    assert unknown([APP, JOB], ROLES, [1, 2]) == set()


def test_a_pid_that_is_used_again_is_another_session() -> None:
    again = Backend(2, "job", "t9")
    assert unknown([JOB], ROLES, []) & unknown([again], ROLES, []) == set()


def test_sessions_are_sorted_by_who_accounts_for_them() -> None:
    assert sort(5.0, [APP, JOB, STRANGER, OWN], ROLES, [JOB]) == Sessions(5.0, 2, {"job": 1}, 1)


def test_a_pool_that_logs_in_as_the_admin_has_its_sessions_counted() -> None:
    assert sort(5.0, [OWN], {"admin"}) == Sessions(5.0, 1, {}, 0)


@pytest.mark.parametrize(
    ("known", "expected"),
    [([], True), ([1], True), ([1, 77], True), ([77], False), ([3], False)],
    ids=["no agent answers", "found", "one found", "none found", "a stranger's is not found either"],
)
def test_pids_of_a_proxys_own_making_are_recognised(known: list[int], expected: bool) -> None:
    assert comparable([APP, JOB, STRANGER], ROLES, known) is expected


def test_no_sessions_speak_for_no_proxy() -> None:
    assert comparable([STRANGER], ROLES, [77])
