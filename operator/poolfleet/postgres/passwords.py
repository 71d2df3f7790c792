"""Passwords of roles: which one is valid, and setting another. PostgreSQL gets a SCRAM verifier, never a password.

What the operator may alter is what `not_ours` allows and the PgServer lists; the caller sees to the list, and that the
Secret's password logs in. The verifier stands in the statement: a server with log_statement = ddl, or with
log_min_duration_statement below what the statement takes, writes it to its log, and only a superuser could forbid that
for one transaction. A verifier is not a password, but whoever reads it may guess at the password for as long as he
likes, so the passwords that are set here are long and random.
"""

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from poolfleet.plan.role_limits import RoleState, not_ours
from poolfleet.postgres.connection import Login, ServerError, connect, explained
from poolfleet.postgres.roles import LOCK, Busy

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composed

ITERATIONS: Final = 4096  # PostgreSQL's scram_iterations; each login of PgBouncer pays for them
STATEMENT_MS: Final = 2000  # statement_timeout of each statement here; shorter than a hold
LOCK_MS: Final = 1500  # lock_timeout; shorter still, so that PostgreSQL says which of the two it was
_VERIFIER: Final = re.compile(r"SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/]+=*\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=")
_SALT_BYTES: Final = 16  # as PostgreSQL's
_WRONG: Final = "password authentication failed"  # SQLSTATE 28P01; libpq gives none for a connection that failed
# PostgreSQL counts a role's and a database's connections, and the reserved slots, after it knows who it is.
_FULL_FOR_HIM: Final = (
    "too many connections for role",
    "too many connections for database",
    "remaining connection slots are reserved",
)

_TIMEOUTS: Final = "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true)"
_TRY_LOCK: Final = "SELECT pg_catalog.pg_try_advisory_xact_lock(%s)"
_FACTS: Final = """
    SELECT r.rolname, r.rolconnlimit, r.rolsuper, r.rolreplication, r.rolbypassrls, r.rolname = current_user,
           r.rolcanlogin, r.rolcreatedb, r.rolcreaterole, r.rolinherit, r.rolvaliduntil::text,
           array(SELECT g.rolname::text FROM pg_catalog.pg_auth_members m
                 JOIN pg_catalog.pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid),
           array(SELECT coalesce(d.datname::text, '') FROM pg_catalog.pg_db_role_setting s
                 LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c
                 WHERE s.setrole = r.oid ORDER BY s.setdatabase, c),
           array(SELECT c FROM pg_catalog.pg_db_role_setting s, unnest(s.setconfig) c
                 WHERE s.setrole = r.oid ORDER BY s.setdatabase, c)
    FROM pg_catalog.pg_roles r WHERE r.rolname = ANY(%s)
"""
# Whoever alters roles holds this until the transaction ends; pg_locks and the names are there for everybody to see.
_HOLDERS: Final = """
    SELECT DISTINCT a.pid, a.usename::text FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
    WHERE l.relation = 'pg_catalog.pg_authid'::regclass AND l.granted AND l.mode NOT IN ('AccessShareLock')
    AND l.pid <> pg_catalog.pg_backend_pid() ORDER BY a.pid
"""
_SESSIONS: Final = "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usename = %s"


