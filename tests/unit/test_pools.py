"""The pool reconciler where the API server is odd: what is tried again, what is not, and what is raised."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from poolfleet.api import names
from poolfleet.api.wire import AgentState, DatabaseState
from poolfleet.controller import metrics, pools
from poolfleet.controller.agents import Agents
from poolfleet.controller.context import Context, Key
from poolfleet.controller.discoveries import Discoveries
from poolfleet.controller.nodes import Nodes
from poolfleet.controller.queue import KeyedQueue
from poolfleet.controller.roles import Roles
from poolfleet.controller.secrets import Secrets
from poolfleet.controller.store import Store
from poolfleet.controller.tokens import Tokens
from poolfleet.kube.client import Kube
from poolfleet.kube.errors import ApiError, Conflict, Forbidden, Invalid, NotFound, Unavailable
from poolfleet.kube.events import Recorder
from poolfleet.kube.kinds import DEPLOYMENT, POD, POOL, SECRET, SERVER, SERVICE, Kind, kind_of
from poolfleet.plan.autoscaling import Decision
from poolfleet.plan.model import Event
from poolfleet.plan.objects.secret import BINDING_TYPE, decode
from poolfleet.plan.poolview import Cut
from poolfleet.plan.tokens import NoToken, Request, Token
from tests.unit.pool_fixtures import NOW, SETTINGS, Body, pool_body, server_body, state

KEY = Key(POOL.plural, "demo", "shop")


@dataclass
class FakeKube:
    """Takes what is applied, except that a kind in `answers` gets that error, or (None) stays as it is."""

    store: Store
    answers: dict[str, ApiError | None] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    version: int = 1000

    async def get(self, kind: Kind, namespace: str, name: str) -> Body:
        raise NotFound(name, 404)

    async def apply(self, obj: Body, *, manager: str, subresource: str | None = None) -> Body:
        kind = kind_of(obj)
        self.calls.append(f"apply {kind.kind}{'/' + subresource if subresource else ''}")
        old = self.store.get(kind.plural, "demo", obj["metadata"]["name"]) or {}
        answer = self.answers.get(kind.kind)
        if isinstance(answer, ApiError):
            raise answer
        if kind.kind in self.answers:
            return old
        self.version += 1
        new = {**old, **copy.deepcopy(obj)}
        metadata = {**old.get("metadata", {"uid": f"uid-{kind.kind}"}), **new["metadata"]}
        new["metadata"] = {**metadata, "resourceVersion": str(self.version)}
        self.store.put(kind.plural, new)
        return new

    async def json_patch(self, kind: Kind, namespace: str, name: str, operations: list[Body], *, manager: str) -> Body:
        test, add = operations
        assert (test["op"], test["path"], manager) == ("test", "/metadata/uid", "poolfleet")
        assert add["path"] == "/metadata/annotations/controller.kubernetes.io~1pod-deletion-cost"
        self.calls.append(f"patch {kind.kind} {name} {test['value']} {add['value']}")
        answer = self.answers.get(f"patch {name}")
        if isinstance(answer, ApiError):
            raise answer
        return {}

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> None:
        self.calls.append(f"delete {kind.kind} {name} {uid}")
        answer = self.answers.get(f"delete {kind.kind}")
        if isinstance(answer, ApiError):
            raise answer


class FakeAgents:
    def __init__(self) -> None:
        self.clients: dict[str, int] = {}

    def state(self, pod_uid: str) -> AgentState | None:
        if pod_uid not in self.clients:
            return None
        database = DatabaseState(loaded=5, held=1, samples=2, clients=self.clients[pod_uid])
        return state("c", pod_uid.removeprefix("uid-"), databases={"shop": database})


class FakeSecrets:
    async def get(self, namespace: str, name: str) -> Body | None:
        return {"data": {"username": "c2hvcA==", "password": "b25l"}} if name == "shop-app" else None


class FakeRecorder:
    def __init__(self) -> None:
        self.told: list[str] = []

    async def event(self, regarding: Body, event: Event) -> None:
        self.told.append(event.reason)


@dataclass
class House:
    kube: FakeKube
    context: Context
    now: list[float]

    async def reconcile(self) -> list[str]:
        self.kube.calls.clear()
        self.again = await pools.reconcile(self.context, KEY)
        return [call for call in self.kube.calls if call != "apply PgPool/status"]


@pytest.fixture
async def house() -> House:
    store = Store()
    store.put(POOL.plural, pool_body())
    store.put(SERVER.plural, server_body())
    kube, now = FakeKube(store), [NOW]
    context = Context(
        kube=cast(Kube, kube),
        store=store,
        queue=KeyedQueue[Key](),
        agents=cast(Agents, FakeAgents()),
        secrets=cast(Secrets, FakeSecrets()),
        nodes=Nodes(cast(Kube, kube), lambda: now[0]),
        discoveries=Discoveries(lambda: now[0]),
        roles=Roles(Discoveries(lambda: now[0]), lambda: now[0]),
        recorder=cast(Recorder, FakeRecorder()),
        settings=SETTINGS,
        clock=lambda: now[0],
        leader_since=0.0,
    )
    return House(kube, context, now)


def stalled(house: House) -> Any:
    pool = house.context.store.get(POOL.plural, "demo", "shop")
    assert pool is not None
    return next(c for c in pool["status"]["conditions"] if c["type"] == "Stalled")


async def test_it_comes_to_rest(house: House) -> None:
    assert await house.reconcile() == [
        "apply PgServer",
        "apply Secret",
        "apply Secret",
        "apply Service",
        "apply PodDisruptionBudget",
        "apply NetworkPolicy",
        "apply Deployment",
    ]
    assert await house.reconcile() == []
    assert await house.context.queue.get() == Key(SERVER.plural, "demo", "shop")


def edited(house: House, kind: Kind, **spec: Any) -> None:
    live = house.context.store.get(kind.plural, "demo", "shop")
    assert live is not None
    house.kube.version += 1
    metadata = {**live["metadata"], "resourceVersion": str(house.kube.version)}
    house.context.store.put(kind.plural, {**live, "metadata": metadata, "spec": {**live["spec"], **spec}})


async def test_an_apply_without_effect_is_not_repeated_until_something_changes(house: House) -> None:
    await house.reconcile()
    house.kube.answers["Service"] = None
    edited(house, SERVICE, type="NodePort")
    assert await house.reconcile() == ["apply Service"]
    assert await house.reconcile() == []
    edited(house, SERVICE, type="LoadBalancer")
    assert await house.reconcile() == ["apply Service"]
    assert await house.reconcile() == []


async def test_an_invalid_object_is_not_sent_again_until_it_is_another(house: House) -> None:
    house.kube.answers["Deployment"] = Invalid("no such field", 422)
    assert "apply Deployment" in await house.reconcile()
    assert "no such field" in stalled(house)["message"]
    assert await house.reconcile() == []
    assert stalled(house)["status"] == "True"
    del house.kube.answers["Deployment"]
    edited(house, POOL, replicas=3)
    assert "apply Deployment" in await house.reconcile()
    assert stalled(house)["status"] == "False"


async def test_a_value_that_the_api_server_cannot_read_is_the_users_fault(house: House) -> None:
    house.kube.answers["Deployment"] = Unavailable("failed to convert new object: quantities must match", 500)
    await house.reconcile()
    assert stalled(house)["status"] == "True"


async def test_what_is_forbidden_is_tried_again_in_30_seconds(house: House) -> None:
    house.kube.answers["Deployment"] = Forbidden("exceeded quota", 403)
    assert "apply Deployment" in await house.reconcile()
    assert house.again == 30.0
    house.now[0] += 29.0
    assert await house.reconcile() == []
    house.now[0] += 1.0
    assert await house.reconcile() == ["apply Deployment"]


@pytest.mark.parametrize("error", [Unavailable("timeout"), Unavailable("etcd", 500), Conflict("moved", 409)])
async def test_everything_else_is_raised_and_leaves_no_status(house: House, error: ApiError) -> None:
    house.kube.answers["Service"] = error
    with pytest.raises(type(error)):
        await house.reconcile()
    assert "apply PgPool/status" not in house.kube.calls


def stray_binding(house: House) -> None:
    owner = {"kind": "PgPool", "name": "shop", "uid": "uid-pool", "controller": True}
    metadata = {"name": "shop-binding-guest", "namespace": "demo", "uid": "u-guest", "ownerReferences": [owner]}
    house.context.store.put(SECRET.plural, {"kind": "Secret", "type": BINDING_TYPE, "metadata": metadata})


@pytest.mark.parametrize("error", [None, NotFound("gone", 404), Conflict("another", 409)])
async def test_a_stray_child_is_deleted_by_its_uid(house: House, error: ApiError | None) -> None:
    await house.reconcile()
    stray_binding(house)
    house.kube.answers["delete Secret"] = error
    assert await house.reconcile() == ["delete Secret shop-binding-guest u-guest"]


async def test_a_deletion_that_is_forbidden_is_told(house: House) -> None:
    await house.reconcile()
    stray_binding(house)
    house.kube.answers["delete Secret"] = Forbidden("no verb delete", 403)
    await house.reconcile()
    assert house.again == 30.0


async def test_a_pool_under_deletion_is_left_to_the_garbage_collector(house: House) -> None:
    pool = house.context.store.get(POOL.plural, "demo", "shop")
    assert pool is not None
    metadata = {**pool["metadata"], "resourceVersion": "2000", "deletionTimestamp": "2027-01-01T00:00:00Z"}
    house.context.store.put(POOL.plural, {**pool, "metadata": metadata})
    assert await house.reconcile() == []
    assert house.again is None


async def test_a_status_of_a_vanished_pool_is_nobodys_concern(house: House) -> None:
    house.kube.answers["PgPool"] = NotFound("gone", 404)
    await house.reconcile()
    assert house.context.store.get(DEPLOYMENT.plural, "demo", "shop") is not None


def a_pod(house: House, name: str, clients: int) -> None:
    cast(FakeAgents, house.context.agents).clients[f"uid-{name}"] = clients
    metadata = {"name": name, "namespace": "demo", "uid": f"uid-{name}", "labels": {names.LABEL_POOL: "shop"}}
    status = {"conditions": [{"type": "Ready", "status": "True"}]}
    house.context.store.put(POD.plural, {"metadata": metadata, "status": status})


async def test_before_a_scale_down_the_pods_get_what_they_cost(house: House) -> None:
    await house.reconcile()
    for name, clients in (("a", 3), ("b", 0), ("c", 8), ("d", 5)):
        a_pod(house, name, clients)
    house.kube.answers["patch d"] = Conflict("another pod by now", 409)
    edited(house, POOL, replicas=1)
    *patches, last = await house.reconcile()
    assert sorted(patches) == ["patch Pod a uid-a 3", "patch Pod c uid-c 8", "patch Pod d uid-d 5"]
    assert last == "apply Deployment"
    assert await house.reconcile() == []
    edited(house, POOL, replicas=4)
    assert await house.reconcile() == ["apply Secret", "apply Deployment"], "max_client_conn of a pod, and more pods"


async def test_without_their_costs_no_pods_are_given_up(house: House) -> None:
    await house.reconcile()
    a_pod(house, "a", 3)
    house.kube.answers["patch a"] = Unavailable("timeout")
    edited(house, POOL, replicas=1)
    with pytest.raises(Unavailable):
        await house.reconcile()
    assert "apply Deployment" not in house.kube.calls


async def test_clients_that_were_cut_off_are_told_once_and_after_the_status(house: House) -> None:
    await house.reconcile()
    await house.reconcile()
    told = cast(FakeRecorder, house.context.recorder).told
    told.clear()
    house.context.cuts.seen("demo", "shop", "uid-a", Cut("shop-a", 3))
    house.kube.answers["PgPool"] = Conflict("moved on", 409)
    edited(house, POOL, paused=True)
    with pytest.raises(Conflict):
        await house.reconcile()
    assert "ClientsCut" not in told
    del house.kube.answers["PgPool"]
    await house.reconcile()
    assert told.count("ClientsCut") == 1
    house.context.cuts.seen("demo", "shop", "uid-b", Cut("shop-b", 3))
    await house.reconcile()
    await house.reconcile()
    assert told.count("ClientsCut") == 2, "also where the status is as it was"


def measured(house: House) -> list[str]:
    return [line for line in metrics.render().decode().splitlines() if 'namespace="demo",pool="shop"' in line]


async def test_a_decision_is_carried_out_and_the_fleet_is_measured_until_it_is_gone(house: House) -> None:
    edited(house, POOL, autoscaling={"maxReplicas": 7})
    decision = Decision(5, "Stable", "ScaledUp", "4800 clients", "WithinLimits", "")
    context = replace(house.context, decided=lambda uid: decision if uid == "uid-pool" else None)
    a_pod(house, "a", 3)
    await pools.reconcile(context, KEY)
    deployment = context.store.get(DEPLOYMENT.plural, "demo", "shop")
    assert deployment is not None and deployment["spec"]["replicas"] == 5
    assert 'poolfleet_pool_replicas{kind="desired",namespace="demo",pool="shop"} 5.0' in measured(house)
    assert 'poolfleet_pool_clients{namespace="demo",pool="shop",state="active"} 3.0' in measured(house)
    pool = context.store.get(POOL.plural, "demo", "shop")
    assert pool is not None
    context.store.remove(POOL.plural, pool)
    context.cuts.seen("demo", "shop", "uid-late", Cut("shop-late", 3))
    await pools.reconcile(context, KEY)
    assert measured(house) == [] and context.cuts.of("demo", "shop") == ()


async def test_rotations_of_logins_stand_in_the_status(house: House) -> None:
    body = pool_body(users=[{"secretRef": {"name": "shop-app"}, "rotation": {}}])
    body["metadata"]["resourceVersion"] = "11"
    house.context.store.put(POOL.plural, body)
    await house.reconcile()
    pool = house.context.store.get(POOL.plural, "demo", "shop")
    assert pool is not None
    (line,) = pool["status"]["rotations"]
    assert (line["secret"], line["phase"]) == ("shop-app", "Blocked")  # clients are roles on the server here


async def test_a_token_gets_into_the_configuration_and_is_made_no_more_when_the_pool_is_gone(house: House) -> None:
    class NamesOnly(FakeSecrets):
        async def get(self, namespace: str, name: str) -> Body | None:
            return {"data": {"username": "cm9sZQ=="}} if name == "role" else await super().get(namespace, name)

    async def make(request: Request) -> Token:
        made.append(request)
        if fails:
            raise NoToken("why")
        return Token(f"token-for-{request.role}", NOW, NOW + 900)

    made: list[Request] = []
    fails: list[str] = []
    tokens = Tokens(make, clock=lambda: NOW)
    context = replace(house.context, tokens=tokens, secrets=cast(Secrets, NamesOnly()))
    provider = {"exec": {"name": "vend", "roles": ["role"]}}
    server = {"host": "postgres", "maxConnections": 100, "tokenProvider": provider}
    edited(house, POOL, server=server, databases=[{"name": "shop", "credentialsSecretRef": {"name": "role"}}])
    await pools.reconcile(context, KEY)
    ini = decode(context.store.get(SECRET.plural, "demo", "shop-config"))[names.INI_FILE].decode()
    assert "user='role' password='token-for-role'" in ini
    assert [(request.server, request.host, request.role) for request in made] == [("shop", "postgres.demo.svc", "role")]

    fails.append("from now on")
    restarted = Tokens(make, clock=lambda: NOW)
    house.kube.calls.clear()
    await pools.reconcile(replace(context, tokens=restarted), KEY)
    assert (stalled(house)["status"], stalled(house)["reason"]) == ("True", "TokenUnavailable")
    assert [call for call in house.kube.calls if "Secret" in call or "Deployment" in call] == []
    await restarted.close()

    context.store.remove(POOL.plural, context.store.get(POOL.plural, "demo", "shop") or {})
    await pools.reconcile(context, KEY)
    assert not tokens._entries
