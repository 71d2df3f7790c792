"""The server reconciler: it alone writes the ledger and tells the pods. Observe, plan, write, tell."""

import base64
import binascii
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from poolfleet.api import names
from poolfleet.api.base import explain
from poolfleet.api.conditions import Reason
from poolfleet.api.pgserver import PgServerSpec
from poolfleet.api.wire import Directive, sign
from poolfleet.controller import metrics
from poolfleet.controller.context import Context, Key
from poolfleet.controller.discoveries import Login
from poolfleet.controller.observe import pods_of, pools_of
from poolfleet.controller.store import Body
from poolfleet.kube.errors import Conflict, Invalid, NotFound
from poolfleet.kube.kinds import POD, SECRET, SERVER
from poolfleet.plan import budget as budgets
from poolfleet.plan import conditions, ledger, server
from poolfleet.plan.ledger import Ledger, World
from poolfleet.plan.model import Pod
from poolfleet.plan.pool import wishes
from poolfleet.plan.server import Problem, ServerView
from poolfleet.plan.sizing import PoolWish

GHOST_MARGIN = 60.0  # seconds beyond a pool's drain timeout that a vanished pod keeps its entries
LIVE_SECONDS = 15.0  # live numbers move at most this often
LIVE_CHANGE = 0.10  # and by at least this part

logger = logging.getLogger(__name__)


async def reconcile(context: Context, key: Key) -> float | None:
    """Bring the ledger of one PgServer one step on, and tell what it says. Returns seconds until the next look."""
    body = context.store.get(SERVER.plural, key.namespace, key.name)
    if body is None or body["metadata"].get("deletionTimestamp"):
        metrics.drop_server(key.namespace, key.name)
        return None
    view, wait = await _observe(context, key, body)
    after = ledger.advance(view.world)
    try:
        await _write(context, body, view, after)
    except NotFound:
        return None  # deleted meanwhile
    await _tell(context, key, view.world, after)
    _measure(key, view, after)
    waits = [seconds for seconds in (wait, server.wake(view, after)) if seconds is not None]
    return min(waits, default=None)


async def _observe(context: Context, key: Key, body: Body) -> tuple[ServerView, float | None]:
    """All that planning needs; and in how many seconds the next reading of the server's limits is due."""
    status = body.get("status") or {}
    uid, now = body["metadata"]["uid"], context.clock()
    problem: Problem | None = None
    spec: PgServerSpec | None = None
    try:
        spec = PgServerSpec.model_validate(body.get("spec") or {})
    except ValidationError as error:
        problem = Problem(Reason.INVALID_SPEC, explain(error))
    discovery = server.read_discovery(status)
    discovery_problem: Problem | None = None
    wait: float | None = None
    if spec is not None and spec.admin_secret_ref is not None:
        login = await _login(context, key.namespace, spec)
        if isinstance(login, Problem):
            problem = login
        else:
            due = budgets.next_reading(discovery, spec.discovery_interval_seconds)
            wait = context.discoveries.want(uid, login, due, lambda: context.queue.add(key)) - now
        reading = context.discoveries.take(uid)
        if reading is not None:
            discovery = budgets.adopt(reading.limits, reading.server_version, discovery, now)
        # of this very login; what an earlier one was told says nothing about it
        failure = None if isinstance(login, Problem) else context.discoveries.failure(uid)
        if failure is not None:
            reason = Reason.AUTHENTICATION_FAILED if failure.refused else Reason.UNREACHABLE
            remedy = "the Secret and the role" if failure.refused else "the server, and host, port and tls"
            words = f'With Secret "{spec.admin_secret_ref.name}" (adminSecretRef): {failure}. Check {remedy}.'
            discovery_problem = Problem(reason, words)
    elif spec is not None:
        discovery = None
    budget = None
    if spec is not None:
        budget = budgets.compute(spec.max_connections, discovery, spec.headroom, spec.admin_secret_ref is not None)
    pools = pools_of(context.store, key.namespace, key.name)
    world = _world(context, key, body, pools, budget.total if budget else None)
    view = ServerView(
        generation=body["metadata"].get("generation", 0),
        declared=spec.max_connections if spec else None,
        has_admin=spec is not None and spec.admin_secret_ref is not None,
        problem=problem,
        discovery=discovery,
        discovery_problem=discovery_problem,
        budget=budget,
        world=world,
        pools=[(p["metadata"]["namespace"], p["metadata"]["name"], p["metadata"]["uid"]) for p in pools],
    )
    return view, wait


