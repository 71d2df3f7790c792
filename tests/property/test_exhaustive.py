"""Every order of events in small worlds (small_world.py), breadth first, with the real planning functions.

Each scope is said to be exhausted, or capped at so many states; `-m soak` has larger ones.
"""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from tests.property.small_search import SCOPES, Search, search
from tests.property.small_world import Scope

LARGER = {
    # Dropping what agents have said after a conflict is a second fence: with proofs that name a revision nothing breaks
    # without it either.
    "2 operators, 2 pods, budget 3, old answers kept": (Scope(3, 2, operators=2, keeps_observations=True), 3_000_000),
    "2 operators, 2 pods, budget 4, cut to 3": (Scope(4, 2, operators=2, budgets=(3,)), 3_000_000),
    "1 operator, 3 pods, budget 4": (Scope(4, 3), 3_000_000),
    "1 operator, 2 pods, budget 4, up to 5, down to 3, deletes by force too": (
        Scope(4, 2, budgets=(5, 3), delete=True, force=True),
        3_000_000,
    ),
    "2 operators, 3 pods, budget 4, cut to 3, deletes by force too": (
        Scope(4, 3, operators=2, budgets=(3,), delete=True, force=True),
        3_000_000,
    ),
}


def judge(name: str, result: Search, figures: list[str]) -> None:
    figures.append(f"{name}: {result}")
    assert not result.broken, f"{result.broken}\n" + "\n".join(result.path)


@pytest.mark.parametrize("name", SCOPES)
def test_no_order_of_events_breaks_the_promise(
    name: str, searches: dict[str, Future[Search]], figures: list[str]
) -> None:
    judge(name, searches[name].result(), figures)


@pytest.mark.soak
@pytest.mark.parametrize("name", LARGER)
def test_no_order_of_events_breaks_the_promise_in_a_larger_world(name: str, figures: list[str]) -> None:
    judge(name, search(*LARGER[name]), figures)
