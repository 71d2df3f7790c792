"""What /proc says of a process."""

import re

from tests.e2e import kit

TICKS = 100  # of /proc/PID/stat per second: USER_HZ, the same on every platform of the images

PGBOUNCER, AGENT = "pgbouncer", "python3"
"""What runs in the containers of a pool's pod. They share their process namespace, so that PID 1 is neither."""
SCRIPT = """\
for pid in $(ls /proc | grep '^[0-9]' | sort -n); do
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ]; then exec cat "/proc/$pid/$2"; fi
done
echo "there is no process $1" >&2
exit 1
"""


def read(kubectl: kit.Kubectl, namespace: str, pod: str, container: str, name: str, file: str) -> str:
    """/proc/PID/`file` of the process `name` in this pod, the oldest of that name. Raises KubectlError without one."""
    return kubectl.exec(namespace, pod, "sh", "-c", SCRIPT, "sh", name, file, container=container)


def memory(status: str) -> dict[str, float]:
    """MiB by field of /proc/PID/status: VmRSS (now), VmHWM (the largest so far), RssAnon (shared with nobody)."""
    fields = re.findall(r"^(VmRSS|VmHWM|RssAnon):\s+([0-9]+) kB", status, re.MULTILINE)
    return {name: int(kib) / 1024 for name, kib in fields}


def cpu_seconds(stat: str) -> float:
    """User and system time out of /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
