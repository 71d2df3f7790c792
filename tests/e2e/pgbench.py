"""pgbench in the pod of PostgreSQL: many clients that stay connected, for little of the machine's time."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.e2e.cluster import KubectlError, await_until
from tests.e2e.database import Login, Postgres

_START = 'read -r PGPASSWORD; export PGPASSWORD; echo $$; exec pgbench -n -f <(echo "$1") "${@:2}"'
LIFE = 900  # seconds after which it ends whatever happens


class Pgbench:
    """Clients of one pool, or of one pod of it, each with one transaction after the other: with Pgbench(…): …

    Leaving the block raises AssertionError if a single transaction or connection has failed.
    """

    def __init__(self, postgres: Postgres, login: Login, clients: int, milliseconds: float) -> None:
        self._postgres = postgres
        self._login = login
        options = ["-h", login.host, "-p", f"{login.port}", "-U", login.user, "-c", f"{clients}", "-j", "1", "-P", "1"]
        transaction = f"SELECT pg_sleep({milliseconds / 1000:f})"
        command = ["bash", "-c", _START, "pgbench", transaction, *options, "-T", f"{LIFE}", login.database]
        self._command = ("-n", postgres.namespace, "exec", "-i", "postgres-0", "--", *command)
        self._out, self._err = tempfile.NamedTemporaryFile("w+"), tempfile.NamedTemporaryFile("w+")  # noqa: SIM115 (closed at the end)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Pgbench":
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": self._out, "stderr": self._err}
        self._process = process = self._postgres.kubectl.popen(*self._command, **pipes)
        assert process.stdin is not None
        process.stdin.write(self._login.password + "\n")
        process.stdin.flush()
        what = f"a first second of pgbench through {self._login.host}"
        await_until(lambda: self._said() or process.poll() is not None, 30, what)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        lives = self._process.poll() is None
        try:
            if lives:
                pid = Path(self._out.name).read_text().split()[0]
                self._postgres.kubectl.exec(self._postgres.namespace, "postgres-0", "kill", pid)
            self._process.wait(20)
        except (KubectlError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        with self._out, self._err, self._process.stdin:
            complaints = self.complaints()
        if exc[0] is None:
            assert lives and not complaints, (self._login.host, lives, complaints[:5])

    def complaints(self) -> list[str]:
        """What pgbench had to say but for how it gets on."""
        return [line for line in Path(self._err.name).read_text().splitlines() if not _is_progress(line)]

    def _said(self) -> bool:
        return "progress:" in Path(self._err.name).read_text()


def _is_progress(line: str) -> bool:
    if line.startswith("progress:"):
        return line.endswith(", 0 failed")
    return line.startswith("pgbench (") or not line.strip() or "terminated with exit code 143" in line
