"""The programs of hack/load against a stand-in that speaks just enough of PostgreSQL's protocol."""

import ast
import asyncio
import io
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hack.load import cancels, crowd, login, patient, pooled, sampler, steady, storm

PROGRAMS = Path(__file__).parents[2] / "hack/load"
NAMES = sorted(path.stem for path in PROGRAMS.glob("*.py"))
TOO_MANY = ("53300", "sorry, too many clients already")


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def error(code: str, text: str, severity: str = "FATAL") -> bytes:
    return message(b"E", f"S{severity}\0V{severity}\0C{code}\0M{text}\0\0".encode())


NO_ROWS = message(b"C", b"SELECT 0\0")
READY = message(b"Z", b"I")
ANSWERS = {
    b"Q": message(b"T", b"\0\0") + NO_ROWS + READY,
    # psycopg prepares what it has run five times
    b"P": message(b"1"),
    b"B": message(b"2"),
    b"D": message(b"n"),
    b"E": NO_ROWS,
    b"S": READY,
}


class StandIn:
    """Lets at most `room` clients in at a time; breaks off at the queries whose numbers are in `broken`, from 1."""

    def __init__(self, room: int = 1000, broken: tuple[int, ...] = ()) -> None:
        self.room, self.broken = room, broken
        self.inside = self.logins = self.queries = self.refused = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size, version = struct.unpack("!II", await reader.readexactly(8))
        await reader.readexactly(size - 8)
        assert version == 3 << 16, "the programs ask for neither TLS nor GSS here"
        if self.inside >= self.room:
            self.refused += 1
            writer.write(error(*TOO_MANY))
            return
        self.logins += 1
        self.inside += 1
        try:
            writer.write(message(b"R", struct.pack("!I", 0)) + message(b"S", b"client_encoding\0UTF8\0"))
            writer.write(message(b"S", b"server_version\x0017.0\0") + READY)
            while (kind := await reader.readexactly(1)) != b"X":
                await reader.readexactly(struct.unpack("!I", await reader.readexactly(4))[0] - 4)
                if kind in b"QE":
                    self.queries += 1
                    number = self.queries
                    await asyncio.sleep(0.01)
                    if number in self.broken:
                        writer.write(error("57P01", "terminating connection due to administrator command"))
                        return
                writer.write(ANSWERS[kind])
        finally:
            self.inside -= 1


@asynccontextmanager
async def standing_in(server: StandIn) -> AsyncIterator[list[str]]:
    """The server runs; yields the options that lead a program to it."""
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        yield ["--host", "127.0.0.1", "--port", str(port), "--user", "u", "--database", "d"]


