"""What the admin console's SHOW commands say, as values.

Columns are found by name, for they shift between versions (facts/pgbouncer.md 7). A missing or unreadable column raises
ValueError. Standard library only.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from poolfleet.pgbouncer.admin import Rows

ADMIN_DATABASE: Final = "pgbouncer"
UNLIMITED: Final = 2_147_483_647
"""What PgBouncer means by a limit of 0."""


@dataclass(frozen=True, slots=True)
class Database:
    """One row of SHOW DATABASES. `limit` is what it may open: the larger of pool_size and max_db_connections."""

    name: str
    host: str
    port: int
    force_user: str
    pool_size: int
    max_connections: int
    current_connections: int  # logins and cancels under way included
    paused: bool
    disabled: bool

    @property
    def limit(self) -> int:
        return max(self.pool_size or UNLIMITED, self.max_connections or UNLIMITED)


@dataclass(frozen=True, slots=True)
class Pool:
    """One row of SHOW POOLS, or the sum of several."""

    database: str
    user: str
    cl_active: int = 0
    cl_waiting: int = 0
    cl_active_cancel_req: int = 0
    cl_waiting_cancel_req: int = 0
    sv_active: int = 0
    sv_active_cancel: int = 0
    sv_being_canceled: int = 0
    sv_idle: int = 0
    sv_used: int = 0
    sv_tested: int = 0
    sv_login: int = 0
    maxwait_us: int = 0  # here the whole wait in microseconds

    @property
    def servers(self) -> int:
        """Server connections, without those that only carry a cancel request."""
        return self.sv_active + self.sv_being_canceled + self.sv_idle + self.sv_used + self.sv_tested + self.sv_login

    @property
    def logged_in(self) -> int:
        """Server connections that have passed the server's login."""
        return self.sv_active + self.sv_idle + self.sv_used

    @property
    def clients(self) -> int:
        """Clients linked, idle or waiting."""
        return self.cl_active + self.cl_waiting


@dataclass(frozen=True, slots=True)
class Server:
    """One row of SHOW SERVERS."""

    database: str
    user: str
    state: str
    remote_pid: int  # the backend's pid, 0 while unknown
    close_needed: bool


@dataclass(frozen=True, slots=True)
class Client:
    """One row of SHOW CLIENTS."""

    database: str
    address: str  # "unix" for the Unix socket
    idle: bool  # it has no server connection and waits for none (PgBouncer 1.25 or newer says so)
    requested: datetime  # when it sent its last request, to the second, in PgBouncer's time zone
    id: int


COUNTS: Final = (
    "cl_active",
    "cl_waiting",
    "cl_active_cancel_req",
    "cl_waiting_cancel_req",
    "sv_active",
    "sv_active_cancel",
    "sv_being_canceled",
    "sv_idle",
    "sv_used",
    "sv_tested",
    "sv_login",
)


def dicts(rows: Rows) -> Iterator[dict[str, str]]:
    """Each row by column name; NULL becomes "" """
    for row in rows.rows:
        yield {name: value or "" for name, value in zip(rows.columns, row, strict=True)}


def databases(rows: Rows) -> list[Database]:
    """SHOW DATABASES without the admin console itself."""
    return [
        Database(
            name=_text(row, "name"),
            host=_text(row, "host"),
            port=_count(row, "port"),
            force_user=_text(row, "force_user"),
            pool_size=_count(row, "pool_size"),
            max_connections=_count(row, "max_connections"),
            current_connections=_count(row, "current_connections"),
            paused=_count(row, "paused") != 0,
            disabled=_count(row, "disabled") != 0,
        )
        for row in dicts(rows)
        if row.get("name") != ADMIN_DATABASE
    ]


def pools(rows: Rows) -> list[Pool]:
    """SHOW POOLS without the admin console itself."""
    return [
        Pool(
            database=_text(row, "database"),
            user=_text(row, "user"),
            **{name: _count(row, name) for name in COUNTS},
            maxwait_us=_count(row, "maxwait") * 1_000_000 + _count(row, "maxwait_us"),
        )
        for row in dicts(rows)
        if row.get("database") != ADMIN_DATABASE
    ]


def by_database(found: Iterable[Pool]) -> dict[str, Pool]:
    """Sum of the pools of each database; the wait is the longest one."""
    sums: dict[str, Pool] = {}
    for pool in found:
        so_far = sums.get(pool.database, Pool(pool.database, ""))
        sums[pool.database] = Pool(
            pool.database,
            "",
            **{name: getattr(so_far, name) + getattr(pool, name) for name in COUNTS},
            maxwait_us=max(so_far.maxwait_us, pool.maxwait_us),
        )
    return sums


def servers(rows: Rows) -> list[Server]:
    """SHOW SERVERS."""
    return [
        Server(
            database=_text(row, "database"),
            user=_text(row, "user"),
            state=_text(row, "state"),
            remote_pid=_count(row, "remote_pid"),
            close_needed=_count(row, "close_needed") != 0,
        )
        for row in dicts(rows)
        if row.get("database") != ADMIN_DATABASE
    ]


def clients(rows: Rows) -> list[Client]:
    """SHOW CLIENTS, the admin console's included."""
    return [
        Client(
            database=_text(row, "database"),
            address=_text(row, "addr"),
            idle=_text(row, "state") == "idle" and not _text(row, "link"),
            requested=datetime.strptime(_text(row, "request_time")[:19], "%Y-%m-%d %H:%M:%S"),  # noqa: DTZ007 - see Client
            id=_count(row, "id"),
        )
        for row in dicts(rows)
    ]


def users(rows: Rows) -> dict[str, int]:
    """SHOW USERS: client user -> its connected clients, where there are some; the admin console's count for nobody.
    Empty where PgBouncer does not count them (before 1.24)."""
    counts = {_text(row, "name"): int(row.get("current_client_connections") or 0) for row in dicts(rows)}
    return {name: count for name, count in counts.items() if count}


def waiting_cancels(rows: Rows) -> dict[int, int]:
    """SHOW PEER_POOLS: peer_id -> cancel requests that wait for a connection to it, where some do."""
    waiting = {_count(row, "peer_id"): _count(row, "cl_waiting_cancel_req") for row in dicts(rows)}
    return {peer: count for peer, count in waiting.items() if count}


def config(rows: Rows) -> dict[str, str]:
    """SHOW CONFIG: key to value."""
    return {_text(row, "key"): _text(row, "value") for row in dicts(rows)}


def version(rows: Rows) -> str:
    """SHOW VERSION: such as "PgBouncer 1.26.1"."""
    return next((_text(row, "version") for row in dicts(rows)), "")


def stats(rows: Rows) -> dict[str, dict[str, int]]:
    """SHOW STATS: database to its numbers, times in microseconds, without the admin console itself."""
    return {
        row["database"]: {name: _count(row, name) for name in row if name != "database"}
        for row in dicts(rows)
        if row.get("database") not in (None, ADMIN_DATABASE)
    }


def _text(row: Mapping[str, str], name: str) -> str:
    if name not in row:
        raise ValueError(f"PgBouncer's answer has no column {name}")
    return row[name]


def _count(row: Mapping[str, str], name: str) -> int:
    return int(_text(row, name) or 0)
