"""kubectl pgpool against a real API server: as a plugin of the real kubectl, and with a tenant's rights."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from poolfleet.api import names
from poolfleet.plan.server import write_ledger
from poolfleet.plan.world import Ledger
from tests.integration.conftest import ApiServer, binaries
from tests.unit.explain_fixtures import entry, pod, pool, server, told

REPOSITORY = Path(__file__).parents[2]
Body = dict[str, Any]


class Cluster:
    """PgServer db in one namespace, PgPools shop and web of two others on it, with what the operator wrote."""

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        self.data, self.demo, self.other = api.namespace(), api.namespace(), api.namespace()
        made = self.create("pgservers", server(spec={"allowedNamespaces": {"from": "All"}}), self.data)
        pools = [self.pool("shop", self.demo), self.pool("web", self.other)]
        pods = [
            self.pod("p1", "shop", self.demo, made, 40),
            self.pod("p2", "shop", self.demo, made, 3),
            self.pod("w1", "web", self.other, made, 40),
        ]
        entries = [
            entry(
                body["metadata"]["name"],
                json.loads(body["metadata"]["annotations"][names.DIRECTIVE])["grant"][of],
                of=f"{body['metadata']['namespace']}/{of}",
            )
            for body, of in zip(pods, ("shop", "shop", "web"), strict=True)
        ]
        ledger = write_ledger(Ledger(7, tuple(entries)))
        for written, body in zip(ledger["entries"], sorted(pods, key=self._age(ledger)), strict=True):
            written["pod"] = body["metadata"]["uid"]
        lines = [
            {key: each["metadata"][key] for key in ("namespace", "name", "uid")} | {"budget": 43, "granted": 40}
            for each in pools
        ]
        self.status("pgservers", made, {"ledger": ledger, "pools": lines})
        self.status("pgpools", pools[0], {"connections": {"budget": 44, "granted": 43}})

    @staticmethod
    def _age(ledger: Body) -> Any:
        order = [each["podName"] for each in ledger["entries"]]
        return lambda body: order.index(body["metadata"]["name"])

    def path(self, plural: str, namespace: str, name: str = "") -> str:
        group = "/api/v1" if plural == "pods" else f"/apis/{names.API_VERSION}"
        return f"{group}/namespaces/{namespace}/{plural}{name and '/' + name}"

    def create(self, plural: str, body: Body, namespace: str) -> Body:
        body = copy.deepcopy(body)
        body["metadata"] = {
            key: value for key, value in body["metadata"].items() if key in ("name", "labels", "annotations")
        }
        body.pop("status", None)
        code, answer = self.api.request("POST", self.path(plural, namespace), body)
        assert code == 201, answer
        return dict(answer)

    def status(self, plural: str, body: Body, status: Body) -> None:
        metadata = body["metadata"]
        path = self.path(plural, metadata["namespace"], metadata["name"])
        patch = {"status": status}
        code, answer = self.api.request("PATCH", f"{path}/status", patch, content_type="application/merge-patch+json")
        assert code == 200, answer

    def pool(self, name: str, namespace: str) -> Body:
        return self.create("pgpools", pool(name, serverRef={"name": "db", "namespace": self.data}), namespace)

    def pod(self, name: str, of: str, namespace: str, of_server: Body, grant: int) -> Body:
        body = pod(name, of, namespace, told(grant, database=of))
        body["metadata"]["annotations"][names.SERVER_UID] = of_server["metadata"]["uid"]
        body["spec"]["containers"] = [{"name": names.PGBOUNCER_CONTAINER, "image": "example/pgbouncer:1"}]
        made = self.create("pods", body, namespace)
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        self.status("pods", made, ready)
        return made

    def tenant(self) -> Path:
        """A kubeconfig that may read PgPools and pods in namespace `demo` and nothing else."""
        file = self.api.service_account_kubeconfig(self.demo, "tenant")
        rules = [
            {"apiGroups": [names.GROUP], "resources": ["pgpools"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        ]
        role = {"kind": "Role", "metadata": {"name": "tenant"}, "rules": rules}
        binding = {
            "kind": "RoleBinding",
            "metadata": {"name": "tenant"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"},
            "subjects": [{"kind": "ServiceAccount", "name": "tenant", "namespace": self.demo}],
        }
        for plural, body in (("roles", role), ("rolebindings", binding)):
            group = "rbac.authorization.k8s.io/v1"
            path = f"/apis/{group}/namespaces/{self.demo}/{plural}"
            code, answer = self.api.request("POST", path, {"apiVersion": group, **body})
            assert code == 201, answer
        return file


@pytest.fixture
def cluster(apiserver: ApiServer) -> Cluster:
    apiserver.install_crds()
    return Cluster(apiserver)


@pytest.fixture
def plugin(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell that has `kubectl-pgpool` on its PATH, as pip would put it there."""
    script = tmp_path / "kubectl-pgpool"
    code = "import sys\nfrom poolfleet.cli.main import main\nsys.exit(main())\n"
    script.write_text(f"#!{sys.executable}\n{code}")
    script.chmod(0o755)
    path = f"{tmp_path}:{binaries()}:{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(REPOSITORY / "operator"), "HOME": str(tmp_path)}


