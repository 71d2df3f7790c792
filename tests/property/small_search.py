"""Breadth-first search through a small world; states that behave the same are one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tests.property.small_world import (
    RUNNING,
    TERMINATING,
    LedgerState,
    OperatorState,
    PodState,
    Scope,
    Seen,
    Small,
    State,
    Told,
)

SCOPES: Final = {
    "2 operators, 2 pods, budget 3": (Scope(3, 2, operators=2), 400_000),
    "1 operator, 2 pods, budget 4, cut to 3": (Scope(4, 2, budgets=(3,)), 100_000),
    "1 operator, 2 pods, budget 3, deletes": (Scope(3, 2, delete=True), 300_000),
    "1 operator, 3 pods, budget 4, deletes by force too": (Scope(4, 3, delete=True, force=True), 40_000),
    "2 operators, 3 pods, budget 4, cut to 3, deletes": (Scope(4, 3, operators=2, budgets=(3,), delete=True), 40_000),
    "2 operators, 2 pods, late watches, budget 3": (Scope(3, 2, operators=2, stale_pods=True), 40_000),
}
# Those of CI: scope, and how many states to look at.


@dataclass
class Search:
    """What came of one."""

    states: int = 0
    depth: int = 0
    exhausted: bool = False
    broken: str = ""
    path: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        how = "exhausted" if self.exhausted else "capped"
        return f"{self.states:,} states, {how} at depth {self.depth}"


def search(scope: Scope, most: int) -> Search:
    """Look at every state that can be reached, `most` of them at most; stop where the promise is broken."""
    world, result = Small(scope), Search()
    start = canonical(world.start())
    parents: dict[int, int] = {hash(start): 0}
    met: set[int] = set()  # states as they come, before equal ones are made one
    level = [start]
    while level:
        below: list[State] = []
        for state in level:
            for _, after in world.after(state):
                raw = hash(after)
                if raw in met:
                    continue
                met.add(raw)
                after = canonical(after)
                key = hash(after)
                if key in parents:
                    continue
                parents[key] = hash(state)
                result.states = len(parents)
                if broken := world.broken(after):
                    result.broken, result.path = broken, _path(world, start, parents, key)
                    return result
                below.append(after)
                if len(parents) >= most:
                    return result
        result.depth += bool(below)
        level = below
    result.exhausted = True
    return result


def _path(world: Small, start: State, parents: dict[int, int], key: int) -> list[str]:
    """The events that led there."""
    keys = [key]
    while keys[-1] != hash(start):
        keys.append(parents[keys[-1]])
    path, state = [], start
    for wanted in reversed(keys[:-1]):
        label, state = next((n, c) for n, s in world.after(state) if hash(c := canonical(s)) == wanted)
        path.append(label)
    return path


# -- one state for all that behave the same --------------------------------------------------------------------------


def canonical(state: State) -> State:
    """Messages and orders that come to nothing are left out, revisions are numbered anew, operators sorted."""
    pods = tuple(_without_dead_messages(pod) if pod.messages else pod for pod in state.pods)
    operators = tuple(_without_dead_orders(pods, each) if each.tells else each for each in state.operators)
    state = _renumbered(state._replace(pods=pods, operators=operators))
    if len(state.operators) > 1:
        state = state._replace(operators=tuple(sorted(state.operators, key=hash)))
    return state


def _without_dead_messages(pod: PodState) -> PodState:
    """An older directive with what is granted already changes nothing: a proof names the newest revision."""
    newest = max(pod.messages)
    messages = {
        told
        for told in pod.messages
        if told[0] > pod.applied[0] and (told == newest or told[1] != pod.applied[1] or not pod.applied[0])
    }
    return pod._replace(messages=tuple(sorted(messages)))


def _without_dead_orders(pods: tuple[PodState, ...], operator: OperatorState) -> OperatorState:
    tells = tuple(
        (which, told, was)
        for which, told, was in operator.tells
        if pods[which].annotation == was and pods[which].phase in (RUNNING, TERMINATING)
    )
    return operator._replace(tells=tells)


def _renumbered(state: State) -> State:
    found: list[set[int]] = [{pod.annotation[0], pod.applied[0]} for pod in state.pods]
    for pod, revisions in zip(state.pods, found, strict=True):
        revisions.update(told[0] for told in pod.messages)
    for entry in state.ledger.entries:
        found[entry.pod].add(entry.revision)
    for operator in state.operators:
        for which, seen in enumerate(operator.pods):
            if seen is not None:
                found[which].add(seen.annotation[0])
                if seen.answer is not None:
                    found[which].add(seen.answer[0])
        for which, order, was in operator.tells:
            found[which].update((order[0], was[0]))
    new = [{revision: n for n, revision in enumerate(sorted(revisions | {0}))} for revisions in found]
    last = max(len(numbers) - 1 for numbers in new)
    if last == state.ledger.revision and all(len(numbers) == max(numbers) + 1 for numbers in new):
        return state

    def told(which: int, one: Told) -> Told:
        return (new[which][one[0]], one[1])

    def seen_anew(which: int, one: Seen | None) -> Seen | None:
        if one is None:
            return None
        answer = None if one.answer is None else (new[which][one.answer[0]], one.answer[1], one.answer[2])
        return Seen(one.phase, told(which, one.annotation), answer)

    entries = tuple(entry._replace(revision=new[entry.pod][entry.revision]) for entry in state.ledger.entries)
    pods = tuple(
        pod._replace(
            annotation=told(n, pod.annotation),
            messages=tuple(told(n, one) for one in pod.messages),
            applied=told(n, pod.applied),
        )
        for n, pod in enumerate(state.pods)
    )
    operators = tuple(
        operator._replace(
            pods=tuple(seen_anew(n, seen) for n, seen in enumerate(operator.pods)),
            tells=tuple((n, told(n, order), told(n, was)) for n, order, was in operator.tells),
        )
        for operator in state.operators
    )
    return state._replace(ledger=LedgerState(last, entries, state.ledger.resting), pods=pods, operators=operators)
