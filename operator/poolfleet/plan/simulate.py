"""A PgServer with its pools as they would be in a cluster of ideal pods: what each pool_size comes to, and the worst
moment of a rollout. Pure; it is the real planning that is driven, `plan.ledger.advance`, with time going as fast as
nothing happens.

An ideal pod does at once what it is told and says so. Every client waits all the time, so everybody holds what it may;
a pod that ends holds everything until the end of its drain. That is the worst there is without faults.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from poolfleet.api.wire import AgentState, DatabaseState, Directive
from poolfleet.plan.ledger import advance, orders, wake_at
from poolfleet.plan.model import Pod
from poolfleet.plan.sizing import PoolWish, floors
from poolfleet.plan.world import Ledger, World

SERVER: Final = "simulated"
STEP_SECONDS: Final = 0.1  # between two steps while something moves
MOST_STEPS: Final = 100_000  # more than any fleet needs; beyond it the planning does not come to rest


class Restless(Exception):
    """The planning does not come to rest: a bug of ours."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What there is at one moment, in pods and connections."""

    what: str
    pods: int  # that stay
    ending: int  # that drain
    bound: int  # Σ of what all pods may hold
    smallest: int  # pool_size among the pods that stay, 0 if one has nothing yet
    largest: int


@dataclass
class Fleet:
    """Ideal pods of several pools under one budget."""

    budget: int
    wishes: Sequence[PoolWish]
    now: float = 1000.0
    ledger: Ledger = field(default_factory=Ledger)
    pods: dict[str, Pod] = field(default_factory=dict)  # by UID
    born: dict[str, int] = field(default_factory=dict)  # pool -> pods that it ever had
    worst: Moment | None = None  # the moment with the largest Σ bounds so far, of those the one with most pods

    def world(self) -> World:
        """What the operator would see."""
        return World(SERVER, self.budget, self.ledger, tuple(self.pods.values()), tuple(self.wishes), self.now)

    def admitted(self) -> list[PoolWish]:
        """The pools that the budget has room for; no others get pods."""
        sure = floors(self.budget, self.wishes, {})
        return [wish for wish in self.wishes if sure[wish.pool]]

    def birth(self, pool: str) -> Pod:
        """One more pod of `pool`, on a node, its agent silent until its first directive."""
        number = self.born[pool] = self.born.get(pool, 0) + 1
        namespace, _, name = pool.partition("/")
        pod = Pod(
            uid=f"{pool}-{number}",
            name=f"{name}-pod-{number}",
            namespace=namespace,
            created=self.now,
            terminating=False,
            scheduled=True,
            ended=False,
            ready=True,
            ip="",
            server=SERVER,
            pool=pool,
            ready_since=self.now,
        )
        self.now += STEP_SECONDS  # no two of the same age
        self.pods[pod.uid] = pod
        return pod

    def terminate(self, pod: Pod) -> None:
        """The pod begins to drain; its clients stay to the end."""
        self.pods[pod.uid] = replace(self.pods[pod.uid], terminating=True)

    def end_drains(self) -> None:
        """The kubelet has stopped every pod that drains."""
        for pod in self.ending():
            self.pods[pod.uid] = replace(pod, ended=True)
        self.settle("")
        self.pods = {uid: pod for uid, pod in self.pods.items() if not pod.ended}

    def forget(self) -> None:
        """Look for the worst moment anew."""
        self.worst = None

    def staying(self) -> list[Pod]:
        """The pods that are not on their way out."""
        return [pod for pod in self.pods.values() if not pod.terminating]

    def ending(self) -> list[Pod]:
        """The pods that drain."""
        return [pod for pod in self.pods.values() if pod.terminating and not pod.ended]

    def without_grant(self) -> list[Pod]:
        """The staying pods that lack a connection to some database of theirs."""
        served = {(entry.pod, entry.database) for entry in self.ledger.entries}
        wanted = {wish.pool: wish.databases for wish in self.wishes}
        return [pod for pod in self.staying() if any((pod.uid, name) not in served for name in wanted[pod.pool])]

    def settle(self, what: str) -> Moment:
        """Let the operator and the pods go on until nothing moves. Raises Restless.

        `what` names the moment that comes of it; "" keeps every step of the way out of `worst`.
        """
        for _ in range(MOST_STEPS):
            world = self.world()
            after = advance(world)
            due = orders(world, after)
            self.ledger = after
            for pod, directive in due:
                state = self.answer(directive)
                self.pods[pod.uid] = replace(pod, directive=directive.to_message(), state=state)
            moment = self.moment(what)
            if what and (self.worst is None or _weight(moment) > _weight(self.worst)):
                self.worst = moment
            if after is not world.ledger or due:
                self.now += STEP_SECONDS
                continue
            later = wake_at(world, after)
            if later is None:
                return moment
            self.now = later + STEP_SECONDS
        raise Restless(f"the planning does not come to rest within {MOST_STEPS} steps ({what})")

    def answer(self, directive: Directive) -> AgentState:
        """What a pod says that has done what it was told, with clients that want everything there is."""
        databases: Mapping[str, DatabaseState] = {
            name: DatabaseState(
                loaded=grant,
                held=grant,
                samples=2,
                clients=max(1, self.budget),
                waiting=max(1, self.budget),
                peak=grant,
                demand=max(1, self.budget),
                waited=True,
            )
            for name, grant in directive.grant.items()
        }
        return AgentState(
            directive.server, directive.pod, directive.rev, directive.rev, directive.config, "", "1", databases
        )

    def moment(self, what: str) -> Moment:
        """What there is now."""
        staying = {pod.uid for pod in self.staying()}
        sizes = [entry.grant for entry in self.ledger.entries if entry.pod in staying]
        smallest = 0 if self.without_grant() else min(sizes, default=0)
        return Moment(what, len(staying), len(self.ending()), self.ledger.bound, smallest, max(sizes, default=0))


