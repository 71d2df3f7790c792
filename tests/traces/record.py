"""Write down what a real PgBouncer shows under load, once a second: `python -m tests.traces.record NAME` -> NAME.csv.

sale   30 s of 5 requests/s, within 60 s up to 150, 30 s of those, then back; each request opens a connection, asks
       one question and keeps the connection for 0.5 s. The flash sale, scaled to a machine of two cores
storm  250 clients of connection pools that ask something each second; after 70 s all of them are cut off and come
       back within 5 s
"""

import asyncio
import contextlib
import csv
import os
import random
import struct
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from tests.integration.pgbouncer_fixtures import PgBouncer, Postgres, free_port, postgres, wait_until

INI = """[databases]
d = host=127.0.0.1 port={server} dbname=postgres user=postgres pool_size=20
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
admin_users = admin
pool_mode = transaction
max_client_conn = 2000
ignore_startup_parameters = extra_float_digits
"""
ASK = b"select 1\0"


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that is logged in."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = struct.pack("!i", 196608) + b"user\0app\0database\0d\0\0"
    writer.write(struct.pack("!i", len(body) + 4) + body)
    await until_ready(reader)
    return reader, writer


async def until_ready(reader: asyncio.StreamReader) -> None:
    kind = b""
    while kind != b"Z":
        kind, length = struct.unpack("!ci", await reader.readexactly(5))
        await reader.readexactly(length - 4)
        if kind == b"E":
            raise ConnectionError("PgBouncer says no")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"Q" + struct.pack("!i", len(ASK) + 4) + ASK)
    await until_ready(reader)


async def sale(port: int) -> None:
    """Connection-per-request clients whose number per second rises and falls."""

    async def one() -> None:
        reader, writer = await connect(port)
        await ask(reader, writer)
        await asyncio.sleep(0.5)
        writer.close()

    began, running = time.monotonic(), set[asyncio.Task[None]]()
    while (t := time.monotonic() - began) < 240:
        rate = 5 + 145 * max(0.0, min(1.0, (t - 30) / 60, (180 - t) / 60))
        task = asyncio.create_task(one())
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(random.expovariate(rate))
    await asyncio.gather(*running)


async def storm(port: int) -> None:
    """Clients of pools, cut off all at once."""

    async def one(began: float) -> None:
        for first, end in ((random.uniform(0, 5), 70.0), (random.uniform(70, 75), 180.0)):
            await asyncio.sleep(max(0.0, first - (time.monotonic() - began)))
            reader, writer = await connect(port)
            while time.monotonic() - began < end:
                await ask(reader, writer)
                await asyncio.sleep(min(random.uniform(0.5, 1.5), max(0.0, end - (time.monotonic() - began))))
            writer.close()

    began = time.monotonic()
    await asyncio.gather(*(one(began) for _ in range(250)))


def cores(pid: int) -> float:
    """CPU seconds that process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def record(load: asyncio.Task[None], port: int, pid: int) -> list[tuple[str, int, str]]:
    """(seconds, clients, cores) while the load lasts."""
    admin = await psycopg.AsyncConnection.connect(
        host="127.0.0.1", port=port, user="admin", dbname="pgbouncer", autocommit=True, prepare_threshold=None
    )
    began, rows, before = time.monotonic(), [], (time.monotonic(), cores(pid))
    async with admin:
        while not load.done():
            await asyncio.sleep(1 - (time.monotonic() - began) % 1)
            cursor = psycopg.AsyncClientCursor(admin)
            found = await (await cursor.execute("SHOW POOLS")).fetchall()
            now = (time.monotonic(), cores(pid))
            names = [column.name for column in cursor.description or ()]
            pools = [dict(zip(names, row, strict=True)) for row in found]
            clients = sum(p["cl_active"] + p["cl_waiting"] for p in pools if p["database"] == "d")
            used = (now[1] - before[1]) / (now[0] - before[0])
            rows.append((f"{now[0] - began:.3f}", clients, f"{used:.3f}"))
            before = now
    await load
    return rows


async def run(name: str, port: int, pid: int) -> list[tuple[str, int, str]]:
    return await record(asyncio.create_task({"sale": sale, "storm": storm}[name](port)), port, pid)


def main(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        server: Postgres = stack.enter_context(postgres(Path(folder) / "postgres"))
        pgbouncer = PgBouncer(Path(folder) / "run", free_port())
        pgbouncer.run.mkdir()
        (pgbouncer.run / "pgbouncer.ini").write_text(INI.format(server=server.port, port=pgbouncer.port))
        pgbouncer.start()
        stack.callback(pgbouncer.stop)
        wait_until("PgBouncer listens", lambda: "listening on 127.0.0.1" in pgbouncer.text())
        assert pgbouncer.process is not None
        rows = asyncio.run(run(name, pgbouncer.port, pgbouncer.process.pid))
    with (Path(__file__).parent / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("seconds", "clients", "cores"), *rows])


if __name__ == "__main__":
    main(sys.argv[1])
