"""An operator upgrade rolls no pod; what rolls the fleet anyway takes the current images, and does not get stuck."""

from dataclasses import replace
from typing import Any

import pytest

from poolfleet.plan import rollout
from poolfleet.plan.model import Pod, Settings
from poolfleet.plan.pool import plan
from poolfleet.plan.rollout import Rolled, Surge, decide, inputs_hash, surge
from poolfleet.plan.status import conclude
from tests.unit.pool_fixtures import NOW, Body, applied, conditions, pod, settled, view

OLD = Settings(agent_image="agent:1", pgbouncer_image="pgbouncer:1", run_as_user=65532)
NEW = Settings(
    agent_image="agent:2",
    pgbouncer_image="pgbouncer:2",
    image_pull_policy="Always",
    image_pull_secrets=("pull",),
    run_as_user=None,
)


def roll(
    previous: Rolled | None,
    settings: Settings = NEW,
    *,
    inputs: str = "i",
    restarted_at: str = "",
    pgbouncer_image: str | None = None,
    immediately: bool = False,
    least_revision: int = 0,
) -> Rolled:
    return decide(
        previous,
        settings,
        inputs=inputs,
        restarted_at=restarted_at,
        pgbouncer_image=pgbouncer_image,
        immediately=immediately,
        least_revision=least_revision,
    )


@pytest.fixture
def fleet() -> Rolled:
    return roll(None, OLD)


def test_a_new_fleet_takes_what_the_operator_has(fleet: Rolled) -> None:
    assert (fleet.agent_image, fleet.pgbouncer_image, fleet.run_as_user) == ("agent:1", "pgbouncer:1", 65532)


def test_an_upgrade_alone_changes_nothing(fleet: Rolled) -> None:
    assert roll(fleet) == fleet
    assert rollout.outdated(fleet, NEW)
    assert not rollout.outdated(fleet, OLD)


def test_changed_inputs_take_everything_current(fleet: Rolled) -> None:
    rolled = roll(fleet, inputs="j")
    assert (rolled.agent_image, rolled.pgbouncer_image) == ("agent:2", "pgbouncer:2")
    assert (rolled.image_pull_policy, rolled.image_pull_secrets, rolled.run_as_user) == ("Always", ("pull",), None)
    assert roll(rolled, inputs="j") == rolled


def test_a_restart_takes_current_images_once(fleet: Rolled) -> None:
    rolled = roll(fleet, restarted_at="2027-01-01T00:00:00Z")
    assert rolled.agent_image == "agent:2"
    newer = replace(NEW, agent_image="agent:3")
    assert roll(rolled, newer, restarted_at="2027-01-01T00:00:00Z") == rolled
    assert roll(rolled, newer, restarted_at="2027-01-02T00:00:00Z").agent_image == "agent:3"


def test_a_restart_that_was_undone_takes_no_images(fleet: Rolled) -> None:
    restarted = replace(fleet, restarted_at="2027-01-01T00:00:00Z")
    assert roll(restarted, restarted_at="") == fleet


def test_immediately_follows_the_operator(fleet: Rolled) -> None:
    assert roll(fleet, immediately=True).agent_image == "agent:2"


def test_the_users_image_wins_over_the_operators(fleet: Rolled) -> None:
    rolled = roll(fleet, inputs="with-image", pgbouncer_image="mine:1")
    assert rolled.pgbouncer_image == "mine:1"


def test_a_revision_that_cannot_be_built_any_more_is_rolled(fleet: Rolled) -> None:
    assert roll(replace(fleet, revision=0)).agent_image == "agent:2"
    assert rollout.outdated(replace(fleet, revision=0), OLD)


def test_agents_that_cannot_do_what_is_wanted_are_replaced_once(fleet: Rolled) -> None:
    older = replace(fleet, revision=2)
    assert roll(older) == older and rollout.outdated(older, OLD)
    rolled = roll(older, least_revision=rollout.FILES_AND_HOLDS)
    assert (rolled.agent_image, rolled.revision) == ("agent:2", 3)
    assert roll(fleet, least_revision=rollout.FILES_AND_HOLDS) == fleet


