"""A PgPool whose number of pods changes: what is planned before it, and what status and events say of it."""

from dataclasses import replace
from typing import Any

import pytest

from poolfleet.api.conditions import Reason
from poolfleet.api.wire import DatabaseState
from poolfleet.plan.autoscaling import Decision
from poolfleet.plan.model import Event, Pod
from poolfleet.plan.pool import plan, wishes
from poolfleet.plan.poolview import Cut, PoolView
from poolfleet.plan.status import Conclusion, conclude
from tests.unit.pool_fixtures import (
    NOW,
    Body,
    conditions,
    data,
    of,
    pod,
    pool_body,
    server_body,
    settled,
    state,
    view,
)

AUTO: Body = {"minReplicas": 2, "maxReplicas": 6}
LIMITS = "minReplicas 2, maxReplicas 6"
STAYS = Decision(2, "Stable", "AsWished", "2 as found", "WithinLimits", LIMITS)
RISES = Decision(5, "Panic", "ScaledUp", "4800 clients / 1000 = 5; was 2", "WithinLimits", LIMITS)
FALLS = Decision(3, "Stable", "ScaledDown", "2500 clients / 1000 = 3; was 5", "WithinLimits", LIMITS)
BOUND = Decision(5, "Stable", "AsWished", "9000 clients", "BudgetLimited", "9 are asked for, the budget feeds 5")


def scaled(decision: Decision | None, **more: Any) -> PoolView:
    """A settled pool with autoscaling, and its newest decision."""
    return replace(settled(pool_body(autoscaling=AUTO), **more), decision=decision)


def concluded(seen: PoolView) -> Conclusion:
    return conclude(seen, plan(seen))


def after(seen: PoolView, **more: Any) -> PoolView:
    """The same once its status was written, and what happened then."""
    return replace(seen, body={**seen.body, "status": concluded(seen).status}, **more)


def crowded(name: str, clients: int, **more: Any) -> Pod:
    database = DatabaseState(loaded=5, held=1, samples=2, clients=clients)
    return pod(name, state=state("c", name, databases={"shop": database}), **more)


# Children


def test_the_deployment_has_as_many_pods_as_were_decided() -> None:
    for decision, replicas in ((None, 2), (RISES, 5), (replace(RISES, replicas=50), 6)):
        assert of(plan(scaled(decision)), "Deployment")["spec"]["replicas"] == replicas
    assert of(plan(replace(settled(pool_body(replicas=3)), decision=RISES)), "Deployment")["spec"]["replicas"] == 3


def test_scaling_reloads_nothing() -> None:
    seen = scaled(None)
    assert [obj["kind"] for obj in plan(replace(seen, decision=RISES)).apply] == ["Deployment"]
    ini = data(of(plan(replace(seen, decision=RISES)), "Secret", "shop-config"))["pgbouncer.ini"]
    assert "max_client_conn = 10000" in ini, "10000 / (minReplicas - 1)"


def test_before_pods_are_given_up_they_cost_their_clients() -> None:
    pods = (crowded("a", 7), crowded("b", 0), crowded("c", 2, deletion_cost=2))
    up = replace(scaled(STAYS), pods=pods)
    deployment = {**up.children["Deployment", "shop"]}
    deployment["spec"] = {**deployment["spec"], "replicas": 3}
    down = replace(up, children={**up.children, ("Deployment", "shop"): deployment})
    assert [(each.name, cost) for each, cost in plan(down).costs] == [("shop-a", 7)]
    assert plan(up).costs == (), "nothing to be written"
    assert plan(replace(down, decision=RISES)).costs == (), "more pods, not fewer"
    assert plan(replace(down, body=pool_body(autoscaling=AUTO, paused=True))).costs == ()
    assert plan(replace(down, body=pool_body(replicas=2), decision=None)).costs != (), "whoever scales it"


# Wishes


def test_wishes_have_what_was_decided_last() -> None:
    body = {**pool_body(autoscaling=AUTO, replicas=3), "status": {"desiredReplicas": 5}}
    wish = wishes(body, None)
    assert wish is not None and wish.replicas == 5


@pytest.mark.parametrize(
    ("spec", "move"),
    [
        (None, None),
        ({}, (10, 10)),
        ({"idleSeconds": 30}, (30, 10)),
        ({"idleSeconds": 1, "maxPercent": 5}, (1, 5)),
        ({"idleSeconds": "x"}, None),
    ],
)
def test_wishes_say_which_clients_may_be_moved(spec: Body | None, move: tuple[int, int] | None) -> None:
    wish = wishes(pool_body(clientRebalance=spec), None)
    assert wish is not None and wish.move == move


# Checks


def test_only_minreplicas_can_be_more_than_the_budget_feeds() -> None:
    small = server_body(budget=3)
    assert plan(view(pool_body(autoscaling=AUTO), small, decision=RISES)).findings == ()
    line = {"namespace": "demo", "name": "shop", "uid": "uid-pool", "budget": 3, "admitted": False}
    cut = server_body(budget=3, pools=[line])
    assert plan(view(pool_body(autoscaling=AUTO), cut, decision=RISES)).findings == (), "it will ask for 2 in a second"
    [found] = plan(view(pool_body(autoscaling=AUTO), cut, decision=STAYS)).findings
    assert "has no connections for this pool yet" in found.message
    [found] = plan(view(pool_body(autoscaling={"minReplicas": 3}), small)).findings
    assert found.reason == Reason.BUDGET_TOO_SMALL
    assert "Set autoscaling.minReplicas to 2 or less" in found.message


