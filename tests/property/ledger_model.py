"""A small world for the ledger: pods with an agent and a PgBouncer each, a kubelet that delivers late, two operators.

What is modelled is what the promise depends on: who was told what, what is loaded, what is held, who noticed.
`held` counts live server connections; `orphans` are backends of a PgBouncer that is gone, until the linger time ends.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Any

from poolfleet.api.names import LINGER_SECONDS
from poolfleet.api.wire import AgentState, DatabaseState, Directive
from poolfleet.plan import ledger as plan
from poolfleet.plan.ledger import Ledger, World
from poolfleet.plan.model import Pod
from poolfleet.plan.sizing import PoolWish

SERVER = "server-uid"
MOST_DATABASES = 2  # that a pool of this model ever has


class Conflict(Exception):
    """The compare-and-set found another resourceVersion."""


@dataclass
class ModelPod:
    """One pod: its annotation, what the kubelet delivered, its agent and its PgBouncer."""

    uid: str
    created: float
    demand: dict[str, int] = field(default_factory=dict)
    scheduled: bool = True
    terminating: bool = False
    ended: bool = False
    vanished: bool = False  # the API object is gone while the processes run on
    annotation: dict[str, Any] = field(default_factory=dict)
    delivered: dict[str, Any] = field(default_factory=dict)
    applied_rev: int = 0  # durable
    applied_config: str = ""
    applied_grant: dict[str, int] = field(default_factory=dict)  # durable
    loaded: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[int]] = field(default_factory=dict)
    started: int = 0  # PgBouncer process number, 0: none runs
    cold: bool = False
    agent_up: bool = True

    def holds(self) -> int:
        return sum(self.held.values())


@dataclass
class Operator:
    """What one operator process has seen; it may be stale, and it may die between any two effects."""

    ledger: Ledger = field(default_factory=Ledger)
    version: int = 0
    pods: tuple[Pod, ...] = ()
    leader_since: float = 0.0
    pending: list[tuple[str, Directive]] = field(default_factory=list)  # written in the ledger, not told yet


class Model:
    """The cluster, PostgreSQL and the operators."""

    def __init__(self, budget: int, databases: dict[str, int], operators: int = 1) -> None:
        self.now = 1000.0
        self.budget = budget
        self.databases = databases
        self.config = "c1"
        self.pods: dict[str, ModelPod] = {}
        self.orphans: list[tuple[int, float, str]] = []  # (backends, gone at, pod)
        self.ledger = Ledger()
        self.version = 1
        self.operators = [Operator() for _ in range(operators)]
        self.numbers = itertools.count(1)

    # -- the cluster -------------------------------------------------------------------------------------------------
    def birth(self) -> ModelPod:
        pod = ModelPod(f"pod-{next(self.numbers)}", self.now)
        self.pods[pod.uid] = pod
        return pod

    def terminate(self, pod: ModelPod) -> None:
        pod.terminating = True

    def end(self, pod: ModelPod) -> None:
        """The kubelet has stopped the containers and written `terminated`."""
        self._kill(pod)
        pod.ended = True

    def force_delete(self, pod: ModelPod) -> None:
        pod.vanished = True

    def _kill(self, pod: ModelPod) -> None:
        if pod.holds():
            self.orphans.append((pod.holds(), self.now + LINGER_SECONDS - 0.1, pod.uid))
        pod.held, pod.loaded, pod.samples, pod.started = {}, {}, {}, 0

    def crash_pgbouncer(self, pod: ModelPod) -> None:
        if pod.started:
            self._kill(pod)

    def start_pgbouncer(self, pod: ModelPod) -> None:
        """Starts with the cold file, one connection per database. The kubelet backs off before a second restart, so
        there is one predecessor at most whose backends are not gone yet."""
        predecessors = len([orphan for orphan in self.orphans if orphan[2] == pod.uid])
        if pod.applied_rev and not pod.started and not pod.ended and predecessors < 2:
            pod.started = next(self.numbers)
            pod.cold = True
            pod.loaded = dict.fromkeys(pod.applied_grant, 1)
            pod.held = dict.fromkeys(pod.applied_grant, 0)
            pod.samples = {}
            self.warm_at = self.now + LINGER_SECONDS

    def deliver(self, pod: ModelPod) -> None:
        """The kubelet brings the annotation to the agent's file."""
        pod.delivered = dict(pod.annotation)

    def agent_reads(self, pod: ModelPod) -> None:
        message = pod.delivered
        if not message or pod.ended or not pod.agent_up:
            return
        directive = Directive.from_message(message)
        if directive.pod != pod.uid or directive.server != SERVER or directive.rev <= pod.applied_rev:
            return
        pod.applied_rev, pod.applied_grant = directive.rev, dict(directive.grant)
        pod.applied_config = directive.config
        if pod.started and not pod.cold:
            self._load(pod)

    def agent_warms(self, pod: ModelPod) -> None:
        """After a restart of PgBouncer and the linger time the granted file is loaded."""
        if pod.started and pod.cold and pod.agent_up and self.now >= self.warm_at:
            pod.cold = False
            self._load(pod)

    def _load(self, pod: ModelPod) -> None:
        for name in set(pod.loaded) - set(pod.applied_grant):
            if pod.held.get(name):
                self.orphans.append((pod.held[name], self.now + LINGER_SECONDS - 0.1, pod.uid))
            pod.held.pop(name, None)
        pod.loaded = dict(pod.applied_grant)
        pod.held = {name: pod.held.get(name, 0) for name in pod.loaded}
        pod.samples = {}

    def clients(self, pod: ModelPod, rng: random.Random) -> None:
        """Connections come up to the loaded limit and go; above it they only go."""
        for name, limit in pod.loaded.items():
            held = pod.held.get(name, 0)
            pod.held[name] = rng.randint(held // 2, max(held, limit)) if held <= limit else rng.randint(limit, held)

    def fill(self, pod: ModelPod) -> None:
        """The worst case: every connection that may be opened is open."""
        for name, limit in pod.loaded.items():
            pod.held[name] = max(pod.held.get(name, 0), limit)

    def shed(self, pod: ModelPod) -> None:
        """RECONNECT: what is above the limit closes."""
        for name, limit in pod.loaded.items():
            pod.held[name] = min(pod.held.get(name, 0), limit)

    def sample(self, pod: ModelPod) -> None:
        if pod.started:
            for name in pod.loaded:
                pod.samples.setdefault(name, []).append(pod.held.get(name, 0))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.orphans = [orphan for orphan in self.orphans if orphan[1] > self.now]

    # -- PostgreSQL --------------------------------------------------------------------------------------------------
    def potential(self) -> int:
        """Sessions if every process opened all it may, now."""
        worst = sum(
            max(pod.held.get(name, 0), limit) for pod in self.pods.values() for name, limit in pod.loaded.items()
        )
        return worst + sum(orphan[0] for orphan in self.orphans)

    # -- an operator -------------------------------------------------------------------------------------------------
    def state(self, pod: ModelPod) -> AgentState | None:
        if not pod.agent_up or pod.ended:
            return None
        return AgentState(
            server=SERVER if pod.applied_rev else "",
            pod=pod.uid,
            seq=0,
            rev=pod.applied_rev,
            config=pod.applied_config,
            config_error="",
            started=str(pod.started or ""),
            databases={
                name: DatabaseState(
                    loaded=limit,
                    held=max(pod.samples.get(name, [pod.held.get(name, 0)])[-2:]),
                    samples=len(pod.samples.get(name, [])),
                    clients=pod.demand.get(name, 0),
                )
                for name, limit in pod.loaded.items()
            },
        )

    def view(self, pod: ModelPod) -> Pod:
        return Pod(
            uid=pod.uid,
            name=pod.uid,
            namespace="ns",
            created=pod.created,
            terminating=pod.terminating,
            scheduled=pod.scheduled,
            ended=pod.ended,
            ready=True,
            ip="",
            server=SERVER,
            directive=dict(pod.annotation),
            state=self.state(pod),
        )

    def observe(self, operator: Operator) -> None:
        operator.pods = tuple(self.view(pod) for pod in self.pods.values() if not pod.vanished)
        operator.ledger, operator.version = self.ledger, self.version

    def world(self, operator: Operator) -> World:
        return World(
            server=SERVER,
            budget=self.budget,
            ledger=operator.ledger,
            pods=operator.pods,
            wish=PoolWish("ns/pool", "u", 0.0, self.databases, self.config),
            now=self.now,
            leader_since=operator.leader_since,
            ghost_grace=60.0,
        )

    def plan_and_write(self, operator: Operator) -> bool:
        """One compare-and-set. True if it was written (or nothing was to be written)."""
        world = self.world(operator)
        after = plan.advance(world)
        if after is not world.ledger:
            if operator.version != self.version:
                operator.pods = tuple(replace(pod, state=None) for pod in operator.pods)  # drop the observations
                return False
            self.ledger = after
            self.version += 1
        operator.ledger, operator.version = self.ledger, self.version
        operator.pending = [(pod.uid, d) for pod, d in plan.orders(world, after)]
        return True

    def tell(self, operator: Operator) -> None:
        """JSON patches with a test of the value that this operator saw."""
        seen = {pod.uid: dict(pod.directive) for pod in operator.pods}
        for uid, directive in operator.pending:
            pod = self.pods.get(uid)
            if pod is not None and not pod.vanished and pod.annotation == seen.get(uid, {}):
                pod.annotation = directive.to_message()
        operator.pending = []

    # -- quiet ---------------------------------------------------------------------------------------------------------
    def settle(self, rounds: int = 400) -> None:
        """No more noise: everything is delivered, answered and counted until nothing moves."""
        for pod in self.pods.values():
            pod.agent_up = True
            if pod.terminating or pod.vanished:
                self.end(pod)
        operator = self.operators[0]
        for _ in range(rounds):
            for pod in self.pods.values():
                if pod.ended:
                    continue
                self.deliver(pod)
                self.agent_reads(pod)
                self.start_pgbouncer(pod)
                self.agent_warms(pod)
                self.fill(pod)
                self.shed(pod)
                self.sample(pod)
            self.tick(1.0)
            self.check()
            self.observe(operator)
            self.plan_and_write(operator)
            self.tell(operator)

    def cold_starts(self) -> int:
        """The one exception that design section 3 admits: a PgBouncer that the kubelet restarts within the linger time
        has one connection per database beside the backends of its predecessor, also when it crashes in its turn."""
        extra = 0
        for pod in self.pods.values():
            predecessors = len([orphan for orphan in self.orphans if orphan[2] == pod.uid])
            if predecessors > 1 or (predecessors and pod.started and pod.cold):
                extra += MOST_DATABASES
        return extra

    def check(self) -> None:
        """The promise: what is held, and all that may be opened, stays within the budget."""
        assert self.ledger.bound <= self.budget
        assert self.potential() <= self.budget + self.cold_starts(), (self.potential(), self.budget, self.ledger)
