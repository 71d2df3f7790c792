"""Which limits count when, what PostgreSQL's own limits leave to each pool, and the round trip through status."""

from dataclasses import replace

import pytest

from poolfleet.plan.discovery import (
    Candidate,
    Discovery,
    Limits,
    Reading,
    adopt,
    caps,
    next_reading,
    read_discovery,
    write_discovery,
)

BEFORE = Discovery(Limits(100), 10.0, system_identifier="one")


def reading(max_connections: int, identifier: str = "one", **more: dict[str, int]) -> Reading:
    return Reading(Limits(max_connections), "17", identifier, "2026-01-01T00:00:00Z", **more)


def test_the_first_reading_counts_whole() -> None:
    found = adopt(reading(50, database_limits={"a": 5}, role_limits={"r": 7}), None, 20.0)
    assert found == Discovery(Limits(50), 20.0, "17", None, "one", "2026-01-01T00:00:00Z", {"a": 5}, {"r": 7})


def test_a_smaller_limit_counts_at_once() -> None:
    assert adopt(reading(50), BEFORE, 20.0).limits.max_connections == 50


def test_a_larger_limit_counts_after_two_equal_readings_a_minute_apart() -> None:
    first = adopt(reading(200), BEFORE, 20.0)
    assert first.limits.max_connections == 100
    assert next_reading(first, 300.0) == 80.0
    too_soon = adopt(reading(200), first, 79.0)
    assert too_soon.limits.max_connections == 100
    other = adopt(reading(300), first, 90.0)
    assert other.limits.max_connections == 100
    assert other.candidate is not None and other.candidate.since == 90.0
    assert adopt(reading(200), too_soon, 81.0).limits.max_connections == 200


def test_another_server_starts_the_minute_anew() -> None:
    first = adopt(reading(200), BEFORE, 20.0)
    target = adopt(reading(200, "another"), first, 85.0)
    assert target.limits.max_connections == 100
    assert target.system_identifier == "another"
    assert adopt(reading(200, "another"), target, 144.0).limits.max_connections == 100
    assert adopt(reading(200, "another"), target, 145.0).limits.max_connections == 200


def test_limits_of_databases_and_roles_shrink_at_once_and_grow_after_a_minute() -> None:
    before = replace(BEFORE, database_limits={"a": 10, "b": 10}, role_limits={"r": 10})
    mixed = adopt(reading(100, database_limits={"a": 5, "b": 20}, role_limits={"s": 3}), before, 20.0)
    assert mixed.database_limits == {"a": 5, "b": 10}
    assert mixed.role_limits == {"r": 10, "s": 3}, "r has no limit any more: that is larger"
    after = adopt(reading(100, database_limits={"a": 5, "b": 20}, role_limits={"s": 3}), mixed, 80.0)
    assert (after.database_limits, after.role_limits, after.candidate) == ({"a": 5, "b": 20}, {"s": 3}, None)


def test_what_is_larger_waits_while_what_is_smaller_counts() -> None:
    found = adopt(reading(200, database_limits={"a": 5}), BEFORE, 20.0)
    assert (found.limits.max_connections, found.database_limits) == (100, {"a": 5})


def test_limits_of_strangers_are_left_out() -> None:
    some = reading(100, database_limits={"a": 5, "b": 6}, role_limits={"r": 7, "s": 8}).about({"a"}, {"s"})
    assert (some.database_limits, some.role_limits) == ({"a": 5}, {"s": 8})


def test_the_first_reading_is_due_at_once() -> None:
    assert next_reading(None, 300.0) == 0.0
    assert next_reading(Discovery(Limits(1), 10.0), 300.0) == 310.0


def test_caps_divide_a_limit_between_those_that_share_it() -> None:
    known = replace(BEFORE, database_limits={"shop": 21}, role_limits={"app": 12, "job": 30, "set": 2, "tiny": 1})
    databases = {
        ("ns/one", "shop"): ("shop", {"app"}),  # 21 / 2 of the database, 12 / 2 of the role
        ("ns/two", "shop2"): ("shop", {"job"}),  # 21 / 2, 30 / 1
        ("ns/two", "other"): ("other", {"app", "free"}),
        ("ns/two", "set"): ("other", {"set"}),
        ("ns/two", "many"): ("other", {"tiny"}),
        ("ns/three", "many"): ("other", {"tiny"}),
        ("ns/three", "free"): ("other", {"free"}),
    }
    assert caps(known, databases, ours={"set"}) == {
        ("ns/one", "shop"): 6,
        ("ns/two", "shop2"): 10,
        ("ns/two", "other"): 6,
        ("ns/two", "many"): 1,
        ("ns/three", "many"): 1,
    }
    assert caps(None, databases) == {}


def test_a_limit_that_the_whole_budget_fits_into_holds_nobody_back() -> None:
    known = Discovery(Limits(100), 0.0, role_limits={"app": 60})
    databases = {("ns/a", "d"): ("d", {"app"}), ("ns/b", "d"): ("d", {"app"})}
    assert caps(known, databases, budget=60) == {}
    assert caps(known, databases, budget=61) == {("ns/a", "d"): 30, ("ns/b", "d"): 30}


@pytest.mark.parametrize(
    "known",
    [
        Discovery(Limits(100, 3, 1), 5.5, "17"),
        Discovery(
            Limits(100), 5.5, "17", Candidate(Limits(200), 6.5), "7433", "2026-01-01T00:00:00Z", {"a": 1}, {"r": 0}
        ),
    ],
)
def test_discovery_survives_its_status(known: Discovery) -> None:
    assert read_discovery({"discovery": write_discovery(known)}) == known
    assert read_discovery({}) is None