async def _login(context: Context, namespace: str, spec: PgServerSpec) -> Login | Problem:
    """The admin's login, or what keeps it from being one."""
    reference = spec.admin_secret_ref
    assert reference is not None
    secret = await context.secrets.get(namespace, reference.name)
    username = secret_value(secret, reference.username_key)
    password = secret_value(secret, reference.password_key)
    if secret is None:
        words = f'Secret "{reference.name}" (adminSecretRef) does not exist. Create it.'
        return Problem(Reason.SECRET_NOT_FOUND, words)
    for wanted, value in ((reference.username_key, username), (reference.password_key, password)):
        if value is None:
            has = ", ".join(sorted(secret.get("data") or {})) or "none"
            words = f'Secret "{reference.name}" (adminSecretRef) has no key "{wanted}" in UTF-8; its keys: {has}.'
            return Problem(Reason.SECRET_KEY_NOT_FOUND, words)
    ca: str | None = None
    if (ca_reference := spec.tls.ca_secret_ref) is not None:
        ca_secret = await context.secrets.get(namespace, ca_reference.name)
        ca = secret_value(ca_secret, ca_reference.key)
        if ca is None:
            words = f'Secret "{ca_reference.name}" (tls.caSecretRef) does not exist or has no key "{ca_reference.key}".'
            return Problem(Reason.SECRET_NOT_FOUND if ca_secret is None else Reason.SECRET_KEY_NOT_FOUND, words)
    # A single label means the same as for the pods: a Service of the PgServer's own namespace.
    host = spec.host if "." in spec.host or ":" in spec.host else f"{spec.host}.{namespace}.svc"
    return Login(host, spec.port, username or "", password or "", spec.tls.mode, ca)


def secret_value(secret: Mapping[str, Any] | None, key: str) -> str | None:
    """The value under `key` as text; None if it is absent or no UTF-8."""
    try:
        encoded = (secret or {}).get("data", {})[key]
        return base64.b64decode(encoded).decode()
    except (KeyError, TypeError, UnicodeDecodeError, binascii.Error):
        return None


def _world(context: Context, key: Key, body: Body, pools: list[Body], total: int | None) -> World:
    """The world of the ledger: the oldest pool is served, the pods of all count."""
    status, uid = body.get("status") or {}, body["metadata"]["uid"]
    pods: list[Pod] = []
    grace = GHOST_MARGIN
    for pool in pools:
        namespace, name = pool["metadata"]["namespace"], pool["metadata"]["name"]
        secret = context.store.get(SECRET.plural, namespace, names.config_secret(name))
        bodies = context.store.of_pool(POD.plural, namespace, name)
        context.agents.follow(bodies)
        states = {b["metadata"]["uid"]: context.agents.state(b["metadata"]["uid"]) for b in bodies}
        known = {pod: state for pod, state in states.items() if state is not None}
        pods += pods_of(context.store, namespace, name, pool_key(secret), known)
        drain = ((pool.get("spec") or {}).get("drain") or {}).get("timeoutSeconds", 60)
        grace = max(grace, GHOST_MARGIN + float(drain))
    return World(
        server=uid,
        budget=total,
        ledger=server.read_ledger(status),
        pods=tuple(pods),
        wish=_wish(context, pools[0]) if pools else None,
        now=context.clock(),
        leader_since=context.leader_since,
        ghost_grace=grace,
    )


def pool_key(config: Mapping[str, Any] | None) -> bytes | None:
    """The HMAC key of a pool, from its Secret x-config; None if there is none or it is no hex."""
    text = secret_value(config, names.KEY_FILE)
    try:
        return bytes.fromhex(text) if text else None
    except ValueError:
        return None


def _wish(context: Context, pool: Body) -> PoolWish | None:
    """What a pool asks of its server, from its spec and its Secret x-config as it stands in the API."""
    namespace, name = pool["metadata"]["namespace"], pool["metadata"]["name"]
    return wishes(pool, context.store.get(SECRET.plural, namespace, names.config_secret(name)))


