"""Counts the client backends of a PostgreSQL server every 100 ms, over one connection that does not count itself.

    kubectl exec -i clients -- python3 - --host postgres --user poolfleet_admin --duration 30 < hack/load/sampler.py

Prints one line per sample, at once, so that it can be read meanwhile:
{"t": …, "took": …, "total": …, "by": {"<role>@<database>": …}, "came": [[pid, address, started], …], "gone": [pid, …]}
t is when the answer was there (seconds since the epoch), took how long it took (seconds); came and gone are the
backends that the sample before did not have, or had. The last line is {"summary": …}, in which `late` counts the
intervals that were half as long again as they should be. The login needs pg_monitor; as a superuser it has a slot of
its own on a server that is full. Needs psycopg; otherwise this file stands alone.
"""

import argparse
import json
import os
import select
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

# a backend that has not logged in yet has neither role nor database
BACKENDS = """
SELECT pid, coalesce(usename, '') || '@' || coalesce(datname, ''), coalesce(host(client_addr), ''),
       round(extract(epoch FROM backend_start), 3)::float8
FROM pg_catalog.pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()
  AND (%(roles)s::text[] IS NULL OR usename = ANY (%(roles)s))
  AND (%(databases)s::text[] IS NULL OR datname = ANY (%(databases)s))
"""

Backend = tuple[int, str, str, float]  # pid, "<role>@<database>", address, when it was started


def changes(before: Iterable[Backend], after: Iterable[Backend]) -> dict[str, Any]:
    """What a sample's line says of the backends that have come and gone since the sample before."""
    old, new = {(pid, started) for pid, _, _, started in before}, {(pid, started) for pid, _, _, started in after}
    return {
        "came": [[pid, address, started] for pid, _, address, started in after if (pid, started) not in old],
        "gone": [pid for pid, started in sorted(old - new)],
    }


def summary(totals: Sequence[int], seconds: float, late: int = 0) -> dict[str, Any]:
    """The last line; max and median are None without samples."""
    return {
        "samples": len(totals),
        "max": max(totals, default=None),
        "median": statistics.median_low(totals) if totals else None,
        "late": late,
        "seconds": round(seconds, 3),
    }


def wait(due: float, until_eof: bool) -> bool:
    """Wait until the clock time.perf_counter() says `due`; False at once if standard input ends before that."""
    while (left := due - time.perf_counter()) > 0:
        if not until_eof:
            time.sleep(left)
        elif select.select([sys.stdin], [], [], left)[0] and not os.read(sys.stdin.fileno(), 4096):
            return False
    return True


def sample(options: argparse.Namespace) -> dict[str, Any]:
    """Sample until the duration, or standard input, is over; return the summary."""
    totals: list[int] = []
    backends: list[Backend] = []
    late, last, interval = 0, float("inf"), options.interval_ms / 1000
    with psycopg.connect(**options.target, autocommit=True, connect_timeout=10) as connection:
        begin = due = time.perf_counter()
        while not options.duration or due - begin < options.duration:
            asked, before = time.perf_counter(), backends
            late += asked - last > 1.5 * interval
            last = asked
            filters = {"roles": options.role, "databases": options.only_database}
            backends = connection.execute(BACKENDS, filters).fetchall()
            totals.append(len(backends))
            line = {"t": round(time.time(), 3), "took": round(time.perf_counter() - asked, 4), "total": len(backends)}
            by = Counter(who for _, who, _, _ in backends)
            print(json.dumps({**line, "by": by, **changes(before, backends)}), flush=True)
            due = max(due + interval, time.perf_counter())
            if not wait(due, options.until_eof):
                break
    return summary(totals, time.perf_counter() - begin, late)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; adds `target` (keywords for psycopg)."""
    parser = argparse.ArgumentParser(prog="sampler.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=5432)
    parser.add_argument("--user", required=True)
    parser.add_argument("--database", default="postgres")
    parser.add_argument("--password-stdin", action="store_true", help="first line of standard input; else $PGPASSWORD")
    parser.add_argument("--sslmode", default="disable", help="as libpq's (default: %(default)s)")
    parser.add_argument("--role", action="append", help="count this role's backends only; may be repeated")
    parser.add_argument("--only-database", action="append", help="count this database's only; may be repeated")
    parser.add_argument("--interval-ms", type=float, default=100, help="(default: %(default)s)")
    parser.add_argument("--duration", type=float, default=0, help="seconds; 0: no end")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    options = parser.parse_args(arguments)
    if not (options.duration or options.until_eof):
        parser.error("say when to end: --duration, --until-eof, or both")
    options.target = {
        "host": options.host,
        "port": options.port,
        "user": options.user,
        "dbname": options.database,
        "password": sys.stdin.readline().rstrip("\n") if options.password_stdin else os.environ.get("PGPASSWORD"),
        "sslmode": options.sslmode,
        "application_name": "sampler",
    }
    return options


if __name__ == "__main__":
    print(json.dumps({"summary": sample(parse())}))
