"""What the server reconciler plans on: the ledger as it stands, and the world as it was observed. Frozen values.

An **entry** of the ledger says what one pod may hold of one database:

    bound   the largest number that the pod was ever told since it last proved a smaller one; this is what counts
    grant   what its newest directive says; grant < bound means: told to shrink, not proved yet
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from poolfleet.api.names import LINGER_SECONDS
from poolfleet.plan.model import Pod, Sessions
from poolfleet.plan.sizing import PoolWish


@dataclass(frozen=True, slots=True)
class Entry:
    """What one pod may hold of one database."""

    pod: str  # UID
    pod_name: str
    pool: str  # "<namespace>/<name>"
    database: str
    bound: int
    grant: int
    revision: int
    since: float  # when `revision` was written
    gone_since: float | None = None  # when the pod was first missed
    peer: int = 0  # PgBouncer's peer_id of the pod, leased for as long as it has entries; 0: it has none


@dataclass(frozen=True, slots=True)
class Rest:
    """Released connections that nobody gets before `until`."""

    connections: int
    until: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """Everything the budget depends on; it lives in PgServer.status.ledger."""

    revision: int = 0
    entries: tuple[Entry, ...] = ()
    resting: tuple[Rest, ...] = ()
    rebuilt: float | None = None  # when it was rebuilt from what the pods know; nothing is raised for a while then

    @property
    def bound(self) -> int:
        """Σ bounds: what may be held at this moment."""
        return sum(entry.bound for entry in self.entries)

    @property
    def ghosts(self) -> list[Entry]:
        """The entries of pods that vanished without proof that they ended."""
        return [entry for entry in self.entries if entry.gone_since is not None]

    def of_pod(self, uid: str) -> list[Entry]:
        """The entries of one pod."""
        return [entry for entry in self.entries if entry.pod == uid]

    def of_pool(self, pool: str) -> list[Entry]:
        """The entries of one pool ("<namespace>/<name>")."""
        return [entry for entry in self.entries if entry.pool == pool]


@dataclass(frozen=True, slots=True)
class World:
    """All that a step depends on."""

    server: str  # PgServer UID
    budget: int | None  # None: not known, then nothing is raised
    ledger: Ledger
    pods: tuple[Pod, ...]  # of all pools; deleted ones too while their last words are remembered
    wishes: tuple[PoolWish, ...]
    now: float
    leader_since: float = 0.0  # rests that another leader wrote run anew from here: clocks differ
    ghost_grace: float = 120.0  # seconds that a vanished pod keeps its entries
    sessions: Sessions | None = None  # what PostgreSQL itself shows; None: nobody looks, or the last look is too old
    foreign: int = 0  # connections promised by another PgServer that turned out to be the same server
    answering: frozenset[str] = field(default_factory=frozenset)  # UIDs of vanished pods whose agent still answers
    blocked: frozenset[str] = field(default_factory=frozenset)  # roles whose CONNECTION LIMIT has no room for more
    off: frozenset[str] = field(default_factory=frozenset)  # UIDs of pods whose Node is deleted or out of service

    def wish_of(self, pool: str) -> PoolWish | None:
        """What that pool ("<namespace>/<name>") asks for; None if it asks for nothing (any more)."""
        return next((wish for wish in self.wishes if wish.pool == pool), None)

    def members(self, pool: str) -> list[Pod]:
        """The pods of a pool that shall have a share, oldest first: of this server, placed on a node, staying."""
        staying = [pod for pod in self.pods if pod.pool == pool and self.stays(pod)]
        return sorted(staying, key=lambda pod: (pod.created, pod.uid))

    def stays(self, pod: Pod) -> bool:
        """Whether a pod is one of this server, placed on a node, and is not on its way out."""
        leaving = pod.terminating or pod.ended or pod.uid in self.off
        return pod.scheduled and not leaving and pod.server == self.server

    def answers(self, pod: Pod) -> bool:
        """Whether the pod's agent has answered under this server."""
        return pod.state is not None and pod.state.server == self.server and pod.state.rev > 0

    def held_back(self, wish: PoolWish, database: str) -> bool:
        """Whether this database's connections must not be raised: PostgreSQL would refuse them."""
        return not self.blocked.isdisjoint(wish.roles.get(database, ()))

    def config_of(self, pod: Pod) -> str:
        """The configuration that a pod shall load. What it was told last, while a newer one holds a password that is
        not set yet, or other roles than the pod was made for: PgBouncer 1.26 must not change `user=` under its sessions
        (facts/pgbouncer.md 4). "" for a new pod that has to wait for it."""
        wish = self.wish_of(pod.pool)
        told = str(pod.directive.get("config", ""))
        if wish is None or wish.staged:
            return "" if wish is None else told
        return told if told and pod.turn != wish.turn else wish.config

    def stage_of(self, pod: Pod) -> str:
        """The configuration that a pod shall have at hand without loading it, "" for none."""
        wish = self.wish_of(pod.pool)
        return wish.config if wish is not None and wish.staged else ""

    def hold_of(self, pod: Pod, grant: Iterable[str]) -> tuple[str, ...]:
        """The databases of `grant` whose queries shall wait on this pod."""
        wish = self.wish_of(pod.pool)
        return () if wish is None else tuple(sorted(wish.hold.intersection(grant)))

    def rests_until(self, rest: Rest) -> float:
        """When a rest is over: one that another leader wrote runs anew from when this one began."""
        return max(rest.until, self.leader_since + LINGER_SECONDS)

    def resting(self, rests: Iterable[Rest]) -> int:
        """Connections of `rests` that nobody gets yet."""
        return sum(rest.connections for rest in rests if self.rests_until(rest) > self.now)

    def unaccounted(self, ledger: Ledger) -> int:
        """Sessions of the pools' roles that neither an agent accounts for nor a pod that cannot be asked might hold.

        A pod that answers, be it before its first grant, explains none: its own sessions are known by their pids.
        """
        if self.sessions is None:
            return 0
        asked = {pod.uid for pod in self.pods if pod.state is not None and not pod.ended}
        silent = sum(entry.bound for entry in ledger.entries if entry.pod not in asked)
        return max(0, sum(self.sessions.orphans.values()) - silent)

    def for_pools(self, ledger: Ledger) -> int:
        """What the pools can share: the budget without what others hold of it; negative after a cut."""
        asking = {wish.pool for wish in self.wishes}
        strangers = sum(entry.bound for entry in ledger.entries if entry.pool not in asking)
        return (self.budget or 0) - self.foreign - self.unaccounted(ledger) - strangers

    def free(self, ledger: Ledger) -> int:
        """Connections that may be handed out now; negative after a cut of the budget."""
        taken = ledger.bound + self.resting(ledger.resting) + self.foreign + self.unaccounted(ledger)
        return (self.budget or 0) - taken


def highest_revision(pod: Pod, server: str | None) -> int:
    """The largest revision that a pod was told or has applied, of one server or (None) of any."""
    told: Mapping[str, object] = pod.directive
    seen = [(told.get("server", ""), int(str(told.get("rev", 0))))]
    if pod.state is not None:
        seen.append((pod.state.server, pod.state.rev))
    return max((rev for of, rev in seen if server is None or of == server), default=0)
