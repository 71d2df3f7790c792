"""Readings of servers' limits, taken beside the reconciliations so that a slow database holds up nobody's grants."""

import asyncio
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from poolfleet.postgres.discovery import DiscoveryError, Reading, discover

TIMEOUT = 10.0  # seconds for one reading
RETRY = 10.0  # seconds after a failed one
IMAGE_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Login:
    """How to reach a server as its admin. Compared as a whole: anything new in it is a reason to read at once."""

    host: str
    port: int
    username: str
    password: str
    sslmode: str
    ca: str | None  # PEM

    def __repr__(self) -> str:
        return f"Login({self.username}@{self.host}:{self.port})"


@dataclass(slots=True)
class _Known:
    login: Login
    read: float  # when the newest reading ended
    reading: Reading | None = None
    error: DiscoveryError | None = None
    fresh: bool = False  # not folded into the status yet
    task: asyncio.Task[None] | None = None


class Discoveries:
    """The newest reading of each server, by PgServer UID. `done(uid)` is called when one has ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` in seconds since the epoch."""
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def failure(self, uid: str) -> DiscoveryError | None:
        """Why the newest try failed; None if it did not."""
        known = self._known.get(uid)
        return known.error if known else None

    def take(self, uid: str) -> Reading | None:
        """A reading that was not taken before, once."""
        known = self._known.get(uid)
        if known is None or not known.fresh:
            return None
        known.fresh = False
        return known.reading

    def want(self, uid: str, login: Login, due: float, done: Callable[[], None]) -> float:
        """Read the server if `due` (seconds since the epoch) has come, the login is new, or the last try failed
        RETRY seconds ago. Returns when to ask again."""
        now = self._clock()
        known = self._known.get(uid)
        if known is None or known.login != login:
            if known is not None and known.task is not None:
                known.task.cancel()
            known = self._known[uid] = _Known(login, 0.0, known.reading if known else None)
        if known.task is not None:
            return now + TIMEOUT
        due = known.read + RETRY if known.error is not None else max(due, known.read + 1.0)
        if known.read and now < due:
            return due
        known.task = asyncio.create_task(self._read(known, done), name=f"discovery {login.host}")
        return now + TIMEOUT

    def forget(self, uid: str) -> None:
        """The PgServer is gone."""
        known = self._known.pop(uid, None)
        if known is not None and known.task is not None:
            known.task.cancel()

    async def _read(self, known: _Known, done: Callable[[], None]) -> None:
        login = known.login
        try:
            async with asyncio.timeout(TIMEOUT):
                known.reading = await self._ask(login)
            known.error, known.fresh = None, True
        except TimeoutError:
            known.error = DiscoveryError(f"{login.host}:{login.port}: no answer in {TIMEOUT:.0f} s", refused=False)
        except DiscoveryError as error:
            known.error = error
        if known.error is not None:
            about = {"server": login.host, "error": str(known.error)}
            logger.warning("Could not read the server's limits", extra=about)
        known.read = self._clock()
        known.task = None
        done()

    async def _ask(self, login: Login) -> Reading:
        with tempfile.TemporaryDirectory(prefix="poolfleet-ca-") as folder:
            ca_file: str | None = None
            if login.ca is not None:
                path = Path(folder) / "ca.crt"
                path.write_text(login.ca)
                ca_file = str(path)
            elif login.sslmode.startswith("verify"):
                ca_file = IMAGE_BUNDLE
            return await discover(
                host=login.host,
                port=login.port,
                username=login.username,
                password=login.password,
                sslmode=login.sslmode,
                ca_file=ca_file,
            )
