"""How many server connections each database holds, and what that proves: pure, no I/O (design section 3).

PgBouncer's own counts, taken since the last load of a configuration or a grant. Two samples at least SPACING apart must
agree before they prove a shrink, so that a login on its way is seen.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from poolfleet.pgbouncer import show

SPACING: Final = 0.35
"""Seconds between two samples that count. PgBouncer's janitor runs every 1/3 s (facts/pgbouncer.md 2)."""


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


class Samples:
    """The last two samples since the last load."""

    def __init__(self) -> None:
        self._held: dict[str, deque[int]] = {}
        self._counts: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._at = float("-inf")
        self.count = 0

    def reset(self, names: Iterable[str] = ()) -> None:
        """A load happened, or the process is another one: what was seen proves nothing any more."""
        self._before = {name: self.held(name) for name in names}
        self._held = {}
        self._counts = {}
        self._at = float("-inf")
        self.count = 0

    def add(self, sample: Sample) -> bool:
        """Count `sample`; False if it came too early after the last one."""
        if sample.at - self._at < SPACING:
            return False
        self._at = sample.at
        self.count += 1
        for name in sample.databases:
            self._held.setdefault(name, deque(maxlen=2)).append(sample.held(name))
            self._counts[name] = self._counts.get(name, 0) + 1
        return True

    def held(self, name: str) -> int:
        """The larger of the last two counts; before the first one what was known before the load."""
        return max(self._held.get(name, ()), default=self._before.get(name, 0))

    def samples(self, name: str) -> int:
        """How many samples since the last load know this database; below 2 `held` proves nothing."""
        return self._counts.get(name, 0)
