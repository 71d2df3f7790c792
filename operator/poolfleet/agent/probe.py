"""One login through the own PgBouncer, to see whether a database's server can be reached."""

from collections.abc import Sequence
from typing import Final

from poolfleet.pgbouncer.admin import AdminError, Connection, ServerError

TIMEOUT: Final = 12.0
"""Seconds for login and query; longer than server_connect_timeout, so that PgBouncer can say what is wrong."""

_OWN_LIMITS: Final = ("no more connections allowed", "query_wait_timeout", "client_login_timeout")


async def probe(socket: str, database: str, users: Sequence[tuple[str, str]]) -> tuple[bool | None, str]:
    """Log in to `database` and run SELECT 1 as one of `users` (name, password), the first that works.

    Returns (True, ""), (False, what PgBouncer or PostgreSQL said to the first user), or (None, "") if that says
    nothing about the server.
    """
    problem: tuple[bool | None, str] = (None, "")
    for user, password in users:
        found = await _try(socket, database, user, password)
        if found[0]:
            return found
        if problem[0] is None:
            problem = found
    return problem


async def _try(socket: str, database: str, user: str, password: str) -> tuple[bool | None, str]:
    try:
        connection = await Connection.open(socket, user=user, database=database, password=password, timeout=TIMEOUT)
        try:
            await connection.query("SELECT 1", TIMEOUT)
        finally:
            connection.close()
    except ServerError as error:
        if any(limit in error.text for limit in _OWN_LIMITS):
            return None, ""
        return False, error.text
    except AdminError as error:
        return False, f"PgBouncer: {error}"
    return True, ""
