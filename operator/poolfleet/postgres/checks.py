"""What a rotation has to know of the server: which password is valid, and whether the roles may be altered."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from poolfleet.plan.role_limits import not_ours
from poolfleet.plan.rotation import Check
from poolfleet.plan.secrets import Login as Credentials
from poolfleet.postgres.connection import Admin, ServerError
from poolfleet.postgres.passwords import (
    Refused,
    RoleFacts,
    Unknown,
    logs_in,
    nobody_alters,
    role_facts,
    sessions_of,
    try_to_alter,
)
from poolfleet.postgres.roles import Busy


@dataclass(frozen=True, slots=True)
class Questions:
    """What to try. Logins of the main and of the next Secret, each None if there is none."""

    main: Credentials | None
    following: Credentials | None
    dbname: str  # a database on the server that the role may connect to
    idle: str = ""  # with AlternatingRoles: the role whose sessions are to be counted
    retire: bool = False  # that role is to be disabled
    former: Credentials | None = None  # and this is its login, as far as it is known
    roles: tuple[str, ...] = field(default=())  # those that are altered, and must have the same rights


async def check(admin: Admin, ask: Questions, clock: Callable[[], float]) -> Check:
    """Try it, with a connection of the operator's own for each login. What cannot be known is told in `error`."""
    try:
        return await _check(admin, ask, clock)
    except ServerError as error:
        if error.refused:
            return Check(clock(), refusal=f"What the password is worth cannot be tried: {error}.", idle=ask.idle)
        return Check(clock(), error=str(error), idle=ask.idle)


async def _check(admin: Admin, ask: Questions, clock: Callable[[], float]) -> Check:
    # A password that somebody has just set may be invisible still, while the commit waits for a standby; he has this
    # lock until then. What is tried afterwards is final.
    if not await admin.run(nobody_alters):
        return Check(clock(), error="somebody is altering roles on the server", idle=ask.idle)
    facts = await admin.run(lambda connection: role_facts(connection, ask.roles))
    sessions = await admin.run(lambda connection: sessions_of(connection, ask.idle)) if ask.idle else 0
    works = await _works(admin, ask, facts)
    refusal = _refusal(ask, facts, works)
    if works != "next" and not refusal:
        try:
            for role in ask.roles:
                limit = facts[role].state.limit
                await admin.run(partial(try_to_alter, role=role, limit=limit))
        except Refused as error:
            if error.passing:
                return Check(clock(), error=str(error), idle=ask.idle)
            refusal = f"{error}."
        except (Busy, Unknown) as error:
            return Check(clock(), error=f"the server does not answer ({error!r})", idle=ask.idle)
    disabled = ask.idle in facts and not facts[ask.idle].can_login
    if ask.retire and not disabled and not refusal and not await _is_known(admin, ask):
        refusal = f'the valid password of "{ask.idle}" is not known.'
    return Check(clock(), works, refusal, idle=ask.idle, sessions=sessions, disabled=disabled)


async def _works(admin: Admin, ask: Questions, facts: dict[str, RoleFacts]) -> str:
    """Which login is valid: the next one's, if both are (it is the same)."""
    for name, login in (("next", ask.following), ("main", ask.main)):
        if login is None or login.username not in facts or not facts[login.username].can_login:
            continue  # nobody can log in as such a role, and PostgreSQL would not even look at the password
        tried = replace(admin.login, username=login.username, password=login.password)
        if await logs_in(tried, ask.dbname):
            return name
    return "neither"


async def _is_known(admin: Admin, ask: Questions) -> bool:
    """Whether the login of the role that is to be disabled is at hand: nobody else's is disabled."""
    if ask.former is None or ask.former.username != ask.idle:
        return False
    return await logs_in(replace(admin.login, username=ask.idle, password=ask.former.password), ask.dbname)


def _refusal(ask: Questions, facts: dict[str, RoleFacts], works: str) -> str:
    for role in ask.roles:
        strange = not_ours(facts[role].state if role in facts else None)
        if strange:
            return f'Role "{role}" must not be altered: {strange}.'
    if len(ask.roles) == 2 and facts[ask.roles[0]].rights != facts[ask.roles[1]].rights:
        one, other = ask.roles
        return (
            f'Roles "{one}" and "{other}" have not the same rights: make them members of the same roles, with the same '
            "attributes and settings (ALTER ROLE … SET role)."
        )
    if ask.idle and works != "next" and facts[ask.idle].can_login:
        # Nothing shows that it is the pool's: only of the other one the password is known.
        return f'Role "{ask.idle}" can log in, so somebody may use it. If nobody does: ALTER ROLE … NOLOGIN.'
    return ""
