"""Every order of events in small worlds, breadth first, with the real planning functions."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tests.property.small_world import Scope, Small, State, canonical


@dataclass
class Search:
    """What came of one."""

    states: int = 0
    depth: int = 0
    exhausted: bool = False
    broken: str = ""
    path: list[str] = field(default_factory=list)


def search(scope: Scope, most: int) -> Search:
    """Look at every state that can be reached, `most` of them at most; stop where the promise is broken."""
    world, result = Small(scope), Search()
    start = canonical(world.start())
    parents: dict[int, int] = {hash(start): 0}
    level = [start]
    while level:
        below: list[State] = []
        for state in level:
            for _, after in world.after(state):
                after = canonical(after)
                key = hash(after)
                if key in parents:
                    continue
                parents[key] = hash(state)
                if broken := world.broken(after):
                    result.broken, result.states = broken, len(parents)
                    result.path = _path(world, start, parents, key)
                    return result
                below.append(after)
                if len(parents) >= most:
                    result.states = len(parents)
                    return result
        result.depth += bool(below)
        level = below
    result.states, result.exhausted = len(parents), True
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
