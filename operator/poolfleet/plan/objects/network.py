"""How clients reach the pods: the Service and the NetworkPolicy."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from poolfleet.api import names
from poolfleet.api.pgpool import Service
from poolfleet.plan.objects.meta import Manifest, Owner, manifest, selector


def host(owner: Owner) -> str:
    """DNS name of the pool's Service, good in every namespace of the cluster."""
    return f"{owner.name}.{owner.namespace}.svc"


def service(owner: Owner, wish: Service) -> Manifest:
    """Service x, as spec.service wishes."""
    spec: Manifest = {
        "type": wish.type,
        "selector": selector(owner),
        "ports": [{"name": "postgres", "port": wish.port, "protocol": "TCP", "targetPort": names.PGBOUNCER_PORT}],
    }
    if wish.load_balancer_class is not None:
        spec["loadBalancerClass"] = wish.load_balancer_class
    if wish.load_balancer_source_ranges:
        spec["loadBalancerSourceRanges"] = list(wish.load_balancer_source_ranges)
    if wish.ip_family_policy is not None:
        spec["ipFamilyPolicy"] = wish.ip_family_policy
    if wish.traffic_distribution is not None:
        spec["trafficDistribution"] = wish.traffic_distribution
    return manifest(
        owner, "v1", "Service", owner.name, extra_labels=wish.labels, annotations=wish.annotations, spec=spec
    )


def network_policy(owner: Owner, clients: Sequence[Mapping[str, Any]]) -> Manifest:
    """NetworkPolicy x: PgBouncer's port for `clients` (peers as in a NetworkPolicy; none means everyone) and for the
    pool's own pods, which forward query cancels to each other; the agent's port for the cluster's pods (the operator
    and Prometheus), nothing else in. Outgoing traffic is not restricted."""
    to_pgbouncer: Manifest = {"ports": [{"port": names.PGBOUNCER_PORT, "protocol": "TCP"}]}
    if clients:
        own = {"podSelector": {"matchLabels": selector(owner)}}
        to_pgbouncer["from"] = [*(copy.deepcopy(dict(peer)) for peer in clients), own]
    to_agent = {
        "ports": [{"port": names.AGENT_PORT, "protocol": "TCP"}],
        "from": [{"namespaceSelector": {}}],
    }
    return manifest(
        owner,
        "networking.k8s.io/v1",
        "NetworkPolicy",
        owner.name,
        spec={
            "podSelector": {"matchLabels": selector(owner)},
            "policyTypes": ["Ingress"],
            "ingress": [to_pgbouncer, to_agent],
        },
    )
