"""Limits of roles follow the bounds: up before the ledger, down a while after it."""

from collections.abc import Mapping

import pytest

from poolfleet.plan.role_limits import (
    LOWER_SECONDS,
    UNLIMITED,
    Demand,
    Low,
    Memory,
    RolePlan,
    RoleState,
    blocked,
    demands,
    not_ours,
    plan,
    problem,
    read,
    write,
)
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Entry

NOW = 1000.0


def wish(pool: str, **roles: set[str]) -> PoolWish:
    frozen = {name: frozenset(names) for name, names in roles.items()}
    return PoolWish(pool, pool, 0.0, dict.fromkeys(roles, 1), "", roles=frozen)


def entry(pod: str, pool: str, database: str, bound: int) -> Entry:
    return Entry(pod, pod, pool, database, bound, bound, 1, 0.0)


def planned(
    needs: Mapping[str, Demand], recorded: Mapping[str, int], memory: Memory | None = None, *, off: bool = False
) -> RolePlan:
    return plan(needs, recorded, memory or Memory(), managed=None if off else {"app", "job"}, now=NOW)


def test_a_roles_limit_is_what_its_pods_may_hold_and_one_more_for_each() -> None:
    wishes = [wish("ns/one", a={"app"}, b={"app", "job"}), wish("ns/two", c={"app"})]
    entries = [entry("p1", "ns/one", "a", 5), entry("p1", "ns/one", "b", 2), entry("p2", "ns/one", "b", 3)]
    entries.append(entry("p3", "ns/two", "c", 4))
    found = demands(entries, wishes)
    assert found == {"app": Demand(14, 3), "job": Demand(5, 2)}
    assert found["app"].limit == 14 + 3
    assert Demand(4, 1).limit == 4 + 2, "at least two more"


def test_what_nobody_wishes_any_more_may_be_anybodys() -> None:
    entries = [entry("p1", "ns/one", "a", 5), entry("p9", "ns/gone", "x", 7)]
    assert demands(entries, [wish("ns/one", a={"app"})]) == {"app": Demand(12, 1)}


def test_a_limit_is_raised_before_it_is_recorded() -> None:
    found = planned({"app": Demand(10, 1)}, {"app": 8})
    assert (found.raises, found.recorded) == ({"app": 12}, {"app": 12})


def test_a_new_limit_is_recorded_first_and_set_afterwards() -> None:
    found = planned({"app": Demand(10, 1), "stranger": Demand(5, 1)}, {})
    assert (found.raises, found.recorded) == ({}, {"app": 12})


def test_a_limit_is_lowered_only_after_a_while_to_the_largest_that_was_needed() -> None:
    first = planned({"app": Demand(4, 1)}, {"app": 20})
    assert (first.raises, first.recorded, first.low) == ({}, {"app": 20}, {"app": Low(NOW, 6)})
    waited = Memory(low={"app": Low(NOW - LOWER_SECONDS, 9)})
    second = planned({"app": Demand(4, 1)}, {"app": 20}, waited)
    assert (second.raises, second.recorded, second.low) == ({}, {"app": 9}, {})
    highest = planned({"app": Demand(10, 1)}, {"app": 20}, Memory(low={"app": Low(NOW - 1, 9)}))
    assert highest.low == {"app": Low(NOW - 1, 12)}


def test_the_wait_starts_anew_when_the_limit_was_needed_again() -> None:
    waited = Memory(low={"app": Low(NOW - LOWER_SECONDS, 9)})
    assert planned({"app": Demand(18, 1)}, {"app": 20}, waited) == RolePlan({}, {"app": 20}, {})


@pytest.mark.parametrize("off", [False, True])
def test_what_is_not_limited_any_more_is_cleared(off: bool) -> None:
    found = planned({} if not off else {"app": Demand(4, 1)}, {"app": 20}, off=off)
    assert (found.raises, found.recorded) == ({"app": UNLIMITED}, {})


def test_a_role_that_is_no_longer_managed_is_cleared() -> None:
    found = plan({"app": Demand(4, 1)}, {"app": 20}, Memory(), managed=["job"], now=NOW)
    assert (found.raises, found.recorded) == ({"app": UNLIMITED}, {})


def test_what_was_refused_is_not_tried_again_and_stays_recorded_while_it_may_stand() -> None:
    refused = Memory(refused={"app": "words"}, confirmed={"app": 8})
    assert planned({"app": Demand(10, 1)}, {"app": 8}, refused) == RolePlan({}, {"app": 8}, {})
    unset = Memory(refused={"app": "words"}, confirmed={"app": UNLIMITED})
    assert planned({"app": Demand(10, 1)}, {"app": 8}, unset) == RolePlan({}, {}, {})
    assert planned({"app": Demand(10, 1)}, {}, unset) == RolePlan({}, {}, {})


def test_only_what_does_not_fit_the_limit_is_held_back() -> None:
    needs = {"app": Demand(10, 2), "job": Demand(10, 2)}
    assert blocked(needs, {"app": 9, "job": 10}, Memory()) == {"app"}
    assert blocked(needs, {"app": 9}, Memory(confirmed={"app": UNLIMITED})) == set()
    assert blocked(needs, {}, Memory()) == set()
    assert blocked({}, {"app": 9}, Memory()) == set()


def test_the_user_is_told_of_roles_without_a_limit() -> None:
    needs = {"app": Demand(1, 1), "mine": Demand(1, 1)}
    words = problem(needs, Memory(refused={"app": "it is SUPERUSER"}), ["app"])
    assert '"mine" is not in managedRoles' in words
    assert '"app": it is SUPERUSER' in words
    assert problem(needs, Memory(), ["app", "mine"]) == ""
    assert problem(needs, Memory(), None) == ""


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (None, "no such role"),
        (RoleState(-1, superuser=True), "SUPERUSER"),
        (RoleState(-1, replication=True), "REPLICATION"),
        (RoleState(-1, bypass_rls=True), "BYPASSRLS"),
        (RoleState(-1, admin=True), "adminSecretRef"),
    ],
)
def test_special_roles_are_not_ours(state: RoleState | None, word: str) -> None:
    assert word in not_ours(state)
    assert not_ours(RoleState(5)) == ""


def test_limits_survive_their_status() -> None:
    assert read({"roleLimits": write({"b": 5, "a": 0})}) == {"a": 0, "b": 5}
    assert read({}) == {}
