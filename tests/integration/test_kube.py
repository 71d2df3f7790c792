"""The API port, the Lease and the events against a real kube-apiserver."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from poolfleet.kube.client import Call, Kube
from poolfleet.kube.errors import Conflict, Forbidden, Invalid, LostLease, NotFound, NotLeader, Unavailable
from poolfleet.kube.events import Recorder
from poolfleet.kube.kinds import EVENT, LEASE, NETWORK_POLICY, SERVICE, Kind
from poolfleet.kube.lease import Elector
from poolfleet.plan.model import Event
from tests.integration.conftest import ApiServer


@pytest.fixture
async def kube(apiserver: ApiServer) -> AsyncIterator[Kube]:
    async with Kube.connect(str(apiserver.kubeconfig)) as connected:
        yield connected


@pytest.fixture
def namespace(apiserver: ApiServer) -> str:
    return apiserver.namespace()


def service(namespace: str, name: str = "shop", port: int = 6432, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}, **metadata},
        "spec": {"selector": {"app": name}, "ports": [{"name": "pgbouncer", "port": port, "protocol": "TCP"}]},
    }


# Server-side apply


async def test_apply_creates_and_a_second_time_changes_nothing(kube: Kube, namespace: str) -> None:
    first = await kube.apply(service(namespace), manager="poolfleet")
    second = await kube.apply(service(namespace), manager="poolfleet")
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
    assert (await kube.get(SERVICE, namespace, "shop"))["spec"]["ports"][0]["port"] == 6432


async def test_apply_restores_what_is_ours_and_leaves_what_is_the_users(
    kube: Kube, namespace: str, apiserver: ApiServer
) -> None:
    await kube.apply(service(namespace, annotations={"ours": "1", "dropped": "1"}), manager="poolfleet")
    said = apiserver.kubectl("-n", namespace, "annotate", "service", "shop", "users=1", "ours=2", "--overwrite")
    assert said.returncode == 0, said.stderr
    after = await kube.apply(service(namespace, annotations={"ours": "1"}), manager="poolfleet")
    assert after["metadata"]["annotations"] == {"ours": "1", "users": "1"}


async def test_apply_with_a_resource_version_is_a_compare_and_set(kube: Kube, namespace: str) -> None:
    first = await kube.apply(service(namespace), manager="poolfleet")
    version = first["metadata"]["resourceVersion"]
    await kube.apply(service(namespace, port=5432), manager="poolfleet")
    with pytest.raises(Conflict):
        await kube.apply(service(namespace, port=7432, resourceVersion=version), manager="poolfleet")
    # The version does not keep a vanished object from being made anew: with its UID it does.
    with pytest.raises(Conflict):
        await kube.apply(service(namespace, "vanished", resourceVersion=version, uid="its-uid"), manager="poolfleet")


async def test_apply_without_force_does_not_take_fields_from_others(kube: Kube, namespace: str) -> None:
    await kube.apply(service(namespace), manager="somebody")
    mine = service(namespace)
    mine["spec"]["selector"]["app"] = "mine"
    with pytest.raises(Conflict, match="somebody"):
        await kube.apply(mine, manager="poolfleet", force=False)


async def test_apply_refuses_what_the_api_does_not_know_in_its_words(kube: Kube, namespace: str) -> None:
    misspelled = service(namespace)
    misspelled["spec"]["prots"] = []
    with pytest.raises(Invalid, match="prots"):
        await kube.apply(misspelled, manager="poolfleet")
    with pytest.raises(Invalid, match="99999"):
        await kube.apply(service(namespace, port=99999), manager="poolfleet")


# The other verbs


async def test_a_json_patch_whose_test_fails_is_a_conflict(kube: Kube, namespace: str) -> None:
    await kube.apply(service(namespace, annotations={"a": "1"}), manager="poolfleet")
    path = "/metadata/annotations/a"
    patch = [{"op": "test", "path": path, "value": "1"}, {"op": "add", "path": path, "value": "2"}]
    after = await kube.json_patch(SERVICE, namespace, "shop", patch)
    assert after["metadata"]["annotations"]["a"] == "2"
    with pytest.raises(Conflict):
        await kube.json_patch(SERVICE, namespace, "shop", patch)
    with pytest.raises(Conflict):
        await kube.json_patch(SERVICE, namespace, "shop", [{"op": "remove", "path": "/metadata/annotations/none"}])
    bad = [{"op": "add", "path": "/spec/ports/0/port", "value": 99999}]
    with pytest.raises(Invalid):
        await kube.json_patch(SERVICE, namespace, "shop", bad)


async def test_create_replace_and_delete(kube: Kube, namespace: str) -> None:
    made = await kube.create(service(namespace))
    with pytest.raises(Conflict):
        await kube.create(service(namespace))
    replaced = await kube.replace({**made, "metadata": {**made["metadata"], "labels": {"app": "other"}}})
    assert replaced["metadata"]["labels"] == {"app": "other"}
    with pytest.raises(Conflict):
        await kube.replace(made)
    with pytest.raises(Conflict):
        await kube.delete(SERVICE, namespace, "shop", uid="another")
    await kube.delete(SERVICE, namespace, "shop", uid=made["metadata"]["uid"])
    with pytest.raises(NotFound, match="shop"):
        await kube.get(SERVICE, namespace, "shop")
    with pytest.raises(NotFound):
        await kube.delete(SERVICE, namespace, "shop")


async def test_list_reads_every_page(kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolfleet.kube.client.PAGE", 2)
    for number in range(5):
        await kube.create(service(namespace, f"s{number}"))
    everything = await kube.list(SERVICE, namespace)
    assert sorted(body["metadata"]["name"] for body in everything) == ["s0", "s1", "s2", "s3", "s4"]
    assert {(body["apiVersion"], body["kind"]) for body in everything} == {("v1", "Service")}
    chosen = await kube.list(SERVICE, namespace, "app in (s1, s3)", metadata_only=True)
    assert sorted(body["metadata"]["name"] for body in chosen) == ["s1", "s3"]
    assert all("spec" not in body and body["metadata"]["resourceVersion"] for body in chosen)
    assert len(await kube.list(SERVICE, namespace, limit=1)) == 1
    assert len(await kube.list(SERVICE, None, "app=s4")) == 1


async def test_a_kind_without_crd_is_not_found(kube: Kube, namespace: str) -> None:
    with pytest.raises(NotFound):
        await kube.list(Kind("nothing.example/v1", "Thing", "things"), namespace)


async def test_a_service_account_without_rights_is_told_so(apiserver: ApiServer, namespace: str) -> None:
    async with Kube.connect(str(apiserver.service_account_kubeconfig(namespace, "nobody"))) as nobody:
        with pytest.raises(Forbidden, match="nobody"):
            await nobody.get(SERVICE, namespace, "shop")


async def test_every_call_is_told_and_every_written_object_shown(kube: Kube, namespace: str) -> None:
    calls: list[Call] = []
    written: list[tuple[str, str]] = []
    told = kube.watched(calls.append, lambda kind, body: written.append((kind.plural, body["metadata"]["name"])))
    await told.apply(service(namespace), manager="poolfleet")
    await told.list(SERVICE, namespace)
    with contextlib.suppress(NotFound):
        await told.get(NETWORK_POLICY, namespace, "none")
    await told.delete(SERVICE, namespace, "shop")
    assert [(c.verb, c.kind.plural, c.code) for c in calls] == [
        ("patch", "services", 201),
        ("list", "services", 200),
        ("get", "networkpolicies", 404),
        ("delete", "services", 200),
    ]
    assert written == [("services", "shop")]


async def test_who_does_not_lead_reads_but_does_not_write(kube: Kube, namespace: str) -> None:
    left = 0.0
    guarded = kube.guarded(lambda: left)
    assert await guarded.list(SERVICE, namespace) == []
    writes: list[Callable[[], Any]] = [
        lambda: guarded.apply(service(namespace), manager="poolfleet"),
        lambda: guarded.create(service(namespace)),
        lambda: guarded.replace(service(namespace)),
        lambda: guarded.json_patch(SERVICE, namespace, "shop", []),
        lambda: guarded.delete(SERVICE, namespace, "shop"),
    ]
    for write in writes:
        with pytest.raises(NotLeader):
            await write()
    left = 5.0
    await guarded.apply(service(namespace), manager="poolfleet")


async def test_no_api_server_is_unavailable(apiserver: ApiServer, namespace: str) -> None:
    async with Kube.connect(str(apiserver.kubeconfig)) as kube:
        apiserver.stop("kube-apiserver")
        try:
            with pytest.raises(Unavailable):
                await kube.get(SERVICE, namespace, "shop")
        finally:
            apiserver.start()
        with pytest.raises(NotFound):
            await kube.get(SERVICE, namespace, "shop")


# The Lease


class Watched:
    """Several electors on one Lease, and the largest number of them that ever led at the same time."""

    def __init__(self, electors: list[Elector]) -> None:
        self.electors = electors
        self.most = 0
        self.tasks = [asyncio.create_task(elector.run()) for elector in electors]

    async def until(self, condition: Callable[[], bool], seconds: float) -> float:
        started = time.monotonic()
        while True:
            self.most = max(self.most, sum(elector.is_leader() for elector in self.electors))
            if condition():
                break
            assert time.monotonic() - started < seconds, "not in time"
            await asyncio.sleep(0.002)
        return time.monotonic() - started

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def elector(kube: Kube, namespace: str, identity: str, **times: float) -> Elector:
    times = {"duration": 1.5, "renew_deadline": 1.0, "retry_period": 0.2, **times}
    return Elector(kube, namespace, "poolfleet", identity, **times)  # type: ignore[arg-type]


async def test_one_of_two_leads_and_a_release_is_taken_up_at_once(kube: Kube, namespace: str) -> None:
    # The real times: what a rolling update of the operator waits for.
    pair = [
        elector(kube, namespace, name, duration=15.0, renew_deadline=10.0, retry_period=2.0) for name in ("one", "two")
    ]
    watched = Watched(pair)
    try:
        await watched.until(lambda: any(each.is_leader() for each in pair), 5)
        leader, standby = sorted(pair, key=lambda each: not each.is_leader())
        number = pair.index(leader)
        watched.tasks[number].cancel()
        await leader.release()
        assert not leader.is_leader()
        assert await watched.until(standby.is_leader, 5) < 3.0
        assert watched.most == 1
        lease = await kube.get(LEASE, namespace, "poolfleet")
        assert lease["spec"]["holderIdentity"] in ("one", "two")
        assert lease["spec"]["leaseTransitions"] >= 1
    finally:
        await watched.close()


async def test_a_crashed_leader_is_followed_when_its_lease_has_run_out(kube: Kube, namespace: str) -> None:
    pair = [elector(kube, namespace, name) for name in ("one", "two")]
    watched = Watched(pair)
    try:
        await watched.until(lambda: any(each.is_leader() for each in pair), 5)
        leader, standby = sorted(pair, key=lambda each: not each.is_leader())
        watched.tasks[pair.index(leader)].cancel()  # says nothing and renews no more
        waited = await watched.until(standby.is_leader, 10)
        assert waited > 1.0, "taken over before the old leader's deadline"
        assert not leader.is_leader()
        assert watched.most == 1
    finally:
        await watched.close()


async def test_a_leader_that_loses_the_api_server_stops_leading(apiserver: ApiServer, namespace: str) -> None:
    async with Kube.connect(str(apiserver.kubeconfig)) as kube:
        one = elector(kube, namespace, "one")
        running = asyncio.create_task(one.run())
        await asyncio.wait_for(one.acquired.wait(), 5)
        apiserver.stop("kube-apiserver")
        try:
            with pytest.raises(LostLease):
                await asyncio.wait_for(running, 5)
            assert not one.is_leader()
        finally:
            apiserver.start()


async def test_a_leader_whose_lease_was_taken_stops_at_once(kube: Kube, namespace: str) -> None:
    one = elector(kube, namespace, "one", renew_deadline=60.0, duration=90.0)
    running = asyncio.create_task(one.run())
    await asyncio.wait_for(one.acquired.wait(), 5)
    patch = [{"op": "replace", "path": "/spec/holderIdentity", "value": "thief"}]
    await kube.json_patch(LEASE, namespace, "poolfleet", patch)
    with pytest.raises(LostLease, match="thief"):
        await asyncio.wait_for(running, 5)
    assert not one.is_leader()


async def test_a_leader_outlives_an_edit_and_a_deletion_of_its_lease(kube: Kube, namespace: str) -> None:
    one = elector(kube, namespace, "one", renew_deadline=10.0, duration=15.0)
    running = asyncio.create_task(one.run())
    try:
        await asyncio.wait_for(one.acquired.wait(), 5)
        patch = [{"op": "add", "path": "/metadata/labels", "value": {"touched": "1"}}]
        touched = await kube.json_patch(LEASE, namespace, "poolfleet", patch)
        async with asyncio.timeout(5):
            while (lease := await kube.get(LEASE, namespace, "poolfleet"))["spec"] == touched["spec"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert lease["metadata"]["labels"] == {"touched": "1"}
        await kube.delete(LEASE, namespace, "poolfleet")
        async with asyncio.timeout(5):
            while True:
                with contextlib.suppress(NotFound):
                    again = await kube.get(LEASE, namespace, "poolfleet")
                    break
                await asyncio.sleep(0.05)
        assert again["spec"]["holderIdentity"] == "one"
        assert one.is_leader()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# Events


async def test_the_same_news_is_one_event_with_a_count(kube: Kube, namespace: str) -> None:
    now = time.time()
    about = await kube.apply(service(namespace), manager="poolfleet")
    recorder = Recorder(kube, "operator-0", lambda: now)
    for held in (3, 4, 5):
        news = Event("Warning", "Unreachable", f"{held} pods cannot reach the server. " + "ä" * 1500)
        await recorder.event(about, news)
        now += 61
    (event,) = await kube.list(EVENT, namespace)
    assert event["reason"] == "Unreachable"
    assert event["type"] == "Warning"
    assert event["regarding"]["uid"] == about["metadata"]["uid"]
    assert event["note"].startswith("3 pods")
    assert event["series"]["count"] == 3
    await recorder.event(about, Event("Normal", "Reachable", "The server is there."))
    now += 700
    await recorder.event(about, Event("Warning", "Unreachable", "7 pods cannot reach the server. " + "ä" * 1500))
    assert len(await kube.list(EVENT, namespace)) == 3
    assert recorder.failures == 0


async def test_what_says_each_is_told_each_time(kube: Kube, namespace: str) -> None:
    about = await kube.apply(service(namespace), manager="poolfleet")
    recorder = Recorder(kube, "operator-0")
    for replicas in (3, 5, 5):
        await recorder.event(about, Event("Normal", "ScaledUp", f"to {replicas} replicas", each=True))
    assert sorted(event["note"] for event in await kube.list(EVENT, namespace)) == ["to 3 replicas", "to 5 replicas"]


async def test_an_event_that_cannot_be_written_harms_nobody(kube: Kube, namespace: str) -> None:
    about = await kube.apply(service(namespace), manager="poolfleet")
    about["metadata"]["namespace"] = "there-is-none"
    recorder = Recorder(kube, "operator-0")
    await recorder.event(about, Event("Normal", "Reachable", "The server is there."))
    assert recorder.failures == 1
