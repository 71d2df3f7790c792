"""From what the API server shows to what has to be looked at: kopf's watches fill the store and the queue.

kopf is the informer here and nothing more: only `on.event` handlers, which never touch a patch, so it writes no
annotation, no finalizer and no status (facts/kopf.md 0, A.3).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import kopf
from kopf._cogs.structs.references import Insights  # no public name, but a public parameter

from poolfleet.api import names
from poolfleet.controller import metrics
from poolfleet.controller.agents import Agents
from poolfleet.controller.context import Key
from poolfleet.controller.cuts import Cuts
from poolfleet.controller.queue import ROUTINE, URGENT, KeyedQueue
from poolfleet.controller.store import Body, Store
from poolfleet.kube.client import Kube
from poolfleet.kube.kinds import (
    DEPLOYMENT,
    NAMESPACE,
    NETWORK_POLICY,
    PDB,
    POD,
    POOL,
    SECRET,
    SERVER,
    SERVICE,
    Kind,
)
from poolfleet.plan.identity import marks
from poolfleet.plan.managed import read_about
from poolfleet.plan.poolview import Cut
from poolfleet.plan.seen import ended
from poolfleet.plan.tenancy import server_name

MANAGED: Final = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
WATCH_LABEL: Final = f"{names.LABEL_WATCH}=true"

STATUS_DELAY: Final = 0.25
"""Seconds in which what agents say of a pool is gathered, so that its status does not hold up anybody's grant."""

Login = Callable[..., Awaitable[kopf.AiohttpSession]]


@dataclass(frozen=True, slots=True)
class Watch:
    """A kind to watch, and the label selector by which the API server chooses (None: all)."""

    kind: Kind
    selector: str | None = None


WATCHES: Final[Sequence[Watch]] = (
    Watch(NAMESPACE),  # first: whether a pool may use a server is never judged before its labels are known
    Watch(POOL),
    Watch(SERVER),
    Watch(DEPLOYMENT, MANAGED),
    Watch(SERVICE, MANAGED),
    Watch(SECRET, WATCH_LABEL),
    Watch(POD, MANAGED),
    Watch(PDB, MANAGED),
    Watch(NETWORK_POLICY, MANAGED),
)


def watches(namespaces: Sequence[str], watch_secrets: bool) -> tuple[Watch, ...]:
    """What an operator watches that serves `namespaces` (none: the whole cluster), and Secrets only if it may. Who
    serves single namespaces may not see what is in none."""
    return tuple(
        each for each in WATCHES if (each.kind.namespaced or not namespaces) and (watch_secrets or each.kind != SECRET)
    )


def server_of(pool: Mapping[str, Any]) -> Key:
    """The PgServer of a PgPool: the one it refers to, in whatever namespace, or of its own name if it is inline."""
    return Key(names.SERVER_PLURAL, *server_name(pool))


class DeadWatch(Exception):
    """A watch does not show what happens. The process must exit."""


