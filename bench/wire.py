"""Clients that cost next to nothing: PostgreSQL's protocol on asyncio, a process for thousands of connections.

`flash`: a connection per request (connect, one query, close), at a rate that rises, then many at once. Requests start
when they are due, whether earlier ones are done or not, as the requests of independent functions do.
`many`: connections that stay; of every twenty clients one is active, and every client has its turn.

Prints {"began": …}, in seconds since the epoch, and at the end {"summary": …}; times in ms. Standard library only and
alone, so that it can be given to a pod's Python.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import math
import os
import random
import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

REFUSED = "too many clients"
FULL = (REFUSED, "remaining connection slots", "too many connections", "no more connections allowed")
"""What PostgreSQL and PgBouncer say to a client that they have no room for."""
TURNS = 20  # of `many`: as many groups of clients, one active at a time
LOGINS = 64  # of `many` at the same time


class ServerError(Exception):
    """The server said ERROR or FATAL; the message is its own."""


class Lost(Exception):
    """The server has gone away."""


@dataclass
class Login:
    """Where and as whom. What a salt makes of the password is computed once: 4096 rounds for every login would make the
    clients what is measured."""

    host: str  # an address
    port: int
    user: str
    database: str
    password: str
    keys: dict[tuple[bytes, int], bytes] = field(default_factory=dict)

    def salted(self, salt: bytes, iterations: int) -> bytes:
        """SaltedPassword of RFC 5802."""
        if (salt, iterations) not in self.keys:
            self.keys[salt, iterations] = hashlib.pbkdf2_hmac("sha256", self.password.encode(), salt, iterations)
        return self.keys[salt, iterations]


class Connection:
    """One connection. Raises ServerError, Lost, OSError (no connection at all)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, login: Login) -> "Connection":
        """Connect and log in, without TLS; by SCRAM-SHA-256 if the server asks for it."""
        connection = cls(*await asyncio.open_connection(login.host, login.port))
        try:
            await connection._start(login)
        except BaseException:
            connection.close()
            raise
        return connection

    async def query(self, sql: str) -> None:
        """Run `sql` and wait for its end; rows are dropped."""
        self._send(b"Q", sql.encode() + b"\0")
        while (await self._message())[0] != b"Z":
            pass

    def close(self) -> None:
        """Say good-bye, and wait for nothing."""
        if not self._writer.is_closing():
            self._send(b"X", b"")
            self._writer.close()

    async def _start(self, login: Login) -> None:
        words = ("user", login.user, "database", login.database, "application_name", "bench", "")
        body = struct.pack("!I", 3 << 16) + b"\0".join(word.encode() for word in words) + b"\0"
        self._writer.write(struct.pack("!I", len(body) + 4) + body)
        while True:
            kind, body = await self._message()
            if kind == b"Z":
                return
            if kind == b"R" and (code := struct.unpack("!I", body[:4])[0]):
                if code != 10:
                    raise ServerError(f"the server asks for a login of sort {code}")
                await self._scram(login)

    async def _scram(self, login: Login) -> None:
        """RFC 5802 and 7677, without channel binding. Raises ServerError if the server does not know the password."""
        first = f"n=,r={base64.b64encode(os.urandom(18)).decode()}"
        opening = f"n,,{first}".encode()
        self._send(b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(opening)) + opening)
        challenge = await self._sasl(11)
        said = dict(part.split("=", 1) for part in challenge.split(","))
        salted = login.salted(base64.b64decode(said["s"]), int(said["i"]))
        last = f"c=biws,r={said['r']}"
        signed = f"{first},{challenge},{last}".encode()
        self._send(b"p", f"{last},p={base64.b64encode(proof(salted, signed)).decode()}".encode())
        expected = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        if await self._sasl(12) != f"v={base64.b64encode(expected).decode()}":
            raise ServerError("the server does not know the password")

    async def _sasl(self, code: int) -> str:
        kind, body = await self._message()
        if kind != b"R" or struct.unpack("!I", body[:4])[0] != code:
            raise ServerError(f"the server breaks the login off with {kind!r}")
        return body[4:].decode()

    def _send(self, kind: bytes, body: bytes) -> None:
        self._writer.write(kind + struct.pack("!I", len(body) + 4) + body)

    async def _message(self) -> tuple[bytes, bytes]:
        """The next message; who asks leaves aside what it does not look for."""
        try:
            kind, size = struct.unpack("!cI", await self._reader.readexactly(5))
            body = await self._reader.readexactly(size - 4)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Lost("connection lost") from error
        if kind == b"E":
            raise ServerError(words(body))
        return kind, body