# Status


def test_the_first_decision_is_told_without_an_event() -> None:
    conclusion = concluded(scaled(STAYS))
    assert conclusion.status["desiredReplicas"] == 2
    assert conclusion.status["autoscaling"] == {"reason": "AsWished", "message": "2 as found"}
    assert conclusion.events == ()
    ignored = "spec.replicas is ignored while spec.autoscaling is set."
    assert conditions(conclusion.status)["Reconciling"]["message"] == ignored


def test_each_change_of_the_number_is_an_event_with_its_reason() -> None:
    up = after(scaled(STAYS), decision=RISES, now=NOW + 60)
    [event] = concluded(up).events
    words = "2 -> 5 replicas: 4800 clients / 1000 = 5"
    assert event == Event("Normal", "ScaledUp", words, action="Scale", each=True)
    status = concluded(up).status
    assert status["desiredReplicas"] == 5
    since = "2027-01-15T08:01:00.000000Z"
    assert status["autoscaling"] == {"reason": "ScaledUp", "message": RISES.message, "lastScaleTime": since}
    still = after(up, now=NOW + 90)
    assert concluded(still).events == ()
    assert concluded(still).status["autoscaling"]["lastScaleTime"] == since
    [event] = concluded(replace(still, decision=FALLS)).events
    assert (event.type, event.reason) == ("Normal", "ScaledDown")


def test_without_autoscaling_nobody_is_told_of_replicas_that_the_user_has_set() -> None:
    before = after(settled(pool_body(replicas=2)))
    scaled_by_hand = replace(before, body={**before.body, "spec": {**before.body["spec"], "replicas": 4}})
    assert scaled_by_hand.replicas == 4
    assert concluded(scaled_by_hand).events == ()
    assert concluded(scaled_by_hand).status["desiredReplicas"] == 4


def test_autoscaling_that_was_switched_off_leaves_nothing_behind() -> None:
    before = after(scaled(RISES))
    spec = {k: v for k, v in before.body["spec"].items() if k != "autoscaling"}
    status = concluded(replace(before, body={**before.body, "spec": spec}, decision=None)).status
    assert "autoscaling" not in status
    assert "AutoscalingLimited" not in conditions(status)
    assert status["desiredReplicas"] == 2, "spec.replicas counts at once"


def test_a_pause_keeps_the_last_words() -> None:
    before = after(scaled(BOUND))
    paused = replace(before, body={**before.body, "spec": {**before.body["spec"], "paused": True}}, decision=None)
    status = concluded(paused).status
    assert status["autoscaling"] == before.status["autoscaling"]
    assert conditions(status)["AutoscalingLimited"]["reason"] == "BudgetLimited"


@pytest.mark.parametrize(
    ("limited", "status"), [("WithinLimits", "False"), ("TooFewReplicas", "True"), ("BudgetLimited", "True")]
)
def test_what_limits_the_number_is_a_condition(limited: str, status: str) -> None:
    found = conditions(concluded(scaled(replace(STAYS, limited=limited))).status)["AutoscalingLimited"]
    assert (found["status"], found["reason"], found["message"]) == (status, limited, LIMITS)


def test_before_the_first_decision_nothing_is_known() -> None:
    status = concluded(scaled(None)).status
    assert conditions(status)["AutoscalingLimited"]["status"] == "Unknown"
    assert "autoscaling" not in status


def test_only_the_budget_as_limit_is_a_warning() -> None:
    before = after(scaled(STAYS))
    events = {e.reason: e for e in concluded(replace(before, decision=BOUND)).events}
    assert events["BudgetLimited"].type == "Warning"
    assert events["BudgetLimited"].message == "9 are asked for, the budget feeds 5"
    assert set(events) == {"ScaledUp", "BudgetLimited"}
    assert concluded(after(replace(before, decision=BOUND))).events == ()
    assert concluded(replace(before, decision=replace(STAYS, limited="TooFewReplicas"))).events == ()


def test_the_spread_is_of_the_pods_that_take_clients() -> None:
    pods = (crowded("a", 7), crowded("b", 3), crowded("c", 50, terminating=True), crowded("d", 0, ready=False))
    status = concluded(replace(scaled(STAYS), pods=pods)).status
    assert status["clients"] == {"active": 60, "waiting": 0, "podMin": 3, "podMax": 7}


def test_clients_that_were_cut_off_are_an_event_for_each_pod() -> None:
    before = after(scaled(STAYS))
    body = {**before.body, "spec": {**before.body["spec"], "drain": {"timeoutSeconds": 5}}}
    events = concluded(replace(before, body=body, cuts=(Cut("shop-a", 12), Cut("shop-b", 1)))).events
    assert [(event.type, event.reason, event.each) for event in events] == [("Warning", "ClientsCut", True)] * 2
    assert events[0].message == (
        "Pod shop-a: 12 clients were still connected when spec.drain.timeoutSeconds (5 s) was over, and cut off."
    )