def _weight(moment: Moment) -> tuple[int, int]:
    return moment.bound, moment.pods + moment.ending


def steady(budget: int, wishes: Iterable[PoolWish]) -> Fleet:
    """The fleet of `wishes` (oldest first or not) under `budget` connections, at rest. Raises Restless."""
    fleet = Fleet(budget, tuple(wishes))
    for wish in fleet.admitted():
        for _ in range(wish.replicas):
            fleet.birth(wish.pool)
    fleet.settle("steady")
    return fleet


def rollout(fleet: Fleet, surge: int) -> list[Moment]:
    """Replace every pod of every pool at the same time, `surge` pods ahead in each (0: one pod less instead); no pod
    that ends is gone before it must. Returns the moments from start to end. Raises Restless.

    Where not even one connection is left for a surge pod, old pods end without it, as the operator does it too.
    """
    fleet.forget()
    moments = [fleet.settle("steady")]
    old = {wish.pool: [pod.uid for pod in fleet.staying() if pod.pool == wish.pool] for wish in fleet.admitted()}
    while any(old.values()):
        wave = {pool: min(max(1, surge), len(uids)) for pool, uids in old.items()}
        if not surge:
            _replace(fleet, old, wave)
        for pool, count in wave.items():
            for _ in range(count):
                fleet.birth(pool)
        fleet.settle("rollout: new pods start")
        if fleet.without_grant() and fleet.ending():
            fleet.end_drains()  # a new pod waits for what they hold: it is not Ready, and the rollout waits with it
            fleet.settle("rollout: new pods start")
        if surge:
            _replace(fleet, old, wave)
        fleet.settle("rollout: old pods drain")
    assert fleet.worst is not None
    moments.append(replace(fleet.worst, what=f"{fleet.worst.what} (worst)"))
    fleet.end_drains()
    moments.append(fleet.settle("after the rollout"))
    return moments


def _replace(fleet: Fleet, old: Mapping[str, list[str]], wave: Mapping[str, int]) -> None:
    """Let the oldest `wave[pool]` of the old pods of each pool begin to drain."""
    for pool, count in wave.items():
        for _ in range(count):
            fleet.terminate(fleet.pods[old[pool].pop(0)])
