"""poolfleet.agent.cpu"""

import os
import time
from pathlib import Path

import pytest

from poolfleet.agent.cpu import WINDOW, Cpu, used


def test_it_is_the_average_of_the_window() -> None:
    cpu = Cpu()
    assert cpu.cores() is None
    for at in range(4):
        cpu.add(7, float(at), at * 0.5)
    assert cpu.cores() == 0.5
    for at in range(4, 14):
        cpu.add(7, float(at), 1.5)
    assert cpu.cores() == 0.0  # what was before the window is forgotten


def test_it_is_not_known_from_one_look_nor_from_two_too_close_together() -> None:
    cpu = Cpu()
    cpu.add(7, 0.0, 1.0)
    assert cpu.cores() is None
    cpu.add(7, 0.5, 1.2)
    assert cpu.cores() is None
    cpu.add(7, 1.0, 1.2)
    assert cpu.cores() == pytest.approx(0.2)


def test_rare_looks_are_enough() -> None:
    cpu = Cpu()
    for at in (0.0, 2 * WINDOW, 4 * WINDOW):
        cpu.add(7, at, at / 4)
    assert cpu.cores() == 0.25


def test_another_process_or_a_look_that_failed_begins_anew() -> None:
    cpu = Cpu()
    cpu.add(7, 0.0, 100.0)
    cpu.add(8, 2.0, 0.5)
    assert cpu.cores() is None
    cpu.add(8, 4.0, 1.5)
    assert cpu.cores() == 0.5
    cpu.add(8, 5.0, None)
    assert cpu.cores() is None
    cpu.add(8, 6.0, 1.5)
    assert cpu.cores() is None


def test_the_times_of_a_process() -> None:
    before = used(os.getpid())
    assert before is not None
    assert before == pytest.approx(time.process_time(), abs=0.5)


def test_a_program_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    fields = " ".join(str(n) for n in range(3, 53))
    (tmp_path / "7" / "stat").write_text(f"7 (a) b (c) {fields}\n")
    assert used(7, tmp_path) == (14 + 15) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("pid", [0, -1, 8])
def test_what_is_not_there_is_not_known(tmp_path: Path, pid: int) -> None:
    assert used(pid, tmp_path) is None
