"""How many pods a PgPool is to have, and what autoscaling is told of it."""

from dataclasses import replace
from typing import Any

import pytest

from poolfleet.api.wire import DatabaseState
from poolfleet.plan.autoscaling import Decision, Policy, Sample
from poolfleet.plan.model import Pod
from poolfleet.plan.replicas import autoscaling, costs, desired, fed, policy, sample, start
from tests.unit.pool_fixtures import NOW, Body, pod, pool_body, settled, state, view

AUTO: Body = {"minReplicas": 3, "maxReplicas": 6}
DECISION = Decision(5, "Stable", "ScaledUp", "5,000 clients", "WithinLimits", "")


def pool(status: Body | None = None, **spec: Any) -> Body:
    return {**pool_body(**spec), "status": status or {}}


def busy(name: str, clients: int, waiting: int = 0, cpu: float | None = None, **more: Any) -> Pod:
    database = DatabaseState(loaded=5, held=1, samples=2, clients=clients, waiting=waiting)
    return pod(name, state=state("c", name, databases={"a": database, "b": database}, cpu=cpu), **more)


@pytest.mark.parametrize(
    ("status", "spec", "wanted"),
    [
        ({}, {"replicas": 4}, 4),
        ({}, {"replicas": None}, 2),
        ({"desiredReplicas": 5}, {"replicas": 4}, 4),
        ({"desiredReplicas": 5}, {"autoscaling": AUTO}, 5),
        ({"desiredReplicas": 9}, {"autoscaling": AUTO}, 6),
        ({"desiredReplicas": 1}, {"autoscaling": AUTO}, 3),
        ({"replicas": 4}, {"autoscaling": AUTO}, 4),
        ({}, {"autoscaling": AUTO, "replicas": 5}, 3),
        ({}, {"autoscaling": {}, "replicas": 5}, 2),
        ({}, {"autoscaling": {"minReplicas": "x"}, "replicas": 5}, 5),
    ],
)
def test_replicas_are_the_specs_or_what_was_decided_last(status: Body, spec: Body, wanted: int) -> None:
    assert desired(pool(status, **spec)) == wanted


@pytest.mark.parametrize(("live", "begins"), [(None, 4), (5, 5), (0, 3), (50, 6)])
def test_autoscaling_begins_with_what_the_live_deployment_has(live: int | None, begins: int) -> None:
    deployment = None if live is None else {"spec": {"replicas": live}}
    assert start(pool({"desiredReplicas": 4}, autoscaling=AUTO), deployment) == begins
    assert start(pool(replicas=2), deployment) == 2


def test_a_view_has_the_newest_decision_first() -> None:
    seen = settled(pool_body(autoscaling=AUTO))
    assert seen.replicas == 3
    deployment = {**seen.children["Deployment", "shop"], "spec": {"replicas": 4}}
    seen = replace(seen, children={**seen.children, ("Deployment", "shop"): deployment})
    assert seen.replicas == 4
    assert replace(seen, decision=DECISION).replicas == 5
    assert replace(seen, decision=replace(DECISION, replicas=9)).replicas == 6, "maxReplicas was lowered since"
    assert view(pool_body(replicas=7), decision=DECISION).replicas == 7, "no autoscaling any more"
    assert view(pool_body(replicas="x")).replicas == 0
    assert (seen.least_replicas, view(pool_body(replicas=7)).least_replicas) == (3, 7)


def test_the_policy_is_in_cores_and_seconds() -> None:
    wish = autoscaling(pool(autoscaling={**AUTO, "targetCPUUtilizationPercentage": 55}))
    assert wish is not None
    assert policy(wish) == Policy(3, 6, 1000, 0.55, 300.0)
    assert autoscaling(pool()) is None


def test_a_sample_is_of_the_ready_pods_that_stay() -> None:
    pods = [
        busy("a", 10, 2, cpu=0.25),
        busy("b", 1),
        busy("c", 1, cpu=0.5),
        pod("silent"),
        busy("unready", 100, ready=False, cpu=1.0),
        busy("draining", 100, terminating=True, cpu=1.0),
        busy("ended", 100, ended=True, cpu=1.0),
    ]
    assert sample(pods, NOW) == Sample(at=NOW, clients=20 + 2 + 2, answering=3, silent=1, cpu=0.75)
    assert sample(pods[1:2], NOW).cpu is None


@pytest.mark.parametrize(
    ("connections", "databases", "replicas"),
    [(10, 1, 9), (10, 3, 2), (2, 3, 0), (0, 1, None), (-3, 1, None), (None, 1, None), (10, 0, None)],
)
def test_the_budget_feeds_one_connection_each_and_one_pod_more(
    connections: int | None, databases: int, replicas: int | None
) -> None:
    assert fed(connections, databases) == replicas


def test_a_pod_costs_its_clients_and_one_that_cannot_be_read_as_much_as_the_most_crowded() -> None:
    pods = (
        busy("a", 10, 2),
        busy("b", 1, deletion_cost=2),
        busy("c", 0, deletion_cost=50),
        busy("d", 0),
        pod("silent"),
        pod("starting", ready=False),
        busy("draining", 3, terminating=True),
    )
    assert {each.name: cost for each, cost in costs(pods)} == {"shop-a": 20, "shop-c": 0, "shop-silent": 20}
