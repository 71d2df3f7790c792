"""The children of a PgPool, as objects."""

import pytest

from poolfleet.api import names
from poolfleet.plan.objects.meta import controlled_by, selector, stamp
from poolfleet.plan.objects.pod import pod_template
from poolfleet.plan.objects.secret import binding_name, percent
from poolfleet.plan.pool import plan
from poolfleet.plan.rollout import Rolled
from tests.unit.pool_fixtures import OWNER, Body, data, of, pool_body, view

ALL = plan(view()).wanted


@pytest.mark.parametrize("obj", ALL, ids=[f"{o['kind']}-{o['metadata']['name']}" for o in ALL])
def test_every_child_is_labelled_and_owned(obj: Body) -> None:
    metadata = obj["metadata"]
    assert controlled_by(obj, OWNER.uid)
    assert metadata["ownerReferences"][0]["blockOwnerDeletion"] is True
    assert metadata["labels"][names.LABEL_MANAGED_BY] == names.MANAGED_BY
    assert metadata["labels"][names.LABEL_POOL] == "shop"
    assert (obj["kind"] == "Secret") == (metadata["labels"].get(names.LABEL_WATCH) == "true")
    assert metadata["annotations"][names.APPLIED_HASH]


def containers(deployment: Body) -> list[Body]:
    spec = deployment["spec"]["template"]["spec"]
    return [*spec["initContainers"], *spec["containers"]]


def test_the_pod_is_restricted() -> None:
    deployment = of(plan(view()), "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in containers(deployment):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "cpu" not in container["resources"]["limits"]


def test_the_pod_keeps_its_contract_with_agent_and_kubelet() -> None:
    spec = of(plan(view()), "Deployment")["spec"]["template"]["spec"]
    (agent,), (pgbouncer,) = spec["initContainers"], spec["containers"]
    assert agent["restartPolicy"] == "Always"
    assert agent["startupProbe"]["httpGet"]["path"] == "/startupz"
    assert agent["startupProbe"]["periodSeconds"] * agent["startupProbe"]["failureThreshold"] == 86400
    assert agent["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert pgbouncer["command"] == ["pgbouncer", "/run/pgbouncer/pgbouncer.ini"]
    assert not {"livenessProbe", "readinessProbe", "startupProbe"} & pgbouncer.keys()
    (header,) = pgbouncer["lifecycle"]["preStop"]["httpGet"]["httpHeaders"]
    assert header["name"] == names.DRAIN_TOKEN_HEADER
    assert spec["terminationGracePeriodSeconds"] == 60 + 5 + 15
    paths = [item["path"] for volume in spec["volumes"] for item in volume.get("downwardAPI", {}).get("items", [])]
    assert paths == ["directive", "server", "uid"]
    mounts = {
        container["name"]: {m["mountPath"] for m in container["volumeMounts"]} for container in (agent, pgbouncer)
    }
    assert mounts == {"agent": {names.RUN_DIR, names.CONFIG_DIR, names.POD_DIR}, "pgbouncer": {names.RUN_DIR}}


def test_containers_see_each_other_since_the_second_revision_of_the_template() -> None:
    for revision, shared in ((1, None), (2, True)):
        rolled = Rolled(inputs="", agent_image="a", pgbouncer_image="b", revision=revision)
        template = pod_template(
            OWNER,
            rolled,
            config_secret="x",
            server_uid="u",
            drain_seconds=0,
            drain_token="t",
            restart_parameters="",
        )
        assert template["spec"].get("shareProcessNamespace") is shared


def test_the_user_may_be_left_to_the_platform() -> None:
    rolled = Rolled(inputs="", agent_image="a", pgbouncer_image="b", run_as_user=None)
    template = pod_template(
        OWNER,
        rolled,
        config_secret="c",
        server_uid="s",
        drain_seconds=1,
        drain_token="t",
        restart_parameters="",
    )
    assert not {"runAsUser", "fsGroup"} & template["spec"]["securityContext"].keys()


def test_a_rollout_never_takes_a_pod_away_first() -> None:
    spec = of(plan(view()), "Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert spec["selector"]["matchLabels"] == selector(OWNER)
    assert spec["template"]["metadata"]["labels"].items() >= selector(OWNER).items()


def test_the_service_as_wished() -> None:
    wish = {
        "type": "LoadBalancer",
        "port": 5432,
        "labels": {"a": "b", names.LABEL_POOL: "forged"},
        "annotations": {"c": "d"},
        "loadBalancerClass": "example.com/lb",
        "loadBalancerSourceRanges": ["10.0.0.0/8"],
        "ipFamilyPolicy": "PreferDualStack",
        "trafficDistribution": "PreferClose",
    }
    service = of(plan(view(pool_body(service=wish))), "Service")
    assert service["spec"] == {
        "type": "LoadBalancer",
        "selector": selector(OWNER),
        "ports": [{"name": "postgres", "port": 5432, "protocol": "TCP", "targetPort": 6432}],
        "loadBalancerClass": "example.com/lb",
        "loadBalancerSourceRanges": ["10.0.0.0/8"],
        "ipFamilyPolicy": "PreferDualStack",
        "trafficDistribution": "PreferClose",
    }
    assert service["metadata"]["labels"]["a"] == "b"
    assert service["metadata"]["labels"][names.LABEL_POOL] == "shop"
    assert service["metadata"]["annotations"]["c"] == "d"


def test_the_network_policy_lets_clients_in_as_wished() -> None:
    def ingress(**spec: object) -> list[Body]:
        rules: list[Body] = of(plan(view(pool_body(**spec))), "NetworkPolicy")["spec"]["ingress"]
        return rules

    assert "from" not in ingress()[0]
    peers = [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]
    rules = ingress(networkPolicy={"enabled": True, "from": peers})
    own = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "pooler", "poolfleet.dev/pool": "shop"}}}
    assert rules[0]["from"] == [*peers, own], "the pool's pods forward query cancels to each other"
    assert [port["port"] for rule in rules for port in rule["ports"]] == [6432, 9127]


