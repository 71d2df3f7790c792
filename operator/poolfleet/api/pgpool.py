"""PgPool: a fleet of PgBouncer pods in front of one PostgreSQL server (design section 2)."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictInt, StrictStr

from poolfleet.api.base import (
    ANY_OBJECT,
    ATOMIC_LIST,
    NAME_RULES,
    Condition,
    Count,
    CredentialsSecretRef,
    Flag,
    Instant,
    Metadata,
    Model,
    NamespaceName,
    ObjectName,
    Rule,
    Text,
    conditions_field,
    list_map,
    maps,
    matches,
    without_nulls,
)
from poolfleet.api.network import NetworkPolicy as NetworkPolicy
from poolfleet.api.network import Service as Service
from poolfleet.api.pgserver import MAX_CONNECTIONS, PgServerSpec
from poolfleet.api.rotation import RoleRotation, Rotation, UserRotation
from poolfleet.api.tls import PoolTls

PoolMode = Literal["transaction", "session", "statement"]
AgentUpdate = Literal["OnRollout", "Immediately"]


class ServerRef(Model):
    """The PgServer that a pool uses."""

    name: ObjectName = Field(description="Name of the PgServer.")
    namespace: NamespaceName | None = Field(
        default=None,
        description="Namespace of the PgServer. Left out: the pool's own. Another one: the PgServer's "
        "spec.allowedNamespaces must allow the pool's.",
    )


FixedServerRef = Annotated[
    ServerRef, Rule("self == oldSelf", "serverRef cannot be changed; make a new PgPool for another server", None)
]


class Share(Model):
    """The pool's part of the server's budget, against the other pools that use it."""

    rules = (
        Rule(
            "!has(self.min) || !has(self.max) || self.max >= self.min",
            "max must not be smaller than min",
            lambda share: share.min is None or share.max is None or share.max >= share.min,
        ),
    )

    weight: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(
        default=1, description="Share against the other pools of the server, between min and max; without unit."
    )
    min: Annotated[StrictInt, Field(ge=0, le=MAX_CONNECTIONS)] | None = Field(
        default=None,
        description="Connections that the pool needs at least. Left out, or less than that: one for each database of "
        "each replica and of one more pod, (replicas + 1) x databases. Where the budget is not enough for all pools, "
        "the older ones have theirs and the others none.",
    )
    max: Annotated[StrictInt, Field(ge=1, le=MAX_CONNECTIONS)] | None = Field(
        default=None, description="Connections that the pool shall have at most. Left out: no bound but the budget."
    )


class Database(Model):
    """One database that clients can ask for."""

    rules = (
        Rule(
            "!has(self.rotation) || has(self.credentialsSecretRef)",
            "rotation needs credentialsSecretRef",
            lambda database: database.rotation is None or database.credentials_secret_ref is not None,
            field_path=".rotation",
        ),
        Rule(
            "!(self.name in ['pgbouncer', '*'])",
            'a database cannot be named "pgbouncer" (PgBouncer\'s own console) or "*" (it would have no limit)',
            lambda database: database.name not in ("pgbouncer", "*"),
            field_path=".name",
        ),
        Rule(
            '!self.name.contains("\'")',
            "a database name cannot hold a single quote, as PgBouncer has no way to write one",
            lambda database: "'" not in database.name,
            field_path=".name",
        ),
    )

    name: Text = Field(description="The name that clients ask for, at most 63 bytes.")
    server_database: Text | None = Field(
        default=None, description="Name of the database on the server. Left out: the same as `name`."
    )
    pool_mode: PoolMode | None = Field(
        default=None,
        description="When a server connection goes back into the pool for this database: transaction, session or "
        "statement. Left out: spec.poolMode.",
    )
    credentials_secret_ref: CredentialsSecretRef | None = Field(
        default=None,
        description="One login on the server for all clients of this database. Left out: each client logs in on the "
        "server with its own name and password.",
    )
    weight: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(
        default=1, description="Share of the pool's connections against the other databases, without unit."
    )
    rotation: RoleRotation | None = Field(
        default=None,
        description="Let the operator rotate the password of credentialsSecretRef. It needs the PgServer's "
        "adminSecretRef, the role in its managedRoles, and the label poolfleet.dev/managed=true on the Secret.",
    )

    @property
    def dbname(self) -> str:
        """Name of the database on the server."""
        return self.server_database or self.name


def _unique(databases: list[Database]) -> list[Database]:
    """The API server says the same of a list that is a map by name."""
    for index, database in enumerate(databases):
        if any(database.name == other.name for other in databases[:index]):
            raise ValueError(f'the database name "{database.name}" is there twice')
    return databases


class User(Model):
    """One login that clients can use."""

    secret_ref: CredentialsSecretRef = Field(
        description="Name and password of the user. The type kubernetes.io/basic-auth fits, any other does too."
    )
    username: Text | None = Field(
        default=None,
        description="User name, at most 63 bytes. Only for a Secret that holds no user name, or, with `rotation`, for "
        "one that does not exist yet.",
    )
    rotation: UserRotation | None = Field(
        default=None,
        description="Let the operator rotate the login. The Secret must have the label poolfleet.dev/managed=true; a "
        "missing one is made. Only where every database has credentialsSecretRef.",
    )


class Drain(Model):
    """How a pod ends."""

    timeout_seconds: Annotated[StrictInt, Field(ge=0, le=3600)] = Field(
        default=60, description="Seconds that a pod which is to end waits for its clients to leave, at most."
    )


class Autoscaling(Model):
    """The number of pods, from the clients that the pods see and the CPU that PgBouncer uses."""

    rules = (
        Rule(
            "self.maxReplicas >= self.minReplicas",
            "maxReplicas must not be smaller than minReplicas",
            lambda autoscaling: autoscaling.max_replicas >= autoscaling.min_replicas,
        ),
    )

    min_replicas: Annotated[StrictInt, Field(ge=1, le=100)] = Field(default=2, description="Number of pods at least.")
    max_replicas: Annotated[StrictInt, Field(ge=1, le=100)] = Field(default=8, description="Number of pods at most.")
    target_clients_per_replica: Annotated[StrictInt, Field(ge=1, le=1000000)] = Field(
        default=1000, description="Clients, connected or waiting, that one pod shall have."
    )
    target_cpu_utilization_percentage: Annotated[StrictInt, Field(ge=10, le=100)] = Field(
        default=70,
        alias="targetCPUUtilizationPercentage",
        description="CPU that the PgBouncer of one pod shall use, in percent of one core: it is single-threaded.",
    )
    scale_down_stabilization_seconds: Annotated[StrictInt, Field(ge=0, le=3600)] = Field(
        default=300, description="Pods are given up only for as many as were not needed at any time in these seconds."
    )


class ClientRebalance(Model):
    """Moving idle clients from crowded pods to others, by closing their connections."""

    idle_seconds: Annotated[StrictInt, Field(ge=1, le=3600)] = Field(
        default=10, description="Only clients that have asked for nothing in these seconds."
    )
    max_percent: Annotated[StrictInt, Field(ge=1, le=100)] = Field(
        default=10, description="At most so much of a pod's clients within ten seconds."
    )


# A pattern, not a Rule: CEL takes an int-or-string for megabytes long, whatever maxLength says, and in a map it is over
# the cost limit.
ParameterValue = StrictInt | Annotated[StrictStr, Field(max_length=1024, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Parameters = Annotated[
    dict[str, Annotated[ParameterValue, Field(union_mode="left_to_right")]],
    Field(max_length=100),
    BeforeValidator(without_nulls),
    maps("[a-z][a-z0-9_]{0,62}", "key", "names must be PgBouncer settings: lower case letters, digits and _ only"),
]


Image = Annotated[
    StrictStr, Field(min_length=1, max_length=1024), matches("[!-~]+", "must not hold spaces or line breaks")
]


class PgBouncer(Model):
    """The PgBouncer of the pods."""

    image: Image | None = Field(
        default=None, description="Container image with `pgbouncer` on its PATH. Left out: the operator's default."
    )
    parameters: Parameters = Field(
        default={},
        description="Settings of pgbouncer.ini by name, whole numbers or strings, for example query_wait_timeout: 30. "
        "Only those that cannot break what Poolfleet promises; another one is named in the condition Stalled.",
    )


class PgPoolSpec(Model):
    """A fleet of PgBouncer pods."""

    rules = (
        Rule(
            "has(self.server) != has(self.serverRef)",
            "set exactly one of server (the database server, inline) and serverRef (the name of a PgServer)",
            lambda spec: (spec.server is None) != (spec.server_ref is None),
        ),
        Rule(
            "has(self.serverRef) == has(oldSelf.serverRef)",
            "a pool cannot change between server and serverRef; make a new PgPool",
            None,
        ),
    )

    server_ref: FixedServerRef | None = Field(
        default=None,
        description="The PgServer to use. Exactly one of server and serverRef; cannot be changed.",
    )
    server: PgServerSpec | None = Field(
        default=None,
        description="The server to use, inline: the operator keeps a PgServer of the pool's name. Exactly one of "
        "server and serverRef.",
    )
    share: Share = Field(
        default=Share(), description="The pool's part of the server's budget, against the other pools that use it."
    )
    pool_mode: PoolMode = Field(
        default="transaction",
        description="When a server connection goes back into the pool: after each transaction, at the end of the "
        "client's session, or after each statement.",
    )
    databases: Annotated[list[Database], Field(min_length=1, max_length=100), AfterValidator(_unique)] = Field(
        description="The databases that clients can ask for; at least one.", json_schema_extra=list_map("name")
    )
    users: Annotated[list[User], Field(min_length=1, max_length=200)] = Field(
        description="The logins that clients can use; at least one.", json_schema_extra=ATOMIC_LIST
    )
    max_client_connections: Annotated[StrictInt, Field(ge=1, le=1000000)] = Field(
        default=10000,
        description="Client connections that the whole fleet takes. Each pod takes its part and enough for one pod to "
        "be lost: ceil(n / max(1, replicas - 1)), with minReplicas where autoscaling is set, so that scaling reloads "
        "nothing.",
    )
    replicas: Annotated[StrictInt, Field(ge=0, le=100)] = Field(
        default=2, description="Number of pods. Ignored while autoscaling is set."
    )
    autoscaling: Autoscaling | None = Field(
        default=None,
        description="Let the operator choose the number of pods; spec.replicas is ignored then. Left out: "
        "spec.replicas counts, which is the target of `kubectl scale`, a HorizontalPodAutoscaler or KEDA.",
    )
    client_rebalance: ClientRebalance | None = Field(
        default=None,
        description="Close idle clients of crowded pods, so that they connect anew and get to pods with fewer. An "
        "application that does not check its connections sees an error. Left out: nobody is moved.",
    )
    paused: Flag = Field(
        default=False,
        description="Leave the pool's objects as they are, for work by hand. Connections stay bounded meanwhile.",
    )
    tls: PoolTls | None = Field(default=None, description="TLS between clients and PgBouncer. Left out: none.")
    service: Service = Field(default=Service(), description="The Service that clients connect to.")
    network_policy: NetworkPolicy = Field(default=NetworkPolicy(), description="Who may connect to the pods.")
    drain: Drain = Field(default=Drain(), description="How a pod ends.")
    agent_update: AgentUpdate = Field(
        default="OnRollout",
        description="When pods get the agent of a newer operator. OnRollout: when they are replaced for another "
        "reason. Immediately: at once, by a rollout.",
    )
    pgbouncer: PgBouncer = Field(default=PgBouncer(), description="Image and settings of PgBouncer.")
    template: dict[str, Any] = Field(
        default={},
        description="Fields of a pod template (metadata, spec) to lay over the operator's: nodeSelector, tolerations, "
        "further containers and so on. What keeps the promise on connections cannot be changed here.",
        json_schema_extra=ANY_OBJECT,
    )


# Status: for the schema only.


class Clients(Model):
    """Clients of the pool."""

    active: Count | None = Field(default=None, description="Clients that are connected and not waiting.")
    waiting: Count | None = Field(default=None, description="Clients that wait for a server connection.")
    pod_min: Count | None = Field(default=None, description="Clients of the ready pod that has the fewest.")
    pod_max: Count | None = Field(default=None, description="Clients of the ready pod that has the most.")


class Connections(Model):
    """Server connections of the pool."""

    budget: Count | None = Field(
        default=None, description="Connections that the pool may hold at most: its share of the server's budget."
    )
    granted: Count | None = Field(default=None, description="Connections that its pods may hold now.")
    in_use: Count | None = Field(default=None, description="Connections that its pods hold, as PgBouncer counts.")


class PoolSize(Model):
    """PgBouncer's pool_size of one database."""

    min: Count | None = Field(default=None, description="The smallest among the pods, in connections.")
    max: Count | None = Field(default=None, description="The largest among the pods, in connections.")
    total: Count | None = Field(default=None, description="The sum over the pods, in connections.")


