"""How many pods a PgPool is to have, and what autoscaling decides on: from API objects and what agents say. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from poolfleet.api.pgpool import Autoscaling
from poolfleet.plan.autoscaling import Policy, Sample
from poolfleet.plan.model import Pod

Body = Mapping[str, Any]
"""A live object as JSON."""
DEFAULT_REPLICAS: Final = 2  # the schema's default of spec.replicas


def autoscaling(pool: Body) -> Autoscaling | None:
    """spec.autoscaling of a PgPool; None if it is not set, or not what this operator understands."""
    raw = (pool.get("spec") or {}).get("autoscaling")
    if raw is None:
        return None
    try:
        return Autoscaling.model_validate(raw)
    except ValidationError:
        return None


def policy(wish: Autoscaling) -> Policy:
    """spec.autoscaling as the decision takes it: CPU in cores, times in seconds."""
    return Policy(
        min_replicas=wish.min_replicas,
        max_replicas=wish.max_replicas,
        target_clients=wish.target_clients_per_replica,
        target_cpu=wish.target_cpu_utilization_percentage / 100,
        stabilization=float(wish.scale_down_stabilization_seconds),
    )


def within(wish: Autoscaling, replicas: int) -> int:
    """`replicas`, at least minReplicas and at most maxReplicas."""
    return min(max(replicas, wish.min_replicas), wish.max_replicas)


def desired(pool: Body) -> int:
    """Pods that a PgPool is to have, by its own words: spec.replicas; with spec.autoscaling what was last decided, by
    its status (before the first decision: the pods that it has, else minReplicas)."""
    wish = autoscaling(pool)
    if wish is None:
        return whole((pool.get("spec") or {}).get("replicas"), DEFAULT_REPLICAS)
    status = pool.get("status") or {}
    told = whole(status.get("desiredReplicas"), whole(status.get("replicas"), wish.min_replicas))
    return within(wish, told)


def start(pool: Body, deployment: Body | None) -> int:
    """Where autoscaling begins, after a start of the operator too: with the pods that the live `deployment` asks for;
    None: there is none."""
    wish = autoscaling(pool)
    live = None if deployment is None else (deployment.get("spec") or {}).get("replicas")
    return within(wish, live) if wish is not None and isinstance(live, int) else desired(pool)


def whole(value: object, otherwise: int) -> int:
    """`value` if it is a whole number, else `otherwise`."""
    return value if isinstance(value, int) else otherwise


def clients_of(pod: Pod) -> int | None:
    """Clients of one pod, connected or waiting; None while its agent cannot be read."""
    if pod.state is None:
        return None
    return sum(database.clients for database in pod.state.databases.values())


def serving(pods: Iterable[Pod]) -> list[Pod]:
    """Those of `pods` that take clients and shall stay."""
    return [pod for pod in pods if pod.ready and not pod.terminating and not pod.ended]


def cores(pods: Iterable[Pod]) -> float | None:
    """CPU that the PgBouncers of `pods` use, in cores, of those that say it; None if none does."""
    said = [pod.state.cpu for pod in pods if pod.state is not None and pod.state.cpu is not None]
    return sum(said) if said else None


def sample(pods: Iterable[Pod], now: float) -> Sample:
    """What autoscaling sees of a pool's `pods` at `now` (seconds since the epoch)."""
    ready = serving(pods)
    known = [count for pod in ready if (count := clients_of(pod)) is not None]
    return Sample(at=now, clients=sum(known), answering=len(known), silent=len(ready) - len(known), cpu=cores(ready))


def fed(connections: object, databases: int) -> int | None:
    """The most replicas that a share of `connections` can feed: each one connection per database, and one pod more in a
    rollout (design section 3). None while the share is not known, or there is none."""
    if not isinstance(connections, int) or connections <= 0 or databases <= 0:
        return None
    return max(0, connections // databases - 1)


def costs(pods: Iterable[Pod]) -> tuple[tuple[Pod, int], ...]:
    """The pods whose deletion cost has to be another one before a scale-down, so that it takes those with the fewest
    clients first, and what it shall be: their clients.

    A pod that cannot be read counts as the most crowded one. Those that are not ready go first anyway
    (ReplicaSet's controller, ActivePodsWithRanks).
    """
    ready = serving(pods)
    clients = {pod.uid: clients_of(pod) for pod in ready}
    most = max((count for count in clients.values() if count is not None), default=0)
    wanted = ((pod, most if (count := clients[pod.uid]) is None else count) for pod in ready)
    return tuple((pod, cost) for pod, cost in wanted if cost != pod.deletion_cost)
