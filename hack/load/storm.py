"""N clients at once: each connects, runs its queries, disconnects. Prints one JSON object (times in ms, wall in s).

    kubectl exec -i clients -- python3 - --host shop --port 6432 --user app --database app < hack/load/storm.py

A session is one connection from its start to its end. It was `refused` if it could not be opened, `failed` if something
went wrong later, else `served`. Needs psycopg; otherwise this file stands alone, so that it can be piped into a pod.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg


def words(error: BaseException) -> str:
    """An error on one line: SQLSTATE if there is one, and the server's own words without addresses."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = next((line for line in lines if "FATAL:" in line or "ERROR:" in line), lines[0])
    for mark in ("FATAL:", "ERROR:"):
        if mark in first:
            first = f"{mark} {first.partition(mark)[2].strip()}"
            break
    else:
        first = first.rpartition(" failed: ")[2]
    code = getattr(error, "sqlstate", None)
    return f"{code} {first}" if code else first


def quantile(values: Sequence[float], q: float) -> float | None:
    """The smallest value that at least the share `q` of `values` does not exceed; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def spread(seconds: Sequence[float]) -> dict[str, float | None]:
    """p50, p99 and max in ms of times in seconds; None where nothing was measured."""
    points = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: None if (v := quantile(seconds, q)) is None else round(v * 1000, 1) for name, q in points.items()}


class Tally:
    """What has happened so far."""

    def __init__(self) -> None:
        self.served = 0
        self.queries = 0
        self.refusals: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.connect: list[float] = []  # seconds; of sessions that could be opened
        self.query: list[float] = []
        self.first_answer: list[float] = []  # from the start of a session to the answer to its first query

    def summary(self, clients: int, wall: float) -> dict[str, Any]:
        """The JSON object that is printed."""
        refused, failed = self.refusals.total(), self.failures.total()
        return {
            "clients": clients,
            "sessions": self.served + refused + failed,
            "served": self.served,
            "refused": refused,
            "failed": failed,
            "refusals": dict(self.refusals),
            "failures": dict(self.failures),
            "queries": self.queries,
            "connect_ms": spread(self.connect),
            "query_ms": spread(self.query),
            "first_answer_ms": spread(self.first_answer),
            "wall_s": round(wall, 3),
        }


async def session(options: argparse.Namespace, tally: Tally, queries: int) -> None:
    """Connect, run `queries` queries, disconnect."""
    start = time.perf_counter()
    try:
        connection = await psycopg.AsyncConnection.connect(**options.target, autocommit=True)
    except psycopg.Error as error:
        tally.refusals[words(error)] += 1
        return
    tally.connect.append(time.perf_counter() - start)
    try:
        for number in range(queries):
            if number and options.think_ms:
                await asyncio.sleep(options.think_ms / 1000)
            sent = time.perf_counter()
            async with asyncio.timeout(options.timeout):
                await connection.execute(options.query)
            answered = time.perf_counter()
            tally.queries += 1
            tally.query.append(answered - sent)
            if not number:
                tally.first_answer.append(answered - start)
    except (psycopg.Error, TimeoutError) as error:
        tally.failures[words(error)] += 1
    else:
        tally.served += 1
    finally:
        await connection.close()


async def client(options: argparse.Namespace, tally: Tally, numbers: Iterator[int], begin: float) -> None:
    """One client: one session, or one per query, or sessions until the duration is over."""
    connections, queries = (options.queries, 1) if options.connect_per_query else (1, options.queries)
    while True:
        for turn in range(connections):
            if turn and options.think_ms:
                await asyncio.sleep(options.think_ms / 1000)
            if options.rate:
                due = begin + next(numbers) / options.rate
                if options.duration and due >= begin + options.duration:
                    return
                await asyncio.sleep(due - time.perf_counter())
            await session(options, tally, queries)
        if time.perf_counter() - begin >= options.duration:
            return


async def storm(options: argparse.Namespace) -> dict[str, Any]:
    """Run all clients; return the summary."""
    tally, numbers, begin = Tally(), itertools.count(), time.perf_counter()
    await asyncio.gather(*(client(options, tally, numbers, begin) for _ in range(options.clients)))
    return tally.summary(options.clients, time.perf_counter() - begin)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; adds `query` and `target` (keywords for psycopg). The host is looked up here, once and for all."""
    parser = argparse.ArgumentParser(prog="storm.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=5432)
    parser.add_argument("--user", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--password-stdin", action="store_true", help="first line of standard input; else $PGPASSWORD")
    parser.add_argument("--sslmode", default="disable", help="as libpq's (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=500, help="clients at the same time (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=10, help="queries per client (default: %(default)s)")
    parser.add_argument("--query-ms", type=float, default=20, help="pg_sleep of each query (default: %(default)s)")
    parser.add_argument("--think-ms", type=float, default=0, help="pause between two queries (default: %(default)s)")
    parser.add_argument("--connect-per-query", action="store_true", help="a new connection for every query")
    parser.add_argument("--duration", type=float, default=0, help="seconds; clients begin again until they are over")
    parser.add_argument("--rate", type=float, default=0, help="sessions started per second at most; 0: all at once")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one connect, and for one query")
    options = parser.parse_args(arguments)
    options.query = f"SELECT pg_sleep({options.query_ms / 1000:f})" if options.query_ms else "SELECT 1"
    options.target = {
        "host": options.host,
        "hostaddr": socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][4][0],
        "port": options.port,
        "user": options.user,
        "dbname": options.database,
        "password": sys.stdin.readline().rstrip("\n") if options.password_stdin else os.environ.get("PGPASSWORD"),
        "sslmode": options.sslmode,
        "connect_timeout": max(2, round(options.timeout)),
        "application_name": "storm",
    }
    return options


if __name__ == "__main__":
    print(json.dumps(asyncio.run(storm(parse()))))
