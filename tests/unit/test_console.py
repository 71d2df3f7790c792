"""`poolfleet admin`: rows of the admin console as JSON lines. (Against a real PgBouncer: tests/e2e.)"""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolfleet.agent.console import main


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


COLUMN = b"\0" * 18
ROWS = (
    message(b"T", struct.pack("!H", 2) + b"name\0" + COLUMN + b"force_user\0" + COLUMN)
    + message(b"D", struct.pack("!Hi", 2, 4) + b"shop" + struct.pack("!i", -1))
    + message(b"C", b"SHOW\0")
)


class Console(threading.Thread):
    """Takes one login and one command; keeps the command."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.commands: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener, connection.makefile("rwb") as stream:
            stream.read(struct.unpack("!I", stream.read(4))[0] - 4)
            stream.write(message(b"R", b"\0\0\0\0") + message(b"Z", b"I"))
            stream.flush()
            assert stream.read(1) == b"Q"
            self.commands.append(stream.read(struct.unpack("!I", stream.read(4))[0] - 4))
            stream.write(ROWS + message(b"Z", b"I"))


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    monkeypatch.setenv("POOLFLEET_RUN_DIR", str(tmp_path))
    console = Console(tmp_path / ".s.PGSQL.6432")
    console.start()
    yield console
    console.join(5)


def test_rows_are_json_lines_by_column_name(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["SHOW DATABASES;"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "shop", "force_user": None}
    assert console.commands == [b"SHOW DATABASES\0"]


@pytest.mark.parametrize(
    "command", ["RELOAD", "KILL shop", "SET pool_size = 0", "", "SHOW POOLS; SHUTDOWN", "SHOWDOWN"]
)
def test_only_one_show_command_is_passed_on(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command])
    assert stopped.value.code == 2
    assert "only one SHOW" in capsys.readouterr().err


def test_without_a_console_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POOLFLEET_RUN_DIR", str(tmp_path))
    assert main(["SHOW POOLS"]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("poolfleet admin: ")
