"""The operator's machinery against a real kube-apiserver: watches, queue, resync, handover, the end.

The reconcilers are stubs that note their keys.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from poolfleet.api import names
from poolfleet.controller import app
from poolfleet.controller.app import Operator, Reconcile, StartError
from poolfleet.controller.config import Config
from poolfleet.controller.context import Context, Key
from poolfleet.controller.handlers import DeadWatch, Watch, watch
from poolfleet.controller.observe import namespace_labels
from poolfleet.kube.client import Kube
from poolfleet.kube.kinds import DEPLOYMENT, LEASE, NAMESPACE, POD, POOL, SECRET, SERVER, SERVICE, Kind
from poolfleet.plan.model import Settings
from tests.integration.conftest import ApiServer

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def namespace(apiserver: ApiServer) -> str:
    apiserver.install_crds()
    return apiserver.namespace()


@pytest.fixture
async def kube(apiserver: ApiServer) -> AsyncIterator[Kube]:
    async with Kube.connect(str(apiserver.kubeconfig)) as connected:
        yield connected


def config(apiserver: ApiServer, namespace: str, **changes: Any) -> Config:
    wanted = Config(
        settings=Settings(agent_image="a", pgbouncer_image="b"),
        namespaces=(namespace,),
        lease_namespace=namespace,
        kubeconfig=str(apiserver.kubeconfig),
        http_port=0,
        http_host="127.0.0.1",
        start_patience=0.5,
    )
    return replace(wanted, **changes)


class Reconciler:
    """Notes when which key was worked on."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, Key]] = []
        self.context: Context | None = None
        self.pods_at_first: int | None = None

    async def __call__(self, context: Context, key: Key) -> float | None:
        self.context = context
        if self.pods_at_first is None:
            self.pods_at_first = len(context.store.list(POD.plural))
        self.seen.append((time.monotonic(), key))
        return None

    def count(self, kind: Kind, name: str) -> int:
        return sum((key.plural, key.name) == (kind.plural, name) for _, key in self.seen)


@asynccontextmanager
async def running(config: Config, reconciler: Reconcile) -> AsyncIterator[Operator]:
    """An operator in this process that leads and whose watches run; stopped in order at the end."""
    stopping = asyncio.Event()
    async with Kube.connect(config.kubeconfig) as kube:
        both = {names.POOL_PLURAL: reconciler, names.SERVER_PLURAL: reconciler}
        async with Operator(kube, config, both) as operator:
            task = asyncio.create_task(operator.run(stopping, lambda: None))
            try:
                await first(operator.watching.wait(), task)
                yield operator
            finally:
                stopping.set()
                await asyncio.wait_for(task, 15)


async def first(waiting: Any, task: asyncio.Task[None]) -> None:
    """Wait for `waiting`, and fail with what ended `task` if it ends first."""
    event = asyncio.create_task(waiting)
    await asyncio.wait({event, task}, return_when=asyncio.FIRST_COMPLETED, timeout=15)
    if task.done():
        event.cancel()
        task.result()
    assert event.done()


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def pool(namespace: str, name: str = "shop", **changes: Any) -> dict[str, Any]:
    spec = {
        "server": {"host": "db", "maxConnections": 100},
        "databases": [{"name": "shop"}],
        "users": [{"secretRef": {"name": "shop-app"}}],
        **changes,
    }
    metadata = {"namespace": namespace, "name": name}
    spec = {key: value for key, value in spec.items() if value is not None}
    return {"apiVersion": names.API_VERSION, "kind": POOL.kind, "metadata": metadata, "spec": spec}


def server(namespace: str, name: str) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name}
    spec = {"host": "db", "maxConnections": 100}
    return {"apiVersion": names.API_VERSION, "kind": SERVER.kind, "metadata": metadata, "spec": spec}