async def _write(context: Context, body: Body, view: ServerView, after: Ledger) -> None:
    """Write ledger, numbers and conditions in one compare-and-set, if anything is new. Raises Conflict.

    After a conflict the agents' last words are dropped too: they may be older than what somebody else has told since.
    """
    old = body.get("status") or {}
    status: dict[str, Any] = {
        "observedGeneration": view.generation,
        **server.numbers(view, after),
        "inUse": _live(context, body["metadata"]["uid"], old.get("inUse"), server.held(view.world)),
        "pools": _pools(view, after),
        "ledger": old["ledger"] if after is view.world.ledger and "ledger" in old else server.write_ledger(after),
        "conditions": conditions.merge(
            old.get("conditions") or (), server.conditions(view, after), view.generation, view.world.now
        ),
    }
    if view.discovery is not None:
        status["discovery"] = _discovery(view, old)
    if status == old:
        return
    metadata = body["metadata"]
    written: dict[str, Any] = {
        "apiVersion": names.API_VERSION,
        "kind": names.SERVER_KIND,
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "status": status,
    }
    try:
        new = await context.kube.apply(written, manager=names.LEDGER_FIELD_MANAGER, subresource="status")
    except Conflict:
        context.agents.forget([pod.uid for pod in view.world.pods])
        raise
    context.store.put(SERVER.plural, new)
    for event in conditions.transitions(old.get("conditions") or (), status["conditions"]):
        await context.recorder.event(body, event)


def _discovery(view: ServerView, old: Mapping[str, Any]) -> dict[str, Any]:
    """Discovery for the status; a reading that says nothing new is no reason to write."""
    assert view.discovery is not None
    before = server.read_discovery(old)
    if before is not None and replace(before, observed=view.discovery.observed) == view.discovery:
        return dict(old["discovery"])
    return server.write_discovery(view.discovery)


def _live(context: Context, uid: str, old: int | None, new: int) -> int:
    """A live number for the status: it moves at most every 15 s, and by at least 10 % (design section 2)."""
    if old is not None:
        moved = context.numbers_moved.get(uid, 0.0)
        if context.clock() - moved < LIVE_SECONDS or abs(new - old) < max(1, LIVE_CHANGE * old):
            return old
    context.numbers_moved[uid] = context.clock()
    return new


def _pools(view: ServerView, after: Ledger) -> list[dict[str, Any]]:
    """One line per pool; only the oldest is served."""
    lines = []
    for position, (namespace, name, uid) in enumerate(view.pools):
        serving = position == 0
        granted = sum(e.bound for e in after.entries if e.pool == f"{namespace}/{name}")
        budget = view.budget.total if view.budget and serving else 0
        lines.append({"namespace": namespace, "name": name, "uid": uid, "budget": budget, "granted": granted})
    return lines


def _measure(key: Key, view: ServerView, after: Ledger) -> None:
    """Set the exact numbers that Prometheus reads."""
    holding = {pod.uid: server.held_by(pod) for pod in view.world.pods}
    pools: dict[str, tuple[int, int]] = {f"{namespace}/{name}": (0, 0) for namespace, name, _ in view.pools}
    for entry in after.entries:
        granted, held = pools.get(entry.pool, (0, 0))
        pools[entry.pool] = (granted + entry.bound, held + holding.pop(entry.pod, 0))
    ghosts = sum(entry.bound for entry in after.entries if entry.gone_since is not None)
    metrics.set_server(key.namespace, key.name, view.budget.total if view.budget else 0, ghosts, pools)


async def _tell(context: Context, key: Key, world: World, after: Ledger) -> None:
    """Write the directives that are due, each only over the value that was seen."""
    for pod, directive in ledger.orders(world, after):
        pool = after.of_pod(pod.uid)[0].pool.partition("/")[2]
        secret = context.store.get(SECRET.plural, pod.namespace, names.config_secret(pool))
        mac_key = pool_key(secret)
        if mac_key is None:
            continue  # the pool reconciler will write it, and its watch event brings us back
        try:
            new = await context.kube.json_patch(
                POD, pod.namespace, pod.name, _patch(pod, directive, mac_key), manager=names.FIELD_MANAGER
            )
        except (Conflict, NotFound, Invalid) as error:
            where = {"pod": pod.name, "namespace": pod.namespace, "error": str(error)}
            logger.info("Directive not written", extra=where)
            context.queue.add(key, delay=0.2)
            continue
        context.store.put(POD.plural, new)


def _patch(pod: Pod, directive: Directive, mac_key: bytes) -> list[dict[str, Any]]:
    """The JSON patch that sets the annotation if pod and old value are the ones that were planned for."""
    path = "/metadata/annotations/" + names.DIRECTIVE.replace("/", "~1")
    operations: list[dict[str, Any]] = [{"op": "test", "path": "/metadata/uid", "value": pod.uid}]
    if pod.raw_directive is not None:
        operations.append({"op": "test", "path": path, "value": pod.raw_directive})
    return [*operations, {"op": "add", "path": path, "value": sign(directive.to_message(), mac_key)}]
