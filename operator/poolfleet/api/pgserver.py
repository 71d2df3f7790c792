"""PgServer: one PostgreSQL server and how many connections the pools may open to it (design sections 2 and 3)."""

import re
from typing import Annotated, Literal

from pydantic import Field, StrictInt, StrictStr

from poolfleet.api.base import (
    ATOMIC_LIST,
    ATOMIC_MAP,
    NAME_RULES,
    Condition,
    Count,
    CredentialsSecretRef,
    Flag,
    Host,
    Instant,
    IntOrString,
    Metadata,
    Model,
    Port,
    Rule,
    conditions_field,
    list_map,
)
from poolfleet.api.network import LabelSelector
from poolfleet.api.tls import ServerTls
from poolfleet.api.tokens import ROLE_SET, Roles, TokenProvider

MAX_CONNECTIONS = 262143
"""PostgreSQL's own upper bound of max_connections (MAX_BACKENDS)."""

_PERCENT = re.compile(r"(100|[1-9]?[0-9])%")

Headroom = Annotated[
    IntOrString,
    Field(union_mode="left_to_right"),
    Rule(
        "type(self) == int ? int(self) >= 0 && int(self) <= 262143 "
        ": string(self).size() <= 4 && string(self).matches('^(100|[1-9]?[0-9])%$')",
        'must be a number of connections (0 or more) or a percentage such as "10%"',
        lambda value: (
            0 <= value <= MAX_CONNECTIONS if isinstance(value, int) else _PERCENT.fullmatch(value) is not None
        ),
    ),
]


class AllowedNamespaces(Model):
    """Whose PgPools may use the server. Those of its own namespace always may."""

    rules = (
        Rule(
            # has(): the API server also tries the rule on the default {}, before `from` is filled in
            "(has(self.from) && self.from == 'Selector') == has(self.selector)",
            "selector is needed with from: Selector, and only there",
            lambda allowed: (allowed.from_ == "Selector") == (allowed.selector is not None),
        ),
    )

    from_: Literal["Same", "All", "Selector"] = Field(
        default="Same",
        alias="from",
        description="Same: no PgPools of other namespaces. All: those of every namespace. Selector: those of the "
        "namespaces whose labels `selector` chooses. A pool that loses the permission keeps what it has, but gets "
        "nothing more and is not changed any more.",
    )
    selector: LabelSelector | None = Field(
        default=None,
        description="Labels of the Namespaces, for from: Selector. One by name: kubernetes.io/metadata.name. Needs an "
        "operator that may read Namespaces (rbac.scope Cluster).",
        json_schema_extra=ATOMIC_MAP,
    )


class PgServerSpec(Model):
    """One PostgreSQL server, and how much of it the pools may use."""

    rules = (
        Rule(
            "has(self.maxConnections) || has(self.adminSecretRef)",
            "set maxConnections to the server's max_connections, or adminSecretRef so that it can be discovered",
            lambda spec: spec.max_connections is not None or spec.admin_secret_ref is not None,
        ),
        Rule(
            "self.roleLimits != 'Enforce' || has(self.adminSecretRef)",
            "roleLimits: Enforce needs adminSecretRef, a login that may alter the roles in managedRoles",
            lambda spec: spec.role_limits != "Enforce" or spec.admin_secret_ref is not None,
        ),
    )

    host: Host = Field(
        description="DNS name or IP address of the server. May be changed, for example in an emergency failover: the "
        "pods load it and reconnect."
    )
    port: Port = Field(default=5432, description="TCP port of the server.")
    tls: ServerTls = Field(default=ServerTls(), description="TLS between PgBouncer and the server.")
    max_connections: Annotated[StrictInt, Field(ge=1, le=MAX_CONNECTIONS)] | None = Field(
        default=None,
        description="The server's max_connections, in connections. Left out: discovered with adminSecretRef. If both "
        "are known the smaller one counts.",
    )
    headroom: Headroom = Field(
        default="10%",
        description="Connections kept free for everyone who does not come through a PgPool: a number of connections, "
        "or a percentage of max_connections, rounded up.",
    )
    admin_secret_ref: CredentialsSecretRef | None = Field(
        default=None,
        description="A login of the operator itself, for reading max_connections, reserved connections and sessions; "
        "the role needs nothing but membership in pg_monitor. It takes 2 connections of the budget. Left out: the "
        "operator never connects to the server, so a database that scales to zero stays asleep.",
    )
    discovery_interval_seconds: Annotated[StrictInt, Field(ge=1, le=86400)] = Field(
        default=300, description="Seconds between two reads of the server's settings. Only with adminSecretRef."
    )
    allowed_namespaces: AllowedNamespaces = Field(
        default=AllowedNamespaces(),
        description="Whose PgPools may use the server, besides those of its own namespace.",
    )
    role_limits: Literal["Off", "Enforce"] = Field(
        default="Off",
        description="Enforce: keep PostgreSQL's CONNECTION LIMIT of the roles in `managedRoles` a little above what "
        "the pods may hold together, as a backstop. Off: leave it alone. Write it in quotes.",
    )
    managed_roles: Roles = Field(
        default=[],
        description="The only roles on the server that the operator may alter: their connection limits (roleLimits) "
        "and their passwords (rotation).",
        json_schema_extra=ROLE_SET,
    )
    token_provider: TokenProvider | None = Field(
        default=None, description="Where short-lived passwords come from, and for which roles. Left out: nowhere."
    )


