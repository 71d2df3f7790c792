"""How much CPU PgBouncer uses: it runs on one core at most, so a process near 1.0 is full (facts/pgbouncer.md 5).

The pid comes with its admin socket, the times from /proc: both need a process namespace that the pod's containers share
(template revision 2). Without it the CPU is not known.
"""

import os
from collections import deque
from pathlib import Path
from typing import Final

WINDOW: Final = 5.0
"""Seconds over which it is averaged."""

LEAST: Final = 1.0
"""Seconds below which it is not said: the kernel counts hundredths of a second."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Cpu:
    """CPU time of one process over the last WINDOW seconds."""

    def __init__(self) -> None:
        self._pid = 0
        self._seen: deque[tuple[float, float]] = deque()

    def add(self, pid: int, at: float, used: float | None) -> None:
        """Process `pid` had used `used` seconds of CPU at `at` (seconds, monotonic); None: it is not to be read."""
        if used is None or pid != self._pid:
            self._pid = pid
            self._seen.clear()
        if used is not None:
            self._seen.append((at, used))
        while len(self._seen) > 2 and self._seen[1][0] <= at - WINDOW:
            self._seen.popleft()

    def cores(self) -> float | None:
        """Cores that it used on average, None if that is not known."""
        if len(self._seen) < 2:
            return None
        (begun, before), (ended, after) = self._seen[0], self._seen[-1]
        return round((after - before) / (ended - begun), 3) if ended - begun >= LEAST else None


def used(pid: int, proc: Path = Path("/proc")) -> float | None:
    """CPU time of process `pid` since it started, in seconds; None if it cannot be read. 0 is no process of ours."""
    if pid <= 0:
        return None
    try:
        text = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the program's name, in parentheses, may be any text; proc(5)
    return (int(fields[11]) + int(fields[12])) / _TICKS
