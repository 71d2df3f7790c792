"""A world small enough to look at every order of its events, with the real planning functions.

One pool, one database, a few pods, one or two operators. A state is a tuple of small numbers; two that behave the same
are one state. What is left out against ledger_model.py, and why nothing is lost by it:

* Time stands still, or so much of it passes (`tick`) that every wait but the ghosts' grace is over.
* A pod holds nothing, or (`over`) all that it may and goes on with it when the limit is lowered: what it holds below
  its limit does not matter to the promise, for it may open the rest at any moment, and nothing proves most.
* Revisions are numbered anew, for each pod by itself: only the order of those that one pod may hear of counts.
* Both lanes are one: the newest directive may reach a pod at any time, and so may one older one, whichever (what a late
  kubelet's file or a late POST says, and an agent that restarts reads). What its agent would ignore for ever is gone.
* An operator that sees an older PgServer can write nothing; all that matters of it is whom it may still tell what.
* An operator that dies is one that looks anew; one that hangs is one that looks no more, writes and tells late.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from poolfleet.api.wire import AgentState, DatabaseState
from poolfleet.plan import ledger as plan
from poolfleet.plan.model import Pod
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Entry, Ledger, Rest, World

SERVER: Final = "s"
NOW: Final = 1000.0
TICK: Final = 20.0
GRACE: Final = 30.0  # two ticks
WISH: Final = PoolWish("ns/p", "u", 0.0, {"a": 1}, "c")

UNBORN, RUNNING, TERMINATING, ENDED, VANISHED, GONE = range(6)
Told = tuple[int, int]  # what a pod is told: revision, connections
NOTHING: Final = (0, 0)


class PodState(NamedTuple):
    """One pod, its agent and its PgBouncer."""

    phase: int = UNBORN
    annotation: Told = NOTHING
    messages: tuple[Told, ...] = ()  # on their way
    applied: Told = NOTHING  # durable
    loaded: int = 0
    over: int = 0


class Seen(NamedTuple):
    """One pod as an operator saw it."""

    phase: int
    annotation: Told
    answer: tuple[int, int, int] | None  # revision, limit loaded, connections held


class EntryState(NamedTuple):
    """One entry of the ledger; ages in ticks."""

    pod: int
    bound: int
    grant: int
    revision: int
    age: int
    gone: int | None


class LedgerState(NamedTuple):
    """The ledger."""

    revision: int = 0
    entries: tuple[EntryState, ...] = ()
    resting: int = 0


class OperatorState(NamedTuple):
    """What one operator has seen."""

    fresh: bool = False  # the PgServer that it saw is the newest
    pods: tuple[Seen | None, ...] = ()
    tells: tuple[tuple[int, Told, Told], ...] = ()  # of one that is not fresh: pod, order, annotation that it saw


class State(NamedTuple):
    """Everything."""

    budget: int
    ledger: LedgerState
    pods: tuple[PodState, ...]
    operators: tuple[OperatorState, ...]
    lingering: int = 0  # backends of processes that are gone
    ceiling: int = 0  # what may be held: the budget, or what was out before it was cut
    budgets: tuple[int, ...] = ()  # that will come


@dataclass(frozen=True, slots=True)
class Scope:
    """How large the world is, and what may happen in it."""

    budget: int
    pods: int
    up: int = 1  # pods that there are at the beginning
    operators: int = 1
    budgets: tuple[int, ...] = ()  # later budgets, one after the other
    delete: bool = False  # pods are deleted, gracefully
    force: bool = False  # pods are deleted by force; their process lives on for less than the grace
    stale_pods: bool = False  # an operator may see the newest ledger with older pods
    keeps_observations: bool = False  # a rule left out: what was seen of agents outlives a conflict


class Small:
    """The successors of a state within a scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._plans: dict[
            tuple[int, LedgerState, tuple[Seen | None, ...]], tuple[LedgerState, tuple[tuple[int, Told], ...]]
        ] = {}

    def start(self) -> State:
        """Pods that nobody has granted anything."""
        scope = self.scope
        pods = tuple(PodState(RUNNING if n < scope.up else UNBORN) for n in range(scope.pods))
        operators = (OperatorState(),) * scope.operators
        return State(scope.budget, LedgerState(), pods, operators, 0, scope.budget, scope.budgets)

    # -- what holds --------------------------------------------------------------------------------------------------
    @staticmethod
    def broken(state: State) -> str:
        """How the promise is broken, "" if it is not."""
        held = state.lingering + sum(max(pod.loaded, pod.over) for pod in state.pods)
        return f"{held} connections, {state.ceiling} may be" if held > state.ceiling else ""

    # -- what may happen ---------------------------------------------------------------------------------------------
    def after(self, state: State) -> Iterator[tuple[str, State]]:
        """Every event that may come next, and the state after it."""
        for number in range(len(state.pods)):
            yield from self._of_pod(state, number)
        for number in range(len(state.operators)):
            yield from self._of_operator(state, number)
        if not any(e.gone == 1 and state.pods[e.pod].phase == VANISHED for e in state.ledger.entries):
            yield "tick", self._tick(state)
        if state.budgets:
            budget = state.budgets[0]
            stale = tuple(self._stale(state, operator) for operator in state.operators)
            ceiling = max(budget, state.ceiling)
            yield (
                f"budget {budget}",
                state._replace(budget=budget, budgets=state.budgets[1:], operators=stale, ceiling=ceiling),
            )

    def _of_pod(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        pod, scope = state.pods[number], self.scope

        def but(**changes: object) -> State:
            pods = list(state.pods)
            pods[number] = pod._replace(**changes)  # type: ignore[arg-type]
            return state._replace(pods=tuple(pods))

        name = f"pod {number}"
        if pod.phase == UNBORN:
            if number == 0 or state.pods[number - 1].phase != UNBORN:
                yield f"{name} is born", but(phase=RUNNING)
            return
        if pod.phase in (ENDED, GONE):
            return
        for told in pod.messages:
            changes: dict[str, object] = {"applied": told}
            if not pod.applied[0]:
                changes["loaded"] = told[1]  # the first grant is what PgBouncer starts with
            yield f"{name} accepts {told}", but(**changes)
        if pod.loaded != pod.applied[1]:
            most = max(pod.loaded, pod.over)
            limit = pod.applied[1]
            yield f"{name} loads", but(loaded=limit, over=0)
            if most > limit:
                yield f"{name} loads, its sessions stay", but(loaded=limit, over=most)
        if pod.over:
            yield f"{name} sheds", but(over=0)
        if pod.phase == RUNNING and (scope.delete or scope.force):
            yield f"{name} is deleted", but(phase=TERMINATING)
        if scope.delete and pod.phase == TERMINATING:
            yield f"{name} ends", self._dead(state, number, ENDED)
        if scope.force and pod.phase in (RUNNING, TERMINATING):
            yield f"{name} is deleted by force", but(phase=VANISHED, annotation=NOTHING)
        if pod.phase == VANISHED:
            yield f"{name} dies", self._dead(state, number, GONE)

    @staticmethod
    def _dead(state: State, number: int, phase: int) -> State:
        pods = list(state.pods)
        held = max(pods[number].loaded, pods[number].over)
        pods[number] = PodState(phase)
        return state._replace(pods=tuple(pods), lingering=state.lingering + held)

    def _tick(self, state: State) -> State:
        """Everything that an operator sees late is seen by now, if it sees late at all."""

        def older(ledger: LedgerState) -> LedgerState:
            entries = tuple(
                e._replace(age=1, gone=None if e.gone is None else min(2, e.gone + 1)) for e in ledger.entries
            )
            return ledger._replace(entries=entries, resting=0)

        pods = tuple(map(_see, state.pods)) if self.scope.stale_pods else None
        operators = state.operators
        if pods is not None:
            operators = tuple(operator._replace(pods=pods) if operator.pods else operator for operator in operators)
        ledger = older(state.ledger)
        ceiling = max(state.budget, min(state.ceiling, sum(e.bound for e in ledger.entries)))
        return state._replace(ledger=ledger, operators=operators, lingering=0, ceiling=ceiling)

    def _of_operator(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        operator, name = state.operators[number], f"operator {number}"

        def but(new: OperatorState, **changes: object) -> State:
            operators = list(state.operators)
            operators[number] = new
            return state._replace(operators=tuple(operators), **changes)  # type: ignore[arg-type]

        seen = OperatorState(True, tuple(map(_see, state.pods)))
        if seen != operator:
            yield f"{name} looks", but(seen)
        if not operator.fresh:
            if operator.pods:  # kept where it may see the newest ledger with pods as old as these
                yield f"{name} sees the ledger", but(operator._replace(fresh=True, tells=()))
            yield from _tell(state, number, operator.tells)
            return
        after, _ = self.plan(state.budget, state.ledger, operator.pods)
        if after == state.ledger:
            yield from _tell(state, number, self._tells(state, operator))
            return
        assert after.revision >= 0, "nothing was lost in this world"
        old, new = (sum(e.bound for e in ledger.entries) for ledger in (state.ledger, after))
        ceiling = max(state.budget, min(state.ceiling, new + after.resting)) if new <= old else state.ceiling
        operators = [self._stale(state, other) for other in state.operators]
        operators[number] = operator
        yield (
            f"{name} writes {after}",
            state._replace(ledger=after, ceiling=ceiling, operators=tuple(operators)),
        )

    def _tells(self, state: State, operator: OperatorState) -> tuple[tuple[int, Told, Told], ...]:
        """Whom it may tell what, if it has nothing to write: pod, order, annotation that it saw."""
        after, orders = self.plan(state.budget, state.ledger, operator.pods)
        if after != state.ledger:
            return ()
        annotations = {which: seen.annotation for which, seen in enumerate(operator.pods) if seen is not None}
        return tuple((which, told, annotations[which]) for which, told in orders)

    def _stale(self, state: State, operator: OperatorState) -> OperatorState:
        """It as somebody else writes: a write of its own ends in a conflict, which drops what agents have said."""
        if not operator.fresh:
            return operator
        tells = set(self._tells(state, operator))
        pods = operator.pods
        if not self.scope.keeps_observations:
            pods = tuple(seen._replace(answer=None) if seen is not None else None for seen in pods)
            tells.update(self._tells(state, operator._replace(pods=pods)))
        return OperatorState(False, pods if self.scope.stale_pods else (), tuple(sorted(tells)))

    # -- the real planning functions ---------------------------------------------------------------------------------
    def plan(
        self, budget: int, ledger: LedgerState, pods: tuple[Seen | None, ...]
    ) -> tuple[LedgerState, tuple[tuple[int, Told], ...]]:
        """The next ledger, and whom to tell what."""
        key = (budget, ledger, pods)
        if (known := self._plans.get(key)) is not None:
            return known
        world = World(
            server=SERVER,
            budget=budget,
            ledger=_ledger(ledger),
            pods=tuple(_pod(number, seen) for number, seen in enumerate(pods) if seen is not None),
            wishes=(WISH,),
            now=NOW,
            ghost_grace=GRACE,
        )
        after = plan.advance(world)
        orders = tuple(
            (int(pod.uid), (directive.rev, directive.grant.get("a", 0))) for pod, directive in plan.orders(world, after)
        )
        following = _ledger_state(after) if after is not world.ledger else ledger
        if after.rebuilt is not None:
            following = LedgerState(revision=-1)  # whoever sees pods that are newer than its ledger takes it for lost
        result = (following, orders)
        self._plans[key] = result
        return result


def _tell(state: State, number: int, tells: tuple[tuple[int, Told, Told], ...]) -> Iterator[tuple[str, State]]:
    """Each order by itself, over the annotation that the operator has seen."""
    operator = state.operators[number]
    for which, told, was in tells:
        pod = state.pods[which]
        if pod.phase not in (RUNNING, TERMINATING) or pod.annotation != was:
            continue
        view, operators = list(operator.pods), list(state.operators)
        if view and (seen := view[which]) is not None:
            view[which] = seen._replace(annotation=told)
        operators[number] = operator._replace(pods=tuple(view))
        for late in pod.messages or (NOTHING,):
            pods = list(state.pods)
            pods[which] = pod._replace(annotation=told, messages=(late, told))
            yield (
                f"operator {number} tells pod {which} {told}",
                state._replace(pods=tuple(pods), operators=tuple(operators)),
            )


def _see(pod: PodState) -> Seen | None:
    if pod.phase in (UNBORN, VANISHED, GONE):
        return None
    if pod.phase == ENDED:
        return Seen(ENDED, NOTHING, None)
    return Seen(pod.phase, pod.annotation, (pod.applied[0], pod.loaded, pod.over))


def _ledger(state: LedgerState) -> Ledger:
    entries = tuple(
        Entry(
            pod=str(e.pod),
            pod_name=str(e.pod),
            pool=WISH.pool,
            database="a",
            bound=e.bound,
            grant=e.grant,
            revision=e.revision,
            since=NOW - TICK * e.age,
            gone_since=None if e.gone is None else NOW - TICK * e.gone,
        )
        for e in state.entries
    )
    return Ledger(state.revision, entries, (Rest(state.resting, NOW + 0.1),) if state.resting else ())


def _ledger_state(ledger: Ledger) -> LedgerState:
    entries = tuple(
        EntryState(
            pod=int(e.pod),
            bound=e.bound,
            grant=e.grant,
            revision=e.revision,
            age=int((NOW - e.since) / TICK),
            gone=None if e.gone_since is None else int((NOW - e.gone_since) / TICK),
        )
        for e in sorted(ledger.entries, key=lambda e: e.pod)
    )
    return LedgerState(ledger.revision, entries, sum(rest.connections for rest in ledger.resting if rest.until > NOW))


def _pod(number: int, seen: Seen) -> Pod:
    phase, (revision, grant), answer = seen
    uid = str(number)
    state = None
    if answer is not None:
        applied, loaded, held = answer
        databases = {"a": DatabaseState(loaded, held, 2, loaded, 9, loaded, loaded + 9, waited=True)} if applied else {}
        state = AgentState(SERVER if applied else "", uid, 0, applied, "c", "", "1" if applied else "", databases)
    told = {"server": SERVER, "pod": uid, "rev": revision, "config": "c", "grant": {"a": grant} if grant else {}}
    return Pod(
        uid=uid,
        name=uid,
        namespace="ns",
        created=float(number),
        terminating=phase == TERMINATING,
        scheduled=True,
        ended=phase == ENDED,
        ready=True,
        ip="",
        server=SERVER,
        directive=told if revision else {},
        pool=WISH.pool,
        ready_since=0.0,
        state=state,
    )
