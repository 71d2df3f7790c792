"""From API objects to the frozen values that planning takes: pods, limits of databases, the grace of ghosts. Pure.

What decides about connections must read the objects in one way, whoever asks: the operator or `kubectl pgpool`.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from poolfleet.api import names
from poolfleet.api.wire import AgentState, WireError, verify
from poolfleet.plan import discovery as discoveries
from poolfleet.plan.discovery import Discovery
from poolfleet.plan.model import Pod
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.times import seconds

Body = Mapping[str, Any]
"""A live object as JSON."""

LOST_BY_KUBELET: Final = "ContainerStatusUnknown"
"""Reason of a `terminated` that the kubelet wrote without having seen the end: no proof that the process is gone."""
GHOST_MARGIN: Final = 60.0  # seconds beyond a pool's drain timeout that a vanished pod keeps its entries


def ended(body: Body) -> bool:
    """Whether a pod is known gone: the kubelet wrote `terminated` for PgBouncer and for the agent, which it stops last,
    and a phase that is the last one.

    PgBouncer's `terminated` alone may be of a crash: the kubelet may have started it again before it heard of the pod's
    deletion, and say so later. Nor is it the phase alone (the garbage collector writes that without the kubelet), nor
    that the object has vanished (design section 3).
    """
    status = body.get("status") or {}
    if status.get("phase") not in ("Failed", "Succeeded"):
        return False
    statuses = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    terminated = {c.get("name"): (c.get("state") or {}).get("terminated") for c in statuses}
    ends = [terminated.get(name) for name in (names.PGBOUNCER_CONTAINER, names.AGENT_CONTAINER)]
    return all(end is not None and end.get("reason") != LOST_BY_KUBELET for end in ends)


def pod_of(body: Body, key: bytes | None, state: AgentState | None) -> Pod:
    """One pod. `key` is its pool's HMAC key: an annotation whose MAC does not fit counts as absent."""
    metadata, status, spec = body["metadata"], body.get("status") or {}, body.get("spec") or {}
    annotations = metadata.get("annotations") or {}
    raw = annotations.get(names.DIRECTIVE)
    directive: Mapping[str, Any] = {}
    if raw and key:
        try:
            directive = verify(raw, key)
        except WireError:
            directive = {}  # somebody else wrote it; the next directive replaces it
    ready: Body = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), {})
    is_ready = ready.get("status") == "True"
    return Pod(
        uid=metadata["uid"],
        name=metadata["name"],
        namespace=metadata["namespace"],
        created=seconds(metadata.get("creationTimestamp")),
        terminating=bool(metadata.get("deletionTimestamp")),
        scheduled=bool(spec.get("nodeName")),
        ended=ended(body),
        ready=is_ready,
        ip=status.get("podIP") or "",
        server=annotations.get(names.SERVER_UID) or "",
        directive=directive,
        raw_directive=raw,
        pool=f"{metadata['namespace']}/{(metadata.get('labels') or {}).get(names.LABEL_POOL, '')}",
        ready_since=seconds(ready.get("lastTransitionTime")) if is_ready else None,
        node=str(spec.get("nodeName") or ""),
        leaving_since=_deleted(metadata),
        turn=_cost(annotations.get(names.TURN)),
        deletion_cost=_cost(annotations.get(names.DELETION_COST)),
        state=state,
    )


def _deleted(metadata: Mapping[str, Any]) -> float | None:
    """When the object was deleted: its deletionTimestamp is the end of the grace period that it got then."""
    end = metadata.get("deletionTimestamp")
    return seconds(end) - int(metadata.get("deletionGracePeriodSeconds") or 0) if end else None


def _cost(text: object) -> int:
    """What the ReplicaSet's controller reads in that annotation: a whole number, else it counts as 0."""
    return int(text) if isinstance(text, str) and re.fullmatch(r"-?[0-9]{1,9}", text) else 0


def with_caps(
    wishes: Iterable[PoolWish],
    pools: Iterable[Body],
    discovery: Discovery | None,
    ours: Collection[str],
    budget: int | None,
) -> tuple[PoolWish, ...]:
    """The wishes, with what PostgreSQL's own limits of databases and roles leave of them.

    `pools` are the PgPools, at least those of `wishes`; `ours` the roles whose limit the operator has set,
    `budget` what all pools have together.
    """
    wishes = tuple(wishes)
    specs = {f"{pool['metadata']['namespace']}/{pool['metadata']['name']}": pool["spec"] for pool in pools}
    served = {}
    for wish in wishes:
        listed = (specs.get(wish.pool) or {}).get("databases") or ()
        named = {database["name"]: database.get("serverDatabase") or database["name"] for database in listed}
        for name in wish.databases:
            served[wish.pool, name] = (named.get(name, name), wish.roles.get(name, frozenset()))
    caps = discoveries.caps(discovery, served, ours, budget)
    return tuple(
        replace(wish, caps={name: caps[wish.pool, name] for name in wish.databases if (wish.pool, name) in caps})
        for wish in wishes
    )


def ghost_grace(pools: Iterable[Body]) -> float:
    """Seconds that a vanished pod keeps its entries: as long as any pool's pods may take to drain, and some."""
    drains = [((pool.get("spec") or {}).get("drain") or {}).get("timeoutSeconds", 60) for pool in pools]
    return GHOST_MARGIN + max((float(seconds) for seconds in drains), default=0.0)
