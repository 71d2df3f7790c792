"""The agent's HTTP routes (design section 4): most read what the engine has published."""

import hmac
import math
from typing import Final

from poolfleet.agent.accept import Forged, NotReady, Refused
from poolfleet.agent.drain import PROPAGATION_SECONDS
from poolfleet.agent.engine import Engine
from poolfleet.agent.http import Request, Response
from poolfleet.agent.metrics import exposition
from poolfleet.api import names, wire
from poolfleet.api.wire import AgentState

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
        words = await self._engine.drain.run(self._engine, self._drain_seconds, self._propagation_seconds)
        return Response(200, words + "\n")


def seconds(text: str) -> float:
    """ "25s" or "25" as 25.0. Raises ValueError for anything that is no finite, non-negative number."""
    value = float(text.removesuffix("s"))
    if not math.isfinite(value) or value < 0:
        raise ValueError("not a number of seconds")
    return value


def _probe(good: bool, yes: str, no: str) -> Response:
    return Response(200, yes + "\n") if good else Response(503, no + "\n")
