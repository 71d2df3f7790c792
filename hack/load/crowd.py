"""Thousands of clients that log in with SCRAM, ask one query, and stay: raw connections, cheap for two cores.

    kubectl exec -i clients -- python3 - --host shop --user app --database app --duration 9 < hack/load/crowd.py

Prints {"connected": …, "t": …} when all are in, a line {"t": …, "client": …, "error": …} for each that failed and one
with "put_out" for each that the server has left, and {"summary": …}. They leave when --duration or standard input is
over. Standard library only.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

QUERY = b"Q" + struct.pack("!I", 13) + b"SELECT 1\0"
TERMINATE = b"X" + struct.pack("!I", 4)


class Refused(Exception):
    """The server said so, or it has gone."""


@cache
def salted(password: bytes, salt: bytes, iterations: int) -> bytes:
    """SaltedPassword of RFC 5802, the dear part of a login: once for all clients of one pod."""
    return hashlib.pbkdf2_hmac("sha256", password, salt, iterations)


def message(kind: bytes, body: bytes) -> bytes:
    """A message of the protocol."""
    return kind + struct.pack("!I", len(body) + 4) + body


def proof(password: bytes, first: str, server_first: str) -> bytes:
    """The client's final message (RFC 5802) to the server's first one; `first` is the client's, without its header."""
    fields = dict(part.split("=", 1) for part in server_first.split(","))
    key = salted(password, base64.b64decode(fields["s"]), int(fields["i"]))
    client_key = hmac.digest(key, b"Client Key", "sha256")
    without_proof = f"c=biws,r={fields['r']}"
    signed = f"{first},{server_first},{without_proof}".encode()
    signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
    both = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    return f"{without_proof},p={base64.b64encode(both).decode()}".encode()


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def login(self, options: argparse.Namespace) -> None:
        """Startup and SCRAM, until the server is ready for queries. Raises Refused."""
        start = b"".join(word.encode() + b"\0" for word in ("user", options.user, "database", options.database))
        body = struct.pack("!I", 3 << 16) + start + b"\0"
        self._writer.write(struct.pack("!I", len(body) + 4) + body)
        first = f"n=,r={secrets.token_urlsafe(18)}"
        while True:
            kind, said = await self._message()
            if kind == b"Z":
                return
            if kind != b"R":
                continue
            (what,) = struct.unpack("!I", said[:4])
            if what == 10:  # SASL: the mechanisms
                gs2 = f"n,,{first}".encode()
                initial = b"SCRAM-SHA-256\0" + struct.pack("!I", len(gs2)) + gs2
                self._writer.write(message(b"p", initial))
            elif what == 11:
                self._writer.write(message(b"p", proof(options.password.encode(), first, said[4:].decode())))
            elif what not in (0, 12):
                raise Refused(f"authentication method {what}")

    async def query(self) -> None:
        """SELECT 1, answered. Raises Refused."""
        self._writer.write(QUERY)
        while (await self._message())[0] != b"Z":
            pass

    async def until_put_out(self) -> str:
        """Wait until the server ends the connection; its words."""
        try:
            while True:
                await self._message()
        except Refused as error:
            return str(error)

    async def _message(self) -> tuple[bytes, bytes]:
        try:
            kind = await self._reader.readexactly(1)
            (size,) = struct.unpack("!I", await self._reader.readexactly(4))
            body = await self._reader.readexactly(size - 4)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Refused("the connection was closed") from error
        if kind == b"E":
            fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
            raise Refused(f"{fields.get(b'C')} {fields.get(b'S')}: {fields.get(b'M')}")
        return kind, body

    def leave(self) -> None:
        """Say goodbye and close."""
        self._writer.write(TERMINATE)
        self._writer.close()


class Crowd:
    """All clients."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._gate = asyncio.Semaphore(options.at_once)
        self.failed = 0
        self.put_out = 0
        self.inside = 0

    async def client(self, number: int, over: asyncio.Event) -> None:
        """Come, ask, stay until `over`."""
        options = self._options
        try:
            async with self._gate, asyncio.timeout(options.timeout):
                client = Client(*await asyncio.open_connection(options.address, options.port, limit=4096))
                await client.login(options)
                if options.ask:
                    await client.query()
        except (Refused, OSError, TimeoutError) as error:
            self.failed += 1
            say(t=round(time.time(), 3), client=number, error=str(error) or type(error).__name__)
            return
        self.inside += 1
        if self.inside == options.clients:
            say(connected=self.inside, t=round(time.time(), 3))
        put_out, end = asyncio.ensure_future(client.until_put_out()), asyncio.ensure_future(over.wait())
        await asyncio.wait({put_out, end}, return_when=asyncio.FIRST_COMPLETED)
        if put_out.done():
            self.put_out += 1
            say(t=round(time.time(), 3), client=number, put_out=put_out.result())
        put_out.cancel()
        end.cancel()
        client.leave()


def say(**line: Any) -> None:
    """Print one JSON line, at once."""
    print(json.dumps(line), flush=True)


async def crowd(options: argparse.Namespace) -> dict[str, Any]:
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
    all_of_them = Crowd(options)
    await asyncio.gather(*(all_of_them.client(number, over) for number in range(options.clients)))
    seconds = round(time.perf_counter() - begin, 3)
    return {
        "clients": all_of_them.inside,
        "failed": all_of_them.failed,
        "put_out": all_of_them.put_out,
        "seconds": seconds,
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; adds `password` and `address`, which is looked up here, once and for all."""
    parser = argparse.ArgumentParser(prog="crowd.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=6432)
    parser.add_argument("--user", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--password-stdin", action="store_true", help="first line of standard input; else $PGPASSWORD")
    parser.add_argument("--clients", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=64, help="logins at the same time (default: %(default)s)")
    parser.add_argument("--ask", action="store_true", help="one query each, after the login")
    parser.add_argument("--duration", type=float, default=0, help="seconds; 0: no end")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one login and query")
    options = parser.parse_args(arguments)
    if not (options.duration or options.until_eof):
        parser.error("say when to end: --duration, --until-eof, or both")
    options.password = sys.stdin.readline().rstrip("\n") if options.password_stdin else os.environ.get("PGPASSWORD", "")
    options.address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][4][0]
    return options


if __name__ == "__main__":
    say(summary=asyncio.run(crowd(parse())))
