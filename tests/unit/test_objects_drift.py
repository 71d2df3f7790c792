"""What counts as drift: what server-side apply can repair, and nothing that the API server merely writes otherwise."""

import base64
import copy
from typing import Any

import pytest

from poolfleet.plan.objects.drift import differs, is_subset
from poolfleet.plan.objects.meta import stamp
from poolfleet.plan.objects.network import network_policy, service
from poolfleet.plan.pool import plan
from tests.unit.pool_fixtures import OWNER, Body, of, settled, view


def child(kind: str, name: str = "shop") -> Body:
    return of(plan(view()), kind, name)


def as_stored(obj: Body) -> Body:
    """The object with what an API server adds."""
    live = copy.deepcopy(obj)
    live["metadata"] |= {"uid": "u", "resourceVersion": "1", "creationTimestamp": "2027-01-01T00:00:00Z"}
    if obj["kind"] == "Deployment":
        live["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
        live["spec"] |= {"progressDeadlineSeconds": 600}
        template = live["spec"]["template"]
        template["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] = "2027-01-01T00:00:00Z"
        template["spec"] |= {
            "dnsPolicy": "ClusterFirst",
            "restartPolicy": "Always",
            "schedulerName": "default-scheduler",
        }
        container = template["spec"]["containers"][0]
        container |= {"terminationMessagePath": "/dev/termination-log"}
        container["resources"]["requests"]["cpu"] = "0.010"
        container["resources"]["limits"]["memory"] = str(512 * 1024 * 1024)
        for volume in template["spec"]["volumes"]:
            for item in volume.get("downwardAPI", {}).get("items", []):
                item["fieldRef"]["apiVersion"] = "v1"
    if obj["kind"] == "Service":
        live["spec"] |= {"clusterIP": "10.96.0.7", "sessionAffinity": "None"}
    return live


@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "PgServer"])
def test_what_the_api_server_completes_is_no_drift(kind: str) -> None:
    obj = child(kind)
    assert not differs(obj, as_stored(obj))


def test_an_absent_object_differs() -> None:
    assert differs(child("Service"), None)


def edit(live: Any, *path: Any, to: Any) -> None:
    for step in path[:-1]:
        live = live[step]
    live[path[-1]] = to


SPEC = ("spec", "template", "spec")


@pytest.mark.parametrize(
    ("kind", "path", "to"),
    [
        ("Deployment", ("spec", "replicas"), 5),
        ("Deployment", (*SPEC, "containers", 0, "image"), "other"),
        ("Deployment", (*SPEC, "containers", 0, "command"), ["sleep"]),
        ("Deployment", (*SPEC, "containers", 0, "command"), ["pgbouncer", "/run/pgbouncer/pgbouncer.ini", "-v"]),
        ("Deployment", (*SPEC, "initContainers"), []),
        ("Deployment", (*SPEC, "automountServiceAccountToken"), True),
        ("Deployment", (*SPEC, "containers", 0, "resources", "limits", "memory"), "1Gi"),
        ("Deployment", (*SPEC, "volumes", 0, "emptyDir", "sizeLimit"), "1Gi"),
        ("Deployment", ("spec", "template", "metadata", "labels"), {}),
        ("Deployment", ("metadata", "ownerReferences"), []),
        ("Deployment", ("metadata", "annotations", "poolfleet.dev/applied-hash"), "0"),
        ("Service", ("spec", "selector", "more"), "label"),
        ("Service", ("spec", "ports", 0, "port"), 5432),
        ("Service", ("spec", "type"), "NodePort"),
        ("PodDisruptionBudget", ("spec", "maxUnavailable"), 2),
        ("NetworkPolicy", ("spec", "ingress"), []),
        ("NetworkPolicy", ("spec", "ingress", 0, "ports"), [{"port": 1, "protocol": "TCP"}]),
        ("PgServer", ("spec", "maxConnections"), 500),
    ],
)
def test_an_edited_field_is_drift(kind: str, path: tuple[Any, ...], to: Any) -> None:
    obj = child(kind)
    live = as_stored(obj)
    edit(live, *path, to=to)
    assert differs(obj, live)


