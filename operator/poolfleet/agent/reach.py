"""Whether each database's server can be reached, without waking one that sleeps: pure, no I/O.

A server connection that PgBouncer holds is evidence enough, but not one that may be of the configuration before: the
RELOAD of another host or TLS mode closes those only a moment later. A probe, which opens one, is due only (a) once
after a new configuration, until it has succeeded, and (b) while clients wait and there is no server connection for
WAIT seconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from poolfleet.pgbouncer import show

WAIT: Final = 2.0
SETTLED: Final = 1.0  # after a load: idle connections of the configuration before are closed by then
FIRST_BACKOFF: Final = 1.0
MAX_BACKOFF: Final = 30.0


@dataclass(slots=True)
class _Database:
    loaded: float
    reachable: bool | None = None
    error: str = ""
    due: float | None = None
    backoff: float = FIRST_BACKOFF
    waiting_since: float | None = None
    running: bool = False
    connected: bool = False  # as last seen
    paused: bool = False  # as last seen
    disturbed: bool = False  # it was paused while the probe ran


class Reach:
    """What is known per database. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._databases: dict[str, _Database] = {}

    def loaded(self, names: Iterable[str], now: float) -> None:
        """A new configuration with these databases is in force: each is tried once."""
        before, self._databases = self._databases, {name: _Database(now, due=now) for name in names}
        for name in before.keys() & self._databases.keys():
            old, new = before[name], self._databases[name]
            new.running, new.paused, new.disturbed = old.running, old.paused, old.disturbed

    def granted(self, names: Iterable[str], now: float) -> None:
        """The same configuration serves these databases now: new ones are tried once."""
        self._databases = {name: self._databases.get(name) or _Database(now, due=now) for name in names}

    def seen(self, name: str, pool: show.Pool, waiting: int, now: float, *, paused: bool = False) -> None:
        """What a sample shows; `waiting` leaves the agent's own probe out. While paused nothing is learned."""
        database = self._databases.get(name)
        if database is None:
            return
        database.paused = paused
        if paused:
            database.connected, database.waiting_since = False, None
            database.disturbed = database.running
            return
        database.connected = pool.logged_in > 0 and now - database.loaded >= SETTLED
        if database.connected:
            database.reachable, database.error = True, ""
            database.due, database.waiting_since, database.backoff = None, None, FIRST_BACKOFF
        elif waiting == 0:
            database.waiting_since = None
        elif database.waiting_since is None:
            database.waiting_since = now
        elif now - database.waiting_since > WAIT and database.due is None:
            database.due = now

    def due(self, now: float, most: int) -> list[str]:
        """At most `most` databases to probe now; each counts as being probed until `result`."""
        waiting = [
            n
            for n, d in self._databases.items()
            if d.due is not None and d.due <= now and not d.running and not d.paused
        ]
        found = waiting[: max(most, 0)]
        for name in found:
            self._databases[name].running, self._databases[name].disturbed = True, False
        return found

    def result(self, name: str, ok: bool | None, error: str, now: float) -> None:
        """A probe ended; `ok` None: it said nothing about the server."""
        database = self._databases.get(name)
        if database is None:
            return
        database.running = False
        if ok or database.connected:  # a probe that fails while there are connections only queued for too long
            database.reachable, database.error, database.due = True, "", None
            database.backoff, database.waiting_since = FIRST_BACKOFF, None
            return
        if ok is not None and not database.disturbed:
            database.reachable, database.error = False, error
        database.due = now + database.backoff
        database.backoff = min(database.backoff * 2, MAX_BACKOFF)

    def probing(self, name: str) -> bool:
        """A probe of this database is under way."""
        return name in self._databases and self._databases[name].running

    def state(self, name: str) -> tuple[bool | None, str]:
        """(reachable, error); None while not known."""
        database = self._databases.get(name)
        return (database.reachable, database.error) if database else (None, "")
