"""A world small enough to look at every order of its events, with the real planning functions.

One pool, one database, a few pods, one or two operators. A state is a tuple of small numbers; two that behave the same
are one state. What is left out against ledger_model.py, and why nothing is lost by it:

* Time stands still, or so much of it passes (`tick`) that every wait but the ghosts' grace is over.
* What a pod holds below its limit does not matter to the promise, for it may open the rest at any moment. `over` is
  what it holds above a limit that was lowered.
* Revisions are numbered anew: only their order counts.
* A message that an agent ignores for ever is gone.
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
Told = tuple[int, int]  # revision, connections
NOTHING: Final = (0, 0)


class PodState(NamedTuple):
    """One pod, its agent and its PgBouncer."""

    phase: int = UNBORN
    annotation: Told = NOTHING
    file: Told = NOTHING  # what the kubelet brought and the agent has not read
    posts: tuple[Told, ...] = ()  # on their way
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
    """What one operator has seen, and has still to tell: (pod, what is to be told, the annotation that it saw)."""

    ledger: LedgerState = LedgerState()
    fresh: bool = False  # the PgServer has not been written since it looked
    budget: int = 0
    pods: tuple[Seen | None, ...] = ()
    pending: tuple[tuple[int, Told, Told], ...] = ()


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
    post: bool = False  # the fast lane beside the annotation
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
        operators = (OperatorState(budget=scope.budget, pods=(None,) * scope.pods),) * scope.operators
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
            stale = tuple(operator._replace(fresh=False) for operator in state.operators)
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
        if pod.phase != VANISHED and pod.file != pod.annotation and pod.annotation[0] > pod.applied[0]:
            yield f"{name}: the kubelet delivers", but(file=pod.annotation)
        if pod.file[0] > pod.applied[0]:
            yield f"{name} reads its file", but(**self._accepted(pod, pod.file))
        for told in pod.posts:
            yield f"{name} gets a POST", but(**self._accepted(pod, told))
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
            yield f"{name} is deleted by force", but(phase=VANISHED)
        if pod.phase == VANISHED:
            yield f"{name} dies", self._dead(state, number, GONE)

    @staticmethod
    def _accepted(pod: PodState, told: Told) -> dict[str, object]:
        """A pod's first grant is what PgBouncer starts with."""
        changes: dict[str, object] = {"applied": told}
        if not pod.applied[0]:
            changes["loaded"] = told[1]
        return changes

    @staticmethod
    def _dead(state: State, number: int, phase: int) -> State:
        pods = list(state.pods)
        held = max(pods[number].loaded, pods[number].over)
        pods[number] = PodState(phase, annotation=pods[number].annotation)
        return state._replace(pods=tuple(pods), lingering=state.lingering + held)

    @staticmethod
    def _tick(state: State) -> State:
        def older(ledger: LedgerState) -> LedgerState:
            entries = tuple(
                e._replace(age=1, gone=None if e.gone is None else min(2, e.gone + 1)) for e in ledger.entries
            )
            return ledger._replace(entries=entries, resting=0)

        operators = tuple(operator._replace(ledger=older(operator.ledger)) for operator in state.operators)
        ledger = older(state.ledger)
        ceiling = max(state.budget, min(state.ceiling, sum(e.bound for e in ledger.entries)))
        return state._replace(ledger=ledger, operators=operators, lingering=0, ceiling=ceiling)

    def _of_operator(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        operator, scope = state.operators[number], self.scope
        name = f"operator {number}"

        def but(new: OperatorState, **changes: object) -> State:
            operators = list(state.operators)
            operators[number] = new
            return state._replace(operators=tuple(operators), **changes)  # type: ignore[arg-type]

        seen = OperatorState(state.ledger, True, state.budget, tuple(map(_see, state.pods)), operator.pending)
        if seen != operator:
            yield f"{name} looks", but(seen)
        if scope.stale_pods and (operator.ledger != state.ledger or not operator.fresh):
            yield (
                f"{name} sees the ledger",
                but(operator._replace(ledger=state.ledger, fresh=True, budget=state.budget)),
            )
        yield from self._write(state, operator, name, but)
        if operator.pending:
            (which, told, was), *rest = operator.pending
            new = operator._replace(pending=tuple(rest))
            pod = state.pods[which]
            if pod.phase in (RUNNING, TERMINATING) and pod.annotation == was:
                posts = (*pod.posts, told) if scope.post else ()
                pods = list(state.pods)
                pods[which] = pod._replace(annotation=told, posts=posts)
                mine = list(operator.pods)
                if (known := mine[which]) is not None:
                    mine[which] = known._replace(annotation=told)
                yield f"{name} tells pod {which} {told}", but(new._replace(pods=tuple(mine)), pods=tuple(pods))
            yield f"{name} cannot tell pod {which}", but(new)
            yield f"{name} dies", but(operator._replace(pending=()))

    def _write(self, state: State, operator: OperatorState, name: str, but: object) -> Iterator[tuple[str, State]]:
        assert callable(but)
        after, orders = self.plan(operator.budget, operator.ledger, operator.pods)
        seen = {which: known.annotation for which, known in enumerate(operator.pods) if known is not None}
        pending = tuple((which, told, seen[which]) for which, told in orders)
        if after == operator.ledger:
            if pending != operator.pending:
                yield f"{name} has to tell {pending}", but(operator._replace(pending=pending))
        elif operator.fresh:
            others = tuple(other._replace(fresh=False) for other in state.operators)
            old = sum(e.bound for e in state.ledger.entries)
            new = sum(e.bound for e in after.entries)
            ceiling = max(state.budget, min(state.ceiling, new + after.resting)) if new <= old else state.ceiling
            mine = operator._replace(ledger=after, pending=pending)
            first = but(mine, ledger=after, ceiling=ceiling)
            operators = tuple(
                mine if at is mine else other for at, other in zip(first.operators, others, strict=True)
            )
            yield f"{name} writes {after}", first._replace(operators=operators)
        elif not self.scope.keeps_observations:
            pods = tuple(known._replace(answer=None) if known is not None else None for known in operator.pods)
            if pods != operator.pods:
                yield f"{name} has a conflict", but(operator._replace(pods=pods))

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
        assert after.rebuilt is None, "nothing was lost in this world"
        orders = tuple(
            (int(pod.uid), (directive.rev, directive.grant.get("a", 0))) for pod, directive in plan.orders(world, after)
        )
        result = (_ledger_state(after) if after is not world.ledger else ledger, orders)
        self._plans[key] = result
        return result


def _see(pod: PodState) -> Seen | None:
    if pod.phase in (UNBORN, VANISHED, GONE):
        return None
    if pod.phase == ENDED:
        return Seen(ENDED, pod.annotation, None)
    return Seen(pod.phase, pod.annotation, (pod.applied[0], pod.loaded, max(pod.loaded, pod.over)))


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
        databases = {"a": DatabaseState(loaded, held, 2, held, 9, held, held + 9, waited=True)} if applied else {}
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
