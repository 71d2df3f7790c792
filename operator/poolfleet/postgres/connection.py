"""The operator's one connection to a server, as the admin of the PgServer (psycopg).

It stays open between readings, so that a look at the sessions costs a round trip and no login, and so that the
operator never has more than this one: the budget sets 2 aside, the other one is for a leader change.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from poolfleet.plan.conditions import refused_login

if TYPE_CHECKING:
    import psycopg

APPLICATION_NAME: Final = "poolfleet-operator"
IMAGE_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
CONNECT_SECONDS: Final = 5
STATEMENT_SECONDS: Final = 5  # statement_timeout
REQUIRE_AUTH: Final = "!password,!md5"
"""What a server must not ask for: the admin's password in clear, or a hash that is as good as the password. A server
that asks for none, as with trust and cert, is welcome."""
OLDEST: Final = 300.0  # seconds; after a failover the host's name may mean another server

T = TypeVar("T")


class ServerError(Exception):
    """The server could not be asked; `refused` tells a refused login or statement (the user can mend it) from no
    answer."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Login:
    """How to reach a server as its admin. Compared as a whole: anything new in it is a reason to read at once."""

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    sslmode: str
    ca: str | None  # PEM
    certificate: bytes | None = None  # PEM: what the operator shows to the server, and those between it and its CA
    key: bytes | None = field(default=None, repr=False)  # PEM, of the certificate

    def __repr__(self) -> str:
        return f"Login({self.username}@{self.host}:{self.port})"


class Admin:
    """One connection, opened when it is needed; whoever asks meanwhile waits."""

    def __init__(self, login: Login, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` in seconds."""
        self.login = login
        self._clock = clock
        self._turn = asyncio.Lock()
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._opened = 0.0

    async def run(self, work: "Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]]", *, oldest: float = OLDEST) -> T:
        """Do `work` on the connection (autocommit), on a new one if the old one is broken or older than `oldest`
        seconds. `work` must stand being done twice: it is begun again if a connection that was kept turns out to be
        broken. Raises ServerError. A caller that is cancelled leaves no half-used connection behind."""
        import psycopg  # here, for it weighs 10 MiB, and an operator without any admin Secret never needs it

        async with self._turn:
            kept = self._connection
            if kept is not None and self._clock() - self._opened > oldest:
                await self._drop()
                kept = None
            try:
                try:
                    return await work(kept or await self._open())
                except psycopg.OperationalError as error:
                    # 57P: told that it is ended, by a restart for example, though the socket is not closed yet
                    if kept is None or not (kept.closed or (error.sqlstate or "").startswith("57P")):
                        raise
                    await self._drop()
                    return await work(await self._open())
            except psycopg.Error as error:
                raise explained(error, self.login.host, self.login.port) from error
            finally:
                if self._connection is not None and not _idle(self._connection):
                    await self._drop()

    async def close(self) -> None:
        """Close the connection once nobody uses it; the next `run` opens another one."""
        async with self._turn:
            await self._drop()

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> "psycopg.AsyncConnection[Any]":
        opened = await connect(self.login)
        self._connection, self._opened = opened, self._clock()
        return opened


async def connect(login: Login, dbname: str = "postgres") -> "psycopg.AsyncConnection[Any]":
    """A new connection (autocommit) that the caller has to close. Raises psycopg.Error, OSError."""
    import psycopg

    options: dict[str, Any] = {
        "host": login.host,
        "port": login.port,
        "user": login.username,
        "password": login.password,
        "dbname": dbname,
        "sslmode": login.sslmode,
        "require_auth": REQUIRE_AUTH,
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": 1000 * CONNECT_SECONDS,  # a server that vanished without a word
        "application_name": APPLICATION_NAME,
        "options": f"-c statement_timeout={1000 * STATEMENT_SECONDS}",
    }
    if login.ca is None and login.sslmode.startswith("verify"):
        options["sslrootcert"] = IMAGE_BUNDLE
    # libpq takes files only, and reads them while it connects.
    authorities = None if login.ca is None else login.ca.encode()
    files = {"sslrootcert": authorities, "sslcert": login.certificate, "sslkey": login.key}
    with tempfile.TemporaryDirectory(prefix="poolfleet-tls-") as folder:
        for option, content in files.items():
            if content is not None:
                path = Path(folder) / option
                path.touch(mode=0o600)
                path.write_bytes(content)
                options[option] = str(path)
        return await psycopg.AsyncConnection.connect(**options, autocommit=True, prepare_threshold=None)


def _idle(connection: "psycopg.AsyncConnection[Any]") -> bool:
    """Whether the connection can be used again: open, nothing under way, no transaction left."""
    from psycopg.pq import TransactionStatus

    return not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE


def explained(error: "psycopg.Error", host: str, port: int) -> ServerError:
    """What libpq or PostgreSQL said, in one line; it may say the same for each attempt. It names user and host, never
    the password."""
    lines = dict.fromkeys(line.strip().removeprefix("connection failed: ") for line in str(error).splitlines())
    text = " ".join(line for line in lines if line)[:300] or type(error).__name__
    weak = "authentication method requirement" in text and REQUIRE_AUTH in text
    if weak:
        text += " (the password is given by SCRAM only: set the role's password anew with password_encryption = "
        text += "'scram-sha-256', and see pg_hba.conf)"
    # libpq gives no SQLSTATE for a connection that failed; a server that is full or starting is no refused login.
    refused = (error.sqlstate or "").startswith(("28", "3D", "42")) or refused_login(text)
    return ServerError(f"{host}:{port}: {text}", refused=refused or weak)