class Refused(Exception):
    """The role was not altered, and why, in words that say what to do. `passing`: somebody only has a lock on it."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class Unknown(Exception):
    """Nobody knows whether the role was altered: the answer did not come. `logs_in` tells."""


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """What PostgreSQL says of one role. Two roles whose `rights` are equal can stand in for each other."""

    state: RoleState
    can_login: bool
    create_db: bool
    create_role: bool
    inherit: bool
    valid_until: str  # as PostgreSQL prints it; "": for ever
    member_of: frozenset[str]
    settings: frozenset[tuple[str, str]]  # database ("": all), `name=value`, as ALTER ROLE … SET made them

    @property
    def set_role(self) -> str:
        """The role that its sessions become by `ALTER ROLE … SET role`, "" if they stay what they are."""
        return next((text.partition("=")[2] for db, text in self.settings if not db and text.startswith("role=")), "")

    @property
    def rights(self) -> tuple[object, ...]:
        """What a session of it may do and is like; without the limit and the validity of its login."""
        return self.create_db, self.create_role, self.inherit, self.member_of, self.settings


def verifier(password: str, *, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """The SCRAM-SHA-256 secret of `password` as PostgreSQL stores it (RFC 5803 names the parts, RFC 7677 the hash).
    `salt`: random unless given. Raises ValueError for a password that is empty or not ASCII: no SASLprep here."""
    if not password or not password.isascii():
        raise ValueError("a password that is set here must be ASCII and not empty")
    salt = os.urandom(_SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"


async def logs_in(login: Login, dbname: str) -> bool:
    """Whether the password of `login` is right: one connection to `dbname`, closed at once. True as well if PostgreSQL
    knows the login but has no connection left for it. False only if it says that the password is wrong (it says the
    same of a role that does not exist, has no password, or one that has expired).

    Raises ServerError: `refused` if the role may not log in for another reason (NOLOGIN, no line in pg_hba.conf), or
    if the server does not ask for a password, so that nothing can be told, or wants it by less than SCRAM; else no
    answer that says anything."""
    import psycopg

    try:
        connection = await connect(login, dbname)
    except psycopg.OperationalError as error:
        text = str(error)
        if _WRONG in text:
            return False
        asked = error.pgconn is not None and error.pgconn.used_password
        if asked and any(words in text for words in _FULL_FOR_HIM):
            return True
        raise explained(error, login.host, login.port) from error
    except psycopg.Error as error:
        raise explained(error, login.host, login.port) from error
    except OSError as error:
        raise ServerError(
            f"{login.host}:{login.port}: {error.strerror or type(error).__name__}", refused=False
        ) from error
    try:
        asked = connection.pgconn.used_password
    finally:
        await connection.close()
    if not asked:
        raise ServerError(
            f'{login.host}:{login.port}: the server asks "{login.username}" for no password (trust, peer or cert in '
            "pg_hba.conf): no password is wrong",
            refused=True,
        )
    return True


async def role_facts(connection: "psycopg.AsyncConnection[Any]", roles: Collection[str]) -> dict[str, RoleFacts]:
    """What there is to know of each of `roles` that exists. Any login may ask. Raises psycopg.Error."""
    cursor = await connection.execute(_FACTS, (list(roles),))
    return {name: _facts(*values) for name, *values in await cursor.fetchall()}


def _facts(*values: Any) -> RoleFacts:
    state, (can_login, create_db, create_role, inherit, valid_until) = RoleState(*values[:5]), values[5:10]
    member_of, databases, settings = values[10:]
    return RoleFacts(
        state=state,
        can_login=can_login,
        create_db=create_db,
        create_role=create_role,
        inherit=inherit,
        valid_until=valid_until or "",
        member_of=frozenset(member_of),
        settings=frozenset(zip(databases, settings, strict=True)),
    )


async def set_password(
    connection: "psycopg.AsyncConnection[Any]",
    role: str,
    secret: str,
    *,
    alive: Callable[[], bool],
    login: bool = False,
) -> None:
    """Give `role` the verifier `secret` (what `verifier` returns), and LOGIN if asked, in one transaction.

    `alive`: whether this process may still act (the lease, the hold); asked right before the statement. Raises Busy,
    Refused and psycopg.Error if the role is surely as it was, Unknown if nobody knows; a caller that cancels does not
    know either. He must be ready to: statement_timeout does not hold for a commit that waits for a synchronous
    standby. No error shows the verifier."""
    from psycopg import sql

    if not _VERIFIER.fullmatch(secret):
        raise ValueError("not a SCRAM-SHA-256 verifier")  # PostgreSQL would take it for a password
    options = sql.SQL("LOGIN PASSWORD {}" if login else "PASSWORD {}").format(sql.Literal(secret))
    await _alter(connection, role, options, alive)


async def disable(connection: "psycopg.AsyncConnection[Any]", role: str, *, alive: Callable[[], bool]) -> None:
    """NOLOGIN and no password for `role`; its sessions stay. Guards and errors are those of `set_password`."""
    from psycopg import sql

    await _alter(connection, role, sql.Composed([sql.SQL("NOLOGIN PASSWORD NULL")]), alive)


async def try_to_alter(connection: "psycopg.AsyncConnection[Any]", role: str, limit: int) -> None:
    """Alter `role` to what it is, its CONNECTION LIMIT `limit`, and undo it: raises what `set_password` would, while
    nobody waits for it yet."""
    from psycopg import sql

    async with connection.transaction(force_rollback=True):
        options = sql.SQL("CONNECTION LIMIT {}").format(sql.Literal(limit))
        await _alter(connection, role, sql.Composed([options]), lambda: True)


async def nobody_alters(connection: "psycopg.AsyncConnection[Any]") -> bool:
    """Whether no operator is altering roles on this server. Raises psycopg.Error."""
    async with connection.transaction():
        row = await (await connection.execute(_TRY_LOCK, (LOCK,))).fetchone()
    return row is not None and bool(row[0])


async def sessions_of(connection: "psycopg.AsyncConnection[Any]", role: str) -> int:
    """How many sessions log in as `role` has now; PostgreSQL shows the names to everybody. Raises psycopg.Error."""
    row = await (await connection.execute(_SESSIONS, (role,))).fetchone()
    assert row is not None
    return int(row[0])


async def _alter(
    connection: "psycopg.AsyncConnection[Any]", role: str, options: "Composed", alive: Callable[[], bool]
) -> None:
    import psycopg
    from psycopg import sql

    statement = sql.SQL("ALTER ROLE {} {}").format(sql.Identifier(role), options)
    step = "before"
    try:
        async with connection.transaction():
            await connection.execute(_TIMEOUTS, (f"{STATEMENT_MS}ms", f"{LOCK_MS}ms"))
            row = await (await connection.execute(_TRY_LOCK, (LOCK,))).fetchone()
            if row is None or not row[0]:
                raise Busy
            facts = (await role_facts(connection, [role])).get(role)
            strange = not_ours(facts.state if facts is not None else None)
            if strange:
                raise Refused(f'role "{role}" is not altered: {strange}')
            if not alive():
                raise Refused("this operator must not act any more, or the time for it is over")
            step = "alter"
            await connection.execute(statement)
            step = "commit"
    except psycopg.Error as error:
        if step == "before":
            raise
        # "from None" everywhere: PostgreSQL may quote the statement in its answer.
        if step == "commit" or error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
            said = error.diag.message_primary or type(error).__name__
            raise Unknown(f'the answer to ALTER ROLE "{role}" did not come: {said}') from None
        words = error.diag.message_primary or type(error).__name__
        late = isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable)
        denied = isinstance(error, psycopg.errors.InsufficientPrivilege)
    else:
        return
    if late:
        words += f"; {await _holders(connection)}"
    elif denied:
        words += "; the role of adminSecretRef needs CREATEROLE, and ADMIN OPTION on this one"
    raise Refused(f'role "{role}" could not be altered: {words}', passing=late)


async def _holders(connection: "psycopg.AsyncConnection[Any]") -> str:
    """Who else is altering roles, in words. Raises psycopg.Error."""
    rows = await (await connection.execute(_HOLDERS)).fetchall()
    if not rows:
        return "whoever had altered a role without ending his transaction is done now"
    sessions = ", ".join(f'pid {pid} of "{user}"' for pid, user in rows[:3])
    return f"a transaction that has altered roles is still open: {sessions}; end it"
