"""What the operator asks of the API server is what the chart lets it, no more and no less, in both scopes.

The API server's own audit log tells what was asked for. The operator runs with the flags, and as the ServiceAccount,
that the chart gives it. And nothing of a Secret is in its log, however much that tells.
"""

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
import yaml

from poolfleet.api import names
from poolfleet.controller import app, pools, servers
from poolfleet.controller.agents import Agents
from poolfleet.controller.config import Config, parse
from poolfleet.controller.context import Key
from poolfleet.controller.handlers import Observer
from poolfleet.controller.queue import KeyedQueue
from poolfleet.controller.resync import Resync
from poolfleet.controller.store import Store
from poolfleet.kube.client import Kube
from poolfleet.kube.events import Recorder
from poolfleet.kube.kinds import SECRET
from poolfleet.plan.model import Event
from tests.integration.conftest import ApiServer
from tests.unit.chart_kit import template

Body = dict[str, Any]
Right = tuple[str, str, str]  # verb, API group, resource or resource/subresource
SYSTEM: Final = "poolfleet-system"
RIGHTS: Final = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
WORD: Final = "nobody-should-read-it"  # 21 bytes: what begins with it does so in base64 as well
HERE: Final = ("rbac.scope=Namespaced", "watchNamespaces={{{}}}")
FINALIZERS: Final = "pgpools/finalizers"
NOT_A_CALL: Final = {("update", names.GROUP, FINALIZERS)}  # looked at when a child is written
NODE: Final = ("get", "", "nodes")
GROUPS: Final = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts/",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles/",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles/",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings/",
}


