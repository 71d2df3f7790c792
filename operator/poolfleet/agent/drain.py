"""The end of a pod with as few failed queries as its clients allow (design section 4; facts/pgbouncer.md 3).

PgBouncer's preStop hook asks for it and the kubelet waits for the answer. Until the very end nothing is shut down: the
listener, cancel requests, metrics and grants keep working.

1. *propagating*: the pod leaves the Service's endpoints; new clients may still come.
2. *leaving*: clients leave by themselves, until half of the time is over.
3. *idling*: client_idle_timeout closes who is idle. It is a line of the file, for each grant that comes is a RELOAD,
   which forgets what SET said.
4. *stopping*: the time is over and clients are left. How many is published, then SHUTDOWN WAIT_FOR_SERVERS lets their
   transactions end. The hook is not answered before PgBouncer is gone (or the kubelet's grace period nearly over): a
   SIGTERM during a shutdown ends it at once.
5. *drained*: the hook is answered; with no client left it is the kubelet's SIGTERM that ends PgBouncer.

An agent that is restarted meanwhile knows nothing of it, and breaks the hook's request; no other one comes. The
kubelet goes on with SIGTERM, which closes the listener and waits for the clients to leave, for what is left of the
grace period.
"""

import asyncio
import enum
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from poolfleet.agent.logs import log

PROPAGATION_SECONDS: Final = 5.0
"""How long new connections may still come after the pod has left the Service's endpoints (facts/pgbouncer.md 3)."""

QUIET_SECONDS: Final = 1.0
"""On a busy node the endpoints take longer: as long as clients still come, the propagation is not over."""

IDLE_SECONDS: Final = 5.0
LAST_IDLE_SECONDS: Final = 1.0  # in the last quarter of the time
TELL_SECONDS: Final = 1.0
"""How long the operator may take to read how many clients are cut, before they are."""

STOP_SECONDS: Final = 10.0
"""For the transactions that are left. With TELL_SECONDS it is what plan/objects/pod.py adds to the grace period, less
what the kubelet needs."""

POLL_SECONDS: Final = 0.2


class Phase(enum.StrEnum):
    """How far the drain is; the module's docstring explains each."""

    SERVING = enum.auto()
    PROPAGATING = enum.auto()
    LEAVING = enum.auto()
    IDLING = enum.auto()
    STOPPING = enum.auto()
    DRAINED = enum.auto()


class Pooler(Protocol):
    """What a drain asks of the engine."""

    @property
    def process(self) -> str:
        """Identity of the running PgBouncer."""

    def ended(self, process: str) -> bool:
        """Whether this PgBouncer is gone."""

    def clients_left(self, since: float) -> int | None:
        """Its clients, the agent's own left out; None while nothing was seen after `since` (monotonic)."""

    async def transactions(self) -> int:
        """Transactions that it has ended: a client that comes, asks and goes is seen by them only."""

    def told(self, cut: int) -> bool:
        """Whether somebody has read a state that says that so many clients are cut."""


class Drain:
    """The drain of one PgBouncer process. `run` moves it on; the engine's loop does what `phase` and `idle` say."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.phase = Phase.SERVING
        self.idle: float | None = None  # client_idle_timeout of the file, seconds
        self.cut = 0  # clients that were left when the time was over
        self._clock = clock
        self._sleep = sleep
        self._running: asyncio.Task[str] | None = None

    @property
    def draining(self) -> bool:
        """It has begun."""
        return self.phase is not Phase.SERVING

    async def run(self, pooler: Pooler, seconds: float, propagation: float = PROPAGATION_SECONDS) -> str:
        """Drain within `propagation` + `seconds`, and what stopping takes; return how it ended, in words.

        Whoever asks again waits for the same end.
        """
        if self._running is None:
            self._running = asyncio.create_task(self._run(pooler, seconds, propagation))
        return await asyncio.shield(self._running)

    async def _run(self, pooler: Pooler, seconds: float, propagation: float) -> str:
        log.info("draining")
        self.phase = Phase.PROPAGATING
        begun = self._clock()
        words = await self._empty(pooler, seconds, begun + propagation)
        self.phase = Phase.DRAINED
        log.info("drained", extra={"result": words, "seconds": round(self._clock() - begun, 1)})
        return words

    async def _empty(self, pooler: Pooler, seconds: float, propagated: float) -> str:
        process, begun = pooler.process, self._clock()
        quiet_since, left, before = begun, 1, -1
        while True:
            await self._sleep(POLL_SECONDS)
            if pooler.ended(process):
                return "PgBouncer has ended"
            seen, count = pooler.clients_left(begun), await pooler.transactions()
            left, now = left if seen is None else seen, self._clock()
            if left or count != before:
                before, quiet_since = count, now
            over = now >= propagated + seconds
            if now >= propagated and not left and (over or now - quiet_since >= QUIET_SECONDS):
                return "no client is left"
            if over:
                return await self._stop(pooler, process, left)
            if now >= propagated:
                self.idle = idle_timeout(propagated + seconds - now, seconds)
                self.phase = Phase.LEAVING if self.idle is None else Phase.IDLING

    async def _stop(self, pooler: Pooler, process: str, left: int) -> str:
        self.cut = left
        await self._until(lambda: pooler.told(left), TELL_SECONDS)
        self.phase = Phase.STOPPING
        gone = await self._until(lambda: pooler.ended(process), STOP_SECONDS)
        return f"the time is over: {left} clients are cut" + ("" if gone else ", and PgBouncer still runs")

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = self._clock() + seconds
        while not condition():
            if self._clock() >= deadline:
                return False
            await self._sleep(POLL_SECONDS / 4)
        return True


def idle_timeout(left: float, whole: float) -> float | None:
    """client_idle_timeout when `left` of the drain's `whole` seconds are left, in seconds; None: as it was.

    Never longer than what is left of it, or it would close nobody.
    """
    if left > whole / 2:
        return None
    return min(IDLE_SECONDS if left > whole / 4 else LAST_IDLE_SECONDS, whole / 4)
