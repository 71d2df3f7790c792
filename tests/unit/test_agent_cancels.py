"""Which waiting cancels are helped on, and with what bytes."""

import asyncio
from pathlib import Path
from typing import Any, cast

from poolfleet.agent.cancels import LOOK_SECONDS, Cancels, request
from poolfleet.agent.process import Console
from poolfleet.pgbouncer.admin import Rows


class Talk:
    """A console that answers SHOW PEER_POOLS, and a socket that takes what comes."""

    def __init__(self) -> None:
        self.waiting: dict[int, int] = {}
        self.asked = 0

    async def query(self, command: str) -> Rows:
        assert command == "SHOW PEER_POOLS"
        self.asked += 1
        rows = tuple((str(peer), str(count)) for peer, count in self.waiting.items())
        return Rows(("peer_id", "cl_waiting_cancel_req"), rows)


def test_who_waits_in_two_looks_was_forgotten(tmp_path: Path) -> None:
    async def run() -> None:
        got: asyncio.Queue[bytes] = asyncio.Queue()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await got.put(await reader.read())
            writer.close()

        server = await asyncio.start_unix_server(take, tmp_path / "s")
        now, talk = 100.0, Talk()
        cancels = Cancels(tmp_path / "s", lambda: now)

        async def look(peers: int = 3, **waiting: int) -> None:
            talk.waiting = {int(peer[1:]): count for peer, count in waiting.items()}
            await cancels.tend(cast(Console, talk), peers)

        await look(p7=1, p8=0)
        await look(p7=1, p8=0)
        assert talk.asked == 1  # too soon to look again
        now += LOOK_SECONDS
        await look(p7=0, p8=1)  # another one: this peer's connection may be on its way
        now += LOOK_SECONDS
        await look(p7=1, p8=2)
        assert await got.get() == request(8)
        assert got.empty()
        now += LOOK_SECONDS
        await look(peers=1, p7=1)
        assert talk.asked == 3  # nobody to forward anything to
        server.close()

    asyncio.run(run())


def test_the_request_names_the_peer_and_may_be_forwarded_once() -> None:
    expected: Any = bytes.fromhex("00000010 04d2162e 00ff3f00 00000001".replace(" ", ""))
    assert request(16383) == expected
