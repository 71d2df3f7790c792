"""Which Secrets of a server's pools are rotated, what forbids it word by word, and which pods have to hold."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from poolfleet.api import names
from poolfleet.api.wire import AgentState, DatabaseState
from poolfleet.controller.context import Context, Key
from poolfleet.controller.store import Store
from poolfleet.controller.units import Unit, holders, see, units_of
from poolfleet.kube.errors import ApiError, Unavailable
from poolfleet.kube.kinds import NAMESPACE, POOL, SECRET, SERVER
from poolfleet.plan.managed import encoded
from poolfleet.plan.model import Pod
from poolfleet.plan.rotation import Holder, Known, Wanted
from poolfleet.plan.secrets import Login
from poolfleet.plan.server import ServerView
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Entry, Ledger, World
from poolfleet.postgres.checks import Questions
from tests.unit.pool_fixtures import NOW, Body, pool_body

KEY = Key(SERVER.plural, "demo", "db")
PASSWORD: Body = {"interval": "720h"}
TWO: Body = {"strategy": "AlternatingRoles", "roles": ["blue", "green"]}


@dataclass
class FakeSecrets:
    """Secrets that are read by name; `error` is raised instead."""

    store: Store
    error: ApiError | None = None
    read: dict[tuple[str, str], Body] = field(default_factory=dict)
    forgotten: list[tuple[str, str]] = field(default_factory=list)

    async def get(self, namespace: str, name: str) -> Body | None:
        if self.error is not None:
            raise self.error
        return self.store.get(SECRET.plural, namespace, name) or self.read.get((namespace, name))

    def written(self, body: Body) -> None:
        self.store.put(SECRET.plural, body)

    def forget(self, namespace: str, name: str) -> None:
        self.forgotten.append((namespace, name))


@dataclass
class Observed:
    """As much of a Context as looking takes."""

    store: Store
    secrets: FakeSecrets

    def clock(self) -> float:
        return NOW


def secret(name: str = "role", login: tuple[str, str] = ("app", "old"), *, managed: bool = True, **more: Any) -> Body:
    metadata: Body = {
        "name": name,
        "namespace": "demo",
        "uid": f"uid-{name}",
        "resourceVersion": "7",
        "creationTimestamp": "2027-01-01T00:00:00Z",
        "labels": {names.LABEL_MANAGED: "true"} if managed else {},
    }
    data = encoded(dict(zip(("username", "password"), login, strict=True)))
    return {"metadata": {**metadata, **more}, "data": data}


def following(
    login: tuple[str, str] = ("app", "new"), *, name: str = "role", namespace: str = "demo", **about: Any
) -> Body:
    says = {"kind": "role", "secret": name, "server": "demo/db", "strategy": "Password", "former": "app", "for": {}}
    annotations = {names.NEXT: json.dumps({**says, **about})}
    return secret(f"{name}-next", login, namespace=namespace, annotations=annotations)


def pool(name: str = "shop", namespace: str = "demo", rotation: Body | None = PASSWORD, **more: Any) -> Body:
    database: Body = {"name": "shop", "credentialsSecretRef": {"name": "role"}}
    if rotation is not None:
        database["rotation"] = rotation
    server = {"name": "db"} if namespace == "demo" else {"name": "db", "namespace": "demo"}
    body = pool_body(**{"server": None, "serverRef": server, "databases": [database], **more})
    body["metadata"] |= {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}"}
    return body


def server(**spec: Any) -> Body:
    metadata = {"name": "db", "namespace": "demo", "uid": "uid-server", "resourceVersion": "20"}
    good = {"host": "postgres", "adminSecretRef": {"name": "admin"}, "managedRoles": ["app", "blue", "green"]}
    return {"metadata": metadata, "spec": {k: v for k, v in {**good, **spec}.items() if v is not None}}


def wish(pool_name: str = "demo/shop", role: str = "app", **more: Any) -> PoolWish:
    return replace(PoolWish(pool_name, "u", 0.0, {"shop": 1}, "c1", roles={"shop": frozenset({role})}), **more)


def answer(hold: float | None = 9.0, **more: Any) -> AgentState:
    first = AgentState(
        "uid-server", "a", 1, 3, "c0", "", "p1", {"shop": DatabaseState(2, 2, 2, hold=hold)}, mounted="c1"
    )
    return replace(first, **more)


def pod(uid: str = "a", state: AgentState | None = None, **more: Any) -> Pod:
    first = Pod(uid, f"shop-{uid}", "demo", 0.0, False, True, False, True, "", "uid-server", pool="demo/shop")
    return replace(first, state=state, directive={"config": "c0", "rev": 3}, **more)


def view(
    *pods: Pod, wishes: tuple[PoolWish, ...] = (wish(),), entries: tuple[str, ...] = ("a",), **more: Any
) -> ServerView:
    ledger = Ledger(3, tuple(Entry(uid, f"shop-{uid}", "demo/shop", "shop", 2, 2, 3, NOW) for uid in entries))
    world = World("uid-server", 20, ledger, pods, wishes, NOW, **more)
    return ServerView(1, 100, True, None, None, None, None, world, [])


def observed(*bodies: tuple[str, Body], synced: bool = True) -> Context:
    """What a context shows: a server, and `bodies` as (plural, body)."""
    store = Store()
    store.put(SERVER.plural, server())
    for plural, body in bodies:
        store.put(plural, body)
    if synced:
        store.mark_synced(SECRET.plural)
    return cast(Context, Observed(store, FakeSecrets(store)))


async def the_unit(context: Context, seen: ServerView | None = None) -> Unit:
    (found,) = await units_of(context, KEY, seen or view())
    return found


async def refusal(*bodies: tuple[str, Body], seen: ServerView | None = None) -> str:
    return (await the_unit(observed(*bodies), seen)).refusal


async def test_a_secret_with_all_that_names_it_is_one_rotation() -> None:
    second = pool("late", databases=[{"name": "d", "serverDatabase": "x", "credentialsSecretRef": {"name": "role"}}])
    second["metadata"] |= {"creationTimestamp": "2027-02-01T00:00:00Z", "annotations": {names.ROTATE: "1"}}
    first = pool()
    first["metadata"]["annotations"] = {names.ROTATE: "7"}
    context = observed((POOL.plural, second), (POOL.plural, first), (SECRET.plural, secret()))
    unit = await the_unit(context)
    assert (unit.key, unit.places) == (("demo", "role"), {"demo/shop": ["shop"], "demo/late": ["d"]})
    assert unit.wanted == Wanted("Password", 2592000.0, (), {"shop": "7"})  # the second one does not ask
    assert (unit.asking, unit.dbname, unit.pods, unit.refusal) == (["demo/shop"], "shop", [("a", "demo/shop")], "")
    assert unit.questions() == Questions(Login("app", "old"), None, "shop", roles=("app",))


async def test_nothing_is_looked_at_where_nothing_rotates() -> None:
    context = observed((POOL.plural, pool(rotation=None)))
    cast(FakeSecrets, context.secrets).error = Unavailable("nobody may read")
    assert await units_of(context, KEY, view()) == []


async def test_a_rotation_under_way_goes_on_although_nobody_asks_any_more() -> None:
    unit = await the_unit(
        observed((POOL.plural, pool(rotation=None)), (SECRET.plural, secret()), (SECRET.plural, following()))
    )
    assert (unit.wanted, unit.refusal) == (None, "")
    assert unit.questions() == Questions(Login("app", "old"), Login("app", "new"), "shop", roles=("app",))


async def test_without_a_watch_the_next_secret_is_read_by_name() -> None:
    context = observed((POOL.plural, pool()), (SECRET.plural, secret()), synced=False)
    cast(FakeSecrets, context.secrets).read["demo", "role-next"] = following()
    assert (await the_unit(context)).following == following()


async def test_the_questions_of_two_roles() -> None:
    spec = (POOL.plural, pool(rotation=TWO))
    unit = await the_unit(observed(spec, (SECRET.plural, secret(login=("blue", "1")))))
    assert unit.questions() == Questions(Login("blue", "1"), None, "shop", "green", roles=("blue", "green"))
    late = following(("green", "2"), strategy="AlternatingRoles", former="blue")
    unit = await the_unit(observed(spec, (SECRET.plural, secret(login=("blue", "1"))), (SECRET.plural, late)))
    both = ("blue", "green")
    assert unit.questions() == Questions(Login("blue", "1"), Login("green", "2"), "shop", "green", roles=both)
    late["data"] |= encoded({"formerUsername": "blue", "formerPassword": "1"})
    unit = await the_unit(observed(spec, (SECRET.plural, secret(login=("green", "2"))), (SECRET.plural, late)))
    ask = unit.questions()  # stored: it is the former one's turn to end
    assert (ask.idle, ask.retire, ask.former, unit.refusal) == ("blue", True, Login("blue", "1"), "")


# What the objects forbid


async def test_no_admin() -> None:
    said = await refusal((POOL.plural, pool()), (SECRET.plural, secret()), (SERVER.plural, without_admin()))
    assert said == 'PgServer "db" has no adminSecretRef: without it nobody can alter the role.'


def without_admin() -> Body:
    body = server(adminSecretRef=None, maxConnections=100)
    body["metadata"]["resourceVersion"] = "21"
    return body


async def test_a_server_whose_spec_cannot_be_read() -> None:
    body = server(host=7)
    body["metadata"]["resourceVersion"] = "21"
    said = await refusal((POOL.plural, pool()), (SECRET.plural, secret()), (SERVER.plural, body))
    assert said == "The PgServer's spec is not valid."


async def test_no_secret_or_not_all_of_it() -> None:
    assert await refusal((POOL.plural, pool())) == (
        'Secret "role" does not exist: nothing shows that the pool may use the role. Create it.'
    )
    half = {**secret(), "data": encoded({"username": "app"})}
    assert await refusal((POOL.plural, pool()), (SECRET.plural, half)) == (
        'Secret "role" has not both keys "username" and "password": nothing shows that the pool may use the role.'
    )


async def test_a_secret_that_cannot_be_read() -> None:
    context = observed((POOL.plural, pool()))
    cast(FakeSecrets, context.secrets).error = Unavailable("down")
    unit = await the_unit(context)
    assert (unit.unreadable, unit.refusal) == ('Secret "role" cannot be read: down.', "")
    assert (unit.pods, unit.places) == ([("a", "demo/shop")], {"demo/shop": ["shop"]})  # who holds goes on


OWNER = {"kind": "ExternalSecret", "name": "vault", "uid": "u", "controller": True}


@pytest.mark.parametrize(
    ("more", "whose"),
    [
        ({"ownerReferences": [OWNER]}, "it belongs to ExternalSecret vault"),
        ({"labels": {names.LABEL_MANAGED_BY: "Helm"}}, "it is managed by Helm"),
        ({"labels": {names.LABEL_MANAGED: "yes"}}, "somebody else made it"),
    ],
)
async def test_a_secret_of_somebody_elses(more: Body, whose: str) -> None:
    said = await refusal((POOL.plural, pool()), (SECRET.plural, secret(managed=False, **more)))
    assert said == (
        f'Secret "role" is not Poolfleet\'s to write: {whose}. Rotate it there, or set the label '
        "poolfleet.dev/managed=true on it."
    )


async def test_a_role_that_the_server_does_not_list() -> None:
    said = await refusal((POOL.plural, pool()), (SECRET.plural, secret(login=("boss", "1"))))
    assert said == 'Role "boss" is not in managedRoles of PgServer "db". Whoever owns the server may add it.'
    rotation = {**TWO, "roles": ["blue", "boss"]}
    said = await refusal((POOL.plural, pool(rotation=rotation)), (SECRET.plural, secret(login=("blue", "1"))))
    assert said.startswith('Role "boss" is not in managedRoles')


async def test_a_role_that_is_none_of_the_two() -> None:
    said = await refusal((POOL.plural, pool(rotation=TWO)), (SECRET.plural, secret()))
    assert said == 'Secret "role" names "app", which is none of rotation.roles: blue, green.'


async def test_a_paused_pool() -> None:
    assert await refusal((POOL.plural, pool(paused=True)), (SECRET.plural, secret())) == 'PgPool "shop" is paused.'


async def test_a_pool_that_may_not_use_the_server_any_more() -> None:
    """It has connections still, so it is not ignored: nothing is altered on its word."""
    body = server()
    body["metadata"]["resourceVersion"] = "21"
    body["status"] = {"pools": [{"namespace": "team", "name": "far", "uid": "uid-team-far", "granted": 1}]}
    there = secret()
    there["metadata"] |= {"namespace": "team", "uid": "uid-there"}
    space = {"metadata": {"name": "team", "uid": "uid-team", "labels": {}}}
    bodies = [(POOL.plural, pool("far", "team")), (SECRET.plural, there), (SERVER.plural, body)]
    assert await refusal(*bodies, (NAMESPACE.plural, space)) == 'PgPool "far" may not use the server any more.'


async def test_a_role_that_is_used_elsewhere() -> None:
    bodies = [(POOL.plural, pool()), (SECRET.plural, secret())]
    said = await refusal(*bodies, seen=view(wishes=(wish(), wish("demo/late"))))
    assert said == 'Role "app" is used by database "shop" of PgPool "late" as well, and not by Secret "role".'
    said = await refusal(*bodies, seen=view(wishes=(wish(), wish("team/late"))))
    assert said == 'Role "app" is used by another namespace as well, and not by Secret "role".'
    assert await refusal(*bodies, seen=view(wishes=(wish(), wish("team/late", role="other")))) == ""
    own = wish(databases={"shop": 1, "open": 1}, roles={"shop": frozenset({"app"}), "open": frozenset({"app", "x"})})
    assert 'database "open" of PgPool "shop"' in await refusal(*bodies, seen=view(wishes=(own,)))


async def test_a_forged_next_secret_of_another_namespace_is_nothing() -> None:
    forged = following(("app", "guess"), namespace="evil")
    main = secret(login=("app", "guess"), namespace="evil", uid="uid-evil")
    assert await units_of(observed((SECRET.plural, forged), (SECRET.plural, main)), KEY, view()) == []


async def test_a_rotation_whose_pool_is_gone_comes_to_its_end() -> None:
    unit = await the_unit(observed((SECRET.plural, following()), (SECRET.plural, secret())))
    assert (unit.refusal, unit.places, unit.pods) == ("No PgPool uses it any more.", {}, [])


@pytest.mark.parametrize("about", [{"kind": "user"}, {"secret": "other"}, {"server": "demo/else"}])
async def test_what_does_not_say_that_it_is_a_next_login_is_none(about: Body) -> None:
    unit = await the_unit(
        observed((POOL.plural, pool()), (SECRET.plural, secret()), (SECRET.plural, following(**about)))
    )
    assert unit.following is None


# What a decision depends on


async def test_what_the_secrets_say() -> None:
    record = json.dumps({"at": "2027-01-15T08:00:00Z", "for": {"shop": "1"}})
    main = secret(annotations={names.ROTATED: record})
    config = {
        "metadata": {
            "name": "shop-config",
            "namespace": "demo",
            "annotations": {names.STAGED: "x=1,role=uid-role-next"},
        }
    }
    bodies = [(POOL.plural, pool()), (SECRET.plural, main), (SECRET.plural, following())]
    for staged in (False, True):
        context = observed(*bodies, *([(SECRET.plural, config)] if staged else []))
        seen = see(context, view(), await the_unit(context), Known())
        assert (seen.staged, seen.secret, seen.refusal) == (staged, "role", "")
        assert seen.main is not None and seen.following is not None
        assert (seen.main.rotated, seen.main.obeyed) == (NOW, {"shop": "1"})
        assert (seen.following.login, seen.following.former) == (Login("app", "new"), "app")


@pytest.mark.parametrize("listed", ["role", "role=", "role=another", "more=uid-role-next"])
async def test_what_is_staged_of_another_rotation_does_not_count(listed: str) -> None:
    config = {"metadata": {"name": "shop-config", "namespace": "demo", "annotations": {names.STAGED: listed}}}
    bodies = [(SECRET.plural, each) for each in (secret(), following(), config)]
    context = observed((POOL.plural, pool()), *bodies)
    assert not see(context, view(), await the_unit(context), Known()).staged


async def test_a_role_that_is_to_be_disabled_must_be_listed_as_well() -> None:
    late = following(("green", "2"), strategy="AlternatingRoles", former="boss")
    bodies = [(POOL.plural, pool(rotation=TWO)), (SECRET.plural, secret(login=("green", "2"))), (SECRET.plural, late)]
    assert (await refusal(*bodies)).startswith('Role "boss" is not in managedRoles')


@pytest.mark.parametrize("record", ["", "{", "7", '{"at": 7, "for": []}'])
async def test_a_spoilt_record_of_the_last_rotation_is_none(record: str) -> None:
    context = observed((POOL.plural, pool()), (SECRET.plural, secret(annotations={names.ROTATED: record})))
    main = see(context, view(), await the_unit(context), Known()).main
    assert main is not None and (main.rotated, main.obeyed) == (None, {})


async def looked(*pods: Pod, entries: tuple[str, ...] = ("a",), **more: Any) -> list[Holder]:
    seen = view(*pods, entries=entries, **more)
    context = observed((POOL.plural, pool()), (SECRET.plural, secret()))
    return [*holders(seen, await the_unit(context, seen), {})]


async def test_pods_that_hold() -> None:
    assert await looked(pod(state=answer())) == [Holder("shop-a", staged=True, left=9.0)]
    assert await looked(pod(state=answer(hold=None))) == [Holder("shop-a", staged=True)]
    old_agent = answer(hold=None, mounted="")
    assert await looked(pod(state=old_agent)) == [Holder("shop-a", holds=False)]
    assert await looked(pod(state=answer(None, mounted="c0"))) == [Holder("shop-a")]
    assert await looked(pod(state=answer(None, config="c1"))) == [Holder("shop-a", staged=True, loaded=True)]
    assert await looked(pod(state=answer(None, config="c1")), wishes=(wish(turn=1),)) == [Holder("shop-a", staged=True)]
    former = wish(role="blue")  # x-config does not name the role of the main Secret (yet)
    assert await looked(pod(state=answer(None, config="c1")), wishes=(former,)) == [Holder("shop-a", staged=True)]
    leaving = pod(state=answer(None, config="c1"), terminating=True)
    assert await looked(leaving) == [Holder("shop-a", staged=True)]
    none = wish(config="")
    assert await looked(pod(state=answer(None, config="", mounted="")), wishes=(none,)) == [
        Holder("shop-a", holds=False)
    ]


async def test_only_all_databases_together_hold() -> None:
    two = pool(databases=[{**pool()["spec"]["databases"][0], "name": name} for name in ("shop", "more")])
    context = observed((POOL.plural, two), (SECRET.plural, secret()))
    for more, left in ((None, None), (5.0, 5.0)):
        both = {"shop": DatabaseState(2, 2, 2, hold=9.0), "more": DatabaseState(2, 2, 2, hold=more)}
        seen = view(pod(state=answer(databases=both)))
        (found,) = holders(seen, await the_unit(context, seen), {})
        assert found.left == left


async def test_pods_that_cannot_be_asked() -> None:
    assert await looked(pod()) == [Holder("shop-a", known=False)]
    assert await looked() == [Holder("shop-a", known=False)]  # vanished, with an entry still
    assert await looked(pod(state=answer(started=""))) == [Holder("shop-a", known=False)]
    assert await looked(pod(state=answer(), server="earlier")) == [Holder("shop-a", known=False)]


async def test_pods_that_log_in_no_more() -> None:
    assert await looked(pod(state=answer(), ended=True)) == []
    assert await looked(pod(), off=frozenset({"a"})) == []
    stopped = answer(draining=True, started="")
    assert await looked(pod(state=stopped, terminating=True)) == []
    assert await looked(pod(state=stopped)) == [Holder("shop-a", known=False)]  # who says so without leaving?
    assert len(await looked(pod(state=answer(draining=True), terminating=True))) == 1
    assert await looked(pod("b", state=answer()), entries=()) == []  # never granted anything
    waiting = replace(pod(), directive={"config": "", "rev": 3})  # for what it may load: its PgBouncer has not started
    assert await looked(waiting) == []
    assert len(await looked(replace(waiting, directive={}))) == 1  # what it was told is not known
