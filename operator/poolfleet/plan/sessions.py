"""Whose sessions pg_stat_activity shows, and which of them no agent accounts for. Pure (design section 3).

PgBouncer counts a connection as closed when it has closed its socket; a backend whose client vanished runs on, and one
of a database that was removed is in no SHOW DATABASES any more (facts/ledger.md 10). So what counts is what PostgreSQL
shows: a session of a pool's role that is unknown to every agent, twice, seconds apart. Once is not enough: a connection
may have been opened, or closed, between the two questions.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from poolfleet.plan.model import Sessions


@dataclass(frozen=True, slots=True)
class Backend:
    """One client backend."""

    pid: int
    role: str
    started: str  # backend_start, in PostgreSQL's words; a pid may be used again
    operators: bool = False  # by role and application_name one of an operator's own


def of_pools(backends: Iterable[Backend], roles: Collection[str]) -> frozenset[Backend]:
    """The backends of roles that pools log in as."""
    return frozenset(backend for backend in backends if backend.role in roles)


def unknown(backends: Iterable[Backend], roles: Collection[str], known: Collection[int]) -> frozenset[Backend]:
    """The backends of pools' roles whose pid no agent has among its server connections."""
    pids = frozenset(known)
    return frozenset(backend for backend in of_pools(backends, roles) if backend.pid not in pids)


def comparable(backends: Iterable[Backend], roles: Collection[str], known: Collection[int]) -> bool:
    """Whether the pids that agents know are PostgreSQL's own. A proxy in between (Neon's, RDS Proxy) tells PgBouncer
    pids of its own making; then not one is found, and by comparing them everything would look unaccounted for.

    `known` are asked for at the time of `backends`. True if nothing speaks against it.
    """
    pids = frozenset(known)
    mine = of_pools(backends, roles)
    return not pids or not mine or any(backend.pid in pids for backend in mine)


def sort(
    at: float,
    backends: Collection[Backend],
    roles: Collection[str],
    unaccounted: Iterable[Backend] = (),
    quiet: bool = False,
) -> Sessions:
    """The newest reading, sorted by who accounts for the sessions. `at`: when the reading began; `unaccounted`: what
    was `unknown` in this reading and in one before it; `quiet`: whatever was unknown at first an agent knew later."""
    mine = of_pools(backends, roles)
    others = sum(1 for backend in backends if backend not in mine and not backend.operators)
    orphans = dict(Counter(backend.role for backend in unaccounted))
    return Sessions(at, len(mine), orphans, others, at if quiet else None)


def since(seen: Sessions, before: Sessions | None) -> Sessions:
    """`seen` with the time since when looks, this one and those right before it, have been quiet."""
    if seen.quiet_since is None or before is None or before.quiet_since is None:
        return seen
    return replace(seen, quiet_since=before.quiet_since)
