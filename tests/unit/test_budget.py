"""The arithmetic of design section 3."""

import pytest

from poolfleet.plan.budget import Budget, compute, headroom_connections
from poolfleet.plan.discovery import Discovery, Limits


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
