"""Which PgPools may use which PgServer: those of its own namespace, and those that spec.allowedNamespaces names.

A pool that loses the permission keeps what it has, for taking connections away would end its clients' queries. What
tells such a pool from one that never had any is the PgServer's status: only the operator writes it, while every object
in the pool's own namespace, x-config and pods too, is whatever the pool's owner wants it to be.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import ValidationError

from poolfleet.api.network import LabelSelector
from poolfleet.api.pgserver import AllowedNamespaces

Body = Mapping[str, Any]
"""A live object as JSON."""


class Standing(Enum):
    """What a PgPool is to the PgServer that it names."""

    ALLOWED = "allowed"
    KEPT = "kept"  # not allowed any more, but it has connections
    REFUSED = "refused"  # neither: it gets nothing and is told nothing


def server_name(pool: Body) -> tuple[str, str]:
    """(namespace, name) of the PgServer of a PgPool's body: the one it refers to, or its own of the same name."""
    metadata = pool["metadata"]
    reference = (pool.get("spec") or {}).get("serverRef")
    if isinstance(reference, Mapping):
        return str(reference.get("namespace") or metadata["namespace"]), str(reference.get("name"))
    return str(metadata["namespace"]), str(metadata["name"])


def full_host(host: str, namespace: str) -> str:
    """`host` of a PgServer in `namespace` as it is understood in every namespace: a single label is a Service."""
    return host if "." in host or ":" in host else f"{host}.{namespace}.svc"


def standing(pool: Body, server: Body | None, labels: Mapping[str, str] | None) -> Standing:
    """What `pool` is to `server`, the PgServer that it names (None: there is none).

    `labels` are those of the pool's Namespace; None if the operator does not know them.
    """
    namespace = pool["metadata"]["namespace"]
    if server_name(pool)[0] == namespace:
        return Standing.ALLOWED
    if server is None:
        return Standing.REFUSED
    allowed = _allowed(server)
    if allowed.from_ == "All":
        return Standing.ALLOWED
    if allowed.selector is not None and labels is not None and selects(allowed.selector, labels):
        return Standing.ALLOWED
    return Standing.KEPT if has_connections(pool, server) else Standing.REFUSED


def has_connections(pool: Body, server: Body) -> bool:
    """Whether `server` says that this very pool, no namesake of it, was admitted or still has connections."""
    line = line_of(pool, server)
    return bool(line.get("admitted") or line.get("granted"))


def line_of(pool: Body, server: Body) -> Body:
    """What status.pools of `server` says of this very pool; empty if nothing."""
    metadata = pool["metadata"]
    wanted = (metadata["namespace"], metadata["name"], metadata["uid"])
    for line in (server.get("status") or {}).get("pools") or ():
        if (line.get("namespace"), line.get("name"), line.get("uid")) == wanted:
            found: Body = line
            return found
    return {}


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether a Kubernetes label selector chooses an object with these labels."""
    if any(labels.get(key) != value for key, value in selector.match_labels.items()):
        return False
    for each in selector.match_expressions:
        held = {
            "In": labels.get(each.key) in each.values,
            "NotIn": labels.get(each.key) not in each.values,
            "Exists": each.key in labels,
            "DoesNotExist": each.key not in labels,
        }
        if not held[each.operator]:
            return False
    return True


def refusal(pool: Body, server: Body, labels: Mapping[str, str] | None) -> str:
    """Why a pool that is not allowed is not, and what the administrator of the server has to set."""
    namespace = pool["metadata"]["namespace"]
    server_namespace, name = server_name(pool)
    start = f'PgServer "{name}" of namespace "{server_namespace}" does not allow PgPools of namespace "{namespace}".'
    if _allowed(server).from_ == "Selector" and labels is None:
        return (
            f"{start} It chooses namespaces by their labels, which the operator cannot read (rbac.scope Namespaced). "
            "Its administrator must set spec.allowedNamespaces.from to All, or the operator must serve the cluster."
        )
    return (
        f"{start} Its administrator must set spec.allowedNamespaces there: from: All, or from: Selector with a "
        f'selector that the labels of namespace "{namespace}" fit.'
    )


def _allowed(server: Body) -> AllowedNamespaces:
    """spec.allowedNamespaces; nobody else is allowed if it cannot be read."""
    try:
        return AllowedNamespaces.model_validate((server.get("spec") or {}).get("allowedNamespaces") or {})
    except ValidationError:
        return AllowedNamespaces()
