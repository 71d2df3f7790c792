"""Which pods are told to give up idle clients."""

from dataclasses import replace

from poolfleet.api.wire import AgentState, DatabaseState, Move
from poolfleet.plan.ledger import CLIENTS_SECONDS, advance, orders
from poolfleet.plan.model import Pod
from poolfleet.plan.moving import move
from poolfleet.plan.world import Ledger, World
from tests.unit.test_ledger import WISH, entry, told, world
from tests.unit.test_ledger import pod as a_pod

MOVING = replace(WISH, move=(10, 20))


def pod(uid: str, clients: int, **changes: object) -> Pod:
    state = AgentState("server", uid, 1, 1, "c1", "", "x", {"a": DatabaseState(5, 5, 2, clients=clients)})
    return a_pod(uid, state, **{"ready": True, "ready_since": 0.0, "directive": told(uid, 1, 5), **changes})


def moved(*pods: Pod, wish: object = MOVING) -> dict[str, Move | None]:
    w: World = world(Ledger(), *pods, wishes=(wish,))
    return {p.uid: move(w, p) for p in pods}


def test_a_crowded_pod_gives_up_what_is_clearly_above_the_mean() -> None:
    assert moved(pod("p1", 300), pod("p2", 0)) == {"p1": Move(165, 10, 20), "p2": None}


def test_nobody_is_moved_unless_it_is_asked_for() -> None:
    assert moved(pod("p1", 300), pod("p2", 0), wish=WISH) == {"p1": None, "p2": None}


def test_chance_moves_nobody() -> None:
    assert set(moved(pod("p1", 110), pod("p2", 100)).values()) == {None}
    assert set(moved(pod("p1", 5), pod("p2", 1)).values()) == {None}


def test_once_told_it_goes_on_until_it_is_nearly_even() -> None:
    going_on = pod("p1", 240, directive=told("p1", 1, 5) | {"move": {"above": 220, "idle": 10, "percent": 20}})
    assert moved(going_on, pod("p2", 160))["p1"] == Move(220, 10, 20)
    assert moved(replace(going_on, directive=told("p1", 1, 5)), pod("p2", 160))["p1"] is None
    even = replace(going_on, state=pod("p1", 210).state)
    assert moved(even, pod("p2", 190))["p1"] is None


def test_only_ready_pods_that_stay_count() -> None:
    assert moved(pod("p1", 300), pod("p2", 0, ready=False))["p1"] is None
    assert moved(pod("p1", 300), pod("p2", 0, terminating=True))["p1"] is None
    leaving = moved(pod("p1", 300, terminating=True), pod("p2", 0), pod("p3", 0))
    assert leaving["p1"] is None


def test_the_directive_says_it_and_is_not_sent_all_the_time() -> None:
    pods = pod("p1", 300), pod("p2", 0)
    ledger = Ledger(1, (replace(entry("p1"), peer=1), replace(entry("p2"), peer=2)))
    w = world(ledger, *pods, budget=11, wishes=(MOVING,))
    after = advance(w)
    assert {to.uid: directive.move for to, directive in orders(w, after)} == {"p1": Move(165, 10, 20)}
    assert advance(replace(w, now=ledger.entries[0].since + CLIENTS_SECONDS / 2)) is ledger
