"""Reading API objects in the one way that decisions rely on."""

from dataclasses import replace

import pytest

from poolfleet.api import names
from poolfleet.api.wire import sign
from poolfleet.plan.discovery import Discovery, Limits
from poolfleet.plan.seen import LOST_BY_KUBELET, ended, ghost_grace, pod_of, with_caps
from poolfleet.plan.sizing import PoolWish
from tests.unit.explain_fixtures import Body, pod, pool

DELETED = "2027-01-15T08:00:00Z"


def stopped(reason: str = "Completed", agent: str = "Completed", phase: str = "Succeeded") -> Body:
    def status(name: str, why: str) -> Body:
        return {"name": name, "state": {"terminated": {"reason": why}} if why else {"running": {}}}

    return pod(
        "p1",
        status={
            "phase": phase,
            "initContainerStatuses": [status(names.AGENT_CONTAINER, agent)],
            "containerStatuses": [status(names.PGBOUNCER_CONTAINER, reason)],
        },
    )


@pytest.mark.parametrize(
    ("body", "deleted", "gone"),
    [
        (stopped(), True, True),
        (stopped(phase="Failed"), False, True),  # evicted
        (stopped(phase="Running"), False, False),  # the kubelet will start it again
        (stopped("Error", phase="Running"), True, False),  # it crashed, and may run again when the deletion comes
        (stopped("Error", agent="", phase="Running"), True, False),
        (stopped(agent="", phase="Failed"), True, False),
        (stopped(LOST_BY_KUBELET), True, False),
        (stopped(reason=""), True, False),
        (pod("p1", status={"phase": "Failed"}), True, False),  # by phase alone
    ],
)
def test_a_pod_is_gone_by_the_kubelets_word_only(body: Body, deleted: bool, gone: bool) -> None:
    if deleted:
        body["metadata"]["deletionTimestamp"] = DELETED
    assert ended(body) is gone
    assert pod_of(body, None, None).terminating is deleted


def test_a_directive_counts_with_its_mac_only() -> None:
    body = pod("p1")
    text = sign({"rev": 7, "grant": {"shop": 3}}, b"key")
    body["metadata"]["annotations"][names.DIRECTIVE] = text
    assert pod_of(body, b"key", None).directive == {"rev": 7, "grant": {"shop": 3}}
    for key in (b"other", None):
        assert (pod_of(body, key, None).directive, pod_of(body, key, None).raw_directive) == ({}, text)
    body["status"]["conditions"][0]["lastTransitionTime"] = "2027-01-15T08:00:00Z"
    seen = pod_of(body, None, None)
    assert seen.ready_since == 1_800_000_000.0
    assert (seen.pool, seen.node, seen.server, seen.ready, seen.scheduled) == (
        "demo/shop",
        "node-1",
        "uid-db",
        True,
        True,
    )


def test_a_pod_leaves_from_when_it_was_deleted_not_from_the_end_of_its_grace() -> None:
    body = pod("shop-a")
    assert pod_of(body, None, None).leaving_since is None
    body["metadata"] |= {"deletionTimestamp": "2027-01-15T08:01:20Z", "deletionGracePeriodSeconds": 80}
    assert pod_of(body, None, None).leaving_since == 1_800_000_000.0


@pytest.mark.parametrize(("text", "turn"), [(None, 0), ("3", 3), ("", 0), ("three", 0), ("9" * 30, 0)])
def test_the_roles_that_a_pod_was_made_for(text: str | None, turn: int) -> None:
    body = pod("p1")
    if text is not None:
        body["metadata"]["annotations"][names.TURN] = text
    assert pod_of(body, None, None).turn == turn


def test_limits_of_the_databases_on_the_server() -> None:
    body = pool(
        databases=[{"name": "shop", "serverDatabase": "main"}, {"name": "shop_session", "serverDatabase": "main"}]
    )
    wish = PoolWish("demo/shop", "u", 0.0, {"shop": 1, "shop_session": 1}, "", roles={"shop": frozenset({"app"})})
    known = Discovery(Limits(100), 0.0, database_limits={"main": 20, "shop": 3}, role_limits={"app": 7})
    assert with_caps([wish], [body], known, (), None)[0].caps == {"shop": 7, "shop_session": 10}
    assert with_caps([wish], [body], known, {"app": 7}, None)[0].caps == {"shop": 10, "shop_session": 10}
    assert with_caps([wish], [], replace(known, role_limits={}), (), None)[0].caps == {"shop": 3}
    assert with_caps([wish], [body], None, (), None)[0].caps == {}


def test_a_ghost_is_kept_as_long_as_the_longest_drain_and_a_minute() -> None:
    assert ghost_grace([]) == 60.0
    assert ghost_grace([pool(), pool(drain={"timeoutSeconds": 300}), pool(drain={"timeoutSeconds": 5})]) == 360.0
