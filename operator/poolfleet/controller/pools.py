"""The pool reconciler: observe, plan, apply. What to write is decided in plan/pool.py, what to say in plan/status.py.

A deleted PgPool needs nothing: its children go by their ownerReferences, and its pods count in the server's ledger
until they are known to be gone.
"""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from poolfleet.api import names
from poolfleet.api.conditions import CREDENTIALS_CURRENT
from poolfleet.controller import logins, metrics
from poolfleet.controller.context import Context, Key
from poolfleet.controller.metrics import FleetNumbers
from poolfleet.controller.observe import elders_of, namespace_labels, pods_of, states_of
from poolfleet.controller.store import Body, Store
from poolfleet.kube.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from poolfleet.kube.kinds import ALL, CHILDREN, DEPLOYMENT, POD, POOL, SECRET, SERVER
from poolfleet.plan import certificates, pool, replicas, status, tokens
from poolfleet.plan.fleet import Refusal
from poolfleet.plan.model import Pod
from poolfleet.plan.objects.meta import Manifest, annotation
from poolfleet.plan.objects.secret import decode
from poolfleet.plan.pool import Plan
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.status import Conclusion
from poolfleet.plan.tenancy import server_name

logger = logging.getLogger(__name__)

Child = tuple[str, str]  # kind, name


@dataclass(frozen=True, slots=True)
class _Tried:
    """An apply that is not worth repeating while the wish and the live object are what they were."""

    wish: str  # hash of what was wanted
    version: str  # resourceVersion of the live object, "" if there was none
    refusal: Refusal | None  # None: the API server took it and changed nothing
    until: float | None  # seconds since the epoch after which it is worth a try again; None: never


@dataclass(slots=True)
class _Memory:
    """What is remembered of one PgPool between reconciliations; losing it costs a few requests, or seconds."""

    uid: str
    ready_since: float | None = None  # since when pods take clients; None: none did
    tried: dict[Child, _Tried] = field(default_factory=dict)


_memories: WeakKeyDictionary[Store, dict[Key, _Memory]] = WeakKeyDictionary()
"""By store, so that every operator in a process has its own."""


async def reconcile(context: Context, key: Key) -> float | None:
    """Bring the children and the status of one PgPool to what its spec says. Returns seconds until the next look.

    Raises ApiError for what another try may mend, NotLeader if this process does not lead any more.
    """
    memories = _memories.setdefault(context.store, {})
    body = context.store.get(POOL.plural, key.namespace, key.name)
    if body is None or body["metadata"].get("deletionTimestamp"):
        if (forgotten := memories.pop(key, None)) is not None:
            context.numbers_moved.pop(forgotten.uid, None)
        context.cuts.forget(key.namespace, key.name)
        context.tokens.forget(key.namespace, key.name)
        metrics.drop_fleet(key.namespace, key.name)
        return None
    uid = body["metadata"]["uid"]
    memory = memories.get(key)
    if memory is None or memory.uid != uid:
        memory = memories[key] = _Memory(uid)
    view = await observe(context, body)
    turn = await logins.turn(context, view)
    if turn.acted:
        view = await observe(context, body)
        turn = logins.look(context, view)
    view = replace(view, ready_since=memory.ready_since)
    plan = pool.plan(view)
    strangers = await _look_for(context, view, plan)
    if strangers:
        view = pool.with_children(view, strangers)
        plan = pool.plan(view)
    plan = replace(plan, logins=turn.lines)
    refusals = await _apply(context, view, plan, memory)
    conclusion = status.conclude(view, plan, refusals)
    memory.ready_since = conclusion.ready_since
    await _tell(context, body, conclusion)
    context.cuts.told(key.namespace, key.name, view.cuts)
    _measure(key, view, conclusion)
    context.numbers_moved[uid] = conclusion.numbers_moved
    # Its wishes may be others now; the server reconciler writes nothing if they are not.
    context.queue.add(Key(SERVER.plural, *server_name(body)))
    return min((seconds for seconds in (conclusion.again, turn.again) if seconds is not None), default=None)


