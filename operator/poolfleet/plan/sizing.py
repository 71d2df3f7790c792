"""How connections are divided: water-filling over weights between bounds, over pools, databases and pods. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

Key = tuple[str, str]  # pod UID, database


@dataclass(frozen=True, slots=True)
class PoolWish:
    """What one PgPool asks of its server."""

    pool: str  # "<namespace>/<name>"
    uid: str
    created: float
    databases: Mapping[str, int]  # database -> weight, at least 1
    config: str  # hash of the Secret x-config as it stands in the API, "" while there is none
    replicas: int = 1
    weight: int = 1  # spec.share, against the other pools of the server
    least: int = 0  # spec.share.min, in connections
    most: int | None = None  # spec.share.max, in connections
    caps: Mapping[str, int] = field(default_factory=dict)  # database -> most connections PostgreSQL itself would allow
    roles: Mapping[str, frozenset[str]] = field(default_factory=dict)  # database -> roles that its pods log in as
    turn: int = 0  # which pods may load `config`: those made for the same roles on the server
    staged: bool = False  # `config` holds a password that is not set yet: to be mounted, but not loaded
    hold: frozenset[str] = frozenset()  # databases whose queries shall wait
    move: tuple[int, int] | None = None  # spec.clientRebalance: idle seconds, percent; None: clients are not moved

    @property
    def reserve(self) -> int:
        """Connections kept so that one more pod can always start: one per database."""
        return len(self.databases)

    @property
    def floor(self) -> int:
        """The least share that this pool can live with: one connection for each database of each replica and of one
        surge pod, or what spec.share.min says if that is more."""
        return max(self.least, (self.replicas + 1) * len(self.databases))


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

    def at(level: float, less: int = 0) -> list[int]:
        """The shares when the water stands at `level` connections per weight, each by `less` lower if it can."""
        filled = [int(level * claim.weight) for claim in claims]
        filled = [n if claim.most is None else min(n, claim.most) for n, claim in zip(filled, claims, strict=True)]
        return [max(share, n - less) for share, n in zip(shares, filled, strict=True)]

    low, high = 0.0, float(total + 1)
    for _ in range(40 if rest > 100 else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) <= sum(shares) + rest else (low, middle)
    filled = at(low, less=1) if low else [*shares]  # less, for `low` is not exact
    rest -= sum(filled) - sum(shares)
    # The last few one at a time, to whoever is lowest for its weight.
    lowest = [((n + 1) / c.weight, i) for i, (n, c) in enumerate(zip(filled, claims, strict=True)) if c.weight > 0]
    heapify(lowest)
    while rest > 0 and lowest:
        _, i = heappop(lowest)
        if (most := claims[i].most) is None or filled[i] < most:
            filled[i] += 1
            rest -= 1
            heappush(lowest, ((filled[i] + 1) / claims[i].weight, i))
    return filled


def floors(total: int, wishes: Sequence[PoolWish], pods: Mapping[str, int]) -> dict[str, int]:
    """Which pools can live on `total` connections: pool -> the least share that it is sure of, 0 if it gets nothing.

    The older pool first (then by UID). A pool whose wish does not fit, but which runs already, is sure of what its
    `pods` (pool -> number) need, if that fits: who asks for too much does not lose what it has.
    """
    result: dict[str, int] = {}
    rest = total
    for wish in sorted(wishes, key=lambda w: (w.created, w.uid)):
        running = (pods.get(wish.pool, 0) + 1) * wish.reserve if pods.get(wish.pool) else 0
        fitting = [floor for floor in (wish.floor, running) if 0 < floor <= rest]
        result[wish.pool] = fitting[0] if fitting else 0
        rest -= result[wish.pool]
    return result


@dataclass(frozen=True, slots=True)
class Demand:
    """One party whose connections follow demand."""

    share: int  # what it is entitled to
    need: int  # what it can use, as seen
    floor: int = 0  # what it keeps in any case; at most `share`
    most: int | None = None
    weight: int = 1


def follow(total: int, demands: Sequence[Demand]) -> list[int]:
    """Divide `total` so that what one does not need of its share serves those that need more (design section 3).

    Everybody has what it needs of its share, and its floor. What is left goes to those that need more than their
    share, by water-filling; then back to whoever is below its share. With equal demand, or with none, everybody has
    its share exactly. The sum is at most the larger of `total` and Σ floors.
    """
    given = [max(d.floor, min(d.share, d.need)) for d in demands]
    for wants in ([d.need for d in demands], [d.share for d in demands]):
        claims = []
        for has, want, d in zip(given, wants, demands, strict=True):
            most = max(has, want if d.most is None else min(want, d.most))
            claims.append(Claim(max(1, d.weight), has, most))
        given = water_fill(max(total, sum(given)), claims)
    return given


def divide(total: int, pods: Sequence[str], wish: PoolWish, needs: Mapping[Key, int] | None = None) -> dict[Key, int]:
    """Divide a pool's `total` connections over `pods` and databases: (pod, database) -> connections, at least 1.

    Databases first, by weight and within their caps, then evenly over the pods, the first pods having the odd ones.
    With `needs` both follow demand; who is not in it needs its share. The sum is at most `total`, except where `total`
    cannot give everybody one: then everybody is down for one and the ledger hands out what there is.
    """
    if not pods:
        return {}
    names, count = sorted(wish.databases), len(pods)
    caps = {name: max(count, cap) if (cap := wish.caps.get(name)) else None for name in names}
    claims = [Claim(wish.databases[name], count, caps[name]) for name in names]
    totals = [max(share, count) for share in water_fill(total, claims)]
    even = {name: _evenly(share, pods, name, odd) for name, share, odd in _odds(names, totals, count)}
    if needs is None:
        return {key: share for shares in even.values() for key, share in shares.items()}
    demands = []
    for name, share in zip(names, totals, strict=True):
        need = sum(max(1, needs.get(key, fair)) for key, fair in even[name].items())
        demands.append(Demand(share, need, count, caps[name], wish.databases[name]))
    result: dict[Key, int] = {}
    totals = follow(sum(totals), demands)
    for name, share, odd in _odds(names, totals, count):
        shares = _evenly(share, pods, name, odd)
        parts = [Demand(fair, needs.get(key, fair), floor=1) for key, fair in shares.items()]
        result.update(zip(shares, follow(share, parts), strict=True))
    return result


def _odds(names: Sequence[str], totals: Sequence[int], count: int) -> Iterator[tuple[str, int, int]]:
    """(database, connections, where its odd ones start), so that they do not pile up on one pod."""
    odd = 0
    for name, total in zip(names, totals, strict=True):
        yield name, total, odd
        odd += total % count


def _evenly(total: int, pods: Sequence[str], name: str, odd: int) -> dict[Key, int]:
    each, more = divmod(total, len(pods))
    return {(pod, name): each + (1 if (at - odd) % len(pods) < more else 0) for at, pod in enumerate(pods)}