def test_the_annotation_keeps_everything(fleet: Rolled) -> None:
    for rolled in (fleet, roll(fleet, inputs="j", restarted_at="2027-01-01T00:00:00Z")):
        assert Rolled.from_annotation(rolled.to_annotation()) == rolled


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "null", "7", '{"inputs": 1}', "not json"])
def test_a_spoilt_annotation_counts_as_absent(text: str | None) -> None:
    assert Rolled.from_annotation(text) is None


def test_inputs_hash_depends_on_contents_not_on_order() -> None:
    assert inputs_hash({"a": 1, "b": [1, 2]}) == inputs_hash({"b": [1, 2], "a": 1})
    assert inputs_hash({"a": 1}) != inputs_hash({"a": 2})


# Rollouts without connections for one pod more


def deployment(updated: int = 1, total: int = 3, available: int = 2, max_surge: int = 1, seen: int = 4) -> Body:
    """One of two pods in the middle of a rollout, one pod added."""
    rolling = {"maxSurge": max_surge, "maxUnavailable": 1 - max_surge}
    counts = {"updatedReplicas": updated, "replicas": total, "availableReplicas": available}
    return {
        "metadata": {"generation": 4},
        "spec": {"replicas": 2, "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}},
        "status": {"observedGeneration": seen, **counts},
    }


def surging(age: float, **more: Any) -> list[Pod]:
    """Two pods with grants, and a new one without that is `age` seconds old."""
    old = [pod(name, raw_directive="{}") for name in ("a", "b")]
    return [*old, pod("new", ready=False, created=NOW - age, **more)]


def test_a_rollout_adds_a_pod_while_that_gets_connections() -> None:
    assert surge(None, [], NOW) == Surge(more=True)
    assert surge(deployment(), surging(1.0, raw_directive="{}"), NOW) == Surge(more=True)
    assert surge(deployment(), surging(12.0), NOW) == Surge(more=True, again=18.0)
    assert surge(deployment(), surging(29.9), NOW).more


def test_a_pod_without_a_grant_for_30_seconds_ends_that() -> None:
    assert surge(deployment(), surging(30.0), NOW) == Surge(more=False)


@pytest.mark.parametrize("state", [{"scheduled": False}, {"terminating": True}, {"ended": True}])
def test_what_waits_for_something_else_or_for_nothing_does_not(state: dict[str, bool]) -> None:
    assert surge(deployment(), surging(300.0, **state), NOW) == Surge(more=True)


def test_where_no_old_pod_is_left_nothing_is_gained_by_it() -> None:
    assert surge(deployment(updated=2, total=2, available=1), surging(300.0), NOW) == Surge(more=True)


@pytest.mark.parametrize(
    "rolling",
    [
        deployment(max_surge=0),
        deployment(updated=1, total=2, available=1, max_surge=0),
        deployment(updated=2, total=2, available=1, max_surge=0),
        deployment(updated=2, total=2, available=2, max_surge=0, seen=3),
    ],
)
def test_it_stays_so_until_the_rollout_is_over(rolling: Body) -> None:
    assert surge(rolling, [], NOW) == Surge(more=False)


def test_then_it_is_as_before() -> None:
    assert surge(deployment(updated=2, total=2, available=2, max_surge=0), [], NOW) == Surge(more=True)


def test_the_deployment_and_the_status_say_so() -> None:
    before = settled()
    live = before.children["Deployment", "shop"]
    counts = {"observedGeneration": 1, "updatedReplicas": 1, "replicas": 3, "availableReplicas": 2}
    children = {**before.children, ("Deployment", "shop"): {**live, "status": counts}}
    stuck = view(live=children, pods=tuple(surging(31.0)))
    planned = plan(stuck)
    assert [obj["kind"] for obj in planned.apply] == ["Deployment"]
    assert planned.apply[0]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    on_the_way = view(live=applied(planned, children), pods=stuck.pods)
    rolling = {**on_the_way.children["Deployment", "shop"], "status": counts}
    on_the_way = view(live={**on_the_way.children, ("Deployment", "shop"): rolling}, pods=stuck.pods)
    said = conditions(conclude(on_the_way, plan(on_the_way)).status)["Reconciling"]["message"]
    assert "maxSurge 0, maxUnavailable 1" in said
    soon = view(live=children, pods=tuple(surging(29.0)))
    assert conclude(soon, plan(soon)).again == 1.0
