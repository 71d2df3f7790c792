"""N queries of a minute, each cancelled by its driver: how many of the cancels reached their query.

    kubectl exec -i clients -- python3 - --driver psycopg --host shop --user app --database app < hack/load/cancels.py

A cancel is a connection of its own (to the Service: to any pod); --stay keeps those of the queries, and busy. With
psycopg it has reached its query when PostgreSQL says so (57014); asyncpg swallows that, so there the next
query on the connection must be answered at once. Ends after --cancels or when standard input ends.
Prints {"t": …, "error": …} for every one that was lost and {"summary": {"cancelled": …, "lost": …, "slowest_s": …}}.
Needs the driver; otherwise this file stands alone.
"""

import argparse
import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

# It says so when it runs: a cancel that overtakes its query is lost in PostgreSQL, too.
QUERY = "DO $$ BEGIN RAISE NOTICE 'it runs'; PERFORM pg_sleep(60); END $$"
START = 30.0  # seconds until it must run
PATIENCE = 10.0  # seconds from the cancel on; then it is lost


class Lost(Exception):
    """The cancel did not reach its query."""


class Psycopg:
    """Connection.cancel_safe while the query runs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._module = importlib.import_module("psycopg")
        self._connection: Any = None
        self._runs = asyncio.Event()
        self.errors = (Lost, TimeoutError, self._module.Error)

    async def open(self) -> None:
        """Connect."""
        target = {key: value for key, value in self._options.target.items() if key != "database"}
        target |= {"dbname": self._options.database, "sslmode": "disable", "autocommit": True}
        self._connection = await self._module.AsyncConnection.connect(**target)
        self._connection.add_notice_handler(lambda _: self._runs.set())

    async def cancel(self) -> float:
        """One query, cancelled; seconds until PostgreSQL's word. Raises one of `errors`."""
        self._runs.clear()
        asked = asyncio.ensure_future(self._connection.execute(QUERY))
        try:
            async with asyncio.timeout(START):
                await self._runs.wait()
            await asyncio.sleep(self._options.after_ms / 1000)
            begun = time.perf_counter()
            await self._connection.cancel_safe(timeout=PATIENCE)
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait({asked})
        finally:
            asked.cancel()
        try:
            await asked
        except self._module.errors.QueryCanceled:
            return time.perf_counter() - begun
        raise Lost("it was answered")

    async def close(self) -> None:
        """Whatever runs on it."""
        if self._connection is not None:
            await self._connection.close()


class Asyncpg:
    """The task that waits for the query is cancelled."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._module = importlib.import_module("asyncpg")
        self._connection: Any = None
        self._runs = asyncio.Event()
        self.errors = (Lost, TimeoutError, OSError, self._module.PostgresError, self._module.InterfaceError)

    async def open(self) -> None:
        """Connect."""
        self._connection = await self._module.connect(**self._options.target, ssl=False)
        self._connection.add_log_listener(lambda *_: self._runs.set())

    async def cancel(self) -> float:
        """One query, cancelled; seconds until the next one was answered. Raises one of `errors`."""
        self._runs.clear()
        asked = asyncio.ensure_future(self._connection.execute(QUERY))
        try:
            async with asyncio.timeout(START):
                await self._runs.wait()
            await asyncio.sleep(self._options.after_ms / 1000)
        finally:
            begun = time.perf_counter()
            asked.cancel()
        await asyncio.wait({asked})
        await self._connection.fetchval("SELECT 1", timeout=PATIENCE)
        return time.perf_counter() - begun

    async def close(self) -> None:
        """Whatever runs on it."""
        if self._connection is not None:
            self._connection.terminate()


DRIVERS: dict[str, type[Psycopg] | type[Asyncpg]] = {"psycopg": Psycopg, "asyncpg": Asyncpg}


def say(**line: Any) -> None:
    """Print one JSON line, at once."""
    print(json.dumps(line), flush=True)


class Tally:
    """What has happened so far, and whether it is enough."""

    def __init__(self, enough: int) -> None:
        self.took: list[float] = []
        self.lost = 0
        self.over = False  # standard input has ended
        self._left = enough

    def another(self) -> bool:
        """Whether one more is to be cancelled; the caller does it."""
        self._left -= 1
        return self._left >= 0 and not self.over


async def work(options: argparse.Namespace, tally: Tally) -> None:
    """Cancel one after the other; a connection that has failed is made anew, any is without --stay."""
    client, fresh = DRIVERS[options.driver](options), True
    while tally.another():
        try:
            if fresh:
                await client.open()
            tally.took.append(await client.cancel())
            fresh = not options.stay
        except client.errors as error:
            tally.lost += 1
            say(t=round(time.time(), 3), error=f"{type(error).__name__} {error}")
            fresh = True
        if fresh:
            await client.close()
    await client.close()


async def cancels(options: argparse.Namespace) -> dict[str, Any]:
    """Cancel them all, so many at a time; return the summary."""
    tally, loop = Tally(options.cancels or sys.maxsize), asyncio.get_running_loop()
    if not options.cancels:

        def listen() -> None:
            if not os.read(sys.stdin.fileno(), 4096):
                loop.remove_reader(sys.stdin.fileno())
                tally.over = True

        loop.add_reader(sys.stdin.fileno(), listen)
    await asyncio.gather(*(work(options, tally) for _ in range(options.clients)))
    return {"cancelled": len(tally.took), "lost": tally.lost, "slowest_s": round(max(tally.took, default=0.0), 3)}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; adds `target` (keywords for the driver)."""
    parser = argparse.ArgumentParser(prog="cancels.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--driver", required=True, choices=sorted(DRIVERS))
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=6432)
    parser.add_argument("--user", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--password-stdin", action="store_true", help="first line of standard input; else $PGPASSWORD")
    parser.add_argument("--clients", type=int, default=4, help="at a time (default: %(default)s)")
    parser.add_argument("--cancels", type=int, default=0, help="0: until standard input ends (default: %(default)s)")
    parser.add_argument("--stay", action="store_true", help="keep the connections")
    parser.add_argument("--after-ms", type=float, default=0, help="how long a query runs (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.target = {
        "host": options.host,
        "port": options.port,
        "user": options.user,
        "database": options.database,
        "password": sys.stdin.readline().rstrip("\n") if options.password_stdin else os.environ.get("PGPASSWORD"),
    }
    return options


if __name__ == "__main__":
    say(summary=asyncio.run(cancels(parse())))
