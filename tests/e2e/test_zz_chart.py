"""The release is upgraded, taken away, installed for one namespace and put back, and no client of a pool notices.

The last file in the alphabet, because it takes the operator away from everybody.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e import kit, node
from tests.e2e.release import RELEASE, Images, helm

OF_RELEASE = f"app.kubernetes.io/instance={RELEASE}"
CRDS = ("customresourcedefinitions/pgpools.poolfleet.dev", "customresourcedefinitions/pgservers.poolfleet.dev")

Report = Callable[[str], None]


@pytest.fixture(scope="module")
def today(kubectl: kit.Kubectl) -> Iterator[Images]:
    """The images of the release as it stands; whatever happens here, the release has them again at the end."""
    today = Images.of_release(kubectl)
    yield today
    today.install()


@pytest.fixture(scope="module")
def tomorrow(today: Images) -> Iterator[Images]:
    """The same images under other tags."""
    tomorrow = Images(f"{today.operator}-tomorrow", f"{today.pgbouncer}-tomorrow")
    node.tag_image(today.operator, tomorrow.operator)
    node.tag_image(today.pgbouncer, tomorrow.pgbouncer)
    yield tomorrow
    node.untag_image(tomorrow.operator)
    node.untag_image(tomorrow.pgbouncer)


@dataclass(frozen=True)
class Shop:
    """A pool of two pods, and who connects to it for every query."""

    pool: kit.Pool
    target: kit.Target
    clients: kit.Clients
    report: Report

    @contextlib.contextmanager
    def nobody_notices(self, what: str) -> Iterator[None]:
        """While this lasts clients connect for every query, and none of these fails; the pods stay what they are."""
        pods, load = self.pool.uids(), ("--clients", "6", "--interval-ms", "100", "--until-eof")
        steady = self.clients.start("steady", self.target.through(self.pool), *load)
        try:
            kit.await_until(steady.lines, 20, "a first answer through the pool")
            begun = time.time()
            yield
            seconds = time.time() - begun
        finally:
            lines = steady.stop()
        summary = lines[-1]["summary"]
        self.report(f"{what}: {seconds:.0f} s, {summary['failed']} of {summary['queries']} queries failed")
        assert summary["queries"] > 0 and summary["failed"] == 0, lines[:5]
        assert self.pool.uids() == pods

    def obeys(self, seconds: int) -> None:
        """Somebody edits the pool, and an operator carries that out on every pod."""
        self.pool.patch(pgbouncer={"parameters": {"query_wait_timeout": seconds}})
        kit.await_until(lambda: self.pool.setting("query_wait_timeout") == {str(seconds)}, 30, "the edit in force")


@pytest.fixture(scope="module")
def shop(
    kubectl: kit.Kubectl, namespace: str, target: kit.Target, clients: kit.Clients, today: Images, report: Report
) -> Shop:
    """The pool, rolled out by the release as it stands."""
    pool = kit.Pool(kubectl, namespace, "shop")
    pool.apply(target.spec(replicas=2, drain={"timeoutSeconds": 20}))
    pool.ready()
    pool.condition("Reconciling", "False", "AsWished", timeout=60)
    assert pool.status()["agent"] == {"image": today.operator, "outdated": False}
    return Shop(pool, target, clients, report)


def test_an_upgrade_to_new_images_restarts_no_pod(
    kubectl: kit.Kubectl, shop: Shop, today: Images, tomorrow: Images
) -> None:
    with shop.nobody_notices("helm upgrade to other images"):
        tomorrow.install()
        assert operator_images(kubectl) == {tomorrow.operator}
        kit.await_until(lambda: shop.pool.status()["agent"]["outdated"], 30, "the status names the outdated agent")
        shop.obeys(31)
    assert shop.pool.status()["agent"] == {"image": today.operator, "outdated": True}
    assert fleet_images(shop.pool) == {(today.operator, today.pgbouncer)}


def test_a_restart_takes_the_new_images(kubectl: kit.Kubectl, shop: Shop, tomorrow: Images) -> None:
    kubectl.run("-n", shop.pool.namespace, "rollout", "restart", "deployment/shop")
    new = {(tomorrow.operator, tomorrow.pgbouncer)}
    kit.await_until(lambda: fleet_images(shop.pool) == new, 90, "pods of the new images alone", interval=0.5)
    assert shop.pool.status()["agent"] == {"image": tomorrow.operator, "outdated": False}


def test_helm_test_passes(kubectl: kit.Kubectl, today: Images) -> None:
    said = helm("test", RELEASE, "--timeout", "60s")
    assert "Succeeded" in said and "Failed" not in said


def test_uninstalled_it_leaves_the_crds_and_the_fleets(kubectl: kit.Kubectl, shop: Shop) -> None:
    before = uids(kubectl, *CRDS)
    with shop.nobody_notices("helm uninstall"):
        helm("uninstall", RELEASE, "--wait", "--timeout", "60s")
        assert operator_images(kubectl) == set()
        assert cluster_roles(kubectl) == set()
    assert uids(kubectl, *CRDS) == before


def test_for_one_namespace_it_needs_no_clusterrole(kubectl: kit.Kubectl, shop: Shop, today: Images) -> None:
    namespace = shop.pool.namespace
    with shop.nobody_notices("helm install for one namespace"):
        served = f"watchNamespaces={{{namespace}}}"
        today.install("--set", "crds.install=false", "--set", "rbac.scope=Namespaced", "--set", served)
        assert cluster_roles(kubectl) == set()
        assert [may(kubectl, "list", "secrets", where) for where in (namespace, "demo")] == [True, False]
        shop.obeys(32)

    second = kit.Pool(kubectl, namespace, "second")
    server = {"host": shop.target.other_host("second"), "maxConnections": 40, "headroom": 0}
    spec = shop.target.spec(replicas=1, server=server)
    shop.report(f"apply → Ready with scope Namespaced: {second.ready(since=second.apply(spec)):.1f} s")
    assert shop.target.postgres.psql(shop.target.through(second), "SELECT 'served'") == "served"


def test_put_back_it_serves_all_namespaces_again(kubectl: kit.Kubectl, shop: Shop, today: Images) -> None:
    before = uids(kubectl, *CRDS)
    with shop.nobody_notices("helm uninstall, helm install"):
        helm("uninstall", RELEASE, "--wait", "--timeout", "60s")
        today.install()
        assert operator_images(kubectl) == {today.operator}
        assert may(kubectl, "list", "secrets", "demo")
        shop.obeys(33)
    assert uids(kubectl, *CRDS) == before


def operator_images(kubectl: kit.Kubectl) -> set[str]:
    """The images of the operator's pods, but for those that are going."""
    where = ("-n", kit.SYSTEM_NAMESPACE, "pods", "-l", f"{OF_RELEASE},app.kubernetes.io/component=operator")
    pods = [pod for pod in kubectl.get_json(*where)["items"] if "deletionTimestamp" not in pod["metadata"]]
    return {container["image"] for pod in pods for container in pod["spec"]["containers"]}