class Endpoint(Model):
    """Where clients connect to."""

    host: Annotated[StrictStr, Field(max_length=253)] | None = Field(
        default=None, description="DNS name of the Service."
    )
    port: Count | None = Field(default=None, description="TCP port of the Service.")


class Binding(Model):
    """The Secret for applications, as in the Service Binding specification."""

    name: Annotated[StrictStr, Field(max_length=253)] | None = Field(default=None, description="Name of the Secret.")


class Agent(Model):
    """The agent beside each PgBouncer."""

    image: Annotated[StrictStr, Field(max_length=1024)] | None = Field(
        default=None, description="The agent's image that the fleet was rolled out with."
    )
    outdated: Flag | None = Field(
        default=None, description="Whether the operator has a newer one; see spec.agentUpdate."
    )


class AutoscalingStatus(Model):
    """The last decision on the number of pods."""

    reason: Annotated[StrictStr, Field(max_length=64)] | None = Field(
        default=None, description="Why that many pods are wanted, in one word."
    )
    message: Annotated[StrictStr, Field(max_length=2048)] | None = Field(
        default=None, description="The same with the numbers it was decided on."
    )
    last_scale_time: Instant | None = Field(default=None, description="When the number last changed.")


class PgPoolStatus(Model):
    """What the operator knows of the fleet. Written by the operator only."""

    observed_generation: Count | None = Field(
        default=None, description="metadata.generation of the spec that this status speaks about."
    )
    replicas: Count | None = Field(default=None, description="Pods of the fleet.")
    desired_replicas: Count | None = Field(
        default=None, description="Pods wanted: spec.replicas, or what autoscaling has decided."
    )
    ready_replicas: Count | None = Field(default=None, description="Pods that take clients.")
    selector: Annotated[StrictStr, Field(max_length=4096)] | None = Field(
        default=None, description="Label selector of the pods, for the scale subresource."
    )
    clients: Clients | None = Field(
        default=None,
        description="Clients; moves at most every 15 seconds and by at least 10 %. Exact numbers are metrics.",
    )
    connections: Connections | None = Field(default=None, description="Server connections.")
    pool_size: dict[str, PoolSize] | None = Field(default=None, description="PgBouncer's pool_size by database.")
    endpoint: Endpoint | None = Field(default=None, description="Where clients connect to.")
    binding: Binding | None = Field(default=None, description="The Secret for applications.")
    agent: Agent | None = Field(default=None, description="The agent beside each PgBouncer.")
    autoscaling: AutoscalingStatus | None = Field(
        default=None, description="The last decision, where spec.autoscaling is set."
    )
    rotations: list[Rotation] | None = Field(
        default=None, description="Rotation of Secrets that have one.", json_schema_extra=list_map("secret")
    )
    conditions: list[Condition] | None = conditions_field(
        "Ready, Reconciling, Stalled (kstatus), ServerReachable, BudgetSatisfied, CredentialsCurrent, "
        "AutoscalingLimited (with spec.autoscaling)."
    )


class PgPool(Model):
    """PgPool is a fleet of PgBouncer pods in front of one PostgreSQL server, within a budget of connections."""

    rules = NAME_RULES

    metadata: Metadata = Field(description="Standard object metadata.")
    spec: PgPoolSpec = Field(description="What the user wants.")
    status: PgPoolStatus | None = Field(default=None, description="What the operator says; never set by users.")
