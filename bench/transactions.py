"""Clients that run short transactions without a pause: more clients than a database has connections to spare.

A transaction is BEGIN, one query of a few milliseconds, COMMIT: three round trips, as an application makes them. Every
client keeps its connection for some seconds, as an application's own pool does, then makes a new one; so it also finds
poolers that came later. After an error it waits a moment and connects anew. Prints {"began": …}, in seconds since
the epoch, and at the end {"summary": …}. Needs psycopg; otherwise this file stands alone, so that it can be given to a
pod's Python.
"""

import argparse
import asyncio
import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psycopg

FULL = ("too many clients", "remaining connection slots", "too many connections")
"""What PostgreSQL says when it has no connection left (SQLSTATE 53300), also as PgBouncer passes it on."""
TOO_MANY = "too many clients"
BACK_OFF = (0.1, 0.3)  # seconds between an error and the next connect
KINDS = {
    "connection refused": "connection refused",
    "server closed the connection": "connection lost",
    "connection reset": "connection lost",
    "connection is lost": "connection lost",
    "broken pipe": "connection lost",
    "no route to host": "no route to host",
    "timeout expired": "timeout",
}


def kind(error: BaseException) -> str:
    """What sort of error it was: TOO_MANY, one of KINDS' values, "timeout", or the first line of its own words."""
    text = str(error)
    if getattr(error, "sqlstate", None) == "53300" or any(words in text for words in FULL):
        return TOO_MANY
    if isinstance(error, TimeoutError):
        return "timeout"
    for words, name in KINDS.items():
        if words in text.lower():
            return name
    line = next(iter(text.splitlines()), "") or type(error).__name__
    return line.rpartition(" failed: ")[2].rpartition("FATAL:")[2].strip()  # without addresses


class Tally:
    """What has happened so far."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        self.waits: list[float] = []  # seconds, of one transaction each

    def summary(self, clients: int, seconds: float) -> dict[str, Any]:
        """The last line: waits in ms, null without any."""
        waits = sorted(self.waits)
        return {
            "clients": clients,
            "seconds": round(seconds, 3),
            "transactions": len(waits),
            "errors": dict(self.errors),
            "p50_ms": round(1000 * waits[len(waits) // 2], 1) if waits else None,
            "p99_ms": round(1000 * waits[len(waits) * 99 // 100], 1) if waits else None,
        }


async def stay(
    connection: psycopg.AsyncConnection[Any], until: float, options: argparse.Namespace, tally: Tally
) -> None:
    """Transactions over one connection until the clock time.perf_counter() says `until`."""
    while (sent := time.perf_counter()) < until:
        work = random.uniform(*options.work_ms) / 1000
        async with asyncio.timeout(options.timeout):
            await connection.execute("BEGIN")
            await connection.execute(f"SELECT pg_sleep({work:.5f})")
            await connection.execute("COMMIT")
        tally.waits.append(time.perf_counter() - sent)


async def client(number: int, options: argparse.Namespace, tally: Tally, end: float) -> None:
    """One client until `end`, always of the same user and database."""
    logins = [(user, database) for user in options.user for database in options.database]
    user, database = logins[number % len(logins)]
    while (now := time.perf_counter()) < end:
        connection: psycopg.AsyncConnection[Any] | None = None
        try:
            async with asyncio.timeout(options.timeout):
                connection = await psycopg.AsyncConnection.connect(
                    **options.target, user=user, dbname=database, autocommit=True, prepare_threshold=None
                )
            await stay(connection, min(end, now + random.uniform(*options.stay)), options, tally)
        except (psycopg.Error, TimeoutError) as error:
            tally.errors[kind(error)] += 1
            await asyncio.sleep(random.uniform(*BACK_OFF))
        finally:
            if connection is not None:
                await connection.close()


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """All clients for options.duration seconds; return the summary."""
    tally, begin = Tally(), time.perf_counter()
    print(json.dumps({"began": time.time()}), flush=True)
    end = begin + options.duration
    await asyncio.gather(*(client(number, options, tally, end) for number in range(options.clients)))
    return tally.summary(options.clients, time.perf_counter() - begin)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; adds `target` (keywords for psycopg). The host is looked up here, once and for all."""
    parser = argparse.ArgumentParser(prog="transactions.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=6432)
    parser.add_argument("--user", action="append", required=True, help="may be repeated; all have the same password")
    parser.add_argument("--database", action="append", required=True, help="may be repeated; every user uses each")
    parser.add_argument("--clients", type=int, default=150, help="(default: %(default)s)")
    parser.add_argument("--duration", type=float, default=60, help="seconds (default: %(default)s)")
    parser.add_argument("--work-ms", type=float, nargs=2, default=(5, 10), help="of one query, from and to")
    parser.add_argument("--stay", type=float, nargs=2, default=(5, 15), help="seconds of one connection, from and to")
    parser.add_argument("--timeout", type=float, default=30, help="seconds for one connect, and one transaction")
    options = parser.parse_args(arguments)
    options.target = {
        "host": options.host,
        "hostaddr": socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][4][0],
        "port": options.port,
        "password": sys.stdin.readline().rstrip("\n"),
        "sslmode": "disable",
        "application_name": "bench",
    }
    return options


if __name__ == "__main__":
    print(json.dumps({"summary": asyncio.run(run(parse()))}))
