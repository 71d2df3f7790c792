"""From a load to the proof that no database holds more than it may: pure, no I/O (design section 3).

PgBouncer's janitor closes connections above pool_size only while they are idle. While clients wait, each connection
that comes free goes straight to one of them, so the janitor never closes any and RECONNECT is needed
(facts/pgbouncer.md 2). Without waiting clients RECONNECT_AFTER leaves it to the janitor first, which disturbs less.
"""

from collections.abc import Iterable
from typing import Final

from poolfleet.agent.samples import SPACING, Sample, Samples
from poolfleet.pgbouncer import show

RECONNECT_AFTER: Final = 0.7
EAGER: Final = 0.05  # seconds between two samples while connections are on their way out
EAGER_FOR: Final = 5.0  # seconds after a load; by then the operator asks the next donor (design section 3)
PATIENT: Final = 0.35


class Shrinks:
    """The databases of which a load is not proved yet. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._open: dict[str, bool] = {}  # database -> it was told to RECONNECT
        self._loaded = 0.0

    def loaded(self, names: Iterable[str], now: float) -> None:
        """A configuration or a grant with these databases was loaded; none: no process runs."""
        self._open = dict.fromkeys(names, False)
        self._loaded = now

    def seen(self, sample: Sample, samples: Samples) -> list[str]:
        """What the newest sample shows. Returns the databases to RECONNECT now, each once per load.

        Never while a login is under way: RECONNECT would make it a failed one, which turns clients away
        (facts/pgbouncer.md 4).
        """
        due = []
        for name, told in list(self._open.items()):
            database = sample.databases.get(name)
            if database is None or (samples.samples(name) >= 2 and samples.held(name) <= database.limit):
                del self._open[name]
            elif not told and sample.held(name) > database.limit:
                pool = sample.pools.get(name, show.Pool(name, ""))
                if pool.sv_login == 0 and (pool.cl_waiting > 0 or sample.at >= self._loaded + RECONNECT_AFTER):
                    self._open[name] = True
                    due.append(name)
        return due

    def pace(self, sample: Sample) -> float | None:
        """Seconds from `sample` to the next one, None if everything is proved."""
        if not self._open:
            return None
        held = [name for name in self._open if name in sample.databases]
        if any(sample.held(name) > sample.databases[name].limit for name in held):
            return EAGER if sample.at < self._loaded + EAGER_FOR else PATIENT
        return SPACING
