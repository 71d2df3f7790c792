"""The operator's poller and 200 stub agents, in two processes; prints one JSON object. Needs the operator's image.

The stubs have the agent's own publisher and HTTP answers; what they have not is a PgBouncer. Each has an address of
its own in 127.0.0.0/8, so that the poller connects as it does to 200 pods.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

PORT = 9127
KEY = bytes(range(32))
SAMPLE = 0.35  # seconds between two samples of an agent


def address(number: int) -> str:
    return f"127.0.{1 + number // 250}.{1 + number % 250}"


def uid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


# The stubs


async def stubs(agents: int) -> None:
    """Serve until SIGTERM; from SIGUSR1 on every stub has news whenever its publisher lets it tell."""
    from poolfleet.agent.http import Response, parse
    from poolfleet.agent.publish import Publisher
    from poolfleet.agent.service import seconds
    from poolfleet.api.wire import AgentState, DatabaseState, sign

    def state(number: int, clients: int) -> AgentState:
        held = min(20, clients // 4)
        database = DatabaseState(loaded=20, held=held, samples=9, clients=clients, reachable=True)
        return AgentState(
            server="server", pod=uid(number), seq=0, rev=7, config="0123456789abcdef", config_error="", started="1",
            databases={"shop": database}, pids=tuple(range(1000, 1000 + held)), ready=True, version="0.1.0",
            pgbouncer="PgBouncer 1.26.1",
        )  # fmt: skip

    publishers = {address(number): Publisher() for number in range(agents)}
    for number, publisher in enumerate(publishers.values()):
        publisher.publish(state(number, 40))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = parse(await reader.readuntil(b"\r\n\r\n"))
            publisher = publishers[writer.get_extra_info("sockname")[0]]
            newest = await publisher.wait(
                int(request.query.get("after", "-1")), seconds(request.query.get("wait", "25"))
            )
            writer.write(Response(200, sign(newest.to_message(), KEY), "application/json").encode())
            await writer.drain()
        except (OSError, EOFError):
            pass  # the poller has ended
        finally:
            writer.close()

    async def move(number: int, publisher: Publisher) -> None:
        await asyncio.sleep(random.random() * 2)
        while True:
            publisher.publish(state(number, random.randrange(20, 100)))
            await asyncio.sleep(SAMPLE)

    busy, end = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, busy.set)
    loop.add_signal_handler(signal.SIGTERM, end.set)
    await asyncio.start_server(serve, "0.0.0.0", PORT, backlog=agents)
    os.kill(os.getppid(), signal.SIGUSR1)  # ready
    await busy.wait()
    moving = [asyncio.create_task(move(number, publisher)) for number, publisher in enumerate(publishers.values())]
    await end.wait()
    for task in moving:
        task.cancel()


# The poller


def rss() -> float:
    """MiB."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 - alone, and short
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


async def poll(options: argparse.Namespace, child: int, ready: asyncio.Event) -> dict[str, Any]:
    """Poll the stubs with the operator's own Agents."""
    import poolfleet.controller.app  # noqa: F401 - all that the operator's process has loaded
    from poolfleet.api import names
    from poolfleet.controller.agents import Agents
    from poolfleet.controller.store import Store
    from poolfleet.kube.kinds import SECRET

    store = Store()
    metadata = {"name": names.config_secret("shop"), "namespace": "bench", "uid": "secret", "resourceVersion": "1"}
    store.put(
        SECRET.plural, {"metadata": metadata, "data": {names.KEY_FILE: base64.b64encode(KEY.hex().encode()).decode()}}
    )
    labels = {names.LABEL_POOL: "shop"}
    pods = [
        {
            "metadata": {"name": f"shop-{number}", "namespace": "bench", "uid": uid(number), "labels": labels},
            "status": {"podIP": address(number), "phase": "Running"},
        }
        for number in range(options.agents)
    ]  # fmt: skip
    await asyncio.wait_for(ready.wait(), 30)
    async with Agents(store, port=PORT) as agents:
        before = rss()
        agents.follow(pods)
        async with asyncio.timeout(30):
            while agents.answers < options.agents:  # noqa: ASYNC110 - Agents tells nobody how many there are
                await asyncio.sleep(0.05)
        result: dict[str, Any] = {"before": before, "rest": await measured(agents, options.rest)}
        os.kill(child, signal.SIGUSR1)
        await asyncio.sleep(3)
        result["busy"] = await measured(agents, options.busy)
        result["after"] = rss()
        result["mib"] = result["after"] - before
        if agents.failures or agents.failing:
            raise SystemExit(f"{agents.failures} questions failed: {agents.error(uid(0))}")
    return result


async def measured(agents: Any, wanted: float) -> dict[str, Any]:
    """CPU of this process in percent of a core, and answers taken, over so many seconds."""
    answers, cpu, begun = agents.answers, time.process_time(), time.monotonic()
    await asyncio.sleep(wanted)
    took = time.monotonic() - begun
    return {"cpu": 100 * (time.process_time() - cpu) / took, "seconds": took, "answers": agents.answers - answers}


async def parent(options: argparse.Namespace, child: int, told: Callable[[], bool]) -> dict[str, Any]:
    ready = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, ready.set)
    if told():
        ready.set()
    return await poll(options, child, ready)


def main() -> None:
    parser = argparse.ArgumentParser(prog="stubs.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--rest", type=float, default=26, help="seconds at rest")
    parser.add_argument("--busy", type=float, default=15, help="seconds with news from everybody")
    options = parser.parse_args()
    early: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: early.append(number))
    child = os.fork()  # before anything big is loaded: neither process has memory of the other
    if not child:
        asyncio.run(stubs(options.agents))
        sys.exit()
    try:
        print(json.dumps(asyncio.run(parent(options, child, lambda: bool(early)))))
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
