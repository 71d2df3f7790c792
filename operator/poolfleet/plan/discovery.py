"""What was read from a server with the admin Secret, what of it counts already, and how it stands in status. Pure.

A smaller limit counts at once. A larger one counts after two equal readings of the same server a minute apart: a
failover target that is up for a moment may be larger than what comes back (facts/ledger.md 13).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from poolfleet.plan.times import seconds, timestamp

DEFAULT_SUPERUSER_RESERVED: Final = 3  # PostgreSQL's default, counted unless read
DEFAULT_RESERVED: Final = 0
CONFIRM_SECONDS: Final = 60.0  # a larger limit counts after two equal reads this far apart

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server itself says or is assumed to say, in connections."""

    max_connections: int
    superuser_reserved: int = DEFAULT_SUPERUSER_RESERVED
    reserved: int = DEFAULT_RESERVED

    @property
    def usable(self) -> int:
        """Connections that an ordinary role can have."""
        return self.max_connections - self.superuser_reserved - self.reserved


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading: limits in connections, who the server is, and the limits that it sets per database and role."""

    limits: Limits
    server_version: str = ""
    system_identifier: str = ""  # pg_control_system(), "" where the login may not read it
    started_at: str = ""  # pg_postmaster_start_time()
    database_limits: Mapping[str, int] = field(default_factory=dict)  # datconnlimit, where there is one
    role_limits: Mapping[str, int] = field(default_factory=dict)  # rolconnlimit, where there is one that holds

    def about(self, databases: Collection[str], roles: Collection[str]) -> "Reading":
        """The same without the limits of other databases and roles: a server may have thousands of them."""
        return replace(
            self,
            database_limits={name: limit for name, limit in self.database_limits.items() if name in databases},
            role_limits={name: limit for name, limit in self.role_limits.items() if name in roles},
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A reading that is larger somewhere, first made at `since`; what is larger in it does not count yet."""

    limits: Limits
    since: float


@dataclass(frozen=True, slots=True)
class Discovery:
    """What discovery believes: the limits in force, who the server is, and larger limits that wait for a second
    reading."""

    limits: Limits
    observed: float  # time of the newest reading
    server_version: str = ""
    candidate: Candidate | None = None
    system_identifier: str = ""
    started_at: str = ""
    database_limits: Mapping[str, int] = field(default_factory=dict)
    role_limits: Mapping[str, int] = field(default_factory=dict)


def adopt(reading: Reading, previous: Discovery | None, now: float) -> Discovery:
    """Fold a reading into what was believed: what is smaller counts at once, what is larger after a second reading
    with equal Limits at least CONFIRM_SECONDS later. A reading of another system_identifier starts that time anew."""
    whole = Discovery(
        reading.limits,
        now,
        reading.server_version,
        None,
        reading.system_identifier,
        reading.started_at,
        dict(reading.database_limits),
        dict(reading.role_limits),
    )
    if previous is None:
        return whole
    smaller = replace(
        whole,
        limits=reading.limits if reading.limits.usable <= previous.limits.usable else previous.limits,
        database_limits=_smaller(previous.database_limits, reading.database_limits),
        role_limits=_smaller(previous.role_limits, reading.role_limits),
    )
    if smaller == whole:
        return whole
    waiting = previous.candidate
    same_server = previous.system_identifier == reading.system_identifier
    if waiting is None or waiting.limits != reading.limits or not same_server:
        waiting = Candidate(reading.limits, now)
    elif now - waiting.since >= CONFIRM_SECONDS:
        return whole
    return replace(smaller, candidate=waiting)


def _smaller(some: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    """Of each name the smaller limit; a name without one is unlimited."""
    return {name: min(limits[name] for limits in (some, others) if name in limits) for name in {**some, **others}}


def next_reading(discovery: Discovery | None, interval: float) -> float:
    """When to read again (seconds since the epoch; 0.0 means at once), with `interval` seconds between readings."""
    if discovery is None:
        return 0.0
    due = discovery.observed + interval
    if discovery.candidate is not None:
        due = min(due, max(discovery.candidate.since + CONFIRM_SECONDS, discovery.observed + 1.0))
    return due


def caps(
    discovery: Discovery | None,
    databases: Mapping[tuple[str, str], tuple[str, Collection[str]]],
    ours: Collection[str] = (),
    budget: int | None = None,
) -> dict[tuple[str, str], int]:
    """Most connections that PostgreSQL itself would let each of the pools' databases have, where it says so.

    `databases`: (pool, database) -> (its database on the server, the roles that its connections log in as); `ours`:
    roles whose limit the operator has set, which says nothing new. A limit that is no smaller than `budget` binds
    nobody: all pools together have no more than that. A smaller one is divided evenly, at least 1 each, between
    the databases that share it; of several the smallest counts: any of the roles may hold all of the connections.
    """
    if discovery is None:
        return {}
    limits = {("database", name): limit for name, limit in discovery.database_limits.items()}
    limits |= {("role", name): limit for name, limit in discovery.role_limits.items() if name not in ours}
    limits = {name: limit for name, limit in limits.items() if budget is None or limit < budget}
    bound_by = {
        key: [name for name in (("database", dbname), *(("role", role) for role in roles)) if name in limits]
        for key, (dbname, roles) in databases.items()
    }
    sharers: dict[tuple[str, str], int] = {}
    for names in bound_by.values():
        for name in names:
            sharers[name] = sharers.get(name, 0) + 1
    return {
        key: max(1, min(limits[name] // sharers[name] for name in names)) for key, names in bound_by.items() if names
    }


# As it stands in status.discovery


def read_discovery(status: Mapping[str, Any]) -> Discovery | None:
    """What discovery believed when the status was written."""
    data = status.get("discovery")
    if not data:
        return None
    candidate = data.get("candidate")
    return Discovery(
        limits=_read_limits(data),
        observed=seconds(data["observedAt"]),
        server_version=data.get("serverVersion", ""),
        candidate=Candidate(_read_limits(candidate), seconds(candidate["since"])) if candidate else None,
        system_identifier=data.get("systemIdentifier", ""),
        started_at=data.get("startedAt", ""),
        database_limits={each["name"]: int(each["limit"]) for each in data.get("databaseLimits") or ()},
        role_limits={each["name"]: int(each["limit"]) for each in data.get("roleLimits") or ()},
    )


def write_discovery(discovery: Discovery) -> JsonObject:
    """`discovery` as it stands in status; `read_discovery` is its inverse. What is not known is left out."""
    data: JsonObject = {
        **_write_limits(discovery.limits),
        "serverVersion": discovery.server_version,
        "observedAt": timestamp(discovery.observed),
    }
    if discovery.system_identifier:
        data["systemIdentifier"] = discovery.system_identifier
    if discovery.started_at:
        data["startedAt"] = discovery.started_at
    for key, limits in (("databaseLimits", discovery.database_limits), ("roleLimits", discovery.role_limits)):
        if limits:
            data[key] = [{"name": name, "limit": limits[name]} for name in sorted(limits)]
    if discovery.candidate is not None:
        data["candidate"] = {
            **_write_limits(discovery.candidate.limits),
            "since": timestamp(discovery.candidate.since),
        }
    return data


def _read_limits(data: Mapping[str, Any]) -> Limits:
    return Limits(int(data["maxConnections"]), int(data["superuserReserved"]), int(data["reserved"]))


def _write_limits(limits: Limits) -> JsonObject:
    return {
        "maxConnections": limits.max_connections,
        "superuserReserved": limits.superuser_reserved,
        "reserved": limits.reserved,
    }
