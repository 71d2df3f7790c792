"""A real PgBouncer 1.26, a real PostgreSQL and a real agent as processes of this machine, for tests.

Both servers refuse to run as root, and the admin console wants the agent to have PgBouncer's uid. So both servers
run in user namespaces of their own that map the uid of the tests to `nobody`: each believes that it is unprivileged,
while files and the socket's peer credentials stay those of one user, and paths below a home folder stay readable.

Nothing here skips: what is missing fails with the command that mends it.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psycopg

REPOSITORY = Path(__file__).resolve().parents[2]
UNPRIVILEGED = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--"]
POSTGRES_BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql/none/bin"))


def pgbouncer_command() -> list[str]:
    """The command that runs PgBouncer 1.26 from its own root, with its own libraries."""
    root = Path(os.environ.get("POOLFLEET_CACHE", Path.home() / ".cache" / "poolfleet")) / "pgbouncer-root"
    binary = root / "usr/sbin/pgbouncer"
    if not binary.exists():
        subprocess.run([REPOSITORY / "hack/pgbouncer-root.sh"], check=True, stdout=subprocess.DEVNULL)
    loaders = sorted(root.glob("lib*/ld-linux-*.so*"))
    if not loaders or not binary.exists():
        raise RuntimeError(f"no PgBouncer in {root}: run hack/pgbouncer-root.sh as root")
    libraries = ":".join(str(folder) for folder in sorted(root.glob("usr/lib/*-linux-gnu")))
    return [*UNPRIVILEGED, str(loaders[0]), "--library-path", libraries, str(binary)]


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        s.bind(("::", 0))
        return int(s.getsockname()[1])


def wait_until(what: str, condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Poll `condition` until it is truthy; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


class Process:
    """A child process whose output goes to a file; ended by its pid."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as out:
            self.popen = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def running(self) -> bool:
        return self.popen.poll() is None

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send `sig` and wait until the process is gone."""
        if self.running():
            self.popen.send_signal(sig)
        try:
            self.popen.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Postgres:
    """The newest PostgreSQL here, in a folder of its own, on 127.0.0.1 only; superuser `postgres`, no password."""

    def __init__(self, folder: Path, max_connections: int = 100) -> None:
        if not (POSTGRES_BIN / "initdb").exists():
            raise RuntimeError("no PostgreSQL here: hack/integration-needs.sh installs it")
        if shutil.which("unshare") is None:
            raise RuntimeError("no unshare here: apt-get install util-linux")
        self.folder = folder
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "data"
        options = ["--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run(
            [*UNPRIVILEGED, str(POSTGRES_BIN / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (data / "pg_hba.conf").write_text(
            "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": str(max_connections),
            "fsync": "off",
            "shared_buffers": "16MB",
            "log_connections": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.process = Process(
            [*UNPRIVILEGED, str(POSTGRES_BIN / "postgres"), "-D", str(data), *options], folder / "postgres.log"
        )
        wait_until("PostgreSQL answers", self._answers, 20)

    def _answers(self) -> bool:
        if not self.process.running():
            raise RuntimeError(f"PostgreSQL ended: {self.process.text()}")
        with contextlib.suppress(psycopg.OperationalError):
            self.query("SELECT 1")
            return True
        return False

    def query(self, sql: str, dbname: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the superuser; return its rows."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname=dbname, autocommit=True, connect_timeout=5
        ) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def sessions(self, role: str) -> int:
        """How many sessions PostgreSQL has for `role` right now."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", (role,)).fetchone()
            assert row is not None
            return int(row[0])

    def stop(self) -> None:
        self.process.kill(signal.SIGQUIT)


@contextlib.contextmanager
def postgres(folder: Path, max_connections: int = 100) -> Iterator[Postgres]:
    """A PostgreSQL for the duration of the block."""
    server = Postgres(folder, max_connections)
    try:
        yield server
    finally:
        server.stop()


class PgBouncer:
    """PgBouncer on the folder `run`, started and ended as the kubelet would: it reads `run`/pgbouncer.ini."""

    def __init__(self, run: Path, port: int) -> None:
        self.run = run
        self.port = port
        self.process: Process | None = None

    def start(self) -> None:
        assert self.process is None or not self.process.running()
        command = [*pgbouncer_command(), str(self.run / "pgbouncer.ini")]
        self.process = Process(command, self.run.parent / "pgbouncer.log")

    def kill(self, sig: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.kill(sig)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill(signal.SIGQUIT)

    def text(self) -> str:
        return self.process.text() if self.process else ""


class Agent:
    """The agent as its own process, `python -m poolfleet agent`-like, on folders of the test."""

    def __init__(self, run: Path, config: Path, pod: Path, env: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.log = run.parent / "agent.log"
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY / "operator"),
            "POOLFLEET_RUN_DIR": str(run),
            "POOLFLEET_CONFIG_DIR": str(config),
            "POOLFLEET_POD_DIR": str(pod),
            "POOLFLEET_AGENT_PORT": str(self.port),
            **(env or {}),
        }
        self.process: Process | None = None

    def start(self, code: str = "") -> None:
        """Start it; `code` runs in its process before, to let it fail where a test wants."""
        assert not self.running()
        code += "\nimport sys; from poolfleet.agent.main import main; sys.exit(main([]))"
        self.process = Process([sys.executable, "-c", code], self.log, self.env)

    def running(self) -> bool:
        return self.process is not None and self.process.running()

    def kill(self, sig: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.kill(sig)

    def stop(self) -> None:
        if self.process is not None and self.process.running():
            self.process.kill(signal.SIGKILL)

    def rss_mib(self) -> float:
        """Resident memory of the agent in MiB."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def text(self) -> str:
        return self.process.text() if self.process else ""


def publish(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` into `folder` as the kubelet does: a new data folder, then a symlink swapped in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"..{time.time_ns()}"
    data.mkdir()
    for name, content in files.items():
        (data / name).write_bytes(content)
    old = folder / "..data"
    before = old.resolve() if old.is_symlink() else None
    new = folder / "..data_tmp"
    new.symlink_to(data.name)
    new.rename(old)
    for name in files:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(f"..data/{name}")
    for path in folder.iterdir():
        if not path.name.startswith("..") and path.name not in files:
            path.unlink()
    if before is not None:
        shutil.rmtree(before)
