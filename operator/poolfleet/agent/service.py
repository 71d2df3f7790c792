"""The agent's HTTP routes (design section 4): most read what the engine has published."""

import asyncio
import hmac
import math
import time
from typing import Final

from poolfleet.agent.accept import Forged, NotReady, Refused
from poolfleet.agent.engine import Engine
from poolfleet.agent.http import Request, Response
from poolfleet.agent.logs import log
from poolfleet.agent.metrics import exposition
from poolfleet.api import names, wire
from poolfleet.api.wire import AgentState

PROPAGATION_SECONDS: Final = 5.0
"""How long new connections may still come after the pod has left the Service's endpoints (facts/pgbouncer.md 3)."""

QUIET_SECONDS: Final = 1.0
"""On a busy node the endpoints take longer: as long as clients still come, the propagation is not over."""

ROUTES: Final = frozenset({"/startupz", "/readyz", "/state", "/metrics", "/drain", "/directive"})
MAX_WAIT_SECONDS: Final = 30.0
DEFAULT_WAIT_SECONDS: Final = 25.0


class Service:
    """Answers requests about `engine`. `drain_seconds`: how long clients may take to leave, after the propagation."""

    def __init__(
        self, engine: Engine, drain_seconds: float = 60.0, propagation_seconds: float = PROPAGATION_SECONDS
    ) -> None:
        self._engine = engine
        self._drain_seconds = drain_seconds
        self._propagation_seconds = propagation_seconds

    async def handle(self, request: Request) -> Response:
        """One request."""
        allowed = "POST" if request.path == "/directive" else "GET"
        if request.method not in ("GET", "POST") or (request.path in ROUTES and request.method != allowed):
            return Response(405, f"use {allowed}\n")
        match request.path:
            case "/directive":
                return await self._directive(request)
            case "/startupz":
                return _probe(self._engine.gate, "the first grant is rendered", "waiting for the first grant")
            case "/readyz":
                return _probe(self._engine.state.ready, "ready", "not ready")
            case "/state":
                return await self._state(request)
            case "/metrics":
                text = await exposition(self._engine)
                return Response(200, text, "text/plain; version=0.0.4; charset=utf-8")
            case "/drain":
                return await self._drain(request)
            case _:
                return Response(404, "not here\n")

    async def _state(self, request: Request) -> Response:
        try:
            after = int(request.query.get("after") or -1)
            wait = seconds(request.query.get("wait", str(DEFAULT_WAIT_SECONDS)))
        except ValueError:
            return Response(400, "after is a number, wait is seconds such as 25s\n")
        return self._signed(await self._engine.publisher.wait(after, min(wait, MAX_WAIT_SECONDS)))

    async def _directive(self, request: Request) -> Response:
        try:
            state = await self._engine.inbox.post(request.body.decode(errors="replace"))
        except Refused as refusal:
            status = {Forged: 403, NotReady: 503}.get(type(refusal), 409)
            return Response(status, f"refused: {refusal}\n")
        except OSError as error:
            return Response(503, f"it cannot be written down: {error.strerror}\n")
        return self._signed(state)

    def _signed(self, state: AgentState) -> Response:
        key = self._engine.key
        if key is None:
            return Response(503, "no key yet\n")
        return Response(200, wire.sign(state.to_message(), key), "application/json")

    async def _drain(self, request: Request) -> Response:
        key = self._engine.key
        token = request.headers.get(names.DRAIN_TOKEN_HEADER.lower(), "")
        if key is None or not hmac.compare_digest(token.encode(), wire.drain_token(key).encode()):
            return Response(403, "no\n")
        log.info("draining")
        self._engine.draining = True
        begun = quiet_since = now = time.monotonic()
        propagated = begun + self._propagation_seconds
        left, before = 1, -1
        while now < propagated or (now < propagated + self._drain_seconds and now - quiet_since < QUIET_SECONDS):
            await asyncio.sleep(0.2)
            # A client that comes, asks and goes is seen by its transaction only.
            left, count, now = (
                self._engine.clients_left(begun),
                await self._engine.console.transactions(),
                time.monotonic(),
            )
            if left or count != before:
                before, quiet_since = count, now
        self._engine.drained = True
        text = "no client is left" if not left else f"{left} clients are left and the time is over"
        log.info("drained", extra={"result": text, "seconds": round(time.monotonic() - begun, 1)})
        return Response(200, text + "\n")


def seconds(text: str) -> float:
    """ "25s" or "25" as 25.0. Raises ValueError for anything that is no finite, non-negative number."""
    value = float(text.removesuffix("s"))
    if not math.isfinite(value) or value < 0:
        raise ValueError("not a number of seconds")
    return value


def _probe(good: bool, yes: str, no: str) -> Response:
    return Response(200, yes + "\n") if good else Response(503, no + "\n")
