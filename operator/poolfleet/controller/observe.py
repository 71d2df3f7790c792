"""From API objects as they were seen to the frozen values that planning takes. No writes, no waiting."""

from collections.abc import Mapping
from typing import Any

from poolfleet.api import names
from poolfleet.api.wire import AgentState, WireError, verify
from poolfleet.controller.store import Body, Store
from poolfleet.kube.kinds import POD, POOL
from poolfleet.plan.model import Pod
from poolfleet.plan.times import seconds

LOST_BY_KUBELET = "ContainerStatusUnknown"
"""Reason of a `terminated` that the kubelet wrote without having seen the end: no proof that the process is gone."""


def ended(body: Mapping[str, Any]) -> bool:
    """Whether a pod is known gone: the kubelet wrote `terminated` for its PgBouncer and will not start it again.

    Never by phase alone (the garbage collector writes that without the kubelet), nor by the object having vanished
    (design section 3).
    """
    status = body.get("status") or {}
    containers = {c.get("name"): c for c in status.get("containerStatuses") or ()}
    terminated = (containers.get(names.PGBOUNCER_CONTAINER, {}).get("state") or {}).get("terminated")
    if not terminated or terminated.get("reason") == LOST_BY_KUBELET:
        return False
    return bool(body["metadata"].get("deletionTimestamp")) or status.get("phase") in ("Failed", "Succeeded")


def pod_of(body: Mapping[str, Any], key: bytes | None, state: AgentState | None) -> Pod:
    """One pod. `key` is its pool's HMAC key: an annotation whose MAC does not fit counts as absent."""
    metadata, status = body["metadata"], body.get("status") or {}
    annotations = metadata.get("annotations") or {}
    raw = annotations.get(names.DIRECTIVE)
    directive: Mapping[str, Any] = {}
    if raw and key:
        try:
            directive = verify(raw, key)
        except WireError:
            directive = {}  # somebody else wrote it; the next directive replaces it
    conditions = {c.get("type"): c.get("status") for c in status.get("conditions") or ()}
    return Pod(
        uid=metadata["uid"],
        name=metadata["name"],
        namespace=metadata["namespace"],
        created=seconds(metadata.get("creationTimestamp")),
        terminating=bool(metadata.get("deletionTimestamp")),
        scheduled=bool((body.get("spec") or {}).get("nodeName")),
        ended=ended(body),
        ready=conditions.get("Ready") == "True",
        ip=status.get("podIP") or "",
        server=annotations.get(names.SERVER_UID) or "",
        directive=directive,
        raw_directive=raw,
        state=state,
    )


def pods_of(
    store: Store, namespace: str, pool: str, key: bytes | None, states: Mapping[str, AgentState]
) -> tuple[Pod, ...]:
    """The pods of a pool: living ones, and deleted ones whose last words say that they ended."""
    bodies = store.of_pool(POD.plural, namespace, pool)
    living = {body["metadata"]["uid"] for body in bodies}
    gone = [
        body for body in store.deleted_pods(namespace, pool) if ended(body) and body["metadata"]["uid"] not in living
    ]
    return tuple(pod_of(body, key, states.get(body["metadata"]["uid"])) for body in [*bodies, *gone])


def pools_of(store: Store, namespace: str, server: str) -> list[Body]:
    """The PgPools in `namespace` that name the PgServer `server` or have it inline, oldest first (then by UID).

    A pool under deletion is still its server's while it exists.
    """
    pools = [
        body
        for body in store.list(POOL.plural, namespace)
        if server_name(body) == (body["metadata"]["namespace"], server)
    ]
    return sorted(pools, key=lambda body: (body["metadata"].get("creationTimestamp", ""), body["metadata"]["uid"]))


def server_name(pool: Mapping[str, Any]) -> tuple[str, str]:
    """(namespace, name) of the PgServer of a PgPool's body: the one it refers to, or its own of the same name."""
    metadata = pool["metadata"]
    reference = (pool.get("spec") or {}).get("serverRef")
    if isinstance(reference, Mapping):
        return str(reference.get("namespace") or metadata["namespace"]), str(reference.get("name"))
    return metadata["namespace"], metadata["name"]