def proof(salted: bytes, signed: bytes) -> bytes:
    """ClientProof of RFC 5802."""
    key = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
    return bytes(a ^ b for a, b in zip(key, signature, strict=True))


def words(body: bytes) -> str:
    """The message of an ErrorResponse."""
    return next((part[1:].decode(errors="replace") for part in body.split(b"\0") if part[:1] == b"M"), "no message")


def kind(error: BaseException) -> str:
    """What sort of error it was: REFUSED, or a few words that hold no address."""
    if isinstance(error, TimeoutError):  # before OSError, which it is
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError):
        return "connection lost"
    if isinstance(error, OSError):
        return str(error.strerror or type(error).__name__)
    return REFUSED if any(part in str(error) for part in FULL) else str(error)


ERRORS = (ServerError, Lost, OSError, TimeoutError)


class Tally:
    """What has become of requests, or of queries."""

    def __init__(self) -> None:
        self.waits: list[float] = []  # seconds, of one that was served each
        self.errors: Counter[str] = Counter()

    def summary(self) -> dict[str, Any]:
        """As a JSON object; p50, p99 and max by nearest rank, None without any."""
        waits = sorted(self.waits)
        points = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
        at = {name: waits[max(0, math.ceil(q * len(waits)) - 1)] if waits else None for name, q in points.items()}
        times = {name: None if wait is None else round(1000 * wait, 1) for name, wait in at.items()}
        return {"served": len(waits), "errors": dict(self.errors), **times}


# flash


def arrivals(first: float, last: float, seconds: float) -> list[float]:
    """When requests are due, in seconds from 0 to `seconds`, at a rate that rises evenly from `first` to `last` per
    second: the n-th is due when n requests have come, n = first t + (last - first) t^2 / (2 seconds)."""
    slope = (last - first) / seconds
    total = int((first + last) / 2 * seconds + 1e-9)  # what the last digit of a float has lost
    if not slope:
        return [n / first for n in range(total)]
    return [(math.sqrt(first * first + 2 * slope * n) - first) / slope for n in range(total)]


def phases(options: argparse.Namespace) -> Iterator[tuple[str, list[float]]]:
    """The phases with the times at which their requests are due, in seconds since the start."""
    first, last = options.rate
    rise, after = options.rise, options.after
    yield "rise", arrivals(first, last, rise)
    yield "at once", [rise] * options.at_once
    yield "after", [rise + at for at in arrivals(first, first, after)] if after else []


async def request(login: Login, options: argparse.Namespace, tally: Tally) -> None:
    """Connect, one query, close."""
    begun, work = time.perf_counter(), random.uniform(*options.work_ms) / 1000
    try:
        async with asyncio.timeout(options.timeout):
            connection = await Connection.open(login)
            try:
                await connection.query(f"SELECT pg_sleep({work:.5f})")
            finally:
                connection.close()
    except ERRORS as error:
        tally.errors[kind(error)] += 1
    else:
        tally.waits.append(time.perf_counter() - begun)


