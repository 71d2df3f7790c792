"""The server reconciler: it alone writes the ledger and tells the pods. Observe, plan, write, tell."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from poolfleet.api import names
from poolfleet.api.wire import Directive, sign
from poolfleet.controller import metrics, rotations
from poolfleet.controller.context import Annotating, Context, Key
from poolfleet.controller.failpoints import reach
from poolfleet.controller.metrics import PoolNumbers, ServerNumbers
from poolfleet.controller.store import Body
from poolfleet.controller.worlds import config_key, live, observe
from poolfleet.kube.errors import ApiError, Conflict, NotFound
from poolfleet.kube.kinds import POD, SERVER
from poolfleet.plan import conditions, ledger, role_limits, server
from poolfleet.plan.discovery import read_discovery, write_discovery
from poolfleet.plan.model import Pod
from poolfleet.plan.server import ServerView
from poolfleet.plan.shares import divide_budget
from poolfleet.plan.world import Ledger, World

logger = logging.getLogger(__name__)


async def reconcile(context: Context, key: Key) -> float | None:
    """Bring the ledger of one PgServer one step on, and tell what it says. Returns seconds until the next look."""
    body = context.store.get(SERVER.plural, key.namespace, key.name)
    if body is None or body["metadata"].get("deletionTimestamp"):
        metrics.drop_server(key.namespace, key.name)
        last = body or context.store.get_deleted(SERVER.plural, key.namespace, key.name)
        if last is not None:
            context.discoveries.forget(last["metadata"]["uid"])
            context.roles.forget(last["metadata"]["uid"])
            context.rotations.forget(last["metadata"]["uid"])
        return None
    uid = body["metadata"]["uid"]
    view, wait = await observe(context, key, body)
    turn = await rotations.turn(context, key, view)
    view = turn.view
    view, after, limits = await _advance(context, body, view)
    try:
        await _write(context, body, view, after, limits)
    except NotFound:
        return None  # deleted meanwhile
    shown = {pod.uid for pod in view.world.pods}
    for uid in {entry.pod for entry in view.world.ledger.entries} - {entry.pod for entry in after.entries} - shown:
        context.agents.drop(uid)  # a ghost that is gone
    if turn.load:
        reach("rotation-tell-before")
    await _tell(context, key, view.world, after)
    if turn.load:
        reach("rotation-tell-after")
    await rotations.finish(context, key, turn)
    await context.roles.settle(uid, limits)
    _measure(key, view, after)
    waits = (wait, turn.again, server.wake(view, after), context.roles.wake(uid))
    return min((seconds for seconds in waits if seconds is not None), default=None)


async def _advance(context: Context, body: Body, view: ServerView) -> tuple[ServerView, Ledger, Mapping[str, int]]:
    """The next ledger, and the roles' CONNECTION LIMITs to write beside it: those it needs are raised already. What
    cannot be raised in PostgreSQL is not raised in the ledger."""
    recorded = role_limits.read(body.get("status") or {})
    while True:
        after = ledger.advance(view.world)
        step = await context.roles.raise_first(
            body["metadata"]["uid"],
            needs=role_limits.demands(after.entries, view.world.wishes),
            recorded=recorded,
            managed=view.managed,
        )
        if step.blocked <= view.world.blocked:
            return replace(view, role_limits=step.problem), after, step.recorded
        view = replace(view, world=replace(view.world, blocked=view.world.blocked | step.blocked))


async def _write(context: Context, body: Body, view: ServerView, after: Ledger, limits: Mapping[str, int]) -> None:
    """Write ledger, numbers and conditions in one compare-and-set, if anything is new. Raises Conflict.

    After a conflict the agents' last words are dropped too: they may be older than what somebody else has told since.
    """
    old = body.get("status") or {}
    status: dict[str, Any] = {
        "observedGeneration": view.generation,
        **server.numbers(view, after),
        "inUse": live(context, body["metadata"]["uid"], old.get("inUse"), server.held(view.world)),
        "pools": _pools(context, view, after, old.get("pools") or ()),
        "ledger": old["ledger"] if after is view.world.ledger and "ledger" in old else server.write_ledger(after),
        "conditions": conditions.merge(
            old.get("conditions") or (), server.conditions(view, after), view.generation, view.world.now
        ),
    }
    if limits:
        status["roleLimits"] = role_limits.write(limits)
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
        await context.kube.apply(written, manager=names.LEDGER_FIELD_MANAGER, subresource="status")
    except Conflict:
        context.agents.forget([pod.uid for pod in view.world.pods])
        raise
    for event in conditions.transitions(old.get("conditions") or (), status["conditions"]):
        await context.recorder.event(body, event)


def _pools(context: Context, view: ServerView, after: Ledger, old: Iterable[Body]) -> list[Body]:
    """The pools' lines, with what their pods hold, as shown."""
    before = {line.get("uid"): line.get("inUse") for line in old}
    lines = server.pool_lines(view, after, divide_budget(view.world, after))
    for line in lines:
        pool = f"{line['namespace']}/{line['name']}"
        held = server.held(view.world, pool)
        line["inUse"] = live(context, f"{view.world.server} {line['uid']}", before.get(line["uid"]), held)
    return lines


