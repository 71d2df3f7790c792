"""How many server connections one PostgreSQL server spares for its pools (design section 3).

budget = max_connections - superuser_reserved_connections - reserved_connections - headroom - own
"""

import math
from dataclasses import dataclass, replace
from typing import Final

DEFAULT_SUPERUSER_RESERVED: Final = 3  # PostgreSQL's default, counted unless read
DEFAULT_RESERVED: Final = 0
OWN_CONNECTIONS: Final = 2  # the operator's own: one for discovery, one that overlaps it during a leader change
CONFIRM_SECONDS: Final = 60.0  # a larger limit counts after two equal reads this far apart (facts/ledger.md 13)


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
class Candidate:
    """Larger limits that were read once, at `since`, and do not count yet."""

    limits: Limits
    since: float


@dataclass(frozen=True, slots=True)
class Discovery:
    """What discovery believes: the limits in force, and larger ones that wait for a second reading."""

    limits: Limits
    observed: float  # time of the newest reading
    server_version: str = ""
    candidate: Candidate | None = None


def adopt(reading: Limits, server_version: str, previous: Discovery | None, now: float) -> Discovery:
    """Fold a reading into what was believed: smaller limits count at once, larger ones after a second equal reading
    at least CONFIRM_SECONDS later, so that a failover target's larger setting is not taken at first sight."""
    if previous is None or reading.usable <= previous.limits.usable:
        return Discovery(reading, now, server_version)
    waiting = previous.candidate
    if waiting is None or waiting.limits != reading:
        waiting = Candidate(reading, now)
    elif now - waiting.since >= CONFIRM_SECONDS:
        return Discovery(reading, now, server_version)
    return replace(previous, observed=now, server_version=server_version, candidate=waiting)


def next_reading(discovery: Discovery | None, interval: float) -> float:
    """When to read again (seconds since the epoch; 0.0 means at once), with `interval` seconds between readings."""
    if discovery is None:
        return 0.0
    due = discovery.observed + interval
    if discovery.candidate is not None:
        due = min(due, max(discovery.candidate.since + CONFIRM_SECONDS, discovery.observed + 1.0))
    return due


@dataclass(frozen=True, slots=True)
class Budget:
    """The arithmetic, term by term, in connections."""

    limits: Limits
    headroom: int
    own: int

    @property
    def total(self) -> int:
        """What all pods of all pools together may hold; never negative."""
        return max(0, self.limits.usable - self.headroom - self.own)

    def __str__(self) -> str:
        """The arithmetic as a user reads it."""
        own = f" - {self.own} (the operator's own)" if self.own else ""
        return (
            f"{self.limits.max_connections} max_connections - {self.limits.superuser_reserved} superuser_reserved"
            f" - {self.limits.reserved} reserved - {self.headroom} headroom{own} = {self.total}"
        )


def headroom_connections(headroom: int | str, max_connections: int) -> int:
    """`headroom` as connections: a number, or a percentage of max_connections rounded up. Raises ValueError."""
    text = str(headroom).strip()
    if text.endswith("%"):
        percent = float(text[:-1])
        if not 0 <= percent <= 100:
            raise ValueError(f"headroom {headroom!r} is not between 0% and 100%")
        return math.ceil(max_connections * percent / 100)
    count = int(text)
    if count < 0:
        raise ValueError(f"headroom {headroom!r} is negative")
    return count


def compute(declared: int | None, discovery: Discovery | None, headroom: int | str, has_admin: bool) -> Budget | None:
    """The budget, or None while it cannot be known (nothing declared and nothing read yet).

    Of a declared and a discovered max_connections the smaller counts. Raises ValueError for a headroom that is none.
    """
    if discovery is not None:
        limits = discovery.limits
        if declared is not None:
            limits = replace(limits, max_connections=min(declared, limits.max_connections))
    elif declared is not None:
        limits = Limits(declared)
    else:
        return None
    return Budget(limits, headroom_connections(headroom, limits.max_connections), OWN_CONNECTIONS if has_admin else 0)
