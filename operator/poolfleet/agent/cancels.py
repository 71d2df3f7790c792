"""Query cancels on their way to a peer, and those of them that PgBouncer forgot.

PgBouncer forwards a cancel over a connection to the peer, and opens one at a time for each peer. A second cancel that
comes meanwhile waits; but when the connection is there nobody looks whether somebody waits, until a third one comes
(seen with 1.26.1: its loop activates the pools of databases, not those of peers). After cancel_wait_timeout it is lost.
So the agent is that third one: a cancel request of its own, for a key that nobody has, makes PgBouncer open a
connection, and the one that waits first gets it.
"""

import asyncio
import contextlib
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from poolfleet.agent.logs import log
from poolfleet.agent.process import Console
from poolfleet.pgbouncer import show

LOOK_SECONDS: Final = 0.25
"""Between two looks. A connection to a peer takes far less: who waits in both was forgotten."""

STAY_SECONDS: Final = 0.1  # that the own request stays, until PgBouncer has a connection; less than LOOK_SECONDS
CANCEL_REQUEST: Final = 80877102  # PostgreSQL's protocol, CancelRequest


class Cancels:
    """Used by the engine's loop only."""

    def __init__(self, socket: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._socket = socket
        self._clock = clock
        self._looked = float("-inf")
        self._waiting: Mapping[int, int] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def tend(self, console: Console, peers: int) -> None:
        """Look for forgotten cancels if it is time to, and help them on. `peers`: how many pods there are, with this
        one. Raises AdminError."""
        now = self._clock()
        if peers < 2 or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        waiting = show.waiting_cancels(await console.query("SHOW PEER_POOLS"))
        forgotten = sorted(waiting.keys() & self._waiting.keys())
        self._waiting = waiting
        for peer in forgotten:
            task = asyncio.create_task(self._wake(peer))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _wake(self, peer: int) -> None:
        with contextlib.suppress(OSError):  # PgBouncer has ended, and with it whoever waited
            _, writer = await asyncio.open_unix_connection(str(self._socket))
            try:
                writer.write(request(peer))
                await writer.drain()
                await asyncio.sleep(STAY_SECONDS)
            finally:
                writer.close()
        log.info("a waiting cancel was helped on", extra={"peer": peer})


def request(peer: int) -> bytes:
    """A cancel request that PgBouncer forwards to `peer` and that fits no query: of its key the second and third byte
    are the peer_id, the last two bits how often it may be forwarded; all else is 0, which the peer's random keys are
    not."""
    key = struct.pack("<BHBI", 0, peer, 0, 0)[:7] + b"\x01"
    return struct.pack(">II", 16, CANCEL_REQUEST) + key
