"""What /proc says of a process. Pure."""

import re

TICKS = 100  # of /proc/PID/stat per second: USER_HZ, the same on every platform of the images


def memory(status: str) -> dict[str, float]:
    """MiB by field of /proc/PID/status: VmRSS (now), VmHWM (the largest so far), RssAnon (shared with nobody)."""
    fields = re.findall(r"^(VmRSS|VmHWM|RssAnon):\s+([0-9]+) kB", status, re.MULTILINE)
    return {name: int(kib) / 1024 for name, kib in fields}


def cpu_seconds(stat: str) -> float:
    """User and system time out of /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