def kubectl(environment: dict[str, str], kubeconfig: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["kubectl", "pgpool", *argv],
        env={**environment, "KUBECONFIG": str(kubeconfig)},
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_explain_as_a_plugin_of_kubectl(cluster: Cluster, plugin: dict[str, str]) -> None:
    said = kubectl(plugin, cluster.api.kubeconfig, "explain", "shop", "-n", cluster.demo)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith(f"PgServer {cluster.data}/db, in connections\n")
    assert re.search(r"^ +=  +87  +budget  ", said.stdout, re.MULTILINE)
    flags = ("-n", cluster.demo, "-o", "json", "--context", "test")
    whole = json.loads(kubectl(plugin, cluster.api.kubeconfig, "explain", "shop", *flags).stdout)
    # made within one second, they are of one age: who has the odd connection is a matter of UIDs
    assert {p["pool"].partition("/")[2] for p in whole["pools"]} == {"shop", "web"}
    assert sorted(p["share"] for p in whole["pools"]) == [43, 44]
    first, second = sorted(whole["pods"], key=lambda p: str(p["pod"]))
    assert (first["pod"], first["poolSize"], second["pod"], second["poolSize"]) == ("p1", 40, "p2", 3)
    assert re.fullmatch(r"1[89] borrowed: its clients wait, others need less", first["why"])
    assert re.fullmatch(r"1[89] lent: its clients need no more", second["why"])


def test_explain_with_a_tenants_rights(cluster: Cluster, plugin: dict[str, str]) -> None:
    # the namespace is the context's
    tenant = cluster.tenant()
    said = kubectl(plugin, tenant, "explain", "shop")
    assert (said.returncode, said.stderr) == (0, "")
    assert f'! PgServer "db" of namespace "{cluster.data}" cannot be read: ' in said.stdout
    assert "Ask its administrator for get on pgservers" in said.stdout
    assert re.search(r"^ +p1 +shop +- +40 +40 +-$", said.stdout, re.MULTILINE)
    [shop] = json.loads(kubectl(plugin, tenant, "explain", "shop", "-o", "json").stdout)["pools"]
    assert (shop["share"], shop["now"], shop["sure"]) == (44, 43, None)


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["explain", "none"], 'error: pgpools.poolfleet.dev "none" not found\n'),
        (["explain", "shop", "--context", "none"], "error: "),
    ],
)
def test_what_fails_is_said_in_one_line(cluster: Cluster, plugin: dict[str, str], argv: list[str], error: str) -> None:
    said = kubectl(plugin, cluster.api.kubeconfig, *argv, "-n", cluster.demo)
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith(error) and said.stderr.count("\n") == 1
