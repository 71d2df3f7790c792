"""The parts of a PgPool about its Service and its NetworkPolicy, in Kubernetes' own words."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictStr

from poolfleet.api.base import (
    ATOMIC_LIST,
    ATOMIC_MAP,
    Flag,
    Model,
    Port,
    Rule,
    maps,
    matches,
    without_nulls,
)

ServiceType = Literal["ClusterIP", "NodePort", "LoadBalancer"]
IpFamilyPolicy = Literal["SingleStack", "PreferDualStack", "RequireDualStack"]
TrafficDistribution = Literal["PreferClose", "PreferSameZone", "PreferSameNode"]

_QUALIFIED_NAME = r"(?:[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY_RULE = maps(_QUALIFIED_NAME, "key", "keys must look like name or example.com/name")
Key = Annotated[StrictStr, Field(max_length=317)]
LabelValue = Annotated[StrictStr, Field(max_length=63)]
Labels = Annotated[
    dict[str, LabelValue],
    Field(max_length=64),
    BeforeValidator(without_nulls),
    _KEY_RULE,
    maps(
        r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?",
        "value",
        "values must start and end with a letter or digit and hold only letters, digits, - _ .",
    ),
]
Annotations = Annotated[
    dict[str, Annotated[StrictStr, Field(max_length=4096)]],
    Field(max_length=64),
    BeforeValidator(without_nulls),
    _KEY_RULE,
]
Cidr = Annotated[
    StrictStr,
    Field(max_length=49),
    matches(r"[0-9A-Fa-f:.]+/[0-9]{1,3}", "must be an address range such as 10.0.0.0/8"),
]


class Service(Model):
    """The Service that clients connect to."""

    rules = (
        Rule(
            "!has(self.loadBalancerClass) || self.type == 'LoadBalancer'",
            "loadBalancerClass needs type LoadBalancer",
            lambda service: service.load_balancer_class is None or service.type == "LoadBalancer",
        ),
        Rule(
            "!has(self.loadBalancerSourceRanges) || size(self.loadBalancerSourceRanges) == 0 "
            "|| self.type == 'LoadBalancer'",
            "loadBalancerSourceRanges needs type LoadBalancer",
            lambda service: not service.load_balancer_source_ranges or service.type == "LoadBalancer",
        ),
    )

    type: ServiceType = Field(default="ClusterIP", description="As in a Service: ClusterIP, NodePort or LoadBalancer.")
    port: Port = Field(default=6432, description="TCP port that clients connect to.")
    annotations: Annotations = Field(default={}, description="Further annotations of the Service.")
    labels: Labels = Field(default={}, description="Further labels of the Service.")
    load_balancer_class: Annotated[StrictStr, Field(min_length=1, max_length=253)] | None = Field(
        default=None, description="As in a Service; only with type LoadBalancer."
    )
    load_balancer_source_ranges: Annotated[list[Cidr], Field(max_length=64)] = Field(
        default=[],
        description="Address ranges that may use the load balancer, such as 10.0.0.0/8; only with type LoadBalancer.",
        json_schema_extra=ATOMIC_LIST,
    )
    ip_family_policy: IpFamilyPolicy | None = Field(
        default=None, description="As in a Service: SingleStack, PreferDualStack or RequireDualStack."
    )
    traffic_distribution: TrafficDistribution | None = Field(
        default=None, description="As in a Service: which pods clients are led to first. Left out: all alike."
    )


class LabelSelectorRequirement(Model):
    """One condition on labels."""

    rules = (
        Rule(
            "self.operator in ['Exists', 'DoesNotExist'] ? !has(self.values) || size(self.values) == 0 "
            ": has(self.values) && size(self.values) > 0",
            "In and NotIn need values; Exists and DoesNotExist must have none",
            lambda each: (not each.values) if each.operator in ("Exists", "DoesNotExist") else bool(each.values),
        ),
    )

    key: Key = Field(description="Key of the label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How to compare.")
    values: Annotated[list[LabelValue], Field(max_length=64)] = Field(
        default=[], description="Values to compare with.", json_schema_extra=ATOMIC_LIST
    )


class LabelSelector(Model):
    """A choice by labels; an empty one chooses everything."""

    match_labels: Labels = Field(default={}, description="Labels that must be there with these values.")
    match_expressions: Annotated[list[LabelSelectorRequirement], Field(max_length=16)] = Field(
        default=[], description="Further conditions; all must hold.", json_schema_extra=ATOMIC_LIST
    )


class IpBlock(Model):
    """A range of addresses."""

    cidr: Cidr = Field(description="The range, such as 10.0.0.0/8.")
    except_: Annotated[list[Cidr], Field(max_length=64)] = Field(
        default=[], alias="except", description="Ranges within it that are left out.", json_schema_extra=ATOMIC_LIST
    )


class NetworkPolicyPeer(Model):
    """Pods or addresses that may connect."""

    rules = (
        Rule(
            "has(self.ipBlock) ? !has(self.podSelector) && !has(self.namespaceSelector) "
            ": has(self.podSelector) || has(self.namespaceSelector)",
            "set either ipBlock alone, or podSelector, namespaceSelector or both",
            lambda peer: (peer.ip_block is None) != (peer.pod_selector is None and peer.namespace_selector is None),
        ),
    )

    pod_selector: LabelSelector | None = Field(
        default=None,
        description="Pods with these labels: of the pool's namespace, or of those that namespaceSelector chooses.",
        json_schema_extra=ATOMIC_MAP,
    )
    namespace_selector: LabelSelector | None = Field(
        default=None, description="Namespaces with these labels.", json_schema_extra=ATOMIC_MAP
    )
    ip_block: IpBlock | None = Field(default=None, description="Addresses outside the cluster.")


class NetworkPolicy(Model):
    """Who may connect to the pods."""

    enabled: Flag = Field(
        default=True,
        description="Whether the operator keeps a NetworkPolicy for the pods: clients to PgBouncer's port, the "
        "operator and metrics to the agent's. Outgoing traffic is not restricted.",
    )
    from_: Annotated[list[NetworkPolicyPeer], Field(max_length=64)] = Field(
        default=[],
        alias="from",
        description="Who may connect to PgBouncer, as in a NetworkPolicy's ingress. Empty: everyone.",
        json_schema_extra=ATOMIC_LIST,
    )
