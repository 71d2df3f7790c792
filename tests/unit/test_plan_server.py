"""A PgServer's status: the ledger survives the round trip, the conditions say what is wrong and what to do."""

from dataclasses import replace

import pytest

from poolfleet.api.wire import AgentState, DatabaseState
from poolfleet.plan import server
from poolfleet.plan.budget import compute
from poolfleet.plan.discovery import Discovery, Limits
from poolfleet.plan.model import Condition, Pod, Sessions
from poolfleet.plan.server import Problem, ServerView
from poolfleet.plan.shares import divide_budget
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Entry, Ledger, Rest, World

ENTRY = Entry("p1", "shop-1", "ns/shop", "a", 12, 7, 41, 1000.25, 1001.5)
LEDGER = Ledger(41, (ENTRY,), (Rest(3, 1002.75),), 999.5)


def view(**changes: object) -> ServerView:
    discovery = Discovery(Limits(100), 10.0, "17.2")
    world = World("uid", 85, LEDGER, (), (), 1000.0)
    base = ServerView(2, None, True, None, discovery, None, compute(None, discovery, "10%", True), world, ())
    return replace(base, **changes)  # type: ignore[arg-type]


def found(conditions: list[Condition]) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in conditions}


def test_the_ledger_survives_its_status() -> None:
    assert server.read_ledger({"ledger": server.write_ledger(LEDGER)}) == LEDGER
    assert server.read_ledger({}) == Ledger()


def test_numbers_add_up() -> None:
    numbers = server.numbers(view(), LEDGER)
    assert numbers["budget"] == 100 - 3 - 0 - 10 - 2 == 85
    assert (numbers["granted"], numbers["free"]) == (12, 73)


def test_a_good_server_is_ready_and_shows_the_arithmetic() -> None:
    conditions = server.conditions(view(), Ledger())
    assert found(conditions) == {
        "Ready": ("True", "Serving"),
        "Reconciling": ("False", "AsWished"),
        "Stalled": ("False", "AsWished"),
        "ServerReachable": ("True", "Reachable"),
        "BudgetSatisfied": ("True", "WithinBudget"),
    }
    assert "= 85" in conditions[0].message


def test_a_missing_secret_stalls() -> None:
    conditions = server.conditions(view(problem=Problem("SecretNotFound", "words")), Ledger())
    assert found(conditions)["Stalled"] == ("True", "SecretNotFound")
    assert found(conditions)["Ready"] == ("False", "SecretNotFound")


def test_a_refused_login_is_not_ready_but_not_stalled() -> None:
    conditions = server.conditions(view(discovery_problem=Problem("AuthenticationFailed", "words")), Ledger())
    assert found(conditions)["Ready"] == ("False", "AuthenticationFailed")
    assert found(conditions)["Stalled"][0] == "False"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ('password authentication failed for user "shop"', "AuthenticationFailed"),
        ("no connection to db:5432 within 6 s", "Unreachable"),
    ],
)
def test_without_an_admin_it_is_the_pods_that_tell(error: str, reason: str) -> None:
    databases = {"a": DatabaseState(1, 0, 2, reachable=False, error=error)}
    state = AgentState("uid", "p1", 1, 1, "c", "", "s", databases=databases)
    pod = Pod("p1", "shop-1", "ns", 0.0, False, True, False, True, "10.0.0.1", "uid", state=state)
    world = replace(view().world, pods=(pod,))
    told = server.conditions(view(has_admin=False, discovery=None, world=world), Ledger())
    assert found(told)["ServerReachable"] == ("False", reason)


def test_over_the_budget_says_so_with_the_arithmetic() -> None:
    over = Ledger(1, (replace(ENTRY, bound=90, gone_since=None),))
    [condition] = [c for c in server.conditions(view(), over) if c.type == "BudgetSatisfied"]
    assert (condition.status, condition.reason) == ("False", "OverBudget")
    assert "90 granted" in condition.message and "= 85" in condition.message


def test_ghosts_are_named() -> None:
    [condition] = [c for c in server.conditions(view(), LEDGER) if c.type == "BudgetSatisfied"]
    assert "shop-1" in condition.message and "12 connections" in condition.message


def test_a_declaration_above_the_servers_own_is_pointed_out() -> None:
    [condition] = [c for c in server.conditions(view(declared=500), LEDGER) if c.type == "BudgetSatisfied"]
    assert "maxConnections 500 is above" in condition.message


def test_what_others_hold_is_not_free_and_is_named() -> None:
    """Three sessions of a pool's role that no agent accounts for, and more of everybody else than the headroom."""
    world = replace(view().world, ledger=Ledger(), sessions=Sessions(999.0, 5, {"shop": 3}, 11))
    seen = view(world=world, others=11)
    numbers = server.numbers(seen, Ledger())
    assert (numbers["free"], numbers["unaccounted"], numbers["others"]) == (82, 3, 11)
    [condition] = [c for c in server.conditions(seen, Ledger()) if c.type == "BudgetSatisfied"]
    assert (condition.status, condition.reason) == ("True", "HeadroomExceeded")
    assert "3 of role shop" in condition.message and "headroom of 10" in condition.message


def test_every_pool_has_its_line_with_its_share() -> None:
    """Two pools share by weight; a third, younger, for whose least there is no room, is not admitted."""
    wishes = (
        PoolWish("ns/old", "u1", 1.0, {"a": 1}, "c", replicas=2, weight=1),
        PoolWish("ns/new", "u2", 2.0, {"a": 1}, "c", replicas=2, weight=2),
        PoolWish("other/late", "u3", 3.0, {"a": 1}, "c", replicas=2, least=80),
    )
    names = [("ns", "old", "u1"), ("ns", "new", "u2"), ("other", "late", "u3")]
    seen = view(world=replace(view().world, ledger=Ledger(), wishes=wishes), pools=names)
    lines = server.pool_lines(seen, Ledger(), divide_budget(seen.world, Ledger()))
    assert [(line["name"], line["admitted"], line["budget"]) for line in lines] == [
        ("old", True, 28),
        ("new", True, 57),
        ("late", False, 0),
    ]
