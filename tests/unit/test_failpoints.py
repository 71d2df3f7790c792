"""Failpoints: a process ends at the named one as a crash would, and only there."""

import os
import subprocess
import sys

import pytest

from poolfleet.controller.failpoints import CRASHED, VARIABLE, reach

PROGRAM = """
import atexit
from poolfleet.controller.failpoints import reach
atexit.register(lambda: print("cleaned up"))
for name in ("rotation-alter-before", "rotation-alter-after"):
    reach(name)
    print(name, flush=True)
"""


def test_nobody_sets_one_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    reach("rotation-alter-before")


@pytest.mark.parametrize(
    ("point", "code", "output"),
    [
        ("rotation-alter-after", CRASHED, "rotation-alter-before\n"),
        ("rotation-alter", 0, "rotation-alter-before\nrotation-alter-after\ncleaned up\n"),
        ("", 0, "rotation-alter-before\nrotation-alter-after\ncleaned up\n"),
    ],
)
def test_the_process_ends_at_the_named_one_without_any_clean_up(point: str, code: int, output: str) -> None:
    environment = {**os.environ, VARIABLE: point}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, output)
    assert (f"failpoint {point}: this process ends" in done.stderr) == (code == CRASHED)
