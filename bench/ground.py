"""What the benchmarks of one pod stand on: a PgPool with one pod, and beside it the same PgBouncer started by hand."""

import base64
from dataclasses import dataclass
from typing import Any

from bench import proc
from poolfleet.api import names
from poolfleet.pgbouncer import fill
from tests.e2e import kit

NAMESPACE = "bench"
POOL = "bench"
BY_HAND = "by-hand"
PGBENCH = "pgbench"
CONNECTIONS = 10
"""Server connections of either PgBouncer: fewer than clients, so that both have to share them out."""
ROWS = 2  # scale of pgbench's tables, in 100,000 rows

Rows = list[dict[str, str | None]]


@dataclass(frozen=True)
class Ground:
    """Everything is Ready."""

    kubectl: kit.Kubectl
    target: kit.Target
    pod: str  # the pool's only pod
    hosts: dict[str, str]  # POOL and BY_HAND to the IP of their pod

    @classmethod
    def make(cls, kubectl: kit.Kubectl) -> "Ground":
        """Make the namespace `bench` anew with all that is needed; about 20 s."""
        postgres = kit.Postgres(kubectl).ensure()
        kubectl.delete_namespace(NAMESPACE)
        kubectl.namespace(NAMESPACE)
        target = kit.Target.make(postgres, NAMESPACE, "bench")
        pool = kit.Pool(kubectl, NAMESPACE, POOL)
        server = {"host": target.login.host, "maxConnections": CONNECTIONS, "headroom": 0}
        pool.apply(target.spec(server=server, replicas=1))
        image = kubectl.get_json("-n", postgres.namespace, "pod", "postgres-0")["spec"]["containers"][0]["image"]
        kubectl.apply(_sleeper(PGBENCH, image, user=999))
        pool.ready(90)
        (pod,) = pool.pods()
        kubectl.apply(*_by_hand(kubectl, target, pool, pod))
        for name in (PGBENCH, BY_HAND):
            kubectl.run("-n", NAMESPACE, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
        by_hand = kubectl.get_json("-n", NAMESPACE, "pod", BY_HAND)
        hosts = {POOL: pod["status"]["podIP"], BY_HAND: by_hand["status"]["podIP"]}
        ground = cls(kubectl, target, pod["metadata"]["name"], hosts)
        ground.pgbench(target.login.host, "-i", "-q", "-s", str(ROWS), port=target.login.port)
        return ground

    def drop(self) -> None:
        """Remove all of it."""
        kit.Pool(self.kubectl, NAMESPACE, POOL).delete()
        self.kubectl.delete_namespace(NAMESPACE)
        self.target.drop()

    def pgbench(self, host: str, *options: str, port: int = names.PGBOUNCER_PORT, timeout: float = 120) -> str:
        """Run pgbench from the pod of that name against `host`; what it says on both outputs."""
        login = self.target.login
        script = 'read -r PGPASSWORD; export PGPASSWORD; exec pgbench "$@" 2>&1'
        where = ("-h", host, "-p", str(port), "-U", login.user)
        command = ("bash", "-c", script, "pgbench", *where, *options, login.database)
        return self.kubectl.exec(NAMESPACE, PGBENCH, *command, stdin=f"{login.password}\n", timeout=timeout)

    def pgbouncer_cpu(self, name: str) -> float:
        """Seconds of CPU that the PgBouncer of the pool's pod (POOL) or of the pod BY_HAND has used."""
        pod = self.pod if name == POOL else BY_HAND
        container = names.PGBOUNCER_CONTAINER
        return proc.cpu_seconds(proc.read(self.kubectl, NAMESPACE, pod, container, proc.PGBOUNCER, "stat"))

    def differences(self) -> list[str]:
        """Settings and databases in which the two PgBouncers differ, the marker of the agent's file left out."""
        pool = kit.Pool(self.kubectl, NAMESPACE, POOL)
        found = []
        for what, key in (("CONFIG", "key"), ("DATABASES", "name")):
            ours, theirs = (by_key(pool.show_on(pod, what), key) for pod in (self.pod, BY_HAND))
            found += differences(ours, theirs)
        return found


def by_key(rows: Rows, key: str) -> dict[str, str]:
    """The rows of a SHOW command as "key.column" to value; counters of the moment are left out."""
    moving = {key, "current_connections", "current_client_connections"}
    return {f"{row[key]}.{column}": str(value) for row in rows for column, value in row.items() if column not in moving}


def differences(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Where two answers differ, in words; syslog_ident holds the agent's marker and is no difference."""
    return [
        f"{name}: {ours.get(name, 'absent')} / {theirs.get(name, 'absent')}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name) and name != "syslog_ident.value"
    ]


def _by_hand(
    kubectl: kit.Kubectl, target: kit.Target, pool: kit.Pool, pod: dict[str, Any]
) -> tuple[kit.Manifest, kit.Manifest]:
    """A Secret with the files that PgBouncer has loaded in `pod`, and a pod that starts it with them."""
    files = kubectl.secret(NAMESPACE, names.config_secret(POOL))
    ((_, loaded),) = pool.loaded().items()
    ini = fill.fill(files[names.INI_FILE], {name: size for name, (size, _) in loaded.items()}, BY_HAND)
    data = {names.INI_FILE: ini, names.USERLIST_FILE: files[names.USERLIST_FILE]}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": BY_HAND, "namespace": NAMESPACE},
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in data.items()},
    }
    (pgbouncer,) = pod["spec"]["containers"]
    (agent,) = pod["spec"]["initContainers"]
    plain = ("name", "image", "imagePullPolicy", "command", "resources", "securityContext")
    run = [{"name": "run", "mountPath": names.RUN_DIR}]
    copy = f"cp /files/* {names.RUN_DIR}/"
    files_too = [*run, {"name": "files", "mountPath": "/files"}]
    copier = {
        **{k: pgbouncer[k] for k in plain},
        "name": "copy",
        "command": ["sh", "-c", copy],
        "volumeMounts": files_too,
    }
    # It only sleeps, and is there to ask the admin console before the measurement; its resources make the pod's share
    # of the CPU the same as that of a pod with an agent. Called like the agent, so that the same command asks both.
    console = {**{k: agent[k] for k in plain}, "command": ["sleep", "infinity"], "volumeMounts": run}
    volumes = [v for v in pod["spec"]["volumes"] if v["name"] == "run"]
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
        "nodeName": pod["spec"]["nodeName"],
        "securityContext": pod["spec"]["securityContext"],
        "initContainers": [copier],
        "containers": [{**{k: pgbouncer[k] for k in plain}, "volumeMounts": run}, console],
        "volumes": [*volumes, {"name": "files", "secret": {"secretName": BY_HAND, "defaultMode": 0o440}}],
    }
    metadata = {"name": BY_HAND, "namespace": NAMESPACE}
    return secret, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _sleeper(name: str, image: str, user: int) -> kit.Manifest:
    container = {
        "name": name,
        "image": image,
        "command": ["sleep", "infinity"],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "runAsUser": user, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        },
    }