async def observe(context: Context, body: Body) -> PoolView:
    """All that planning needs of the PgPool `body`. Raises ApiError if a Secret cannot be read."""
    metadata, store = body["metadata"], context.store
    namespace, name, uid = metadata["namespace"], metadata["name"], metadata["uid"]
    children = {
        (kind.kind, child["metadata"]["name"]): child for kind in CHILDREN for child in store.owned_by(uid, kind.plural)
    }
    server_namespace, server = server_name(body)
    server_body = store.get(SERVER.plural, server_namespace, server)
    if server_body is not None and "serverRef" not in body["spec"]:
        children[SERVER.kind, server] = server_body
    elders, elders_need = elders_of(store, body)
    config = names.config_secret(name)
    view = PoolView(
        body=body,
        server=server_body,
        secrets={},
        children=children,
        pods=pods_of(store, namespace, name, None, states_of(store, context.agents, namespace, name)),
        settings=context.settings,
        now=context.clock(),
        fresh_key=secrets.token_hex(32),
        labels=namespace_labels(store, namespace),
        elders=elders,
        elders_need=elders_need,
        last_config=None if ("Secret", config) in children else store.get_deleted(SECRET.plural, namespace, config),
        numbers_moved=context.numbers_moved.get(uid, 0.0),
        decision=context.decided(uid),
        cuts=context.cuts.of(namespace, name),
        fresh_password=secrets.token_hex(24),
        rotations=context.rotations.lines(f"{namespace}/{name}"),
    )
    found = {secret: await context.secrets.get(*secret) for secret in sorted(view.secret_names())}
    following = {secret: await _next_of(context, view, *secret) for secret in sorted(view.secret_names())}
    view = replace(
        view,
        secrets={secret: None if b is None else decode(b) for secret, b in found.items()},
        secret_bodies=found,
        next_secrets={secret[1]: body for secret, body in following.items() if body is not None},
    )
    return replace(view, tokens=await context.tokens.want(namespace, name, tokens.requests(view)))


async def _next_of(context: Context, view: PoolView, namespace: str, name: str) -> Body | None:
    """The Secret with the next login of Secret `name`, while that is being rotated. Our own Secrets are watched; where
    nothing is, it is asked for while the spec wants a rotation."""
    following = names.next_secret(name)
    known = context.store.get(SECRET.plural, namespace, following)
    if known is not None or context.store.synced(SECRET.plural) or name not in view.rotating_secrets():
        return known
    return await context.secrets.get(namespace, following)


async def _look_for(context: Context, view: PoolView, plan: Plan) -> dict[Child, Body]:
    """Wanted children that exist though no watch shows them as the pool's: strangers, or ours without our labels."""
    found: dict[Child, Body] = {}
    for kind_name, name in plan.unseen(view):
        kind = ALL[kind_name]
        body = context.store.get(kind.plural, view.owner.namespace, name)
        if body is None:
            try:
                body = await context.kube.get(kind, view.owner.namespace, name)
            except NotFound:
                continue
        found[kind_name, name] = body
    return found


async def _apply(context: Context, view: PoolView, plan: Plan, memory: _Memory) -> list[Refusal]:
    """Carry out the plan; return what was refused. Raises ApiError for everything that is no refusal."""
    refusals: list[Refusal] = []
    for obj in plan.apply:
        child = (obj["kind"], obj["metadata"]["name"])
        live = view.children.get(child)
        version = str((live or {}).get("metadata", {}).get("resourceVersion", ""))
        wish = annotation(obj, names.APPLIED_HASH) or ""
        tried = memory.tried.pop(child, None)
        if tried is not None and (tried.wish, tried.version) == (wish, version) and not _over(tried.until, view.now):
            memory.tried[child] = tried
            if tried.refusal is not None:
                refusals.append(tried.refusal)
            continue
        if obj["kind"] == DEPLOYMENT.kind:
            await asyncio.gather(*(_price(context, pod, cost) for pod, cost in plan.costs))
        try:
            after = await _apply_one(context, obj, live)
        except (Invalid, Forbidden, Unavailable) as error:
            if isinstance(error, Unavailable) and not _of_unreadable(error):
                raise
            refusal = Refusal(*child, str(error), invalid=not isinstance(error, Forbidden))
            until = None if refusal.invalid else view.now + status.FORBIDDEN_RETRY_SECONDS
            memory.tried[child] = _Tried(wish, version, refusal, until)
            refusals.append(refusal)
            _log("refused", view, child, error=str(error))
            continue
        if str(after["metadata"].get("resourceVersion", "")) == version:
            # Somebody holds a field that apply cannot move, or a default is read otherwise than it is written.
            memory.tried[child] = _Tried(wish, version, None, None)
        else:
            _log("applied", view, child)
    for doomed in plan.delete:
        try:
            await context.kube.delete(ALL[doomed.kind], view.owner.namespace, doomed.name, uid=doomed.uid)
        except (NotFound, Conflict):
            continue  # gone, or another one by now: the watch tells
        except Forbidden as error:
            refusals.append(Refusal(doomed.kind, doomed.name, str(error), invalid=False))
            continue
        _log("deleted", view, (doomed.kind, doomed.name))
    return refusals


