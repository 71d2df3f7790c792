"""How many server connections one PostgreSQL server spares for its pools (design section 3).

budget = max_connections - superuser_reserved_connections - reserved_connections - headroom - own
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from poolfleet.plan.discovery import Discovery, Limits

OWN_CONNECTIONS: Final = 2  # the operator's own: one to a server, and one that overlaps it during a leader change


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
