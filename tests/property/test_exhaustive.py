"""Every order of events in small worlds, breadth first, with the real planning functions."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from tests.property.small_world import GONE, ENDED, LedgerState, PodState, Scope, Seen, Small, State, Told


@dataclass
class Search:
    """What came of one."""

    states: int
    depth: int
    exhausted: bool
    broken: str = ""
    path: tuple[str, ...] = ()


def canonical(state: State) -> State:
    """The representative of all states that behave the same: revisions by their order, dead messages dropped."""
    pods = []
    for pod in state.pods:
        if pod.posts or pod.file[0]:
            least = pod.applied[0]
            file = pod.file if pod.file[0] > least else (0, 0)
            pod = pod._replace(file=file, posts=tuple(sorted({post for post in pod.posts if post[0] > least})))
        pods.append(pod)
    state = state._replace(pods=tuple(pods))
    numbers = {0: 0}
    for revision in sorted(_revisions(state)):
        numbers.setdefault(revision, len(numbers))

    def told(one: Told) -> Told:
        return (numbers[one[0]], one[1])

    def ledger(one: LedgerState) -> LedgerState:
        entries = tuple(entry._replace(revision=numbers[entry.revision]) for entry in one.entries)
        return LedgerState(numbers[one.revision], entries, one.resting)

    def seen(one: Seen | None) -> Seen | None:
        if one is None:
            return None
        answer = None if one.answer is None else (numbers[one.answer[0]], *one.answer[1:])
        return Seen(one.phase, told(one.annotation), answer)

    return State(
        state.budget,
        ledger(state.ledger),
        tuple(
            PodState(p.phase, told(p.annotation), told(p.file), tuple(map(told, p.posts)), told(p.applied), p.loaded, p.over)
            for p in state.pods
        ),
        tuple(
            sorted(
                (
                    o._replace(
                        ledger=ledger(o.ledger),
                        pods=tuple(map(seen, o.pods)),
                        pending=tuple((which, told(new), told(was)) for which, new, was in o.pending),
                    )
                    for o in state.operators
                ),
                key=repr,
            )
        ),
        state.lingering,
        state.ceiling,
        state.budgets,
    )
