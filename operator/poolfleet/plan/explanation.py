"""What `plan/explain.py` says: frozen values, from the server down to each database of each pod."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from poolfleet.api.conditions import AUTOSCALING_LIMITED
from poolfleet.plan.replicas import autoscaling, desired


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an addition."""

    sign: str  # "" what there is, "-" what goes off, "=" what is left, "of which" a part of the line above
    connections: int
    what: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class PoolLine:
    """One pool of the server. All numbers but weight and replicas are connections."""

    pool: str  # "<namespace>/<name>"
    weight: int
    min: int | None
    max: int | None
    replicas: int
    databases: tuple[str, ...]
    needs: int  # the least it can live with
    sure: int | None  # the least it is sure of; 0: nothing; None: that is not known
    share: int | None  # what it is entitled to, its reserve included; None: that is not known
    reserve: int  # of it: kept for the first grants of one more pod
    now: int | None  # what its pods may hold now
    why: str


@dataclass(frozen=True, slots=True)
class FleetLine:
    """The pods of one pool and their clients, as its status shows them; None: it does not say."""

    pool: str  # "<namespace>/<name>"
    replicas: int  # pods wanted
    ready: int | None  # pods that take clients
    clients: int | None  # connected or waiting
    waiting: int | None
    fewest: int | None  # clients of the ready pod that has the fewest
    most: int | None  # clients of the ready pod that has the most
    why: str  # why that many pods are wanted

    @classmethod
    def of(cls, pool: Mapping[str, Any]) -> "FleetLine":
        """The line of a PgPool's body."""
        metadata, status = pool["metadata"], pool.get("status") or {}
        clients = status.get("clients") or {}
        active, waiting = clients.get("active"), clients.get("waiting")
        return cls(
            pool=f"{metadata['namespace']}/{metadata['name']}",
            replicas=desired(pool),
            ready=status.get("readyReplicas"),
            clients=None if active is None else active + (waiting or 0),
            waiting=waiting,
            fewest=clients.get("podMin"),
            most=clients.get("podMax"),
            why="; ".join(_why(pool, status)),
        )


def _why(pool: Mapping[str, Any], status: Mapping[str, Any]) -> list[str]:
    wish = autoscaling(pool)
    if wish is None:
        return ["spec.replicas"]
    decided = (status.get("autoscaling") or {}).get("message") or "nothing decided yet"
    limits = [
        f"{condition.get('reason')}: {condition.get('message')}"
        for condition in status.get("conditions") or ()
        if condition.get("type") == AUTOSCALING_LIMITED and condition.get("status") == "True"
    ]
    return [f"autoscaling {wish.min_replicas}..{wish.max_replicas}: {decided}", *limits]


@dataclass(frozen=True, slots=True)
class PodLine:
    """One database of one pod, in connections; None: nothing is known, or it does not apply."""

    pool: str
    pod: str
    database: str
    fair: int | None  # its share if all clients had the same demand
    target: int | None  # what the operator wanted it to reach when it told it last, given demand
    pool_size: int  # what it was told: PgBouncer's pool_size
    bound: int | None  # what it counts with: the most it was told since it last proved less
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole, top down."""

    server: str
    budget: tuple[Line, ...]  # from max_connections to the budget
    shared: tuple[Line, ...]  # from the budget to what the pools share
    free: tuple[Line, ...]  # from the budget to what may be handed out now
    pools: tuple[PoolLine, ...]
    pods: tuple[PodLine, ...]
    notes: tuple[str, ...]
    fleets: tuple[FleetLine, ...] = ()  # how many pods, and their clients; only of what runs in a cluster
