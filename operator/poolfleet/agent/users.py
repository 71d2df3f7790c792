"""How many clients each client user has: who still uses a login that is about to be retired."""

import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from poolfleet.pgbouncer import show
from poolfleet.pgbouncer.admin import AdminError, Rows

PACE: Final = 5.0  # seconds between two looks


class Console(Protocol):
    """What counting needs of PgBouncer's admin console."""

    async def query(self, sql: str) -> Rows:
        """One command."""


class Users:
    """The clients of one PgBouncer process, by user."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clients: Mapping[str, int] = {}  # without those that have none
        self._clock = clock
        self._looked = float("-inf")

    async def tend(self, console: Console, *, probing: bool) -> None:
        """Look if it is time to; not while the agent itself is a client (`probing`). Raises AdminError."""
        now = self._clock()
        if probing or now - self._looked < PACE:
            return
        self._looked = now
        try:
            self.clients = show.users(await console.query("SHOW USERS"))
        except ValueError as error:
            raise AdminError(str(error)) from error
