"""The promise, in one pure function: the pods of all pools never hold more connections than the budget.

The ledger is the one record of who may hold how many server connections. An **entry** is kept per (pod, database):

    bound   the largest number that the pod was ever told since it last proved a smaller one; this is what counts
    grant   what its newest directive says; grant < bound means: told to shrink, not proved yet

and the rules are few (design section 3; each one closes a run in which a model broke the budget, facts/ledger.md):

* Σ bounds ≤ budget after every write, or, after a cut of the budget, no larger than before.
* Raising: ledger first, then tell, and only out of what is free. Lowering: tell, have it proved, then release.
* Every directive has a revision of its own that the ledger holds first. A proof names it.
* Released connections rest for the linger time: backends of a process that is gone need it to notice.
* A pod counts until it is known to be gone. One that merely vanished is a ghost until PostgreSQL shows no session that
  it could have, or for a grace period.
* Sessions of the pools' roles that no agent accounts for are not free.
* One connection per database of each pool stays in its reserve, so that a surge pod can always start.

The directive carries other things besides, and the ledger leases one of them: the pod's `peer`, by which a query cancel
that another pod got finds its way (PgBouncer's peer_id). It stays the pod's as long as it has entries.

Who shall reach what is decided in plan/shares.py. Here `advance` takes the world as observed and returns the next
ledger; `orders` says what to tell whom once it is written. Whoever calls them writes the ledger by compare-and-set and
tells only after that write (controller/servers.py).
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Final

from poolfleet.api.names import LINGER_SECONDS
from poolfleet.api.wire import AgentState, Directive, Move
from poolfleet.plan.model import Pod
from poolfleet.plan.moving import move
from poolfleet.plan.peers import peers, unused
from poolfleet.plan.shares import MOVE_SECONDS, NEW_SECONDS, cut_at, divide_budget
from poolfleet.plan.world import Entry, Ledger, Rest, World, highest_revision

UNVERIFIED_SECONDS: Final = 5.0  # a shrink unproved for this long is asked of the next donor as well
NUDGE_SECONDS: Final = 3.0  # a directive unanswered for this long is sent anew: touching the pod wakes the kubelet
PEERS_SECONDS: Final = 2.0  # a pod is told of its peers alone at most this often: many may come at once
CLIENTS_SECONDS: Final = 10.0  # likewise of the clients that it shall give up
GHOST_QUIET_SECONDS: Final = 20.0  # a ghost of which every look at PostgreSQL showed nothing for so long has ended
REVISION_GAP: Final = 1000  # how far a rebuilt ledger jumps ahead of every revision seen
OBSERVED_SAMPLES: Final = 2  # samples that make a proof


class IllegalStepError(AssertionError):
    """A step would have raised Σ bounds above the budget. A bug; nothing was written."""


def advance(world: World) -> Ledger:
    """The next ledger; the same object if nothing is to be written. Raises IllegalStepError on a bug of ours."""
    if is_lost(world):
        return rebuild(world)
    step = _Step(world)
    step.release_the_gone()
    step.take_proofs()
    step.finish_rebuild()
    if world.budget is not None:
        step.lower()
        step.raise_grants()
    step.reissue()
    step.lease()
    return step.result()


def orders(world: World, ledger: Ledger) -> list[tuple[Pod, Directive]]:
    """The directives that pods should carry under the written `ledger` and do not carry yet."""
    behind = []
    for pod in world.pods:
        entries = ledger.of_pod(pod.uid)
        if not entries or pod.ended or pod.server != world.server:
            continue
        revision = max(entry.revision for entry in entries)
        annotated = pod.directive.get("rev", 0) if pod.directive.get("server") == world.server else 0
        if annotated < revision:
            behind.append((pod, revision))
    if not behind:
        return []
    fair = divide_budget(world, ledger).fair
    due = []
    for pod, revision in behind:
        grant = {entry.database: entry.grant for entry in ledger.of_pod(pod.uid) if entry.grant}
        directive = Directive(
            server=world.server,
            pod=pod.uid,
            rev=revision,
            config=world.config_of(pod),
            grant=grant,
            share={name: fair.get((pod.uid, name), count) for name, count in grant.items()},
            peer=max(entry.peer for entry in ledger.of_pod(pod.uid)),
            peers=peers(world, ledger, pod.pool),
            move=move(world, pod),
            hold=world.hold_of(pod, grant),
            stage=world.stage_of(pod),
        )
        due.append((pod, directive))
    return due


def wake_at(world: World, ledger: Ledger) -> float | None:
    """When time alone will allow the next step (seconds since the epoch), if ever."""
    times = [world.rests_until(rest) for rest in ledger.resting]
    if ledger.rebuilt is not None:
        times.append(ledger.rebuilt + world.ghost_grace)
    pods = {pod.uid: pod for pod in world.pods}
    for entry in ledger.entries:
        pod = pods.get(entry.pod)
        if pod is None:
            times.append((entry.gone_since or world.now) + world.ghost_grace)
        elif entry.grant < entry.bound:
            times.append(entry.since + UNVERIFIED_SECONDS)
        elif pod.state is None or pod.state.rev < entry.revision:
            times.append(entry.since + 2 * UNVERIFIED_SECONDS)
        elif pod.terminating:
            times.append(cut_at(pod, entry))
        else:
            times += [
                entry.since + MOVE_SECONDS,
                entry.since + CLIENTS_SECONDS,
                entry.since + NUDGE_SECONDS,
                (pod.ready_since or 0.0) + NEW_SECONDS,
            ]
    times = [time for time in times if time > world.now]
    return min(times) if times else None


def is_lost(world: World) -> bool:
    """Whether the ledger was wiped or restored: some pod knows a revision that it never wrote, or was granted something
    and has no entry, as a pod of an earlier PgServer of the same pool has none."""
    for pod in world.pods:
        if pod.ended or pod.uid in world.off:
            continue
        if pod.directive.get("grant") and not world.ledger.of_pod(pod.uid):
            return True
        if highest_revision(pod, world.server) > world.ledger.revision:
            return True
    return False


def rebuild(world: World) -> Ledger:
    """A ledger from what the pods were told and hold: bound = max(annotated, loaded, held) (facts/ledger.md 8).

    Nobody is told more than before: where the bound is larger than what the newest directive says, or an older ledger
    was restored, that is a shrink which waits for its proof.
    """
    highest = max([world.ledger.revision, *(highest_revision(pod, None) for pod in world.pods)])
    revision = highest + REVISION_GAP
    known = {(entry.pod, entry.database): entry for entry in world.ledger.entries}
    for pod in world.pods:
        if pod.ended or pod.uid in world.off:
            continue
        told = pod.directive.get("grant", {})
        seen = pod.state.databases if pod.state is not None else {}
        before = {entry.database: entry for entry in world.ledger.of_pod(pod.uid)}
        for name in sorted({*told, *seen, *before}):
            loaded, held = (seen[name].loaded, seen[name].held) if name in seen else (0, 0)
            bound = max(told.get(name, 0), loaded, held, before[name].bound if name in before else 0)
            grant = bound
            if pod.directive.get("server") == world.server:
                grant = told.get(name, 0)
                if pod.state is not None and pod.state.rev > pod.directive["rev"]:  # the annotation is seen late
                    grant = min(grant, loaded) if name in told else loaded
            elif pod.server == world.server:
                grant = loaded or (before[name].grant if name in before else 0)
            peer = int(pod.directive.get("peer", 0)) or max((entry.peer for entry in before.values()), default=0)
            entry = Entry(pod.uid, pod.name, pod.pool, name, bound, grant, revision, world.now, peer=peer)
            known[pod.uid, name] = entry
    return Ledger(revision, tuple(known.values()), world.ledger.resting, world.now)


def proves(state: AgentState | None, entry: Entry, server: str) -> bool:
    """Whether `state` proves that the pod holds, and can open, no more than `entry.grant`.

    The same pod (the poller checks the UID), this server's revision or a later one applied, a running PgBouncer with
    the limit loaded, and two samples since then at or below it.
    """
    if state is None or state.pod != entry.pod or state.server != server or state.rev < entry.revision:
        return False
    if not state.started:
        return False
    database = state.databases.get(entry.database)
    if entry.grant == 0:
        return database is None
    return (
        database is not None
        and database.loaded <= entry.grant
        and database.samples >= OBSERVED_SAMPLES
        and database.held <= entry.grant
    )


def unproved(world: World, ledger: Ledger) -> list[str]:
    """Names of the living pods that have not proved, under this ledger, that they hold no more than it says.

    Their word alone is not enough: a directive of before may have been obeyed after the ledger was lost, and what it
    opened is still in use (facts/ledger.md 8c).
    """
    pods = {pod.uid: pod for pod in world.pods if pod.server == world.server}
    return sorted(
        {
            entry.pod_name
            for entry in ledger.entries
            if (pod := pods.get(entry.pod)) is not None and not proves(pod.state, entry, world.server)
        }
    )


def _shown(told: Move | None) -> dict[str, int] | None:
    return None if told is None else asdict(told)


class _Step:
    """One step under construction: the entries by (pod, database), and which pods need a new directive."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pods: Mapping[str, Pod] = {pod.uid: pod for pod in world.pods}
        self.entries = {(entry.pod, entry.database): entry for entry in world.ledger.entries}
        self.resting = [rest for rest in world.ledger.resting if world.rests_until(rest) > world.now]
        self.rebuilt = world.ledger.rebuilt
        self.told: set[str] = set()  # UIDs of pods that get a new revision

    def ledger(self) -> Ledger:
        """The ledger as it stands, before revisions are given out."""
        return replace(
            self.world.ledger,
            entries=tuple(self.entries.values()),
            resting=tuple(self.resting),
            rebuilt=self.rebuilt,
        )

    def release(self, connections: int) -> None:
        """Let `connections` rest for the linger time."""
        if connections > 0:
            self.resting.append(Rest(connections, self.world.now + LINGER_SECONDS))

    def release_the_gone(self) -> None:
        """Drop the entries of pods that are known to be gone, and of ghosts once they are proved or given up."""
        for key, entry in list(self.entries.items()):
            pod = self.pods.get(entry.pod)
            answers = entry.pod in self.world.answering if pod is None else pod.state is not None
            missing = pod is None and not answers  # who still answers is not gone
            off = entry.pod in self.world.off and not answers
            if (pod is not None and pod.ended) or off or (missing and self.is_over(entry)):
                del self.entries[key]
                self.release(entry.bound)
            elif missing != (entry.gone_since is not None):
                self.entries[key] = replace(entry, gone_since=self.world.now if missing else None)

    def is_over(self, entry: Entry) -> bool:
        """Whether a ghost is gone: PostgreSQL shows no session that it could have, or its grace is over."""
        world = self.world
        if entry.gone_since is None:
            return False
        looks, asked_for = world.sessions, world.wish_of(entry.pool) is not None
        if asked_for and looks is not None and looks.quiet_since is not None:
            # Again and again, for a process that nobody can reach may be idle at any one moment.
            quiet = looks.at - max(looks.quiet_since, entry.gone_since)
            if quiet >= GHOST_QUIET_SECONDS:
                return True
        return world.now - entry.gone_since >= world.ghost_grace

    def take_proofs(self) -> None:
        """Lower bounds to what was proved; an entry that proved nothing left is dropped."""
        for key, entry in list(self.entries.items()):
            pod = self.pods.get(entry.pod)
            if pod is None or entry.grant >= entry.bound or not proves(pod.state, entry, self.world.server):
                continue
            self.release(entry.bound - entry.grant)
            if entry.grant:
                self.entries[key] = replace(entry, bound=entry.grant)
            else:
                del self.entries[key]

    def finish_rebuild(self) -> None:
        """End a rebuild once a grace has passed and every living pod has proved what the new ledger says of it."""
        if self.rebuilt is None or self.world.now - self.rebuilt < self.world.ghost_grace:
            return
        if not unproved(self.world, self.ledger()):
            self.rebuilt = None

    def lower(self) -> None:
        """Order shrinks towards the targets: in each pool one staying pod at a time, another only if that one does not
        answer."""
        wanted = divide_budget(self.world, self.ledger()).targets
        excess: dict[str, int] = {}
        busy: set[str] = set()  # pools with a staying pod that shrinks
        for key, entry in self.entries.items():
            pod = self.pods.get(entry.pod)
            if pod is None or pod.server != self.world.server:
                continue
            unproved = entry.grant < entry.bound and self.world.now - entry.since < UNVERIFIED_SECONDS
            if unproved and not pod.terminating:
                busy.add(entry.pool)
            more = entry.grant - wanted.get(key, entry.grant)
            if more > 0:
                excess[entry.pod] = excess.get(entry.pod, 0) + more
        for uid in sorted(excess, key=lambda uid: (-excess[uid], uid)):
            pod = self.pods[uid]
            if not pod.terminating:
                if pod.pool in busy:
                    continue
                busy.add(pod.pool)
            for key, entry in self.entries.items():
                if entry.pod == uid and entry.grant > wanted.get(key, entry.grant):
                    self.entries[key] = replace(entry, grant=wanted[key])
                    self.told.add(uid)

    def raise_grants(self) -> None:
        """Hand out what is free: first grants (they may use the pool's reserve), then whoever has least of its
        target."""
        if self.rebuilt is not None:
            return
        ledger = self.ledger()
        division = divide_budget(self.world, ledger)
        left = self.world.free(ledger)
        # What is left of each pool's reserve: it belongs to this pool's next pod and to nobody else.
        held = {wish.pool: sum(e.bound for e in ledger.of_pool(wish.pool)) for wish in self.world.wishes}
        room = {
            wish.pool: max(division.shares[wish.pool], division.allotted[wish.pool]) - held[wish.pool]
            for wish in self.world.wishes
            if wish.pool in division.shares
        }
        kept = {w.pool: min(w.reserve, max(0, room[w.pool])) for w in self.world.wishes if w.pool in room}
        for wish in sorted(self.world.wishes, key=lambda w: (w.created, w.uid)):
            for pod in self.world.members(wish.pool) if wish.pool in room else ():
                missing = [name for name in sorted(wish.databases) if (pod.uid, name) not in self.entries]
                mine = left - sum(kept.values()) + kept[wish.pool]
                if any(self.world.held_back(wish, name) for name in missing):
                    continue
                if not missing or min(mine, room[wish.pool]) < len(missing):
                    continue
                for name in missing:
                    self.entries[pod.uid, name] = Entry(pod.uid, pod.name, wish.pool, name, 1, 1, 0, self.world.now)
                left -= len(missing)
                room[wish.pool] -= len(missing)
                kept[wish.pool] = min(wish.reserve, max(0, room[wish.pool]))
                self.told.add(pod.uid)
        left -= sum(kept.values())
        wanted = (divide_budget(self.world, self.ledger()) if self.told else division).targets
        below = [key for key, entry in self.entries.items() if entry.grant < wanted.get(key, 0)]
        for wish in self.world.wishes if self.world.blocked else ():
            below = [k for k in below if self.entries[k].pool != wish.pool or not self.world.held_back(wish, k[1])]
        for key in sorted(below, key=lambda k: (self.entries[k].grant / wanted[k], k)):
            entry = self.entries[key]
            grant = min(wanted[key], entry.bound + max(0, left))
            if grant > entry.grant:
                left -= max(0, grant - entry.bound)
                self.entries[key] = replace(entry, grant=grant, bound=max(entry.bound, grant))
                self.told.add(entry.pod)

    def lease(self) -> None:
        """Give a peer_id to each pod that is told something and has none: one that no entry of its pool has."""
        for uid in sorted(self.told):
            mine = [entry for entry in self.entries.values() if entry.pod == uid]
            peer = max((entry.peer for entry in mine), default=0)
            if mine and not peer:
                others = {entry.peer for entry in self.entries.values() if entry.pool == mine[0].pool}
                peer = unused(others, self.world.ledger.revision)
            for entry in mine:
                self.entries[entry.pod, entry.database] = replace(entry, peer=peer)

    def reissue(self) -> None:
        """Give a new revision to directives that name an old configuration, other peers or clients, or that nobody has
        answered."""
        ledger = self.ledger()
        of_pool = {pool: peers(self.world, ledger, pool) for pool in {entry.pool for entry in ledger.entries}}
        for uid in {entry.pod for entry in self.entries.values()}:
            pod = self.pods.get(uid)
            if pod is None or pod.ended or pod.server != self.world.server or uid in self.told:
                continue
            entries = [entry for entry in self.entries.values() if entry.pod == uid]
            config, stage = self.world.config_of(pod), self.world.stage_of(pod)
            revision = max(entry.revision for entry in entries)
            age = self.world.now - max(entry.since for entry in entries)
            if not pod.directive or pod.directive.get("rev") != revision:
                continue  # not told yet
            other_peers = pod.directive.get("peers", {}) != of_pool[pod.pool]
            other_clients = pod.directive.get("move") != _shown(move(self.world, pod))
            hold = self.world.hold_of(pod, (entry.database for entry in entries if entry.grant))
            if (
                (config and pod.directive.get("config") != config)
                or (tuple(pod.directive.get("hold", ())), pod.directive.get("stage", "")) != (hold, stage)
                or (age >= PEERS_SECONDS and other_peers)
                or (age >= CLIENTS_SECONDS and other_clients)
            ):
                self.told.add(uid)
            elif pod.state is not None and age >= NUDGE_SECONDS:
                unloaded = pod.state.config != config and not pod.state.config_error
                unstaged = stage and pod.state.mounted and pod.state.mounted != stage
                if (config and unloaded) or unstaged or (pod.state.rev < revision and age >= 2 * UNVERIFIED_SECONDS):
                    self.told.add(uid)

    def result(self) -> Ledger:
        """The finished ledger: one new revision for every pod that is told something."""
        world = self.world
        revision = world.ledger.revision + 1 if self.told else world.ledger.revision
        for key, entry in self.entries.items():
            if entry.pod in self.told:
                self.entries[key] = replace(entry, revision=revision, since=world.now)
        after = replace(self.ledger(), revision=revision)
        expired_only = (after.entries, after.rebuilt, after.revision) == (
            world.ledger.entries,
            world.ledger.rebuilt,
            world.ledger.revision,
        )
        if expired_only:
            return world.ledger  # rests that ran out need no write of their own
        if after.bound > max(world.budget or 0, world.ledger.bound):
            raise IllegalStepError(f"Σ bounds {after.bound}, budget {world.budget}, before {world.ledger.bound}")
        return after
