"""Client backends in PostgreSQL, counted beside the server.

psql's \\watch keeps the time while the machine is busy, when a question over `kubectl exec` for every sample takes
twice the interval.

    with Sampler(postgres) as sampler: …
    sampler.samples
"""

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

from tests.e2e import kit

NAME = "bench-sampler"  # its application_name, by which it is ended
INTERVAL = 0.1  # seconds
SQL = f"""\
SELECT json_build_object('t', extract(epoch FROM clock_timestamp()), 'by', (
  SELECT json_object_agg(who, n) FROM (
    SELECT coalesce(usename, '') AS who, count(*) AS n FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() GROUP BY 1) AS backends))
\\watch i={INTERVAL}
"""
END = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = {kit.quoted(NAME)}"


class Sampler:
    """Counts backends by role (the operator's and everybody's) as superuser, whose slot a full server has reserved."""

    def __init__(self, postgres: kit.Postgres) -> None:
        self.samples: list[tuple[float, dict[str, int]]] = []
        """(seconds since the epoch, backends by role)"""
        self._postgres = postgres
        command = ("exec", "-i", "postgres-0", "--", "psql", "-XAtqn", "-v", "ON_ERROR_STOP=1", "-U", "postgres")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        where = ("-d", f"dbname=postgres application_name={NAME}", "-f", "-")
        self._psql = postgres.kubectl.popen("-n", postgres.namespace, *command, *where, **pipes)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Sampler":
        assert self._psql.stdin is not None
        self._psql.stdin.write(SQL)
        self._psql.stdin.flush()
        self._thread.start()
        kit.await_until(lambda: self.samples, 20, "a first sample of pg_stat_activity", interval=0.02)
        return self

    def __exit__(self, *exc: object) -> None:
        alive = self._thread.is_alive()
        self._postgres.sql(END)
        self._thread.join(20)
        if self._thread.is_alive():
            self._psql.kill()
        with self._psql:  # closes its pipes, then waits for its end
            pass
        if exc[0] is None and not alive:
            raise AssertionError("sampling pg_stat_activity has ended by itself")

    def _read(self) -> None:
        assert self._psql.stdout is not None
        for line in self._psql.stdout:
            if (sample := parse(line)) is not None:
                self.samples.append(sample)


def parse(line: str) -> tuple[float, dict[str, int]] | None:
    """A line of psql's as a sample; None for what \\watch prints between them."""
    if not line.startswith("{"):
        return None
    found = json.loads(line)
    return float(found["t"]), found["by"] or {}


def counted(
    samples: Sequence[tuple[float, dict[str, int]]], users: Sequence[str], began: float, seconds: float
) -> tuple[tuple[float, int], ...]:
    """Connections of these users by seconds since `began`, as long as the clients ran. A connection that has no role
    yet is counted too. Raises AssertionError without a sample."""
    found = tuple(
        (at - began, sum(by.get(user, 0) for user in (*users, ""))) for at, by in samples if 0 <= at - began <= seconds
    )
    assert found, "no sample while the clients ran"
    return found


class Replicas:
    """Ready pods of a Deployment, watched.

    with Replicas(kubectl, namespace, "poolfleet") as replicas: …
    replicas.samples
    """

    COLUMN = "-o=jsonpath={.status.readyReplicas}{'\\n'}"

    def __init__(self, kubectl: kit.Kubectl, namespace: str, deployment: str) -> None:
        self.samples: list[tuple[float, int]] = []
        """(seconds since the epoch, ready pods): the first when it was found, then whenever the number changes"""
        watch = ("-n", namespace, "get", "deployment", deployment, "--watch", self.COLUMN)
        self._watch = kubectl.popen(*watch, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Replicas":
        self._thread.start()
        kit.await_until(lambda: self.samples, 20, "a first look at the Deployment", interval=0.02)
        return self

    def __exit__(self, *exc: object) -> None:
        alive = self._watch.poll() is None
        self._watch.kill()
        self._thread.join(20)
        with self._watch:
            pass
        if exc[0] is None and not alive:
            raise AssertionError("watching the Deployment has ended by itself")

    def _read(self) -> None:
        assert self._watch.stdout is not None
        for line in self._watch.stdout:
            ready = int(line.strip() or 0)
            if not self.samples or self.samples[-1][1] != ready:
                self.samples.append((time.time(), ready))
