"""The end of the noise: everything is delivered, answered and counted until nothing moves; and what must be then.

Time goes from one moment at which the operator wants to wake up to the next, so that a wake-up that is missing shows.
What must be reached is worked out here once more, slowly: one connection after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from poolfleet.plan import ledger as plan
from poolfleet.plan.sizing import PoolWish
from tests.property.ledger_model import ModelPod, World
from tests.property.ledger_noise import Run
from tests.property.ledger_operators import Operator

ROUNDS: Final = 3000
REPLY: Final = 0.15  # seconds from an order to its answer


def calm(run: Run) -> Operator:
    """Whoever is on the way out is gone, partitions are healed, every pool has its replicas. One operator is left."""
    world = run.world
    world.network.clear()
    for pod in world.pods.values():
        pod.slow, pod.scheduled = False, True
        if pod.cut_off and not pod.vanished and not pod.off:
            pod.cut_off = False
        if pod.pool not in world.wishes or pod.terminating or pod.vanished or pod.off:
            if pod.alive:
                world.end(pod)
            pod.vanished = True
        elif pod.alive and not pod.agent_up:
            world.restart_agent(pod)
    for wish in world.wishes.values():
        staying = [pod for pod in world.pods.values() if pod.pool == wish.pool and not pod.vanished and not pod.ended]
        for pod in staying[wish.replicas :]:
            world.end(pod)
        for _ in range(wish.replicas - len(staying)):
            world.birth(wish.pool)
    world.backends = [b for b in world.backends if not b.exception]
    operator = run.operators[0]
    operator.restart()
    return operator


def settle(run: Run, operator: Operator, busy: frozenset[str], fast_lane: bool) -> None:
    """Go on until nothing moves. The clients of `busy` pools want more than there is, all others want nothing."""
    world = run.world
    for _ in range(ROUNDS):
        for pod in world.pods.values():
            if pod.alive and not pod.vanished:
                _go_on(world, pod, pod.pool in busy)
        world.check()
        before, version = operator.pods, world.version
        operator.observe()
        assert operator.write()
        told = bool(operator.pending)
        while operator.pending:
            operator.tell(fast_lane=fast_lane)
        while world.network:
            uid, message = world.network.pop()
            world.accept(world.pods[uid], message)
        if told or world.version != version or operator.pods != before:
            world.tick(REPLY)
            continue
        wake = plan.wake_at(operator.input(), operator.ledger)
        starting = [pod.warm_at for pod in world.pods.values() if pod.started and pod.cold]
        backing_off = [pod.died + 11.0 for pod in world.pods.values() if pod.rev and not pod.started and pod.alive]
        times = [time for time in (wake, *starting, *backing_off) if time is not None]
        if not times:
            return
        world.tick(max(min(times) - world.now, 0.0) + 0.001)
    raise AssertionError(f"no rest after {ROUNDS} rounds: {world.ledger}")


def _go_on(world: World, pod: ModelPod, busy: bool) -> None:
    world.deliver(pod)
    world.accept(pod, pod.delivered)
    world.start(pod)
    world.load(pod)
    for name, limit in pod.loaded.items():
        pod.held[name] = limit if busy else min(pod.held[name], limit // 4)
        pod.demand[name] = (limit, limit + 50, True) if busy else (pod.held[name], pod.held[name], False)
    world.sample(pod)
    world.sample(pod)


def slow_fill(total: int, claims: Sequence[tuple[int, int, int | None]]) -> list[int]:
    """Water-filling by hand over (weight, least, most): the least of each, then one by one to whoever is lowest for
    its weight."""
    shares = [least for _, least, _ in claims]
    for _ in range(max(0, total - sum(shares))):
        open_ = [i for i, (_, _, most) in enumerate(claims) if most is None or shares[i] < most]
        if not open_:
            break
        lowest = min(open_, key=lambda i: ((shares[i] + 1) / claims[i][0], i))
        shares[lowest] += 1
    return shares


def shares_by_hand(world: World, pods: Mapping[str, Sequence[ModelPod]]) -> tuple[dict[str, int], bool]:
    """Pool -> its share at rest, its reserve included; pools that there is no room for are not in it.

    And whether the shares fit: what pods of pools without room keep to live on may be in the way.
    """
    total = world.budget - world.foreign
    rest, sure = total, dict[str, int]()
    for wish in sorted(world.wishes.values(), key=lambda w: (w.created, w.uid)):
        wanted = max(wish.least, (wish.replicas + 1) * len(wish.databases))
        running = (len(pods[wish.pool]) + 1) * len(wish.databases)
        if floor := next((n for n in (wanted, running) if n <= rest), 0):
            sure[wish.pool] = floor
            rest -= floor
    stuck = sum(entry.bound for entry in world.ledger.entries if entry.pool not in sure)
    served = [wish for wish in world.wishes.values() if wish.pool in sure]
    claims = [(w.weight, sure[w.pool], None if w.most is None else max(w.most, sure[w.pool])) for w in served]
    filled = slow_fill(max(sum(sure.values()), total - stuck), claims)
    fits = sum(sure.values()) <= total - stuck
    return {wish.pool: share for wish, share in zip(served, filled, strict=True)}, fits


def databases_by_hand(share: int, wish: PoolWish, pods: int) -> dict[str, int]:
    """Database -> connections of the whole pool, at rest, out of `share`."""
    names = sorted(wish.databases)
    filled = slow_fill(share - len(names), [(wish.databases[name], pods, None) for name in names])
    return dict(zip(names, filled, strict=True))
