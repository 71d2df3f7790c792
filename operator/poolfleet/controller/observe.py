"""From API objects as they were seen to the frozen values that planning takes. No writes, no waiting."""

from collections.abc import Mapping

from poolfleet.api import names
from poolfleet.api.wire import AgentState
from poolfleet.controller.agents import Agents
from poolfleet.controller.store import Body, Store
from poolfleet.kube.kinds import NAMESPACE, POD, SECRET, SERVER
from poolfleet.plan.model import Pod
from poolfleet.plan.pool import frozen, wishes
from poolfleet.plan.seen import ended, pod_of
from poolfleet.plan.sizing import PoolWish, floors
from poolfleet.plan.tenancy import Standing, line_of, server_name, standing
from poolfleet.plan.times import seconds


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


def states_of(store: Store, agents: Agents, namespace: str, pool: str) -> dict[str, AgentState]:
    """The newest answers of the agents of a pool's pods, by the pods' UIDs; without those that cannot be read."""
    uids = [body["metadata"]["uid"] for body in store.of_pool(POD.plural, namespace, pool)]
    return {uid: state for uid in uids if (state := agents.state(uid)) is not None}


def pools_of(store: Store, namespace: str, server: str) -> list[Body]:
    """The PgPools that have a part in the PgServer `namespace`/`server`, oldest first (then by UID).

    Those that name it and may, and those that may not any more but have connections (plan/tenancy.py): a pool gets no
    part in somebody's server by naming it. A pool under deletion is still its server's while it exists.
    """
    body = store.get(SERVER.plural, namespace, server)
    pools = [
        pool
        for pool in store.naming(namespace, server)
        if standing(pool, body, namespace_labels(store, pool["metadata"]["namespace"])) is not Standing.REFUSED
    ]
    return sorted(pools, key=lambda pool: (pool["metadata"].get("creationTimestamp", ""), pool["metadata"]["uid"]))


def wishes_of(store: Store, namespace: str, server: str) -> tuple[PoolWish, ...]:
    """What the pools of `pools_of` ask of the PgServer, in their order; without those that cannot be read."""
    body = store.get(SERVER.plural, namespace, server)
    found = []
    for pool in pools_of(store, namespace, server):
        pool_namespace, name = pool["metadata"]["namespace"], pool["metadata"]["name"]
        wish = wishes(pool, store.get(SECRET.plural, pool_namespace, names.config_secret(name)))
        if wish is None:
            continue
        if body is not None and standing(pool, body, namespace_labels(store, pool_namespace)) is Standing.KEPT:
            entries = ((body.get("status") or {}).get("ledger") or {}).get("entries") or ()
            databases = {entry["database"] for entry in entries if entry.get("pool") == wish.pool}
            wish = frozen(wish, int(line_of(pool, body).get("budget", 0)), databases)
        found.append(wish)
    return tuple(found)


def elders_of(store: Store, pool: Body) -> tuple[int, int]:
    """How many older pools have a part in the PgServer of `pool`, and how many connections they are sure of."""
    namespace, name = server_name(pool)
    server = store.get(SERVER.plural, namespace, name) or {}
    budget = (server.get("status") or {}).get("budget")
    me = (seconds(pool["metadata"].get("creationTimestamp")), pool["metadata"]["uid"])
    older = [wish for wish in wishes_of(store, namespace, name) if (wish.created, wish.uid) < me]
    pods = {wish.pool: len(_staying(store, *wish.pool.split("/"))) for wish in older}
    return len(older), sum(floors(budget, older, pods).values()) if isinstance(budget, int) else 0


def _staying(store: Store, namespace: str, pool: str) -> list[Body]:
    bodies = store.of_pool(POD.plural, namespace, pool)
    return [body for body in bodies if not body["metadata"].get("deletionTimestamp") and not ended(body)]


def namespace_labels(store: Store, namespace: str) -> Mapping[str, str] | None:
    """The labels of a Namespace; None if they are not known, as always where the operator serves single namespaces."""
    body = store.get(NAMESPACE.plural, "", namespace)
    return None if body is None else body["metadata"].get("labels") or {}
