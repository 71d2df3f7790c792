"""The promise, in one pure function: the pods of all pools never hold more connections than the budget.

The ledger is the one record of who may hold how many server connections. An **entry** is kept per (pod, database):

    bound   the largest number that the pod was ever told since it last proved a smaller one; this is what counts
    grant   what its newest directive says; grant < bound means: told to shrink, not proved yet

and the rules are few (design section 3; each one closes a run in which a model broke the budget, facts/ledger.md):

* Σ bounds ≤ budget after every write, or, after a cut of the budget, no larger than before.
* Raising: ledger first, then tell, and only out of what is free. Lowering: tell, have it proved, then release.
* Every directive has a revision of its own that the ledger holds first. A proof names it.
* Released connections rest for the linger time: backends of a process that is gone need it to notice.
* A pod counts until it is known to be gone. One that merely vanished keeps its entries for a grace period.
* One connection per database of a pool stays in reserve, so that a surge pod can always start.

`advance` takes the world as observed and returns the next ledger; `orders` says what to tell whom once it is written.
Whoever calls them writes the ledger by compare-and-set and tells only after that write (controller/servers.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from poolfleet.api.names import LINGER_SECONDS
from poolfleet.api.wire import AgentState, Directive
from poolfleet.plan.model import Pod
from poolfleet.plan.sizing import PoolWish, divide

UNVERIFIED_SECONDS: Final = 5.0  # a shrink unproved for this long is asked of the next donor as well
NUDGE_SECONDS: Final = 3.0  # a directive unanswered for this long is sent anew: touching the pod wakes the kubelet
DRAIN_CUT_SECONDS: Final = 2.0  # a draining pod is cut to its clients at most this often
REVISION_GAP: Final = 1000  # how far a rebuilt ledger jumps ahead of every revision seen
OBSERVED_SAMPLES: Final = 2  # samples that make a proof


class IllegalStepError(AssertionError):
    """A step would have raised Σ bounds above the budget. A bug; nothing was written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one pod may hold of one database."""

    pod: str  # UID
    pod_name: str
    pool: str  # "<namespace>/<name>"
    database: str
    bound: int
    grant: int
    revision: int
    since: float  # when `revision` was written
    gone_since: float | None = None  # when the pod was first missed


@dataclass(frozen=True, slots=True)
class Rest:
    """Released connections that nobody gets before `until`."""

    connections: int
    until: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """Everything the budget depends on; it lives in PgServer.status.ledger."""

    revision: int = 0
    entries: tuple[Entry, ...] = ()
    resting: tuple[Rest, ...] = ()
    rebuilt: float | None = None  # when it was rebuilt from what the pods know; nothing is raised for a while then

    @property
    def bound(self) -> int:
        """Σ bounds: what may be held at this moment."""
        return sum(entry.bound for entry in self.entries)

    def of_pod(self, uid: str) -> list[Entry]:
        """The entries of one pod."""
        return [entry for entry in self.entries if entry.pod == uid]


@dataclass(frozen=True, slots=True)
class World:
    """All that a step depends on."""

    server: str  # PgServer UID
    budget: int | None  # None: not known, then nothing is raised
    ledger: Ledger
    pods: tuple[Pod, ...]  # of the server's pools; deleted ones too while their last words are remembered
    wish: PoolWish | None
    now: float
    leader_since: float = 0.0  # rests that another leader wrote run anew from here: clocks differ
    ghost_grace: float = 120.0  # seconds that a vanished pod keeps its entries


def advance(world: World) -> Ledger:
    """The next ledger; the same object if nothing is to be written. Raises IllegalStepError on a bug of ours."""
    if is_lost(world):
        return rebuild(world)
    step = _Step(world)
    step.release_the_gone()
    step.take_proofs()
    step.finish_rebuild()
    if world.budget is not None and world.wish is not None:
        step.lower()
        step.raise_grants()
    step.reissue()
    return step.result()


def orders(world: World, ledger: Ledger) -> list[tuple[Pod, Directive]]:
    """The directives that pods should carry under the written `ledger` and do not carry yet."""
    config = world.wish.config if world.wish else ""
    shares = fair_shares(world, ledger)
    due = []
    for pod in world.pods:
        entries = ledger.of_pod(pod.uid)
        if not entries or pod.ended or pod.server != world.server:
            continue
        revision = max(entry.revision for entry in entries)
        annotated = pod.directive.get("rev", 0) if pod.directive.get("server") == world.server else 0
        if annotated >= revision:
            continue
        grant = {entry.database: entry.grant for entry in entries if entry.grant}
        share = {name: shares.get((pod.uid, name), count) for name, count in grant.items()}
        due.append((pod, Directive(world.server, pod.uid, revision, config, grant, share)))
    return due


def wake_at(world: World, ledger: Ledger) -> float | None:
    """When time alone will allow the next step (seconds since the epoch), if ever."""
    times = [_until(world, rest) for rest in ledger.resting]
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
            times.append(entry.since + DRAIN_CUT_SECONDS)
    times = [time for time in times if time > world.now]
    return min(times) if times else None


def free(world: World, ledger: Ledger) -> int:
    """Connections that may be handed out now; negative after a cut of the budget."""
    resting = sum(rest.connections for rest in ledger.resting if _until(world, rest) > world.now)
    return (world.budget or 0) - ledger.bound - resting


def reserve(wish: PoolWish | None) -> int:
    """Connections kept so that one more pod can always start: one per database."""
    return len(wish.databases) if wish else 0


def is_lost(world: World) -> bool:
    """Whether some pod knows a revision that the ledger never wrote: the ledger was wiped or restored."""
    for pod in world.pods:
        if pod.ended:
            continue
        if pod.directive and pod.directive.get("server") != world.server:
            # A pod of an earlier PgServer of the same pool: it still holds connections to the database.
            if pod.directive.get("grant") and not world.ledger.of_pod(pod.uid):
                return True
            continue
        if _highest_revision(pod, world.server) > world.ledger.revision:
            return True
    return False


def rebuild(world: World) -> Ledger:
    """A ledger from what the pods were told and hold: bound = max(annotated, loaded, held) (facts/ledger.md 8)."""
    highest = max([world.ledger.revision, *(_highest_revision(pod, None) for pod in world.pods)])
    revision = highest + REVISION_GAP
    known = {(entry.pod, entry.database): entry for entry in world.ledger.entries}
    for pod in world.pods:
        if pod.ended:
            continue
        bounds = dict(pod.directive.get("grant", {}))
        if pod.state is not None:
            for name, database in pod.state.databases.items():
                bounds[name] = max(bounds.get(name, 0), database.loaded, database.held)
        for name, bound in bounds.items():
            before = known.get((pod.uid, name))
            bound = max(bound, before.bound if before else 0)
            pool = f"{pod.namespace}/{world.wish.pool.partition('/')[2] if world.wish else ''}"
            known[pod.uid, name] = Entry(pod.uid, pod.name, pool, name, bound, bound, revision, world.now)
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


def members(world: World) -> list[Pod]:
    """The pods that shall have a share, oldest first: of this server, placed on a node, staying."""
    staying = [
        pod
        for pod in world.pods
        if pod.scheduled and not pod.terminating and not pod.ended and pod.server == world.server
    ]
    return sorted(staying, key=lambda pod: (pod.created, pod.uid))


def fair_shares(world: World, ledger: Ledger) -> dict[tuple[str, str], int]:
    """What every staying (pod, database) would have if all agents had answered; a pod is warm with half of it."""
    if world.wish is None or world.budget is None:
        return {}
    staying = [pod.uid for pod in members(world)]
    others = sum(entry.bound for entry in ledger.entries if entry.pod not in staying)
    return divide(world.budget - reserve(world.wish) - others, staying, world.wish)


def targets(world: World, ledger: Ledger) -> dict[tuple[str, str], int]:
    """What every (pod, database) shall reach, given who else still counts; 0 for a database that is to go.

    A pod whose agent has not answered is not raised: one that never comes up holds nobody's share. But it keeps what
    it has of its fair share: a new leader has not heard of any pod yet. A draining pod is cut to what its clients can
    use.
    """
    wish = world.wish
    if wish is None or world.budget is None:
        return {}
    staying = members(world)
    up = [pod.uid for pod in staying if pod.state is not None and pod.state.server == world.server and pod.state.rev]
    fair, had = fair_shares(world, ledger), {(entry.pod, entry.database): entry.grant for entry in ledger.entries}
    silent = {key: max(1, min(had.get(key, 1), share)) for key, share in fair.items() if key[0] not in up}
    staying_uids = {pod.uid for pod in staying}
    others = sum(entry.bound for entry in ledger.entries if entry.pod not in staying_uids)
    total = world.budget - reserve(wish) - others - sum(silent.values())
    result = divide(total, up, wish) | silent
    pods = {pod.uid: pod for pod in world.pods}
    for entry in ledger.entries:
        key = (entry.pod, entry.database)
        if key in result:
            continue
        pod = pods.get(entry.pod)
        if entry.pod in staying_uids:
            result[key] = 0  # a database that is no longer in the spec
        elif pod is not None and pod.terminating and pod.state is not None and pod.server == world.server:
            database = pod.state.databases.get(entry.database)
            wanted = max(1, database.clients if database else 0)
            soon = world.now - entry.since < DRAIN_CUT_SECONDS
            result[key] = entry.grant if soon else min(entry.grant, wanted)
        else:
            result[key] = entry.grant
    return result


class _Step:
    """One step under construction: the entries by (pod, database), and which pods need a new directive."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pods: Mapping[str, Pod] = {pod.uid: pod for pod in world.pods}
        self.entries = {(entry.pod, entry.database): entry for entry in world.ledger.entries}
        self.resting = [rest for rest in world.ledger.resting if _until(world, rest) > world.now]
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
        """Drop entries of pods that are known to be gone, and of vanished ones after their grace."""
        for key, entry in list(self.entries.items()):
            pod = self.pods.get(entry.pod)
            if pod is not None and pod.ended:
                del self.entries[key]
                self.release(entry.bound)
            elif pod is None and entry.gone_since is None:
                self.entries[key] = replace(entry, gone_since=self.world.now)
            elif pod is None and entry.gone_since is not None:
                if self.world.now - entry.gone_since >= self.world.ghost_grace:
                    del self.entries[key]
                    self.release(entry.bound)
            elif entry.gone_since is not None:
                self.entries[key] = replace(entry, gone_since=None)

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
        """End a rebuild once a grace has passed and every living pod has answered a directive of the new ledger."""
        if self.rebuilt is None or self.world.now - self.rebuilt < self.world.ghost_grace:
            return
        for entry in self.entries.values():
            pod = self.pods.get(entry.pod)
            ours = pod is not None and pod.server == self.world.server
            if ours and pod is not None and (pod.state is None or pod.state.rev < entry.revision):
                return
        self.rebuilt = None

    def lower(self) -> None:
        """Order shrinks towards the targets: one staying pod at a time, another only if that one does not answer."""
        wanted = targets(self.world, self.ledger())
        excess: dict[str, int] = {}
        busy = False
        for key, entry in self.entries.items():
            pod = self.pods.get(entry.pod)
            if pod is None or pod.server != self.world.server:
                continue
            if entry.grant < entry.bound and not pod.terminating:
                busy = busy or self.world.now - entry.since < UNVERIFIED_SECONDS
            more = entry.grant - wanted.get(key, entry.grant)
            if more > 0:
                excess[entry.pod] = excess.get(entry.pod, 0) + more
        draining = [uid for uid in excess if self.pods[uid].terminating]
        staying = sorted((uid for uid in excess if uid not in draining), key=lambda uid: (-excess[uid], uid))
        for uid in [*draining, *([] if busy else staying[:1])]:
            for key, entry in self.entries.items():
                if entry.pod == uid and entry.grant > wanted.get(key, entry.grant):
                    self.entries[key] = replace(entry, grant=wanted[key])
                    self.told.add(uid)

    def raise_grants(self) -> None:
        """Hand out what is free: first grants (they may use the reserve), then whoever has least of its target."""
        wish = self.world.wish
        if wish is None or self.rebuilt is not None:
            return
        left = free(self.world, self.ledger())
        staying = members(self.world)
        for pod in staying:
            missing = [name for name in sorted(wish.databases) if (pod.uid, name) not in self.entries]
            if missing and left >= len(missing):
                for name in missing:
                    self.entries[pod.uid, name] = Entry(
                        pod.uid, pod.name, wish.pool, name, bound=1, grant=1, revision=0, since=self.world.now
                    )
                left -= len(missing)
                self.told.add(pod.uid)
        left -= reserve(wish)
        wanted = targets(self.world, self.ledger())
        below = [key for key, entry in self.entries.items() if entry.grant < wanted.get(key, 0)]
        for key in sorted(below, key=lambda k: (self.entries[k].grant / wanted[k], k)):
            entry = self.entries[key]
            grant = min(wanted[key], entry.bound + max(0, left))
            if grant > entry.grant:
                left -= max(0, grant - entry.bound)
                self.entries[key] = replace(entry, grant=grant, bound=max(entry.bound, grant))
                self.told.add(entry.pod)

    def reissue(self) -> None:
        """Give a new revision to directives that name an old configuration, or that nobody has answered."""
        config = self.world.wish.config if self.world.wish else ""
        for uid in {entry.pod for entry in self.entries.values()}:
            pod = self.pods.get(uid)
            if pod is None or pod.ended or pod.server != self.world.server or uid in self.told:
                continue
            entries = [entry for entry in self.entries.values() if entry.pod == uid]
            revision = max(entry.revision for entry in entries)
            age = self.world.now - max(entry.since for entry in entries)
            if not pod.directive or pod.directive.get("rev") != revision:
                continue  # not told yet
            if config and pod.directive.get("config") != config:
                self.told.add(uid)
            elif pod.state is not None and age >= NUDGE_SECONDS:
                unloaded = pod.state.config != config and not pod.state.config_error
                if (config and unloaded) or (pod.state.rev < revision and age >= 2 * UNVERIFIED_SECONDS):
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


def _until(world: World, rest: Rest) -> float:
    """When a rest is over: one that another leader wrote runs anew from when this one began."""
    return max(rest.until, world.leader_since + LINGER_SECONDS)


def _highest_revision(pod: Pod, server: str | None) -> int:
    """The largest revision that a pod was told or has applied, of one server or (None) of any."""
    seen: Iterable[tuple[str, int]] = [(pod.directive.get("server", ""), int(pod.directive.get("rev", 0)))]
    if pod.state is not None:
        seen = [*seen, (pod.state.server, pod.state.rev)]
    return max((rev for of, rev in seen if server is None or of == server), default=0)
