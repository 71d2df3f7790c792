"""A minimal PostgreSQL client (protocol 3.0) for PgBouncer's Unix socket: admin commands and one probing login.

Own code instead of a library for the agent's memory: psycopg with libpq weighs more than the whole agent, and the admin
console speaks the simple protocol only (facts/pgbouncer.md 7). What it knows: startup, no authentication or
SCRAM-SHA-256 (RFC 5802, 7677), simple Query with text results, errors. What it does not know: TLS, COPY, extended
queries, notifications. Standard library only; every wait has an end.
"""

import asyncio
import base64
import hashlib
import hmac
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024


class AdminError(Exception):
    """The conversation is over: no socket, a broken connection, no answer in time, or a message out of place."""


class ServerError(AdminError):
    """The other side answered with an error; `text` is its message on one line, `code` its SQLSTATE."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.code = code


@dataclass(frozen=True, slots=True)
class Rows:
    """Result of one command: column names, rows as text (None for NULL), and the command tag."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]
    tag: str = ""


def one_line(text: str, most: int = 300) -> str:
    """`text` without line breaks and control characters, at most `most` characters."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:most]


class Connection:
    """One connection; `open` makes it. Not for concurrent use. After an AdminError other than ServerError, close it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(
        cls, path: str, *, user: str, database: str, password: str | None = None, timeout: float = 5.0
    ) -> "Connection":
        """Connect to the Unix socket `path` and log in; `password` is for SCRAM. Raises AdminError."""
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(path)
                connection = cls(reader, writer)
                try:
                    await connection._login(user, database, password)
                except BaseException:
                    connection.close()
                    raise
                return connection
        except TimeoutError:
            raise AdminError(f"no answer to a login within {timeout:g} s") from None
        except (OSError, EOFError, struct.error, ValueError) as error:
            raise AdminError(one_line(f"{type(error).__name__}: {error}")) from error

    async def query(self, sql: str, timeout: float = 5.0) -> Rows:
        """Run one command; its rows are text. Raises ServerError for an error answer, AdminError otherwise."""
        try:
            async with asyncio.timeout(timeout):
                self._send(b"Q", sql.encode() + b"\0")
                return await self._result()
        except TimeoutError:
            raise AdminError(f"no answer within {timeout:g} s") from None
        except (OSError, EOFError, struct.error, ValueError) as error:
            raise AdminError(one_line(f"{type(error).__name__}: {error}")) from error

    def send(self, sql: str) -> None:
        """Send one command and do not wait for its answer; nothing but `close` may follow."""
        self._send(b"Q", sql.encode() + b"\0")

    @property
    def ended(self) -> bool:
        """The other side has closed the connection."""
        return self._reader.at_eof()

    @property
    def peer_pid(self) -> int:
        """pid of the process that listens on the socket (unix(7), SO_PEERCRED); 0 if it is in another pid namespace."""
        credentials = self._writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("3i", credentials)[0])

    def close(self) -> None:
        """Close at once, with a goodbye if the connection still takes it."""
        if not self._writer.is_closing():
            self._send(b"X", b"")
            self._writer.close()

    def _send(self, kind: bytes, body: bytes) -> None:
        self._writer.write(kind + struct.pack("!I", len(body) + 4) + body)

    async def _receive(self) -> tuple[bytes, bytes]:
        """Next message that is neither a notice nor a parameter's value."""
        while True:
            head = await self._reader.readexactly(5)
            kind, size = head[:1], struct.unpack("!I", head[1:])[0]
            if not 4 <= size <= MAX_MESSAGE_BYTES:
                raise AdminError("a message of an impossible length")
            body = await self._reader.readexactly(size - 4)
            if kind not in (b"N", b"S"):
                return kind, body

    async def _login(self, user: str, database: str, password: str | None) -> None:
        words = ["user", user, "database", database, "application_name", "poolfleet-agent"]
        body = struct.pack("!I", 3 << 16) + b"".join(word.encode() + b"\0" for word in words) + b"\0"
        self._writer.write(struct.pack("!I", len(body) + 4) + body)
        scram: _Scram | None = None
        while True:
            kind, body = await self._receive()
            if kind == b"E":
                raise _error(body)
            if kind == b"Z":
                return
            if kind != b"R":
                continue
            step = struct.unpack("!I", body[:4])[0]
            if step == 10 and password is not None and b"SCRAM-SHA-256\0" in body:
                scram = _Scram(password)
                first = scram.first()
                self._send(b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first)
            elif step == 11 and scram is not None:
                self._send(b"p", scram.final(body[4:]))
            elif step == 12 and scram is not None:
                scram.check(body[4:])
            elif step != 0:
                raise AdminError(f"an authentication request ({step}) that is not understood here")

    async def _result(self) -> Rows:
        columns: tuple[str, ...] = ()
        rows: list[tuple[str | None, ...]] = []
        tag = ""
        error: ServerError | None = None
        while True:
            try:
                kind, body = await self._receive()
            except EOFError:
                if error is not None:  # a FATAL one: nothing follows it
                    raise error from None
                raise
            if kind == b"T":
                columns = _columns(body)
            elif kind == b"D":
                rows.append(_row(body))
            elif kind == b"C":
                tag = body.rstrip(b"\0").decode(errors="replace")
            elif kind == b"E":
                error = _error(body)
            elif kind == b"Z":
                if error is not None:
                    raise error
                return Rows(columns, tuple(rows), tag)


