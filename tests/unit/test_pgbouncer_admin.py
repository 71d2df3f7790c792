"""poolfleet.pgbouncer.admin against a server of a few bytes; tests/integration/test_agent.py uses the real one."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from poolfleet.pgbouncer import admin
from poolfleet.pgbouncer.admin import AdminError, Connection, ServerError

READY = b"Z\0\0\0\5I"
LOGIN_OK = b"R\0\0\0\x08\0\0\0\0" + READY


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def error(text: str, code: str = "08P01") -> bytes:
    return message(b"E", f"SERROR\0C{code}\0M{text}\0\0".encode())


class Fake:
    """Answers the startup packet with `login` and each further message with `answer`."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "s")
        self.login = LOGIN_OK
        self.answer = b""
        self.heard: list[bytes] = []
        self.last = False  # the answer is the end
        self.at_once = True  # which comes with it, or a moment later
        self.ended = asyncio.Event()
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            size = struct.unpack("!I", await reader.readexactly(4))[0]
            self.heard.append(await reader.readexactly(size - 4))
            writer.write(self.login)
            while True:
                head = await reader.readexactly(5)
                self.heard.append(await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4))
                if head[:1] == b"X":
                    break
                writer.write(self.answer)
                if self.last and not self.at_once:
                    await asyncio.sleep(0.05)
                if not self.answer or self.last:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            self.ended.set()

    async def open(self, timeout: float = 2.0) -> Connection:
        return await Connection.open(self.path, user="u", database="d", timeout=timeout)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Fake]:
    made = Fake(tmp_path)
    await made.start()
    yield made
    assert made.server is not None
    made.server.close()


async def test_rows_nulls_and_notices(fake: Fake) -> None:
    columns = struct.pack("!H", 2) + b"name\0" + bytes(18) + b"size\0" + bytes(18)
    row = struct.pack("!Hi", 2, 2) + "ü".encode() + struct.pack("!i", -1)
    fake.answer = (
        message(b"N", b"SNOTICE\0Mhello\0\0") + message(b"T", columns) + message(b"D", row) + message(b"C", b"SHOW\0")
    ) + READY
    connection = await fake.open()
    rows = await connection.query("SHOW DATABASES")
    assert rows == admin.Rows(("name", "size"), (("ü", None),), "SHOW")
    assert fake.heard[0].startswith(b"\0\3\0\0user\0u\0database\0d\0")
    assert fake.heard[1] == b"SHOW DATABASES\0"
    connection.close()


async def test_what_is_sent_waits_for_no_answer(fake: Fake) -> None:
    fake.answer = message(b"N", b"SNOTICE\0Mnot yet\0\0")
    connection = await fake.open()
    connection.send('PAUSE "shop"')
    connection.close()
    async with asyncio.timeout(5):
        await fake.ended.wait()
    assert fake.heard[1:] == [b'PAUSE "shop"\0', b""]


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_error_that_ends_the_connection_is_raised_as_itself(fake: Fake, at_once: bool) -> None:
    fake.answer, fake.last, fake.at_once = error("server conn crashed?"), True, at_once
    connection = await fake.open()
    with pytest.raises(ServerError, match="server conn crashed"):
        await connection.query("SELECT 1")
    connection.close()


async def test_an_error_is_raised_and_the_connection_goes_on(fake: Fake) -> None:
    fake.answer = error("no such\nthing", "42704") + READY
    connection = await fake.open()
    with pytest.raises(ServerError) as raised:
        await connection.query("x")
    assert (raised.value.text, raised.value.code) == ("ERROR: no such thing", "42704")
    fake.answer = message(b"C", b"RELOAD\0") + READY
    assert (await connection.query("RELOAD")).tag == "RELOAD"
    connection.close()


async def test_an_error_at_login(fake: Fake) -> None:
    fake.login = error("no")
    with pytest.raises(ServerError, match="ERROR: no"):
        await fake.open()


@pytest.mark.parametrize(
    "answer",
    [b"", message(b"T", b"\0\5x"), b"D\0\0\0\3", b"D\xff\xff\xff\xff", message(b"D", b"\0\1\0\0")],
)
async def test_nonsense_is_an_admin_error(fake: Fake, answer: bytes) -> None:
    fake.answer = answer
    connection = await fake.open()
    with pytest.raises(AdminError):
        await connection.query("x", timeout=0.5)
    connection.close()


async def test_silence_is_an_admin_error(fake: Fake) -> None:
    fake.answer = message(b"N", b"\0")
    connection = await fake.open()
    with pytest.raises(AdminError, match="no answer within"):
        await connection.query("x", timeout=0.1)
    connection.close()
    fake.login = message(b"N", b"\0")
    with pytest.raises(AdminError, match="no answer to a login"):
        await fake.open(timeout=0.1)


async def test_no_socket_is_an_admin_error(tmp_path: Path) -> None:
    with pytest.raises(AdminError):
        await Connection.open(str(tmp_path / "none"), user="u", database="d")


async def test_a_password_is_not_sent_as_it_is(fake: Fake) -> None:
    fake.login = message(b"R", struct.pack("!I", 3))  # AuthenticationCleartextPassword
    with pytest.raises(AdminError, match="not understood"):
        await Connection.open(fake.path, user="u", database="d", password="secret")
    assert b"secret" not in b"".join(fake.heard)


def test_scram_as_in_rfc_7677() -> None:
    scram = admin._Scram("pencil")
    scram._nonce = b"rOprNGfwEbeRWgbNEkqO"
    scram._bare = b"n=user,r=rOprNGfwEbeRWgbNEkqO"  # PostgreSQL leaves the name out; the example has one
    server = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    assert scram.final(server).endswith(b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    scram.check(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    with pytest.raises(AdminError):
        scram.check(b"v=" + base64.b64encode(bytes(32)))


def test_a_scram_challenge_that_does_not_continue_our_nonce_is_refused() -> None:
    scram = admin._Scram("x")
    with pytest.raises(AdminError, match="challenge"):
        scram.final(b"r=other,s=c2FsdA==,i=4096")


@pytest.mark.parametrize(
    ("password", "prepared"),
    [
        ("plain", b"plain"),
        ("\u00aa", b"a"),
        ("I\u00adX", b"IX"),
        ("a\u00a0ü", "a ü".encode()),
        ("\u2168", b"IX"),
        ("ü\x07", "ü\x07".encode()),
        ("\u0627\u0031", "\u0627\u0031".encode()),
    ],
)
def test_saslprep(password: str, prepared: bytes) -> None:
    assert admin._saslprep(password) == prepared


def test_messages_are_one_short_line() -> None:
    assert admin.one_line("a\r\nb\x1b[31m" + "x" * 999).startswith("a  b [31mxxx")
    assert len(admin.one_line("x" * 999)) == 300
