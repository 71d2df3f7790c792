"""Closing idle clients of a crowded pod, so that they come back by the Service and reach other pods (wire.Move).

Off unless the pool asks for it (spec.clientRebalance). Who is closed is idle, without a server connection and so in no
transaction; it may just be sending its next query, and then that one fails: the longer a client was idle, the less
likely.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from poolfleet.agent.logs import log
from poolfleet.api.wire import Move
from poolfleet.pgbouncer import show
from poolfleet.pgbouncer.admin import AdminError, Rows, ServerError

PACE: Final = 1.0  # seconds between two looks, and more where a look takes long
LOAD: Final = 0.05  # most of PgBouncer's time that looking may take
WINDOW: Final = 10.0  # seconds within which Move.percent counts


class Console(Protocol):
    """What moving needs of PgBouncer's admin console."""

    async def query(self, sql: str) -> Rows:
        """One command."""


class Moves:
    """What was moved away from one PgBouncer process. Times are monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.moved = 0
        self._clock = clock
        self._closed: deque[tuple[float, int]] = deque()  # when, how many
        self._next = 0.0

    async def tend(self, console: Console, move: Move | None, clients: int) -> None:
        """Close who is to be moved now. `clients`: how many the pod has. Raises AdminError if PgBouncer went away."""
        begun = self._clock()
        if move is None or clients <= move.above or begun < self._next:
            return
        try:
            found = show.clients(await console.query("SHOW CLIENTS"))
        except ValueError as error:
            raise AdminError(str(error)) from error
        closed = 0
        for client in choose(found, move, self.recently(begun)):
            try:
                await console.query(f"KILL_CLIENT {client.id}")
            except ServerError as error:  # it has left meanwhile
                log.info("a client was not closed", extra={"reason": error.text})
            else:
                closed += 1
        now = self._clock()
        self._next = now + max(PACE, (now - begun) / LOAD)
        if closed:
            self.moved += closed
            self._closed.append((now, closed))
            log.info("idle clients closed, to move them", extra={"closed": closed, "above": move.above})

    def recently(self, now: float) -> int:
        """How many were closed within the last WINDOW."""
        while self._closed and self._closed[0][0] <= now - WINDOW:
            self._closed.popleft()
        return sum(closed for _, closed in self._closed)


def choose(clients: Sequence[show.Client], move: Move, recently: int) -> list[show.Client]:
    """Whom to close now, the longest idle first. `clients` is SHOW CLIENTS; `recently` were closed within WINDOW.

    At most a tenth of what WINDOW allows at once, so that they do not all come back in one moment; Move.percent is
    rounded up, or it would never move anybody in a small pod.
    """
    # The console's own row says what time it is there, in the time zone of all rows.
    now = max((client.requested for client in clients if client.database == show.ADMIN_DATABASE), default=None)
    theirs = [client for client in clients if client.database != show.ADMIN_DATABASE and client.address != "unix"]
    if now is None:
        return []
    allowed = math.ceil((len(theirs) + recently) * min(move.percent, 100) / 100)
    most = min(len(theirs) - move.above, allowed - recently, math.ceil(allowed * PACE / WINDOW))
    idle = [c for c in theirs if c.idle and (now - c.requested).total_seconds() >= move.idle]
    return sorted(idle, key=lambda client: client.requested)[: max(most, 0)]
