"""One login through the own PgBouncer, to see whether a database's server can be reached."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from poolfleet.agent.files import Config
from poolfleet.agent.reach import Reach
from poolfleet.agent.samples import Sample
from poolfleet.api import names
from poolfleet.api.wire import tombstone
from poolfleet.pgbouncer import quoting
from poolfleet.pgbouncer.admin import AdminError, Connection, ServerError

TIMEOUT: Final = 6.0
"""Seconds for login and query. While PgBouncer cannot connect, it lets the first clients of a database wait, without a
word, until client_login_timeout; a login to the server that takes longer than this shows in the next samples."""


PROBE_USERS: Final = 3
PROBES_AT_ONCE: Final = 4


class Probes:
    """The logins under way, as tasks of their own."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)
        self._running: set[asyncio.Task[None]] = set()

    def start(self, reach: Reach, sample: Sample | None, config: Config) -> None:
        """Begin what `reach` says is due; it is told the result. `sample`: where the databases are."""
        for name in reach.due(time.monotonic(), PROBES_AT_ONCE - len(self._running)):
            database = sample.databases.get(name) if sample else None
            users = logins(config, forced=database is not None and database.force_user != "")
            address = f"{database.host}:{database.port}" if database is not None else "the server"
            task = asyncio.create_task(self._probe(reach, name, address, users))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    @property
    def running(self) -> bool:
        """The agent itself is a client of PgBouncer."""
        return bool(self._running)

    async def _probe(self, reach: Reach, name: str, address: str, users: Sequence[tuple[str, str]]) -> None:
        ok, error = await probe(self._socket, name, address, users)
        reach.result(name, ok, error, time.monotonic())


def logins(config: Config, *, forced: bool) -> list[tuple[str, str]]:
    """Whom to log in as (name, password): users of the pool; one is enough where the server's role is `forced`."""
    listed = quoting.read_userlist(config.files.get(names.USERLIST_FILE, b"").decode(errors="replace"))
    # removed users are not tried: the server would log failed logins, and might lock the role
    users = [login for login in listed if login[1] != tombstone(config.key or b"", login[0])]
    return users[: 1 if forced else PROBE_USERS]


async def probe(socket: str, database: str, address: str, users: Sequence[tuple[str, str]]) -> tuple[bool | None, str]:
    """Log in to `database` and run SELECT 1 as one of `users` (name, password), the first that works.

    `address` is the server's, for messages. Returns (True, ""), (False, what PgBouncer or PostgreSQL said to the first
    user), or (None, "") if that says nothing about the server. A server that does not answer is asked once only.
    """
    problem: tuple[bool | None, str] = (None, "")
    for user, password in users:
        found = await _try(socket, database, address, user, password)
        if found[0]:
            return found
        if problem[0] is None:
            problem = found
        if found == (False, _silence(address)):
            break
    return problem


def _silence(address: str) -> str:
    return f"PgBouncer got no connection to {address} within {TIMEOUT:g} s; its log says why"


async def _try(socket: str, database: str, address: str, user: str, password: str) -> tuple[bool | None, str]:
    silent = _silence(address)
    try:
        async with asyncio.timeout(TIMEOUT):
            connection = await Connection.open(
                socket, user=user, database=database, password=password, timeout=2 * TIMEOUT
            )
            try:
                await connection.query("SELECT 1", 2 * TIMEOUT)
            finally:
                connection.close()
    except TimeoutError:
        return False, silent
    except ServerError as error:
        if "no more connections allowed" in error.text:  # max_client_conn: PgBouncer is full, whatever the server is
            return None, ""
        if "server conn crashed?" in error.text:  # by its log: TLS, or no PostgreSQL at all
            return False, f"connections of PgBouncer to {address} end before their login; its log says why"
        return False, silent if "client_login_timeout" in error.text else error.text
    except AdminError as error:
        return False, f"PgBouncer: {error}"
    return True, ""