def fleet_images(pool: kit.Pool) -> set[tuple[str, str]]:
    """(agent's image, PgBouncer's image) of the pool's pods, those that are going too."""
    specs = [pod["spec"] for pod in pool.pods(all=True)]
    return {(spec["initContainers"][0]["image"], spec["containers"][0]["image"]) for spec in specs}


def cluster_roles(kubectl: kit.Kubectl) -> set[str]:
    """ClusterRoles and ClusterRoleBindings of the release, or that give its ServiceAccounts something."""
    found = kubectl.get_json("clusterroles,clusterrolebindings")["items"]
    return {
        f"{item['kind']}/{item['metadata']['name']}"
        for item in found
        if (item["metadata"].get("labels") or {}).get("app.kubernetes.io/instance") == RELEASE
        or any(subject.get("namespace") == kit.SYSTEM_NAMESPACE for subject in item.get("subjects") or ())
    }


def may(kubectl: kit.Kubectl, verb: str, resource: str, namespace: str) -> bool:
    """Whether the operator may do this in that namespace."""
    operator = f"system:serviceaccount:{kit.SYSTEM_NAMESPACE}:{RELEASE}"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": operator,
            "groups": [
                "system:serviceaccounts",
                f"system:serviceaccounts:{kit.SYSTEM_NAMESPACE}",
                "system:authenticated",
            ],
            "resourceAttributes": {"verb": verb, "resource": resource, "namespace": namespace},
        },
    }
    answer = json.loads(kubectl.run("create", "-f", "-", "-o", "json", stdin=json.dumps(review)))
    return bool(answer["status"]["allowed"])


def uids(kubectl: kit.Kubectl, *objects: str) -> list[str]:
    """UIDs of these objects (kind/name); they must be there."""
    return [kubectl.get_json(each)["metadata"]["uid"] for each in objects]
