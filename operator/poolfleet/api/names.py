"""Every name that more than one part of Poolfleet, or a user, relies on. Standard library only."""

import hashlib
from typing import Final

GROUP: Final = "poolfleet.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
POOL_KIND: Final = "PgPool"
POOL_PLURAL: Final = "pgpools"
SERVER_KIND: Final = "PgServer"
SERVER_PLURAL: Final = "pgservers"

# Field managers: one per kind of writer (facts/kopf.md E.3).
FIELD_MANAGER: Final = "poolfleet"
STATUS_FIELD_MANAGER: Final = "poolfleet-status"
LEDGER_FIELD_MANAGER: Final = "poolfleet-ledger"
ROTATION_FIELD_MANAGER: Final = "poolfleet-rotation"  # of Secrets that a rotation writes

# Labels. The operator watches children by MANAGED_BY and Secrets by WATCH: kopf takes one selector per kind,
# so the operator's own Secrets carry WATCH as well.
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "poolfleet"
LABEL_POOL: Final = f"{GROUP}/pool"
LABEL_WATCH: Final = f"{GROUP}/watch"
LABEL_MANAGED: Final = f"{GROUP}/managed"  # on a Secret, "true": a rotation may write it

# Annotations.
DIRECTIVE: Final = f"{GROUP}/directive"  # on a pod: the one message to its agent
SERVER_UID: Final = f"{GROUP}/server"  # on the pod template: the PgServer's UID; another server means other pods
APPLIED_HASH: Final = f"{GROUP}/applied-hash"  # on a child: hash of what the operator last applied
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"  # on a pod: a scale-down takes the cheapest first
ROLLED: Final = f"{GROUP}/rolled"  # on a Deployment: what its pod template was made of (JSON)
ROTATE: Final = f"{GROUP}/rotate"  # on a PgPool: any new value rotates what has a `rotation` at once
ROTATED: Final = f"{GROUP}/rotated"  # on a Secret: its last rotation (JSON, plan/rotation.py)
NEXT: Final = f"{GROUP}/next"  # on the Secret of a rotation under way: whose it is (JSON, plan/rotation.py)
STAGED: Final = f"{GROUP}/staged"  # on x-config: Secrets whose next password it holds already, so do not load it yet
TURN: Final = f"{GROUP}/turn"  # on x-config and the pod template: counts changes of the roles on the server

# The pod.
AGENT_CONTAINER: Final = "agent"
PGBOUNCER_CONTAINER: Final = "pgbouncer"
PGBOUNCER_PORT: Final = 6432
AGENT_PORT: Final = 9127
RUN_DIR: Final = "/run/pgbouncer"  # emptyDir (memory) shared by both containers: socket, live files, durable state
CONFIG_DIR: Final = "/etc/poolfleet/config"  # mounted Secret x-config
POD_DIR: Final = "/etc/poolfleet/pod"  # downward API: files `directive`, `server`, `uid`
INI_FILE: Final = "pgbouncer.ini"
USERLIST_FILE: Final = "userlist.txt"
SERVER_CA_FILE: Final = "server-ca.crt"
SERVER_CERT_FILE: Final = "server-client.crt"  # PgBouncer's own certificate towards the server, and its key
SERVER_KEY_FILE: Final = "server-client.key"
CLIENT_CERT_FILE: Final = "client-tls.crt"  # what PgBouncer shows to clients, and its key
CLIENT_KEY_FILE: Final = "client-tls.key"
CLIENT_CA_FILE: Final = "client-ca.crt"  # whose certificates clients must show
KEY_FILE: Final = "key"  # in x-config: the HMAC key of the pool, hex
LIMITS_FILE: Final = "limits.json"  # in x-config: {"maxGrant": n}: no directive may grant one database more
DRAIN_TOKEN_HEADER: Final = "X-Poolfleet-Token"

# Timing of the budget protocol, in seconds (design section 3; measured in facts/pgbouncer.md 10 and facts/ledger.md).
LINGER_SECONDS: Final = 0.6
CLIENT_CHECK_MILLISECONDS: Final = 500


def config_secret(pool: str) -> str:
    """Name of the Secret with the PgBouncer configuration of pool `pool`."""
    return f"{pool}-config"


def binding_secret(pool: str, user: str | None = None) -> str:
    """Name of the Service Binding Secret of pool `pool`: of its first user, or of the named further user."""
    return f"{pool}-binding" if user is None else f"{pool}-binding-{user}"


def next_secret(name: str) -> str:
    """Name of the Secret that holds the next login while Secret `name` is being rotated."""
    if len(name) <= 248:
        return f"{name}-next"
    return f"{name[:230]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}-next"
