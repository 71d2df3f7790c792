"""spec.template: everything of a pod template may be set, except what holds the promise."""

import copy
from typing import Any

import pytest

from poolfleet.plan.objects.overlay import TemplateError, merge, overlay
from poolfleet.plan.objects.pod import pod_template
from poolfleet.plan.rollout import Rolled
from tests.unit.pool_fixtures import OWNER, Body

ROLLED = Rolled(inputs="i", agent_image="agent:1", pgbouncer_image="pgbouncer:1", run_as_user=65532)


@pytest.fixture
def base() -> Body:
    return pod_template(
        OWNER,
        ROLLED,
        config_secret="shop-config",
        server_uid="uid-server",
        drain_seconds=60,
        drain_token="token",
        restart_parameters="",
    )


def container(template: Body, name: str, field: str = "containers") -> Body:
    return next(c for c in template["spec"][field] if c["name"] == name)


def test_an_empty_template_changes_nothing(base: Body) -> None:
    before = copy.deepcopy(base)
    assert overlay(base, {}) == (before, ())
    assert overlay(base, {"spec": {}, "metadata": None}) == (before, ())
    assert base == before


def test_what_does_not_touch_the_promise_lands(base: Body) -> None:
    user = {
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
        "spec": {
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "db", "operator": "Exists"}],
            "priorityClassName": "high",
            "imagePullSecrets": [{"name": "mine"}],
            "topologySpreadConstraints": [
                {"topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 2}
            ],
            "securityContext": {"seLinuxOptions": {"level": "s0"}},
            "containers": [
                {"name": "pgbouncer", "resources": {"limits": {"memory": "1Gi", "cpu": "2"}}, "env": [{"name": "A"}]},
                {"name": "exporter", "image": "exporter:1"},
            ],
            "initContainers": [{"name": "wait", "image": "wait:1"}],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
            "terminationGracePeriodSeconds": 300,
        },
    }
    template, overridden = overlay(base, user)
    spec = template["spec"]
    assert overridden == ()
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["annotations"]["note"] == "b"
    assert spec["nodeSelector"] == {"disk": "ssd"}
    assert spec["tolerations"] == [{"key": "db", "operator": "Exists"}]
    assert spec["imagePullSecrets"] == [{"name": "mine"}]
    assert [c["maxSkew"] for c in spec["topologySpreadConstraints"]] == [2, 1]
    assert spec["securityContext"]["seLinuxOptions"] == {"level": "s0"}
    assert spec["securityContext"]["runAsUser"] == 65532
    assert container(template, "pgbouncer")["resources"] == {
        "requests": {"cpu": "10m", "memory": "32Mi"},
        "limits": {"memory": "1Gi", "cpu": "2"},
    }
    assert [c["name"] for c in spec["containers"]] == ["pgbouncer", "exporter"]
    assert [c["name"] for c in spec["initContainers"]] == ["agent", "wait"]
    assert [v["name"] for v in spec["volumes"]] == ["run", "config", "pod", "scratch"]
    assert spec["terminationGracePeriodSeconds"] == 300


def test_null_removes(base: Body) -> None:
    user = {"spec": {"topologySpreadConstraints": None, "containers": [{"name": "pgbouncer", "resources": None}]}}
    template, overridden = overlay(base, user)
    assert "topologySpreadConstraints" not in template["spec"]
    assert "resources" not in container(template, "pgbouncer")
    assert overridden == ()