# Status: for the schema only, so loose on purpose. A ledger that the API server refuses is worse than an odd number.


class DiscoveryCandidate(Model):
    """Larger values that were read once; they count after a second equal read at least 60 seconds later."""

    max_connections: Count | None = Field(default=None, description="max_connections as read, in connections.")
    superuser_reserved: Count | None = Field(
        default=None, description="superuser_reserved_connections as read, in connections."
    )
    reserved: Count | None = Field(default=None, description="reserved_connections as read, in connections.")
    since: Instant | None = Field(default=None, description="When these values were read first.")


class NamedLimit(Model):
    """A connection limit that PostgreSQL itself keeps."""

    name: Annotated[StrictStr, Field(max_length=63)] = Field(description="Name of the database or role on the server.")
    limit: Count | None = Field(default=None, description="Its connection limit, in connections.")


class RoleLimit(Model):
    """A connection limit that the operator has set."""

    role: Annotated[StrictStr, Field(max_length=63)] = Field(description="Name of the role on the server.")
    limit: Count | None = Field(default=None, description="Its CONNECTION LIMIT, in connections.")


class Discovery(Model):
    """What was read from the server with the admin Secret."""

    max_connections: Count | None = Field(default=None, description="max_connections in force, in connections.")
    superuser_reserved: Count | None = Field(
        default=None, description="superuser_reserved_connections in force, in connections."
    )
    reserved: Count | None = Field(default=None, description="reserved_connections in force, in connections.")
    server_version: Annotated[StrictStr, Field(max_length=200)] | None = Field(
        default=None, description="server_version, in PostgreSQL's words."
    )
    observed_at: Instant | None = Field(default=None, description="When the settings in force were read or confirmed.")
    candidate: DiscoveryCandidate | None = Field(
        default=None, description="Larger values that wait for a second equal read."
    )
    system_identifier: Annotated[StrictStr, Field(max_length=32)] | None = Field(
        default=None, description="system_identifier of the server, if the login may read it: who it is."
    )
    started_at: Annotated[StrictStr, Field(max_length=64)] | None = Field(
        default=None, description="pg_postmaster_start_time of the server: which run of it this is."
    )
    database_limits: list[NamedLimit] | None = Field(
        default=None,
        description="datconnlimit of the databases that have one.",
        json_schema_extra=list_map("name"),
    )
    role_limits: list[NamedLimit] | None = Field(
        default=None,
        description="rolconnlimit of the roles that have one, of those that pools log in as.",
        json_schema_extra=list_map("name"),
    )


class PoolOnServer(Model):
    """One PgPool that uses this server."""

    namespace: Annotated[StrictStr, Field(max_length=63)] = Field(description="Namespace of the PgPool.")
    name: Annotated[StrictStr, Field(max_length=253)] = Field(description="Name of the PgPool.")
    uid: Annotated[StrictStr, Field(max_length=64)] | None = Field(default=None, description="UID of the PgPool.")
    budget: Count | None = Field(
        default=None, description="Connections that the pool may hold at most: its share of the budget."
    )
    granted: Count | None = Field(
        default=None, description="Connections that its pods may hold now: the sum of their bounds."
    )
    in_use: Count | None = Field(default=None, description="Connections that its pods hold, as PgBouncer counts.")
    admitted: Flag | None = Field(
        default=None,
        description="Whether the budget has what the pool needs at least, besides what older pools need.",
    )


