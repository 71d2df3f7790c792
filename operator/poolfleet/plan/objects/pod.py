"""The pod template: the agent as a native sidecar beside PgBouncer (design section 4).

It changes only for what a reload cannot do. Users, passwords, databases, grants, replicas and reloadable settings are
in the Secret x-config or in directives; nothing of them may come in here.
"""

from typing import Any, Final

from poolfleet.api import names
from poolfleet.plan.objects.meta import Manifest, Owner, labels, selector
from poolfleet.plan.rollout import Rolled

PROPAGATION_SECONDS: Final = 5  # that the agent waits in preStop until no new client is sent (facts/pgbouncer.md 3)
STOP_SECONDS: Final = 15  # for the last transactions after the drain (agent/drain.py), and for both containers to end

SHARED_PROCESSES: Final = 2
"""The first revision of the template whose containers see each other's processes."""

STARTUP_FAILURES: Final = (
    86400  # a day at one per second: a short wait would restart a gated agent (facts/ledger.md 22)
)

RESTART_PARAMETERS: Final = f"{names.GROUP}/restart-parameters"
"""Annotation of the pod template: hash of the settings that PgBouncer reads only when it starts."""

# Requests are what an idle pod takes. Limits: PgBouncer 1.26 takes 37 MB with 10,000 idle clients (facts/pgbouncer.md
# 5), and 8 KiB more for each whose data is in flight; the rest is room for prepared statements and for tmpfs files.
AGENT_RESOURCES: Final = {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": "128Mi"}}
PGBOUNCER_RESOURCES: Final = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "512Mi"}}
RUN_SIZE: Final = "32Mi"

_RESTRICTED: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_AGENT_PORT_NAME: Final = "agent"


def grace_seconds(drain_seconds: int) -> int:
    """terminationGracePeriodSeconds for a drain of at most `drain_seconds`."""
    return drain_seconds + PROPAGATION_SECONDS + STOP_SECONDS


def pod_template(
    owner: Owner,
    rolled: Rolled,
    *,
    config_secret: str,
    server_uid: str,
    drain_seconds: int,
    drain_token: str,
    restart_parameters: str,
    turn: int = 0,
) -> Manifest:
    """The operator's pod template (metadata and spec), before the user's fields are laid over it.

    `drain_token` is wire.drain_token(key); `restart_parameters` the hash of the restart-only settings, "" for none;
    `turn` counts the changes of the roles on the server.
    """
    annotations = {names.SERVER_UID: server_uid}
    if turn:
        annotations[names.TURN] = str(turn)
    if restart_parameters:
        annotations[RESTART_PARAMETERS] = restart_parameters
    security: Manifest = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if rolled.run_as_user is not None:
        # One uid for both containers: it is what PgBouncer's admin console asks of its socket's peer.
        security |= {"runAsUser": rolled.run_as_user, "fsGroup": rolled.run_as_user}
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds(drain_seconds),
        "securityContext": security,
        "topologySpreadConstraints": [
            _spread(owner, "kubernetes.io/hostname"),
            _spread(owner, "topology.kubernetes.io/zone"),
        ],
        "initContainers": [_agent(rolled, drain_seconds)],
        "containers": [_pgbouncer(rolled, drain_token)],
        "volumes": _volumes(config_secret),
    }
    if rolled.revision >= SHARED_PROCESSES:
        spec["shareProcessNamespace"] = True  # the agent reads PgBouncer's CPU time from /proc
    if rolled.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in rolled.image_pull_secrets]
    return {"metadata": {"labels": labels(owner), "annotations": annotations}, "spec": spec}


def _spread(owner: Owner, topology_key: str) -> Manifest:
    return {
        "topologyKey": topology_key,
        "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(owner)},
        "matchLabelKeys": ["pod-template-hash"],
    }


def _http(path: str, **more: Any) -> Manifest:
    return {"httpGet": {"path": path, "port": names.AGENT_PORT, "scheme": "HTTP", **more}}


def _port(name: str, number: int) -> Manifest:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _agent(rolled: Rolled, drain_seconds: int) -> Manifest:
    return {
        "name": names.AGENT_CONTAINER,
        "image": rolled.agent_image,
        "imagePullPolicy": rolled.image_pull_policy,
        "command": ["python3", "-m", "poolfleet", "agent"],
        "restartPolicy": "Always",  # a native sidecar: starts before PgBouncer and is stopped after it
        "env": [{"name": "POOLFLEET_DRAIN_SECONDS", "value": str(drain_seconds)}],
        "ports": [_port(_AGENT_PORT_NAME, names.AGENT_PORT)],
        # The gate: PgBouncer is not started before the first grant is in its file.
        "startupProbe": {
            **_http("/startupz"),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": STARTUP_FAILURES,
        },
        "readinessProbe": {**_http("/readyz"), "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 3},
        "resources": AGENT_RESOURCES,
        "securityContext": _RESTRICTED,
        "volumeMounts": [
            {"mountPath": names.RUN_DIR, "name": "run"},
            {"mountPath": names.CONFIG_DIR, "name": "config", "readOnly": True},
            {"mountPath": names.POD_DIR, "name": "pod", "readOnly": True},
        ],
    }


def _pgbouncer(rolled: Rolled, drain_token: str) -> Manifest:
    headers = [{"name": names.DRAIN_TOKEN_HEADER, "value": drain_token}]
    return {
        "name": names.PGBOUNCER_CONTAINER,
        "image": rolled.pgbouncer_image,
        "imagePullPolicy": rolled.image_pull_policy,
        "command": ["pgbouncer", f"{names.RUN_DIR}/{names.INI_FILE}"],
        "ports": [_port("postgres", names.PGBOUNCER_PORT)],
        # Answered when the clients are gone. No liveness probe: it would fire on a draining PgBouncer.
        "lifecycle": {"preStop": _http("/drain", httpHeaders=headers)},
        "resources": PGBOUNCER_RESOURCES,
        "securityContext": _RESTRICTED,
        "volumeMounts": [{"mountPath": names.RUN_DIR, "name": "run"}],
    }


def _volumes(config_secret: str) -> list[Manifest]:
    fields = {
        "directive": f"metadata.annotations['{names.DIRECTIVE}']",
        "server": f"metadata.annotations['{names.SERVER_UID}']",
        "uid": "metadata.uid",
    }
    items = [{"path": path, "fieldRef": {"fieldPath": field}} for path, field in fields.items()]
    return [
        {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": RUN_SIZE}},
        {"name": "config", "secret": {"secretName": config_secret, "defaultMode": 0o440}},
        {"name": "pod", "downwardAPI": {"defaultMode": 0o440, "items": items}},
    ]
