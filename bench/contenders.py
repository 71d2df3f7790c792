"""Who is compared: plain Deployments of PgBouncer, sized as peers size them, and a PgPool.

How the peers size theirs was read in their sources (facts/peers.md 2). They get Poolfleet's PgBouncer image, the same
PostgreSQL and the same clients; what differs is the sizes, and what Kubernetes does with a Deployment by default.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from poolfleet.api import names
from poolfleet.pgbouncer.render import render_userlist
from tests.e2e import kit

BUDGET: Final = 60
"""Connections that each contender is told it may use: Zalando's default of maxDBConnections."""
REPLICAS: Final = 3
FILES: Final = "/etc/pgbouncer"
CLIENTS_PER_POD: Final = 10000
POD_UID: Final = 65532


@dataclass(frozen=True)
class Ground:
    """What all contenders stand on."""

    kubectl: kit.Kubectl
    postgres: kit.Postgres  # in the namespace of the contenders
    image: str  # of PgBouncer
    password: str  # of every user


@dataclass(frozen=True)
class Workload:
    """Who logs in to what: every user uses each database."""

    databases: tuple[str, ...]
    users: tuple[str, ...]

    @property
    def title(self) -> str:
        """Such as "1 database, 1 user"."""
        d, u = len(self.databases), len(self.users)
        return f"{d} database{'s' * (d > 1)}, {u} user{'s' * (u > 1)}"


class Contender(Protocol):
    """What clients reach by the Service of its name: a fleet of PgBouncer pods, or PostgreSQL itself."""

    name: str
    title: str
    port: int

    def start(self) -> None:
        """Its pods, all ready."""

    def scale(self, replicas: int) -> None:
        """Ask for so many pods, and do not wait for them."""

    def stop(self) -> None:
        """Remove it; returns when its pods are gone."""


def restart(kubectl: kit.Kubectl, contender: Contender, namespace: str) -> None:
    """`kubectl rollout restart`, without waiting."""
    kubectl.run("-n", namespace, "rollout", "restart", f"deployment/{contender.name}")


def delete_pod(kubectl: kit.Kubectl, contender: Contender, namespace: str) -> None:
    """Delete the oldest pod that runs and is not going already, without waiting."""
    where = ("-n", namespace, "pods", "-l", f"{names.LABEL_NAME}=pgbouncer,{names.LABEL_INSTANCE}={contender.name}")
    pods = kubectl.get_json(*where, "--sort-by=.metadata.creationTimestamp")["items"]
    staying = [pod["metadata"]["name"] for pod in pods if running(pod)]
    assert staying, f"{contender.name} has no pod that could be deleted"
    kubectl.run("-n", namespace, "delete", "pod", staying[0], "--wait=false")


def pgbouncer_image(kubectl: kit.Kubectl) -> str:
    """The image that the operator gives its pools."""
    flag = "--pgbouncer-image="
    operator = kubectl.get_json("-n", kit.SYSTEM_NAMESPACE, "deployment", "poolfleet")
    arguments = operator["spec"]["template"]["spec"]["containers"][0]["args"]
    return next(str(word).removeprefix(flag) for word in arguments if str(word).startswith(flag))


def running(pod: kit.Manifest) -> bool:
    """Whether a pod runs and nobody has deleted it yet."""
    return pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]


# The peers


@dataclass(frozen=True)
class Sizes:
    """Of one PgBouncer, in connections: per user and database, in reserve for the same, per database (0: unlimited)."""

    default_pool_size: int
    reserve_pool_size: int = 0
    max_db_connections: int = 0

    @property
    def suffix(self) -> str:
        return f"{self.default_pool_size}-{self.reserve_pool_size}-{self.max_db_connections}"


def pass_through(replicas: int) -> Sizes:
    """Nothing computed: PgBouncer's own default of 20 in every pod, however many there are (CloudNativePG, Crunchy PGO,
    Percona). With one user, one database and three pods that is just the budget, at rest."""
    return Sizes(default_pool_size=20)


def zalando(replicas: int) -> Sizes:
    """maxDBConnections / numberOfInstances per pod, half of it as pool, a quarter in reserve: all rounded down."""
    most = BUDGET // replicas
    return Sizes(default_pool_size=most // 2, reserve_pool_size=most // 2 // 2, max_db_connections=most)


def ini(host: str, sizes: Sizes, more: dict[str, str]) -> str:
    """pgbouncer.ini with all databases of `host`; what is not set has PgBouncer's default."""
    settings = {
        "listen_addr": "*",
        "listen_port": str(names.PGBOUNCER_PORT),
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": f"{FILES}/{names.USERLIST_FILE}",
        "pool_mode": "transaction",
        "max_client_conn": str(CLIENTS_PER_POD),
        "default_pool_size": str(sizes.default_pool_size),
        "reserve_pool_size": str(sizes.reserve_pool_size),
        "max_db_connections": str(sizes.max_db_connections),
        "log_connections": "0",
        "log_disconnections": "0",
        **more,
    }
    lines = [f"{key} = {value}" for key, value in settings.items()]
    return "\n".join(["[databases]", f"* = host={host} port=5432", "", "[pgbouncer]", *lines, ""])


class Peer:
    """A Deployment with Kubernetes' default rolling update (25 % more, 25 % fewer) and a Service."""

    port = names.PGBOUNCER_PORT

    def __init__(
        self,
        ground: Ground,
        workload: Workload,
        name: str,
        title: str,
        sizes: Callable[[int], Sizes],
        more: dict[str, str] | None = None,
        replicas: int = REPLICAS,
    ) -> None:
        self.name, self.title, self._replicas = name, title, replicas
        self._ground, self._workload, self._sizes, self._more = ground, workload, sizes, more or {}
        self._namespace = ground.postgres.namespace

    def start(self) -> None:
        kubectl = self._ground.kubectl
        kubectl.apply(service(self._namespace, self.name))
        self.scale(self._replicas)
        rollout = ("-n", self._namespace, "rollout", "status", f"deployment/{self.name}", "--timeout=90s")
        kubectl.run(*rollout, timeout=100)

    def scale(self, replicas: int) -> None:
        """As the operators do: other sizes are another pod template, so Zalando's division also rolls the pods."""
        sizes = self._sizes(replicas)
        userlist = render_userlist(dict.fromkeys(self._workload.users, self._ground.password))
        files = {names.INI_FILE: ini(self._ground.postgres.host, sizes, self._more), names.USERLIST_FILE: userlist}
        secret = f"{self.name}-{sizes.suffix}"
        self._ground.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": secret, "namespace": self._namespace, "labels": {names.LABEL_INSTANCE: self.name}},
                "stringData": files,
            },
            deployment(self._namespace, self.name, self._ground.image, replicas, secret),
        )

    def stop(self) -> None:
        kubectl, mine = self._ground.kubectl, ("-l", f"{names.LABEL_INSTANCE}={self.name}")
        kubectl.run("-n", self._namespace, "delete", "deployment,service,secret", *mine, "--timeout=60s")
        kubectl.run("-n", self._namespace, "delete", "pods", *mine, "--grace-period=1", "--timeout=60s")


