"""The demo's PostgreSQL: SQL as its superuser, roles and databases for tests, samples of its backends."""

import json
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from tests.e2e.cluster import ROOT, Kubectl, await_until

NO_CONNECTION_LEFT = (
    "too many clients",
    "remaining connection slots",
    "too many connections for role",
    "too many connections for database",
)
"""What PostgreSQL says, in its log and to the client, when it refuses a login for want of a connection (53300)."""


@dataclass(frozen=True)
class Login:
    """Where and as whom a program logs in."""

    host: str
    port: int
    user: str
    password: str
    database: str

    def options(self) -> list[str]:
        """Options of the programs in hack/load; the password goes over standard input."""
        where = ["--host", self.host, "--port", str(self.port), "--database", self.database]
        return [*where, "--user", self.user, "--password-stdin"]


class Postgres:
    """The demo's PostgreSQL, as its superuser over the local socket of postgres-0."""

    def __init__(self, kubectl: Kubectl, namespace: str = "demo") -> None:
        self.kubectl = kubectl
        self.namespace = namespace
        self.host = f"postgres.{namespace}.svc"

    def ensure(self) -> "Postgres":
        """Apply examples/demo/postgres.yaml, into this namespace, and wait until it answers."""
        text = (ROOT / "examples/demo/postgres.yaml").read_text()
        text = re.sub(r"^(  namespace|  name): demo$", rf"\1: {self.namespace}", text, flags=re.MULTILINE)
        self.kubectl.run("apply", "-f", "-", stdin=text)
        rollout = ("-n", self.namespace, "rollout", "status", "statefulset/postgres", "--timeout=120s")
        self.kubectl.run(*rollout, timeout=130)
        return self

    def sql(self, sql: str, database: str = "postgres") -> list[list[str]]:
        """Run SQL as the superuser; the rows as text, NULL as ""."""
        psql = ("psql", "-XAtq", "-F", "\x1f", "-R", "\x1e", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database)
        out = self.kubectl.exec(self.namespace, "postgres-0", *psql, "-f", "-", stdin=sql).removesuffix("\n")
        return [row.split("\x1f") for row in out.split("\x1e")] if out else []

    def alias(self, name: str, of: str = "") -> str:
        """Another name of this server, `of` whom ever (default: of `name`): a Service in front of the same pod.

        To an operator that no admin Secret lets ask the server itself, PgServers of two names are two servers.
        """
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {"alias-of": of or name}},
            "spec": {"selector": {"app.kubernetes.io/name": "postgres"}, "ports": [{"name": "postgres", "port": 5432}]},
        }
        self.kubectl.apply(service)
        return f"{name}.{self.namespace}.svc"

    def forget(self, of: str) -> None:
        """Take the names `of` somebody away."""
        self.kubectl.run("-n", self.namespace, "delete", "services", "-l", f"alias-of={of}")

    def refused(self, since: float) -> list[str]:
        """Lines of the log, from `since` on (seconds since the epoch), of logins that found no connection left."""
        when = datetime.fromtimestamp(since, UTC).isoformat().replace("+00:00", "Z")
        log = self.kubectl.run("-n", self.namespace, "logs", "postgres-0", f"--since-time={when}")
        return [line for line in log.splitlines() if any(words in line for words in NO_CONNECTION_LEFT)]

    def sessions(self, role: str) -> int:
        """Client backends of a role, now."""
        return int(self.sql(f"SELECT count(*) FROM pg_stat_activity WHERE usename = {quoted(role)}")[0][0])

    def psql(self, login: Login, sql: str) -> str:
        """What `psql` says in this pod when it runs SQL through `login`. Raises KubectlError if that fails."""
        script = 'read -r PGPASSWORD; export PGPASSWORD; exec psql -XAtq -v ON_ERROR_STOP=1 "$@" -f -'
        where = ("-h", login.host, "-p", str(login.port), "-U", login.user, "-d", login.database)
        command = ("bash", "-c", script, "psql", *where)
        return self.kubectl.exec(
            self.namespace, "postgres-0", *command, stdin=f"{login.password}\n{sql}", timeout=60
        ).strip()

    def make(self, role: str, password: str, database: str = "") -> None:
        """Make a role, and a database that it owns (default: of its name), anew."""
        self.drop(role, database)
        self.sql(f"CREATE ROLE {ident(role)} LOGIN PASSWORD {quoted(password)}")
        self.sql(f"CREATE DATABASE {ident(database or role)} OWNER {ident(role)}")

    def drop(self, role: str, database: str = "") -> None:
        """Drop what `make` made, if it is there."""
        self.sql(f"DROP DATABASE IF EXISTS {ident(database or role)} WITH (FORCE)")
        self.sql(f"DROP ROLE IF EXISTS {ident(role)}")


def quoted(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def ident(name: str) -> str:
    """`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


class Superuser:
    """One psql session as the superuser, kept open: its slot is a reserved one, and its answers take milliseconds."""

    def __init__(self, postgres: Postgres) -> None:
        command = ("exec", "-i", "postgres-0", "--", "psql", "-XAtqn", "-U", "postgres")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._psql = postgres.kubectl.popen("-n", postgres.namespace, *command, **pipes)
        self._lock = threading.Lock()

    END = "-- end"

    def sql(self, sql: str) -> str:
        """Run a statement; what psql prints. Raises AssertionError if it fails, OSError if the session is over."""
        assert self._psql.stdin is not None and self._psql.stdout is not None
        with self._lock:
            self._psql.stdin.write(f"{sql.rstrip(';')};\n\\echo {self.END}\n")
            self._psql.stdin.flush()
            lines: list[str] = []
            while (line := self._psql.stdout.readline()).rstrip("\n") != self.END:
                if not line:
                    raise OSError(f"the psql session has ended: {lines}")
                lines.append(line)
        answer = "".join(lines).rstrip("\n")
        assert not answer.startswith(("ERROR:", "FATAL:", "psql:")), answer
        return answer

    def kill(self) -> None:
        """End the session even while it answers nothing."""
        self._psql.kill()

    def close(self) -> None:
        """End the session."""
        with self._psql:  # closes its standard input, then waits for its end
            pass


class Sampler:
    """Client backends, sampled as superuser over one session.

    with Sampler(postgres) as sampler: …
    sampler.peak(), sampler.samples
    """

    SQL = (
        "SELECT json_object_agg(who, n) FROM (SELECT coalesce(usename, '') AS who, count(*) AS n FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() GROUP BY 1) AS backends"
    )

    def __init__(self, postgres: Postgres, interval: float = 0.1) -> None:
        self.samples: list[
            tuple[float, dict[str, int]]
        ] = []  # (seconds since the epoch, backends by role; "": logging in)
        self._interval = interval
        self._stop = threading.Event()
        self._failure = ""
        self._session = Superuser(postgres)
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        await_until(lambda: self.samples or self._failure, 20, "a first sample of pg_stat_activity", interval=0.02)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(20)
        if self._thread.is_alive():
            self._session.kill()
        self._session.close()
        if exc[0] is None and self._failure:
            raise AssertionError(f"sampling pg_stat_activity failed: {self._failure}")

    def _sample(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._session.sql(self.SQL)
                self.samples.append((time.time(), json.loads(answer) if answer else {}))
            except (OSError, ValueError, AssertionError) as error:
                self._failure = f"{error}"
                return
            self._stop.wait(self._interval)

    def peak(self, role: str | None = None) -> int:
        """The largest number of backends in one sample: of a role, or of all."""
        return max((sum(by.values()) if role is None else by.get(role, 0) for _, by in self.samples), default=0)