def _discovery(view: ServerView, old: Mapping[str, Any]) -> dict[str, Any]:
    """Discovery for the status; a reading that says nothing new is no reason to write."""
    assert view.discovery is not None
    before = read_discovery(old)
    if before is not None and replace(before, observed=view.discovery.observed) == view.discovery:
        return dict(old["discovery"])
    return write_discovery(view.discovery)


def _measure(key: Key, view: ServerView, after: Ledger) -> None:
    """Set the exact numbers that Prometheus reads; there are none while the budget is not known."""
    if view.world.budget is None:
        return
    pools = {f"{namespace}/{name}" for namespace, name, _ in view.pools} | {entry.pool for entry in after.entries}
    numbers = server.numbers(view, after)
    metrics.set_server(
        key.namespace,
        key.name,
        ServerNumbers(
            budget=numbers.get("budget", 0),
            free=numbers.get("free", 0),
            reserve=numbers.get("reserve", 0),
            ghosts=numbers["ghosts"],
            others=view.world.sessions.others if view.world.sessions else None,
            unaccounted=numbers.get("unaccounted"),
            pools={
                pool: PoolNumbers(
                    granted=sum(entry.bound for entry in after.of_pool(pool)),
                    held=server.held(view.world, pool),
                    unproven=sum(entry.bound - entry.grant for entry in after.of_pool(pool)),
                )
                for pool in pools
            },
        ),
    )


async def _tell(context: Context, key: Key, world: World, after: Ledger) -> None:
    """Write the directives that are due, each only over the value that was seen; then send them the fast way too. All
    pods at once: nobody waits for another one's request."""
    due = ledger.orders(world, after)
    await asyncio.gather(*(_tell_one(context, key, pod, directive) for pod, directive in due))


async def _tell_one(context: Context, key: Key, pod: Pod, directive: Directive) -> None:
    """Tell one pod.

    The annotation is the record of what a pod may hold, so it comes first; but where that stays as it is (a hold, the
    end of one) clients wait for the POST, and the annotation is written meanwhile.
    """
    mac_key = config_key(context, pod.namespace, pod.pool.partition("/")[2])
    if mac_key is None:
        return  # the pool reconciler will write it, and its watch event brings us back
    text = sign(directive.to_message(), mac_key)
    before = context.annotating.get(pod.uid)
    if before is not None and before.rev >= directive.rev and not before.task.done():
        return
    same = pod.directive.get("grant") == directive.grant
    if same:
        context.agents.tell(pod.uid, text)
    task = asyncio.create_task(_annotate(context, key, pod, text, before), name=f"directive of {pod.name}")
    context.annotating[pod.uid] = Annotating(directive.rev, text, task)
    task.add_done_callback(lambda _: _forget(context, pod.uid, task))
    if not same and await task:
        context.agents.tell(pod.uid, text)


async def _annotate(context: Context, key: Key, pod: Pod, text: str, before: Annotating | None) -> bool:
    """Write the annotation over what was seen, or over what is just being written; False if it is another by now."""
    seen = pod.raw_directive
    if before is not None and await before.task:
        seen = before.text
    try:
        patch = _patch(pod, seen, text)
        await context.kube.json_patch(POD, pod.namespace, pod.name, patch, manager=names.FIELD_MANAGER)
    except ApiError as error:
        where = {"pod": pod.name, "namespace": pod.namespace, "server": key.name, "error": str(error)}
        logger.info("Directive not written", extra=where)
        context.queue.add(key, delay=0.2)
        return False
    return True


def _forget(context: Context, uid: str, task: asyncio.Task[bool]) -> None:
    last = context.annotating.get(uid)
    if last is not None and last.task is task:
        del context.annotating[uid]


def _patch(pod: Pod, seen: str | None, text: str) -> list[dict[str, Any]]:
    """The JSON patch that sets the annotation if the pod is the one that was planned for, and its value `seen`."""
    path = "/metadata/annotations/" + names.DIRECTIVE.replace("/", "~1")
    operations: list[dict[str, Any]] = [{"op": "test", "path": "/metadata/uid", "value": pod.uid}]
    if seen is not None:
        operations.append({"op": "test", "path": path, "value": seen})
    return [*operations, {"op": "add", "path": path, "value": text}]