def service(namespace: str, name: str) -> kit.Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": {names.LABEL_INSTANCE: name}},
        "spec": {
            "selector": {names.LABEL_INSTANCE: name},
            "ports": [{"port": names.PGBOUNCER_PORT, "targetPort": names.PGBOUNCER_PORT}],
        },
    }


def deployment(namespace: str, name: str, image: str, replicas: int, secret: str) -> kit.Manifest:
    """A Deployment whose pods read their files from `secret`; strategy and grace period are left to Kubernetes."""
    mine = {names.LABEL_NAME: "pgbouncer", names.LABEL_INSTANCE: name}
    container = {
        "name": "pgbouncer",
        "image": image,
        "command": ["pgbouncer", f"{FILES}/{names.INI_FILE}"],
        "ports": [{"containerPort": names.PGBOUNCER_PORT}],
        "readinessProbe": {"tcpSocket": {"port": names.PGBOUNCER_PORT}},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "files", "mountPath": FILES, "readOnly": True}],
    }
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": POD_UID,
            "fsGroup": POD_UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "files", "secret": {"secretName": secret, "defaultMode": 0o440}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": mine},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {names.LABEL_INSTANCE: name}},
            "template": {"metadata": {"labels": mine}, "spec": pod},
        },
    }


# Poolfleet


class Fleet:
    """A PgPool with an inline PgServer whose budget is BUDGET, and with these fields of the spec besides."""

    name, title, port = "poolfleet", "Poolfleet", names.PGBOUNCER_PORT
    MAX_CONNECTIONS = 100
    HEADROOM = MAX_CONNECTIONS - 3 - 2 - BUDGET  # 3 are reserved for superusers, 2 are the operator's own

    def __init__(self, ground: Ground, workload: Workload, **fields: Any) -> None:
        self._ground, self._workload, self._fields = ground, workload, {"replicas": REPLICAS, **fields}
        self._namespace = ground.postgres.namespace
        self.pool = kit.Pool(ground.kubectl, self._namespace, self.name)

    def start(self) -> None:
        kubectl, password = self._ground.kubectl, self._ground.password
        kubectl.apply(*(kit.basic_auth(self._namespace, self.secret(u), u, password) for u in self._workload.users))
        self.pool.apply(self.spec())
        self.pool.ready(90)
        rollout = ("-n", self._namespace, "rollout", "status", f"deployment/{self.name}", "--timeout=90s")
        kubectl.run(*rollout, timeout=100)
        budget = kit.server_status(kubectl, self._namespace, self.name).get("budget")
        assert budget == BUDGET, f"the PgServer's budget is {budget}, not {BUDGET}"

    def spec(self) -> kit.Manifest:
        """The PgPool's spec."""
        server = {
            "host": self._ground.postgres.host,
            "maxConnections": self.MAX_CONNECTIONS,
            "headroom": self.HEADROOM,
            "adminSecretRef": {"name": kit.Target.ADMIN_SECRET},
        }
        return {
            "server": server,
            "databases": [{"name": database} for database in self._workload.databases],
            "users": [{"secretRef": {"name": self.secret(user)}} for user in self._workload.users],
            **self._fields,
        }

    @staticmethod
    def secret(user: str) -> str:
        """Name of the Secret with a user's login."""
        return user.replace("_", "-")

    def scale(self, replicas: int) -> None:
        self._ground.kubectl.run("-n", self._namespace, "scale", f"pgpool/{self.name}", f"--replicas={replicas}")

    def stop(self) -> None:
        self.pool.delete()


# Nobody


class Direct:
    """PostgreSQL itself, without a pooler."""

    name, title, port = "postgres", "direct", 5432

    def start(self) -> None:
        """It runs already."""

    def scale(self, replicas: int) -> None:
        """There is one. Raises NotImplementedError."""
        raise NotImplementedError("PostgreSQL is not scaled")

    def stop(self) -> None:
        """It stays."""


def all_of(ground: Ground, workload: Workload) -> list[Contender]:
    """In the order in which they run."""
    # Zalando's template also sets how long a failed server login is remembered, in seconds
    more = {"server_login_retry": "5"}
    return [
        Peer(ground, workload, "pass-through", "pass-through 20", pass_through),
        Peer(ground, workload, "zalando", "Zalando's division", zalando, more),
        Fleet(ground, workload),
    ]
