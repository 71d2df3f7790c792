"""What a PgPool's status says: conditions from plan, pods and PgServer; numbers that do not fidget; events."""

from dataclasses import replace
from typing import Any

import pytest

from poolfleet.api.conditions import Reason
from poolfleet.plan.fleet import PROPAGATION_SECONDS, Refusal
from poolfleet.plan.model import Pod
from poolfleet.plan.pool import plan
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.status import Conclusion, conclude
from tests.unit.pool_fixtures import (
    NOW,
    SETTINGS,
    Body,
    conditions,
    pod,
    pool_body,
    server_body,
    settled,
    state,
    view,
)

CONFIG = plan(settled()).config
ENTRIES = (
    {"pod": "uid-a", "podName": "shop-a", "pool": "demo/shop", "database": "shop", "bound": 12, "grant": 10},
    {"pod": "uid-b", "podName": "shop-b", "pool": "demo/shop", "database": "shop", "bound": 20, "grant": 20},
    {"pod": "uid-x", "podName": "x", "pool": "demo/other", "database": "shop", "bound": 7, "grant": 7},
)
LINE = {"namespace": "demo", "name": "shop", "uid": "uid-pool", "budget": 87, "granted": 32, "admitted": True}
WITHIN = {"type": "BudgetSatisfied", "status": "True", "reason": "WithinBudget", "message": "87"}


def two(**more: Any) -> tuple[Pod, ...]:
    return tuple(pod(name, state=state(CONFIG, name, **more)) for name in ("a", "b"))


def healthy(**more: Any) -> PoolView:
    server = server_body(entries=ENTRIES, conditions=[WITHIN], pools=[LINE])
    return settled(server=server, pods=more.pop("pods", two()), **more)


def concluded(seen: PoolView, *refusals: Refusal) -> Conclusion:
    return conclude(seen, plan(seen), refusals)


def said(seen: PoolView, *refusals: Refusal) -> dict[str, tuple[str, str]]:
    found = conditions(concluded(seen, *refusals).status)
    return {name: (condition["status"], condition["reason"]) for name, condition in found.items()}


def after(seen: PoolView, *, later: float = 0.0, **more: Any) -> PoolView:
    """The same, once its status was written."""
    conclusion = concluded(seen)
    body = {**seen.body, "status": conclusion.status}
    return replace(seen, body=body, now=seen.now + later, numbers_moved=conclusion.numbers_moved, **more)


def test_a_healthy_pool() -> None:
    assert said(healthy()) == {
        "Ready": ("True", "Serving"),
        "Reconciling": ("False", "AsWished"),
        "Stalled": ("False", "AsWished"),
        "ServerReachable": ("True", "Reachable"),
        "BudgetSatisfied": ("True", "WithinBudget"),
        "CredentialsCurrent": ("True", "Loaded"),
    }
    status = concluded(healthy()).status
    assert status["observedGeneration"] == 1
    assert (status["replicas"], status["readyReplicas"]) == (2, 2)
    assert status["selector"] == "app.kubernetes.io/component=pooler,poolfleet.dev/pool=shop"
    assert status["desiredReplicas"] == 2
    assert "autoscaling" not in status
    assert status["clients"] == {"active": 8, "waiting": 2, "podMin": 5, "podMax": 5}
    assert status["connections"] == {"budget": 87, "granted": 32, "inUse": 6}
    assert status["poolSize"] == {"shop": {"min": 10, "max": 20, "total": 30}}
    assert status["endpoint"] == {"host": "shop.demo.svc", "port": 6432}
    assert status["binding"] == {"name": "shop-binding"}
    assert status["agent"] == {"image": "example/operator:1", "outdated": False}


def test_nothing_is_written_or_told_twice() -> None:
    again = concluded(after(healthy(), later=100.0))
    assert again.status == concluded(healthy()).status
    assert again.events == ()
    assert again.again is None


def test_the_first_visit_is_on_the_way() -> None:
    found = said(view())
    assert found["Reconciling"] == ("True", Reason.PROGRESSING)
    assert found["Ready"] == ("False", Reason.WAITING_FOR_PODS)
    assert concluded(view()).events == ()


def test_an_outdated_agent_is_told() -> None:
    seen = replace(healthy(), settings=replace(SETTINGS, agent_image="example/operator:2"))
    assert concluded(seen).status["agent"] == {"image": "example/operator:1", "outdated": True}