def asyncpg_pool(arguments: list[str]) -> object:
    """pooled.py with a driver."""
    return pooled.parse([*arguments, "--driver", "asyncpg"])


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_a_program_stands_alone_and_explains_itself(name: str) -> None:
    code = (PROGRAMS / f"{name}.py").read_text()
    imported = {node.module or "" for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)}
    imported |= {a.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import) for a in node.names}
    assert {module.partition(".")[0] for module in imported} <= sys.stdlib_module_names | {"psycopg"}
    # as in the pod: the program as an argument, isolated from the checkout
    told = subprocess.run([sys.executable, "-I", "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert f"usage: {name}.py" in told.stdout


def test_a_password_comes_over_standard_input_and_stands_in_no_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["--host", "127.0.0.1", "--user", "u", "--database", "d", "--password-stdin"]
    for parse, more in (
        (storm.parse, []),
        (steady.parse, ["--until-eof"]),
        (patient.parse, ["--until-eof"]),
        (login.parse, []),
        (sampler.parse, ["--until-eof"]),
        (pooled.parse, ["--until-eof", "--driver", "asyncpg"]),
        (cancels.parse, ["--driver", "psycopg"]),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO("s e'c$ret \nmore"))
        assert parse([*where, *more]).target["password"] == "s e'c$ret "
    monkeypatch.setattr(sys, "stdin", io.StringIO("s e'c$ret \nmore"))
    assert crowd.parse([*where, "--until-eof"]).password == "s e'c$ret "


@pytest.mark.parametrize("q, expected", [(0.5, 2.0), (0.99, 4.0), (1.0, 4.0), (0.25, 1.0)])
def test_a_quantile_is_a_value_that_was_measured(q: float, expected: float) -> None:
    assert storm.quantile([4.0, 1.0, 3.0, 2.0], q) == expected
    assert storm.quantile([], q) is None


def test_words_are_the_servers_own() -> None:
    where = 'connection failed: connection to server at "10.0.0.1", port 5432 failed: '
    assert storm.words(Exception(f"{where}FATAL:  sorry, too many clients already")) == f"FATAL: {TOO_MANY[1]}"
    assert storm.words(Exception(f"{where}Connection refused\n\tIs the server running")) == "Connection refused"
    assert storm.words(TimeoutError()) == "TimeoutError"


async def test_a_storm_against_a_full_server_counts_who_was_refused_and_why() -> None:
    server = StandIn(room=3)
    async with standing_in(server) as where:
        result = await storm.storm(storm.parse([*where, "--clients", "8", "--queries", "4", "--query-ms", "0"]))
    assert (result["served"], result["refused"], result["failed"], result["sessions"]) == (3, 5, 0, 8)
    assert result["refusals"] == {f"FATAL: {TOO_MANY[1]}": 5}
    assert result["queries"] == 12
    assert result["query_ms"]["p50"] >= 9


async def test_a_storm_tells_a_failed_query_from_a_refusal() -> None:
    async with standing_in(StandIn(broken=(5,))) as where:
        result = await storm.storm(storm.parse([*where, "--clients", "4", "--queries", "4"]))
    assert (result["served"], result["refused"], result["failed"]) == (3, 0, 1)
    (failure,) = result["failures"]
    assert "57P01" in failure and "terminating connection" in failure


async def test_a_storm_without_a_server_has_no_times() -> None:
    async with standing_in(StandIn()) as where:
        pass
    result = await storm.storm(storm.parse([*where, "--clients", "2"]))
    assert result["refused"] == 2
    assert result["query_ms"] == {"p50": None, "p99": None, "max": None}


async def test_a_storm_connects_per_query_at_its_rate() -> None:
    server = StandIn()
    async with standing_in(server) as where:
        options = ["--clients", "4", "--queries", "2", "--connect-per-query", "--query-ms", "0", "--rate", "40"]
        result = await storm.storm(storm.parse([*where, *options]))
    assert server.logins == result["sessions"] == 8
    assert result["wall_s"] >= 7 / 40


async def test_a_storm_goes_on_until_its_duration_is_over() -> None:
    async with standing_in(StandIn()) as where:
        options = ["--clients", "2", "--queries", "1", "--query-ms", "0", "--duration", "0.3"]
        result = await storm.storm(storm.parse([*where, *options]))
    assert result["served"] > 4
    assert result["wall_s"] >= 0.3


async def test_steady_clients_tell_each_failure_and_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    server = StandIn(broken=(6, 7))
    async with standing_in(server) as where:
        options = ["--clients", "2", "--stay", "--interval-ms", "5", "--duration", "0.4"]
        summary = await steady.steady(steady.parse([*where, *options]))
    lines = json_lines(capsys)
    failures = [line for line in lines if "error" in line]
    assert "started" in lines[0]
    assert len(failures) == summary["failed"] == 2
    assert all("57P01" in str(line["error"]) and abs(time.time() - float(str(line["t"]))) < 10 for line in failures)
    assert summary["connects"] == 4, "who stays connects anew after a failure only"
    assert summary["queries"] == server.queries - 2


async def test_a_steady_client_may_ask_several_times_on_one_connection(capsys: pytest.CaptureFixture[str]) -> None:
    async with standing_in(StandIn()) as where:
        options = ["--clients", "1", "--queries", "3", "--interval-ms", "5", "--duration", "0.4"]
        summary = await steady.steady(steady.parse([*where, *options]))
    assert summary["queries"] > 6
    assert summary["connects"] == -(-summary["queries"] // 3)
    assert json_lines(capsys)


async def test_a_steady_client_tells_what_took_long(capsys: pytest.CaptureFixture[str]) -> None:
    async with standing_in(StandIn()) as where:  # each answer takes 10 ms
        for patience, expected in ("1", True), ("2000", False):
            options = ["--clients", "1", "--stay", "--duration", "0.2", "--tell-ms", patience]
            await steady.steady(steady.parse([*where, *options]))
            assert any(float(str(line.get("took", 0))) > 0.009 for line in json_lines(capsys)) == expected


async def test_patient_clients_take_turns_with_their_transactions(capsys: pytest.CaptureFixture[str]) -> None:
    server = StandIn()
    async with standing_in(server) as where:
        options = ["--seconds", "0.3", "--interval-ms", "50", "--duration", "1"]
        summary = await patient.patient(patient.parse([*where, *options]))
    lines = json_lines(capsys)
    assert "started" in lines[0]
    spans = [(float(str(line["begun"])), float(str(line["t"]))) for line in lines if "begun" in line]
    assert summary["transactions"] == len(spans) >= 6 and summary["failed"] == 0
    assert server.queries == summary["queries"] + 2 * len(spans), "BEGIN and COMMIT"
    for _, end in spans[:3]:  # the last ones end with the run
        assert any(begun < end < later - 0.05 for begun, later in spans), "nobody else is amid one"


async def test_a_patient_client_tells_a_broken_transaction_and_begins_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with standing_in(StandIn(broken=(3,))) as where:
        options = ["--clients", "1", "--seconds", "0.1", "--interval-ms", "20", "--duration", "0.5"]
        summary = await patient.patient(patient.parse([*where, *options]))
    errors = [str(line["error"]) for line in json_lines(capsys) if "error" in line]
    assert summary["failed"] == 1 == len(errors) and "57P01" in errors[0]
    assert summary["transactions"] >= 2


async def test_steady_clients_end_with_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    server = StandIn()
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        async with standing_in(server) as where:
            run = asyncio.create_task(steady.steady(steady.parse([*where, "--until-eof", "--interval-ms", "5"])))
            while server.queries < 20:
                assert not run.done()
                await asyncio.sleep(0.005)
            os.close(write)
            summary = await asyncio.wait_for(run, 5)
    assert summary["failed"] == 0
    assert summary["connects"] == summary["queries"] == server.queries
    assert json_lines(capsys)


async def test_the_longest_gap_ends_with_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    async with standing_in(StandIn(room=0)) as where:
        summary = await steady.steady(steady.parse([*where, "--clients", "1", "--duration", "0.3"]))
    assert summary["queries"] == 0 and summary["failed"] > 1
    assert summary["longest_gap_s"] >= 0.3
    assert json_lines(capsys)


async def test_a_login_is_waited_for_and_timed_on_every_host(capsys: pytest.CaptureFixture[str]) -> None:
    server = StandIn(room=0)
    async with standing_in(server) as where:
        since = time.time() - 100
        options = login.parse([*where, "--host", "localhost", "--since", str(since), "--timeout", "110"])
        run = asyncio.create_task(login.login(options))
        while server.refused < 4:  # noqa: ASYNC110 - both hosts have been tried twice then
            await asyncio.sleep(0.01)
        assert not run.done()
        server.room = 1000
        assert await asyncio.wait_for(run, 5)
    lines = json_lines(capsys)
    assert {line["host"] for line in lines} == {"127.0.0.1", "localhost"}
    assert all(100 <= float(str(line["seconds"])) < 105 and int(str(line["attempts"])) > 1 for line in lines)


async def test_a_login_that_never_works_ends_with_the_last_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    async with standing_in(StandIn(room=0)) as where:
        assert not await login.login(login.parse([*where, "--timeout", "0.2"]))
    (line,) = json_lines(capsys)
    assert TOO_MANY[1] in str(line["error"])


async def test_a_login_announces_the_first_refusal_of_each_host(capsys: pytest.CaptureFixture[str]) -> None:
    async with standing_in(StandIn(room=0)) as where:
        options = [*where, "--host", "localhost", "--timeout", "0.2", "--announce"]
        assert not await login.login(login.parse(options))
    refusals = [line for line in json_lines(capsys) if "refused" in line]
    assert {line["host"] for line in refusals} == {"127.0.0.1", "localhost"}
    assert len(refusals) == 2 and all(TOO_MANY[1] in str(line["refused"]) for line in refusals)


def test_a_sampler_sums_up() -> None:
    summed_up = {"samples": 4, "max": 9, "median": 4, "late": 1, "seconds": 0.4}
    assert sampler.summary([3, 9, 4, 4], 0.4, late=1) == summed_up
    assert sampler.summary([], 0.0)["max"] is None


def test_a_sampler_names_the_backends_that_have_come_and_gone() -> None:
    before = [(7, "app@shop", "10.0.0.1", 1.0), (8, "app@shop", "10.0.0.1", 2.0), (9, "app@shop", "10.0.0.2", 3.0)]
    after = [before[0], (9, "app@shop", "10.0.0.3", 4.5)]  # the system has given a number to another process
    assert sampler.changes(before, after) == {"came": [[9, "10.0.0.3", 4.5]], "gone": [8, 9]}
    assert sampler.changes(after, after) == {"came": [], "gone": []}


def test_a_sampler_waits_for_its_next_sample_or_the_end_of_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        begin = time.perf_counter()
        assert sampler.wait(begin + 0.1, until_eof=True)
        assert time.perf_counter() - begin >= 0.1
        os.close(write)
        assert not sampler.wait(time.perf_counter() + 60, until_eof=True)


def test_a_proof_is_that_of_the_standards_example() -> None:
    # RFC 7677, section 3
    server = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    final = crowd.proof(b"pencil", "n=user,r=rOprNGfwEbeRWgbNEkqO", server).decode()
    assert final == (
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )


async def test_a_crowd_comes_stays_and_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    server = StandIn()
    async with standing_in(server) as where:
        summary = await crowd.crowd(crowd.parse([*where, "--clients", "20", "--ask", "--duration", "0.3"]))
    assert (summary["clients"], summary["failed"], summary["put_out"]) == (20, 0, 0)
    assert server.logins == server.queries == 20
    assert json_lines(capsys)[0]["connected"] == 20


async def test_a_crowd_tells_who_was_refused_and_whose_query_failed(capsys: pytest.CaptureFixture[str]) -> None:
    # the third query ends its connection
    async with standing_in(StandIn(room=3, broken=(3,))) as where:
        summary = await crowd.crowd(crowd.parse([*where, "--clients", "4", "--ask", "--duration", "0.3"]))
    errors = [str(line["error"]) for line in json_lines(capsys) if "error" in line]
    assert summary["failed"] == 2 == len(errors)
    assert any(TOO_MANY[1] in words for words in errors) and any("57P01" in words for words in errors)


@pytest.mark.parametrize("parse", [steady.parse, patient.parse, sampler.parse, crowd.parse, asyncpg_pool])
def test_a_program_without_an_end_is_refused(
    parse: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["--host", "127.0.0.1", "--user", "u", "--database", "d"])
    assert "--duration" in capsys.readouterr().err
