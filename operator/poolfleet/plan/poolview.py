"""Everything that planning a PgPool depends on, gathered once per reconciliation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from poolfleet.api import names
from poolfleet.api.base import explain
from poolfleet.api.pgpool import PgPoolSpec
from poolfleet.api.pgserver import PgServerSpec
from poolfleet.plan import replicas, tenancy
from poolfleet.plan.autoscaling import Decision
from poolfleet.plan.model import Pod, Problem, RotationLine, Settings
from poolfleet.plan.objects.meta import Owner, controlled_by
from poolfleet.plan.objects.secret import decode
from poolfleet.plan.tenancy import Standing, full_host

Body = Mapping[str, Any]
"""A live object as JSON."""
SecretName = tuple[str, str]
"""Namespace and name of a Secret."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Clients that lost their connection when the time of a pod's drain was over."""

    pod: str  # its name
    clients: int


@dataclass(frozen=True, slots=True)
class PoolView:
    """A PgPool and its surroundings as observed at `now` (seconds since the epoch)."""

    body: Body  # the PgPool
    server: Body | None  # the PgServer that it uses
    secrets: Mapping[SecretName, Mapping[str, bytes] | None]  # data of the Secrets that the specs name; None: not found
    children: Mapping[tuple[str, str], Body]  # (kind, name) -> live child, or a stranger of a child's name
    pods: tuple[Pod, ...]
    settings: Settings
    now: float
    fresh_key: str  # 64 random hex digits, for a pool that has no key yet
    labels: Mapping[str, str] | None = None  # of the pool's Namespace; None: not known
    elders: int = 0  # older pools on the same PgServer
    elders_need: int = 0  # connections of the budget that they are sure of
    last_config: Body | None = None  # the Secret x-config as it was last seen, if it was deleted
    numbers_moved: float = 0.0  # when the live numbers in status last moved
    ready_since: float | None = 0.0  # since when pods take clients, as far as this process saw; None: none did
    decision: Decision | None = None  # autoscaling's newest; None: it has not decided yet, or is not set
    cuts: tuple[Cut, ...] = ()  # that nobody was told of yet
    secret_bodies: Mapping[SecretName, Body | None] = field(default_factory=dict)  # what `secrets` is the data of
    next_secrets: Mapping[str, Body] = field(default_factory=dict)  # Secret under rotation -> that of its next login
    tokens: Mapping[str, str | Problem] = field(
        default_factory=dict, repr=False
    )  # role -> its token, or why it has none
    rotations: tuple[RotationLine, ...] = ()  # of the roles on the server (controller/rotations.py)
    fresh_password: str = field(default="", repr=False)  # 43 random letters and digits, for a login that gets a new one
    spec: PgPoolSpec | None = field(init=False)
    spec_error: str = field(init=False)
    server_spec: PgServerSpec | None = field(init=False)
    server_error: str = field(init=False)
    standing: Standing = field(init=False)

    def __post_init__(self) -> None:
        """Read the two specs; what is wrong with them goes into spec_error and server_error. Of a PgServer that the
        pool may not use nothing is read: its owner has not shown it to the pool's."""
        spec, error = _read(PgPoolSpec, self.body.get("spec"))
        standing = tenancy.standing(self.body, self.server, self.labels)
        server_spec, server_error = spec.server if spec is not None else None, ""
        if server_spec is None and self.server is not None and standing is not Standing.REFUSED:
            server_spec, server_error = _read(PgServerSpec, self.server.get("spec"))
        for name, value in (
            ("spec", spec),
            ("spec_error", error),
            ("server_spec", server_spec),
            ("server_error", server_error),
            ("standing", standing),
        ):
            object.__setattr__(self, name, value)

    @property
    def owner(self) -> Owner:
        """The PgPool as owner of its children."""
        metadata = self.body["metadata"]
        return Owner(metadata["namespace"], metadata["name"], metadata["uid"])

    @property
    def key(self) -> str:
        """The pool as "<namespace>/<name>"."""
        return f"{self.owner.namespace}/{self.owner.name}"

    @property
    def generation(self) -> int:
        """metadata.generation of the PgPool."""
        return int(self.body["metadata"].get("generation", 0))

    @property
    def status(self) -> Body:
        """The PgPool's status as it stands."""
        return self.body.get("status") or {}

    @property
    def replicas(self) -> int:
        """Pods that there should be: spec.replicas, or with spec.autoscaling what was decided last; 0 while the spec
        cannot be read."""
        if self.spec is None or self.spec.autoscaling is None:
            return self.spec.replicas if self.spec is not None else 0
        if self.decision is None:
            return replicas.start(self.body, self.child("Deployment"))
        return replicas.within(self.spec.autoscaling, self.decision.replicas)

    @property
    def least_replicas(self) -> int:
        """Pods that the spec asks for in any case: spec.replicas, or with spec.autoscaling its minReplicas."""
        if self.spec is None:
            return 0
        return self.spec.replicas if self.spec.autoscaling is None else self.spec.autoscaling.min_replicas

    @property
    def server_uid(self) -> str:
        """UID of the PgServer, "" while there is none."""
        return "" if self.server is None else str(self.server["metadata"]["uid"])

    @property
    def server_status(self) -> Body:
        """The PgServer's status; empty while there is none, or while the pool may not see it."""
        if self.server is None or self.standing is Standing.REFUSED:
            return {}
        return self.server.get("status") or {}

    @property
    def server_line(self) -> Body:
        """What the PgServer's status says of this pool; empty if nothing."""
        return {} if self.server is None else tenancy.line_of(self.body, self.server)

    @property
    def server_title(self) -> str:
        """The PgServer as messages call it: `PgServer "db"`, with its namespace if that is another one."""
        namespace, name = tenancy.server_name(self.body)
        where = "" if namespace == self.owner.namespace else f' of namespace "{namespace}"'
        return f'PgServer "{name}"{where}'

    @property
    def server_host(self) -> str:
        """The server's host as the pods have to write it: a single label means a Service of the PgServer's namespace.
        `server_spec` must be readable."""
        assert self.server_spec is not None
        namespace = tenancy.server_name(self.body)[0]
        host = self.server_spec.host
        return host if namespace == self.owner.namespace else full_host(host, namespace)

    def rotating_secrets(self) -> frozenset[str]:
        """Names of the Secrets, all of the pool's namespace, that spec wants to be rotated."""
        if self.spec is None:
            return frozenset()
        found = {user.secret_ref.name for user in self.spec.users if user.rotation is not None}
        for database in self.spec.databases:
            if database.rotation is not None and database.credentials_secret_ref is not None:
                found.add(database.credentials_secret_ref.name)
        return frozenset(found)

    def secret_names(self) -> frozenset[SecretName]:
        """The Secrets that the two specs name and a configuration needs; the server's CA and the certificate that it is
        shown are in the PgServer's namespace."""
        found: set[SecretName] = set()
        if self.spec is not None:
            own = [user.secret_ref for user in self.spec.users]
            own += [d.credentials_secret_ref for d in self.spec.databases if d.credentials_secret_ref is not None]
            found |= {(self.owner.namespace, reference.name) for reference in own}
            if (tls := self.spec.tls) is not None:
                found |= {(self.owner.namespace, each.name) for each in (tls.secret_ref, tls.ca_secret_ref) if each}
        if self.server_spec is not None:
            namespace, server = tenancy.server_name(self.body)[0], self.server_spec.tls
            found |= {(namespace, each.name) for each in (server.ca_secret_ref, server.client_cert_secret_ref) if each}
        return frozenset(found)

    def child(self, kind: str, name: str | None = None) -> Body | None:
        """The live child of that kind and name (default: the pool's), if it is the pool's own."""
        body = self.children.get((kind, name or self.owner.name))
        return body if body is not None and controlled_by(body, self.owner.uid) else None

    @property
    def config(self) -> Body | None:
        """The live Secret x-config."""
        return self.child("Secret", names.config_secret(self.owner.name))

    @property
    def remembered_config(self) -> Body | None:
        """The Secret x-config, live or as last seen if it was this very pool's."""
        if self.config is not None:
            return self.config
        last = self.last_config
        return last if last is not None and controlled_by(last, self.owner.uid) else None

    @property
    def config_files(self) -> dict[str, bytes]:
        """The data of remembered_config; empty if there is none."""
        return decode(self.remembered_config)


Spec = TypeVar("Spec", PgPoolSpec, PgServerSpec)


def _read(model: type[Spec], raw: object) -> tuple[Spec | None, str]:
    """The spec and "", or None and what is wrong with it (no values)."""
    try:
        return model.model_validate(raw or {}), ""
    except ValidationError as error:
        return None, explain(error)
