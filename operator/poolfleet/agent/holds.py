"""Holding databases: their queries wait, and no server connection is opened or handed out (design section 4).

A rotation holds a database on all pods while it changes the role's password. A hold is PAUSE on an admin session of its
own, for PAUSE is answered only when the last running transaction has ended (facts/pgbouncer.md 10). It is there when
PgBouncer shows the database as paused and no login to the server is under way: what runs goes on, nothing logs in.
(Tried with 1.26.1: nor does a new client of a pool that has no server connection yet.) In session mode, too; there
sessions that have their server connection go on.

PAUSE closes a login that is under way, which PgBouncer takes for one that failed: a pool without connections then
refuses its clients, and waits server_login_retry before the next login (seen: 3 of 1,460 logins of clients, and 1 s).
So the engine stops logins before `begin` (engine.Engine._calm).

A hold ends when the directive lets go of it, after what the directive wants was loaded or refused; and by itself,
HOLD_SECONDS after it began, whatever was or was not loaded. When it began is kept in a file, so that another agent goes
on with the same hold; a database that is paused for no hold that is known is resumed as if its hold had just been let
go of.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from poolfleet.agent.files import write_durably
from poolfleet.agent.logs import log
from poolfleet.agent.samples import Sample
from poolfleet.pgbouncer import quoting, show
from poolfleet.pgbouncer.admin import Rows, ServerError

HOLD_SECONDS: Final = 10.0
PACE: Final = 0.015  # seconds between two looks until a hold is there
RETRY: Final = 1.0  # after a full disk
HOLDS_FILE: Final = "holds.json"


class Session(Protocol):
    """An admin session of its own."""

    def send(self, sql: str) -> None:
        """Send a command without waiting for its answer."""

    def close(self) -> None:
        """Close it."""


class Console(Protocol):
    """What holding needs of PgBouncer's admin console."""

    @property
    def started(self) -> str:
        """Identity of the PgBouncer process."""

    async def fresh(self) -> Session:
        """A further session."""

    async def query(self, sql: str) -> Rows:
        """One command."""


@dataclass(slots=True)
class _Hold:
    until: float  # monotonic
    ended: int | None = None  # the revision that still wanted it when its time was over; None: it is alive
    session: Session | None = None  # PAUSE was sent to this process
    there: bool = False  # as last seen

    def begins(self, now: float) -> bool:
        """Whether PAUSE is to be sent."""
        return self.ended is None and self.session is None and now < self.until

    def drop(self) -> None:
        if self.session is not None:
            self.session.close()
        self.session, self.there = None, False


