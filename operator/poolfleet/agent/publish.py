"""When a new state is worth an answer to the operator's long poll (design section 4).

`seq` rises when something relevant changes: revision, configuration, what is mounted, process, loaded limits, proof of
a shrink, a hold that is there or not, reachability, readiness, draining, clients that were cut. Live numbers raise it
only when they move by a tenth, at most every LIVE_SECONDS, or by half, at most every SURGE_SECONDS: a rise of the
clients shall not wait for its replicas.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Final

from poolfleet.api.wire import AgentState

LIVE_SECONDS: Final = 2.0
SURGE_SECONDS: Final = 0.5
SURGE_LEAST: Final = 4  # clients; fewer are worth no hurry


class Publisher:
    """Holds the newest state and lets callers wait for a relevant change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Not from 0: a restarted agent must not seem to be where its predecessor was.
        self.state = AgentState(
            server="", pod="", seq=int(time.time()), rev=0, config="", config_error="", started="", databases={}
        )
        self.told = self.state  # what somebody who asked got last
        self._answered = self.state
        self._answered_at = float("-inf")
        self._changed = asyncio.Event()

    def publish(self, state: AgentState) -> None:
        """Make `state` (its seq is ignored) the newest one."""
        now = self._clock()
        age = now - self._answered_at
        if (
            relevant(state) != relevant(self._answered)
            or (age >= LIVE_SECONDS and moved(self._answered, state))
            or (age >= SURGE_SECONDS and surged(self._answered, state))
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
        self.told = self.state
        return self.state


def relevant(state: AgentState) -> object:
    """What of a state the operator wants to know at once; equal values are no news."""
    return (
        (state.server, state.pod, state.rev, state.config, state.config_error, state.started),
        (state.draining, state.cut, state.ready, state.pgbouncer, state.mounted),
        {
            name: (d.loaded, d.samples >= 2, d.held <= d.loaded, d.reachable, d.error, d.hold is not None)
            for name, d in state.databases.items()
        },
    )


def moved(old: AgentState, new: AgentState) -> bool:
    """A live number moved by a tenth or more, or whether clients waited lately, or who the clients' users are.

    What swings from sample to sample in a busy pool (waiting clients and what follows from them) must move by more than
    one besides: one more or less is not worth the operator's attention. Nor is a CPU that moves by less than 0.1 cores.
    """
    if _cpu_far(old, new, 0.1, 0.1) or _far(old.moved, new.moved, 1) or old.users.keys() != new.users.keys():
        return True
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


def surged(old: AgentState, new: AgentState) -> bool:
    """The clients of a database moved by half or more, and not by a few only; or PgBouncer's CPU did."""
    before = ((old.databases.get(name, after).clients, after.clients) for name, after in new.databases.items())
    return _cpu_far(old, new, 0.2, 0.5) or any(_far(a, b, SURGE_LEAST, 0.5) for a, b in before)


def _far(before: int, after: int, least: int, share: float = 0.1) -> bool:
    return abs(before - after) >= max(least, before * share)


def _cpu_far(old: AgentState, new: AgentState, least: float, share: float) -> bool:
    if old.cpu is None or new.cpu is None:
        return old.cpu is not new.cpu
    return abs(old.cpu - new.cpu) >= max(least, old.cpu * share)
