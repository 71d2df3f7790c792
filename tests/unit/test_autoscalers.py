"""The loop of autoscaling: whose pods are looked at, where it begins, and what is worth a reconciliation."""

from dataclasses import replace
from typing import Any, cast

import pytest

from poolfleet.api import names
from poolfleet.api.wire import AgentState, DatabaseState
from poolfleet.controller.autoscalers import Autoscalers
from poolfleet.controller.context import Context, Key
from poolfleet.controller.queue import KeyedQueue
from poolfleet.controller.store import Store
from poolfleet.kube.kinds import DEPLOYMENT, POD, POOL, SERVER
from tests.unit.pool_fixtures import NOW, Body, pool_body, server_body, state

AUTO: Body = {"minReplicas": 2, "maxReplicas": 8, "targetClientsPerReplica": 100, "scaleDownStabilizationSeconds": 0}
LINE: Body = {"namespace": "demo", "name": "shop", "uid": "uid-pool", "budget": 87, "admitted": True}


class House:
    """A pool of two ready pods, its PgServer, and a clock."""

    def __init__(self) -> None:
        self.now = NOW
        self.version = 100
        self.clients: dict[str, int] = {}
        self.store, self.queue = Store(), KeyedQueue[Key](lambda: self.now)
        self.autoscalers = Autoscalers()
        self.context = cast(Context, self)  # as much of it as is asked for
        self.agents = self
        self.pool()
        self.server()
        self.pod("a", 10)
        self.pod("b", 10)

    def clock(self) -> float:
        return self.now

    def state(self, uid: str) -> AgentState | None:
        count = self.clients.get(uid)
        database = DatabaseState(loaded=9, held=1, samples=2, clients=count or 0)
        return None if count is None else state("c", uid.removeprefix("uid-"), databases={"shop": database})

    def put(self, plural: str, body: Body) -> None:
        self.version += 1
        metadata = {**body["metadata"], "resourceVersion": str(self.version)}
        self.store.put(plural, {**body, "metadata": metadata})

    def pool(self, status: Body | None = None, **spec: Any) -> None:
        self.put(POOL.plural, {**pool_body(autoscaling=spec.pop("autoscaling", AUTO), **spec), "status": status or {}})

    def server(self, budget: int = 87, **line: Any) -> None:
        self.put(SERVER.plural, server_body(budget=budget, pools=[{**LINE, "budget": budget, **line}]))

    def pod(self, name: str, clients: int) -> None:
        self.clients[f"uid-{name}"] = clients
        metadata = {"name": f"shop-{name}", "namespace": "demo", "uid": f"uid-{name}"}
        status = {"conditions": [{"type": "Ready", "status": "True"}]}
        self.put(POD.plural, {"metadata": {**metadata, "labels": {names.LABEL_POOL: "shop"}}, "status": status})

    def deployment(self, replicas: int) -> None:
        owner = {"kind": "PgPool", "name": "shop", "uid": "uid-pool", "controller": True}
        metadata = {"name": "shop", "namespace": "demo", "uid": "uid-deployment", "ownerReferences": [owner]}
        self.put(DEPLOYMENT.plural, {"metadata": metadata, "spec": {"replicas": replicas}})

    def look(self, seconds: int = 1) -> int:
        """Look once a second; return how often the pool was added to the queue."""
        added = 0
        for _ in range(seconds):
            self.now += 1.0
            self.autoscalers.look(self.context)
            while (key := self.queue.get_nowait()) is not None:
                assert key == Key(POOL.plural, "demo", "shop")
                self.queue.done(key)
                added += 1
        return added

    def wanted(self) -> int | None:
        decision = self.autoscalers.decision("uid-pool")
        return None if decision is None else decision.replicas


@pytest.fixture
def house() -> House:
    return House()


def test_more_clients_are_more_pods_and_the_pool_is_reconciled_for_it(house: House) -> None:
    assert house.wanted() is None
    assert house.look() == 1, "the first decision"
    assert house.wanted() == 2
    assert house.look(5) == 0
    house.clients |= {"uid-a": 300, "uid-b": 290}
    assert house.look(10) == 1
    assert house.wanted() == 6
    decision = house.autoscalers.decision("uid-pool")
    assert decision is not None and decision.reason == "ScaledUp" and "590 clients" in decision.message


@pytest.mark.parametrize("spec", [{"autoscaling": None}, {"paused": True}, {"autoscaling": {"minReplicas": "x"}}])
def test_who_is_not_asked_for_or_left_alone_is_forgotten(house: House, spec: Body) -> None:
    house.look()
    house.pool(**spec)
    assert house.look() == 0
    assert house.wanted() is None


