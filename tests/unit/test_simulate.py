"""Ideal pods driven by the real planning: what they come to, and that a rollout stays within the budget."""

import pytest

from poolfleet.plan.model import Pod
from poolfleet.plan.shares import divide_budget
from poolfleet.plan.simulate import Fleet, Restless, rollout, steady
from poolfleet.plan.sizing import PoolWish


def wish(name: str, number: int, replicas: int = 2, databases: int = 1, **more: int) -> PoolWish:
    names = {f"d{n}": 1 for n in range(databases)}
    return PoolWish(f"ns/{name}", name, float(number), names, "", replicas, **more)  # type: ignore[arg-type]


def sizes(fleet: Fleet) -> dict[str, int]:
    return {f"{e.pod_name}.{e.database}": e.grant for e in fleet.ledger.entries}


def test_at_rest_everybody_has_its_share() -> None:
    fleet = steady(97, [wish("a", 0)])
    assert sizes(fleet) == {"a-pod-1.d0": 48, "a-pod-2.d0": 48}
    assert fleet.ledger.bound == 97 - 1  # one is kept in reserve


def test_several_pools_come_to_what_the_operator_divides() -> None:
    fleet = steady(90, [wish("a", 0, weight=2), wish("b", 1, replicas=3, databases=2), wish("c", 2, most=10)])
    division = divide_budget(fleet.world(), fleet.ledger)
    assert {(e.pod, e.database): e.grant for e in fleet.ledger.entries} == dict(division.fair)
    assert sum(e.grant for e in fleet.ledger.of_pool("ns/c")) == 10 - 1


def test_a_pool_that_does_not_fit_gets_no_pods() -> None:
    fleet = steady(6, [wish("a", 0), wish("b", 1, replicas=3)])
    assert {pod.pool for pod in fleet.staying()} == {"ns/a"}
    assert {entry.pool for entry in fleet.ledger.entries} == {"ns/a"}


@pytest.mark.parametrize("surge", [0, 1, 2, 5])
@pytest.mark.parametrize(("budget", "pools", "replicas"), [(9, 1, 2), (40, 2, 3), (25, 3, 4), (60, 1, 1)])
def test_a_rollout_replaces_everybody_and_never_leaves_the_budget(
    budget: int, pools: int, replicas: int, surge: int
) -> None:
    fleet = steady(budget, [wish(f"p{n}", n, replicas) for n in range(pools)])
    before, old = sizes(fleet), {pod.uid for pod in fleet.staying()}
    start, worst, end = rollout(fleet, surge)
    assert (start.bound, start.ending) == (sum(before.values()), 0)
    assert worst.bound == budget  # what pods keep that end, their successors cannot have; the reserve is what they get
    assert worst.pods + worst.ending > start.pods
    assert worst.what.startswith("rollout: ")
    assert (end.bound, end.pods, end.ending) == (start.bound, start.pods, 0)
    assert not old & {pod.uid for pod in fleet.staying()}
    assert sorted(sizes(fleet).values()) == sorted(before.values())


def test_a_pod_that_ends_holds_everything_until_the_kubelet_has_stopped_it() -> None:
    fleet = steady(31, [wish("a", 0, replicas=3)])
    first = fleet.staying()[0]
    fleet.terminate(first)
    fleet.settle("draining")
    assert [entry.grant for entry in fleet.ledger.of_pod(first.uid)] == [10]
    before = fleet.now
    fleet.end_drains()
    assert sizes(fleet) == {"a-pod-2.d0": 15, "a-pod-3.d0": 15}
    assert fleet.now - before < 60 and not fleet.ledger.ghosts  # its end is known, nobody waits for a ghost


def test_no_old_pod_ends_before_the_new_one_has_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[int] = []
    terminate = Fleet.terminate

    def watched(self: Fleet, pod: Pod) -> None:
        waiting.append(len(self.without_grant()))
        terminate(self, pod)

    monkeypatch.setattr(Fleet, "terminate", watched)
    rollout(steady(3, [wish("a", 0)]), surge=1)  # one connection each, and one in reserve
    assert waiting == [0, 0]


def test_a_rollout_of_nothing() -> None:
    assert {moment.bound for moment in rollout(steady(10, [wish("a", 0, replicas=0)]), 1)} == {0}


def test_planning_that_does_not_come_to_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolfleet.plan.simulate.MOST_STEPS", 2)
    with pytest.raises(Restless, match="does not come to rest"):
        steady(50, [wish("a", 0)])