# Ready


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ((), Reason.WAITING_FOR_PODS),
        ((pod(ready=False),), Reason.WAITING_FOR_PODS),
        ((pod(ready=False, state=state("", rev=0, databases={})),), Reason.WAITING_FOR_GRANTS),
        ((pod(terminating=True, state=state(CONFIG)),), Reason.WAITING_FOR_PODS),
        ((pod(ended=True, state=state(CONFIG)),), Reason.WAITING_FOR_PODS),
    ],
)
def test_no_pod_takes_clients(pods: tuple[Pod, ...], reason: str) -> None:
    assert said(healthy(pods=pods))["Ready"] == ("False", reason)


def test_one_ready_pod_serves() -> None:
    assert said(healthy(pods=(two()[0], pod("b", ready=False))))["Ready"] == ("True", "Serving")


def test_clients_reach_the_first_ready_pod_a_moment_later() -> None:
    first = healthy(ready_since=None)
    assert said(first)["Ready"] == ("False", Reason.WAITING_FOR_PODS)
    assert (concluded(first).ready_since, concluded(first).again) == (NOW, PROPAGATION_SECONDS)
    later = after(first, ready_since=NOW, later=PROPAGATION_SECONDS)
    assert said(later)["Ready"] == ("True", "Serving")
    assert concluded(later).ready_since == NOW


def test_what_was_ready_stays_so_under_another_leader() -> None:
    assert said(after(healthy(), ready_since=None))["Ready"] == ("True", "Serving")


def test_a_pod_that_is_ready_no_more_starts_anew() -> None:
    assert concluded(healthy(pods=(pod(ready=False),))).ready_since is None


def test_no_replicas_are_wished() -> None:
    ready = conditions(concluded(settled(pool_body(replicas=0))).status)["Ready"]
    assert (ready["status"], ready["message"]) == ("False", "spec.replicas is 0.")


def broken(error: str, **more: Any) -> tuple[Pod, ...]:
    database = replace(state(CONFIG).databases["shop"], reachable=False, error=error)
    return two(databases={"shop": database}, **more)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ('password authentication failed for user "shop"', Reason.AUTHENTICATION_FAILED),
        ('role "shop" does not exist', Reason.AUTHENTICATION_FAILED),
        ("connect failed", Reason.UNREACHABLE),
        ('database "shop" does not exist', Reason.UNREACHABLE),
    ],
)
def test_a_database_that_nobody_reaches(error: str, reason: str) -> None:
    found = conditions(concluded(healthy(pods=broken(error))).status)
    for name in ("Ready", "ServerReachable"):
        assert (found[name]["status"], found[name]["reason"]) == ("False", reason)
        assert found[name]["message"].startswith(f'Database "shop": {error}. ')


def test_a_server_that_cannot_be_used_comes_with_the_remedy() -> None:
    def message(error: str, **spec: Any) -> str:
        seen = healthy(pods=broken(error))
        body = {**seen.body, "spec": {**seen.body["spec"], **spec}}
        return str(conditions(concluded(replace(seen, body=body)).status)["Ready"]["message"])

    refused = 'password authentication failed for user "shop"'
    assert message(refused).endswith('Correct Secret "shop-app", or the role on the server.')
    forced = [{"name": "shop", "credentialsSecretRef": {"name": "forced"}}]
    assert message(refused, databases=forced).endswith('Correct Secret "forced", or the role on the server.')
    assert message("no answer").endswith('Check the server, and host, port and tls of PgServer "shop".')


def test_one_pod_that_gets_through_is_enough() -> None:
    assert said(healthy(pods=(two()[0], broken("x")[1])))["Ready"] == ("True", "Serving")


def test_what_was_not_tried_yet_holds_back_only_the_first_ready() -> None:
    untried = two(databases={"shop": replace(state(CONFIG).databases["shop"], reachable=None)})
    seen = healthy(pods=untried)
    assert said(seen)["Ready"] == ("False", Reason.WAITING_FOR_SERVER)
    assert said(after(healthy(), pods=untried))["Ready"] == ("True", "Serving")


def test_agents_that_cannot_be_read_hold_nothing_back() -> None:
    found = said(healthy(pods=(pod("a"), pod("b"))))
    assert found["Ready"] == ("True", "Serving")
    assert found["CredentialsCurrent"] == ("Unknown", "Unknown")


def test_the_servers_own_word_counts_where_no_pod_speaks() -> None:
    own = {"type": "ServerReachable", "status": "False", "reason": "Unreachable", "message": "gone"}
    assert said(settled(server=server_body(conditions=[own])))["ServerReachable"] == ("False", "Unreachable")


# Reconciling


