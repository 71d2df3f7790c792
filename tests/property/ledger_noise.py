"""What happens at random in the model. A run is a list of steps: one that breaks the promise can be shortened."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from poolfleet.plan.sizing import PoolWish
from tests.property.ledger_model import ModelPod, Switches, World
from tests.property.ledger_operators import Operator

POOLS: Final = ("ns/p0", "ns/p1", "other/p2")
TICKS: Final = (0.2, 0.3, 0.7, 1.0, 3.0, 6.0, 11.0, 35.0)


class Step(NamedTuple):
    """One event; who and what are meant is found by remainder, so that a step stays one when others are left out."""

    action: str
    who: int  # which operator, and which pod
    what: int


class Run:
    """A world with its operators. Small ones come up with rare orders sooner."""

    def __init__(
        self, budget: int, pools: int = 1, operators: int = 1, most_pods: int = 4, switches: Switches | None = None
    ) -> None:
        wishes = {name: wish(name, number) for number, name in enumerate(POOLS[:pools])}
        self.world = World(budget, wishes, switches)
        self.operators = [Operator(self.world) for _ in range(operators)]
        self.most_pods = most_pods  # alive at a time

    def play(self, steps: Sequence[Step]) -> None:
        """Take the steps; raises AssertionError where the promise breaks."""
        world = self.world
        for step in steps:
            take(self, step)
            world.check()


def wish(name: str, number: int, what: int = 0) -> PoolWish:
    """One of the wishes that a pool may have."""
    databases = ({"a": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 1}, {"b": 1})[what % 4]
    least, most = ((0, None), (0, None), (6, None), (0, 8), (3, 9))[what % 5]
    return PoolWish(
        pool=name,
        uid=f"uid-{number}",
        created=float(number),
        databases=databases,
        config=f"c{what % 3}",
        replicas=1 + what % 3,
        weight=1 + what % 2,
        least=least,
        most=most,
        roles={database: frozenset({name}) for database in databases},
    )


# -- events on the cluster -------------------------------------------------------------------------------------------


def _birth(run: Run, what: int) -> None:
    pools = list(run.world.wishes)
    if pools and sum(pod.alive for pod in run.world.pods.values()) < run.most_pods:
        run.world.birth(pools[what % len(pools)], scheduled=what % 4 > 0)


def _pool(run: Run, what: int) -> None:
    """A pool comes, goes or is changed; one that is deleted has its pods deleted."""
    world, number = run.world, what % len(POOLS)
    name = POOLS[number]
    if name in world.wishes and what % 5 == 0:
        del world.wishes[name]
        for pod in world.pods.values():
            pod.terminating |= pod.pool == name
    else:
        world.wishes[name] = wish(name, number, what // 3)


def _budget(run: Run, what: int) -> None:
    foreign = (what // 7) % 4 if what % 7 == 0 else run.world.foreign
    run.world.set_budget(3 + what % 18, foreign)


def _lose_ledger(run: Run, what: int) -> None:
    """Wiped, or replaced by an older one, while some pod in sight was told by it. (Wiped together with every pod that
    knew it, it is the ledger of a new server.)"""
    world = run.world
    if any(p.annotation.get("rev", 0) and not p.vanished and not p.ended for p in world.pods.values()):
        world.lose_ledger(world.backups[what % len(world.backups)] if world.backups and what % 2 else None)


def _network(run: Run, what: int) -> None:
    """One of the directives on their way arrives: in any order, lost, again, or at another pod."""
    world = run.world
    if not world.network:
        return
    at = what % len(world.network)
    uid, message = world.network[at]
    fate = (what // 64) % 8
    if fate != 1:
        pods = list(world.pods.values())
        pod = pods[(what // 512) % len(pods)] if fate == 2 else world.pods[uid]
        if fate != 0 and not pod.cut_off:
            world.accept(pod, message)
            if fate > 3:
                world.load(pod)
    if fate not in (1, 2):
        del world.network[at]


def _tick(run: Run, what: int) -> None:
    run.world.tick(TICKS[what % len(TICKS)])


def _pump(run: Run, what: int) -> None:
    """One round in order on the slow lane, so that later noise meets a fleet that is up."""
    world, operator = run.world, run.operators[what % len(run.operators)]
    operator.observe()
    operator.write()
    while operator.pending:
        operator.tell(fast_lane=what % 3 == 0)
    for pod in world.pods.values():
        pod.scheduled = True
        if not pod.slow and pod.alive and pod.agent_up:
            world.deliver(pod)
            world.accept(pod, pod.delivered)
            _settle(world, pod)


def _lane(run: Run, what: int) -> None:
    """One round in order on the fast lane; the kubelet's files stay as old as they are."""
    world, operator = run.world, run.operators[what % len(run.operators)]
    operator.observe()
    operator.write()
    while operator.pending:
        operator.tell(fast_lane=True)
        pod = world.pods[world.network[-1][0]] if world.network else None
        if pod is not None and not pod.slow and not pod.cut_off:
            world.accept(pod, world.network.pop()[1])
    for pod in world.pods.values():
        if not pod.slow and pod.alive and pod.agent_up:
            _settle(world, pod)


