"""Which PgPools and PgServers are looked at because of which object."""

from typing import Any

import pytest

from poolfleet.api import names
from poolfleet.controller.agents import Agents
from poolfleet.controller.context import Key
from poolfleet.controller.handlers import WATCHES, Observer, server_of, settings
from poolfleet.controller.queue import KeyedQueue
from poolfleet.controller.store import Store
from poolfleet.kube.kinds import DEPLOYMENT, LEASE, NETWORK_POLICY, PDB, POD, POOL, SECRET, SERVER, SERVICE, Kind


def body(name: str, version: int = 1, spec: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    full = {"namespace": "demo", "name": name, "uid": f"uid-{name}", "resourceVersion": str(version), **metadata}
    return {"metadata": full, "spec": spec or {}}


def of_pool(name: str, pool: str = "shop", version: int = 1, **metadata: Any) -> dict[str, Any]:
    return body(name, version, labels={names.LABEL_POOL: pool}, **metadata)


class House:
    def __init__(self) -> None:
        self.store, self.queue = Store(), KeyedQueue[Key]()
        self.observer = Observer(self.store, self.queue, Agents(self.store))
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


BOTH = {"pgpools/shop", "pgservers/db"}


def test_a_pool_and_its_server(house: House) -> None:
    assert house.after(POOL, body("shop", 2, {"serverRef": {"name": "db"}})) == BOTH
    assert house.after(POOL, body("inline", 2)) == {"pgpools/inline", "pgservers/inline"}
    assert house.after(POOL, body("far", 2, {"serverRef": {"name": "db", "namespace": "data"}})) == {"pgpools/far"}


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


def test_an_agents_news_lead_to_pool_and_server(house: House) -> None:
    house.observer.agent_changed("demo", "shop", "unknown")
    assert house.keys() == BOTH


def test_the_server_of_a_pool() -> None:
    assert server_of(body("shop")) == Key(SERVER.plural, "demo", "shop")
    same = {"serverRef": {"name": "db", "namespace": "demo"}}
    assert server_of(body("shop", spec=same)) == Key(SERVER.plural, "demo", "db")
    assert server_of(body("shop", spec={"serverRef": {"name": "db", "namespace": "data"}})) is None


def test_kopf_neither_posts_nor_scans_nor_peers_and_selects_on_the_server() -> None:
    chosen = settings(WATCHES)
    switches = (chosen.peering.standalone, chosen.scanning.disabled, chosen.posting.enabled)
    assert switches == (True, True, False)
    selected = {watch.kind for watch in WATCHES if watch.selector is not None}
    assert selected == {DEPLOYMENT, SERVICE, SECRET, POD, PDB, NETWORK_POLICY}
    assert len(chosen.watching.label_selectors) == len(selected)
