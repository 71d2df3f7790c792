"""K clients that connect for every query (or for some, or stay), until a duration or standard input is over.

    kubectl exec -i clients -- python3 - --host shop --user app --database app --duration 9 < hack/load/steady.py

Prints {"started": …} after the first answer, one line {"t": …, "client": …, "error": …} for every query or connect that
failed (t in seconds since the epoch), {"t": …, "client": …, "took": …} for every answer that took at least --tell-ms
(t when it was there, took in seconds), and {"summary": …}. Needs psycopg; otherwise this file stands alone.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import psycopg


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
        self.queries = 0
        self.failed = 0
        self.connects = 0
        self.longest_gap = 0.0  # seconds between two answers to one and the same client
        self.slowest = 0.0  # seconds for one query, its connect included where it had one

    def answer(self, seconds: float, gap: float) -> None:
        """A query was answered after `seconds`; the same client's previous answer was `gap` seconds ago."""
        if not self.queries:
            say(started=round(time.time(), 3))
        self.queries += 1
        self.slowest = max(self.slowest, seconds)
        self.longest_gap = max(self.longest_gap, gap)

    def failure(self, client: int, error: BaseException) -> None:
        """A connect or a query failed."""
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


async def client(number: int, options: argparse.Namespace, tally: Tally, over: asyncio.Event) -> None:
    """Query, pause, and so on until `over`; a connection that has failed, or served its time, is made anew."""
    connection: psycopg.AsyncConnection[Any] | None = None
    served = 0  # queries on this connection
    last = time.perf_counter()
    while not over.is_set():
        start = time.perf_counter()
        try:
            async with asyncio.timeout(options.timeout):
                if connection is None:
                    connection = await psycopg.AsyncConnection.connect(**options.target, autocommit=True)
                    tally.connects += 1
                    served = 0
                await connection.execute(options.query)
        except (psycopg.Error, TimeoutError) as error:
            tally.failure(number, error)
            healthy = False
        else:
            now = time.perf_counter()
            tally.answer(now - start, now - last)
            if options.tell_ms and (now - start) * 1000 >= options.tell_ms:
                say(t=round(time.time(), 3), client=number, took=round(now - start, 3))
            last, healthy, served = now, True, served + 1
        if connection is not None and not (healthy and (options.stay or served < options.queries)):
            await connection.close()
            connection = None
        try:
            await asyncio.wait_for(over.wait(), (options.interval_ms if healthy else options.retry_ms) / 1000)
        except TimeoutError:
            continue
    if connection is not None:
        await connection.close()
    tally.longest_gap = max(tally.longest_gap, time.perf_counter() - last)


async def steady(options: argparse.Namespace) -> dict[str, Any]:
    """Run all clients until the duration, or standard input, is over; return the summary."""
    over, loop, begin = asyncio.Event(), asyncio.get_running_loop(), time.perf_counter()
    if options.duration:
        loop.call_later(options.duration, over.set)
    if options.until_eof:

        def listen() -> None:
            if not os.read(sys.stdin.fileno(), 4096):
                loop.remove_reader(sys.stdin.fileno())
                over.set()

        loop.add_reader(sys.stdin.fileno(), listen)
    tally = Tally()
    await asyncio.gather(*(client(number, options, tally, over) for number in range(options.clients)))
    return tally.summary(time.perf_counter() - begin)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; adds `query` and `target` (keywords for psycopg). The host is looked up here, once and for all."""
    parser = argparse.ArgumentParser(prog="steady.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=6432)
    parser.add_argument("--user", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--password-stdin", action="store_true", help="first line of standard input; else $PGPASSWORD")
    parser.add_argument("--sslmode", default="disable", help="as libpq's (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1, help="on one connection (default: %(default)s)")
    parser.add_argument("--stay", action="store_true", help="keep the connection for ever")
    parser.add_argument("--query-ms", type=float, default=0, help="pg_sleep of each query (default: %(default)s)")
    parser.add_argument("--interval-ms", type=float, default=50, help="pause between queries (default: %(default)s)")
    parser.add_argument("--tell-ms", type=float, default=0, help="tell answers that took as long; 0: none of them")
    parser.add_argument("--retry-ms", type=float, help="pause after a failure (default: that between queries)")
    parser.add_argument("--duration", type=float, default=0, help="seconds; 0: no end")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one connect and query")
    options = parser.parse_args(arguments)
    if not (options.duration or options.until_eof):
        parser.error("say when to end: --duration, --until-eof, or both")
    options.retry_ms = options.interval_ms if options.retry_ms is None else options.retry_ms
    options.query = f"SELECT pg_sleep({options.query_ms / 1000:f})" if options.query_ms else "SELECT 1"
    options.target = {
        "host": options.host,
        "hostaddr": socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][4][0],
        "port": options.port,
        "user": options.user,
        "dbname": options.database,
        "password": sys.stdin.readline().rstrip("\n") if options.password_stdin else os.environ.get("PGPASSWORD"),
        "sslmode": options.sslmode,
        "application_name": "steady",
    }
    return options


if __name__ == "__main__":
    say(summary=asyncio.run(steady(parse())))