def _settle(world: World, pod: ModelPod) -> None:
    """What an agent does with a directive that it accepted."""
    world.start(pod)
    world.load(pod)
    world.shed(pod)
    world.sample(pod)
    world.sample(pod)


# -- events on one pod -----------------------------------------------------------------------------------------------


def _demand(world: World, pod: ModelPod, what: int) -> None:
    """Clients come and go: connections up to the limit, down again, or clients that wait."""
    for number, (name, limit) in enumerate(pod.loaded.items()):
        choice = (what >> (2 * number)) % 4
        held = pod.held[name]
        pod.held[name] = max(held, limit) if choice & 1 else min(held, held * (what % 5) // 4)
        pod.demand[name] = (pod.held[name], pod.held[name] + choice * 2, choice > 1)


def _end(world: World, pod: ModelPod, what: int) -> None:
    """A deletion runs its course: asked for, the kubelet's `terminated`, the object goes."""
    if pod.ended:
        pod.vanished = True
    elif not pod.terminating and not pod.vanished:
        pod.terminating = True
        if what % 2 and not pod.cut_off:
            world.end(pod)
    elif not pod.cut_off:
        world.end(pod)


def _force(world: World, pod: ModelPod, what: int) -> None:
    """Deleted by force: the process lives on for a while, answering or (what is likelier at a partition) not."""
    pod.vanished = True
    pod.cut_off |= what % 3 > 0


def _node(world: World, pod: ModelPod, what: int) -> None:
    """A partition comes, heals, or turns out to be the node's end."""
    if not pod.cut_off:
        pod.cut_off = True
    elif what % 3 and not pod.vanished:
        pod.cut_off = False
    elif what % 3 == 0:
        world.lose_node(pod, silently=what % 2 == 0)


def _agent(world: World, pod: ModelPod, what: int) -> None:
    """It dies, or is there again: then it looks at the kubelet's file and at PgBouncer at once."""
    if pod.agent_up and what % 3 == 0:
        pod.agent_up = False
        return
    world.restart_agent(pod)
    _read(world, pod, what)


def _read(world: World, pod: ModelPod, what: int) -> None:
    world.accept(pod, pod.delivered)
    if what % 4:
        world.load(pod)


def _slow(world: World, pod: ModelPod, what: int) -> None:
    pod.slow = not pod.slow


ON_PODS: Final[dict[str, Callable[[World, ModelPod, int], None]]] = {
    "deliver": lambda world, pod, what: world.deliver(pod),
    "read": _read,
    "slow": _slow,
    "start": lambda world, pod, what: world.start(pod),
    "load": lambda world, pod, what: world.load(pod),
    "fill": lambda world, pod, what: world.fill(pod),
    "shed": lambda world, pod, what: world.shed(pod, None if what % 3 else what % 2),
    "sample": lambda world, pod, what: world.sample(pod, missed=what % 3),
    "demand": _demand,
    "terminate": lambda world, pod, what: setattr(pod, "terminating", True),
    "end": _end,
    "force": _force,
    "node": _node,
    "crash": lambda world, pod, what: world.crash(pod, silently=what % 8 == 0),
    "agent": _agent,
}
ON_RUNS: Final[dict[str, Callable[[Run, int], None]]] = {
    "birth": _birth,
    "pool": _pool,
    "budget": _budget,
    "wipe": _lose_ledger,
    "network": _network,
    "tick": _tick,
    "pump": _pump,
    "lane": _lane,
}


# -- events at operators ---------------------------------------------------------------------------------------------


def _hear(operator: Operator, what: int) -> None:
    """An answer of some pod comes in as this pod's: the address was another one's a moment ago."""
    pods = list(operator.world.pods.values())
    if pods:
        wrong = pods[what % len(pods)]
        operator.hear(pods[(what // 16) % len(pods)].uid, operator.world.state(wrong))


def _write(operator: Operator) -> None:
    operator.write()


def _block(operator: Operator, what: int) -> None:
    """The roles of some pools have a CONNECTION LIMIT that must be raised first."""
    operator.blocked = frozenset(name for bit, name in enumerate(POOLS) if what >> bit & 1)


def _crash(operator: Operator, what: int) -> None:
    operator.pending = []


ON_OPERATORS: Final[dict[str, Callable[[Operator, int], None]]] = {
    "observe": lambda operator, what: operator.observe(),
    "ledger": lambda operator, what: operator.observe_ledger(),
    "hear": _hear,
    "sessions": lambda operator, what: operator.read_sessions(sight=what % 4 > 0),
    "write": lambda operator, what: _write(operator),
    "tell": lambda operator, what: operator.tell(fast_lane=what % 2 == 0),
    "dies": _crash,
    "block": _block,
    "leader": lambda operator, what: operator.restart(),
}

ALWAYS: Final = ("observe", "write", "tell", "deliver", "read", "load", "sample", "tick", "birth")
OFTEN: Final = ("pump", "lane", "slow", "network", "shed", "demand", "budget", "end", "agent")
SELDOM: Final = tuple(sorted((set(ON_PODS) | set(ON_RUNS) | set(ON_OPERATORS)) - set(ALWAYS) - set(OFTEN)))


def take(run: Run, step: Step) -> None:
    """Take one step."""
    action, who, what = step
    if (on_pod := ON_PODS.get(action)) is not None:
        living = [pod for pod in run.world.pods.values() if pod.alive or not pod.vanished]
        if living:
            on_pod(run.world, living[who % len(living)], what)
    elif (on_run := ON_RUNS.get(action)) is not None:
        on_run(run, what)
    else:
        ON_OPERATORS[action](run.operators[who % len(run.operators)], what)


def swarm(rng: random.Random, steps: int) -> list[Step]:
    """The steps of one run. How often each action comes is drawn first, many not at all: rare orders come up that way
    (swarm testing)."""
    weights = {name: rng.choice((1, 3, 8)) for name in ALWAYS}
    weights |= {name: rng.choice((0, 1, 4, 12)) for name in OFTEN}
    weights |= dict.fromkeys(rng.sample(SELDOM, rng.choice((0, 1, 2, 4, 8))), 2)
    actions = rng.choices(list(weights), list(weights.values()), k=steps)
    if rng.random() < 0.8:  # most runs begin with a fleet that is up
        actions[:0] = ["birth"] * rng.randint(1, 3) + ["pump", "tick", "pump", "tick"] * 3
    return [Step(action, rng.randrange(64), rng.randrange(4096)) for action in actions]


def shorten(steps: list[Step], breaks: Callable[[list[Step]], bool]) -> list[Step]:
    """The fewest of `steps` that still break it, by leaving out ever smaller pieces."""
    size = len(steps) // 2
    while size:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if breaks(fewer):
                steps = fewer
            else:
                at += size
        size //= 2
    return steps
