"""The pool reconciler against a real API server: what it makes, repairs, leaves alone, and that it comes to rest."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from poolfleet.api import names
from poolfleet.api.conditions import Reason
from poolfleet.api.wire import AgentState
from poolfleet.controller import pools
from poolfleet.controller.agents import Agents
from poolfleet.controller.context import Context, Key
from poolfleet.controller.discoveries import Discoveries
from poolfleet.controller.nodes import Nodes
from poolfleet.controller.queue import KeyedQueue
from poolfleet.controller.roles import Roles
from poolfleet.controller.secrets import Secrets
from poolfleet.controller.store import Store
from poolfleet.kube.client import Call, Kube
from poolfleet.kube.errors import Conflict
from poolfleet.kube.events import Recorder
from poolfleet.kube.kinds import CHILDREN, DEPLOYMENT, NETWORK_POLICY, PDB, POD, POOL, SECRET, SERVER, SERVICE, Kind
from poolfleet.plan.model import Event, Settings
from poolfleet.plan.objects.secret import decode
from tests.certificates import Authority
from tests.integration.conftest import ApiServer

Body = dict[str, Any]

SETTINGS = Settings(agent_image="example/operator:1", pgbouncer_image="example/pgbouncer:1")


class NoAgents:
    """No pod runs here."""

    def state(self, pod_uid: str) -> AgentState | None:
        return None


@dataclass
class Listener:
    """Keeps events instead of writing them."""

    events: list[Event] = field(default_factory=list)

    async def event(self, regarding: Body, event: Event) -> None:
        self.events.append(event)


@dataclass
class House:
    """One namespace with a PgPool `shop`, and a reconciler that sees it through lists instead of watches."""

    api: ApiServer
    kube: Kube
    namespace: str
    listener: Listener = field(default_factory=Listener)
    store: Store = field(default_factory=Store)
    writes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        def count(call: Call) -> None:
            if call.verb not in ("get", "list"):
                self.writes.append(f"{call.verb} {call.kind.plural}{call.subresource and '/' + call.subresource}")

        def take(kind: Kind, body: Body) -> None:
            self.store.put(kind.plural, body)

        self.kube = self.kube.watched(count, take)
        self.context = Context(
            kube=self.kube,
            store=self.store,
            queue=KeyedQueue[Key](),
            agents=cast(Agents, NoAgents()),
            secrets=Secrets(self.kube, self.store, lambda namespace, name: None),
            nodes=Nodes(self.kube, time.time),
            discoveries=Discoveries(time.time),
            roles=Roles(Discoveries(time.time), time.time),
            recorder=cast(Recorder, self.listener),
            settings=SETTINGS,
            clock=time.time,
            leader_since=0.0,
        )

    async def see(self) -> None:
        """Fill the store with what a watch would have shown by now."""
        selectors = {
            SECRET: f"{names.LABEL_WATCH}=true",
            **dict.fromkeys((DEPLOYMENT, SERVICE, PDB, NETWORK_POLICY, POD), f"{names.LABEL_MANAGED_BY}=poolfleet"),
        }
        for kind in (POOL, SERVER, *CHILDREN, POD):
            there = await self.kube.list(kind, self.namespace, selectors.get(kind))
            for body in self.store.list(kind.plural, self.namespace):
                if body["metadata"]["uid"] not in {b["metadata"]["uid"] for b in there}:
                    self.store.remove(kind.plural, body)
            for body in there:
                self.store.put(kind.plural, body)

    async def reconcile(self) -> list[str]:
        """One reconciliation; returns the writes that it sent."""
        await self.see()
        self.writes.clear()
        await pools.reconcile(self.context, Key(POOL.plural, self.namespace, "shop"))
        return list(self.writes)

    async def rest(self) -> None:
        """Reconcile until nothing is written; fails if that does not come soon."""
        for _ in range(4):
            if not await self.reconcile():
                return
        raise AssertionError(f"still writing: {self.writes}")

    async def create(self, **spec: Any) -> None:
        """Make the PgPool with its Secret, and let it come to rest with a server that has 100 connections."""
        await self.secret("shop-app", username="shop", password="one")
        await self.pool(**spec)
        await self.reconcile()
        await self.discover()
        await self.rest()

    async def secret(self, name: str, **data: str) -> None:
        await self.apply("v1", "Secret", name, stringData=data)

    async def pool(self, **spec: Any) -> None:
        base = {
            "server": {"host": "postgres", "maxConnections": 100},
            "databases": [{"name": "shop"}],
            "users": [{"secretRef": {"name": "shop-app"}}],
        }
        wanted = {key: value for key, value in {**base, **spec}.items() if value is not None}
        await self.apply(names.API_VERSION, "PgPool", "shop", spec=wanted)

    async def discover(self) -> None:
        status = {"maxConnections": 100, "budget": 87}
        await self.apply(names.API_VERSION, "PgServer", "shop", subresource="status", status=status)

    async def apply(
        self, api_version: str, kind: str, name: str, subresource: str | None = None, manager: str = "user", **body: Any
    ) -> None:
        metadata = {"name": name, "namespace": self.namespace, **body.pop("metadata", {})}
        obj = {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}
        await self.kube.apply(obj, manager=manager, subresource=subresource)

    async def get(self, kind: Kind, name: str = "shop") -> Body:
        return await self.kube.get(kind, self.namespace, name)

    async def edit(self, kind: Kind, *operations: Body, name: str = "shop") -> None:
        """What `kubectl edit` does."""
        await self.kube.json_patch(kind, self.namespace, name, list(operations), manager="kubectl-edit")

    async def condition(self, wanted: str) -> Body:
        pool = await self.get(POOL)
        found: list[Body] = pool["status"]["conditions"]
        return next(condition for condition in found if condition["type"] == wanted)

    async def exists(self, kind: Kind, name: str = "shop") -> bool:
        return name in {body["metadata"]["name"] for body in await self.kube.list(kind, self.namespace)}


@pytest.fixture(scope="module")
def served(apiserver: ApiServer) -> ApiServer:
    apiserver.install_crds()
    return apiserver


@pytest.fixture
async def house(served: ApiServer) -> AsyncIterator[House]:
    async with Kube.connect(str(served.kubeconfig)) as kube:
        yield House(served, kube, served.namespace())


def replace(path: str, value: Any) -> Body:
    return {"op": "replace", "path": path, "value": value}


async def test_everything_is_made_and_then_nothing_is_written(house: House) -> None:
    await house.create()
    for kind in (DEPLOYMENT, SERVICE, PDB, NETWORK_POLICY, SERVER):
        owner = (await house.get(kind))["metadata"]["ownerReferences"][0]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("PgPool", "shop", True)
    assert (await house.get(SECRET, "shop-binding"))["type"] == "servicebinding.io/postgresql"
    status = (await house.get(POOL))["status"]
    assert status["observedGeneration"] == 1
    assert status["binding"] == {"name": "shop-binding"}
    before = (await house.get(POOL))["metadata"]["resourceVersion"]
    assert await house.reconcile() == []
    assert (await house.get(POOL))["metadata"]["resourceVersion"] == before
    # Nor after a restart of the operator, which has seen nothing of its own.
    other = House(house.api, house.kube, house.namespace)
    assert await other.reconcile() == []


async def test_the_server_is_told_to_look_again(house: House) -> None:
    await house.create()
    assert await house.context.queue.get() == Key(SERVER.plural, house.namespace, "shop")


EDITS: dict[str, tuple[Kind, Body, Callable[[Body], Any]]] = {
    "replicas": (DEPLOYMENT, replace("/spec/replicas", 7), lambda o: o["spec"]["replicas"]),
    "image": (
        DEPLOYMENT,
        replace("/spec/template/spec/containers/0/image", "evil:1"),
        lambda o: o["spec"]["template"]["spec"]["containers"][0]["image"],
    ),
    "no agent": (
        DEPLOYMENT,
        {"op": "remove", "path": "/spec/template/spec/initContainers"},
        lambda o: [c["name"] for c in o["spec"]["template"]["spec"].get("initContainers", [])],
    ),
    "port": (SERVICE, replace("/spec/ports/0/port", 5432), lambda o: [p["port"] for p in o["spec"]["ports"]]),
    "selector": (SERVICE, replace("/spec/selector", {"app": "other"}), lambda o: o["spec"]["selector"]),
    "budget": (PDB, replace("/spec/maxUnavailable", 5), lambda o: o["spec"]["maxUnavailable"]),
    "policy": (NETWORK_POLICY, replace("/spec/ingress", []), lambda o: len(o["spec"].get("ingress", []))),
    "no labels": (
        DEPLOYMENT,
        {"op": "remove", "path": "/metadata/labels"},
        lambda o: o["metadata"].get("labels", {}).get(names.LABEL_POOL),
    ),
    "no label": (
        SERVICE,
        {"op": "remove", "path": "/metadata/labels/app.kubernetes.io~1managed-by"},
        lambda o: o["metadata"]["labels"].get(names.LABEL_MANAGED_BY),
    ),
    "server": (SERVER, replace("/spec/maxConnections", 500), lambda o: o["spec"]["maxConnections"]),
}


@pytest.mark.parametrize("name", EDITS)
async def test_an_edit_is_undone(house: House, name: str) -> None:
    kind, operation, value = EDITS[name]
    await house.create()
    before = value(await house.get(kind))
    await house.edit(kind, operation)
    assert value(await house.get(kind)) != before
    await house.rest()
    assert value(await house.get(kind)) == before


@pytest.mark.parametrize("kind", [DEPLOYMENT, SERVICE, PDB, NETWORK_POLICY], ids=lambda kind: kind.kind)
async def test_a_deleted_child_is_made_again(house: House, kind: Kind) -> None:
    await house.create()
    await house.kube.delete(kind, house.namespace, "shop")
    await house.rest()
    assert await house.exists(kind)


async def test_deleted_secrets_come_back_as_they_were(house: House) -> None:
    await house.create()
    before = {name: decode(await house.get(SECRET, name)) for name in ("shop-config", "shop-binding")}
    for name in before:
        await house.kube.delete(SECRET, house.namespace, name)
    await house.rest()
    assert {name: decode(await house.get(SECRET, name)) for name in before} == before


async def test_what_others_add_stays(house: House) -> None:
    await house.create()
    template: Body = {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "2027-01-01T00:00:00Z"}}}
    metadata = {"annotations": {"team": "a"}}
    await house.apply("apps/v1", "Deployment", "shop", metadata=metadata, spec={"template": template})
    await house.rest()
    after = await house.get(DEPLOYMENT)
    assert after["metadata"]["annotations"]["team"] == "a"
    assert after["spec"]["template"]["metadata"]["annotations"].items() >= template["metadata"]["annotations"].items()


async def test_a_field_that_is_not_wished_any_more_goes(house: House) -> None:
    await house.create(service={"trafficDistribution": "PreferClose"})
    assert (await house.get(SERVICE))["spec"]["trafficDistribution"] == "PreferClose"
    await house.pool()
    await house.rest()
    assert "trafficDistribution" not in (await house.get(SERVICE))["spec"]


async def test_a_users_template_is_one_write_and_no_two_rollouts(house: House) -> None:
    await house.create()
    template = {
        "spec": {
            "nodeSelector": {"disk": "ssd"},
            "hostNetwork": True,
            "containers": [{"name": "exporter", "image": "exporter:1"}],
        }
    }
    await house.pool(template=template)
    writes = await house.reconcile()
    assert writes.count("patch deployments") == 1
    await house.rest()
    deployment = await house.get(DEPLOYMENT)
    spec = deployment["spec"]["template"]["spec"]
    assert deployment["metadata"]["generation"] == 2
    assert spec["nodeSelector"] == {"disk": "ssd"}
    assert [container["name"] for container in spec["containers"]] == ["pgbouncer", "exporter"]
    assert "hostNetwork" not in spec


@pytest.mark.parametrize(
    "spec",
    [
        {"noSuchField": 1},
        {"containers": [{"name": "exporter"}]},
        {"containers": [{"name": "pgbouncer", "resources": {"limits": {"memory": "lots"}}}]},
    ],
    ids=["unknown field", "no image", "no quantity"],
)
async def test_a_template_that_the_api_server_refuses(house: House, spec: Body) -> None:
    await house.create()
    before = await house.get(DEPLOYMENT)
    await house.pool(template={"spec": spec})
    assert "patch deployments" in await house.reconcile()
    stalled = await house.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", Reason.INVALID_TEMPLATE)
    assert 'The API server refuses Deployment "shop"' in stalled["message"]
    assert [event.reason for event in house.listener.events][-1] == Reason.INVALID_TEMPLATE
    assert (await house.get(DEPLOYMENT))["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert await house.reconcile() == [], "the same request would fail for ever"
    await house.pool()
    await house.rest()
    assert (await house.condition("Stalled"))["status"] == "False"


async def test_a_service_that_the_api_server_refuses_is_the_specs_fault(house: House) -> None:
    await house.create()
    ranges = {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/99"]}
    await house.pool(service=ranges)
    await house.reconcile()
    stalled = await house.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", Reason.INVALID_SPEC)


async def test_a_quota_is_waited_for_in_its_own_words(house: House) -> None:
    await house.apply("v1", "Secret", "shop-app", stringData={"username": "shop", "password": "one"})
    path = f"/api/v1/namespaces/{house.namespace}/resourcequotas/none"
    hard = {"count/networkpolicies.networking.k8s.io": "0"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": hard}}
    assert house.api.apply(path, quota)[0] < 300
    used = {**quota, "status": {"hard": hard, "used": hard}}
    assert house.api.apply(f"{path}/status", used)[0] < 300

    def counted() -> bool:
        peers = {"podSelector": {}, "policyTypes": ["Ingress"]}
        kind = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "probe"},
            "spec": peers,
        }
        url = f"/apis/networking.k8s.io/v1/namespaces/{house.namespace}/networkpolicies?dryRun=All"
        return house.api.request("POST", url, kind)[0] == 403

    house.api.wait(counted, "the quota is in force")
    await house.pool()
    await house.reconcile()
    reconciling = await house.condition("Reconciling")
    assert (reconciling["status"], reconciling["reason"]) == ("True", Reason.REPLICA_FAILURE)
    assert "exceeded quota" in reconciling["message"]
    assert await house.exists(SERVICE), "the other children are made"
    assert house.api.request("DELETE", path)[0] < 300


async def test_a_stranger_of_a_childs_name_is_left_alone(house: House) -> None:
    ports = [{"name": "web", "port": 80, "protocol": "TCP"}]
    await house.apply("v1", "Service", "shop", spec={"ports": ports})
    before = await house.get(SERVICE)
    await house.secret("shop-app", username="shop", password="one")
    await house.pool()
    await house.reconcile()
    stalled = await house.condition("Stalled")
    assert stalled["reason"] == Reason.RESOURCE_CONFLICT
    assert 'Service "shop"' in stalled["message"]
    assert (await house.get(SERVICE))["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert not await house.exists(DEPLOYMENT)
    await house.kube.delete(SERVICE, house.namespace, "shop")
    await house.reconcile()
    await house.discover()
    await house.rest()
    assert await house.exists(DEPLOYMENT)


async def test_a_password_is_one_write_per_secret_and_no_rollout(house: House) -> None:
    await house.create()
    generation = (await house.get(DEPLOYMENT))["metadata"]["generation"]
    await house.apply(
        "v1",
        "Secret",
        "shop-app",
        metadata={"labels": {names.LABEL_WATCH: "true"}},
        stringData={"username": "shop", "password": "two"},
    )
    writes = await house.reconcile()
    assert writes.count("patch secrets") == 2
    assert "patch deployments" not in writes
    assert b'"two"' in decode(await house.get(SECRET, "shop-config"))["userlist.txt"]
    assert (await house.get(DEPLOYMENT))["metadata"]["generation"] == generation


async def test_what_belonged_to_a_removed_user_goes(house: House) -> None:
    await house.secret("guest", username="guest", password="welcome")
    await house.create(users=[{"secretRef": {"name": "shop-app"}}, {"secretRef": {"name": "guest"}}])
    assert await house.exists(SECRET, "shop-binding-guest")
    await house.pool()
    await house.rest()
    assert not await house.exists(SECRET, "shop-binding-guest")
    userlist = decode(await house.get(SECRET, "shop-config"))["userlist.txt"]
    assert b'"guest"' in userlist
    assert b"welcome" not in userlist


async def test_the_network_policy_can_be_switched_off_and_on(house: House) -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"team": "a"}}}, {"podSelector": {}}]
    await house.create(networkPolicy={"enabled": True, "from": peers})
    await house.pool(networkPolicy={"enabled": False})
    await house.rest()
    assert not await house.exists(NETWORK_POLICY)
    await house.pool(networkPolicy={"enabled": True})
    await house.rest()
    assert await house.exists(NETWORK_POLICY)


async def test_a_missing_secret_stalls_and_mends_itself(house: House) -> None:
    await house.pool()
    await house.reconcile()
    stalled = await house.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", Reason.SECRET_NOT_FOUND)
    assert not await house.exists(DEPLOYMENT)
    await house.apply(
        "v1",
        "Secret",
        "shop-app",
        metadata={"labels": {names.LABEL_WATCH: "true"}},
        stringData={"username": "shop", "password": "one"},
    )
    await house.discover()
    await house.rest()
    assert (await house.condition("Stalled"))["status"] == "False"
    assert await house.exists(DEPLOYMENT)


async def test_a_paused_pool_is_left_alone(house: House) -> None:
    await house.create()
    await house.pool(paused=True)
    await house.kube.delete(SERVICE, house.namespace, "shop")
    await house.rest()
    assert not await house.exists(SERVICE)
    assert (await house.condition("Reconciling"))["reason"] == Reason.PAUSED


async def test_a_deleted_pool_needs_nothing(house: House) -> None:
    await house.create()
    await house.kube.delete(POOL, house.namespace, "shop")
    assert await house.reconcile() == []


async def test_a_status_is_never_written_to_a_namesake(house: House) -> None:
    await house.create()
    await house.pool(replicas=3)
    await house.see()
    await house.kube.delete(POOL, house.namespace, "shop")
    unseen = House(house.api, house.kube, house.namespace)
    await unseen.pool()
    key = Key(POOL.plural, house.namespace, "shop")
    with pytest.raises(Conflict):
        await pools.reconcile(house.context, key)
    assert "status" not in await house.get(POOL)


class Elsewhere:
    """PgServer `db` in another namespace, as the house's store sees it."""

    def __init__(self, house: House) -> None:
        self.house, self.namespace = house, house.api.namespace()

    async def allow(self, whom: str) -> None:
        spec = {
            "host": "postgres",
            "maxConnections": 100,
            "tls": {"mode": "verify-full", "caSecretRef": {"name": "ca"}},
            "allowedNamespaces": {"from": whom},
        }
        await self.apply(names.API_VERSION, "PgServer", "db", spec=spec)

    async def say(self, **status: Any) -> None:
        await self.apply(names.API_VERSION, "PgServer", "db", subresource="status", status=status)

    async def apply(self, api_version: str, kind: str, name: str, subresource: str | None = None, **body: Any) -> None:
        metadata = {"name": name, "namespace": self.namespace}
        obj = {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}
        seen = await self.house.kube.apply(obj, manager="user", subresource=subresource)
        if kind == "PgServer":
            self.house.store.put(SERVER.plural, seen)