def test_what_others_may_add_stays() -> None:
    obj = child("Deployment")
    live = as_stored(obj)
    live["metadata"]["annotations"]["team"] = "a"
    live["spec"]["template"]["spec"]["containers"].append({"name": "injected", "image": "x"})
    live["spec"]["template"]["spec"]["tolerations"] = [{"key": "a"}]
    assert not differs(obj, live)


def test_one_more_port_in_a_network_policy_is_drift_and_in_a_container_is_not() -> None:
    policy = stamp(network_policy(OWNER, []), b"")
    live = copy.deepcopy(policy)
    live["spec"]["ingress"][0]["ports"].append({"port": 22, "protocol": "TCP"})
    assert differs(policy, live)
    obj = child("Deployment")
    live = as_stored(obj)
    live["spec"]["template"]["spec"]["containers"][0]["ports"].append({"containerPort": 1, "protocol": "TCP"})
    assert not differs(obj, live)


def test_a_closed_door_is_drift_and_an_empty_selector_is_not() -> None:
    peers = [
        {"podSelector": {"matchLabels": {}, "matchExpressions": []}, "namespaceSelector": {"matchLabels": {"a": "b"}}}
    ]
    policy = stamp(network_policy(OWNER, peers), b"")
    live = copy.deepcopy(policy)
    live["spec"]["ingress"][0]["from"][0] = {"podSelector": {}, "namespaceSelector": {"matchLabels": {"a": "b"}}}
    assert not differs(policy, live)
    live["spec"]["ingress"][0]["from"].append({"ipBlock": {"cidr": "10.0.0.0/8"}})
    assert differs(policy, live)


def test_a_secrets_data_must_be_exactly_as_wanted() -> None:
    obj = of(plan(view()), "Secret", "shop-config")
    live = as_stored(obj)
    assert not differs(obj, live)
    other = base64.b64encode(b"x").decode()
    for spoil in (
        {**live, "data": {**live["data"], "userlist.txt": other}},
        {**live, "data": {**live["data"], "more": other}},
        {**live, "data": {key: value for key, value in live["data"].items() if key != "key"}},
    ):
        assert differs(obj, spoil)


def test_a_removed_field_changes_the_hash() -> None:
    with_class = settled()
    assert with_class.spec is not None
    one = stamp(service(OWNER, with_class.spec.service.model_copy(update={"traffic_distribution": "PreferClose"})), b"")
    two = stamp(service(OWNER, with_class.spec.service), b"")
    assert differs(two, one)


@pytest.mark.parametrize(
    ("desired", "live", "field", "expected"),
    [
        ({}, None, "", True),
        ([], None, "", True),
        ("", None, "", True),
        (None, None, "", True),
        ({"a": 1}, None, "", False),
        (1, True, "", False),
        (False, None, "", False),
        (0, None, "", False),
        ({"cpu": "1000m"}, {"cpu": "1"}, "requests", True),
        ({"cpu": "1000m"}, {"cpu": "1100m"}, "requests", False),
        ({"memory": "1Gi"}, {"memory": "1024Mi"}, "limits", True),
        ({"memory": "1Gi"}, {}, "limits", False),
        ({"cpu": "1e3"}, {"cpu": "1k"}, "limits", True),
        ({"cpu": "what"}, {"cpu": "what"}, "limits", True),
        ([1, 2], [1, 2, 3], "args", False),
        ([{"name": "a"}], [{"name": "b"}, {"name": "a", "x": 1}], "volumes", True),
        ([{"name": "a"}], [{"name": "b"}], "volumes", False),
    ],
)
def test_subset(desired: Any, live: Any, field: str, expected: bool) -> None:
    assert is_subset(desired, live, "Deployment", field) is expected