@dataclass
class Installed:
    """A release without its pods: an operator of the test's own runs as its ServiceAccount."""

    api: ApiServer
    namespace: str  # where pools are
    objects: list[Body]

    @classmethod
    def make(cls, api: ApiServer, release: str, *values: str, without: str = "") -> "Installed":
        """Apply ServiceAccount and roles of the chart, but for rules about the resource `without`; `{}` in the values
        stands for the namespace of the pools."""
        api.install_crds()
        api.namespace(SYSTEM)
        namespace = api.namespace()
        rendered = template(*(value.format(namespace) for value in values), release=release)
        assert rendered.returncode == 0, rendered.stderr
        objects = [each for each in yaml.safe_load_all(rendered.stdout) if each]
        installed = cls(api, namespace, objects)
        for body in objects:
            if "rules" in body:
                body["rules"] = [rule for rule in body["rules"] if without not in rule["resources"]]
            if body["kind"] in RIGHTS:
                installed.apply(body)
        return installed

    def apply(self, body: Body) -> None:
        metadata = body["metadata"]
        folder = GROUPS[body["kind"]].format(metadata.get("namespace", SYSTEM))
        status, answer = self.api.apply(folder + metadata["name"], body)
        assert status < 300, answer

    @property
    def pod(self) -> Body:
        (deployment,) = (body for body in self.objects if body["kind"] == "Deployment")
        pod: Body = deployment["spec"]["template"]["spec"]
        return pod

    @property
    def account(self) -> str:
        return str(self.pod["serviceAccountName"])

    def granted(self) -> set[Right]:
        """What the chart lets the operator do."""
        bound = {
            (body["roleRef"]["kind"], body["roleRef"]["name"])
            for body in self.objects
            if body["kind"].endswith("Binding") and body["subjects"][0]["name"] == self.account
        }
        return {
            (verb, group, resource)
            for body in self.objects
            if (body["kind"], body["metadata"]["name"]) in bound
            for rule in body["rules"]
            for verb in rule["verbs"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }

    def asked(self) -> Iterator[tuple[Right, int]]:
        """What it asked for, with the HTTP status; a write by server-side apply that made something is a create too."""
        for event in self.api.audit(SYSTEM, self.account):
            if "objectRef" not in event:
                continue  # /version, /apis: everybody may
            on, code = event["objectRef"], event["responseStatus"]["code"]
            resource = on["resource"] + (f"/{on['subresource']}" if "subresource" in on else "")
            yield (event["verb"], on.get("apiGroup", ""), resource), code
            if (event["verb"], code) == ("patch", 201):
                yield ("create", on.get("apiGroup", ""), resource), code

    def used(self) -> set[Right]:
        return {right for right, code in self.asked() if code != 403}

    def denied(self) -> set[Right]:
        return {right for right, code in self.asked() if code == 403}

    def config(self) -> Config:
        """The chart's flags, with what only a test needs."""
        (container,) = self.pod["containers"]
        environ = {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}
        program, *flags = (each.replace("$(POD_NAMESPACE)", SYSTEM) for each in container["args"])  # as a kubelet does
        assert program == "operator"
        config = parse(flags, {**environ, "POD_NAMESPACE": SYSTEM})
        kubeconfig = self.api.service_account_kubeconfig(SYSTEM, self.account)
        return replace(
            config,
            kubeconfig=str(kubeconfig),
            token_providers=None,
            http_port=0,
            http_host="127.0.0.1",
            lease_duration=3.0,
            lease_renew_deadline=2.0,
            lease_retry_period=0.5,
        )

    # What people and kubelets do

    def path(self, plural: str, name: str, subresource: str = "") -> str:
        groups = {
            "pgpools": names.API_VERSION,
            "pgservers": names.API_VERSION,
            "deployments": "apps/v1",
            "networkpolicies": "networking.k8s.io/v1",
        }
        group = f"/apis/{groups[plural]}" if plural in groups else "/api/v1"
        return f"{group}/namespaces/{self.namespace}/{plural}/{name}" + (f"/{subresource}" if subresource else "")

    def make_kind(self, api_version: str, kind: str, plural: str, name: str, **body: Any) -> Body:
        wanted = {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace, **body.pop("metadata", {})},
            **body,
        }
        status, answer = self.api.apply(self.path(plural, name), wanted)
        assert status < 300, answer
        made: Body = answer
        return made

    def secret(self, name: str) -> None:
        data = {"username": name, "password": f"{WORD}-{name}"}
        self.make_kind("v1", "Secret", "secrets", name, stringData=data)

    def pool(self, **spec: Any) -> None:
        base = {"server": {"host": "db", "maxConnections": 100}, "databases": [{"name": "shop"}]}
        self.make_kind(names.API_VERSION, "PgPool", "pgpools", "shop", spec={**base, **spec})

    def pods(self, name: str, node: str) -> None:
        """A pod as the ReplicaSet makes it, and the kubelet runs it."""
        template = self.api.get(self.path("deployments", "shop"))["spec"]["template"]
        spec = {**template["spec"], "nodeName": node}
        self.make_kind("v1", "Pod", "pods", name, metadata=template["metadata"], spec=spec)
        status = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
        patch = [{"op": "add", "path": "/status", "value": status}]
        code, answer = self.api.request(
            "PATCH", self.path("pods", name, "status"), patch, content_type="application/json-patch+json"
        )
        assert code < 300, answer

    def exists(self, plural: str, name: str) -> bool:
        return self.api.request("GET", self.path(plural, name))[0] == 200

    def delete(self, plural: str, name: str) -> None:
        assert self.api.request("DELETE", self.path(plural, name), {"gracePeriodSeconds": 0})[0] < 300


@contextlib.asynccontextmanager
async def running(config: Config) -> AsyncIterator[app.Operator]:
    """The whole operator in this process; stopped in order at the end."""
    stopping = asyncio.Event()
    reconcilers = {names.POOL_PLURAL: pools.reconcile, names.SERVER_PLURAL: servers.reconcile}
    async with Kube.connect(config.kubeconfig) as kube, app.Operator(kube, config, reconcilers) as operator:
        task = asyncio.create_task(operator.run(stopping, lambda: None))
        try:
            yield operator
        finally:
            stopping.set()
            await asyncio.wait_for(task, 15)