@pytest.mark.parametrize(
    "counts",
    [
        {"updatedReplicas": 1},
        {"replicas": 3},
        {"availableReplicas": 1},
        {"observedGeneration": 0},
        {"updatedReplicas": None},
    ],
)
def test_a_rollout_under_way(counts: Body) -> None:
    seen = healthy()
    deployment = seen.children["Deployment", "shop"]
    changed = {k: v for k, v in {**deployment["status"], **counts}.items() if v is not None}
    children = {**seen.children, ("Deployment", "shop"): {**deployment, "status": changed}}
    assert said(replace(seen, children=children))["Reconciling"][0] == "True"


def test_a_deployment_that_may_not_make_pods() -> None:
    seen = settled()
    deployment = seen.children["Deployment", "shop"]
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: small"}
    failing = {**deployment, "status": {**deployment["status"], "replicas": 0, "conditions": [failure]}}
    found = conditions(concluded(replace(seen, children={**seen.children, ("Deployment", "shop"): failing})).status)
    for name in ("Ready", "Reconciling"):
        assert (found[name]["reason"], found[name]["message"]) == (Reason.REPLICA_FAILURE, "exceeded quota: small")


def test_paused() -> None:
    seen = settled(pool_body(paused=True))
    assert said(seen)["Reconciling"] == ("False", Reason.PAUSED)


def test_overridden_fields_are_named() -> None:
    seen = settled(pool_body(template={"spec": {"hostNetwork": True}}), pods=two())
    message = conditions(concluded(seen).status)["Reconciling"]["message"]
    assert message == "Not taken from spec.template: spec.hostNetwork."


# Stalled


def test_a_fault_stalls_and_the_fleet_goes_on() -> None:
    found = conditions(concluded(replace(healthy(), secrets={})).status)
    assert (found["Stalled"]["status"], found["Stalled"]["reason"]) == ("True", Reason.SECRET_NOT_FOUND)
    assert found["Reconciling"]["status"] == "False"
    assert found["CredentialsCurrent"]["reason"] == Reason.SECRET_NOT_FOUND
    assert found["Ready"]["status"] == "True"
    assert "The last good fleet keeps serving" in found["Ready"]["message"]


def test_a_fault_of_a_pool_that_never_served() -> None:
    found = said(view(secrets={}))
    assert found["Ready"] == ("False", Reason.SECRET_NOT_FOUND)
    assert found["CredentialsCurrent"] == ("False", Reason.SECRET_NOT_FOUND)


def test_a_budget_too_small() -> None:
    found = said(view(server=server_body(budget=1)))
    assert found["Stalled"] == ("True", Reason.BUDGET_TOO_SMALL)
    assert found["BudgetSatisfied"] == ("False", Reason.BUDGET_TOO_SMALL)


def test_a_spec_that_cannot_be_read() -> None:
    conclusion = concluded(view(pool_body(replicas="x")))
    assert conditions(conclusion.status)["Stalled"]["reason"] == Reason.INVALID_SPEC
    assert "endpoint" not in conclusion.status


def test_what_the_api_server_refuses() -> None:
    refused = Refusal("Deployment", "shop", "spec.template.spec.x: unknown", invalid=True)
    with_template = healthy(body=pool_body(template={"spec": {"x": 1}}))
    assert said(with_template, refused)["Stalled"] == ("True", Reason.INVALID_TEMPLATE)
    stalled = conditions(concluded(healthy(), refused).status)["Stalled"]
    assert stalled["reason"] == Reason.INVALID_SPEC
    assert stalled["message"] == 'The API server refuses Deployment "shop": spec.template.spec.x: unknown'


def test_what_is_forbidden_is_tried_again() -> None:
    refused = Refusal("Service", "shop", "exceeded quota", invalid=False)
    conclusion = concluded(healthy(), refused)
    found = conditions(conclusion.status)
    assert found["Stalled"]["status"] == "False"
    assert (found["Reconciling"]["status"], found["Reconciling"]["reason"]) == ("True", Reason.REPLICA_FAILURE)
    assert "exceeded quota" in found["Reconciling"]["message"]
    assert conclusion.again == 30.0


# CredentialsCurrent


def test_a_configuration_on_its_way() -> None:
    found = said(healthy(pods=(two()[0], pod("b", state=state("old")))))
    assert found["CredentialsCurrent"] == ("False", Reason.LOADING)
    assert found["Reconciling"] == ("True", Reason.LOADING)
    assert found["Ready"] == ("True", "Serving")


def test_a_configuration_that_pgbouncer_refused() -> None:
    bad = pod("b", state=state("old", config_error="line 7"))
    credentials = conditions(concluded(healthy(pods=(two()[0], bad))).status)["CredentialsCurrent"]
    assert credentials["reason"] == Reason.CONFIG_REFUSED
    assert "shop-b" in credentials["message"]
    assert "line 7" in credentials["message"]


