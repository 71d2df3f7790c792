"""The one entry point, which must weigh nothing for the agent."""

import subprocess
import sys

import pytest

from poolfleet import __main__ as entry


def test_the_entry_point_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import poolfleet.__main__; "
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before} - {'poolfleet'}))"
    )
    path = ":".join(part for part in sys.path if part)
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": path}
    )
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize(("argv", "code"), [(["--help"], 0), ([], 2), (["nonsense"], 2)])
def test_usage(argv: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["poolfleet", *argv])
    assert entry.main() == code
    said = capsys.readouterr()
    assert "operator" in (said.err if code else said.out)


def test_a_command_gets_the_rest_of_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def run(argv: list[str]) -> int:
        given.append(argv)
        return 3

    monkeypatch.setattr("poolfleet.api.crd.main", run)
    monkeypatch.setattr(sys, "argv", ["poolfleet", "crds", "some/folder"])
    assert entry.main() == 3
    assert given == [["some/folder"]]


@pytest.mark.parametrize("command", ["explain", "simulate"])
def test_the_commands_of_kubectl_pgpool_keep_their_names(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def run(argv: list[str]) -> int:
        given.append(argv)
        return 0

    monkeypatch.setattr("poolfleet.cli.main.main", run)
    monkeypatch.setattr(sys, "argv", ["poolfleet", command, "shop", "-n", "demo"])
    assert entry.main() == 0
    assert given == [[command, "shop", "-n", "demo"]]