async def until(what: str, condition: Callable[[], bool], seconds: float = 15) -> None:
    """Wait until `condition()`, asked in a thread, holds."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)


async def live(shop: Installed, operator: app.Operator) -> None:
    """Everything that happens to a pool in its life, as far as a cluster without kubelets has it."""

    async def do(work: Any, *arguments: Any, **more: Any) -> None:
        await asyncio.to_thread(work, *arguments, **more)

    await do(shop.secret, "app")
    await do(shop.secret, "second")
    users = [{"secretRef": {"name": name}} for name in ("app", "second")]
    await do(shop.pool, users=users)
    await until("a Deployment", lambda: shop.exists("deployments", "shop"))
    await do(shop.pods, "shop-1", "vanished")

    def directive() -> bool:
        annotations = shop.api.get(shop.path("pods", "shop-1"))["metadata"].get("annotations") or {}
        return names.DIRECTIVE in annotations

    await until("a directive", directive)
    binding = names.binding_secret("shop", "second")
    await until("its binding", lambda: shop.exists("secrets", binding))
    await until("a NetworkPolicy", lambda: shop.exists("networkpolicies", "shop"))
    await do(shop.pool, users=users[:1], networkPolicy={"enabled": False})
    await until("no NetworkPolicy", lambda: not shop.exists("networkpolicies", "shop"))
    await until("no binding", lambda: not shop.exists("secrets", binding))
    await do(shop.delete, "pods", "shop-1")  # without the kubelet's word: its Node may have gone with it
    await until("a look at the Node", lambda: NODE in shop.used() | shop.denied())
    # What a watch has not shown is listed and read, of every kind that is there.
    store = Store()
    observer = Observer(store, KeyedQueue[Key](), Agents(store))
    observer.leading = False  # asks no agent
    await do(shop.pods, "shop-2", "node")
    namespaces = operator._config.namespaces
    blind = Resync(operator.kube, store, observer, operator.watches, namespaces, grace=0.0)
    for watch in operator.watches:
        await blind.look(watch.kind)
    # The same news again, a minute later, is a count.
    clock = [time.time()]
    recorder = Recorder(operator.kube, "tests", clock=lambda: clock[0])
    pool = await asyncio.to_thread(shop.api.get, shop.path("pgpools", "shop"))
    for _ in range(2):
        await recorder.event(pool, Event("Normal", "Tested", "Test", "a test"))
        clock[0] += 61.0
    assert recorder.failures == 0


@pytest.mark.parametrize(
    ("release", "values", "denied"),
    [
        ("everywhere", (), set()),
        ("here", HERE, {NODE}),
        ("blind", (*HERE, "rbac.watchSecrets=false"), {NODE}),
    ],
)
async def test_the_operator_uses_its_rights_and_asks_for_no_other(
    apiserver: ApiServer,
    release: str,
    values: tuple[str, ...],
    denied: set[Right],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    shop = await asyncio.to_thread(Installed.make, apiserver, release, *values)
    async with running(shop.config()) as operator:
        await live(shop, operator)
        assert operator.store.synced(SECRET.plural)
    said = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    assert logging.DEBUG in {record.levelno for record in caplog.records}
    assert [line for line in said if WORD in line or base64.b64encode(WORD.encode()).decode() in line] == []
    assert shop.denied() == denied
    granted = shop.granted()
    assert shop.used() - granted == set(), "used, though the chart does not say so"
    assert granted - shop.used() == NOT_A_CALL, "in the chart, and never used"


async def test_a_right_that_is_no_call_is_needed_all_the_same(apiserver: ApiServer) -> None:
    """The API server asks for it when a child names its owner: without it nothing is made on OpenShift."""
    shop = await asyncio.to_thread(Installed.make, apiserver, "lacking", *HERE, without=FINALIZERS)
    async with running(shop.config()):
        await asyncio.to_thread(shop.secret, "app")
        await asyncio.to_thread(shop.pool, users=[{"secretRef": {"name": "app"}}])
        await until("a refusal", lambda: ("patch", names.GROUP, "pgservers") in shop.denied())
    assert not shop.exists("pgservers", "shop")
