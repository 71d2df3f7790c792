"""How many server connections each database holds, what that proves, and how many it wants: pure, no I/O.

PgBouncer's own counts. For the proof (design section 3) those since the last load of a configuration or a grant, for
the demand those of the last WINDOW seconds.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from poolfleet.pgbouncer import show

SPACING: Final = 0.1
"""Seconds between two samples that count. They need not be a run of PgBouncer's janitor (1/3 s) apart: nothing but a
login opens a connection, a login under way is in `held` from its first moment on (current_connections and sv_login,
facts/pgbouncer.md 1), and above the loaded limit none begins. So the count only falls; the second sample is there for
what one look may miss, the SHOW commands being no single moment."""

WINDOW: Final = 10.0
"""Seconds over which demand is looked at."""

SLICE: Final = 0.4
"""Samples closer together than this count as one moment of the window: a shrink is sampled ten times as often."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the admin console said at one moment."""

    at: float  # seconds, monotonic
    databases: Mapping[str, show.Database]
    pools: Mapping[str, show.Pool]  # summed per database
    pids: tuple[int, ...]

    def held(self, name: str) -> int:
        """Server connections of one database, without those that only carry a cancel request: they use no slot of
        PostgreSQL. The two commands are not one moment, so the larger count is taken."""
        pool = self.pools.get(name, show.Pool(name, ""))
        database = self.databases.get(name)
        counted = database.current_connections if database else 0
        return max(counted - pool.sv_active_cancel, pool.servers)

    def clients(self) -> int:
        """Clients of all databases, cancel requests included."""
        return sum(p.clients + p.cl_active_cancel_req + p.cl_waiting_cancel_req for p in self.pools.values())

    def usage(self, name: str, *, probing: bool) -> "Usage":
        """Who uses one database; `probing`: one of its clients is the agent's own, which is left out."""
        pool = self.pools.get(name, show.Pool(name, ""))
        own_waits, own_linked = (probing and pool.cl_waiting > 0), (probing and pool.cl_waiting == 0)
        waiting = pool.cl_waiting - own_waits
        busy = pool.sv_active + pool.sv_tested + pool.sv_being_canceled
        return Usage(max(pool.cl_active - own_linked, 0) + waiting, waiting, max(busy - own_linked, 0))


@dataclass(frozen=True, slots=True)
class Usage:
    """Clients and busy server connections of one database at one moment."""

    clients: int  # linked, idle or waiting
    waiting: int
    busy: int  # server connections that no other client could have


@dataclass(frozen=True, slots=True)
class Demand:
    """The most of the last WINDOW seconds (DatabaseState has the same names)."""

    peak: int = 0
    demand: int = 0
    waited: bool = False


class Samples:
    """The last two samples since the last load, and the window of the demand."""

    def __init__(self) -> None:
        self._held: dict[str, deque[int]] = {}
        self._counts: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._at = float("-inf")
        self._window: deque[_Slice] = deque()
        self._demand: dict[str, Demand] = {}  # what the window says, as far as it was asked
        self.count = 0

    def reset(self, names: Iterable[str] = ()) -> None:
        """A load happened, or the process is another one: what was seen proves nothing any more."""
        self._before = {name: self.held(name) for name in names}
        self._held = {}
        self._counts = {}
        self._at = float("-inf")
        self.count = 0

    def add(self, sample: Sample, probing: Callable[[str], bool] = lambda name: False) -> bool:
        """Count `sample`; False if it came too early after the last one to prove anything. `probing`: see `usage`.

        An early one that shows fewer connections takes the place of the last one: so a shrink is proved SPACING after
        its connections were gone, whenever the sample before was.
        """
        self._look(sample, probing)
        held = {name: sample.held(name) for name in sample.databases}
        if sample.at - self._at < SPACING:
            last = {name: counts[-1] for name, counts in self._held.items()}
            if held.keys() == last.keys() and sum(held.values()) < sum(last.values()):
                self._at = sample.at
                for name, count in held.items():
                    self._held[name][-1] = count
            return False
        self._at = sample.at
        self.count += 1
        for name, count in held.items():
            self._held.setdefault(name, deque(maxlen=2)).append(count)
            self._counts[name] = self._counts.get(name, 0) + 1
        return True

    def held(self, name: str) -> int:
        """The larger of the last two counts; before the first one what was known before the load."""
        return max(self._held.get(name, ()), default=self._before.get(name, 0))

    def samples(self, name: str) -> int:
        """How many samples since the last load know this database; below 2 `held` proves nothing."""
        return self._counts.get(name, 0)

    def demand(self, name: str) -> Demand:
        """What this database wanted in the last WINDOW seconds before the newest sample, loads in between included."""
        if name in self._demand:
            return self._demand[name]
        seen = [piece.usage[name] for piece in self._window if name in piece.usage]
        self._demand[name] = Demand(
            peak=max((busy for busy, _, _ in seen), default=0),
            demand=max((wanted for _, wanted, _ in seen), default=0),
            waited=sum(waited for _, _, waited in seen) > 1,
        )
        return self._demand[name]

    def _look(self, sample: Sample, probing: Callable[[str], bool]) -> None:
        self._demand = {}
        while self._window and self._window[0].at <= sample.at - WINDOW:
            self._window.popleft()
        if not self._window or sample.at - self._window[-1].at >= SLICE:
            self._window.append(_Slice(sample.at, {}))
        usage = self._window[-1].usage
        for name, database in sample.databases.items():
            if database.paused:  # who waits now says nothing of how many connections it wants
                continue
            now = sample.usage(name, probing=probing(name))
            peak, wanted, waited = usage.get(name, (0, 0, False))
            usage[name] = (max(peak, now.busy), max(wanted, now.busy + now.waiting), waited or now.waiting > 0)


@dataclass(frozen=True, slots=True)
class _Slice:
    at: float  # of its first sample
    usage: dict[str, tuple[int, int, bool]]  # database -> most busy, most busy and waiting together, somebody waited
