"""Waits until a login with a user and a password works through every given host, and a query is answered.

    kubectl exec -i clients -- python3 - --host 10.0.0.7 --user shop --database shop < hack/load/login.py

Prints {"host": …, "seconds": …, "attempts": …} for each host when it works, seconds counted from --since (on a kind
cluster pods and machine have one clock). Exit code 1 if it does not within --timeout; the line holds the last refusal.
Needs psycopg; otherwise this file stands alone.
"""

import argparse
import asyncio
import json
import os
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


async def attempt(host: str, options: argparse.Namespace) -> None:
    """One login and one query; raises what went wrong."""
    async with asyncio.timeout(10):
        connection = await psycopg.AsyncConnection.connect(host=host, **options.target, autocommit=True)
        try:
            await connection.execute(options.query)
        finally:
            await connection.close()


async def until_it_works(host: str, options: argparse.Namespace) -> dict[str, Any]:
    """Poll one host; return its line, with "error" if the time is over."""
    attempts = 0
    while True:
        attempts += 1
        try:
            await attempt(host, options)
        except (psycopg.Error, TimeoutError) as error:
            if options.announce and attempts == 1:
                print(json.dumps({"host": host, "refused": words(error)}), flush=True)
            seconds = time.time() - options.since
            if seconds > options.timeout:
                return {"host": host, "seconds": round(seconds, 3), "attempts": attempts, "error": words(error)}
            await asyncio.sleep(options.poll_ms / 1000)
        else:
            return {"host": host, "seconds": round(time.time() - options.since, 3), "attempts": attempts}


async def login(options: argparse.Namespace) -> bool:
    """Poll all hosts at once, print a line for each; return whether all work."""
    works = True
    for done in asyncio.as_completed([until_it_works(host, options) for host in options.host]):
        line = await done
        print(json.dumps(line), flush=True)
        works = works and "error" not in line
    return works


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; adds `target` (keywords for psycopg)."""
    parser = argparse.ArgumentParser(prog="login.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", action="append", required=True, help="may be repeated")
    parser.add_argument("--port", type=int, default=6432)
    parser.add_argument("--user", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--password-stdin", action="store_true", help="first line of standard input; else $PGPASSWORD")
    parser.add_argument("--sslmode", default="disable", help="as libpq's (default: %(default)s)")
    parser.add_argument("--since", type=float, default=time.time(), help="seconds since the epoch (default: now)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds since --since (default: %(default)s)")
    parser.add_argument("--poll-ms", type=float, default=20, help="pause between attempts (default: %(default)s)")
    parser.add_argument("--announce", action="store_true", help="print a line for each host that refuses at first")
    parser.add_argument("--query", default="SELECT 1", help="must be answered too (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.target = {
        "port": options.port,
        "user": options.user,
        "dbname": options.database,
        "password": sys.stdin.readline().rstrip("\n") if options.password_stdin else os.environ.get("PGPASSWORD"),
        "sslmode": options.sslmode,
        "application_name": "login",
    }
    return options


if __name__ == "__main__":
    sys.exit(not asyncio.run(login(parse())))
