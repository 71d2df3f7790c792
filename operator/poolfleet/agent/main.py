"""`python3 -m poolfleet agent`: the engine and its HTTP service until SIGTERM."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from poolfleet.agent.drain import PROPAGATION_SECONDS
from poolfleet.agent.engine import Engine
from poolfleet.agent.files import Paths
from poolfleet.agent.http import Server
from poolfleet.agent.logs import log, setup
from poolfleet.agent.service import Service
from poolfleet.api import names

USAGE = """usage: poolfleet agent

The sidecar beside a PgBouncer. Its settings are environment variables: POOLFLEET_RUN_DIR, POOLFLEET_CONFIG_DIR,
POOLFLEET_POD_DIR, POOLFLEET_AGENT_PORT, POOLFLEET_PGBOUNCER_PORT (of the socket's name), POOLFLEET_DRAIN_SECONDS (how
long clients may take to leave), POOLFLEET_PROPAGATION_SECONDS (how long new ones may still come before that).
"""


def main(argv: Sequence[str]) -> int:
    """Run the agent; returns the exit status."""
    if argv:
        sys.stderr.write(USAGE)
        return 0 if argv[0] in ("-h", "--help") else 2
    setup()
    try:
        asyncio.run(_run())
    except (OSError, ValueError) as error:
        log.error("the agent cannot run", extra={"reason": str(error)})
        return 1
    return 0


async def _run() -> None:
    env = os.environ
    engine = Engine(Paths.from_environment(env), int(env.get("POOLFLEET_PGBOUNCER_PORT", names.PGBOUNCER_PORT)))
    service = Service(
        engine,
        drain_seconds=float(env.get("POOLFLEET_DRAIN_SECONDS", "60")),
        propagation_seconds=float(env.get("POOLFLEET_PROPAGATION_SECONDS", PROPAGATION_SECONDS)),
    )
    port = int(env.get("POOLFLEET_AGENT_PORT", names.AGENT_PORT))
    server = await Server(service.handle).start(port)
    log.info("agent started", extra={"port": port})
    loop = asyncio.create_task(engine.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, loop.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await loop  # ends by a signal, or with the error that must not go unseen
    server.close()
    log.info("agent stopped")
