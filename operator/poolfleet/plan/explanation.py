"""What `plan/explain.py` says: frozen values, from the server down to each database of each pod."""

from dataclasses import dataclass


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