async def _price(context: Context, pod: Pod, cost: int) -> None:
    """Write the deletion cost of one pod; a pod that is another one by now keeps its own."""
    path = "/metadata/annotations/" + names.DELETION_COST.replace("/", "~1")
    patch = [{"op": "test", "path": "/metadata/uid", "value": pod.uid}, {"op": "add", "path": path, "value": str(cost)}]
    try:
        await context.kube.json_patch(POD, pod.namespace, pod.name, patch, manager=names.FIELD_MANAGER)
    except (Conflict, NotFound, Invalid) as error:
        logger.info("deletion cost not written", extra={"pod": pod.name, "error": str(error)})


def _measure(key: Key, view: PoolView, conclusion: Conclusion) -> None:
    """Set the exact numbers that Prometheus reads."""
    live = status.live_numbers(view)
    pods = [pod for pod in view.pods if not pod.ended]
    silent = any(replicas.clients_of(pod) is None for pod in replicas.serving(pods))
    numbers = FleetNumbers(
        desired=view.replicas,
        ready=len(replicas.serving(pods)),
        clients=None if silent else (live["active"], live["waiting"]),
        pods={pod.name: count for pod in pods if (count := replicas.clients_of(pod)) is not None},
        cpu=replicas.cores(pods),
        credentials={"True": True, "False": False}.get(_condition(conclusion, CREDENTIALS_CURRENT)),
    )
    metrics.set_fleet(key.namespace, key.name, numbers)
    metrics.set_certificates(key.namespace, key.name, certificates.expiries(view.config_files))


def _condition(conclusion: Conclusion, wanted: str) -> str:
    conditions = conclusion.status["conditions"]
    return next((str(each["status"]) for each in conditions if each["type"] == wanted), "Unknown")


def _of_unreadable(error: Unavailable) -> bool:
    """Whether this is how the API server answers server-side apply of a value that it cannot even read, such as a
    quantity "lots": with status 500, as if trying again would help."""
    words = ("failed to convert new object", "failed to create typed patch object")
    return error.status == 500 and str(error).startswith(words)


def _over(until: float | None, now: float) -> bool:
    return until is not None and now >= until


async def _apply_one(context: Context, obj: Manifest, live: Mapping[str, Any] | None) -> Body:
    try:
        return await context.kube.apply(obj, manager=names.FIELD_MANAGER)
    except Invalid:
        # An edited port is another item of the list to server-side apply: ours beside it has the same name, which is
        # not valid. The whole list must go first.
        ports = obj.get("spec", {}).get("ports")
        if live is None or ports is None or live.get("spec", {}).get("ports") == ports:
            raise
    try:
        replace_ports = {"op": "replace", "path": "/spec/ports", "value": ports}
        await context.kube.json_patch(
            ALL[obj["kind"]], obj["metadata"]["namespace"], obj["metadata"]["name"], [replace_ports]
        )
    except (Invalid, Conflict) as error:
        logger.info("ports not replaced", extra={"error": str(error)})
    return await context.kube.apply(obj, manager=names.FIELD_MANAGER)


async def _tell(context: Context, body: Body, conclusion: Conclusion) -> None:
    """Write the status if it is news, then tell the events. Raises Conflict if the PgPool has moved on."""
    if conclusion.status != body.get("status") and not await _write(context, body, conclusion.status):
        return  # deleted meanwhile
    for event in conclusion.events:
        await context.recorder.event(body, event)


async def _write(context: Context, body: Body, new: Mapping[str, Any]) -> bool:
    """Write the status; False if the PgPool is gone."""
    metadata = body["metadata"]
    written = {
        "apiVersion": names.API_VERSION,
        "kind": names.POOL_KIND,
        # The version: never over what was not seen, nor the status of a namesake (the UID is not looked at here).
        "metadata": {key: metadata[key] for key in ("name", "namespace", "resourceVersion")},
        "status": new,
    }
    try:
        await context.kube.apply(written, manager=names.STATUS_FIELD_MANAGER, subresource="status")
    except NotFound:
        return False
    return True


def _log(what: str, view: PoolView, child: Child, **more: str) -> None:
    extra = {"namespace": view.owner.namespace, "pool": view.owner.name, "child": f"{child[0]}/{child[1]}", **more}
    logger.info("child %s", what, extra=extra)
