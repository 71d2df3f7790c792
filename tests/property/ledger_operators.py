"""The operators of the model: each sees late, plans with the real functions, writes by compare-and-set, and tells.

An operator may die between any two effects, and two may lead at once. What it has seen of pods may be old; the ledger
that it plans on may be old as well, and then its write is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from poolfleet.api.wire import AgentState, Directive
from poolfleet.plan import ledger as plan
from poolfleet.plan import world as planned
from poolfleet.plan.model import Pod, Sessions
from poolfleet.plan.sessions import since
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Ledger
from tests.property.ledger_model import GRACE, SERVER, ModelPod, World

PODS_LAG: Final = 5.0  # seconds that a view of the pods may be behind; far less than any time that proves something


@dataclass
class Operator:
    """One operator process: what it has seen, and what it still has to tell."""

    world: World
    ledger: Ledger = field(default_factory=Ledger)
    version: int = 0
    budget: int = 0
    foreign: int = 0
    wishes: tuple[PoolWish, ...] = ()
    pods: dict[str, Pod] = field(default_factory=dict)
    looked: float = -1e9  # when it saw the pods
    sessions: Sessions | None = None
    unknown: dict[tuple[str, str], int] = field(default_factory=dict)  # what the last reading could not place
    blocked: frozenset[str] = frozenset()  # roles whose CONNECTION LIMIT is not raised yet
    leader_since: float = 0.0
    followed: set[str] = field(default_factory=set)  # UIDs of pods whose address it knows
    pending: list[tuple[Pod, Directive]] = field(default_factory=list)  # written in the ledger, not told yet
    drops_observations: bool = True  # after a conflict

    def restart(self) -> None:
        """A new process: nothing remembered, its clock starts here."""
        self.pending, self.pods, self.followed = [], {}, set()
        self.sessions, self.unknown, self.blocked = None, {}, frozenset()
        self.leader_since = self.world.now
        self.observe()

    # -- observe -----------------------------------------------------------------------------------------------------
    def observe_ledger(self) -> None:
        """The newest PgServer and PgPools; the pods stay as they were seen, within what a watch may be late."""
        world = self.world
        if world.now - self.looked > PODS_LAG:
            self.observe_pods()
        self.ledger, self.version = world.ledger, world.version
        self.budget, self.foreign = world.budget, world.foreign
        self.wishes = tuple(world.wishes.values())

    def observe_pods(self) -> None:
        """All pods as they are now. A pod that ended is remembered by whoever saw it end (its last words)."""
        seen = {}
        for pod in self.world.pods.values():
            before = self.pods.get(pod.uid)
            if not pod.vanished:
                seen[pod.uid] = self.view(pod)
                self.followed.add(pod.uid)
            elif before is not None and before.ended:
                seen[pod.uid] = before
        self.pods = seen
        self.looked = self.world.now

    def observe(self) -> None:
        """Everything."""
        self.observe_pods()
        self.observe_ledger()

    def view(self, pod: ModelPod) -> Pod:
        """One pod as its API object and its agent show it."""
        return Pod(
            uid=pod.uid,
            name=pod.uid,
            namespace="ns",
            created=pod.created,
            terminating=pod.terminating,
            scheduled=pod.scheduled,
            ended=pod.ended,
            ready=pod.ready_since is not None,
            ready_since=pod.ready_since,
            ip=f"10.0.0.{pod.uid.removeprefix('pod-')}" if pod.scheduled else "",
            server=SERVER,
            directive=pod.annotation,
            pool=pod.pool,
            state=self.world.state(pod),
        )

    def hear(self, uid: str, state: AgentState | None) -> None:
        """An answer comes in, perhaps from another pod at the same address; the poller checks who signed it."""
        seen = self.pods.get(uid)
        if seen is None or state is None:
            return
        if state.pod != uid:
            if self.world.switches.checked_answers:
                return
            state = replace(state, pod=uid)
        self.pods[uid] = replace(seen, state=state)

    def read_sessions(self, sight: bool = True) -> None:
        """Look at PostgreSQL. Without `sight` (a role that does not see them) nothing is believed."""
        world = self.world
        if not sight:
            self.sessions = None
            return
        unknown: dict[tuple[str, str], int] = {}
        known = 0
        for pod in world.pods.values():
            held = sum(pod.held.values())
            answers = pod.uid in self.followed and world.state(pod) is not None
            if held and not answers:
                unknown[pod.uid, pod.pool] = held
            known += held
        for backends in world.backends:
            key = (backends.pod + "?", backends.pool)
            unknown[key] = unknown.get(key, 0) + backends.count
        orphans: dict[str, int] = {}
        for key, count in unknown.items():
            if twice := min(count, self.unknown.get(key, 0)):
                orphans[key[1]] = orphans.get(key[1], 0) + twice
        self.unknown = unknown
        quiet = None if unknown else world.now
        seen = Sessions(world.now, known + sum(b.count for b in world.backends), orphans, 0, quiet)
        self.sessions = since(seen, self.sessions)

    # -- plan and write ----------------------------------------------------------------------------------------------
    def input(self) -> planned.World:
        """What the real planning function gets."""
        world = self.world
        ghosts = {uid: world.pods[uid] for uid in self.followed if world.pods[uid].vanished}
        return planned.World(
            server=SERVER,
            budget=self.budget,
            ledger=self.ledger,
            pods=tuple(self.pods.values()),
            wishes=self.wishes,
            now=world.now,
            leader_since=self.leader_since,
            ghost_grace=GRACE,
            sessions=self.sessions if self.sessions is not None and world.now - self.sessions.at < 30.0 else None,
            foreign=self.foreign,
            blocked=self.blocked,
            answering=frozenset(uid for uid, pod in ghosts.items() if world.state(pod) is not None),
            off=frozenset(pod.uid for pod in world.pods.values() if pod.off),
        )

    def write(self) -> bool:
        """One compare-and-set. True if it was written, or nothing was to be written."""
        world = self.world
        seen = self.input()
        after = plan.advance(seen)
        if after is not seen.ledger:
            if self.version != world.version:
                if self.drops_observations:
                    self.pods = {uid: replace(pod, state=None) for uid, pod in self.pods.items()}
                return False
            self._judge(seen, after)
            world.put_ledger(after)
            self.ledger, self.version = world.ledger, world.version
        self.pending = list(plan.orders(seen, after))
        return True

    def _judge(self, seen: planned.World, after: Ledger) -> None:
        """Whether this write may be: Σ bounds, and who was given up."""
        before, world = seen.ledger, self.world
        if plan.is_lost(seen):
            return  # a rebuilt ledger says what is, not what may be
        may = world.budget - world.foreign
        assert after.bound <= max(may, before.bound), (after.bound, may, before.bound)
        if after.bound > before.bound:
            silent = sum(e.bound for e in after.entries if (p := seen_pod(seen, e.pod)) is None or p.state is None)
            blind = max(0, sum(self.sessions.orphans.values()) - silent) if seen.sessions and self.sessions else 0
            assert after.bound + blind <= may, f"{blind} sessions that nobody accounts for were handed out again"
        for pool in {entry.pool for entry in after.entries}:
            leases = {entry.pod: entry.peer for entry in after.of_pool(pool) if entry.peer and entry.gone_since is None}
            assert len(set(leases.values())) == len(leases), f"two pods have one peer_id: {leases}"
        kept = {entry.pod for entry in after.entries}
        for entry in before.entries:
            pod = world.pods[entry.pod]
            if entry.pod in kept or not pod.vanished or not pod.alive or pod.exception:
                continue
            if entry.gone_since is None:
                continue  # proved, not given up
            if world.now - entry.gone_since >= GRACE:
                pod.exception = "grace"
            else:
                pod.exception = "idle ghost"
                looked = seen.sessions.orphans if seen.sessions else {}
                assert not looked.get(pod.pool), "a ghost was given up while its sessions were seen"
            world.exceptions[pod.exception] += 1

    # -- tell --------------------------------------------------------------------------------------------------------
    def tell(self, fast_lane: bool = True) -> None:
        """The next directive: the annotation, over the value that was seen, and then the POST of the same."""
        if not self.pending:
            return
        seen, directive = self.pending.pop(0)
        pod, message = self.world.pods[seen.uid], directive.to_message()
        if pod.vanished or pod.annotation != seen.directive:
            return
        pod.annotation = message
        if seen.uid in self.pods:
            self.pods[seen.uid] = replace(self.pods[seen.uid], directive=message)
        if fast_lane:
            self.world.network.append((pod.uid, message))


def seen_pod(world: planned.World, uid: str) -> Pod | None:
    """The pod as the operator saw it."""
    return next((pod for pod in world.pods if pod.uid == uid), None)
