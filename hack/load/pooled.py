"""K workers that query through the connection pool of a Python driver, until a duration or standard input is over.

    kubectl exec -i clients -- python3 - --driver asyncpg --host shop … --duration 9 < hack/load/pooled.py

psycopg_pool checks a connection before it gives it out (its `check`) and replaces it after --max-lifetime; asyncpg's
pool is as it comes: it has no lifetime, and throws away a connection that it sees closed. Prints what
hack/load/steady.py does: {"started": …}, {"t": …, "client": …, "error": …} for each query that failed, {"summary": …}.
Needs the driver; otherwise this file stands alone.
"""

import argparse
import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

Query = Callable[[], Coroutine[Any, Any, Any]]


def words(error: BaseException) -> str:
    """An error on one line, with its SQLSTATE if there is one."""
    line = " ".join(str(error).split()) or type(error).__name__
    code = getattr(error, "sqlstate", None)
    return f"{code} {line}" if code else line


def say(**line: Any) -> None:
    """Print one JSON line, at once."""
    print(json.dumps(line), flush=True)


class Tally:
    """What has happened so far."""

    def __init__(self) -> None:
        self.queries = self.failed = self.connects = 0
        self.slowest = self.longest_gap = 0.0  # seconds

    def answer(self, seconds: float, gap: float) -> None:
        """A query was answered after `seconds`; the same worker's previous answer was `gap` seconds ago."""
        if not self.queries:
            say(started=round(time.time(), 3))
        self.queries += 1
        self.slowest, self.longest_gap = max(self.slowest, seconds), max(self.longest_gap, gap)

    def failure(self, client: int, error: BaseException) -> None:
        """No connection could be had, or the query failed."""
        self.failed += 1
        say(t=round(time.time(), 3), client=client, error=words(error))

    def summary(self, seconds: float) -> dict[str, Any]:
        """The last line."""
        return {
            "queries": self.queries,
            "failed": self.failed,
            "connects": self.connects,
            "longest_gap_s": round(self.longest_gap, 3),
            "slowest_s": round(self.slowest, 3),
            "seconds": round(seconds, 3),
        }


@asynccontextmanager
async def psycopg_pool(options: argparse.Namespace, tally: Tally) -> AsyncIterator[Query]:
    """A query through psycopg_pool.AsyncConnectionPool."""
    module = importlib.import_module("psycopg_pool")

    async def connected(_: Any) -> None:
        tally.connects += 1

    target = {key: value for key, value in options.target.items() if key != "database"}
    pool = module.AsyncConnectionPool(
        kwargs={**target, "dbname": options.database, "sslmode": "disable", "autocommit": True},
        min_size=options.size,
        max_size=options.size,
        max_lifetime=options.max_lifetime,
        check=module.AsyncConnectionPool.check_connection,
        configure=connected,
        timeout=options.timeout,
        open=False,
    )
    async with pool:

        async def query() -> None:
            async with pool.connection() as connection:
                await connection.execute(options.query)

        yield query


@asynccontextmanager
async def asyncpg(options: argparse.Namespace, tally: Tally) -> AsyncIterator[Query]:
    """A query through asyncpg.create_pool."""
    module = importlib.import_module("asyncpg")

    async def connected(_: Any) -> None:
        tally.connects += 1

    pool = await module.create_pool(
        **options.target, ssl=False, min_size=options.size, max_size=options.size, init=connected
    )
    async with pool:

        async def query() -> None:
            await pool.fetchval(options.query)

        yield query


DRIVERS = {"psycopg_pool": psycopg_pool, "asyncpg": asyncpg}


async def work(number: int, query: Query, options: argparse.Namespace, tally: Tally, over: asyncio.Event) -> None:
    """Query, pause, and so on until `over`."""
    last = time.perf_counter()
    while not over.is_set():
        start = time.perf_counter()
        try:
            async with asyncio.timeout(options.timeout):
                await query()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises is what its user sees
            tally.failure(number, error)
        else:
            now = time.perf_counter()
            tally.answer(now - start, now - last)
            last = now
        try:
            await asyncio.wait_for(over.wait(), options.interval_ms / 1000)
        except TimeoutError:
            continue
    tally.longest_gap = max(tally.longest_gap, time.perf_counter() - last)


async def pooled(options: argparse.Namespace) -> dict[str, Any]:
    """Run all workers until the duration, or standard input, is over; return the summary."""
    over, loop, begin, tally = asyncio.Event(), asyncio.get_running_loop(), time.perf_counter(), Tally()
    if options.duration:
        loop.call_later(options.duration, over.set)
    if options.until_eof:

        def listen() -> None:
            if not os.read(sys.stdin.fileno(), 4096):
                loop.remove_reader(sys.stdin.fileno())
                over.set()

        loop.add_reader(sys.stdin.fileno(), listen)
    async with DRIVERS[options.driver](options, tally) as query:
        await asyncio.gather(*(work(number, query, options, tally, over) for number in range(options.clients)))
    return tally.summary(time.perf_counter() - begin)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; adds `query` and `target` (keywords for the driver)."""
    parser = argparse.ArgumentParser(prog="pooled.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--driver", required=True, choices=sorted(DRIVERS))
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=6432)
    parser.add_argument("--user", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--password-stdin", action="store_true", help="first line of standard input; else $PGPASSWORD")
    parser.add_argument("--clients", type=int, default=8, help="workers (default: %(default)s)")
    parser.add_argument("--size", type=int, default=0, help="connections of the pool (default: as many as workers)")
    parser.add_argument("--max-lifetime", type=float, default=3600, help="of psycopg_pool, in seconds")
    parser.add_argument("--query-ms", type=float, default=0, help="pg_sleep of each query (default: %(default)s)")
    parser.add_argument("--interval-ms", type=float, default=50, help="pause of a worker (default: %(default)s)")
    parser.add_argument("--duration", type=float, default=0, help="seconds; 0: no end")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one query, waiting for it included")
    options = parser.parse_args(arguments)
    if not (options.duration or options.until_eof):
        parser.error("say when to end: --duration, --until-eof, or both")
    options.size = options.size or options.clients
    options.query = f"SELECT pg_sleep({options.query_ms / 1000:f})" if options.query_ms else "SELECT 1"
    options.target = {
        "host": options.host,
        "port": options.port,
        "user": options.user,
        "database": options.database,
        "password": sys.stdin.readline().rstrip("\n") if options.password_stdin else os.environ.get("PGPASSWORD"),
    }
    return options


if __name__ == "__main__":
    say(summary=asyncio.run(pooled(parse())))
