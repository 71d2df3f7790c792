"""Altering roles: their CONNECTION LIMIT. Only roles that the caller was told to manage, and only those that are not
special; whoever may log in as the admin can do no more than this by way of the operator."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from poolfleet.plan.role_limits import UNLIMITED, RoleState, not_ours

if TYPE_CHECKING:
    import psycopg

LOCK: Final = 0x706F6F6C666C6565  # of the operator's own ("poolflee"): one of them alters roles at a time
_TIMEOUT: Final = "SELECT set_config('statement_timeout', '2s', true), set_config('lock_timeout', '2s', true)"
_LOCK: Final = "SELECT pg_catalog.pg_try_advisory_xact_lock(%s)"
_ROLES: Final = """
    SELECT rolname, rolconnlimit, rolsuper, rolreplication, rolbypassrls, rolname = current_user
    FROM pg_catalog.pg_roles WHERE rolname = ANY(%s)
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one role stands after the call."""

    limit: int  # its CONNECTION LIMIT now; -1: none, which is also said of a role that is not there or is exempt
    refused: str = ""  # why it was not altered, in words that say what to change


class Busy(Exception):
    """Another operator is altering roles on this server."""


async def set_limits(connection: "psycopg.AsyncConnection[Any]", limits: Mapping[str, int]) -> dict[str, Outcome]:
    """Set the CONNECTION LIMIT of each role (-1: none) in one transaction; what needs no change is not altered. Returns
    how each role stands. Raises Busy, and psycopg.Error if the server cannot be asked; then nothing was altered."""
    import psycopg
    from psycopg import sql

    outcomes: dict[str, Outcome] = {}
    async with connection.transaction():
        await connection.execute(_TIMEOUT)
        row = await (await connection.execute(_LOCK, (LOCK,))).fetchone()
        if row is None or not row[0]:
            raise Busy
        states = await _states(connection, limits)
        for role, limit in limits.items():
            state = states.get(role)
            refused = not_ours(state)
            if state is None or state.superuser:
                outcomes[role] = Outcome(UNLIMITED, refused)
                continue
            if refused:
                outcomes[role] = Outcome(state.limit, refused)
                continue
            if state.limit == limit:
                outcomes[role] = Outcome(limit)
                continue
            statement = sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(sql.Identifier(role), sql.Literal(limit))
            try:
                async with connection.transaction():
                    await connection.execute(statement)
            except psycopg.errors.ProgrammingError as error:  # PostgreSQL would say the same again
                words = error.diag.message_primary or "permission denied"
                if isinstance(error, psycopg.errors.InsufficientPrivilege):
                    words += "; the role of adminSecretRef needs CREATEROLE, and ADMIN OPTION on this one"
                outcomes[role] = Outcome(state.limit, words)
            else:
                outcomes[role] = Outcome(limit)
    return outcomes


async def _states(connection: "psycopg.AsyncConnection[Any]", roles: Collection[str]) -> dict[str, RoleState]:
    cursor = await connection.execute(_ROLES, (list(roles),))
    return {name: RoleState(*values) for name, *values in await cursor.fetchall()}
