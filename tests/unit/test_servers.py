"""The server reconciler at its edges: what it looks at, in which order it writes and tells, and what it lets go."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from poolfleet.api import names
from poolfleet.api.wire import AgentState, DatabaseState, verify
from poolfleet.controller import servers
from poolfleet.controller.agents import Agents
from poolfleet.controller.context import Context, Key
from poolfleet.controller.discoveries import Discoveries
from poolfleet.controller.nodes import OUT_OF_SERVICE, Nodes
from poolfleet.controller.queue import KeyedQueue
from poolfleet.controller.roles import Roles
from poolfleet.controller.secrets import Secrets
from poolfleet.controller.store import Store
from poolfleet.controller.worlds import observe
from poolfleet.kube.client import Kube
from poolfleet.kube.errors import Conflict, Forbidden, NotFound
from poolfleet.kube.events import Recorder
from poolfleet.kube.kinds import NODE, POD, POOL, SECRET, SERVER, Kind
from poolfleet.plan.world import Ledger, World
from tests.unit.pool_fixtures import KEY, SETTINGS, Body, pool_body, settled

NOW = 1_800_000_000.0
SERVER_KEY = Key(SERVER.plural, "demo", "shop")
TERMINATED = {"terminated": {"exitCode": 0, "reason": "Completed"}}


@dataclass
class FakeKube:
    """Keeps what is written, in order; `nodes` are those that exist."""

    store: Store
    calls: list[tuple[str, Any]] = field(default_factory=list)
    nodes: dict[str, Body] = field(default_factory=dict)
    patches: list[list[Body]] = field(default_factory=list)
    conflict: bool = False
    forbidden: bool = False
    version: int = 1000
    slow: asyncio.Event | None = None  # annotations wait for it
    refused: bool = False  # an annotation is another one by now

    async def get(self, kind: Kind, namespace: str, name: str) -> Body:
        assert kind == NODE
        self.calls.append(("get", name))
        if self.forbidden:
            raise Forbidden("no", 403)
        if name not in self.nodes:
            raise NotFound(name, 404)
        return self.nodes[name]

    async def apply(self, obj: Body, *, manager: str, subresource: str | None = None) -> Body:
        self.calls.append(("ledger", obj["status"]))
        if self.conflict:
            raise Conflict("changed", 409)
        old = self.store.get(SERVER.plural, "demo", "shop") or {}
        self.version += 1
        new = {**old, "status": obj["status"], "metadata": {**old["metadata"], "resourceVersion": str(self.version)}}
        self.store.put(SERVER.plural, new)
        return new

    async def json_patch(self, kind: Kind, namespace: str, name: str, patch: list[Body], *, manager: str) -> Body:
        self.calls.append(("annotation", (name, patch[-1]["value"])))
        self.patches.append(patch)
        if self.slow is not None:
            await self.slow.wait()
        if self.refused:
            raise Conflict("changed", 409)
        return {}


@dataclass
class FakeAgents:
    """Agents that say what `states` holds; `told` is what was POSTed."""

    states: dict[str, AgentState] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    alive: frozenset[str] = frozenset()

    def follow(self, bodies: Iterable[Body]) -> None:
        pass

    def state(self, uid: str) -> AgentState | None:
        return self.states.get(uid)

    def answering(self, uids: Iterable[str]) -> frozenset[str]:
        return self.alive & frozenset(uids)

    def tell(self, uid: str, text: str) -> None:
        self.calls.append(("post", (uid, text)))

    def forget(self, uids: Iterable[str]) -> None:
        self.calls.append(("forget", sorted(uids)))

    def drop(self, uid: str) -> None:
        self.calls.append(("drop", uid))


class FakeSecrets:
    async def get(self, namespace: str, name: str) -> Body | None:
        return None


class FakeRecorder:
    async def event(self, regarding: Body, event: object) -> None:
        return None


def pod_body(uid: str, node: str = "node-1", deleting: bool = False, state: Body | None = None) -> Body:
    metadata: Body = {
        "uid": uid,
        "name": f"shop-{uid}",
        "namespace": "demo",
        "resourceVersion": "5",
        "creationTimestamp": "2027-01-01T00:00:00Z",
        "labels": {names.LABEL_POOL: "shop", names.LABEL_MANAGED_BY: names.MANAGED_BY},
        "annotations": {names.SERVER_UID: "uid-server"},
    }
    if deleting:
        metadata["deletionTimestamp"] = "2027-01-01T00:01:00Z"
    statuses = [{"name": name, "state": state or {"running": {}}} for name in ("pgbouncer", "agent")]
    phase = "Succeeded" if state == TERMINATED else "Running"
    status = {"phase": phase, "podIP": "10.0.0.7", "containerStatuses": statuses}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": status}


@dataclass
class House:
    kube: FakeKube
    agents: FakeAgents
    context: Context
    now: list[float]

    @property
    def store(self) -> Store:
        return self.context.store

    def status(self) -> Body:
        body = self.store.get(SERVER.plural, "demo", "shop")
        assert body is not None
        found: Body = body["status"]
        return found

    async def step(self, seconds: float = 1.0) -> float | None:
        self.now[0] += seconds
        return await servers.reconcile(self.context, SERVER_KEY)

    def remove(self, uid: str) -> None:
        self.store.remove(POD.plural, pod_body(uid))


@pytest.fixture
def house() -> House:
    store = Store()
    store.put(POOL.plural, pool_body())
    store.put(SECRET.plural, settled().children["Secret", "shop-config"])
    metadata: Body = {
        "name": "shop",
        "namespace": "demo",
        "uid": "uid-server",
        "resourceVersion": "20",
        "generation": 1,
    }
    metadata["creationTimestamp"] = "2027-01-01T00:00:00Z"
    store.put(SERVER.plural, {"metadata": metadata, "spec": {"host": "postgres", "maxConnections": 100}})
    now = [NOW]
    kube, agents = FakeKube(store), FakeAgents()
    kube.nodes["node-1"] = {"spec": {}}
    agents.calls = kube.calls
    discoveries = Discoveries(lambda: now[0])
    context = Context(
        kube=cast(Kube, kube),
        store=store,
        queue=KeyedQueue[Key](),
        agents=cast(Agents, agents),
        secrets=cast(Secrets, FakeSecrets()),
        nodes=Nodes(cast(Kube, kube), lambda: now[0]),
        discoveries=discoveries,
        roles=Roles(discoveries, lambda: now[0]),
        recorder=cast(Recorder, FakeRecorder()),
        settings=SETTINGS,
        clock=lambda: now[0],
        leader_since=0.0,
    )
    return House(kube, agents, context, now)


def state(uid: str, rev: int, grant: int) -> AgentState:
    return AgentState("uid-server", uid, 1, rev, "c", "", "p1", {"shop": DatabaseState(grant, grant, 2)})


async def test_the_ledger_is_written_before_the_annotation_and_that_before_the_post(house: House) -> None:
    house.store.put(POD.plural, pod_body("a"))
    await house.step()
    assert [what for what, _ in house.kube.calls] == ["ledger", "annotation", "post"]
    [_, annotation, post] = [told for _, told in house.kube.calls]
    assert annotation[1] == post[1]
    message = verify(post[1], bytes.fromhex(KEY))
    assert (message["pod"], message["grant"], message["rev"]) == ("a", {"shop": 1}, 1)


async def test_after_a_conflict_nobody_is_told_and_what_was_seen_is_dropped(house: House) -> None:
    house.store.put(POD.plural, pod_body("a"))
    house.kube.conflict = True
    with pytest.raises(Conflict):
        await house.step()
    assert [what for what, _ in house.kube.calls] == ["ledger", "forget"]


async def test_a_vanished_pod_counts_while_it_answers_and_then_as_a_ghost_for_the_grace(house: House) -> None:
    house.store.put(POD.plural, pod_body("a"))
    await house.step()
    house.remove("a")
    house.agents.alive = frozenset({"a"})
    await house.step(seconds=500)
    assert (house.status()["granted"], house.status()["ghosts"]) == (1, 0)
    house.agents.alive = frozenset()
    await house.step()
    assert (house.status()["granted"], house.status()["ghosts"]) == (1, 1)
    await house.step(seconds=500)
    assert (house.status()["ghosts"], house.status()["granted"]) == (0, 0)
    assert ("drop", "a") in house.kube.calls


@pytest.mark.parametrize(
    ("node", "ghosts"),
    [
        (None, 0),  # deleted
        ({"spec": {"taints": [{"key": OUT_OF_SERVICE}]}}, 0),
        ({"spec": {"taints": [{"key": "node.kubernetes.io/unreachable"}]}}, 1),  # who knows what runs there
    ],
)
async def test_a_pod_on_a_node_that_is_off_is_gone(house: House, node: Body | None, ghosts: int) -> None:
    house.store.put(POD.plural, pod_body("a"))
    await house.step()
    house.kube.nodes = {"node-1": node} if node else {}
    house.remove("a")
    await house.step()
    await house.step()
    assert house.status()["ghosts"] == ghosts


async def test_a_pod_object_that_stays_behind_on_a_node_that_is_off_is_no_lost_ledger(house: House) -> None:
    """It was granted something and has no entry any more; only the taint tells it from a pod that was forgotten."""
    house.store.put(POD.plural, pod_body("a"))
    await house.step()
    [(_, text)] = [told for what, told in house.kube.calls if what == "annotation"]
    left = pod_body("a", deleting=True)
    left["metadata"] |= {"resourceVersion": "6", "annotations": {names.SERVER_UID: "uid-server", names.DIRECTIVE: text}}
    house.store.put(POD.plural, left)
    house.kube.nodes = {"node-1": {"spec": {"taints": [{"key": OUT_OF_SERVICE}]}}}
    for _ in range(3):
        await house.step()
    assert (house.status()["granted"], house.status()["ledger"]["revision"]) == (0, 1)


async def test_without_the_right_to_read_nodes_nothing_is_concluded(house: House) -> None:
    house.store.put(POD.plural, pod_body("a"))
    await house.step()
    house.kube.forbidden = True
    house.remove("a")
    await house.step()
    assert house.status()["ghosts"] == 1


async def test_nodes_are_not_asked_about_pods_that_are_well(house: House) -> None:
    house.store.put(POD.plural, pod_body("a"))
    await house.step()
    house.agents.states["a"] = state("a", 1, 1)
    await house.step()
    assert not [call for call in house.kube.calls if call[0] == "get"]


async def test_pods_of_a_deleted_pool_count_until_they_end(house: House) -> None:
    house.store.put(POD.plural, pod_body("a"))
    await house.step()
    house.store.remove(POOL.plural, pool_body())
    draining = pod_body("a", deleting=True)
    draining["metadata"]["resourceVersion"] = "6"
    house.store.put(POD.plural, draining)
    await house.step()
    assert (house.status()["granted"], house.status()["ghosts"], house.status()["pools"]) == (1, 0, [])
    ended = pod_body("a", deleting=True, state=TERMINATED)
    ended["metadata"]["resourceVersion"] = "7"
    house.store.put(POD.plural, ended)
    await house.step()
    assert house.status()["granted"] == 0


async def test_the_younger_of_two_pgservers_for_one_server_gets_nothing(house: House) -> None:
    metadata = {"name": "first", "namespace": "demo", "uid": "uid-first", "creationTimestamp": "2026-01-01T00:00:00Z"}
    spec = {"host": "postgres.demo.svc", "maxConnections": 100}
    house.store.put(SERVER.plural, {"metadata": {**metadata, "resourceVersion": "1"}, "spec": spec})
    house.store.put(POD.plural, pod_body("a"))
    await house.step()
    stalled = next(c for c in house.status()["conditions"] if c["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "SharedServer")
    assert (house.status()["ledger"]["entries"], house.status()["budget"]) == ([], 0)


async def test_what_a_younger_one_has_given_out_is_not_given_out_again(house: House) -> None:
    entry = {"pod": "x", "podName": "x", "pool": "demo/y", "database": "d", "bound": 80, "grant": 80, "revision": 1}
    ledger = {"revision": 1, "entries": [{**entry, "since": "2027-01-01T00:00:00Z"}], "resting": []}
    metadata = {"name": "late", "namespace": "demo", "uid": "uid-late", "creationTimestamp": "2028-01-01T00:00:00Z"}
    spec = {"host": "postgres.demo.svc", "maxConnections": 100}
    body = {"metadata": {**metadata, "resourceVersion": "1"}, "spec": spec, "status": {"ledger": ledger}}
    house.store.put(SERVER.plural, body)
    house.store.put(POD.plural, pod_body("a"))
    await house.step()
    house.agents.states["a"] = state("a", 1, 1)
    for _ in range(5):
        await house.step()
    assert house.status()["granted"] == 87 - 80 - 1  # its reserve stays


# Telling a pod


async def told(house: House) -> tuple[Key, World, Ledger]:
    """A world in which pod a has its grant of one connection; what is planned of it next can be told."""
    house.store.put(POD.plural, pod_body("a"))
    await house.step()
    [(_, text)] = [call for what, call in house.kube.calls if what == "annotation"]
    annotated = pod_body("a")
    annotated["metadata"] |= {"resourceVersion": "6"}
    annotated["metadata"]["annotations"][names.DIRECTIVE] = text
    house.store.put(POD.plural, annotated)
    body = house.store.get(SERVER.plural, "demo", "shop")
    assert body is not None
    view, _ = await observe(house.context, SERVER_KEY, body)
    house.kube.calls.clear()
    house.kube.patches.clear()
    return SERVER_KEY, view.world, view.world.ledger


def later(after: Ledger, grant: int) -> Ledger:
    entries = tuple(replace(e, bound=max(e.bound, grant), grant=grant, revision=e.revision + 1) for e in after.entries)
    return replace(after, revision=after.revision + 1, entries=entries)


def calls(house: House) -> list[str]:
    return [what for what, _ in house.kube.calls]


async def test_where_the_grant_stays_nobody_waits_for_the_annotation(house: House) -> None:
    """A hold, and the end of one: clients wait for it, and the annotation says the same of what the pod may hold."""
    key, world, ledger = await told(house)
    house.kube.slow = asyncio.Event()
    await servers._tell(house.context, key, world, later(ledger, grant=1))
    assert calls(house) == ["post", "annotation"]
    writing = house.context.annotating["a"].task
    assert not writing.done()
    house.kube.slow.set()
    assert await writing
    await asyncio.sleep(0)
    assert house.context.annotating == {}


async def test_where_the_grant_changes_the_annotation_comes_first(house: House) -> None:
    key, world, ledger = await told(house)
    house.kube.slow = asyncio.Event()
    telling = asyncio.create_task(servers._tell(house.context, key, world, later(ledger, grant=2)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert calls(house) == ["annotation"]
    house.kube.slow.set()
    await telling
    assert calls(house) == ["annotation", "post"]


async def test_what_could_not_be_annotated_is_not_posted_where_the_grant_changes(house: House) -> None:
    key, world, ledger = await told(house)
    house.kube.refused = True
    await servers._tell(house.context, key, world, later(ledger, grant=2))
    assert calls(house) == ["annotation"]
    assert await asyncio.wait_for(house.context.queue.get(), 5.0) == key


async def test_a_directive_goes_over_the_one_that_is_just_being_written(house: House) -> None:
    key, world, ledger = await told(house)
    house.kube.slow = asyncio.Event()
    await servers._tell(house.context, key, world, first := later(ledger, grant=1))
    await servers._tell(house.context, key, world, first)  # the same again: it is on its way
    await servers._tell(house.context, key, world, later(first, grant=1))
    assert calls(house) == ["post", "annotation", "post"]
    last = house.context.annotating["a"].task
    house.kube.slow.set()
    assert await last
    (_, (_, one)), (_, (_, other)) = [call for call in house.kube.calls if call[0] == "annotation"]
    expected = [[op["value"] for op in patch if op["op"] == "test"] for patch in house.kube.patches]
    assert expected == [["a", world.pods[0].raw_directive], ["a", one]]
    assert verify(other, bytes.fromhex(KEY))["rev"] == ledger.revision + 2


async def test_a_directive_goes_over_what_was_seen_if_the_one_before_failed(house: House) -> None:
    key, world, ledger = await told(house)
    house.kube.slow, house.kube.refused = asyncio.Event(), True
    await servers._tell(house.context, key, world, first := later(ledger, grant=1))
    await servers._tell(house.context, key, world, later(first, grant=1))
    last = house.context.annotating["a"].task
    house.kube.slow.set()
    assert not await last
    tests = [patch[1]["value"] for patch in house.kube.patches]
    assert tests == [world.pods[0].raw_directive] * 2
