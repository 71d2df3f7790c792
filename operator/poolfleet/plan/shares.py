"""What every pool and every pod shall reach: fair shares, moved to where clients wait (design section 3). Pure.

Budget -> pools (by weight, min and max) -> databases -> pods; at each step what somebody does not need of its share
serves those that need more. `plan/ledger.py` brings the ledger there without ever being above the budget on the way.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from poolfleet.plan.model import Pod
from poolfleet.plan.objects.pod import PROPAGATION_SECONDS
from poolfleet.plan.sizing import Claim, Demand, Key, PoolWish, divide, floors, follow, water_fill
from poolfleet.plan.world import Entry, Ledger, World

DONOR_USE: Final = 0.7  # who used more than this part of its bound in the last 10 s gives nothing
NEW_SECONDS: Final = 10.0  # as long as the agents look back: a pod that is ready for less has not shown its demand yet
MOVE_SECONDS: Final = 2.0  # a pod is moved for demand at most this often
DRAIN_CUT_SECONDS: Final = 2.0  # a draining pod is cut to its clients at most this often


@dataclass(frozen=True, slots=True)
class Division:
    """The budget as divided at one moment, in connections."""

    sure: Mapping[str, int]  # pool -> the least it is sure of; 0: there is no room for it
    shares: Mapping[str, int]  # pool -> what it is entitled to, its reserve included
    allotted: Mapping[str, int]  # pool -> what it has at present, after demand; Σ is at most Σ shares
    fair: Mapping[Key, int]  # (pod, database) -> what a staying pod reaches once every agent has answered
    targets: Mapping[Key, int]  # (pod, database) -> what it shall reach now, given who else still counts


def divide_budget(world: World, ledger: Ledger) -> Division:
    """Divide the budget over pools, databases and pods; empty while the budget is not known."""
    if world.budget is None:
        return Division({}, {}, {}, {}, {})
    total = max(0, world.for_pools(ledger))
    entries = {(entry.pod, entry.database): entry for entry in ledger.entries}
    members = {wish.pool: world.members(wish.pool) for wish in world.wishes}
    sure = floors(total, world.wishes, {pool: len(pods) for pool, pods in members.items()})
    served = [wish for wish in world.wishes if sure[wish.pool]]
    without = {wish.pool for wish in world.wishes} - {wish.pool for wish in served}
    total = max(sum(sure.values()), total - sum(entry.pool in without for entry in ledger.entries))
    claims = [Claim(wish.weight, sure[wish.pool], _most(wish, sure[wish.pool])) for wish in served]
    shares = {wish.pool: share for wish, share in zip(served, water_fill(total, claims), strict=True)}

    needs: dict[Key, int] = {}
    entitled: dict[Key, int] = {}  # what a pod that has not answered shall reach when it does
    others: dict[str, int] = {}
    demands = []
    for wish in served:
        pool, staying = wish.pool, members[wish.pool]
        uids = {pod.uid for pod in staying}
        others[pool] = sum(entry.bound for entry in ledger.of_pool(pool) if entry.pod not in uids)
        fair = divide(shares[pool] - wish.reserve - others[pool], [pod.uid for pod in staying], wish)
        for pod in staying:
            for name in wish.databases:
                key = (pod.uid, name)
                if world.answers(pod):
                    needs[key] = need(world, pod, name, entries.get(key), fair[key])
                else:
                    # Not raised before it answers: what it cannot use meanwhile is for the others, not for nobody.
                    needs[key] = entries[key].grant if key in entries else 1
                    entitled[key] = fair[key]
        # Without pods the share is lent out whole but for what is sure, which is enough to start some.
        need_of_pool = sum(needs[key] for key in fair) + wish.reserve + others[pool]
        demands.append(Demand(shares[pool], need_of_pool, sure[pool], _most(wish, sure[pool]), weight=wish.weight))
    allotted = {wish.pool: n for wish, n in zip(served, follow(sum(shares.values()), demands), strict=True)}

    fair_shares: dict[Key, int] = {}
    targets: dict[Key, int] = {}
    for wish in world.wishes:
        staying = members[wish.pool]
        if wish.pool not in allotted:
            # No room for this pool: what runs keeps one connection each.
            floor = {(pod.uid, name): 1 for pod in staying for name in wish.databases if (pod.uid, name) in entries}
            targets.update(floor)
            fair_shares.update(floor)
            continue
        left = allotted[wish.pool] - wish.reserve - others[wish.pool]
        fair = divide(left, [pod.uid for pod in staying], wish, needs)
        fair |= {key: share for key, share in entitled.items() if key in fair}
        fair_shares.update(fair)
        # A pod whose agent has not answered is not raised: one that never comes up holds nobody's connections. But it
        # keeps what it has of its share: a new leader has not heard of any pod yet.
        up = [pod.uid for pod in staying if world.answers(pod)]
        silent = {
            key: max(1, min(entries[key].grant if key in entries else 1, share))
            for key, share in fair.items()
            if key[0] not in up
        }
        targets.update(divide(left - sum(silent.values()), up, wish, needs) | silent)
    _those_that_leave(world, ledger, targets)
    return Division(sure, shares, allotted, fair_shares, targets)


def need(world: World, pod: Pod, database: str, entry: Entry | None, fair: int) -> int:
    """How many connections a pod can use of a database, as its agent saw the last 10 s; `fair` is its share by right.

    A pod that is not ready yet needs its share by right; then, until it could show its demand, half of it, with which
    it was ready. Whose clients waited keeps all it has: so what was given for demand stays for those 10 s.
    """
    if entry is None or pod.state is None or database not in pod.state.databases or pod.ready_since is None:
        return fair
    seen = pod.state.databases[database]
    use = math.ceil(seen.peak / DONOR_USE)
    if seen.waited:
        wanted = max(seen.demand, use, entry.grant)
    elif use < entry.grant - max(1, entry.grant // 10):
        wanted = use
    else:
        wanted = max(use, entry.grant)
    if world.now - pod.ready_since < NEW_SECONDS:
        wanted = max(wanted, math.ceil(fair / 2))
    if world.now - entry.since < MOVE_SECONDS:
        # Moved a moment ago: neither below its share nor above it, for demand's sake, but where it is.
        low, high = min(entry.grant, fair), max(entry.grant, fair)
        wanted = max(low, min(wanted, high))
    return wanted


def cut_at(pod: Pod, entry: Entry) -> float:
    """From when on a draining pod may be cut to its clients: not before new ones have ceased to come and the agent has
    told of those that there are."""
    return max((pod.leaving_since or 0.0) + PROPAGATION_SECONDS, entry.since + DRAIN_CUT_SECONDS)


def _most(wish: PoolWish, sure: int) -> int | None:
    return None if wish.most is None else max(wish.most, sure)


def _those_that_leave(world: World, ledger: Ledger, targets: dict[Key, int]) -> None:
    """Add the targets of entries that have no share: removed databases go, draining pods are cut to what their
    clients can use, everything else stays as it is."""
    pods = {pod.uid: pod for pod in world.pods}
    asked = {wish.pool for wish in world.wishes}
    for entry in ledger.entries:
        key = (entry.pod, entry.database)
        if key in targets:
            continue
        pod = pods.get(entry.pod)
        targets[key] = entry.grant
        if pod is None or pod.server != world.server:
            continue
        if world.stays(pod) and entry.pool in asked:
            targets[key] = 0  # a database that is no longer served
        elif pod.terminating and pod.state is not None and world.now >= cut_at(pod, entry):
            seen = pod.state.databases.get(entry.database)
            used = max(seen.clients, seen.peak) if seen else 0  # clients are told late, and a cancel needs room, too
            targets[key] = min(entry.grant, max(1, used))
