"""The Helm chart as rendered by the real `helm`: names, pods, rights, arguments, CRDs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from poolfleet.controller.config import Config, parse
from poolfleet.controller.providers import Allowed, Command, load
from poolfleet.kube import kinds
from poolfleet.plan.model import Settings
from tests.unit.chart_kit import (
    CHART,
    DIGEST,
    RENDERS,
    ROOT,
    VALUES,
    arguments,
    deployment,
    helm,
    of_kind,
    rendered,
    rules,
    template,
)


def test_lint_finds_nothing() -> None:
    result = helm("lint", "--strict", str(CHART))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", RENDERS)
def test_every_object_is_named_labelled_and_unique(name: str) -> None:
    seen = set()
    for obj in rendered(name):
        meta = obj["metadata"]
        key = (obj["kind"], meta.get("namespace"), meta["name"])
        assert key not in seen
        seen.add(key)
        if meta["name"].startswith("of-"):
            continue
        assert meta["labels"]["app.kubernetes.io/name"] == "poolfleet"
        assert meta["labels"]["app.kubernetes.io/instance"] == "poolfleet"
        assert meta["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert meta["labels"]["helm.sh/chart"].startswith("poolfleet-")
        cluster_wide = obj["kind"] in {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
        assert ("namespace" in meta) is not cluster_wide


@pytest.mark.parametrize("name", RENDERS)
def test_selectors_are_the_same_in_every_render_and_match_only_the_operator(name: str) -> None:
    selector = {
        "app.kubernetes.io/name": "poolfleet",
        "app.kubernetes.io/instance": "poolfleet",
        "app.kubernetes.io/component": "operator",
    }
    assert deployment(name)["spec"]["selector"] == {"matchLabels": selector}
    assert of_kind(name, "Service")[0]["spec"]["selector"] == selector
    assert of_kind(name, "NetworkPolicy")[0]["spec"]["podSelector"] == {"matchLabels": selector}
    assert selector.items() <= deployment(name)["spec"]["template"]["metadata"]["labels"].items()
    (test_pod,) = of_kind(name, "Pod")
    assert not selector.items() <= test_pod["metadata"]["labels"].items()
    for spread in deployment(name)["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"] == {"matchLabels": selector}


@pytest.mark.parametrize("name", RENDERS)
def test_every_pod_is_restricted(name: str) -> None:
    """The rules of the restricted Pod Security Standard, and a read-only root file system."""
    pods = [deployment(name)["spec"]["template"]["spec"], *(pod["spec"] for pod in of_kind(name, "Pod"))]
    assert len(pods) == 2
    for pod in pods:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        assert all(volume.keys() - {"name"} <= {"emptyDir", "configMap"} for volume in pod.get("volumes", []))
        assert pod["enableServiceLinks"] is False
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"privileged", "runAsUser"}.isdisjoint(context)
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_operator_is_rolled_one_by_one_and_survives_a_drain() -> None:
    spec = deployment("defaults")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 1
    assert of_kind("defaults", "PodDisruptionBudget")[0]["spec"]["maxUnavailable"] == 1
    assert of_kind("one replica", "PodDisruptionBudget") == []
    container = spec["template"]["spec"]["containers"][0]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]


def config(name: str) -> Config:
    """What the operator makes of its command line and environment in one of RENDERS."""
    command, *rest = arguments(name)
    assert command == "operator"
    container = deployment(name)["spec"]["template"]["spec"]["containers"][0]
    fields = {"metadata.name": "poolfleet-0", "metadata.namespace": "poolfleet-system"}
    environ = {
        env["name"]: env.get("value") or fields[env["valueFrom"]["fieldRef"]["fieldPath"]] for env in container["env"]
    }
    return parse([argument.replace("$(POD_NAMESPACE)", environ["POD_NAMESPACE"]) for argument in rest], environ)


def test_operator_understands_its_arguments() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    default = Config(
        settings=Settings(
            agent_image=f"poolfleet/operator:{version}",
            pgbouncer_image=f"poolfleet/pgbouncer:{VALUES['fleet']['image']['tag']}",
            image_pull_policy="IfNotPresent",
            image_pull_secrets=(),
            run_as_user=65532,
            operator_namespace="poolfleet-system",
        ),
        lease_namespace="poolfleet-system",
        lease_name="poolfleet-leader",
        identity="poolfleet-0",
    )
    assert config("defaults") == default
    assert config("namespaced") == replace(default, namespaces=("blog", "shop"))
    assert config("namespaced, own namespace") == replace(default, namespaces=("poolfleet-system",))
    assert config("no Secret watch") == replace(default, watch_secrets=False)
    assert config("no fast lane") == replace(default, fast_lane=False)
    assert config("no user") == replace(default, settings=replace(default.settings, run_as_user=None))
    assert config("pull secrets") == replace(default, settings=replace(default.settings, image_pull_secrets=("a", "b")))
    assert config("everything") == replace(default, workers=3)
    assert config("tokens") == replace(default, token_providers=Path("/etc/poolfleet/token-providers.json"))
    image = f"registry.example:5000/poolfleet/operator@{DIGEST}"
    assert config("digest").settings.agent_image == image


def test_token_commands_are_in_a_file_that_the_operator_understands(tmp_path: Path) -> None:
    (made,) = of_kind("tokens", "ConfigMap")
    file = tmp_path / "file"
    file.write_text(made["data"]["token-providers.json"])
    vend = Command(("/opt/vend", "--json"), frozenset({"shop"}), 5.0)
    assert load(file) == Allowed({"vend": vend}, frozenset({"*"}))
    pod = deployment("tokens")["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"tmp": "/tmp", "token-providers": "/etc/poolfleet", "opt": "/opt"}
    assert {"name": "token-providers", "configMap": {"name": made["metadata"]["name"]}} in pod["volumes"]
    assert {"name": "opt", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    other = template(*RENDERS["tokens"], "tokenCommands.vend.timeoutSeconds=6", only="templates/tokenproviders.yaml")
    assert yaml.safe_load(other.stdout)["metadata"]["name"] != made["metadata"]["name"], "the pods are not rolled"
    assert of_kind("defaults", "ConfigMap") == []


def test_images_by_registry_tag_and_digest() -> None:
    image = f"registry.example:5000/poolfleet/operator@{DIGEST}"
    assert deployment("digest")["spec"]["template"]["spec"]["containers"][0]["image"] == image
    assert of_kind("digest", "Pod")[0]["spec"]["containers"][0]["image"] == image
    assert f"--agent-image={image}" in arguments("digest")
    assert f"--pgbouncer-image=poolfleet/pgbouncer@{DIGEST}" in arguments("digest")
    result = template("image.tag=v1", "fleet.image.registry=registry.example/", "fleet.image.tag=v7")
    assert "--agent-image=poolfleet/operator:v1" in result.stdout
    assert "--pgbouncer-image=registry.example/poolfleet/pgbouncer:v7" in result.stdout


def test_pull_secrets_of_the_release() -> None:
    assert deployment("pull secrets")["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "mine"}]
    assert of_kind("pull secrets", "Pod")[0]["spec"]["imagePullSecrets"] == [{"name": "mine"}]


@pytest.mark.parametrize("name", RENDERS)
def test_rights_have_no_wildcard_and_are_never_more_than_needed(name: str) -> None:
    for _, resource, verbs, rule in rules(name, "ClusterRole", "Role"):
        assert "*" not in json.dumps(rule)
        assert verbs <= {"get", "list", "watch", "create", "patch", "update", "delete"}
        assert "nonResourceURLs" not in rule
        # update replaces a whole object: only the Lease's holder needs it, and the admission check of ownerReferences.
        assert "update" not in verbs or resource in {"leases", "pgpools/finalizers"}
        # What plan/pool.py calls doomed: children that the spec does not ask for any more.
        assert "delete" not in verbs or resource in {"networkpolicies", "secrets"}
        assert not {"roles", "rolebindings", "pods/exec", "serviceaccounts"} & {resource}
        # What is in no namespace is only read, and not at all by an operator of single namespaces.
        assert resource not in {"namespaces", "nodes"} or verbs <= {"get", "list", "watch"}
    # PgPools belong to their users: the operator writes only their status.
    assert {frozenset(v) for _, r, v, _ in rules(name, "ClusterRole", "Role") if r == "pgpools"} <= {
        frozenset({"get", "list", "watch"})
    }


@pytest.mark.parametrize("name", ["defaults", "namespaced"])
def test_rights_cover_every_kind_that_the_operator_handles(name: str) -> None:
    granted: dict[tuple[str, str], set[str]] = {}
    for group, resource, verbs, _ in rules(name, "ClusterRole", "Role"):
        granted.setdefault((group, resource), set()).update(verbs)
    apply = {"get", "list", "watch", "create", "patch"}
    wanted = dict.fromkeys((kinds.SERVER, *kinds.CHILDREN), apply) | {
        kinds.SECRET: {*apply, "delete"},
        kinds.NETWORK_POLICY: {*apply, "delete"},
        kinds.POOL: {"get", "list", "watch"},
        kinds.POD: {"get", "list", "watch", "patch"},
        kinds.LEASE: {"get", "create", "update"},
        kinds.EVENT: {"create", "patch"},
    }
    in_no_namespace = {kinds.NAMESPACE: {"get", "list", "watch"}, kinds.NODE: {"get"}}
    assert wanted.keys() | in_no_namespace.keys() == set(kinds.ALL.values())
    assert {kind for kind in kinds.ALL.values() if not kind.namespaced} == in_no_namespace.keys()
    wanted |= in_no_namespace if name == "defaults" else {}
    for kind, verbs in wanted.items():
        assert granted.pop((kind.group, kind.plural)) == verbs, kind
    assert granted.pop((kinds.POOL.group, "pgpools/status")) == {"patch"}
    assert granted.pop((kinds.POOL.group, "pgservers/status")) == {"patch"}
    assert granted.pop((kinds.POOL.group, "pgpools/finalizers")) == {"update"}
    assert granted == {}


def test_namespaced_scope_has_no_cluster_role() -> None:
    for name in ("namespaced", "namespaced, own namespace"):
        assert of_kind(name, "ClusterRole") == []
        assert of_kind(name, "ClusterRoleBinding") == []
    roles = {(role["metadata"]["namespace"], role["metadata"]["name"]) for role in of_kind("namespaced", "Role")}
    assert roles == {("blog", "poolfleet"), ("shop", "poolfleet"), ("poolfleet-system", "poolfleet-leader")}
    bindings = of_kind("namespaced", "RoleBinding")
    assert {(b["metadata"]["namespace"], b["metadata"]["name"]) for b in bindings} == roles
    for binding in bindings:
        assert binding["roleRef"]["kind"] == "Role"
        assert binding["roleRef"]["name"] == binding["metadata"]["name"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "poolfleet", "namespace": "poolfleet-system"}]


def test_leases_only_in_the_own_namespace_and_by_name() -> None:
    assert not [resource for _, resource, _, _ in rules("defaults", "ClusterRole") if resource == "leases"]
    named = [
        rule for _, resource, _, rule in rules("defaults", "Role") if resource == "leases" and "update" in rule["verbs"]
    ]
    assert [rule["resourceNames"] for rule in named] == [["poolfleet-leader"]]
    assert "--lease-name=poolfleet-leader" in arguments("defaults")
    assert [role["metadata"]["namespace"] for role in of_kind("defaults", "Role")] == ["poolfleet-system"]


def test_secrets_are_not_listed_if_their_watch_is_off() -> None:
    (verbs,) = (verbs for _, resource, verbs, _ in rules("no Secret watch", "ClusterRole") if resource == "secrets")
    assert verbs == {"get", "create", "patch", "delete"}


def test_people_get_rights_by_aggregation() -> None:
    roles = {role["metadata"]["name"]: role for role in of_kind("defaults", "ClusterRole")}
    assert roles.keys() == {"poolfleet", "poolfleet-view", "poolfleet-edit", "poolfleet-admin"}
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    aggregated = {
        name: {label.removeprefix(prefix) for label in role["metadata"]["labels"] if label.startswith(prefix)}
        for name, role in roles.items()
    }
    assert aggregated == {
        "poolfleet": set(),
        "poolfleet-view": {"view", "edit", "admin"},
        "poolfleet-edit": {"edit", "admin"},
        "poolfleet-admin": {"admin"},
    }
    assert all(set(rule["verbs"]) == {"get", "list", "watch"} for rule in roles["poolfleet-view"]["rules"])


def test_rbac_and_service_account_may_be_somebody_elses() -> None:
    rbac = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    assert not rbac & {obj["kind"] for obj in rendered("no rbac")}
    assert deployment("no rbac")["spec"]["template"]["spec"]["serviceAccountName"] == "default"
    assert deployment("everything")["spec"]["template"]["spec"]["serviceAccountName"] == "somebody"
    (binding,) = of_kind("everything", "ClusterRoleBinding")
    assert binding["subjects"][0]["name"] == "somebody"


def test_crds_are_the_checked_in_ones_and_kept() -> None:
    crds = {path.name: path.read_bytes() for path in (ROOT / "crds").glob("*.yaml")}
    copies = {path.name: path.read_bytes() for path in (CHART / "files" / "crds").glob("*.yaml")}
    assert crds.keys() == {"pgpools.yaml", "pgservers.yaml"}
    assert copies == crds, "run charts/sync-crds.sh"
    expected = {crd["metadata"]["name"]: crd for crd in map(yaml.safe_load, crds.values())}
    for name, keep in (("defaults", True), ("crds not kept", False)):
        found = {crd["metadata"]["name"]: crd for crd in of_kind(name, "CustomResourceDefinition")}
        assert found.keys() == expected.keys()
        for crd_name, crd in found.items():
            assert crd["apiVersion"] == "apiextensions.k8s.io/v1"
            assert crd["spec"] == expected[crd_name]["spec"]
            annotations = crd["metadata"].get("annotations", {})
            assert (annotations.get("helm.sh/resource-policy") == "keep") is keep
            assert expected[crd_name]["metadata"].get("annotations", {}).items() <= annotations.items()
    assert of_kind("no crds", "CustomResourceDefinition") == []


def test_service_monitor_only_where_its_kind_is_known() -> None:
    (monitor,) = of_kind("everything", "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    service_labels = of_kind("everything", "Service")[0]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service_labels.items()
    assert "kind: ServiceMonitor" not in template("metrics.serviceMonitor.enabled=true").stdout


def test_network_policy_opens_one_port() -> None:
    (rule,) = of_kind("defaults", "NetworkPolicy")[0]["spec"]["ingress"]
    assert rule == {"ports": [{"port": "http", "protocol": "TCP"}]}
    assert of_kind("everything", "NetworkPolicy")[0]["spec"]["ingress"][0]["from"]
    assert "kind: NetworkPolicy" not in template("networkPolicy.enabled=false").stdout


def test_extra_objects_are_templates_as_maps_and_as_strings(tmp_path: Path) -> None:
    assert [obj["metadata"]["name"] for obj in of_kind("everything", "ConfigMap")] == ["of-poolfleet"]
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: text-{{ .Release.Name }}\n"
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"extraObjects": [text]}))
    assert "name: text-poolfleet" in template(file=values).stdout


def test_other_release_names_stay_valid() -> None:
    assert "name: prod-poolfleet\n" in template(release="prod").stdout
    assert "name: own\n" in template("fullnameOverride=own").stdout
    result = template(release="a" * 53)
    names = {str(obj["metadata"]["name"]) for obj in yaml.safe_load_all(result.stdout) if obj}
    assert max(map(len, names)) <= 63
    assert not [name for name in names if name.endswith("-")]


def test_hook_pod_runs_the_checked_in_script() -> None:
    (pod,) = of_kind("defaults", "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python3", "-c"]
    script, address = container["args"]
    assert script.strip() == (CHART / "files" / "test.py").read_text().strip()
    assert address == "poolfleet.poolfleet-system.svc:8080"
