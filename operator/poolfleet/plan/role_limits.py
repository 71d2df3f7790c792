"""CONNECTION LIMITs of the roles that pools log in as, as a backstop in PostgreSQL itself. Pure.

A backstop, not the proof: a limit is Σ bounds of the role plus a margin, so it may refuse nothing while the ledger is
obeyed (facts/ledger.md 14). That gives the order of things: a limit is raised before the ledger write that needs it,
and lowered after one that has not needed it for a while. What status says follows the same way: `recorded` is never
above what PostgreSQL has, so raised limits are recorded afterwards, and lower ones before they are set.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Entry

UNLIMITED: Final = -1  # PostgreSQL's word for no limit
LEAST_MARGIN: Final = 2  # connections; a backend on its way out while its successor logs in, twice
LOWER_SECONDS: Final = 10.0  # how long a smaller limit must do before it is set, so that not every move alters a role


@dataclass(frozen=True, slots=True)
class Demand:
    """What the ledger asks of one role."""

    bound: int  # Σ bounds of what its pods may hold
    pods: int

    @property
    def limit(self) -> int:
        """Its CONNECTION LIMIT: one more per pod, for backends on their way out and for cold starts."""
        return self.bound + max(LEAST_MARGIN, self.pods)


@dataclass(frozen=True, slots=True)
class Low:
    """Since when a role's limit is larger than needed, and the largest limit that was needed since."""

    since: float
    highest: int


@dataclass(frozen=True, slots=True)
class RoleState:
    """One role as PostgreSQL has it."""

    limit: int  # rolconnlimit
    superuser: bool = False
    replication: bool = False
    bypass_rls: bool = False
    admin: bool = False  # the operator logs in as it


@dataclass(frozen=True, slots=True)
class Memory:
    """What this process knows besides the status: of a new leader nothing."""

    confirmed: Mapping[str, int] = field(default_factory=dict)  # role -> limit as last seen in PostgreSQL
    refused: Mapping[str, str] = field(default_factory=dict)  # role -> why it cannot be altered; not tried again yet
    low: Mapping[str, Low] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RolePlan:
    """What to do about the limits around one ledger write."""

    raises: Mapping[str, int]  # role -> limit to set before it; UNLIMITED clears
    recorded: Mapping[str, int]  # status.roleLimits of that write if all raises work; to be made true after it
    low: Mapping[str, Low]


def demands(entries: Iterable[Entry], wishes: Sequence[PoolWish]) -> dict[str, Demand]:
    """What `entries` ask of each role. Entries of a pool or database that nobody wishes any more may be anybody's:
    they count for every role."""
    roles = {(wish.pool, database): names for wish in wishes for database, names in wish.roles.items()}
    bounds: dict[str, int] = {}
    pods: dict[str, set[str]] = {}
    anybodys = 0
    for entry in entries:
        names = roles.get((entry.pool, entry.database))
        if names is None:
            anybodys += entry.bound
            continue
        for role in names:
            bounds[role] = bounds.get(role, 0) + entry.bound
            pods.setdefault(role, set()).add(entry.pod)
    return {role: Demand(bound + anybodys, len(pods[role])) for role, bound in bounds.items()}


def plan(
    needs: Mapping[str, Demand],
    recorded: Mapping[str, int],
    memory: Memory,
    *,
    managed: Collection[str] | None,
    now: float,
) -> RolePlan:
    """What to alter for a ledger that asks for `needs`.

    `recorded`: status.roleLimits, what the operator has set; `managed`: spec.managedRoles, None while roleLimits is
    Off. A role that is not used, not managed or not limited any more is cleared.
    """
    wished = {role: need for role, need in needs.items() if managed is not None and role in managed}
    raises: dict[str, int] = {}
    after: dict[str, int] = {}
    low: dict[str, Low] = {}
    for role in {**recorded, **wished}:
        need, now_at = wished.get(role), recorded.get(role)
        if role in memory.refused:
            if now_at is not None and memory.confirmed.get(role) != UNLIMITED:
                after[role] = now_at  # it may have been set when it could be
        elif need is None:
            raises[role] = UNLIMITED
        elif now_at is None:
            after[role] = need.limit
        elif need.limit >= now_at:
            after[role] = need.limit
            if need.limit > now_at:
                raises[role] = need.limit
        else:
            known = memory.low.get(role)
            low[role] = Low(known.since, max(known.highest, need.limit)) if known else Low(now, need.limit)
            after[role] = now_at
            if now - low[role].since >= LOWER_SECONDS:
                after[role] = low.pop(role).highest
    return RolePlan(raises, after, low)


def problem(needs: Mapping[str, Demand], memory: Memory, managed: Collection[str] | None) -> str:
    """Which of the roles that pools log in as have no limit although they should, and why; "" if there are none."""
    if managed is None:
        return ""
    strange = sorted(set(needs) - set(managed))
    said = [f'"{role}" is not in managedRoles' for role in strange]
    said += [
        f'"{role}": {memory.refused[role]}' for role in sorted(memory.refused) if role in needs and role in managed
    ]
    return f"roleLimits is Enforce, but has no hold on some roles: {'; '.join(said)}." if said else ""


def blocked(needs: Mapping[str, Demand], recorded: Mapping[str, int], memory: Memory) -> frozenset[str]:
    """The roles whose bounds must not be raised: `recorded` is what their limit is known to be now, at least, and it is
    too small for `needs`.

    Within the margin a raise is let through: PostgreSQL refuses nothing that the ledger allows as long as the bounds
    themselves fit.
    """
    return frozenset(
        role
        for role, limit in recorded.items()
        if role in needs and needs[role].bound > limit and memory.confirmed.get(role) != UNLIMITED
    )


def not_ours(state: RoleState | None) -> str:
    """Why the operator must not alter a role, "" if it may (design section 5). None: there is no such role."""
    if state is None:
        return "there is no such role"
    if state.admin:
        return "it is the role of adminSecretRef itself"
    attributes = ((state.superuser, "SUPERUSER"), (state.replication, "REPLICATION"), (state.bypass_rls, "BYPASSRLS"))
    return next((f"it is {word}" for has, word in attributes if has), "")


def read(status: Mapping[str, Any]) -> dict[str, int]:
    """status.roleLimits: role -> limit that the operator has set."""
    return {each["role"]: int(each["limit"]) for each in status.get("roleLimits") or ()}


def write(limits: Mapping[str, int]) -> list[dict[str, Any]]:
    """`limits` as they stand in status.roleLimits; `read` is its inverse."""
    return [{"role": role, "limit": limits[role]} for role in sorted(limits)]