def test_a_pool_under_deletion_is_forgotten(house: House) -> None:
    house.look()
    body = {**pool_body(autoscaling=AUTO)}
    body["metadata"] = {**body["metadata"], "deletionTimestamp": "2027-01-01T00:00:00Z"}
    house.put(POOL.plural, body)
    assert house.look() == 0
    assert house.wanted() is None


def test_a_new_leader_begins_with_the_pods_that_the_deployment_has(house: House) -> None:
    house.pool(status={"desiredReplicas": 3}, autoscaling={**AUTO, "scaleDownStabilizationSeconds": 100})
    house.deployment(5)
    house.look(50)
    assert house.wanted() == 5, "nothing is given up before the stabilisation window has passed"
    house.look(60)
    assert house.wanted() == 2


def test_never_more_pods_than_the_budget_can_feed(house: House) -> None:
    house.server(budget=5)
    house.clients |= {"uid-a": 300, "uid-b": 290}
    house.look(70)
    decision = house.autoscalers.decision("uid-pool")
    assert decision is not None
    assert (decision.replicas, decision.limited) == (4, "BudgetLimited"), "one more pod must always be able to start"


def test_while_the_budget_is_not_known_it_limits_nobody(house: House) -> None:
    house.put(SERVER.plural, server_body(budget=None))
    house.clients |= {"uid-a": 300, "uid-b": 290}
    house.look(70)
    assert house.wanted() == 6


@pytest.mark.parametrize(("budget", "pods"), [(4, 3), (2, 2), (0, 6)])
def test_pods_that_a_cut_budget_cannot_feed_are_given_up(house: House, budget: int, pods: int) -> None:
    """Down to minReplicas; a budget of 0 is that of a server which is another PgServer's, and says nothing."""
    house.clients |= {"uid-a": 300, "uid-b": 290}
    house.look(70)
    assert house.wanted() == 6
    house.server(budget=budget, admitted=False)
    assert house.look() == (1 if pods != 6 else 0)
    assert house.wanted() == pods


def test_what_older_pools_are_sure_of_feeds_nobody_else(house: House) -> None:
    house.clients |= {"uid-a": 300, "uid-b": 290}
    house.look(70)
    older = pool_body(server=None, serverRef={"name": "shop"}, replicas=3)
    metadata = {"name": "older", "uid": "uid-older", "creationTimestamp": "2026-01-01T00:00:00Z"}
    house.put(POOL.plural, {**older, "metadata": {**older["metadata"], **metadata}})
    house.server(budget=9, admitted=False)
    house.look()
    assert house.wanted() == 4, "9 - 4 of the older pool, and one for one pod more"


def test_a_pool_that_is_not_admitted_adds_no_pod(house: House) -> None:
    """There would be enough by its own arithmetic, but ghosts or sessions of others have it."""
    house.server(budget=87, admitted=False)
    house.clients |= {"uid-a": 300, "uid-b": 290}
    house.look(70)
    assert house.wanted() == 2


def test_a_pod_that_cannot_be_read_is_no_reason_to_give_one_up(house: House) -> None:
    house.clients |= {"uid-a": 150, "uid-b": 150}
    house.look(70)
    assert house.wanted() == 3
    del house.clients["uid-b"]
    house.look(200)
    assert house.wanted() == 3


def test_what_changes_every_second_is_no_news(house: House) -> None:
    house.look(70)
    before = house.autoscalers.decision("uid-pool")
    for second in range(60):
        house.clients["uid-a"] = 10 + second
        assert house.look() == 0
    assert before is not None and house.autoscalers.decision("uid-pool") == replace(before, mode="Stable")


def test_one_pools_trouble_does_not_end_the_others(house: House, caplog: pytest.LogCaptureFixture) -> None:
    body = pool_body(autoscaling=AUTO)
    broken = {**body["metadata"], "name": "broken", "uid": "uid-broken"}
    house.put(POOL.plural, {**body, "metadata": broken})
    metadata = {"name": "p", "namespace": "demo", "uid": "uid-p", "creationTimestamp": "never"}
    house.put(POD.plural, {"metadata": {**metadata, "labels": {names.LABEL_POOL: "broken"}}})
    house.look()
    assert house.wanted() == 2
    assert house.autoscalers.decision("uid-broken") is None
    assert "no decision on the number of pods" in caplog.text