class Observer:
    """Takes in objects, wherever they were seen: watch, list, or the answer to an own write."""

    def __init__(self, store: Store, queue: KeyedQueue[Key], agents: Agents) -> None:
        self._store = store
        self._queue = queue
        self._agents = agents
        self._kinds = {watch.kind for watch in WATCHES}
        self.cuts = Cuts()
        """What agents said of clients that they had to cut off."""
        self.relisted: Callable[[Kind], None] = lambda kind: None
        """Told when kopf has listed a kind (anew): what vanished before the list is not in it."""
        self.leading = True
        """A process that does not lead takes in what happens, so that it will know which pods have ended meanwhile;
        it asks no agent and looks at nothing until `lead`."""

    def lead(self) -> None:
        """From now on look at what changes, and at everything there is."""
        self.leading = True
        self._agents.follow(self._store.list(POD.plural))
        self.everything()

    def seen(self, kind: Kind, body: Mapping[str, Any], priority: int = URGENT) -> bool:
        """An object as it is now; whether it was news."""
        metadata = body["metadata"]
        before = self._store.get(kind.plural, str(metadata.get("namespace", "")), str(metadata["name"]))
        if kind not in self._kinds or not self._store.put(kind.plural, body):
            return False
        if kind == POD and self.leading:
            self._agents.follow([body])
        self._enqueue(kind, body, priority)
        self._enqueue_neighbours(kind, before, body)
        return True

    def gone(self, kind: Kind, body: Mapping[str, Any]) -> bool:
        """An object that does not exist any more, as it was last; whether it was news."""
        if kind == POD and (ended(body) or names.DIRECTIVE not in (body["metadata"].get("annotations") or {})):
            # Of one that vanished without the kubelet's word its agent may still tell; controller/servers.py drops it.
            self._agents.drop(str(body["metadata"].get("uid", "")))
        if not self._store.remove(kind.plural, body):
            return False
        self._enqueue(kind, body, URGENT)
        self._enqueue_neighbours(kind, body, None)
        return True

    def written(self, kind: Kind, body: Body) -> None:
        """An object as an own write has left it. Not a Secret that others may change and no watch would show again:
        controller/secrets.py reads those by name."""
        labels = body["metadata"].get("labels") or {}
        watched = names.LABEL_WATCH in labels and self._store.synced(SECRET.plural)
        if kind != SECRET or watched or labels.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY:
            self.seen(kind, body)

    def secret_changed(self, namespace: str, name: str) -> None:
        """A Secret that a user owns is not what it was: look at everything whose spec names it."""
        self._add(self._users_of(namespace, name))

    def agent_changed(self, namespace: str, pool: str, pod_uid: str) -> None:
        """An agent has told something new. The ledger is looked at at once; of the pool it is only the status."""
        body, state = self._store.by_uid(POD.plural, pod_uid), self._agents.state(pod_uid)
        if state is not None and state.cut and body is not None and self._store.get(POOL.plural, namespace, pool):
            self.cuts.seen(namespace, pool, pod_uid, Cut(body["metadata"]["name"], state.cut))
        for key in self._pool_and_server(namespace, pool, body):
            self._add([key], delay=STATUS_DELAY if key.plural == POOL.plural else 0.0)

    def _add(self, keys: Iterable[Key], priority: int = URGENT, delay: float = 0.0) -> None:
        for key in keys if self.leading else ():
            self._queue.add(key, delay, priority)

    def everything(self) -> None:
        """Look at all PgPools and PgServers, without hurry."""
        for kind in (SERVER, POOL):
            self._add((_key(kind, body) for body in self._store.list(kind.plural)), ROUTINE)

    def _enqueue(self, kind: Kind, body: Mapping[str, Any], priority: int) -> None:
        self._add(self.affected(kind, body), priority)

    def _enqueue_neighbours(
        self, kind: Kind, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
    ) -> None:
        """Look at those who share a server with an object that is not what it was. Live numbers are no reason."""
        if kind == POOL and _generation(before) != _generation(after):
            for body in (before, after):  # serverRef is immutable, but a pool may be made anew
                if body is not None:
                    self._add(self._pools_of(*server_name(body)))
        if kind == SERVER and (
            before is None or after is None or marks(before) != marks(after) or _held(before, after)
        ):
            for body in (before, after):
                if body is not None:
                    self._add(_key(SERVER, other) for other in self._store.same_server(dict(body)))

    def affected(self, kind: Kind, body: Mapping[str, Any]) -> set[Key]:
        """What has to be looked at because of this object."""
        metadata = body["metadata"]
        namespace, name = str(metadata.get("namespace", "")), str(metadata["name"])
        keys: set[Key] = set()
        if kind == POOL:
            keys |= {_key(POOL, body), server_of(body)}
        elif kind == SERVER:
            keys.add(_key(SERVER, body))
            keys.update(self._pools_of(namespace, name))
        elif kind == NAMESPACE:  # its labels may decide whose servers its pools may use
            for pool in self._store.list(POOL.plural, name):
                if server_of(pool).namespace != name:
                    keys |= {_key(POOL, pool), server_of(pool)}
        else:
            pool_name = (metadata.get("labels") or {}).get(names.LABEL_POOL)
            if pool_name and kind in (POD, DEPLOYMENT, SECRET):  # what the server reconciler looks at as well
                keys.update(self._pool_and_server(namespace, pool_name, body if kind == POD else None))
            elif pool_name:
                keys.add(Key(POOL.plural, namespace, pool_name))
        if kind == SECRET:
            about = read_about(body)  # of a rotation: whoever names the Secret that is rotated
            keys.update(self._users_of(namespace, str(about.get("secret") or name)))
            if isinstance(about.get("server"), str):
                server_namespace, _, server = about["server"].partition("/")
                keys.add(Key(SERVER.plural, server_namespace, server))
        return keys

    def _pool_and_server(self, namespace: str, pool: str, pod: Mapping[str, Any] | None) -> Iterator[Key]:
        yield Key(POOL.plural, namespace, pool)
        body = self._store.get(POOL.plural, namespace, pool)
        if body is not None:
            yield server_of(body)
        if pod is not None:  # the pod of a deleted pool still counts on its server
            uid = (pod["metadata"].get("annotations") or {}).get(names.SERVER_UID, "")
            owner = self._store.by_uid(SERVER.plural, uid) if uid else None
            if owner is not None:
                yield _key(SERVER, owner)

    def _pools_of(self, namespace: str, server: str) -> Iterator[Key]:
        for body in self._store.naming(namespace, server):
            yield _key(POOL, body)

    def _users_of(self, namespace: str, secret: str) -> Iterator[Key]:
        for plural, name in self._store.referring(namespace, secret):
            yield Key(plural, namespace, name)
            if plural == SERVER.plural:
                yield from self._pools_of(namespace, name)


