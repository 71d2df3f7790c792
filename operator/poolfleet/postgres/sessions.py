"""Reading the sessions of a server: pg_stat_activity, for a role that sees everything."""

from typing import TYPE_CHECKING, Any, Final

from poolfleet.plan.sessions import Backend
from poolfleet.postgres.connection import APPLICATION_NAME

if TYPE_CHECKING:
    import psycopg

_SEES_ALL: Final = "SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')"  # true of superusers as well
# Backends that still authenticate have no role yet; walsenders and workers take no slot of max_connections.
_BACKENDS: Final = """
    SELECT pid, usename, backend_start::text,
           coalesce(application_name = %s AND usename = current_user, false)
    FROM pg_catalog.pg_stat_activity
    WHERE backend_type = 'client backend' AND usename IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()
"""


async def read(connection: "psycopg.AsyncConnection[Any]") -> list[Backend] | None:
    """Every client backend but the one that asks; None if the login does not see them all: to others PostgreSQL hides
    what tells them apart, and the answer would be falsely empty (facts/ledger.md 7). Raises psycopg.Error."""
    row = await (await connection.execute(_SEES_ALL)).fetchone()
    if row is None or not row[0]:
        return None
    cursor = await connection.execute(_BACKENDS, (APPLICATION_NAME,))
    return [Backend(pid, role, started, own) for pid, role, started, own in await cursor.fetchall()]