@pytest.mark.parametrize(
    ("user", "named"),
    [
        ({"spec": {"containers": [{"name": "pgbouncer", "image": "evil"}]}}, "spec.containers[pgbouncer].image"),
        ({"spec": {"containers": [{"name": "pgbouncer", "command": ["sh"]}]}}, "spec.containers[pgbouncer].command"),
        ({"spec": {"containers": [{"name": "pgbouncer", "args": ["-R"]}]}}, "spec.containers[pgbouncer].args"),
        (
            {"spec": {"containers": [{"name": "pgbouncer", "livenessProbe": {"tcpSocket": {"port": 6432}}}]}},
            "spec.containers[pgbouncer].livenessProbe",
        ),
        ({"spec": {"containers": [{"name": "pgbouncer", "lifecycle": None}]}}, "spec.containers[pgbouncer].lifecycle"),
        (
            {"spec": {"containers": [{"name": "pgbouncer", "securityContext": {"privileged": True}}]}},
            "spec.containers[pgbouncer].securityContext",
        ),
        (
            {"spec": {"containers": [{"name": "pgbouncer", "volumeMounts": None}]}},
            "spec.containers[pgbouncer].volumeMounts[/run/pgbouncer]",
        ),
        (
            {
                "spec": {
                    "containers": [
                        {"name": "pgbouncer", "volumeMounts": [{"mountPath": "/run/pgbouncer", "name": "x"}]}
                    ]
                }
            },
            "spec.containers[pgbouncer].volumeMounts[/run/pgbouncer]",
        ),
        (
            {"spec": {"containers": [{"name": "pgbouncer", "ports": None}]}},
            "spec.containers[pgbouncer].ports[6432]",
        ),
        ({"spec": {"containers": None}}, "spec.containers[pgbouncer]"),
        ({"spec": {"initContainers": None}}, "spec.initContainers[agent]"),
        (
            {"spec": {"initContainers": [{"name": "agent", "restartPolicy": None}]}},
            "spec.initContainers[agent].restartPolicy",
        ),
        (
            {"spec": {"initContainers": [{"name": "agent", "startupProbe": {"failureThreshold": 3}}]}},
            "spec.initContainers[agent].startupProbe",
        ),
        (
            {"spec": {"initContainers": [{"name": "agent", "env": [{"name": "POOLFLEET_RUN_DIR", "value": "/x"}]}]}},
            "spec.initContainers[agent].env[POOLFLEET_RUN_DIR]",
        ),
        (
            {
                "spec": {
                    "initContainers": [{"name": "agent", "env": [{"name": "POOLFLEET_DRAIN_SECONDS", "value": "1"}]}]
                }
            },
            "spec.initContainers[agent].env[POOLFLEET_DRAIN_SECONDS]",
        ),
        ({"spec": {"volumes": [{"name": "run", "emptyDir": {"medium": ""}}]}}, "spec.volumes[run]"),
        ({"spec": {"volumes": None}}, "spec.volumes[config]"),
        ({"spec": {"terminationGracePeriodSeconds": 5}}, "spec.terminationGracePeriodSeconds"),
        ({"spec": {"terminationGracePeriodSeconds": None}}, "spec.terminationGracePeriodSeconds"),
        ({"spec": {"shareProcessNamespace": False}}, "spec.shareProcessNamespace"),
        ({"spec": {"hostNetwork": True}}, "spec.hostNetwork"),
        ({"spec": {"automountServiceAccountToken": True}}, "spec.automountServiceAccountToken"),
        ({"spec": {"securityContext": {"runAsUser": 0}}}, "spec.securityContext.runAsUser"),
        ({"spec": {"securityContext": None}}, "spec.securityContext.fsGroup"),
        ({"metadata": {"labels": {"poolfleet.dev/pool": "other"}}}, "metadata.labels.poolfleet.dev/pool"),
        ({"metadata": {"labels": None}}, "metadata.labels.poolfleet.dev/pool"),
        ({"metadata": {"annotations": {"poolfleet.dev/server": "x"}}}, "metadata.annotations.poolfleet.dev/server"),
        (
            {"metadata": {"annotations": {"poolfleet.dev/directive": "{}"}}},
            "metadata.annotations.poolfleet.dev/directive",
        ),
    ],
)
def test_what_holds_the_promise_is_kept_and_named(base: Body, user: Body, named: str) -> None:
    template, overridden = overlay(base, user)
    assert named in overridden
    for key in ("command", "image", "lifecycle", "ports", "securityContext", "volumeMounts"):
        assert container(template, "pgbouncer")[key] == container(base, "pgbouncer")[key]
    for key in ("image", "command", "restartPolicy", "startupProbe", "env", "volumeMounts"):
        assert container(template, "agent", "initContainers")[key] == container(base, "agent", "initContainers")[key]
    assert template["spec"]["volumes"][:3] == base["spec"]["volumes"]
    assert template["spec"]["terminationGracePeriodSeconds"] == 80
    assert template["metadata"]["labels"].items() >= base["metadata"]["labels"].items()
    assert template["metadata"]["annotations"] == base["metadata"]["annotations"]
    assert not template["spec"].get("hostNetwork")
    assert not container(template, "pgbouncer").get("livenessProbe")


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ({"kind": "Pod"}, "kind"),
        ({"metadata": {"name": "x"}}, "metadata.name"),
        ({"spec": []}, "spec must be a map"),
        ({"metadata": "x"}, "metadata must be a map"),
        ({"spec": {"containers": {"name": "a"}}}, "spec.containers must be a list"),
        ({"spec": {"containers": ["a"]}}, "spec.containers[0] must be a map"),
        ({"spec": {"containers": [{"image": "a"}]}}, "spec.containers[0] needs name"),
        ({"spec": {"volumes": [{"emptyDir": {}}]}}, "spec.volumes[0] needs name"),
        ({"spec": {"containers": [{"name": "a", "env": [{"value": "x"}]}]}}, "spec.containers[a].env[0] needs name"),
        ({"spec": {"securityContext": 7}}, "spec.securityContext must be a map"),
    ],
)
def test_what_is_no_pod_template_is_refused_with_its_place(base: Body, user: Body, says: str) -> None:
    with pytest.raises(TemplateError) as refused:
        overlay(base, user)
    assert says in str(refused.value)


def test_a_new_list_is_merged_with_itself() -> None:
    merged: Any = merge({}, {"volumes": [{"name": "a", "x": 1, "y": None}, {"name": "a", "z": {"n": None}}]})
    assert merged == {"volumes": [{"name": "a", "x": 1, "z": {}}]}
