"""What e2e tests, the demo and the bench do with the kind cluster, in words. Standard library only.

from tests.e2e import kit

kubectl = kit.Kubectl()
postgres = kit.Postgres(kubectl)
clients = kit.Clients(kubectl, "demo").ensure()
pool = kit.Pool(kubectl, "demo", "shop")
"""

from tests.e2e.clients import Clients, Running
from tests.e2e.cluster import (
    CONTEXT,
    ROOT,
    SYSTEM_NAMESPACE,
    Kubectl,
    KubectlError,
    Manifest,
    await_until,
    basic_auth,
    operator_image,
)
from tests.e2e.database import NO_CONNECTION_LEFT, Login, Postgres, Sampler, Superuser, ident, quoted
from tests.e2e.pools import Pool, Target, bounds, ledger, server_status

__all__ = [
    "CONTEXT",
    "NO_CONNECTION_LEFT",
    "ROOT",
    "SYSTEM_NAMESPACE",
    "Clients",
    "Kubectl",
    "KubectlError",
    "Login",
    "Manifest",
    "Pool",
    "Postgres",
    "Running",
    "Sampler",
    "Superuser",
    "Target",
    "await_until",
    "basic_auth",
    "bounds",
    "ident",
    "ledger",
    "operator_image",
    "quoted",
    "server_status",
]
