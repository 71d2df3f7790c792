"""A PgServer's status: the ledger survives the round trip, the conditions say what is wrong and what to do."""

from dataclasses import replace

import pytest

from poolfleet.api.wire import AgentState, DatabaseState
from poolfleet.plan import server
from poolfleet.plan.budget import Candidate, Discovery, Limits, compute
from poolfleet.plan.ledger import Entry, Ledger, Rest, World
from poolfleet.plan.model import Condition, Pod
from poolfleet.plan.server import Problem, ServerView

ENTRY = Entry("p1", "shop-1", "ns/shop", "a", 12, 7, 41, 1000.25, 1001.5)
LEDGER = Ledger(41, (ENTRY,), (Rest(3, 1002.75),), 999.5)


def view(**changes: object) -> ServerView:
    discovery = Discovery(Limits(100), 10.0, "17.2")
    world = World("uid", 85, LEDGER, (), None, 1000.0)
    base = ServerView(2, None, True, None, discovery, None, compute(None, discovery, "10%", True), world, ())
    return replace(base, **changes)  # type: ignore[arg-type]


def found(conditions: list[Condition]) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in conditions}


def test_the_ledger_survives_its_status() -> None:
    assert server.read_ledger({"ledger": server.write_ledger(LEDGER)}) == LEDGER
    assert server.read_ledger({}) == Ledger()


def test_discovery_survives_its_status() -> None:
    known = Discovery(Limits(100, 3, 1), 5.5, "17", Candidate(Limits(200), 6.5))
    assert server.read_discovery({"discovery": server.write_discovery(known)}) == known


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