async def test_a_pool_of_another_namespace_has_the_servers_ca_and_full_name(house: House) -> None:
    server = Elsewhere(house)
    await server.allow("All")
    await server.say(maxConnections=100, budget=87)
    there, here = (Authority(name, time.time()).certificate for name in ("there", "here"))
    await server.apply("v1", "Secret", "ca", stringData={"ca.crt": there.decode()})
    await house.secret("ca", **{"ca.crt": here.decode()})
    await house.secret("shop-app", username="shop", password="one")
    await house.pool(server=None, serverRef={"name": "db", "namespace": server.namespace})
    await house.rest()
    files = decode(await house.get(SECRET, "shop-config"))
    assert files["server-ca.crt"] == there
    assert f"host='postgres.{server.namespace}.svc'".encode() in files["pgbouncer.ini"]
    assert await house.context.queue.get() == Key(SERVER.plural, server.namespace, "db")
    # The permission is taken back: the fleet stays as it is, and the status says what to do.
    pool = await house.get(POOL)
    line = {"namespace": house.namespace, "name": "shop", "uid": pool["metadata"]["uid"], "budget": 29, "granted": 9}
    await server.say(maxConnections=100, budget=87, pools=[line])
    await server.allow("Same")
    before = {kind: (await house.get(kind))["metadata"]["resourceVersion"] for kind in (DEPLOYMENT, SERVICE)}
    await house.pool(server=None, serverRef={"name": "db", "namespace": server.namespace}, replicas=9)
    await house.rest()
    stalled = await house.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", Reason.NAMESPACE_NOT_ALLOWED)
    assert (await house.get(POOL))["status"]["connections"]["budget"] == 29
    assert {kind: (await house.get(kind))["metadata"]["resourceVersion"] for kind in before} == before


async def test_a_stranger_gets_nothing_and_is_told_nothing(house: House) -> None:
    server = Elsewhere(house)
    await server.allow("Same")
    secret = {"type": "Stalled", "status": "True", "reason": "SecretNotFound", "message": "db-7.internal is down"}
    conditions = [{**secret, "lastTransitionTime": "2027-01-01T00:00:00Z"}]
    await server.say(maxConnections=100, budget=87, conditions=conditions)
    ca = Authority("of the server", time.time()).certificate.decode()
    await server.apply("v1", "Secret", "ca", stringData={"ca.crt": ca})
    await house.secret("shop-app", username="shop", password="one")
    await house.pool(server=None, serverRef={"name": "db", "namespace": server.namespace})
    await house.rest()
    assert (await house.condition("Stalled"))["reason"] == Reason.NAMESPACE_NOT_ALLOWED
    assert "db-7" not in str((await house.get(POOL))["status"])
    for kind in CHILDREN:
        assert not await house.kube.list(kind, house.namespace, names.LABEL_POOL)
    # Allowed: everything is made at once.
    await server.allow("All")
    await server.say(maxConnections=100, budget=87)
    await house.rest()
    assert await house.exists(DEPLOYMENT)
