"""Reading a server's connection limits, and who it is."""

from typing import TYPE_CHECKING, Any, LiteralString

from poolfleet.plan.discovery import DEFAULT_RESERVED, DEFAULT_SUPERUSER_RESERVED, Limits, Reading

if TYPE_CHECKING:
    import psycopg

# The settings that hold connections back. The RDS one exists only there; pg_settings simply has no such row elsewhere.
_SETTINGS = """
    SELECT name, setting FROM pg_catalog.pg_settings
    WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections',
                   'rds.rds_superuser_reserved_connections', 'server_version')
"""
_DATABASES = "SELECT datname, datconnlimit FROM pg_catalog.pg_database WHERE datconnlimit >= 0"
_ROLES = "SELECT rolname, rolconnlimit FROM pg_catalog.pg_roles WHERE rolconnlimit >= 0 AND NOT rolsuper"
_STARTED = """
    SELECT to_char(pg_catalog.pg_postmaster_start_time() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
"""
_IDENTIFIER = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"


async def read(connection: "psycopg.AsyncConnection[Any]") -> Reading:
    """Limits in connections, version and identity of the server. Limits of superusers are left out: nobody keeps them.
    Raises psycopg.Error."""
    settings = dict(await _rows(connection, _SETTINGS))
    reserved = int(settings.get("reserved_connections", DEFAULT_RESERVED))
    reserved += int(settings.get("rds.rds_superuser_reserved_connections", 0))
    superuser = int(settings.get("superuser_reserved_connections", DEFAULT_SUPERUSER_RESERVED))
    return Reading(
        limits=Limits(int(settings["max_connections"]), superuser, reserved),
        server_version=settings.get("server_version", ""),
        system_identifier=await _system_identifier(connection),
        started_at=(await _rows(connection, _STARTED))[0][0],
        database_limits=dict(await _rows(connection, _DATABASES)),
        role_limits=dict(await _rows(connection, _ROLES)),
    )


async def _system_identifier(connection: "psycopg.AsyncConnection[Any]") -> str:
    """Who the server is; "" where the login may not ask or the server does not know the question."""
    from psycopg import errors

    try:
        return str((await _rows(connection, _IDENTIFIER))[0][0])
    except (errors.InsufficientPrivilege, errors.UndefinedFunction, errors.FeatureNotSupported):
        return ""


async def _rows(connection: "psycopg.AsyncConnection[Any]", query: LiteralString) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query)).fetchall()
