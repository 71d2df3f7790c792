"""A pod without Kubernetes: agent, PgBouncer and the folders that the kubelet would fill, for tests of the agent."""

import contextlib
import json
import secrets
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg

from poolfleet.api import names, wire
from poolfleet.pgbouncer.fill import databases
from poolfleet.pgbouncer.render import DatabaseLine, Settings, render_ini, render_userlist
from tests.integration.pgbouncer_fixtures import Agent, PgBouncer, Postgres, free_port, publish, wait_until

SERVER = "server-uid"
POD = "pod-uid"
USER, PASSWORD = "app", 'app\'s "word" ;#'


class Pod:
    """Both containers of one pod. `configure` and `direct` are what the operator would do."""

    def __init__(self, folder: Path, pg: Postgres, address: str = "", port: int = 0) -> None:
        self.pg = pg
        self.address = address  # the only one that PgBouncer listens on, "" for all: pods of a pool have one port
        self.run = folder / "run"
        self.run.mkdir(parents=True)
        self.config_dir, self.pod_dir = folder / "config", folder / "pod"
        self.port = port or free_port()
        self.key = secrets.token_bytes(32)
        self.files: dict[str, bytes] = {}
        self.rev = 0
        self.directive = b""
        self.more: dict[str, Any] = {}
        self.bouncer = PgBouncer(self.run, self.port)
        self.agent = Agent(
            self.run,
            self.config_dir,
            self.pod_dir,
            {"POOLFLEET_PGBOUNCER_PORT": str(self.port), "POOLFLEET_PROPAGATION_SECONDS": "0.5"},
        )
        self._publish_pod()

    # -- as the operator and the kubelet ------------------------------------------------------------------------------

    def line(self, name: str = "shop", **changes: Any) -> DatabaseLine:
        values: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.pg.port,
            "dbname": "shop",
            "user": "shop",
            "password": "shop",
        }
        return DatabaseLine(name, **(values | changes))

    def config(
        self,
        lines: Sequence[DatabaseLine] | None = None,
        users: Mapping[str, str] | None = None,
        ini: str | None = None,
        max_grant: int = 100,
        **parameters: int | str,
    ) -> dict[str, bytes]:
        settings = Settings(
            max_client_conn=500, tls_mode="disable", parameters=parameters, run_dir=str(self.run), port=self.port
        )
        text = ini or render_ini([self.line()] if lines is None else lines, settings)
        if self.address:
            text = text.replace("listen_addr = *\n", f"listen_addr = {self.address}\n")
        return {
            names.INI_FILE: text.encode(),
            names.USERLIST_FILE: render_userlist(users or {USER: PASSWORD}).encode(),
            names.KEY_FILE: self.key.hex().encode(),
            names.LIMITS_FILE: json.dumps({"maxGrant": max_grant}).encode(),
        }

    def configure(self, files: Mapping[str, bytes]) -> None:
        """Mount a version of the Secret x-config."""
        self.files = dict(files)
        publish(self.config_dir, self.files)

    def direct(
        self,
        granted: Mapping[str, int] | None = None,
        /,
        rev: int | None = None,
        share: Mapping[str, int] | None = None,
        **more: int,
    ) -> int:
        """Annotate the pod with a directive for the newest mounted configuration; return its revision."""
        self.annotate(self.order({**(granted or {}), **more}, rev, share))
        return self.rev

    def order(
        self,
        grant: Mapping[str, int],
        rev: int | None = None,
        share: Mapping[str, int] | None = None,
        config: str = "",
        **more: Any,
    ) -> bytes:
        """The signed text of a directive, of the next revision, for the newest mounted configuration or `config`;
        `more` are further members of it, which stay for later ones."""
        self.rev = self.rev + 1 if rev is None else rev
        self.more |= more
        config = config or wire.config_hash(self.files)
        directive = wire.Directive(SERVER, POD, self.rev, config, grant, share or dict(grant), **self.more)
        return wire.sign(directive.to_message(), self.key).encode()

    def post(self, text: bytes) -> tuple[int, str]:
        """POST a directive; status and body of the answer."""
        return self.get("/directive", body=text)

    def told(self, more: Mapping[str, Any] | None = None, /, **grant: int) -> wire.AgentState:
        """POST the next directive, `more` as for `order`; the state that answers it, its MAC verified."""
        status, body = self.post(self.order(grant, **(more or {})))
        assert status == 200, body
        return wire.AgentState.from_message(wire.verify(body, self.key))

    def annotate(self, text: bytes) -> None:
        self.directive = text
        self._publish_pod()

    def _publish_pod(self) -> None:
        publish(self.pod_dir, {"uid": POD.encode(), "server": SERVER.encode(), "directive": self.directive})

    # -- as everybody else --------------------------------------------------------------------------------------------

    def get(
        self, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None, method: str | None = None
    ) -> tuple[int, str]:
        """Status and body of a request to the agent, a POST if it has a body; (0, reason) while nothing listens."""
        url = f"http://127.0.0.1:{self.agent.port}{path}"
        request = urllib.request.Request(url, body, dict(headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=40) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def state(self, after: int | None = None, wait: str = "25s") -> wire.AgentState:
        """GET /state, its MAC verified."""
        status, body = self.get("/state" if after is None else f"/state?after={after}&wait={wait}")
        assert status == 200, body
        return wire.AgentState.from_message(wire.verify(body, self.key))

    def started(self) -> bool:
        return self.get("/startupz")[0] == 200

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def loaded(self, rev: int, **grant: int) -> bool:
        """Revision `rev` is applied and these limits are loaded."""
        state = self.state()
        return state.rev == rev and {name: d.loaded for name, d in state.databases.items()} == grant

    def up(self, code: str = "", **grant: int) -> None:
        """From nothing to a running pod with its first grant loaded; `code` runs in the agent's process before."""
        if not self.files:
            self.configure(self.config())
        rev = self.direct(grant)
        self.agent.start(code)
        wait_until("the gate opens", self.started)
        self.bouncer.start()
        wait_until("the grant is loaded", lambda: self.loaded(rev, **grant))

    def client(
        self, database: str = "shop", user: str = USER, password: str = PASSWORD, port: int = 0
    ) -> "psycopg.Connection[Any]":
        """A new client; `port` of 127.0.0.1 for one that does not come directly."""
        return psycopg.connect(
            host="127.0.0.1" if port else self.address or "127.0.0.1",
            port=port or self.port,
            user=user,
            password=password,
            dbname=database,
            autocommit=True,
            connect_timeout=15,
            sslmode="disable",
            prepare_threshold=None,
        )

    def drain(self) -> tuple[int, str]:
        """Call the preStop hook; status and body of its answer."""
        return self.get("/drain", {names.DRAIN_TOKEN_HEADER: wire.drain_token(self.key)})

    def show(self, command: str) -> list[dict[str, Any]]:
        """Rows of an admin command, over the Unix socket."""
        with psycopg.connect(
            host=str(self.run),
            port=self.port,
            user="pgbouncer",
            dbname="pgbouncer",
            autocommit=True,
            cursor_factory=psycopg.ClientCursor,
        ) as connection:
            cursor = connection.execute(command.encode())
            columns = [column.name for column in cursor.description or ()]
            return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]

    def setting(self, key: str) -> str:
        return str(next(row["value"] for row in self.show("SHOW CONFIG") if row["key"] == key))

    def limits(self) -> dict[str, tuple[int, int]]:
        """Database -> (pool_size, max_db_connections) as PgBouncer has them loaded."""
        rows = self.show("SHOW DATABASES")
        return {r["name"]: (r["pool_size"], r["max_connections"]) for r in rows if r["name"] != "pgbouncer"}

    def file_is_cold(self) -> bool:
        """The file that a restarted PgBouncer would find allows one connection per database."""
        text = (self.run / names.INI_FILE).read_text()
        databases_there = sum(" max_db_connections=" in line for line in text.splitlines())
        return (
            text.endswith("\nsyslog_ident = cold\n")
            and text.count(" pool_size=1 max_db_connections=1\n") == databases_there
            and databases_there <= len(databases(self.files[names.INI_FILE].decode()))
        )

    def stop(self) -> None:
        self.agent.stop()
        self.bouncer.stop()


