"""bench/wire.py: the protocol, the rate of requests, and what is counted, against stand-ins for PostgreSQL."""

import argparse
import ast
import asyncio
import base64
import hashlib
import hmac
import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import wire
from tests.unit.test_load import READY, StandIn, message, standing_in

PASSWORD = "pencil"


def options(program: str, where: list[str], monkeypatch: pytest.MonkeyPatch, *more: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PASSWORD}\n\n"))
    return wire.parse([program, *where, "--work-ms", "0", "0", *more])


def test_the_program_stands_alone() -> None:
    tree = ast.parse(Path(wire.__file__).read_text())
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {module.partition(".")[0] for module in imported} <= sys.stdlib_module_names


# Logging in

FIRST = "n=user,r=rOprNGfwEbeRWgbNEkqO"
CHALLENGE = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
LAST = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"


def test_the_proof_is_that_of_rfc_7677() -> None:
    login = wire.Login("", 0, "user", "", PASSWORD)
    salted = login.salted(base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    found = wire.proof(salted, f"{FIRST},{CHALLENGE},{LAST}".encode())
    assert base64.b64encode(found) == b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="


class Scram:
    """A server that asks for SCRAM-SHA-256, whose own proof is made with `password`."""

    def __init__(self, password: str) -> None:
        self._salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", 4096)
        self.proofs: list[bool] = []
        self.startup = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (size,) = struct.unpack("!I", await reader.readexactly(4))
            self.startup = (await reader.readexactly(size - 4))[4:]
            writer.write(message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256\0\0"))
            opening = await self._answer(reader)
            bare = opening.partition(b"n,,")[2].decode()
            challenge = f"{bare.partition(',')[2]}more,s={base64.b64encode(b'salt').decode()},i=4096"
            writer.write(message(b"R", struct.pack("!I", 11) + challenge.encode()))
            last, _, proof = (await self._answer(reader)).decode().partition(",p=")
            signed = f"{bare},{challenge},{last}".encode()
            self.proofs.append(base64.b64decode(proof) == wire.proof(self._salted, signed))
            own = hmac.digest(hmac.digest(self._salted, b"Server Key", "sha256"), signed, "sha256")
            writer.write(message(b"R", struct.pack("!I", 12) + b"v=" + base64.b64encode(own)))
            writer.write(message(b"R", struct.pack("!I", 0)) + message(b"N", b"Mnotice\0\0") + READY)
            await reader.read()
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        kind, size = struct.unpack("!cI", await reader.readexactly(5))
        assert kind == b"p"
        return await reader.readexactly(size - 4)


async def logged_in(server: Scram) -> wire.Login:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listener:
        login = wire.Login("127.0.0.1", listener.sockets[0].getsockname()[1], "ann", "shop", PASSWORD)
        (await wire.Connection.open(login)).close()
    return login


async def test_a_client_logs_in_by_scram_and_computes_the_salted_password_once() -> None:
    server = Scram(PASSWORD)
    login = await logged_in(server)
    assert server.proofs == [True]
    assert server.startup == b"user\0ann\0database\0shop\0application_name\0bench\0\0"
    assert list(login.keys) == [(b"salt", 4096)]
    login.keys[b"salt", 4096] = b"kept"
    assert login.salted(b"salt", 4096) == b"kept"


async def test_a_server_that_does_not_know_the_password_is_no_server() -> None:
    with pytest.raises(wire.ServerError, match="does not know the password"):
        await logged_in(Scram("another"))


# Errors


@pytest.mark.parametrize(
    "error, expected",
    [
        (wire.ServerError("sorry, too many clients already"), wire.REFUSED),
        (wire.ServerError("no more connections allowed (max_client_conn)"), wire.REFUSED),
        (wire.ServerError("remaining connection slots are reserved for roles"), wire.REFUSED),
        (wire.ServerError("query_wait_timeout"), "query_wait_timeout"),
        (wire.Lost("connection lost"), "connection lost"),
        (TimeoutError(), "timeout"),
        (ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 6432)"), "connection refused"),
        (ConnectionResetError(104, "Connection reset by peer"), "connection lost"),
        (OSError(113, "No route to host"), "No route to host"),
    ],
)
def test_errors_are_sorted(error: Exception, expected: str) -> None:
    assert wire.kind(error) == expected


# flash


@pytest.mark.parametrize("first, last, seconds", [(10, 200, 90), (5, 5, 3), (0, 8, 2)])
def test_requests_come_at_a_rate_that_rises_evenly(first: float, last: float, seconds: float) -> None:
    due = wire.arrivals(first, last, seconds)
    assert len(due) == int((first + last) / 2 * seconds)
    assert due[0] == 0
    assert due == sorted(due)
    assert due[-1] < seconds
    half = first * seconds / 2 + (last - first) * seconds / 8
    assert sum(at < seconds / 2 for at in due) == pytest.approx(half, abs=1)


async def flash(server: StandIn, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, Any]:
    async with standing_in(server) as where:
        parsed = options("flash", where, monkeypatch, "--rate", "10", "30", "--rise", "0.5", *more)
        return await wire.flash(parsed.login, parsed)


async def test_every_request_has_a_connection_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = StandIn()
    told = await flash(server, monkeypatch, "--at-once", "7", "--after", "0.2")
    phases = told["phases"]
    assert {name: phase["served"] for name, phase in phases.items()} == {"rise": 10, "at once": 7, "after": 2}
    assert server.logins == server.queries == 19
    assert phases["rise"]["p50_ms"] <= phases["rise"]["p99_ms"] <= phases["rise"]["max_ms"]
    assert told["seconds"] >= 0.5
    assert "began" in json.loads(capsys.readouterr().out)


async def test_requests_that_find_no_room_or_lose_their_server_are_counted_by_phase(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = await flash(StandIn(room=3, broken=(1,)), monkeypatch, "--at-once", "8", "--after", "0")
    phases = told["phases"]
    assert sum(phases["rise"]["errors"].values()) == 1
    assert wire.REFUSED not in phases["rise"]["errors"]
    assert phases["at once"]["errors"] == {wire.REFUSED: 5}
    assert phases["after"] == {"served": 0, "errors": {}, "p50_ms": None, "p99_ms": None, "max_ms": None}


async def test_requests_start_when_they_are_due_whether_earlier_ones_are_done_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting.append(writer)

    waiting: list[asyncio.StreamWriter] = []
    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = str(listener.sockets[0].getsockname()[1])
    where = ["--host", "127.0.0.1", "--port", port, "--user", "u", "--database", "d", "--timeout", "0.3"]
    more = ("--rate", "20", "20", "--rise", "0.2", "--at-once", "3", "--after", "0")
    parsed = options("flash", where, monkeypatch, *more)
    told = await wire.flash(parsed.login, parsed)
    assert len(waiting) == 7
    assert [phase["errors"] for phase in told["phases"].values()] == [{"timeout": 4}, {"timeout": 3}, {}]
    for writer in waiting:
        writer.close()
    listener.close()


# many


async def many(
    server: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    async with standing_in(server) as where:
        more = ("--clients", "45", "--duration", "0.4", "--pause-ms", "5")
        parsed = options("many", where, monkeypatch, *more)
        told = await wire.many(parsed.login, parsed)
    return json.loads(capsys.readouterr().out.splitlines()[1]), told


async def test_every_client_stays_connected_and_has_its_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = StandIn()
    connected, told = await many(server, monkeypatch, capsys)
    assert connected["connected"]["served"] == told["clients"] == told["served"] == server.logins == 45
    assert told["queries"]["served"] == server.queries >= 45
    assert told["queries"]["errors"] == {}


async def test_a_client_that_is_refused_or_cut_is_not_served(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connected, told = await many(StandIn(room=40, broken=(1,)), monkeypatch, capsys)
    assert connected["connected"]["errors"] == {wire.REFUSED: 5}
    assert (told["clients"], told["served"], sum(told["queries"]["errors"].values())) == (45, 39, 1)
