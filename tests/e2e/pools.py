"""A PgPool as a test sees it, the database behind it, and the ledger of its server."""

import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from poolfleet.api import names
from tests.e2e.cluster import Kubectl, KubectlError, Manifest, await_until, basic_auth
from tests.e2e.database import Login, Postgres

CHILDREN = "deployments,replicasets,pods,services,secrets,poddisruptionbudgets,networkpolicies,pgservers"


@dataclass(frozen=True)
class Target:
    """A database of its own on the demo's PostgreSQL, with what a PgPool in `namespace` needs to use it."""

    postgres: Postgres
    namespace: str
    login: Login  # straight to PostgreSQL

    SECRET = "app"
    ADMIN_SECRET = "postgres-admin"

    @classmethod
    def make(cls, postgres: Postgres, namespace: str, role: str) -> "Target":
        """Role and database `role` anew, the Secret `app` with the login, and a copy of the Secret `postgres-admin`."""
        password = secrets.token_urlsafe(18)
        postgres.make(role, password)
        admin = postgres.kubectl.secret(postgres.namespace, cls.ADMIN_SECRET)
        postgres.kubectl.apply(
            basic_auth(namespace, cls.SECRET, role, password),
            basic_auth(namespace, cls.ADMIN_SECRET, admin["username"], admin["password"]),
        )
        return cls(postgres, namespace, Login(postgres.alias(namespace), 5432, role, password, role))

    def drop(self) -> None:
        """Drop database and role, and the server's other names."""
        self.postgres.drop(self.login.user, self.login.database)
        self.postgres.forget(self.namespace)

    def other_host(self, name: str) -> str:
        """One more name of the server, for a second PgServer: two with the same host are one server (SharedServer)."""
        return self.postgres.alias(f"{self.namespace}-{name}", of=self.namespace)

    def spec(self, **fields: Any) -> Manifest:
        """spec of a PgPool for this database with 40 connections and the given fields."""
        return {
            "server": {"host": self.login.host, "maxConnections": 40, "headroom": 0},
            "databases": [{"name": self.login.database}],
            "users": [{"secretRef": {"name": self.SECRET}}],
            **fields,
        }

    def through(self, pool: "Pool", host: str = "") -> Login:
        """The same login through the Service of `pool`, or through another host (the IP of a pod)."""
        where = host or f"{pool.name}.{pool.namespace}.svc"
        return Login(where, names.PGBOUNCER_PORT, self.login.user, self.login.password, self.login.database)


