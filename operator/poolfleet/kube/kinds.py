"""The kinds that the operator reads or writes, with what a request path needs. Standard library only."""

from dataclasses import dataclass
from typing import Final

from poolfleet.api import names


@dataclass(frozen=True, slots=True)
class Kind:
    """A resource type: `apiVersion`, `kind`, the plural used in paths, and whether its objects are in namespaces."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """API group, "" for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """API version without its group."""
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Request path of the collection, of one object, or of an object's subresource. `namespace` None: of all
        namespaces; of no meaning for a kind that is not namespaced."""
        parts = ["/apis" if self.group else "/api", self.api_version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


POOL: Final = Kind(names.API_VERSION, names.POOL_KIND, names.POOL_PLURAL)
SERVER: Final = Kind(names.API_VERSION, names.SERVER_KIND, names.SERVER_PLURAL)
DEPLOYMENT: Final = Kind("apps/v1", "Deployment", "deployments")
SERVICE: Final = Kind("v1", "Service", "services")
SECRET: Final = Kind("v1", "Secret", "secrets")
POD: Final = Kind("v1", "Pod", "pods")
PDB: Final = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICY: Final = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
LEASE: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")
EVENT: Final = Kind("events.k8s.io/v1", "Event", "events")
NAMESPACE: Final = Kind("v1", "Namespace", "namespaces", namespaced=False)
NODE: Final = Kind("v1", "Node", "nodes", namespaced=False)

CHILDREN: Final = (DEPLOYMENT, SERVICE, SECRET, PDB, NETWORK_POLICY)
"""What the operator creates for a PgPool, besides the PgServer of an inline server."""

ALL: Final = {kind.kind: kind for kind in (POOL, SERVER, *CHILDREN, POD, LEASE, EVENT, NAMESPACE, NODE)}


def kind_of(obj: dict[str, object]) -> Kind:
    """The Kind of a manifest; raise KeyError for a kind that the operator does not handle."""
    return ALL[str(obj["kind"])]