class LedgerEntry(Model):
    """How many connections one pod may hold to one database."""

    pod: Annotated[StrictStr, Field(max_length=64)] = Field(description="UID of the pod.")
    pod_name: Annotated[StrictStr, Field(max_length=253)] | None = Field(default=None, description="Name of the pod.")
    pool: Annotated[StrictStr, Field(max_length=317)] | None = Field(
        default=None, description="The pod's PgPool, as namespace/name."
    )
    database: Annotated[StrictStr, Field(max_length=63)] = Field(description="Name of the database in the pool.")
    bound: Count | None = Field(
        default=None,
        description="Connections: the largest number that the pod was told since it last proved a smaller one. This is "
        "what counts against the budget.",
    )
    grant: Count | None = Field(
        default=None, description="Connections that the pod shall hold at most by its last directive."
    )
    revision: Count | None = Field(default=None, description="Revision of the directive that carries `grant`.")
    since: Instant | None = Field(default=None, description="When the entry was last changed.")
    gone_since: Instant | None = Field(
        default=None, description="When the pod was first missed without proof that its PgBouncer has ended."
    )
    peer: Count | None = Field(
        default=None, description="PgBouncer's peer_id of the pod, by which query cancels find it."
    )


class Resting(Model):
    """Connections that were given back and wait for PostgreSQL to end their backends."""

    connections: Count = Field(description="Number of connections.")
    until: Instant = Field(description="When they are free again.")


class Ledger(Model):
    """The one record of who may hold how many connections."""

    revision: Count | None = Field(default=None, description="Number of the last write; it only grows.")
    rebuilt_at: Instant | None = Field(
        default=None, description="When the ledger was made anew from what the pods said."
    )
    entries: list[LedgerEntry] | None = Field(
        default=None, description="One entry per pod and database.", json_schema_extra=list_map("pod", "database")
    )
    resting: list[Resting] | None = Field(
        default=None, description="Connections given back a moment ago.", json_schema_extra=ATOMIC_LIST
    )


class PgServerStatus(Model):
    """What the operator knows of the server, and the ledger. Written by the operator only."""

    observed_generation: Count | None = Field(
        default=None, description="metadata.generation of the spec that this status speaks about."
    )
    max_connections: Count | None = Field(
        default=None, description="Connections: the smaller of the declared and the discovered max_connections."
    )
    superuser_reserved: Count | None = Field(
        default=None, description="superuser_reserved_connections in connections; 3 unless read."
    )
    reserved: Count | None = Field(default=None, description="reserved_connections in connections; 0 unless read.")
    headroom: Count | None = Field(default=None, description="spec.headroom in connections.")
    budget: Count | None = Field(
        default=None,
        description="Connections that all pods together may hold: maxConnections - superuserReserved - reserved - "
        "headroom, and - 2 with adminSecretRef.",
    )
    granted: Count | None = Field(
        default=None, description="Connections that pods may hold now: the sum of all bounds."
    )
    free: Count | None = Field(
        default=None,
        description="Connections that can be granted: budget - granted - unaccounted. `reserve` is part of it, and so "
        "is what was given back a moment ago (ledger.resting), though it rests for 0.6 s first.",
    )
    in_use: Count | None = Field(default=None, description="Connections that pods hold, as PgBouncer counts.")
    reserve: Count | None = Field(
        default=None,
        description="Connections kept for the first grants of new pods: one for each database of each pool.",
    )
    ghosts: Count | None = Field(
        default=None, description="Of `granted` what pods keep that vanished without proof of their end."
    )
    others: Count | None = Field(
        default=None,
        description="Sessions of everybody who does not come through a PgPool; only with adminSecretRef.",
    )
    unaccounted: Count | None = Field(
        default=None,
        description="Sessions of the pools' roles that no pod accounts for; only with adminSecretRef.",
    )
    role_limits: list[RoleLimit] | None = Field(
        default=None, description="Connection limits that the operator has set.", json_schema_extra=list_map("role")
    )
    discovery: Discovery | None = Field(default=None, description="What was read from the server.")
    pools: list[PoolOnServer] | None = Field(
        default=None, description="The PgPools that use this server.", json_schema_extra=list_map("namespace", "name")
    )
    ledger: Ledger | None = Field(default=None, description="Who may hold how many connections.")
    conditions: list[Condition] | None = conditions_field(
        "Ready, Reconciling, Stalled (kstatus), ServerReachable, BudgetSatisfied."
    )


class PgServer(Model):
    """PgServer is one PostgreSQL server and the number of connections that the pools may open to it."""

    rules = NAME_RULES

    metadata: Metadata = Field(description="Standard object metadata.")
    spec: PgServerSpec = Field(description="What the administrator of the database says.")
    status: PgServerStatus | None = Field(default=None, description="What the operator says; never set by users.")