def test_a_draining_pod_need_not_load() -> None:
    old = pod("b", terminating=True, state=state("old"))
    assert said(healthy(pods=(two()[0], old)))["CredentialsCurrent"] == ("True", Reason.LOADED)


# Numbers


def clients(count: int) -> tuple[Pod, ...]:
    database = replace(state(CONFIG).databases["shop"], clients=count, waiting=0, held=0)
    return (pod(state=state(CONFIG, databases={"shop": database})),)


@pytest.mark.parametrize(
    ("new", "later", "shown", "again"),
    [
        (109, 100.0, 100, None),
        (110, 100.0, 110, None),
        (90, 100.0, 90, None),
        (91, 100.0, 100, None),
        (200, 5.0, 100, 10.0),
        (200, 15.0, 200, None),
        (0, 15.0, 0, None),
    ],
)
def test_live_numbers_move_by_a_tenth_and_every_15_seconds(
    new: int, later: float, shown: int, again: float | None
) -> None:
    first = after(healthy(pods=clients(100)), later=later)
    assert first.status["clients"] == {"active": 100, "waiting": 0, "podMin": 100, "podMax": 100}
    conclusion = concluded(replace(first, pods=clients(new)))
    assert conclusion.status["clients"]["active"] == shown
    assert conclusion.again == again


def test_the_first_client_is_shown() -> None:
    first = after(healthy(pods=clients(0)), later=20.0)
    conclusion = concluded(replace(first, pods=clients(1)))
    assert conclusion.status["clients"]["active"] == 1
    assert conclusion.numbers_moved == NOW + 20.0


def test_the_budget_of_a_pool_is_its_share() -> None:
    line = {"namespace": "demo", "name": "shop", "uid": "uid-pool", "budget": 31, "granted": 4}
    others = [{**line, "name": "other", "budget": 5}, {**line, "namespace": "data"}, {**line, "uid": "earlier"}]
    server = server_body(entries=ENTRIES, pools=[*others, line])
    assert concluded(view(server=server)).status["connections"] == {"budget": 31, "granted": 32, "inUse": 0}
    server = server_body(pools=others)
    assert concluded(view(server=server)).status["connections"] == {"granted": 0, "inUse": 0}


def test_a_vanished_pods_grant_is_no_pool_size() -> None:
    gone = ({**ENTRIES[0], "goneSince": "2027-01-01T00:00:00Z"}, ENTRIES[1])
    status = concluded(settled(server=server_body(entries=gone), pods=two())).status
    assert status["poolSize"]["shop"] == {"min": 20, "max": 20, "total": 20}
    assert status["connections"]["granted"] == 32


# Times and events


def test_times_move_with_the_status_alone() -> None:
    first = after(healthy(), later=50.0)
    later = conditions(concluded(replace(first, secrets={})).status)
    before = conditions(dict(first.status))
    assert later["Ready"]["lastTransitionTime"] == before["Ready"]["lastTransitionTime"]
    assert later["Stalled"]["lastTransitionTime"] == "2027-01-15T08:00:50Z"


def test_events_tell_a_fault_and_its_end_once() -> None:
    good = after(healthy())
    bad = replace(good, secrets={})
    events = concluded(bad).events
    assert [(event.type, event.reason) for event in events] == [("Warning", Reason.SECRET_NOT_FOUND)]
    assert "shop-app" in events[0].message
    still = after(bad)
    assert concluded(still).events == ()
    assert [e.reason for e in concluded(replace(still, secrets=good.secrets)).events] == [Reason.LOADED]


def test_of_conditions_with_one_reason_the_event_has_the_words_of_stalled() -> None:
    body = pool_body(server=None, serverRef={"name": "db"})
    [event] = concluded(view(body, no_server=True)).events
    assert event.reason == Reason.SERVER_NOT_FOUND
    assert event.message == 'PgServer "db" does not exist in namespace "demo". Create it.'


def test_what_passes_by_itself_is_no_event() -> None:
    good = after(healthy())
    assert concluded(replace(good, pods=(two()[0], pod("b", state=state("old"))))).events == ()
    assert concluded(replace(view(), body={**view().body, "status": concluded(view()).status})).events == ()


def test_a_fleet_that_is_lost_is_an_event() -> None:
    events = concluded(replace(after(healthy()), pods=())).events
    assert [(event.type, event.reason) for event in events] == [("Warning", Reason.WAITING_FOR_PODS)]
