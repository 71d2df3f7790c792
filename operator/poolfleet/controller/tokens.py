"""The newest token of each server role that a pool needs: made ahead of time, tried again, and forgotten.

They are in memory only; the pools' x-config holds what was written there last. Only the leader reconciles, so only it
makes tokens. After a restart each is made anew, and until then every x-config stays as it is.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from poolfleet.api.conditions import Reason
from poolfleet.controller import metrics
from poolfleet.plan.model import Problem
from poolfleet.plan.times import timestamp
from poolfleet.plan.tokens import NoToken, Request, Token, refresh_in, retry_in

PATIENCE: Final = 3.0  # seconds that a reconciliation waits for the first token: else it would say that there is none

logger = logging.getLogger(__name__)

Pool = tuple[str, str]  # namespace, name
Make = Callable[[Request], Awaitable[Token]]


async def none_is_made(request: Request) -> Token:
    """Where nobody makes tokens."""
    raise NoToken("nobody makes tokens here")


@dataclass(slots=True)
class _Entry:
    """One role of one server."""

    request: Request
    pools: set[Pool] = field(default_factory=set)
    token: Token | None = None
    failures: int = 0  # in a row
    error: str = "it is being made"
    tried: asyncio.Event = field(default_factory=asyncio.Event)  # set after the first try
    told: str | Problem | None = field(default=None, repr=False)  # the answer that the pools were last woken for
    task: asyncio.Task[None] | None = None


class Tokens:
    """See the module. `changed(namespace, name)` is called for each pool whose token, or the lack of it, is another."""

    def __init__(
        self,
        make: Make = none_is_made,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`make` raises NoToken; `clock` in seconds since the epoch; `chance` from 0 to 1."""
        self.changed: Callable[[str, str], None] = lambda namespace, name: None
        self._make = make
        self._clock = clock
        self._chance = chance
        self._sleep = sleep
        self._entries: dict[tuple[str, str], _Entry] = {}  # by the PgServer's UID and the role
        self._of: dict[Pool, frozenset[tuple[str, str]]] = {}

    async def want(self, namespace: str, name: str, requests: Collection[Request]) -> dict[str, str | Problem]:
        """The tokens of these roles for the pool `namespace`/`name`, which needs no other from now on: by role, or why
        there is none. Waits PATIENCE seconds for one that was never asked for."""
        pool = (namespace, name)
        wanted = {(request.uid, request.role): request for request in requests}
        for key in self._of.pop(pool, frozenset()) - wanted.keys():
            self._leave(key, pool)
        if not wanted:
            return {}
        self._of[pool] = frozenset(wanted)
        entries = [self._entry(key, request, pool) for key, request in wanted.items()]
        if waiting := [asyncio.ensure_future(entry.tried.wait()) for entry in entries if not entry.tried.is_set()]:
            _, late = await asyncio.wait(waiting, timeout=PATIENCE)
            for each in late:
                each.cancel()
        return {entry.request.role: self._answer(entry) for entry in entries}

    def forget(self, namespace: str, name: str) -> None:
        """The pool is gone."""
        for key in self._of.pop((namespace, name), frozenset()):
            self._leave(key, (namespace, name))

    async def close(self) -> None:
        """End all that runs."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        self._entries.clear()
        self._of.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _entry(self, key: tuple[str, str], request: Request, pool: Pool) -> _Entry:
        entry = self._entries.get(key)
        if entry is None or entry.request != request:  # a token is of one host and one provider
            pools = entry.pools if entry is not None else set()
            if entry is not None and entry.task is not None:
                entry.task.cancel()
            entry = self._entries[key] = _Entry(request, pools)
            entry.task = asyncio.create_task(self._keep(entry), name=f"token {request.server} {request.role}")
        entry.pools.add(pool)
        return entry

    def _leave(self, key: tuple[str, str], pool: Pool) -> None:
        entry = self._entries.get(key)
        if entry is None:
            return
        entry.pools.discard(pool)
        if not entry.pools:
            del self._entries[key]
            if entry.task is not None:
                entry.task.cancel()
            metrics.drop_token(*_names(entry.request))

    async def _keep(self, entry: _Entry) -> None:
        request = entry.request
        about = {"namespace": request.namespace, "server": request.server, "role": request.role}
        while True:
            try:
                entry.token = await self._make(request)
            except NoToken as error:
                entry.error = str(error)
                entry.failures += 1
                logger.warning("no token: %s", error, extra=about)
            except Exception:  # a mistake of ours must not end the tries
                entry.error = "the operator failed; its log says more"
                entry.failures += 1
                logger.exception("no token", extra=about)
            else:
                entry.error = ""
                entry.failures = 0
                life = entry.token.expires - entry.token.issued
                logger.info("a new token, for %.0f s", life, extra=about)
            metrics.set_token(*_names(request), entry.token.expires if entry.token else 0.0, failed=entry.failures > 0)
            entry.tried.set()
            if (answer := self._answer(entry)) != entry.told:
                entry.told = answer
                for pool in sorted(entry.pools):
                    self.changed(*pool)
            await self._sleep(self._wait(entry))

    def _wait(self, entry: _Entry) -> float:
        now = self._clock()
        if entry.failures or entry.token is None:
            return retry_in(entry.failures, entry.token, now, self._chance())
        return refresh_in(entry.token, now, self._chance())

    def _answer(self, entry: _Entry) -> str | Problem:
        """The token, unless there is none or it is late."""
        request, token, now = entry.request, entry.token, self._clock()
        who = f'role "{request.role}" of PgServer "{request.server}"'
        if token is None or now >= token.expires:
            return Problem(Reason.TOKEN_UNAVAILABLE, f"There is no token for {who}: {entry.error}.")
        if entry.failures and now >= token.late:
            message = f"The token for {who} ends at {timestamp(token.expires)}, and there is no other: {entry.error}."
            return Problem(Reason.TOKEN_UNAVAILABLE, message)
        return token.text


def _names(request: Request) -> tuple[str, str, str]:
    return request.namespace, request.server, request.role
