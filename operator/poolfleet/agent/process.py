"""The PgBouncer beside the agent: is it there, is it still the same process, what does it say.

A process is identified by its admin socket: a PgBouncer that starts makes a new one (inode and modification time). The
connection is known to belong to the process whose socket was there before and after connecting.
"""

import asyncio
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from poolfleet.agent.samples import Sample
from poolfleet.api import names
from poolfleet.pgbouncer import show
from poolfleet.pgbouncer.admin import AdminError, Connection, Rows, ServerError

TIMEOUT: Final = 5.0


class Console:
    """The admin console of whichever PgBouncer runs. Used by one task only, except `fresh` and `transactions`."""

    def __init__(self, run: Path, port: int = names.PGBOUNCER_PORT) -> None:
        self.socket = run / f".s.PGSQL.{port}"
        self._connection: Connection | None = None
        self.started = ""  # identity of the process that the connection belongs to
        self.started_at = 0.0  # when it made its socket, seconds since the epoch
        self.pid = 0  # 0: not known

    async def connect(self) -> bool:
        """Be connected to the running PgBouncer; False if none answers. Cheap while nothing changed: one stat."""
        before = self._identity()
        if self._connection is not None:
            if before is not None and before[0] == self.started and not self._connection.ended:
                return True
            self.drop()
        if before is None:
            return False
        try:
            connection = await self.fresh()
        except AdminError:
            return False
        if self._identity() != before:
            connection.close()
            return False
        self._connection = connection
        self.started, self.started_at = before
        self.pid = connection.peer_pid
        return True

    def still(self, process: str) -> bool:
        """Whether the socket is still the one of this process."""
        now = self._identity()
        return now is not None and now[0] == process

    def ended(self, process: str) -> bool:
        """Whether this process is gone: its socket, or whoever listened on it."""
        if not self.still(process):
            return True
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)
            try:
                caller.connect(str(self.socket))
            except BlockingIOError:  # it is only busy
                return False
            except OSError:
                return True
        return False

    async def fresh(self) -> Connection:
        """A further admin connection, which the caller closes. Raises AdminError."""
        return await Connection.open(
            str(self.socket), user=show.ADMIN_DATABASE, database=show.ADMIN_DATABASE, timeout=TIMEOUT
        )

    def drop(self) -> None:
        """Forget the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def query(self, sql: str) -> Rows:
        """One admin command. Raises ServerError if PgBouncer refuses it; any other AdminError ends the connection."""
        if self._connection is None:
            raise AdminError("not connected")
        try:
            return await self._connection.query(sql, TIMEOUT)
        except ServerError as error:
            if error.text.startswith("FATAL"):
                self.drop()
                raise AdminError(error.text) from error
            raise
        except BaseException:
            self.drop()
            raise

    async def sample(self) -> Sample:
        """Databases, pools and servers as of now. Raises AdminError."""
        try:
            databases = show.databases(await self.query("SHOW DATABASES"))
            pools = show.pools(await self.query("SHOW POOLS"))
            servers = show.servers(await self.query("SHOW SERVERS"))
        except ValueError as error:
            raise AdminError(str(error)) from error
        return Sample(
            at=time.monotonic(),
            databases={database.name: database for database in databases},
            pools=show.by_database(pools),
            pids=tuple(sorted(server.remote_pid for server in servers if server.remote_pid)),
        )

    async def quiet_logins(self, seconds: float, databases: Collection[str] | None = None, pace: float = 0.02) -> bool:
        """Wait until no server login is under way (in `databases`), for `seconds` at most, looking every `pace`
        seconds; whether there is none. Raises AdminError."""
        deadline = time.monotonic() + seconds
        while True:
            pools = (await self.sample()).pools
            if not any(pool.sv_login for name, pool in pools.items() if databases is None or name in databases):
                return True
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(pace)

    async def marker(self) -> str:
        """Marker of the file that was loaded completely last. Raises AdminError."""
        try:
            return show.config(await self.query("SHOW CONFIG")).get("syslog_ident", "")
        except ValueError as error:
            raise AdminError(str(error)) from error

    async def with_lifetime(self, lifetime: float, seconds: float) -> None:
        """Have `lifetime` as server_lifetime, of all databases, for so many seconds; a RELOAD would end it as well.
        Raises AdminError."""
        try:
            before = float(show.config(await self.query("SHOW CONFIG"))["server_lifetime"])
        except (KeyError, ValueError) as error:
            raise AdminError(f"SHOW CONFIG says nothing of server_lifetime: {error!r}") from error
        await self.query(f"SET server_lifetime = '{lifetime:g}'")
        try:
            await asyncio.sleep(seconds)
        finally:
            await self.query(f"SET server_lifetime = '{before:g}'")

    async def transactions(self) -> int:
        """Transactions that the running PgBouncer has ended, the agent's own included; -1 if it does not say.

        On a connection of its own, so that any task may ask.
        """
        try:
            connection = await self.fresh()
            try:
                stats = show.stats(await connection.query("SHOW STATS"))
            finally:
                connection.close()
            return sum(numbers.get("total_xact_count", 0) for numbers in stats.values())
        except (AdminError, ValueError):
            return -1

    async def version(self) -> str:
        """Such as "PgBouncer 1.26.1". Raises AdminError."""
        return show.version(await self.query("SHOW VERSION"))

    def _identity(self) -> tuple[str, float] | None:
        try:
            status = self.socket.stat()
        except OSError:
            return None
        # Not ctime: PgBouncer changes the socket's mode just after it has made it.
        return f"{status.st_ino}-{status.st_mtime_ns}", status.st_mtime
