"""Reading a server's connection limits with the admin Secret's login (psycopg; one short connection per reading)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolfleet.plan.budget import DEFAULT_RESERVED, DEFAULT_SUPERUSER_RESERVED, Limits

if TYPE_CHECKING:
    import psycopg

# The settings that hold connections back. The RDS one exists only there; pg_settings simply has no such row elsewhere.
_SETTINGS = """
    SELECT name, setting FROM pg_catalog.pg_settings
    WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections',
                   'rds.rds_superuser_reserved_connections', 'server_version')
"""
_DATABASES = "SELECT datname, datconnlimit FROM pg_catalog.pg_database WHERE datconnlimit >= 0"
_REFUSALS = ("authentication failed", "no pg_hba.conf entry", "does not exist", "is not permitted to log in")
_ROLES = "SELECT rolname, rolconnlimit FROM pg_catalog.pg_roles WHERE rolconnlimit >= 0"


class DiscoveryError(Exception):
    """The server could not be asked; `refused` tells a refused login (the user can mend it) from no answer."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading: limits in connections, and those that PostgreSQL itself sets per database and role."""

    limits: Limits
    server_version: str
    database_limits: Mapping[str, int] = field(default_factory=dict)
    role_limits: Mapping[str, int] = field(default_factory=dict)


async def discover(
    *, host: str, port: int, username: str, password: str, sslmode: str, ca_file: str | None, timeout: float = 5.0
) -> Reading:
    """Read the limits of the server at `host`:`port` within `timeout` seconds. Raises DiscoveryError."""
    # Here, for it weighs 10 MiB, and neither a standby nor an operator without any admin Secret ever needs it.
    import psycopg
    from psycopg.rows import dict_row

    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "user": username,
        "password": password,
        "dbname": "postgres",
        "sslmode": sslmode,
        "connect_timeout": max(2, round(timeout)),
        "application_name": "poolfleet-operator",
        "options": f"-c statement_timeout={round(timeout * 1000)}",
    }
    if ca_file is not None:
        options["sslrootcert"] = ca_file
    try:
        connecting = psycopg.AsyncConnection.connect(**options, autocommit=True, row_factory=dict_row)
        async with await connecting as connection:
            settings = {row["name"]: row["setting"] async for row in await connection.execute(_SETTINGS)}
            databases = {row["datname"]: row["datconnlimit"] async for row in await connection.execute(_DATABASES)}
            roles = {row["rolname"]: row["rolconnlimit"] async for row in await connection.execute(_ROLES)}
    except psycopg.Error as error:
        raise _explained(error, host, port) from error
    reserved = int(settings.get("reserved_connections", DEFAULT_RESERVED))
    reserved += int(settings.get("rds.rds_superuser_reserved_connections", 0))
    superuser = int(settings.get("superuser_reserved_connections", DEFAULT_SUPERUSER_RESERVED))
    limits = Limits(int(settings["max_connections"]), superuser, reserved)
    return Reading(limits, settings.get("server_version", ""), databases, roles)


def _explained(error: "psycopg.Error", host: str, port: int) -> DiscoveryError:
    """What libpq or PostgreSQL said, in one line; it may say the same for each attempt. It names user and host, never
    the password."""
    lines = dict.fromkeys(line.strip().removeprefix("connection failed: ") for line in str(error).splitlines())
    text = " ".join(line for line in lines if line)[:300] or type(error).__name__
    # libpq gives no SQLSTATE for a connection that failed; a server that is full or starting is no refused login.
    refused = (error.sqlstate or "").startswith(("28", "3D", "42")) or any(words in text for words in _REFUSALS)
    return DiscoveryError(f"{host}:{port}: {text}", refused=refused)
