"""K clients that keep a transaction open for long, one after the other, with a query in it every now and then.

    kubectl exec -i clients -- python3 - --host shop --user app --database app --until-eof < hack/load/patient.py

The clients begin their transactions by turns, so that with two of them there is always one that is open for half of
--seconds to come or more. Prints {"started": …} once all have begun one, {"t": …, "client": …, "begun": …} for every
transaction that was committed (both in seconds since the epoch), {"t": …, "client": …, "error": …} for every one that
failed, and {"summary": …}. Needs psycopg; otherwise this file stands alone.
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

    def __init__(self, clients: int) -> None:
        self.waiting = clients  # those that have not begun a transaction yet
        self.committed = self.failed = self.queries = 0
        self.slowest = 0.0  # seconds for one query inside a transaction

    def begun(self, first: bool) -> None:
        """A transaction was begun: the first of its client, or another."""
        self.waiting -= first
        if first and not self.waiting:
            say(started=round(time.time(), 3))


async def transaction(
    connection: psycopg.AsyncConnection[Any],
    tally: Tally,
    first: bool,
    seconds: float,
    pause: float,
    over: asyncio.Event,
) -> float:
    """One transaction of that many seconds, or until `over`; returns when it was begun. Raises psycopg.Error."""
    await connection.execute("BEGIN")
    begun, end = time.time(), time.perf_counter() + seconds
    tally.begun(first)
    while not over.is_set() and (left := end - time.perf_counter()) > 0:
        start = time.perf_counter()
        await connection.execute("SELECT 1")
        tally.slowest = max(tally.slowest, time.perf_counter() - start)
        tally.queries += 1
        try:
            await asyncio.wait_for(over.wait(), min(pause, left))
        except TimeoutError:
            continue
    await connection.execute("COMMIT")
    return begun


async def client(number: int, options: argparse.Namespace, tally: Tally, over: asyncio.Event) -> None:
    """One transaction after the other until `over`; the first of client k is shorter, so that they take turns."""
    connection: psycopg.AsyncConnection[Any] | None = None
    first = True
    seconds = options.seconds * (number + 1) / options.clients
    while not over.is_set():
        try:
            if connection is None:
                connection = await psycopg.AsyncConnection.connect(**options.target, autocommit=True)
            begun = await transaction(connection, tally, first, seconds, options.interval_ms / 1000, over)
        except psycopg.Error as error:
            tally.failed += 1
            say(t=round(time.time(), 3), client=number, error=words(error))
            if connection is not None:
                await connection.close()
            connection = None
            await asyncio.sleep(options.interval_ms / 1000)
        else:
            tally.committed += 1
            first, seconds = False, options.seconds
            say(t=round(time.time(), 3), client=number, begun=round(begun, 3))
    if connection is not None:
        await connection.close()


async def patient(options: argparse.Namespace) -> dict[str, Any]:
    """Run all clients until the duration, or standard input, is over; return the summary."""
    over, loop, begin, tally = asyncio.Event(), asyncio.get_running_loop(), time.perf_counter(), Tally(options.clients)
    if options.duration:
        loop.call_later(options.duration, over.set)
    if options.until_eof:

        def listen() -> None:
            if not os.read(sys.stdin.fileno(), 4096):
                loop.remove_reader(sys.stdin.fileno())
                over.set()

        loop.add_reader(sys.stdin.fileno(), listen)
    await asyncio.gather(*(client(number, options, tally, over) for number in range(options.clients)))
    return {
        "transactions": tally.committed,
        "queries": tally.queries,
        "failed": tally.failed,
        "slowest_s": round(tally.slowest, 3),
        "seconds": round(time.perf_counter() - begin, 3),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; adds `target` (keywords for psycopg). The host is looked up here, once and for all."""
    parser = argparse.ArgumentParser(prog="patient.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=6432)
    parser.add_argument("--user", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--password-stdin", action="store_true", help="first line of standard input; else $PGPASSWORD")
    parser.add_argument("--sslmode", default="disable", help="as libpq's (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="of each transaction (default: %(default)s)")
    parser.add_argument("--interval-ms", type=float, default=1000, help="between its queries (default: %(default)s)")
    parser.add_argument("--duration", type=float, default=0, help="seconds; 0: no end")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    options = parser.parse_args(arguments)
    if not (options.duration or options.until_eof):
        parser.error("say when to end: --duration, --until-eof, or both")
    options.target = {
        "host": options.host,
        "hostaddr": socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][4][0],
        "port": options.port,
        "user": options.user,
        "dbname": options.database,
        "password": sys.stdin.readline().rstrip("\n") if options.password_stdin else os.environ.get("PGPASSWORD"),
        "sslmode": options.sslmode,
        "application_name": "patient",
    }
    return options


if __name__ == "__main__":
    say(summary=asyncio.run(patient(parse())))
