"""When a new state is worth an answer to the operator's long poll (design section 4).

`seq` rises when something relevant changes: revision, configuration, process, loaded limits, proof of a shrink,
reachability, readiness, draining. Live numbers raise it only when they move by a tenth, at most every LIVE_SECONDS.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Final

from poolfleet.api.wire import AgentState

LIVE_SECONDS: Final = 2.0


class Publisher:
    """Holds the newest state and lets callers wait for a relevant change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Not from 0: a restarted agent must not seem to be where its predecessor was.
        self.state = AgentState(
            server="", pod="", seq=int(time.time()), rev=0, config="", config_error="", started="", databases={}
        )
        self._answered = self.state
        self._answered_at = float("-inf")
        self._changed = asyncio.Event()

    def publish(self, state: AgentState) -> None:
        """Make `state` (its seq is ignored) the newest one."""
        now = self._clock()
        if relevant(state) != relevant(self._answered) or (
            now - self._answered_at >= LIVE_SECONDS and moved(self._answered, state)
        ):
            self.state = self._answered = dataclasses.replace(state, seq=self.state.seq + 1)
            self._answered_at = now
            self._changed.set()
            self._changed = asyncio.Event()
        else:
            self.state = dataclasses.replace(state, seq=self.state.seq)

    async def wait(self, after: int, seconds: float) -> AgentState:
        """The newest state: at once if its seq is not `after`, else at the next change or after `seconds`."""
        if self.state.seq == after:
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self.state


def relevant(state: AgentState) -> object:
    """What of a state the operator wants to know at once; equal values are no news."""
    return (
        (state.server, state.pod, state.rev, state.config, state.config_error, state.started),
        (state.draining, state.ready, state.pgbouncer),
        {
            name: (d.loaded, d.samples >= 2, d.held <= d.loaded, d.reachable, d.error)
            for name, d in state.databases.items()
        },
    )


def moved(old: AgentState, new: AgentState) -> bool:
    """A live number of a database moved by a tenth or more, or whether clients waited lately.

    What swings from sample to sample in a busy pool (waiting clients and what follows from them) must move by more than
    one besides: one more or less is not worth the operator's attention.
    """
    for name, after in new.databases.items():
        before = old.databases.get(name)
        if before is None:
            return True
        steady = ((before.clients, after.clients), (before.held, after.held))
        swinging = ((before.waiting, after.waiting), (before.peak, after.peak), (before.demand, after.demand))
        if before.waited != after.waited or any(_far(a, b, 1) for a, b in steady):
            return True
        if any(_far(a, b, 2) for a, b in swinging):
            return True
    return False


def _far(before: int, after: int, least: int) -> bool:
    return abs(before - after) >= max(least, before / 10)
