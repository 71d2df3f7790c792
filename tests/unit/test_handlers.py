"""Which PgPools and PgServers are looked at because of which object."""

import json
from dataclasses import replace
from typing import Any

import pytest

from poolfleet.api import names
from poolfleet.api.wire import AgentState
from poolfleet.controller.agents import Agents
from poolfleet.controller.context import Key
from poolfleet.controller.handlers import STATUS_DELAY, WATCHES, Observer, server_of, settings, watches
from poolfleet.controller.queue import KeyedQueue
from poolfleet.controller.store import Store
from poolfleet.kube.kinds import (
    DEPLOYMENT,
    LEASE,
    NAMESPACE,
    NETWORK_POLICY,
    PDB,
    POD,
    POOL,
    SECRET,
    SERVER,
    SERVICE,
    Kind,
)
from poolfleet.plan.poolview import Cut


def body(name: str, version: int = 1, spec: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    full = {"namespace": "demo", "name": name, "uid": f"uid-{name}", "resourceVersion": str(version), **metadata}
    return {"metadata": full, "spec": spec or {}}


def of_pool(name: str, pool: str = "shop", version: int = 1, **metadata: Any) -> dict[str, Any]:
    return body(name, version, labels={names.LABEL_POOL: pool}, **metadata)


class House:
    def __init__(self) -> None:
        self.now = 0.0
        self.store, self.queue = Store(), KeyedQueue[Key](lambda: self.now)
        self.agents = Agents(self.store)
        self.observer = Observer(self.store, self.queue, self.agents)
        self.observer.seen(
            POOL, body("shop", spec={"serverRef": {"name": "db"}, "users": [{"secretRef": {"name": "app"}}]})
        )
        self.observer.seen(POOL, body("inline", spec={"server": {"adminSecretRef": {"name": "admin"}}}))
        self.observer.seen(SERVER, body("db", spec={"tls": {"caSecretRef": {"name": "ca"}}}))
        self.keys()

    def keys(self) -> set[str]:
        found = set()
        while (key := self.queue.get_nowait()) is not None:
            found.add(f"{key.plural}/{key.name}")
            self.queue.done(key)
        return found

    def after(self, kind: Kind, obj: dict[str, Any]) -> set[str]:
        self.observer.seen(kind, obj)
        return self.keys()


@pytest.fixture
def house() -> House:
    return House()


async def test_a_standby_takes_in_what_happens_and_looks_at_everything_once_it_leads(house: House) -> None:
    """The last words of a pod that ends while nobody leads are remembered; no agent is asked and nothing looked at."""
    house.observer.leading = False
    status = {"podIP": "10.0.0.7", "containerStatuses": [{"name": "pgbouncer", "state": {"terminated": {}}}]}
    assert house.after(POD, {**of_pool("p"), "status": status}) == set()
    assert house.observer.gone(POD, {**of_pool("p", version=2), "status": status})
    house.observer.seen(POD, {**of_pool("q"), "status": {"podIP": "10.0.0.8"}})
    house.observer.agent_changed("demo", "shop", "uid-q")
    assert house.keys() == set() and not len(house.agents)
    house.observer.lead()
    assert len(house.agents) == 1
    assert house.keys() == {"pgpools/shop", "pgpools/inline", "pgservers/db"}
    assert [body["metadata"]["uid"] for body in house.store.deleted_pods("demo", "shop")] == ["uid-p"]
    house.agents.drop("uid-q")


BOTH = {"pgpools/shop", "pgservers/db"}


def test_a_pool_and_its_server(house: House) -> None:
    assert house.after(POOL, body("shop", 2, {"serverRef": {"name": "db"}})) == BOTH
    assert house.after(POOL, body("inline", 2)) == {"pgpools/inline", "pgservers/inline"}
    elsewhere = {"serverRef": {"name": "main", "namespace": "data"}}
    assert house.after(POOL, body("far", 2, elsewhere)) == {"pgpools/far", "pgservers/main"}


def test_a_server_and_its_pools(house: House) -> None:
    assert house.after(SERVER, body("db", 2)) == BOTH
    assert house.after(SERVER, body("inline", 2)) == {"pgpools/inline", "pgservers/inline"}


@pytest.mark.parametrize("kind", [DEPLOYMENT, SECRET])
def test_children_that_both_reconcilers_read(house: House, kind: Kind) -> None:
    assert house.after(kind, of_pool("shop-config")) == BOTH


@pytest.mark.parametrize("kind", [SERVICE, PDB, NETWORK_POLICY])
def test_children_that_only_the_pool_reads(house: House, kind: Kind) -> None:
    assert house.after(kind, of_pool("shop")) == {"pgpools/shop"}


def test_a_pod_counts_on_its_server_though_its_pool_is_gone(house: House) -> None:
    pod = of_pool("old-0", "old", annotations={names.SERVER_UID: "uid-db"})
    assert house.after(POD, pod) == {"pgpools/old", "pgservers/db"}
    assert house.after(POD, of_pool("shop-0")) == BOTH


def test_a_users_secret_leads_to_all_that_name_it(house: House) -> None:
    assert house.after(SECRET, body("app")) == {"pgpools/shop"}
    assert house.after(SECRET, body("admin")) == {"pgpools/inline"}
    assert house.after(SECRET, body("ca")) == BOTH  # the pool's configuration holds the server's CA
    assert house.after(SECRET, body("nobodys")) == set()
    house.observer.secret_changed("demo", "ca")
    assert house.keys() == BOTH


@pytest.mark.parametrize(
    ("about", "woken"),
    [
        ({"kind": "role", "secret": "app", "server": "demo/db"}, {"pgpools/shop", "pgservers/db"}),
        ({"kind": "user", "secret": "app", "pool": "shop"}, {"pgpools/shop"}),
        ({"secret": "nobodys", "server": 7}, set()),
        ([], set()),
    ],
)
def test_the_secret_of_a_rotation_leads_to_all_that_name_the_one_that_it_is_for(
    house: House, about: object, woken: set[str]
) -> None:
    following = body("app-next", annotations={names.NEXT: json.dumps(about)})
    assert house.after(SECRET, following) == woken
    house.observer.gone(SECRET, following)
    assert house.keys() == woken


@pytest.mark.parametrize(
    ("labels", "synced", "taken"),
    [
        ({names.LABEL_WATCH: "true"}, True, True),
        ({names.LABEL_WATCH: "true"}, False, False),  # no watch would show what others make of it
        ({names.LABEL_MANAGED_BY: names.MANAGED_BY}, False, True),
        ({}, True, False),
    ],
)
def test_an_own_write_is_taken_in_where_a_later_one_would_be_seen(
    house: House, labels: dict[str, str], synced: bool, taken: bool
) -> None:
    if synced:
        house.store.mark_synced(SECRET.plural)
    house.observer.written(SECRET, body("app", labels=labels))
    assert (house.store.get(SECRET.plural, "demo", "app") is not None) is taken
    house.observer.written(POD, body("pod"))
    assert house.store.get(POD.plural, "demo", "pod") is not None


def test_what_is_not_new_wakes_nobody(house: House) -> None:
    service = of_pool("shop", version=5)
    assert house.after(SERVICE, service) == {"pgpools/shop"}
    assert house.after(SERVICE, service) == set()
    house.observer.written(SERVICE, of_pool("shop", version=4))
    assert house.keys() == set()
    house.observer.written(SERVICE, of_pool("shop", version=6))
    assert house.keys() == {"pgpools/shop"}


def test_what_is_gone_wakes_once(house: House) -> None:
    house.observer.seen(SERVICE, of_pool("shop"))
    house.keys()
    assert house.observer.gone(SERVICE, of_pool("shop", version=2))
    assert house.keys() == {"pgpools/shop"}
    assert not house.observer.gone(SERVICE, of_pool("shop", version=2))
    assert house.keys() == set()
    house.observer.gone(POOL, body("shop", 3, {"serverRef": {"name": "db"}}))
    assert house.keys() == BOTH


def test_kinds_that_nobody_watches_are_not_kept(house: House) -> None:
    assert not house.observer.seen(LEASE, body("poolfleet"))
    assert house.store.list(LEASE.plural) == []


def test_everything(house: House) -> None:
    house.observer.everything()
    assert house.keys() == {"pgpools/shop", "pgpools/inline", "pgservers/db"}


def test_an_agents_news_lead_to_the_server_at_once_and_to_the_pool_soon(house: House) -> None:
    house.observer.agent_changed("demo", "shop", "unknown")
    assert house.keys() == {"pgservers/db"}
    house.now += STATUS_DELAY
    assert house.keys() == {"pgpools/shop"}


def test_the_server_of_a_pool() -> None:
    assert server_of(body("shop")) == Key(SERVER.plural, "demo", "shop")
    same = {"serverRef": {"name": "db", "namespace": "demo"}}
    assert server_of(body("shop", spec=same)) == Key(SERVER.plural, "demo", "db")
    elsewhere = {"serverRef": {"name": "db", "namespace": "data"}}
    assert server_of(body("shop", spec=elsewhere)) == Key(SERVER.plural, "data", "db")


def far(name: str, namespace: str, version: int = 1, **metadata: Any) -> dict[str, Any]:
    """A pool that uses the PgServer demo/db from another namespace."""
    spec = {"serverRef": {"name": "db", "namespace": "demo"}}
    return body(name, version, spec, namespace=namespace, **metadata)


def test_pools_of_other_namespaces_are_a_servers_too(house: House) -> None:
    house.after(POOL, far("a", "team-a"))
    assert house.after(SERVER, body("db", 2)) == BOTH | {"pgpools/a"}
    assert house.after(POD, of_pool("a-0", "a", namespace="team-a")) == {"pgpools/a", "pgservers/db"}
    house.observer.secret_changed("demo", "ca")
    assert house.keys() == set(), "it has no CA any more"
    house.after(SERVER, body("db", 3, {"tls": {"caSecretRef": {"name": "ca"}}}))
    house.observer.secret_changed("team-a", "ca")
    assert house.keys() == set(), "the CA is in the server's namespace"
    house.observer.secret_changed("demo", "ca")
    assert house.keys() == BOTH | {"pgpools/a"}


def test_a_namespace_wakes_its_pools_with_servers_elsewhere(house: House) -> None:
    house.after(POOL, far("a", "team-a"))
    labels = {"metadata": {"name": "team-a", "uid": "ns-a", "resourceVersion": "1", "labels": {"team": "a"}}}
    assert house.after(NAMESPACE, labels) == {"pgpools/a", "pgservers/db"}
    own = {"metadata": {"name": "demo", "uid": "ns-demo", "resourceVersion": "1"}}
    assert house.after(NAMESPACE, own) == set()


def test_pools_of_one_server_are_told_of_each_others_specs_but_not_of_numbers(house: House) -> None:
    assert house.after(POOL, far("a", "team-a", generation=1)) == BOTH | {"pgpools/a"}
    assert house.after(POOL, far("a", "team-a", 2, generation=1)) == {"pgpools/a", "pgservers/db"}
    assert house.after(POOL, far("a", "team-a", 3, generation=2)) == BOTH | {"pgpools/a"}
    house.observer.gone(POOL, far("a", "team-a", 4, generation=2))
    assert house.keys() == BOTH | {"pgpools/a"}


def test_clients_that_a_pod_had_to_cut_off_are_taken_down_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent says it only until the kubelet stops it; the pool's status comes later."""
    words = AgentState("", "uid-p", 1, 1, "", "", "1", {}, draining=True)
    monkeypatch.setattr(house.agents, "state", lambda uid: words if uid != "uid-gone" else None)
    for pool in ("shop", "deleted"):
        house.after(POD, of_pool("p", pool))
        house.observer.agent_changed("demo", pool, "uid-p")
        assert house.observer.cuts.of("demo", pool) == ()
    words = replace(words, cut=12)
    for uid in ("uid-p", "uid-unknown", "uid-gone"):
        house.observer.agent_changed("demo", "deleted", uid)
        house.observer.agent_changed("demo", "shop", uid)
    assert house.observer.cuts.of("demo", "shop") == (Cut("p", 12),)
    assert house.observer.cuts.of("demo", "deleted") == (), "nobody is left to be told"


def test_pgservers_that_are_the_same_server_are_told_of_each_other(house: House) -> None:
    one, two = {"host": "pg.example.com"}, {"host": "PG.example.com.", "port": 5432}
    house.after(SERVER, body("one", spec=one))
    assert house.after(SERVER, body("two", 1, two)) == {"pgservers/one", "pgservers/two"}
    assert house.after(SERVER, body("two", 2, two)) == {"pgservers/two"}, "nothing that concerns the other"
    granted = {**body("two", 3, two), "status": {"granted": 5}}
    assert house.after(SERVER, granted) == {"pgservers/one", "pgservers/two"}
    assert house.after(SERVER, {**body("two", 4, {"host": "other"}), "status": {"granted": 5}}) == {
        "pgservers/one",
        "pgservers/two",
    }
    assert house.after(SERVER, body("two", 5, {"host": "third"})) == {"pgservers/two"}
    house.after(SERVER, body("two", 6, two))
    house.observer.gone(SERVER, body("one", 7, one))
    assert house.keys() == {"pgservers/one", "pgservers/two"}


def test_who_serves_single_namespaces_watches_no_namespaces() -> None:
    assert watches((), True) == tuple(WATCHES)
    assert {each.kind for each in WATCHES} - {each.kind for each in watches(("demo",), True)} == {NAMESPACE}
    assert {each.kind for each in WATCHES} - {each.kind for each in watches((), False)} == {SECRET}


def test_kopf_neither_posts_nor_scans_nor_peers_and_selects_on_the_server() -> None:
    chosen = settings(WATCHES)
    switches = (chosen.peering.standalone, chosen.scanning.disabled, chosen.posting.enabled)
    assert switches == (True, True, False)
    selected = {watch.kind for watch in WATCHES if watch.selector is not None}
    assert selected == {DEPLOYMENT, SERVICE, SECRET, POD, PDB, NETWORK_POLICY}
    assert len(chosen.watching.label_selectors) == len(selected)
