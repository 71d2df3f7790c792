"""What is read from the servers, beside the reconciliations, so that a slow database holds up nobody's grants.

One connection per server (postgres/connection.py) serves the readings of the limits, the looks at the sessions, and the
roles' limits (controller/roles.py).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from poolfleet.plan import sessions as sorting
from poolfleet.plan.discovery import Reading
from poolfleet.plan.model import Sessions
from poolfleet.plan.sessions import Backend
from poolfleet.postgres import discovery
from poolfleet.postgres import sessions as reading
from poolfleet.postgres.connection import Admin, Login, ServerError

TIMEOUT: Final = 10.0  # seconds for one reading
RETRY: Final = 10.0  # seconds after a failed one
AT_ONCE: Final = 5.0  # seconds between readings that cannot wait
FRESH: Final = 60.0  # seconds: the limits are read on a connection that is no older, for a name may be moved
CONFIRM: Final = 3.0  # seconds between two looks at a session that nobody accounts for

BLIND: Final = (
    "The role of adminSecretRef does not see other roles' sessions, so that those which no pod accounts for cannot be "
    "counted. GRANT pg_monitor to it."
)
PROXY: Final = (
    "None of the pods' sessions is found under its pid in pg_stat_activity (a proxy in between gives out its own), so "
    "that those which no pod accounts for cannot be counted."
)

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known:
    admin: Admin
    read: float = 0.0  # when the newest reading ended
    reading: Reading | None = None
    error: ServerError | None = None
    fresh: bool = False  # not folded into the status yet
    urgent: bool = False  # asked for at once
    task: asyncio.Task[None] | None = None
    looked: float = 0.0  # when the newest look at the sessions ended
    look_failed: bool = False
    look: asyncio.Task[None] | None = None
    sessions: Sessions | None = None
    blind: str = ""
    roles: frozenset[str] = frozenset()  # what the pools log in as
    matched: bool = False  # an agent's pid was found in pg_stat_activity once: they are PostgreSQL's own


class Discoveries:
    """The newest readings of each server, by PgServer UID. The callbacks `done` are called when one has ended."""

    def __init__(self, clock: Callable[[], float], confirm: float = CONFIRM) -> None:
        """`clock` in seconds since the epoch; `confirm`: seconds between two looks, shorter only in tests."""
        self._clock = clock
        self._confirm = confirm
        self._known: dict[str, _Known] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def admin(self, uid: str) -> Admin | None:
        """The connection to a server that was wanted; None without an admin Secret."""
        known = self._known.get(uid)
        return known.admin if known else None

    def forget(self, uid: str) -> None:
        """The PgServer is gone, or has no admin Secret any more."""
        known = self._known.pop(uid, None)
        if known is not None:
            self._close(known)

    async def close(self) -> None:
        """End every reading and close every connection."""
        for uid in [*self._known]:
            self.forget(uid)
        await asyncio.gather(*self._closing)

    # The limits

    def failure(self, uid: str) -> ServerError | None:
        """Why the newest reading failed; None if it did not."""
        known = self._known.get(uid)
        return known.error if known else None

    def take(self, uid: str) -> Reading | None:
        """A reading that was not taken before, once."""
        known = self._known.get(uid)
        if known is None or not known.fresh:
            return None
        known.fresh = False
        return known.reading

    def at_once(self, uid: str) -> None:
        """Let the next `want` read at once, at most every AT_ONCE seconds: logins fail, or pods starve."""
        known = self._known.get(uid)
        if known is not None:
            known.urgent = True

    def want(self, uid: str, login: Login, due: float, done: Callable[[], None]) -> float:
        """Read the limits if `due` (seconds since the epoch) has come, the login is new, the last try failed RETRY
        seconds ago, or it cannot wait. Returns when to ask again."""
        now = self._clock()
        known = self._of(uid, login)
        if known.task is not None:
            return now + TIMEOUT
        if known.error is not None:
            due = known.read + RETRY
        elif known.urgent:
            due = known.read + AT_ONCE
        else:
            due = max(due, known.read + 1.0)
        if known.read and now < due:
            return due
        known.urgent = False
        known.task = asyncio.create_task(self._read(known, done), name=f"discovery {login.host}")
        return now + TIMEOUT

    async def _read(self, known: _Known, done: Callable[[], None]) -> None:
        try:
            known.reading = await self._within(known, known.admin.run(discovery.read, oldest=FRESH))
            known.error, known.fresh = None, True
        except ServerError as error:
            known.error = error
            about = {"server": known.admin.login.host, "error": str(error)}
            logger.warning("Could not read the server's limits", extra=about)
        finally:
            known.read = self._clock()
            known.task = None
        done()

    # The sessions

    def sessions(self, uid: str) -> Sessions | None:
        """The newest look at the sessions; None before the first, and while they cannot be told apart."""
        known = self._known.get(uid)
        return known.sessions if known else None

    def blind(self, uid: str) -> str:
        """Why there are no sessions although the server can be asked, in words that say what to change; "" if there
        are."""
        known = self._known.get(uid)
        return known.blind if known else ""

    def watch_sessions(
        self,
        uid: str,
        login: Login,
        roles: Collection[str],
        agents: Callable[[], Awaitable[Collection[int]]],
        every: float,
        done: Callable[[], None],
    ) -> float:
        """Look at the sessions if the last look ended `every` seconds ago. Returns when to ask again.

        `roles`: what the pools log in as; `agents` asks every agent for the pids of its server connections, after it is
        called. Where something is unaccounted for, a look takes two readings, CONFIRM seconds apart.
        """
        now = self._clock()
        known = self._of(uid, login)
        if not known.roles >= set(roles):
            known.urgent = True  # the limits of a new pool's roles are not known yet
        known.roles = frozenset(roles)
        if known.look is not None:
            return now + every
        due = known.looked + (max(every, RETRY) if known.look_failed else every)
        if known.looked and now < due:
            return due
        looking = self._look(known, frozenset(roles), agents, done)
        known.look = asyncio.create_task(looking, name=f"sessions {login.host}")
        return now + every

    async def _look(
        self,
        known: _Known,
        roles: frozenset[str],
        agents: Callable[[], Awaitable[Collection[int]]],
        done: Callable[[], None],
    ) -> None:
        try:
            seen, known.blind = await self._sorted(known, roles, agents)
            known.sessions = None if seen is None else sorting.since(seen, known.sessions)
            known.look_failed = False
        except ServerError as error:
            # What was seen last stays, with its time: whoever plans on it knows how old it is.
            known.look_failed = True
            logger.debug("Could not read the server's sessions: %s", error)
        finally:
            known.looked = self._clock()
            known.look = None
        done()

    async def _sorted(
        self, known: _Known, roles: frozenset[str], agents: Callable[[], Awaitable[Collection[int]]]
    ) -> tuple[Sessions | None, str]:
        """One look: the sessions, or why they cannot be told apart. Raises ServerError."""
        at = self._clock()
        first = await self._backends(known)
        if first is None:
            return None, BLIND
        pids = frozenset(await agents())
        strangers = sorting.unknown(first, roles, pids)
        if not strangers:
            known.matched = known.matched or bool(pids and sorting.of_pools(first, roles))
            return sorting.sort(at, first, roles, quiet=True), ""
        await asyncio.sleep(self._confirm)
        second = await self._backends(known)
        if second is None:
            return None, BLIND
        pids |= frozenset(await agents())
        if not known.matched and not sorting.comparable({*first, *second}, roles, pids):
            return None, PROXY
        known.matched = known.matched or bool(pids)
        # in both readings with the same start, and known to no agent at either time
        orphans = strangers & sorting.unknown(second, roles, pids)
        return sorting.sort(at, second, roles, orphans, quiet=not sorting.unknown(strangers, roles, pids)), ""

    async def _backends(self, known: _Known) -> list[Backend] | None:
        return await self._within(known, known.admin.run(reading.read))

    # Connections

    async def _within(self, known: _Known, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, or ServerError if there is none in TIMEOUT seconds."""
        try:
            async with asyncio.timeout(TIMEOUT):
                return await work
        except TimeoutError as error:
            login = known.admin.login
            raise ServerError(f"{login.host}:{login.port}: no answer in {TIMEOUT:.0f} s", refused=False) from error

    def _of(self, uid: str, login: Login) -> _Known:
        """What is known of the server; with a new login nothing."""
        known = self._known.get(uid)
        if known is None or known.admin.login != login:
            if known is not None:
                self._close(known)
            known = self._known[uid] = _Known(Admin(login))
        return known

    def _close(self, known: _Known) -> None:
        task = asyncio.create_task(self._end(known), name=f"close {known.admin.login.host}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _end(self, known: _Known) -> None:
        tasks = [task for task in (known.task, known.look) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await known.admin.close()
