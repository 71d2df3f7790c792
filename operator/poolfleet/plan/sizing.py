"""How connections are divided: water-filling over weights between bounds, and a pool's share over its pods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PoolWish:
    """What one PgPool asks of its server."""

    pool: str  # "<namespace>/<name>"
    uid: str
    created: float
    databases: Mapping[str, int]  # database -> weight, at least 1
    config: str  # hash of the Secret x-config as it stands in the API, "" while there is none
    caps: Mapping[str, int] = field(default_factory=dict)  # database -> most connections PostgreSQL itself would allow


@dataclass(frozen=True, slots=True)
class Claim:
    """One party of a division: it gets at least `least`, at most `most`, and in between in proportion to `weight`."""

    weight: int
    least: int = 0
    most: int | None = None


def water_fill(total: int, claims: Sequence[Claim]) -> list[int]:
    """Divide `total` over `claims`, whole numbers, in their order.

    Everybody has `least` first (earlier claims first where even that does not fit); then the level rises in
    proportion to the weights until `total` is used or everybody is full. Never more than `total` in sum.
    """
    shares: list[int] = []
    rest = max(0, total)
    for claim in claims:
        share = min(claim.least, rest) if claim.most is None else min(claim.least, claim.most, rest)
        shares.append(share)
        rest -= share
    # One connection at a time to whoever is lowest for its weight: exact, and small numbers (hundreds) at most.
    while rest > 0:
        open_claims = [i for i, c in enumerate(claims) if c.weight > 0 and (c.most is None or shares[i] < c.most)]
        if not open_claims:
            break
        lowest = min(open_claims, key=lambda i: ((shares[i] + 1) / claims[i].weight, i))
        shares[lowest] += 1
        rest -= 1
    return shares


def divide(total: int, pods: Sequence[str], wish: PoolWish) -> dict[tuple[str, str], int]:
    """Divide a pool's `total` connections over `pods` and databases: (pod, database) -> connections, at least 1.

    Databases first, by weight and within their caps, then evenly over the pods, the first pods having the odd ones.
    The sum is at most `total`, except where `total` cannot give everybody one: then everybody is down for one and the
    ledger hands out what there is.
    """
    if not pods:
        return {}
    names = sorted(wish.databases)
    claims = [
        Claim(wish.databases[name], least=len(pods), most=max(len(pods), cap) if (cap := wish.caps.get(name)) else None)
        for name in names
    ]
    shares: dict[tuple[str, str], int] = {}
    odd = 0  # where the odd connections of the next database start, so that they do not pile up on one pod
    for name, database_total in zip(names, water_fill(total, claims), strict=True):
        each, more = divmod(max(database_total, len(pods)), len(pods))
        for position, pod in enumerate(pods):
            shares[pod, name] = each + (1 if (position - odd) % len(pods) < more else 0)
        odd += more
    return shares
