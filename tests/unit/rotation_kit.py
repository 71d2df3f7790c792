"""A server whose role rotates, with a fake API server, agents and PostgreSQL (controller/rotations.py)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from poolfleet.api import names
from poolfleet.api.wire import AgentState
from poolfleet.controller import rotations
from poolfleet.controller.agents import Agents
from poolfleet.controller.context import Context, Key
from poolfleet.controller.discoveries import Discoveries
from poolfleet.controller.nodes import Nodes
from poolfleet.controller.queue import KeyedQueue
from poolfleet.controller.roles import Roles
from poolfleet.controller.rotations import Turn
from poolfleet.controller.secrets import Secrets
from poolfleet.controller.store import Store
from poolfleet.kube.client import Kube
from poolfleet.kube.events import Recorder
from poolfleet.kube.kinds import POOL, SECRET, SERVER, Kind
from poolfleet.plan.model import Pod
from poolfleet.plan.rotation import Check
from poolfleet.plan.server import ServerView
from poolfleet.postgres.checks import Questions
from poolfleet.postgres.passwords import Refused
from tests.unit.pool_fixtures import NOW, SETTINGS, Body
from tests.unit.test_units import KEY, FakeSecrets, following, pool, secret, server, view, wish

POOL_KEY = Key(POOL.plural, "demo", "shop")


@dataclass
class FakeKube:
    """Does to the store what it is asked, or raises `error`."""

    store: Store
    calls: list[tuple[str, Any]]
    error: Exception | None = None
    left: float | None = None  # seconds of the lease
    version: int = 100

    @property
    def leadership(self) -> Callable[[], float] | None:
        left = self.left
        return None if left is None else lambda: left

    async def create(self, obj: Body, *, manager: str) -> Body:
        self._call("create", obj, manager)
        metadata = {**obj["metadata"], "uid": f"made-{self.version}", "resourceVersion": str(self.version)}
        made: Body = {**obj, "metadata": {**metadata, "creationTimestamp": "2027-01-15T08:00:00Z"}}
        self.store.put(SECRET.plural, made)
        return made

    async def json_patch(self, kind: Kind, namespace: str, name: str, patch: list[Body], *, manager: str) -> Body:
        self._call("patch", patch, manager)
        body = self.store.get(SECRET.plural, namespace, name)
        assert body is not None
        data, annotations = dict(body["data"]), dict(body["metadata"].get("annotations") or {})
        for operation in patch:
            head, _, key = operation["path"].lstrip("/").rpartition("/")
            if operation["op"] == "add" and head == "data":
                data[key] = operation["value"]
            elif operation["op"] == "add" and head:
                annotations[key.replace("~1", "/")] = operation["value"]
        metadata = {**body["metadata"], "annotations": annotations, "resourceVersion": str(self.version)}
        return {**body, "metadata": metadata, "data": data}

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> None:
        self._call("delete", (name, uid), names.ROTATION_FIELD_MANAGER)

    def _call(self, what: str, told: Any, manager: str) -> None:
        assert manager == names.ROTATION_FIELD_MANAGER
        self.calls.append((what, told))
        self.version += 1
        if self.error is not None:
            raise self.error


@dataclass
class FakeAgents:
    """Agents that say `fresh` if they are asked now."""

    calls: list[tuple[str, Any]]
    fresh: dict[str, AgentState] = field(default_factory=dict)
    takes: Callable[[], None] = lambda: None

    async def ask_now(self, uids: Iterable[str]) -> dict[str, AgentState]:
        asked = [*uids]
        self.calls.append(("ask", asked))
        self.takes()
        return {uid: self.fresh[uid] for uid in asked if uid in self.fresh}


class FakeAdmin:
    async def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        return await work(None)


class FakeDiscoveries(Discoveries):
    connection: FakeAdmin | None = FakeAdmin()

    def admin(self, uid: str) -> Any:
        assert uid == "uid-server"
        return self.connection


@dataclass
class House:
    kube: FakeKube
    agents: FakeAgents
    context: Context
    discoveries: FakeDiscoveries
    now: list[float]
    calls: list[tuple[str, Any]]
    works: str = "main"  # what a check finds
    found: dict[str, Any] = field(default_factory=dict)  # else in the check
    fails: Exception | None = None  # what the next ALTER raises
    works_then: str = ""
    slow: asyncio.Event | None = None  # checks wait for it
    seen: ServerView = field(default_factory=view)

    def raise_once(self) -> None:
        """Raise what was asked for, once; from then on a check finds `works_then`."""
        error, self.fails = self.fails, None
        if error is not None:
            self.works = self.works_then or self.works
            raise error

    @property
    def done(self) -> list[str]:
        return [what for what, _ in self.calls]

    @property
    def words(self) -> str:
        return " ".join(line.message for line in self.context.rotations.lines("demo/shop"))

    @property
    def phases(self) -> list[str]:
        return [line.phase for line in self.context.rotations.lines("demo/shop")]

    def put(self, *secrets: Body) -> None:
        for body in secrets:
            self.context.store.put(SECRET.plural, body)

    def ask(self, rotation: Body | None = None, token: str = "1", **more: Any) -> None:
        """PgPool shop asks for a rotation."""
        body = pool(rotation=rotation or {"strategy": "Password"}, **more)
        body["metadata"] |= {"annotations": {names.ROTATE: token}, "resourceVersion": str(self.kube.version)}
        self.context.store.put(POOL.plural, body)

    def pods(self, *pods: Pod, staged: bool = True, **more: Any) -> None:
        self.seen = view(*pods, entries=tuple(each.uid for each in pods), wishes=(wish(staged=staged, **more),))

    def config(self, staged: str = "role=uid-role-next") -> None:
        metadata = {"name": "shop-config", "namespace": "demo", "annotations": {names.STAGED: staged}}
        self.put({"metadata": metadata})

    def underway(self, *pods: Pod, **about: Any) -> None:
        """The next password is staged on these pods."""
        self.ask()
        self.put(secret(), following(**about))
        self.config()
        self.pods(*pods)

    async def turn(self, seconds: float = 0.5) -> Turn:
        """One reconciliation, checks that it begins included."""
        self.now[0] += seconds
        for _ in range(3):
            seen = replace(self.seen, world=replace(self.seen.world, now=self.now[0]))
            turn = await rotations.turn(self.context, KEY, seen)
            tasks = [m.task for m in self.context.rotations.memories.values() if m.task is not None]
            if not tasks:
                return turn
            await asyncio.gather(*tasks)
        raise AssertionError("it never ends to check")


def later(turn: Turn) -> list[str]:
    """What is left to be done when the pods were told."""
    return [step.effect.value for _, _, step in turn.later if step.effect is not None]


def make_house(monkeypatch: pytest.MonkeyPatch) -> House:
    """The house with nothing in it but the server."""
    store, calls, now = Store(), list[tuple[str, Any]](), [NOW]
    store.put(SERVER.plural, server())
    store.mark_synced(SECRET.plural)
    kube, agents = FakeKube(store, calls), FakeAgents(calls)
    discoveries = FakeDiscoveries(lambda: now[0])
    context = Context(
        kube=cast(Kube, kube),
        store=store,
        queue=KeyedQueue[Key](),
        agents=cast(Agents, agents),
        secrets=cast(Secrets, FakeSecrets(store)),
        nodes=Nodes(cast(Kube, kube), lambda: now[0]),
        discoveries=discoveries,
        roles=Roles(discoveries, lambda: now[0]),
        recorder=cast(Recorder, None),
        settings=SETTINGS,
        clock=lambda: now[0],
        leader_since=0.0,
    )
    house = House(kube, agents, context, discoveries, now, calls)

    async def check(admin: object, ask: Questions, clock: Callable[[], float]) -> Check:
        calls.append(("check", ask))
        if house.slow is not None:
            await house.slow.wait()
        return Check(clock(), **{"works": house.works, "idle": ask.idle, **house.found})

    async def set_password(c: object, role: str, text: str, *, alive: Callable[[], bool], login: bool) -> None:
        assert text.startswith("SCRAM-SHA-256$4096:")
        calls.append(("alter", (role, login)))
        if not alive():
            raise Refused("not any more")
        house.raise_once()

    async def disable(c: object, role: str, *, alive: Callable[[], bool]) -> None:
        calls.append(("disable", role))
        house.raise_once()

    monkeypatch.setattr(rotations, "check", check)
    monkeypatch.setattr(rotations, "set_password", set_password)
    monkeypatch.setattr(rotations, "disable", disable)
    return house
