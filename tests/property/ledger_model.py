"""A small world for the ledger: pods with an agent and a PgBouncer each, a kubelet, a network, PostgreSQL.

What is modelled is what the promise depends on: who was told what, what is durable, loaded and held, who noticed. Who
plans and writes is in ledger_operators.py, what happens at random in ledger_noise.py, the end of it in ledger_quiet.py.

`World.check` is the promise: what is held, and all that processes might open this very moment, is within the budget.
Design section 3 admits exceptions. They are not hidden: each is modelled, left out of the sum, and counted by name in
`exceptions` (the first three can be seen by the operator too, and its status names them).

    grace       a pod vanished, its process lives on for longer than the ghost grace, and nobody can ask it
    idle ghost  as before, but PostgreSQL showed none of its sessions, for it had none; it opened some later
    lost ghost  as before, and the ledger was lost meanwhile, so that nothing but the grace stands for it
    cold start  a PgBouncer that is restarted within the linger time has one connection per database beside the
                backends of its predecessor, which notice only then that their client is gone
    blind       backends that outlive their PgBouncer for longer than the linger time (a server that knows no
                client_connection_check_interval, a host that vanished without a word): the promise holds "as PgBouncer
                counts". Where somebody looks at PostgreSQL they are not handed out again (`Operator.write` asserts it)
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from poolfleet.api.names import LINGER_SECONDS
from poolfleet.api.wire import AgentState, DatabaseState, Directive
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Ledger

SERVER: Final = "server-uid"
GRACE: Final = 60.0
BACK_OFF: Final = 10.0  # the kubelet's, before the second restart of a container and later ones
FOREVER: Final = float("inf")


@dataclass(slots=True)
class Backends:
    """Sessions in PostgreSQL whose PgBouncer is gone, or no longer counts them."""

    count: int
    until: float  # when PostgreSQL notices
    pod: str
    pool: str  # the role that it logged in as has the name of its pool
    exception: str = ""  # the admitted exception that they are, "" if the ledger has to account for them


@dataclass(slots=True)
class ModelPod:
    """One pod: its annotation, what the kubelet delivered, its agent and its PgBouncer."""

    uid: str
    pool: str
    created: float
    scheduled: bool = True
    terminating: bool = False
    ended: bool = False  # the kubelet wrote `terminated`
    vanished: bool = False  # the API object is gone; the processes may run on
    cut_off: bool = False  # from the API server and the operators, not from PostgreSQL
    slow: bool = False  # nothing is brought to it in order; what comes comes one by one, late
    off: bool = False  # its Node is gone, and so are its processes
    exception: str = ""  # its entries were given up while it lived on
    forgotten: bool = False  # it had vanished when the ledger was lost: no record of it is left
    annotation: dict[str, Any] = field(default_factory=dict)
    delivered: dict[str, Any] = field(default_factory=dict)  # the kubelet's file
    agent_up: bool = True
    rev: int = 0  # accepted; durable, as the next two
    config: str = ""
    grant: dict[str, int] = field(default_factory=dict)
    file: tuple[str, ...] = ()  # databases in the cold file, with one connection each
    started: int = 0  # PgBouncer process number, 0: none runs
    ready_since: float | None = None
    died: float = -FOREVER  # when the last process died
    restarts: int = 0
    warm_at: float = 0.0
    cold: bool = False
    loaded: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[int]] = field(default_factory=dict)
    missed: int = 0  # connections that the last sample did not see
    demand: dict[str, tuple[int, int, bool]] = field(default_factory=dict)  # peak, demand, waited; absent: as held

    @property
    def alive(self) -> bool:
        """Whether its containers may run."""
        return not self.ended and not self.off

    def potential(self) -> int:
        """Connections if it opened all it may, now."""
        held = self.held
        return sum(max(held[name], limit) for name, limit in self.loaded.items())


@dataclass(slots=True)
class Switches:
    """What an agent does for the promise; tests/property/test_bites.py turns each off."""

    durable: bool = True  # the accepted revision outlives the agent
    fenced: bool = True  # a directive is for one pod UID
    ordered: bool = True  # an older revision is ignored
    cold_file: bool = True  # a restarted PgBouncer starts with one connection per database
    checked_answers: bool = True  # an answer counts for the pod that signed it


class World:
    """The cluster and PostgreSQL."""

    def __init__(self, budget: int, wishes: dict[str, PoolWish], switches: Switches | None = None) -> None:
        self.now = 1000.0
        self.budget = budget
        self.foreign = 0
        self.wishes = wishes
        self.switches = switches or Switches()
        self.pods: dict[str, ModelPod] = {}
        self.backends: list[Backends] = []
        self.network: list[tuple[str, dict[str, Any]]] = []  # directives on their way: (pod UID it is sent to, text)
        self.ledger = Ledger()
        self.version = 1  # resourceVersion of the PgServer
        self.backups: list[Ledger] = []  # what the ledger was before
        self.lost = False  # the ledger was, and nobody has written since
        self.ceiling = budget  # what may be held: the budget, or after a cut what was out before, until it fits
        self.exceptions: Counter[str] = Counter()
        self._numbers = itertools.count(1)

    # -- the API server and the kubelet ------------------------------------------------------------------------------
    def birth(self, pool: str, scheduled: bool = True) -> ModelPod:
        pod = ModelPod(f"pod-{next(self._numbers)}", pool, self.now, scheduled=scheduled)
        self.pods[pod.uid] = pod
        return pod

    def set_budget(self, budget: int, foreign: int) -> None:
        """Both stand in the object that the ledger is in."""
        self.ceiling = max(self.ceiling, self.budget - self.foreign)
        self.budget, self.foreign = budget, foreign
        self.ceiling = max(self.ceiling, budget - foreign)
        self.version += 1

    def lose_ledger(self, to: Ledger | None = None) -> None:
        """The record is wiped, or an old one restored."""
        self.ledger = to or Ledger()
        self.version += 1
        self.lost = True

    def put_ledger(self, ledger: Ledger) -> None:
        """A write has come through the compare-and-set."""
        if self.lost:
            for pod in self.pods.values():
                pod.forgotten |= pod.vanished
        if ledger.rebuilt is None and (self.lost or self.ledger.rebuilt is not None):
            # The grace of a rebuild is over, or nobody noticed the loss: all pods that knew of it are gone.
            for backends in self.backends:
                backends.exception = backends.exception or "lost ghost"
            for pod in self.pods.values():
                if pod.forgotten and pod.alive and not pod.exception:
                    pod.exception = "lost ghost"
                    self.exceptions[pod.exception] += 1
        self.lost = False
        self.backups = [*self.backups[-5:], self.ledger]
        self.ledger = ledger
        self.version += 1
        if ledger.rebuilt is None:
            out = ledger.bound + sum(rest.connections for rest in ledger.resting if rest.until > self.now)
            self.ceiling = max(self.budget - self.foreign, min(self.ceiling, out))

    def deliver(self, pod: ModelPod) -> None:
        """The kubelet brings the annotation to the agent's file."""
        if not pod.vanished and not pod.cut_off:
            pod.delivered = pod.annotation

    def end(self, pod: ModelPod) -> None:
        """The kubelet has stopped the containers and, while the object exists, written `terminated`."""
        self._kill(pod)
        pod.ended = True

    def lose_node(self, pod: ModelPod, silently: bool) -> None:
        """The host is gone; `silently`: no packet told PostgreSQL."""
        self._kill(pod, silently)
        pod.off = True

    # -- PgBouncer ---------------------------------------------------------------------------------------------------
    def _lingers(self, pod: ModelPod) -> bool:
        return any(b.pod == pod.uid and not b.exception for b in self.backends)

    def _kill(self, pod: ModelPod, silently: bool = False) -> None:
        count = sum(pod.held.values())
        if count:
            exception = "cold start" if pod.cold and self._lingers(pod) else pod.exception
            if silently:
                exception = "blind"
                self.exceptions[exception] += 1
            until = FOREVER if silently else self.now + LINGER_SECONDS - 0.1
            self.backends.append(Backends(count, until, pod.uid, pod.pool, exception))
        pod.held, pod.loaded, pod.samples, pod.started, pod.ready_since = {}, {}, {}, 0, None

    def crash(self, pod: ModelPod, silently: bool = False) -> None:
        """PgBouncer dies; `silently`: its backends go on until their query ends."""
        if pod.started:
            self._kill(pod, silently)
            pod.died = self.now

    def start(self, pod: ModelPod) -> None:
        """The kubelet starts the container once the agent has opened the gate: with the cold file."""
        if pod.started or not pod.alive or not pod.rev or pod.vanished:
            return
        first = pod.died == -FOREVER
        if not first:
            if pod.restarts and self.now < pod.died + BACK_OFF:
                return
            pod.restarts += 1
        pod.started = next(self._numbers)
        pod.cold = True
        pod.loaded = dict.fromkeys(pod.file, 1) if self.switches.cold_file else dict(pod.grant)
        pod.held = dict.fromkeys(pod.loaded, 0)
        pod.samples = {}
        pod.warm_at = self.now if first else self.now + LINGER_SECONDS
        if self._lingers(pod):
            self.exceptions["cold start"] += 1

    def load(self, pod: ModelPod) -> None:
        """The agent writes the granted file and PgBouncer reloads it; after a restart not before the linger time."""
        if not pod.started or not pod.agent_up or (pod.cold and self.now < pod.warm_at):
            return
        for name in set(pod.loaded) - set(pod.grant):
            if count := pod.held.pop(name, 0):
                self.backends.append(Backends(count, self.now + LINGER_SECONDS - 0.1, pod.uid, pod.pool, pod.exception))
        pod.cold, pod.missed = False, 0
        pod.ready_since = pod.ready_since or self.now
        pod.loaded, pod.file = dict(pod.grant), tuple(pod.grant)
        pod.held = {name: pod.held.get(name, 0) for name in pod.loaded}
        pod.samples = {}

    def fill(self, pod: ModelPod) -> None:
        """The worst case: every connection that may be opened is open."""
        for name, limit in pod.loaded.items():
            pod.held[name] = max(pod.held[name], limit)

    def shed(self, pod: ModelPod, to: int | None = None) -> None:
        """Connections close; what is above the limit (RECONNECT), or all but `to`."""
        for name, limit in pod.loaded.items():
            pod.held[name] = min(pod.held[name], limit if to is None else min(limit, to))

    def sample(self, pod: ModelPod, missed: int = 0) -> None:
        """The agent counts. One look may miss connections that are on their way in; two in a row do not."""
        if not pod.started or not pod.agent_up:
            return
        pod.missed = missed if not pod.missed else 0
        for name, held in pod.held.items():
            pod.samples.setdefault(name, []).append(max(0, held - pod.missed))

    # -- the agent ---------------------------------------------------------------------------------------------------
    def accept(self, pod: ModelPod, message: dict[str, Any]) -> None:
        """What agent/accept.py and agent/intake.py do, on both lanes. Loading it is another event."""
        if not message or not pod.alive or not pod.agent_up:
            return
        directive = Directive.from_message(message)
        if directive.server != SERVER or (directive.pod != pod.uid and self.switches.fenced):
            return
        if directive.rev <= pod.rev and self.switches.ordered:
            return
        pod.rev, pod.grant, pod.config = directive.rev, dict(directive.grant), directive.config
        self._stage(pod)

    def restart_agent(self, pod: ModelPod) -> None:
        """Its memory is gone; it reads its durable file, the kubelet's, and looks at PgBouncer anew."""
        pod.agent_up, pod.samples, pod.missed = True, {}, 0
        if not self.switches.durable:
            pod.rev = 0
        self._stage(pod)

    @staticmethod
    def _stage(pod: ModelPod) -> None:
        """The cold file is written anew while no PgBouncer runs."""
        if not pod.started:
            pod.file = tuple(pod.grant)

    def state(self, pod: ModelPod) -> AgentState | None:
        """What the agent answers, None if it does not."""
        if not pod.agent_up or not pod.alive or pod.cut_off:
            return None
        return AgentState(
            server=SERVER if pod.rev else "",
            pod=pod.uid,
            seq=0,
            rev=pod.rev,
            config=pod.config,
            config_error="",
            started=str(pod.started or ""),
            databases={name: self._database(pod, name, limit) for name, limit in pod.loaded.items()},
        )

    @staticmethod
    def _database(pod: ModelPod, name: str, limit: int) -> DatabaseState:
        held, seen = pod.held[name], pod.samples.get(name, ())
        peak, demand, waited = pod.demand.get(name, (held, held, False))
        return DatabaseState(
            loaded=limit,
            held=max(seen[-2:], default=0),
            samples=len(seen),
            clients=held,
            peak=peak,
            demand=demand,
            waited=waited,
        )

    # -- PostgreSQL --------------------------------------------------------------------------------------------------
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.backends = [b for b in self.backends if b.until > self.now]

    def governed(self) -> int:
        """Sessions if every process opened all it may, now; without the admitted exceptions."""
        total = 0
        lingering = {b.pod for b in self.backends if not b.exception} if self.backends else ()
        for pod in self.pods.values():
            if pod.loaded and not pod.exception and not (pod.cold and pod.uid in lingering):
                total += pod.potential()
        return total + sum(b.count for b in self.backends if not b.exception)

    def check(self) -> None:
        """The promise."""
        governed = self.governed()
        assert governed <= self.ceiling, f"{governed} connections, {self.ceiling} may be: {self.ledger}"
