"""`python3 -m poolfleet admin "SHOW DATABASES"` in an agent container: what PgBouncer's console shows.

    kubectl exec POD -c agent -- python3 -m poolfleet admin "SHOW POOLS"

Reading only: what changes PgBouncer is the agent's, or the promise on connections would not hold.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from poolfleet.api import names
from poolfleet.pgbouncer.admin import AdminError, Connection, Rows
from poolfleet.pgbouncer.show import ADMIN_DATABASE


async def ask(socket: Path, command: str) -> Rows:
    """The answer to one command on the admin console behind `socket`. Raises AdminError."""
    connection = await Connection.open(str(socket), user=ADMIN_DATABASE, database=ADMIN_DATABASE)
    try:
        return await connection.query(command)
    finally:
        connection.close()


def main(argv: Sequence[str]) -> int:
    """Print one JSON object per row, column name to text or null; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="poolfleet admin", description="Ask the admin console of this pod's PgBouncer."
    )
    parser.add_argument("command", help='a SHOW command, for example "SHOW DATABASES"')
    command = parser.parse_args(argv).command.strip().rstrip(";")
    if command.split()[:1] not in (["SHOW"], ["show"]) or ";" in command:
        parser.error("only one SHOW command; what changes PgBouncer is the agent's")
    run_dir = Path(os.environ.get("POOLFLEET_RUN_DIR", names.RUN_DIR))
    try:
        rows = asyncio.run(ask(run_dir / f".s.PGSQL.{names.PGBOUNCER_PORT}", command))
    except AdminError as error:
        sys.stderr.write(f"poolfleet admin: {error}\n")
        return 1
    for row in rows.rows:
        sys.stdout.write(json.dumps(dict(zip(rows.columns, row, strict=True))) + "\n")
    return 0