def _key(kind: Kind, body: Mapping[str, Any]) -> Key:
    return Key(kind.plural, str(body["metadata"].get("namespace", "")), str(body["metadata"]["name"]))


def _generation(body: Mapping[str, Any] | None) -> object:
    return None if body is None else (body["metadata"].get("uid"), body["metadata"].get("generation"))


def _held(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the pods of a PgServer may hold another number of connections than before."""
    granted = [(body.get("status") or {}).get("granted") for body in (before, after)]
    return granted[0] != granted[1]


def registry(observer: Observer, login: Login, watches: Sequence[Watch]) -> kopf.OperatorRegistry:
    """kopf's handlers: one login and one `on.event` per watched kind."""
    handlers = kopf.OperatorRegistry()
    kopf.on.login(registry=handlers)(login)
    for watch in watches:
        kopf.on.event(watch.kind.group, watch.kind.version, watch.kind.plural, registry=handlers, id=watch.kind.plural)(
            _handler(observer, watch.kind)
        )
    return handlers


def _handler(observer: Observer, kind: Kind) -> Any:
    async def handle(event: Mapping[str, Any], **_: Any) -> None:
        metrics.WATCH_EVENTS.labels(kind.plural, str(event["type"] or "LISTED")).inc()
        if event["type"] == "DELETED":
            observer.gone(kind, event["object"])
        else:
            observer.seen(kind, event["object"])
        if event["type"] is None:
            observer.relisted(kind)

    return handle


def settings(watches: Sequence[Watch]) -> kopf.OperatorSettings:
    """kopf's settings, each for a reason in facts/kopf.md A.1."""
    chosen = kopf.OperatorSettings()
    chosen.peering.standalone = True  # the Lease decides who leads
    chosen.scanning.disabled = True  # no watch of CRDs and namespaces, so no right to it
    chosen.queueing.worker_limit = None
    chosen.queueing.idle_timeout = 1.0
    chosen.queueing.exit_timeout = 2.0  # handlers only fill the store; reconciliations are awaited in app.py
    chosen.queueing.error_delays = (0.5, 1, 2, 5, 10, 30)
    chosen.watching.server_timeout = 240
    chosen.watching.connect_timeout = 5
    chosen.watching.chunk_size = 500
    chosen.networking.request_timeout = 30
    chosen.networking.connect_timeout = 5
    chosen.networking.error_backoffs = (0.2, 0.5, 1, 2, 5)
    chosen.posting.enabled = False  # events are kube/events.py's
    chosen.execution.default_backoff = 5
    chosen.persistence.finalizer = f"{names.GROUP}/finalizer"  # never set: no handler needs one
    chosen.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=names.GROUP, v1=False)
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP, v1=False)
    chosen.process.ultimate_exiting_timeout = None  # the kubelet ends what hangs; a SIGKILL to itself hits tests, too
    for watch in watches:
        if watch.selector is not None:
            chosen.watching.label_selectors[watch.kind.group, watch.kind.version, watch.kind.plural] = watch.selector
    return chosen


async def watch(
    observer: Observer,
    kube: Kube,
    watches: Sequence[Watch],
    namespaces: Sequence[str],
    started: Callable[[], None],
    watching: asyncio.Event,
) -> None:
    """Run kopf's watches until cancelled; raises what ends them. `namespaces` empty: the whole cluster.

    `started` is called when kopf is about to run: it has then put its own signal handlers over everybody else's.
    `watching` is set when every kind is about to be listed and watched.

    kopf asks once which kinds the API server knows. One that has just been restarted names some only later, and kopf
    would never watch these: that is an error here, too (DeadWatch).
    """
    sessions: list[aiohttp.ClientSession] = []

    async def login(**_: Any) -> kopf.AiohttpSession:
        sessions.append(kube.session())
        return kopf.AiohttpSession(server=kube.host, aiohttp_session=sessions[-1])

    try:
        others = asyncio.all_tasks()  # kopf cancels at its end whatever else runs, except these
        insights = Insights()
        tasks = await kopf.spawn_tasks(
            insights=insights,
            registry=registry(observer, login, watches),
            settings=settings(watches),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
        )
        started()
        async with asyncio.TaskGroup() as group:
            group.create_task(_check(insights, watches, watching))
            await kopf.run_tasks(tasks, ignored=others)
            raise RuntimeError("kopf has ended by itself")
    finally:
        for session in sessions:
            await session.close()


async def _check(insights: Insights, watches: Sequence[Watch], watching: asyncio.Event) -> None:
    await insights.ready_resources.wait()
    known = {(each.group, each.version, each.plural) for each in insights.watched_resources}
    missing = [w.kind.plural for w in watches if (w.kind.group, w.kind.version, w.kind.plural) not in known]
    if missing:
        raise DeadWatch(f"the API server does not name {', '.join(missing)} (yet)")
    watching.set()
