"""From a load to the proof that no database holds more than it may: pure, no I/O (design section 3).

PgBouncer's janitor closes connections above pool_size only while they are idle. While clients wait, each connection
that comes free goes straight to one of them, so the janitor never closes any (facts/pgbouncer.md 2). Then a short
server_lifetime, set for as long as is needed, closes as many as are too many: PgBouncer ends one whose lifetime is over
when a transaction ends, and spaces these by lifetime / pool_size (its life_over()). RECONNECT closes all of them, to be
opened again one by one, which takes seconds on a busy server; it is there for what a lifetime does not mend. Without
waiting clients THIN_AFTER leaves it to the janitor first.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from poolfleet.agent.samples import SPACING, Sample, Samples
from poolfleet.pgbouncer import show

THIN_AFTER: Final = 0.7
THIN_SECONDS: Final = 0.25  # for one thinning at most
THIN_GAP: Final = 0.01  # seconds between two connections that are closed, at most
RECONNECT_AFTER: Final = 2.5
EAGER: Final = 0.05  # seconds between two samples while connections are on their way out
EAGER_FOR: Final = 5.0  # seconds after a load; by then the operator asks the next donor (design section 3)
PATIENT: Final = 0.35


@dataclass(frozen=True, slots=True)
class Step:
    """What to do about a database that holds too many connections."""

    database: str
    held: int
    limit: int
    reconnect: bool  # or else thin

    @property
    def gap(self) -> float:
        """Seconds between two connections that are closed."""
        return min(THIN_GAP, THIN_SECONDS / (self.held - self.limit))

    @property
    def lifetime(self) -> float:
        """server_lifetime that makes PgBouncer keep that gap, in seconds."""
        return self.gap * self.limit

    @property
    def seconds(self) -> float:
        """How long it is to be in force: not one connection more can end in this time."""
        return self.gap * (self.held - self.limit)


class Shrinks:
    """The databases of which a load is not proved yet. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._open: dict[str, bool] = {}  # database -> it was told to RECONNECT
        self._loaded = 0.0

    def loaded(self, names: Iterable[str], now: float) -> None:
        """A configuration or a grant with these databases was loaded; none: no process runs."""
        self._open = dict.fromkeys(names, False)
        self._loaded = now

    def seen(self, sample: Sample, samples: Samples) -> list[Step]:
        """What the newest sample shows. Returns what to do now.

        RECONNECT once per load, and never while a login is under way: it would make it a failed one, which turns
        clients away (facts/pgbouncer.md 4).
        """
        due = []
        for name, told in list(self._open.items()):
            database = sample.databases.get(name)
            if database is None or (samples.samples(name) >= 2 and samples.held(name) <= database.limit):
                del self._open[name]
            elif sample.held(name) > database.limit and not database.paused:  # a pause closes them all
                pool = sample.pools.get(name, show.Pool(name, ""))
                reconnect = not told and pool.sv_login == 0 and sample.at >= self._loaded + RECONNECT_AFTER
                if reconnect or pool.cl_waiting > 0 or sample.at >= self._loaded + THIN_AFTER:
                    self._open[name] = told or reconnect
                    due.append(Step(name, sample.held(name), database.limit, reconnect))
        return due

    def pace(self, sample: Sample) -> float | None:
        """Seconds from `sample` to the next one, None if everything is proved."""
        if not self._open:
            return None
        held = [name for name in self._open if name in sample.databases]
        if any(sample.held(name) > sample.databases[name].limit for name in held):
            return EAGER if sample.at < self._loaded + EAGER_FOR else PATIENT
        return SPACING