def child(kind: Kind, namespace: str, name: str, **labels: str) -> dict[str, Any]:
    labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_POOL: "shop", **labels}
    body: dict[str, Any] = {"apiVersion": kind.api_version, "kind": kind.kind}
    body["metadata"] = {"namespace": namespace, "name": name, "labels": labels}
    container = {"name": "pgbouncer", "image": "x"}
    if kind == SERVICE:
        body["spec"] = {"ports": [{"port": 6432}]}
    elif kind == POD:
        body["spec"] = {"containers": [container]}
    elif kind == DEPLOYMENT:
        template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}
        body["spec"] = {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": template}
    return body


def secret(namespace: str, name: str, text: str, *, watch: bool = True) -> dict[str, Any]:
    labels = {names.LABEL_WATCH: "true"} if watch else {}
    metadata = {"namespace": namespace, "name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"password": text}}


async def test_everything_is_listed_before_anything_is_decided(
    apiserver: ApiServer, namespace: str, kube: Kube
) -> None:
    for number in range(3):
        await kube.apply(child(POD, namespace, f"shop-{number}"), manager="tests")
    await kube.apply(pool(namespace), manager="tests")
    reconciler = Reconciler()
    async with running(config(apiserver, namespace), reconciler) as operator:
        await until(lambda: reconciler.count(POOL, "shop") > 0)
        assert reconciler.pods_at_first == 3
        assert all(operator.store.synced(watch.kind.plural) for watch in operator.watches)


async def test_an_edit_is_looked_at_within_milliseconds(apiserver: ApiServer, namespace: str, kube: Kube) -> None:
    await kube.apply(pool(namespace), manager="tests")
    reconciler = Reconciler()
    async with running(config(apiserver, namespace), reconciler):
        await until(lambda: reconciler.count(POOL, "shop") > 0)
        latencies = []
        for replicas in range(3, 13):
            before = len(reconciler.seen)
            started = time.monotonic()
            await kube.apply(pool(namespace, replicas=replicas), manager="tests")
            await until(lambda before=before: reconciler.count(POOL, "shop") > 0 and len(reconciler.seen) > before)  # type: ignore[misc]
            latencies.append(reconciler.seen[before][0] - started)
        assert sorted(latencies)[5] < 0.25, latencies


async def test_children_agents_and_secrets_lead_to_their_pool(apiserver: ApiServer, namespace: str, kube: Kube) -> None:
    await kube.apply(pool(namespace, serverRef={"name": "db"}, server=None), manager="tests")
    await kube.apply(server(namespace, "db"), manager="tests")
    reconciler = Reconciler()
    async with running(config(apiserver, namespace), reconciler) as operator:
        await until(lambda: operator.queue.depth == 0 and reconciler.count(SERVER, "db") > 0)

        async def leads_to(change: Any, *wanted: tuple[Kind, str]) -> None:
            await asyncio.sleep(0.2)  # what went before has been looked at
            before = len(reconciler.seen)
            await change

            def found() -> set[tuple[str, str]]:
                return {(key.plural, key.name) for _, key in reconciler.seen[before:]}

            await until(lambda: found() >= {(kind.plural, name) for kind, name in wanted})
            assert found() == {(kind.plural, name) for kind, name in wanted}

        both = ((POOL, "shop"), (SERVER, "db"))
        await leads_to(kube.apply(child(SERVICE, namespace, "shop"), manager="tests"), (POOL, "shop"))
        await leads_to(kube.apply(child(DEPLOYMENT, namespace, "shop"), manager="tests"), *both)
        await leads_to(kube.apply(child(POD, namespace, "shop-0"), manager="tests"), *both)
        await leads_to(kube.apply(secret(namespace, "shop-app", "a"), manager="tests"), (POOL, "shop"))
        await leads_to(kube.delete(SERVICE, namespace, "shop"), (POOL, "shop"))
        await leads_to(kube.delete(POD, namespace, "shop-0"), *both)
        await until(lambda: len(operator.store.deleted_pods(namespace, "shop")) == 1)
        # What others own is no business of ours.
        await kube.apply(secret(namespace, "elsewhere", "a", watch=False), manager="tests")
        assert operator.store.get(SECRET.plural, namespace, "elsewhere") is None


async def test_an_unlabelled_secret_is_read_by_name(apiserver: ApiServer, namespace: str, kube: Kube) -> None:
    await kube.apply(pool(namespace), manager="tests")
    await kube.apply(secret(namespace, "shop-app", "first", watch=False), manager="tests")
    reconciler = Reconciler()
    async with running(config(apiserver, namespace), reconciler) as operator:
        found = await operator.secrets.get(namespace, "shop-app")
        assert found is not None and found["data"]["password"] == "Zmlyc3Q="
        assert await operator.secrets.get(namespace, "missing") is None


async def test_the_operator_writes_nothing_by_itself(apiserver: ApiServer, namespace: str, kube: Kube) -> None:
    await kube.apply(pool(namespace), manager="tests")
    await kube.apply(child(POD, namespace, "shop-0"), manager="tests")
    reconciler = Reconciler()
    async with running(config(apiserver, namespace), reconciler):
        await until(lambda: reconciler.count(POOL, "shop") > 0)
        await kube.apply(pool(namespace, replicas=3), manager="tests")
        await until(lambda: reconciler.count(POOL, "shop") > 1)
    for kind, name in ((POOL, "shop"), (POD, "shop-0")):
        metadata = (await kube.get(kind, namespace, name))["metadata"]
        assert {entry["manager"] for entry in metadata["managedFields"]} == {"tests"}
        assert "finalizers" not in metadata


async def test_a_write_is_in_the_store_before_its_answer_is_used(
    apiserver: ApiServer, namespace: str, kube: Kube
) -> None:
    await kube.apply(pool(namespace), manager="tests")
    reconciler = Reconciler()
    async with running(config(apiserver, namespace), reconciler) as operator:
        await operator.kube.apply(child(SERVICE, namespace, "shop"), manager="poolfleet")
        assert operator.store.get(SERVICE.plural, namespace, "shop") is not None


async def test_watches_go_on_after_the_api_server_was_away(apiserver: ApiServer, namespace: str, kube: Kube) -> None:
    await kube.apply(pool(namespace), manager="tests")
    reconciler = Reconciler()
    async with running(config(apiserver, namespace, lease_renew_deadline=30.0, lease_duration=40.0), reconciler):
        await until(lambda: reconciler.count(POOL, "shop") > 0)
        apiserver.stop("kube-apiserver")
        await asyncio.sleep(1.0)  # connections fail and are tried again
        apiserver.start()
        before = reconciler.count(POOL, "shop")
        await kube.apply(pool(namespace, replicas=7), manager="tests")
        await until(lambda: reconciler.count(POOL, "shop") > before)


# Beside the watches


async def test_what_vanished_in_a_gap_is_found_by_listing(apiserver: ApiServer, namespace: str, kube: Kube) -> None:
    await kube.apply(pool(namespace), manager="tests")
    reconciler = Reconciler()
    async with running(config(apiserver, namespace), reconciler) as operator:
        operator.resync._grace = 0.1
        await until(lambda: reconciler.count(POOL, "shop") > 0)
        phantom = child(POD, namespace, "shop-0")
        phantom["metadata"] |= {"uid": "phantom", "resourceVersion": "1"}
        operator.store.put(POD.plural, phantom)
        before = reconciler.count(POOL, "shop")
        assert await operator.resync.look(POD) == 1
        assert operator.store.list(POD.plural) == []
        await until(lambda: reconciler.count(POOL, "shop") > before)
        assert [body["metadata"]["uid"] for body in operator.store.deleted_pods(namespace)] == ["phantom"]
        assert await operator.resync.look(POD) == 0


async def test_a_watch_that_shows_nothing_is_found_dead(
    apiserver: ApiServer, namespace: str, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dead(*arguments: Any) -> None:
        arguments[-1].set()
        await asyncio.Event().wait()

    monkeypatch.setattr(app, "watch", dead)
    monkeypatch.setattr("poolfleet.controller.resync.GRACE", 0.1)
    reconciler = Reconciler()
    with pytest.RaisesGroup(DeadWatch, flatten_subgroups=True):
        async with running(config(apiserver, namespace, resync_period=0.3), reconciler) as operator:
            operator.resync._grace = 0.1
            for replicas in range(2, 20):
                await kube.apply(pool(namespace, replicas=replicas), manager="tests")
                await asyncio.sleep(0.25)
    assert reconciler.count(POOL, "shop") > 0, "what the list found was looked at"


async def test_a_kind_that_kopf_would_never_watch_is_an_error(apiserver: ApiServer, namespace: str, kube: Kube) -> None:
    # What a restarting API server does: it names some kinds only later, and kopf asks once.
    operator = Operator(kube, config(apiserver, namespace), {})
    watches = (Watch(POOL), Watch(Kind("late.example/v1", "Thing", "things")))
    watching = asyncio.Event()
    with pytest.RaisesGroup(pytest.RaisesExc(DeadWatch, match="does not name things")):
        await watch(operator.observer, kube, watches, [namespace], lambda: None, watching)
    assert not watching.is_set()


async def test_without_the_right_to_watch_secrets_ours_are_read_by_name(
    apiserver: ApiServer, namespace: str, kube: Kube
) -> None:
    made = await kube.apply(pool(namespace), manager="tests")
    owner = {"apiVersion": names.API_VERSION, "kind": POOL.kind, "name": "shop", "uid": made["metadata"]["uid"]}
    ours = secret(namespace, "shop-config", "ours")
    ours["metadata"] |= {"ownerReferences": [owner], "labels": {names.LABEL_POOL: "shop"}}
    await kube.apply(ours, manager="tests")
    await kube.apply(secret(namespace, "shop-binding", "somebody else's"), manager="tests")
    reconciler = Reconciler()
    async with running(config(apiserver, namespace, watch_secrets=False), reconciler) as operator:
        assert SECRET not in {watch.kind for watch in operator.watches}
        assert operator.store.synced(SECRET.plural)
        assert operator.store.get(SECRET.plural, namespace, "shop-config") is not None
        assert operator.store.get(SECRET.plural, namespace, "shop-binding") is None
        await kube.delete(SECRET, namespace, "shop-config")
        await operator.resync.own_secrets()
        assert operator.store.get(SECRET.plural, namespace, "shop-config") is None
        assert operator.store.get_deleted(SECRET.plural, namespace, "shop-config") is not None


# Beginning and end


async def test_health_is_answered_by_the_standby_too(apiserver: ApiServer, namespace: str, kube: Kube) -> None:
    async def idle(context: Context, key: Key) -> float | None:
        return None

    async def get(path: str, operator: Operator) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{operator.port}{path}") as response,
        ):
            return response.status, await response.text()

    stopping = asyncio.Event()
    async with running(config(apiserver, namespace), idle) as leader:
        both = {names.POOL_PLURAL: idle, names.SERVER_PLURAL: idle}
        async with Operator(kube, config(apiserver, namespace), both) as standby:
            task = asyncio.create_task(standby.run(stopping, lambda: None))
            await until(lambda: standby.elector.contact is not None)
            assert not standby.elector.is_leader()
            for operator, leads in ((leader, "1.0"), (standby, "0.0")):
                assert await get("/healthz", operator) == (200, "ok\n")
                assert await get("/readyz", operator) == (200, "ok\n")
                status, text = await get("/metrics", operator)
                assert status == 200 and f"poolfleet_leader {leads}" in text
                assert 'poolfleet_api_requests_total{code="200",kind="pgpools",verb="list"}' in text
            stopping.set()
            await asyncio.wait_for(task, 5)


async def test_without_crds_it_says_what_to_do(
    apiserver: ApiServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "POOL", Kind("absent.example/v1", "PgPool", "pgpools"))
    with pytest.RaisesGroup(pytest.RaisesExc(StartError, match="CustomResourceDefinitions")):
        await app.run(config(apiserver, namespace), {}, asyncio.Event())


async def test_without_rights_it_says_which(apiserver: ApiServer, namespace: str) -> None:
    nobody = apiserver.service_account_kubeconfig(namespace, "nobody")
    with pytest.RaisesGroup(pytest.RaisesExc(StartError, match="nobody.*pgpools")):
        await app.run(config(apiserver, namespace, kubeconfig=str(nobody)), {}, asyncio.Event())


async def test_without_a_kubeconfig_it_says_so(apiserver: ApiServer, namespace: str) -> None:
    with pytest.raises(StartError, match="no way to the API server"):
        await app.run(config(apiserver, namespace, kubeconfig="/nowhere"), {}, asyncio.Event())


class Process:
    """An operator process of its own (see operator_process.py)."""

    def __init__(self, apiserver: ApiServer, namespace: str, file: Path, seconds: float) -> None:
        self.file = file
        arguments = [str(apiserver.kubeconfig), namespace, str(file), str(seconds)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "operator")}
        script = str(Path(__file__).with_name("operator_process.py"))
        self.log = file.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, script, *arguments], stderr=log, env=environment)

    def lines(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for each in started:
        each.process.kill()
        each.process.wait(10)


async def test_sigterm_lets_the_reconciliation_end_and_gives_the_lease_up(
    apiserver: ApiServer, namespace: str, kube: Kube, tmp_path: Path, processes: list[Process]
) -> None:
    await kube.apply(pool(namespace), manager="tests")
    one = Process(apiserver, namespace, tmp_path / "one", 2.0)
    processes.append(one)
    await until(lambda: "begin pgpools/shop" in one.lines(), 20)
    one.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(one.process.wait, 15)
    assert code == 0, one.log.read_text()
    assert "end pgpools/shop" in one.lines()
    assert one.lines()[-1] == "stopped"
    assert (await kube.get(LEASE, namespace, "poolfleet"))["spec"]["holderIdentity"] == ""


async def test_when_the_leader_is_killed_the_standby_takes_over(
    apiserver: ApiServer, namespace: str, kube: Kube, tmp_path: Path, processes: list[Process]
) -> None:
    await kube.apply(pool(namespace), manager="tests")
    one = Process(apiserver, namespace, tmp_path / "one", 0.0)
    processes.append(one)
    await until(lambda: "end pgpools/shop" in one.lines(), 20)
    two = Process(apiserver, namespace, tmp_path / "two", 0.0)
    processes.append(two)
    await until(lambda: '"lag"' in two.log.read_text() or two.process.poll() is None, 20)
    one.process.kill()
    killed = time.monotonic()
    await until(lambda: "end pgpools/shop" in two.lines(), 20)
    assert time.monotonic() - killed < 10


async def test_a_namespaces_labels_wake_its_pools_with_servers_elsewhere(
    apiserver: ApiServer, namespace: str, kube: Kube
) -> None:
    elsewhere = apiserver.namespace()
    server = {"name": "db", "namespace": elsewhere}
    await kube.apply(pool(namespace, server=None, serverRef=server), manager="test")
    reconciler = Reconciler()
    async with running(config(apiserver, namespace, namespaces=()), reconciler) as operator:
        assert operator.store.synced(NAMESPACE.plural)
        await until(lambda: reconciler.count(POOL, "shop") > 0)
        reconciler.seen.clear()
        path = f"/api/v1/namespaces/{namespace}"
        labelled = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"tier": "gold"}},
        }
        assert apiserver.apply(path, labelled)[0] == 200
        await until(lambda: reconciler.count(POOL, "shop") > 0 and reconciler.count(SERVER, "db") > 0)
        assert (namespace_labels(operator.store, namespace) or {})["tier"] == "gold"
        assert await operator.resync.look(NAMESPACE) == 0


async def test_an_operator_of_single_namespaces_asks_for_no_namespace(
    apiserver: ApiServer, namespace: str, kube: Kube
) -> None:
    await kube.apply(pool(namespace), manager="test")
    reconciler = Reconciler()
    async with running(config(apiserver, namespace), reconciler) as operator:
        await until(lambda: reconciler.count(POOL, "shop") > 0)
        assert not operator.store.synced(NAMESPACE.plural)
        assert namespace_labels(operator.store, namespace) is None