class Drained:
    """The preStop hook of `pod`, called in a thread: what it was answered, and when (monotonic)."""

    def __init__(self, pod: Pod) -> None:
        self.status, self.text, self.at = 0, "", 0.0
        self._pod = pod
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        self.status, self.text = self._pod.drain()
        self.at = time.monotonic()

    @property
    def answered(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> tuple[int, str]:
        self._thread.join(seconds)
        assert self.answered
        return self.status, self.text


class Load:
    """Clients in threads that run short transactions over held connections and count what fails."""

    def __init__(
        self,
        pod: Pod,
        clients: int,
        query: str = "SELECT pg_sleep(0.05)",
        database: str = "shop",
        pause: float = 0.0,
    ) -> None:
        self.served = 0
        self.errors: list[str] = []
        self._ending = threading.Event()
        self._pod, self._query, self._database, self._pause = pod, query, database, pause
        self._threads = [threading.Thread(target=self._client) for _ in range(clients)]

    def _client(self) -> None:
        try:
            with self._pod.client(self._database) as connection:
                while not self._ending.wait(self._pause):
                    connection.execute(self._query.encode())
                    self.served += 1
        except psycopg.Error as error:
            self.errors.append(str(error))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()


class Service:
    """A port in front of pods, as a Service is: each connection goes to `to` (address, port), as it is then."""

    def __init__(self) -> None:
        self.to: tuple[str, int] = ("", 0)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                client, _ = self._listener.accept()
                pod = socket.create_connection(self.to)
                for pair in ((client, pod), (pod, client)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # one side ended, maybe with a reset
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextlib.contextmanager
def pod(folder: Path, pg: Postgres, address: str = "", port: int = 0) -> Iterator[Pod]:
    """A pod for the duration of the block; nothing runs yet."""
    made = Pod(folder, pg, address, port)
    try:
        yield made
    finally:
        made.stop()