class Pool:
    """One PgPool."""

    def __init__(self, kubectl: Kubectl, namespace: str, name: str) -> None:
        self.kubectl = kubectl
        self.namespace = namespace
        self.name = name

    def apply(self, spec: Manifest) -> float:
        """`kubectl apply` of a PgPool with this spec; returns when that was begun, in seconds since the epoch."""
        begun = time.time()
        self.kubectl.apply(
            {
                "apiVersion": names.API_VERSION,
                "kind": names.POOL_KIND,
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": spec,
            }
        )
        return begun

    def patch(self, **spec: Any) -> float:
        """Merge these fields into the spec; returns when that was begun, in seconds since the epoch."""
        begun = time.time()
        self.kubectl.patch(self.namespace, f"pgpool/{self.name}", {"spec": spec})
        return begun

    def delete(self) -> None:
        """Delete the PgPool and wait until it and all its children are gone."""
        self.kubectl.run("-n", self.namespace, "delete", "pgpool", self.name, "--ignore-not-found", "--timeout=60s")
        await_until(lambda: not self.children(), 120, f"no child of PgPool {self.name} is left", interval=0.5)

    def get(self) -> Manifest:
        """The PgPool."""
        return self.kubectl.get_json("-n", self.namespace, "pgpool", self.name)

    def status(self) -> Manifest:
        """The PgPool's status."""
        return self.get().get("status") or {}

    def conditions(self) -> dict[str, Manifest]:
        """The PgPool's conditions by type."""
        return {condition["type"]: condition for condition in self.status().get("conditions") or ()}

    def ready(self, timeout: float = 60, since: float | None = None) -> float:
        """Wait for Ready=True of the newest spec; return the seconds since `since` (default: since the call)."""
        since = time.time() if since is None else since
        # a watch sees it at once; a condition of an older generation does not count for `kubectl wait`
        wait = ("-n", self.namespace, "wait", "--for=condition=Ready", f"pgpool/{self.name}", f"--timeout={timeout:g}s")
        try:
            self.kubectl.run(*wait, timeout=timeout + 10)
        except KubectlError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from error
        return time.time() - since

    def condition(self, type: str, status: str, reason: str, timeout: float = 20) -> str:
        """Wait until the condition says this of the newest spec; return its message."""

        def holds() -> str | None:
            body = self.get()
            for condition in (body.get("status") or {}).get("conditions") or ():
                fits = (condition["type"], condition["status"], condition["reason"]) == (type, status, reason)
                if fits and condition.get("observedGeneration") == body["metadata"]["generation"]:
                    return str(condition.get("message") or " ")
            return None

        try:
            return await_until(holds, timeout, f"condition {type}={status} with reason {reason}") or ""
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def describe(self) -> str:
        """Conditions and pods, one line each."""
        lines = [
            f"  {c['type']}={c['status']} {c['reason']}: {c.get('message', '')}" for c in self.conditions().values()
        ]
        lines += [f"  pod {pod['metadata']['name']}: {pod['status'].get('phase')}" for pod in self.pods(all=True)]
        return "\n".join(lines)

    def events(self) -> dict[str, str]:
        """Events about the PgPool: reason to the newest message."""
        about = f"regarding.kind={names.POOL_KIND},regarding.name={self.name}"
        where = ("-n", self.namespace, "events.v1.events.k8s.io", f"--field-selector={about}")
        items = self.kubectl.get_json(*where, "--sort-by=.metadata.creationTimestamp")["items"]
        return {event["reason"]: event.get("note", "") for event in items}

    def pods(self, all: bool = False) -> list[Manifest]:
        """The pods that are neither ended nor going, oldest first; `all` of them if wished."""
        where = ("-n", self.namespace, "pods", "-l", f"{names.LABEL_POOL}={self.name}")
        pods: list[Manifest] = self.kubectl.get_json(*where, "--sort-by=.metadata.creationTimestamp")["items"]
        return [
            pod
            for pod in pods
            if all
            or (
                "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") not in ("Succeeded", "Failed")
            )
        ]

    def uids(self) -> dict[str, str]:
        """UID of each pod by its name."""
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in self.pods()}

    def ips(self) -> dict[str, str]:
        """IP of each pod by its name."""
        return {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in self.pods()}

    def show(self, what: str) -> dict[str, list[dict[str, str | None]]]:
        """`SHOW what` on the admin console of each pod: rows by pod name."""
        return {name: self.show_on(name, what) for name in self.uids()}

    def show_on(self, pod: str, what: str) -> list[dict[str, str | None]]:
        """`SHOW what` on the admin console of one pod."""
        command = ("python3", "-m", "poolfleet", "admin", f"SHOW {what}")
        out = self.kubectl.exec(self.namespace, pod, *command, container=names.AGENT_CONTAINER)
        return [json.loads(line) for line in out.splitlines()]

    def loaded(self) -> dict[str, dict[str, tuple[int, int]]]:
        """What each PgBouncer has loaded: pod name to database to (pool_size, max_db_connections)."""
        return {
            pod: {
                str(row["name"]): (int(row["pool_size"] or 0), int(row["max_connections"] or 0))
                for row in rows
                if row["name"] != "pgbouncer"
            }
            for pod, rows in self.show("DATABASES").items()
        }

    def setting(self, name: str) -> set[str]:
        """The values of a setting in SHOW CONFIG over all pods."""
        return {str(row["value"]) for rows in self.show("CONFIG").values() for row in rows if row["key"] == name}

    def children(self) -> set[str]:
        """What carries the pool's label, as kind/name."""
        where = ("-n", self.namespace, CHILDREN, "-l", f"{names.LABEL_POOL}={self.name}")
        return {f"{item['kind']}/{item['metadata']['name']}" for item in self.kubectl.get_json(*where)["items"]}


def server_status(kubectl: Kubectl, namespace: str, name: str) -> Manifest:
    """The status of a PgServer; that of an inline server has its pool's name."""
    return kubectl.get_json("-n", namespace, "pgserver", name).get("status") or {}


def ledger(kubectl: Kubectl, namespace: str, name: str) -> Manifest:
    """status.ledger of a PgServer."""
    return server_status(kubectl, namespace, name).get("ledger") or {}


def bounds(kubectl: Kubectl, namespace: str, name: str) -> dict[tuple[str, str], int]:
    """The ledger's bounds by (pod name, database)."""
    entries = ledger(kubectl, namespace, name).get("entries") or ()
    return {(entry["podName"], entry["database"]): int(entry["bound"]) for entry in entries}
