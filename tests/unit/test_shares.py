"""How demand, as the agents see it, moves connections between pods and pools, and when it does not."""

from dataclasses import replace
from typing import Any

import pytest

from poolfleet.api.wire import AgentState, DatabaseState
from poolfleet.plan.model import Pod
from poolfleet.plan.shares import divide_budget, need
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Entry, Ledger, World

NOW = 1000.0
A = PoolWish("ns/a", "u1", 1.0, {"d": 1}, "c")
B = PoolWish("ns/b", "u2", 2.0, {"d": 1}, "c")


def seen(uid: str, peak: int = 0, demand: int = 0, waited: bool = False, clients: int = 0) -> AgentState:
    database = DatabaseState(10, peak, 2, clients=clients, peak=peak, demand=demand, waited=waited)
    return AgentState("server", uid, 1, 1, "c", "", "x", {"d": database})


def pod(uid: str, pool: str = "ns/a", state: AgentState | None = None, **more: Any) -> Pod:
    first = Pod(uid, uid, "ns", 0.0, False, True, False, True, "", "server", pool=pool, ready_since=0.0)
    return replace(first, state=state or seen(uid), **more)


def entry(uid: str, grant: int = 10, pool: str = "ns/a", since: float = 0.0) -> Entry:
    return Entry(uid, uid, pool, "d", grant, grant, 1, since)


def world(*pods: Pod, budget: int = 21, wishes: tuple[PoolWish, ...] = (A,), since: float = 0.0) -> World:
    ledger = Ledger(1, tuple(entry(p.uid, pool=p.pool, since=since) for p in pods))
    return World("server", budget, ledger, pods, wishes, NOW)


def targets(w: World) -> dict[str, int]:
    return {uid: n for (uid, _), n in divide_budget(w, w.ledger).targets.items()}


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (seen("p", peak=3), 5),  # 3 of 5 is less than 70 %: the rest can go
        (seen("p", peak=7), 10),  # at 70 % it keeps what it has
        (seen("p", peak=10, demand=10), 15),  # all in use
        (seen("p", peak=10, demand=30, waited=True), 30),
        (seen("p", peak=4, demand=6, waited=True), 10),  # whose clients waited gives nothing
    ],
    ids=["idle", "busy", "full", "waiting", "waited a moment ago"],
)
def test_what_a_pod_needs(state: AgentState, wanted: int) -> None:
    p = pod("p", state=state)
    assert need(world(p), p, "d", entry("p"), 10) == wanted


def test_a_pod_is_not_asked_to_give_before_it_could_show_its_demand() -> None:
    unready, new, old = (pod("p", ready_since=since) for since in (None, NOW - 3, NOW - 10))
    assert [need(world(p), p, "d", entry("p"), 11) for p in (unready, new, old)] == [11, 6, 0]


def test_for_demand_a_pod_is_moved_only_every_two_seconds() -> None:
    idle, hungry = pod("p"), pod("q", state=seen("q", peak=10, demand=40, waited=True))
    assert targets(world(idle, hungry)) == {"p": 1, "q": 19}
    assert targets(world(idle, hungry, since=NOW - 1)) == {"p": 10, "q": 10}


def test_with_equal_demand_everybody_has_its_share() -> None:
    busy: dict[str, Any] = {"peak": 10, "demand": 50, "waited": True}
    for state in ({}, busy):
        pods = [pod(uid, state=seen(uid, **state)) for uid in ("p", "q")]
        assert targets(world(*pods)) == {"p": 10, "q": 10}


def test_a_pool_lends_what_it_does_not_need_down_to_what_it_is_sure_of() -> None:
    """60 for two pools of one pod each: 30 each, 1 of them in reserve. A pod's floor is one connection, and a pool
    keeps enough for one replica and a surge pod, or share.min."""
    idle, hungry = pod("a1"), pod("b1", "ns/b", seen("b1", peak=29, demand=90, waited=True))
    one, other = replace(A, replicas=1), replace(B, replicas=1)
    assert targets(world(idle, hungry, budget=60, wishes=(one, other))) == {"a1": 1, "b1": 57}
    kept = targets(world(idle, hungry, budget=60, wishes=(replace(one, least=12), other)))
    assert kept == {"a1": 11, "b1": 47}
    held_back = targets(world(idle, hungry, budget=60, wishes=(one, replace(other, most=40))))
    assert held_back == {"a1": 19, "b1": 39}


def test_a_pool_that_is_not_admitted_keeps_one_connection_for_each_pod_that_runs() -> None:
    old, late = pod("a1"), pod("b1", "ns/b")
    w = world(old, late, budget=20, wishes=(replace(A, least=18), replace(B, replicas=9)))
    division = divide_budget(w, w.ledger)
    assert division.sure == {"ns/a": 18, "ns/b": 2}  # it runs, with one pod
    w = replace(w, budget=18)
    division = divide_budget(w, w.ledger)
    assert division.sure == {"ns/a": 18, "ns/b": 0}
    assert division.targets["b1", "d"] == 1


def test_a_draining_pod_is_cut_to_what_its_clients_can_use() -> None:
    leaving = pod("p", state=seen("p", clients=3), terminating=True)
    assert targets(world(leaving, pod("q")))["p"] == 3
    assert targets(world(leaving, pod("q"), since=NOW - 1))["p"] == 10  # at most every 2 s
    assert targets(world(replace(leaving, leaving_since=NOW - 6), pod("q")))["p"] == 3
    just_now = replace(leaving, leaving_since=NOW - 4)
    assert targets(world(just_now, pod("q")))["p"] == 10, "clients may still come, or not be told of yet"
    busy = replace(leaving, state=seen("p", clients=3, peak=5))
    assert targets(world(busy, pod("q")))["p"] == 5, "what was busy a moment ago"


def test_a_silent_pod_keeps_what_it_has_and_is_not_raised() -> None:
    silent = replace(pod("p"), state=None)
    assert targets(world(silent, pod("q"), budget=41)) == {"p": 10, "q": 30}


def test_what_a_pod_that_does_not_come_up_cannot_use_serves_the_others() -> None:
    """Its share is in its directive all the same: with half of it it will be ready."""
    silent = replace(pod("p"), state=None)
    hungry = pod("q", "ns/b", seen("q", peak=30, demand=90, waited=True))
    w = world(silent, hungry, budget=60, wishes=(replace(A, replicas=1), replace(B, replicas=1)))
    division = divide_budget(w, w.ledger)
    assert (division.targets["p", "d"], division.fair["p", "d"]) == (10, 29)
    assert division.targets["q", "d"] == 60 - 10 - 2