def _columns(body: bytes) -> tuple[str, ...]:
    names: list[str] = []
    at = 2
    for _ in range(struct.unpack("!H", body[:2])[0]):
        end = body.index(b"\0", at)
        names.append(body[at:end].decode(errors="replace"))
        at = end + 19  # the name's NUL and 18 bytes about the column's type
    return tuple(names)


def _row(body: bytes) -> tuple[str | None, ...]:
    values: list[str | None] = []
    at = 2
    for _ in range(struct.unpack("!H", body[:2])[0]):
        size = struct.unpack("!i", body[at : at + 4])[0]
        at += 4
        if size < 0:
            values.append(None)
        else:
            values.append(body[at : at + size].decode(errors="replace"))
            at += size
    return tuple(values)


def _error(body: bytes) -> ServerError:
    fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    text = one_line(f"{fields.get(b'S', 'ERROR')}: {fields.get(b'M', 'no message')}")
    return ServerError(text, fields.get(b"C", ""))


class _Scram:
    """The client's side of SCRAM-SHA-256 without channel binding."""

    def __init__(self, password: str) -> None:
        self._password = _saslprep(password)
        self._nonce = base64.b64encode(os.urandom(18))
        self._bare = b"n=,r=" + self._nonce
        self._server_signature = b""

    def first(self) -> bytes:
        return b"n,," + self._bare

    def final(self, challenge: bytes) -> bytes:
        fields = dict(part.split(b"=", 1) for part in challenge.split(b",") if b"=" in part)
        nonce, rounds = fields.get(b"r", b""), int(fields.get(b"i", b"0"))
        if not nonce.startswith(self._nonce) or not 1 <= rounds <= 10_000_000:
            raise AdminError("a SCRAM challenge that does not fit")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, base64.b64decode(fields.get(b"s", b"")), rounds)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = b"c=biws,r=" + nonce
        message = self._bare + b"," + challenge + b"," + without_proof
        signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
        return without_proof + b",p=" + base64.b64encode(proof)

    def check(self, answer: bytes) -> None:
        expected = b"v=" + base64.b64encode(self._server_signature)
        if not hmac.compare_digest(answer.split(b",")[0], expected):
            raise AdminError("the other side does not know the password")


def _saslprep(password: str) -> bytes:
    """RFC 4013 as PostgreSQL applies it: a password that cannot be prepared is used as it is."""
    if password.isascii():
        return password.encode()
    import stringprep  # late: for few passwords, and it brings Unicode's tables
    import unicodedata

    mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    text = unicodedata.normalize("NFKC", mapped)
    prohibited = (
        stringprep.in_table_a1,
        stringprep.in_table_c12,
        stringprep.in_table_c21_c22,
        stringprep.in_table_c3,
        stringprep.in_table_c4,
        stringprep.in_table_c5,
        stringprep.in_table_c6,
        stringprep.in_table_c7,
        stringprep.in_table_c8,
        stringprep.in_table_c9,
    )
    if not text or any(table(c) for c in text for table in prohibited):
        return password.encode()
    right_to_left = any(stringprep.in_table_d1(c) for c in text)
    if right_to_left and (
        any(stringprep.in_table_d2(c) for c in text)
        or not stringprep.in_table_d1(text[0])
        or not stringprep.in_table_d1(text[-1])
    ):
        return password.encode()
    return text.encode()
