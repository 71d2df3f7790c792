"""The arithmetic of design section 3."""

import pytest

from poolfleet.plan.budget import (
    Budget,
    Discovery,
    Limits,
    adopt,
    compute,
    headroom_connections,
    next_reading,
)


def test_the_budget_of_a_plain_server_of_100() -> None:
    budget = compute(100, None, "10%", has_admin=False)
    assert budget == Budget(Limits(100, 3, 0), headroom=10, own=0)
    assert budget.total == 87
    assert str(budget) == "100 max_connections - 3 superuser_reserved - 0 reserved - 10 headroom = 87"


def test_the_operators_own_connections_count_only_with_an_admin() -> None:
    budget = compute(100, Discovery(Limits(100, 3, 2), 0.0), 5, has_admin=True)
    assert budget is not None
    assert budget.total == 100 - 3 - 2 - 5 - 2


def test_of_declared_and_discovered_the_smaller_counts() -> None:
    discovered = Discovery(Limits(100), 0.0)
    assert compute(200, discovered, 0, has_admin=False).limits.max_connections == 100  # type: ignore[union-attr]
    assert compute(50, discovered, 0, has_admin=False).limits.max_connections == 50  # type: ignore[union-attr]


def test_nothing_declared_and_nothing_read_is_no_budget() -> None:
    assert compute(None, None, "10%", has_admin=True) is None


def test_a_budget_is_never_negative() -> None:
    assert compute(3, None, 50, has_admin=True).total == 0  # type: ignore[union-attr]


@pytest.mark.parametrize(("headroom", "connections"), [("10%", 11), ("0%", 0), (7, 7), ("7", 7), ("100%", 101)])
def test_headroom(headroom: int | str, connections: int) -> None:
    assert headroom_connections(headroom, 101) == connections


@pytest.mark.parametrize("headroom", ["x", "-1%", "101%", -1, "%"])
def test_headroom_that_is_none(headroom: int | str) -> None:
    with pytest.raises(ValueError, match=r"headroom|invalid|could not"):
        headroom_connections(headroom, 100)


def test_a_smaller_limit_counts_at_once() -> None:
    before = Discovery(Limits(100), 10.0)
    assert adopt(Limits(50), "17", before, 20.0).limits.max_connections == 50


def test_a_larger_limit_counts_after_two_equal_readings_a_minute_apart() -> None:
    first = adopt(Limits(200), "17", Discovery(Limits(100), 10.0), 20.0)
    assert first.limits.max_connections == 100
    assert next_reading(first, 300.0) == 80.0
    too_soon = adopt(Limits(200), "17", first, 79.0)
    assert too_soon.limits.max_connections == 100
    other = adopt(Limits(300), "17", first, 90.0)
    assert other.limits.max_connections == 100
    assert other.candidate is not None and other.candidate.since == 90.0
    assert adopt(Limits(200), "17", too_soon, 81.0).limits.max_connections == 200


def test_the_first_reading_is_due_at_once() -> None:
    assert next_reading(None, 300.0) == 0.0
    assert next_reading(Discovery(Limits(1), 10.0), 300.0) == 310.0