def test_a_binding_is_a_service_binding() -> None:
    secrets = {"shop-app": {"username": b"us/er", "password": "pä ss:@".encode()}}
    binding = of(plan(view(secrets=secrets)), "Secret", "shop-binding")
    assert binding["type"] == "servicebinding.io/postgresql"
    assert data(binding) == {
        "type": "postgresql",
        "provider": "poolfleet",
        "host": "shop.demo.svc",
        "port": "6432",
        "database": "shop",
        "username": "us/er",
        "password": "pä ss:@",
        "uri": "postgresql://us%2Fer:p%C3%A4%20ss%3A%40@shop.demo.svc:6432/shop",
    }


def test_bindings_of_strange_users_have_names_of_their_own() -> None:
    assert binding_name(OWNER, "reader") == "shop-binding-reader"
    strange = [binding_name(OWNER, user) for user in ("App_RW", "app_rw", "app-rw", "Ä", "ä", "x" * 63 + "y")]
    assert len(set(strange)) == len(strange)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and not name.endswith("-") for name in strange)


def test_percent_encoding_keeps_only_what_needs_none() -> None:
    assert percent("aZ9-._~") == "aZ9-._~"
    assert percent("%:/?#[]@ é") == "%25%3A%2F%3F%23%5B%5D%40%20%C3%A9"


def test_the_hash_of_a_secret_cannot_be_guessed_without_the_key() -> None:
    binding = {"kind": "Secret", "metadata": {"name": "a"}, "data": {"password": "eA=="}}
    one, two = stamp(binding, b"one"), stamp(binding, b"two")
    assert one["metadata"]["annotations"] != two["metadata"]["annotations"]
    assert one == stamp(binding, b"one")
