"""Directives that come by POST: they wait here until the engine's loop takes them in, in the order of their arrival."""

import asyncio

from poolfleet.agent.accept import Refused, Superseded
from poolfleet.agent.intake import Intake
from poolfleet.agent.logs import log
from poolfleet.api.wire import AgentState


class Inbox:
    """`post` is for whoever answers requests, everything else for the loop."""

    def __init__(self) -> None:
        self._posted: list[tuple[str, asyncio.Future[AgentState]]] = []
        self._taken: list[asyncio.Future[AgentState]] = []
        self._wake = asyncio.Event()

    async def post(self, text: str) -> AgentState:
        """Hand in a directive; return the state when it is written down and the loop has tried to load it.

        One that is not newer than what is applied gets the state as well. Raises Refused, or OSError if it cannot be
        written down: then it is not applied.
        """
        done: asyncio.Future[AgentState] = asyncio.get_running_loop().create_future()
        self._posted.append((text, done))
        self._wake.set()
        return await done

    def take(self, intake: Intake) -> bool:
        """Let `intake` take in what was posted; True if there is a new grant. What it refuses is answered at once."""
        posted, self._posted = self._posted, []
        new = False
        for text, done in posted:
            try:
                new |= intake.take(text)
            except Superseded:
                pass
            except (Refused, OSError) as problem:
                log.warning("POSTed directive refused", extra={"reason": str(problem), "bytes": len(text)})
                if not done.done():
                    done.set_exception(problem)
                continue
            self._taken.append(done)
        return new

    def answer(self, state: AgentState) -> None:
        """Answer what was taken in with `state`: what could be done with it is done."""
        taken, self._taken = self._taken, []
        for done in taken:
            if not done.done():  # else whoever asked has gone
                done.set_result(state)

    async def wait(self, seconds: float) -> None:
        """Until something is posted, `seconds` at most."""
        timer = asyncio.get_running_loop().call_later(seconds, self._wake.set)
        await self._wake.wait()
        timer.cancel()
        self._wake.clear()
