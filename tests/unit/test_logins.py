"""Carrying out rotations of client users: what is refused is told, who else names the Secret is looked at."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from poolfleet.api import names
from poolfleet.controller import logins
from poolfleet.controller.agents import Agents
from poolfleet.controller.context import Context, Key
from poolfleet.controller.discoveries import Discoveries
from poolfleet.controller.nodes import Nodes
from poolfleet.controller.queue import KeyedQueue
from poolfleet.controller.roles import Roles
from poolfleet.controller.secrets import Secrets
from poolfleet.controller.store import Store
from poolfleet.kube.client import Kube
from poolfleet.kube.errors import ApiError, Conflict, Forbidden, Invalid, Unavailable
from poolfleet.kube.events import Recorder
from poolfleet.kube.kinds import POOL, SECRET, SERVER, Kind
from poolfleet.plan.poolview import PoolView
from tests.unit.pool_fixtures import NOW, SETTINGS, Body, pool_body
from tests.unit.test_plan_logins import APP, begun, moved, seen, user, with_config


@dataclass
class FakeKube:
    """Says what it was asked to write, or raises `answer`."""

    answer: ApiError | None = None
    calls: list[str] = field(default_factory=list)

    async def create(self, obj: Body, *, manager: str) -> Body:
        self._call(f"create {obj['metadata']['name']}", manager)
        return {**obj, "metadata": {**obj["metadata"], "uid": "new", "resourceVersion": "7"}}

    async def json_patch(self, kind: Kind, namespace: str, name: str, operations: list[Body], *, manager: str) -> Body:
        tests = {op["path"]: op["value"] for op in operations if op["op"] == "test"}
        assert tests == {"/metadata/uid": "uid-app", "/metadata/resourceVersion": "1"}
        assert {"/data/username", "/data/password"} <= {op["path"] for op in operations}
        self._call(f"patch {name}", manager)
        return APP

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> None:
        assert uid == "uid-next"
        self._call(f"delete {name}", names.ROTATION_FIELD_MANAGER)

    def _call(self, what: str, manager: str) -> None:
        assert manager == names.ROTATION_FIELD_MANAGER
        self.calls.append(what)
        if self.answer is not None:
            raise self.answer


class FakeSecrets:
    def written(self, body: Body) -> None:
        """Nothing is read by name here."""

    def forget(self, namespace: str, name: str) -> None:
        """Nothing is read by name here."""


class FakeAgents:
    def state(self, pod_uid: str) -> None:
        """Nobody tells."""


@dataclass
class House:
    kube: FakeKube
    context: Context


@pytest.fixture
async def house() -> House:
    kube = FakeKube()
    context = Context(
        kube=cast(Kube, kube),
        store=Store(),
        queue=KeyedQueue[Key](),
        agents=cast(Agents, FakeAgents()),
        secrets=cast(Secrets, FakeSecrets()),
        nodes=Nodes(cast(Kube, kube), lambda: NOW),
        discoveries=Discoveries(lambda: NOW),
        roles=Roles(Discoveries(lambda: NOW), lambda: NOW),
        recorder=cast(Recorder, None),
        settings=SETTINGS,
        clock=lambda: NOW,
        leader_since=0.0,
    )
    return House(kube, context)


def neighbour(name: str, **spec: Any) -> Body:
    body = pool_body(
        databases=[{"name": "d", "credentialsSecretRef": {"name": "r"}}], users=[{"secretRef": {"name": "app"}}], **spec
    )
    body["metadata"] |= {"name": name, "uid": f"uid-{name}"}
    return body


@pytest.mark.parametrize(
    ("view", "call"),
    [
        (seen(asked="1"), "create app-next"),
        (with_config(seen(following=begun())), "patch app"),
        (seen(moved(NOW - 600), begun()), "delete app-next"),
    ],
)
async def test_each_step_is_taken(house: House, view: PoolView, call: str) -> None:
    turn = await logins.turn(house.context, view)
    assert (house.kube.calls, turn.acted) == ([call], True)


async def test_nothing_is_due(house: House) -> None:
    turn = await logins.turn(house.context, seen())
    assert (house.kube.calls, turn.acted, turn.again) == ([], False, 3600.0)
    assert [line.phase for line in turn.lines] == ["Idle"]


async def test_who_names_the_secret_as_well_is_looked_at(house: House) -> None:
    house.context.store.put(POOL.plural, neighbour("zzz"))
    house.context.store.put(POOL.plural, pool_body(users=[user()]))
    await logins.turn(house.context, seen(asked="1"))
    assert house.context.queue.get_nowait() == Key(POOL.plural, "demo", "zzz")
    assert house.context.queue.get_nowait() is None


async def test_another_pool_or_server_that_uses_it_as_a_role_blocks_it(house: House) -> None:
    house.context.store.put(
        POOL.plural,
        neighbour("aaa") | {"spec": {"users": [{"secretRef": {"name": "app"}}], "databases": [{"name": "d"}]}},
    )
    (line,) = (await logins.turn(house.context, seen(asked="1"))).lines
    assert 'PgPool "aaa"' in line.message
    house.context.store.remove(POOL.plural, neighbour("aaa"))
    server = {"metadata": {"namespace": "demo", "name": "db", "uid": "s"}, "spec": {"adminSecretRef": {"name": "app"}}}
    house.context.store.put(SERVER.plural, server)
    (line,) = (await logins.turn(house.context, seen(asked="1"))).lines
    assert 'PgServer "db"' in line.message
    assert house.kube.calls == []


async def test_another_pool_that_has_not_loaded_it_is_waited_for(house: House) -> None:
    house.context.store.put(POOL.plural, neighbour("zzz"))
    turn = await logins.turn(house.context, with_config(seen(following=begun())))
    assert (house.kube.calls, turn.again) == ([], 1.0)
    leaving = neighbour("zzz")
    leaving["metadata"] |= {"deletionTimestamp": "2027-01-01T00:00:00Z", "resourceVersion": "11"}
    house.context.store.put(POOL.plural, leaving)
    assert (await logins.turn(house.context, with_config(seen(following=begun())))).acted


@pytest.mark.parametrize("answer", [Forbidden("not allowed", 403), Invalid("not valid", 422)])
async def test_what_is_refused_is_told_and_tried_again(house: House, answer: ApiError) -> None:
    house.kube.answer = answer
    turn = await logins.turn(house.context, seen(asked="1"))
    (line,) = turn.lines
    assert (line.phase, line.reason, line.message) == ("Failed", "RotationFailed", str(answer))
    assert (turn.acted, turn.again) == (False, logins.REFUSED_RETRY_SECONDS)


async def test_who_was_slower_looks_again(house: House) -> None:
    house.kube.answer = Conflict("exists", 409)
    turn = await logins.turn(house.context, seen(asked="1"))
    assert (turn.acted, turn.again) == (False, logins.RETRY_SECONDS)
    assert [line.reason for line in turn.lines] == [""]


async def test_what_another_try_may_mend_is_raised(house: House) -> None:
    house.kube.answer = Unavailable("down")
    with pytest.raises(Unavailable):
        await logins.turn(house.context, seen(asked="1"))


async def test_a_look_takes_no_step(house: House) -> None:
    assert logins.look(house.context, seen(asked="1")).again == logins.RETRY_SECONDS
    assert house.kube.calls == []
    assert house.context.store.get(SECRET.plural, "demo", "app") is None