async def flash(login: Login, options: argparse.Namespace) -> dict[str, Any]:
    """All requests when they are due; `late_ms` is how late the latest of the rise was begun: the
    clients must not be what is measured."""
    print(json.dumps({"began": time.time()}), flush=True)
    begin, late, told = time.perf_counter(), 0.0, {}
    running: list[asyncio.Task[None]] = []
    for phase, due in phases(options):
        told[phase] = tally = Tally()
        for at in due:
            if (pause := begin + at - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            elif phase == "rise":
                late = max(late, -pause)
            running.append(asyncio.create_task(request(login, options, tally)))
    await asyncio.gather(*running)
    seconds, phase_sums = time.perf_counter() - begin, {phase: tally.summary() for phase, tally in told.items()}
    return {"seconds": round(seconds, 3), "late_ms": round(1000 * late, 1), "phases": phase_sums}


# many


@dataclass
class Stayer:
    """A client that stays connected; None: it could not connect."""

    connection: Connection | None = None
    queries: int = 0


async def connect(login: Login, options: argparse.Namespace, tally: Tally) -> list[Stayer]:
    """All clients, LOGINS of them at a time."""
    room = asyncio.Semaphore(LOGINS)

    async def come() -> Stayer:
        async with room:
            begun = time.perf_counter()
            try:
                async with asyncio.timeout(options.timeout):
                    stayer = Stayer(await Connection.open(login))
            except ERRORS as error:
                tally.errors[kind(error)] += 1
                return Stayer()
            tally.waits.append(time.perf_counter() - begun)
            return stayer

    return list(await asyncio.gather(*(come() for _ in range(options.clients))))


async def ask(stayer: Stayer, until: float, options: argparse.Namespace, tally: Tally) -> None:
    """Queries with pauses until the clock says `until`; at least one."""
    await asyncio.sleep(random.uniform(0, options.pause_ms / 1000))
    while stayer.connection is not None:
        begun, work = time.perf_counter(), random.uniform(*options.work_ms) / 1000
        try:
            async with asyncio.timeout(options.timeout):
                await stayer.connection.query(f"SELECT pg_sleep({work:.5f})")
        except ERRORS as error:
            tally.errors[kind(error)] += 1
            return
        stayer.queries += 1
        done = time.perf_counter()
        tally.waits.append(done - begun)
        if done + options.pause_ms / 1000 >= until:
            return
        await asyncio.sleep(options.pause_ms / 1000)


async def many(login: Login, options: argparse.Namespace) -> dict[str, Any]:
    """Connect all clients, say {"connected": …}, wait for a line on standard input, give each client its turn."""
    print(json.dumps({"began": time.time()}), flush=True)
    logins, queries, begin = Tally(), Tally(), time.perf_counter()
    stayers = await connect(login, options, logins)
    print(json.dumps({"connected": logins.summary(), "seconds": time.perf_counter() - begin}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    begin = time.perf_counter()
    for turn in range(TURNS):
        until = begin + options.duration * (turn + 1) / TURNS
        await asyncio.gather(*(ask(stayer, until, options, queries) for stayer in stayers[turn::TURNS]))
    served = sum(stayer.queries > 0 for stayer in stayers)
    for stayer in stayers:
        if stayer.connection is not None:
            stayer.connection.close()
    seconds = round(time.perf_counter() - begin, 3)
    return {"clients": len(stayers), "served": served, "seconds": seconds, "queries": queries.summary()}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; adds `login`, with the password from standard input. The host is looked up here, once."""
    parser = argparse.ArgumentParser(prog="wire.py", description=(__doc__ or "").partition("\n")[0])
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--host", required=True)
    common.add_argument("--port", type=int, default=6432)
    common.add_argument("--user", required=True)
    common.add_argument("--database", required=True)
    common.add_argument("--timeout", type=float, default=30, help="seconds for one request, connect or query")
    common.add_argument("--work-ms", type=float, nargs=2, default=(5, 10), help="of one query, from and to")
    programs = parser.add_subparsers(dest="program", required=True)
    rising = programs.add_parser("flash", parents=[common])
    rising.add_argument("--rate", type=float, nargs=2, default=(10, 100), help="requests per second, from and to")
    rising.add_argument("--rise", type=float, default=90, help="seconds from the first rate to the second")
    rising.add_argument("--at-once", type=int, default=500, help="requests at once, when the rate is at its highest")
    rising.add_argument("--after", type=float, default=20, help="seconds of the first rate after that")
    rising.set_defaults(run=flash)
    staying = programs.add_parser("many", parents=[common])
    staying.add_argument("--clients", type=int, default=10000, help="(default: %(default)s)")
    staying.add_argument("--duration", type=float, default=60, help="seconds for all turns together")
    staying.add_argument("--pause-ms", type=float, default=500, help="between two queries of an active client")
    staying.set_defaults(run=many)
    options = parser.parse_args(arguments)
    address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][4][0]
    password = sys.stdin.readline().rstrip("\n")
    options.login = Login(str(address), options.port, options.user, options.database, password)
    return options


def main() -> None:
    """Run one of the two."""
    options = parse()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps({"summary": asyncio.run(options.run(options.login, options))}))


if __name__ == "__main__":
    main()