class Holds:
    """The holds of one pod. `begin` before anything is loaded, `finish` after it, `seen` with each sample."""

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._file = folder / HOLDS_FILE
        self._clock = clock
        self._wall = wall
        self._holds: dict[str, _Hold] | None = None  # None: an earlier agent's are not read yet
        self._process = ""
        self._retry_at = float("-inf")

    @property
    def some(self) -> bool:
        """A database is held, or paused for no known reason."""
        return any(hold.ended is None for hold in (self._holds or {}).values())

    def due(self, console: Console, rev: int, wanted: Iterable[str]) -> list[str]:
        """Those of `wanted` that `begin` would pause now."""
        now = self._clock()
        holds = self._known(now)
        self._of(console)
        if now < self._retry_at:
            return []
        return [
            name
            for name in wanted
            if name not in holds or holds[name].ended not in (None, rev) or holds[name].begins(now)
        ]

    async def begin(self, console: Console, rev: int, wanted: Iterable[str]) -> None:
        """Hold the databases `wanted` by the applied revision `rev`, as far as their time is not over.

        What is asked of `console` afterwards finds them paused. A hold whose beginning cannot be written down does not
        begin. Raises AdminError if PgBouncer went away.
        """
        now = self._clock()
        holds = self._known(now)
        self._of(console)
        wanted = sorted(wanted)
        new = [name for name in wanted if name not in holds or holds[name].ended not in (None, rev)]
        if new and now >= self._retry_at:
            before = dict(holds)
            holds |= {name: _Hold(now + HOLD_SECONDS) for name in new}
            if not self._save(now):
                holds.clear()
                holds.update(before)
        sent = False
        for name in wanted:
            hold = holds.get(name)
            if hold is not None and hold.begins(now):
                hold.session = await console.fresh()
                hold.session.send(f"PAUSE {quoting.identifier(name)}")
                log.info("hold", extra={"database": name, "seconds": round(hold.until - now, 1)})
                sent = True
        if sent:
            # PgBouncer reads what came on one socket before what comes on another after its next answer.
            await console.query("SHOW VERSION")

    async def finish(self, console: Console, rev: int, wanted: Iterable[str], *, settled: bool) -> None:
        """Resume what is not `wanted` any more by the applied revision `rev`, or is over its time.

        `settled`: what that revision wants loaded is loaded, or was refused; before that only the time ends a hold.
        Raises AdminError if PgBouncer went away.
        """
        now = self._clock()
        holds, wanted = self._known(now), set(wanted)
        changed = False
        for name, hold in list(holds.items()):
            over = now >= hold.until
            if hold.ended is None and (over if name in wanted else over or settled):
                await self._resume(console, name)
                hold.drop()
                changed = True
                if name in wanted:
                    hold.ended = rev
                    log.warning("the hold is over its time", extra={"database": name, "rev": rev})
                else:
                    del holds[name]
                    log.info("the hold has ended", extra={"database": name, "over its time": over})
            elif hold.ended is not None and name not in wanted:
                del holds[name]
                changed = True
        if changed:
            self._save(now)

    def seen(self, sample: Sample) -> None:
        """Take in what PgBouncer shows, after `begin` and `finish`."""
        now = self._clock()
        holds = self._known(now)
        for name, database in sample.databases.items():
            hold = holds.get(name)
            if not database.paused:
                if hold is not None and hold.session is not None:  # it was not there yet, or somebody has resumed it
                    hold.drop()
            elif hold is None or hold.ended is not None:
                log.warning("a database is paused that nobody holds", extra={"database": name})
                holds[name] = _Hold(now + HOLD_SECONDS if hold is None else now)
            else:
                hold.there = sample.pools.get(name, show.Pool(name, "")).sv_login == 0
        for name, hold in holds.items():
            hold.there = hold.there and name in sample.databases

    def left(self, name: str) -> float | None:
        """Seconds until the hold of a database ends by itself; None: it is not held, or not yet."""
        hold = (self._holds or {}).get(name)
        if hold is None or hold.ended is not None or not hold.there:
            return None
        return max(hold.until - self._clock(), 0.0)

    def pace(self) -> float | None:
        """Seconds to the next look, None if no hold is awaited."""
        awaited = any(hold.session is not None and not hold.there for hold in (self._holds or {}).values())
        return PACE if awaited else None

    def _of(self, console: Console) -> None:
        """Drop the sessions of a PgBouncer that is gone."""
        if console.started != self._process:
            self._process = console.started
            for earlier in (self._holds or {}).values():
                earlier.drop()

    async def _resume(self, console: Console, name: str) -> None:
        try:
            await console.query(f"RESUME {quoting.identifier(name)}")
        except ServerError as error:  # it was not paused, or is not served any more
            log.info("nothing to resume", extra={"database": name, "reason": error.text})

    def _known(self, now: float) -> dict[str, _Hold]:
        if self._holds is None:
            self._holds = self._load(now)
        return self._holds

    def _load(self, now: float) -> dict[str, _Hold]:
        try:
            message = json.loads(self._file.read_bytes())
            # A clock that was set back must not make a hold longer.
            left = {str(name): min(float(until) - self._wall(), HOLD_SECONDS) for name, until in message.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:  # no crash does this: it is replaced in one step
            log.error("the file of the holds is damaged", extra={"reason": repr(error)})
            return {}
        return {name: _Hold(now + seconds) for name, seconds in left.items()}

    def _save(self, now: float) -> bool:
        """Write the holds down; those that have ended are long over their time, which says enough."""
        until = {name: self._wall() + hold.until - now for name, hold in (self._holds or {}).items()}
        try:
            write_durably(self._file, json.dumps(until).encode())
        except OSError as error:
            log.error("the holds cannot be written down", extra={"reason": str(error)})
            self._retry_at = now + RETRY
            return False
        return True
