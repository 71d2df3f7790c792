"""The store: the newest body of each object, whatever the order in which bodies arrive."""

import json
from typing import Any

import pytest

from poolfleet.controller.store import REMEMBER, Store, secret_names


def obj(name: str, version: int, uid: str = "", **more: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"namespace": "demo", "name": name, "uid": uid or f"uid-{name}"}
    metadata |= {"resourceVersion": str(version), "managedFields": [{"manager": "x"}], **more.pop("metadata", {})}
    return {"metadata": metadata, **more}


def labelled(name: str, version: int, pool: str) -> dict[str, Any]:
    return obj(name, version, metadata={"labels": {"poolfleet.dev/pool": pool}})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(clock)


def test_only_newer_bodies_are_news(store: Store) -> None:
    assert store.put("pods", obj("a", 10, status=1))
    assert not store.put("pods", obj("a", 10, status=2))
    assert not store.put("pods", obj("a", 9, status=2))  # a list from before, or 9 < 10 as text
    assert store.put("pods", obj("a", 100, status=3))
    body = store.get("pods", "demo", "a")
    assert body is not None and body["status"] == 3
    assert "managedFields" not in body["metadata"]


def test_equal_strings_are_kept_once(store: Store) -> None:
    for name, version in (("a", 1), ("b", 2)):
        text = json.dumps(obj(name, version, spec={"containers": [{"name": "pgbouncer", "long": "x" * 100}]}))
        store.put("pods", json.loads(text))
    first, second = (store.get("pods", "demo", name) for name in ("a", "b"))
    assert first is not None and second is not None
    assert first["spec"] == second["spec"] == {"containers": [{"name": "pgbouncer", "long": "x" * 100}]}
    one, other = (body["spec"]["containers"][0] for body in (first, second))
    assert one["name"] is other["name"]
    assert [id(key) for key in one] == [id(key) for key in other]


def test_a_late_word_does_not_bring_a_deleted_object_back(store: Store, clock: Clock) -> None:
    store.put("pods", obj("a", 10))
    assert store.remove("pods", obj("a", 12))
    assert not store.put("pods", obj("a", 11))
    assert store.get("pods", "demo", "a") is None
    assert store.buried("uid-a")
    assert not store.remove("pods", obj("a", 12))
    clock.now += REMEMBER + 1
    store.remove("pods", obj("b", 1))
    assert not store.buried("uid-a")


def test_an_object_that_gets_its_label_back_is_there_again(store: Store) -> None:
    store.put("pods", labelled("a", 10, "shop"))
    store.remove("pods", labelled("a", 12, "shop"))  # what a watch with a selector says when the label goes
    assert store.put("pods", labelled("a", 13, "shop"))
    assert [b["metadata"]["name"] for b in store.of_pool("pods", "demo", "shop")] == ["a"]
    assert not store.buried("uid-a")


def test_another_object_of_the_same_name(store: Store) -> None:
    store.put("pods", obj("a", 10, "first"))
    assert store.put("pods", obj("a", 20, "second"))
    assert store.buried("first")
    assert not store.remove("pods", obj("a", 15, "first"))  # its deletion, seen late
    assert not store.put("pods", obj("a", 14, "first"))
    body = store.get("pods", "demo", "a")
    assert body is not None and body["metadata"]["uid"] == "second"


def test_indices_follow_changes(store: Store) -> None:
    owner = {"ownerReferences": [{"uid": "owner"}], "labels": {"poolfleet.dev/pool": "shop"}}
    store.put("secrets", obj("a", 1, metadata=owner))
    store.put("services", obj("a", 2, uid="s", metadata=owner))
    assert [b["metadata"]["uid"] for b in store.owned_by("owner", "secrets")] == ["uid-a"]
    assert [b["metadata"]["uid"] for b in store.of_pool("services", "demo", "shop")] == ["s"]
    found = store.by_uid("services", "s")
    assert found is not None and found["metadata"]["resourceVersion"] == "2"
    store.put("secrets", obj("a", 3))
    assert store.owned_by("owner", "secrets") == []
    assert store.of_pool("secrets", "demo", "shop") == []
    store.remove("services", obj("a", 4, uid="s"))
    assert store.by_uid("services", "s") is None
    assert store.of_pool("services", "demo", "shop") == []


def test_lists_are_by_namespace(store: Store) -> None:
    store.put("pods", obj("a", 1))
    store.put("pods", obj("b", 2, metadata={"namespace": "other"}))
    assert len(store.list("pods")) == 2
    assert [b["metadata"]["name"] for b in store.list("pods", "other")] == ["b"]
    assert store.list("services") == []


def test_who_refers_to_a_secret(store: Store) -> None:
    spec = {"users": [{"secretRef": {"name": "app"}}], "server": {"adminSecretRef": {"name": "admin", "key": "x"}}}
    store.put("pgpools", obj("shop", 1, spec=spec))
    store.put("pgservers", obj("db", 2, spec={"tls": {"caSecretRef": {"name": "admin"}}}))
    assert store.referring("demo", "app") == [("pgpools", "shop")]
    assert store.referring("demo", "admin") == [("pgpools", "shop"), ("pgservers", "db")]
    assert store.referring("other", "app") == []
    store.put("pgpools", obj("shop", 3, spec={}))
    assert store.referring("demo", "app") == []


def test_secret_names_looks_at_references_only() -> None:
    spec = {"a": [{"credentialsSecretRef": {"name": "x"}}], "serverRef": {"name": "y"}, "name": "z", "secretRef": "w"}
    assert secret_names(spec) == {"x"}


def test_the_last_config_of_a_pool_is_kept_while_the_pool_exists(store: Store, clock: Clock) -> None:
    store.put("pgpools", obj("shop", 1))
    store.put("secrets", labelled("shop-config", 2, "shop") | {"data": {"key": "a"}})
    store.remove("secrets", labelled("shop-config", 3, "shop") | {"data": {"key": "b"}})
    clock.now += 10 * REMEMBER
    last = store.get_deleted("secrets", "demo", "shop-config")
    assert last is not None and last["data"] == {"key": "b"}
    store.remove("pgpools", obj("shop", 4))
    assert store.get_deleted("secrets", "demo", "shop-config") is None


def test_deleted_objects_are_remembered_for_ten_minutes(store: Store, clock: Clock) -> None:
    store.put("pods", labelled("a", 1, "shop"))
    store.put("pods", labelled("b", 2, "other"))
    store.remove("pods", labelled("a", 5, "shop") | {"status": "last"})
    store.remove("pods", labelled("b", 6, "other"))
    assert [b["status"] for b in store.deleted_pods("demo", "shop")] == ["last"]
    assert len(store.deleted_pods("demo")) == 2
    assert store.deleted_pods("elsewhere") == []
    clock.now += REMEMBER + 1
    assert store.deleted_pods("demo") == []


def test_what_was_seen_last_wins_over_an_older_body_of_the_deletion(store: Store) -> None:
    store.put("pods", labelled("a", 9, "shop") | {"status": "newer"})
    store.remove("pods", labelled("a", 4, "shop") | {"status": "older"})
    assert [b["status"] for b in store.deleted_pods("demo", "shop")] == ["newer"]


def test_synced_is_per_kind(store: Store) -> None:
    assert not store.synced("pods")
    store.mark_synced("pods")
    assert store.synced("pods")
    assert not store.synced("services")


def test_a_deleted_object_is_found_by_its_uid_for_ten_minutes(store: Store, clock: Clock) -> None:
    store.put("pods", obj("a", 1, uid="u1"))
    assert store.last_seen("u1") is None, "it is not deleted"
    store.remove("pods", obj("a", 2, uid="u1") | {"status": "last"})
    assert (store.last_seen("u1") or {})["status"] == "last"
    clock.now += REMEMBER + 1
    assert store.last_seen("u1") is None


def test_the_pools_that_name_a_server(store: Store) -> None:
    far = {"serverRef": {"name": "db", "namespace": "data"}}
    store.put("pgpools", obj("a", 1, spec=far))
    store.put("pgpools", obj("b", 2, spec=far, metadata={"namespace": "data"}))
    store.put("pgpools", obj("db", 3, spec={"server": {}}, metadata={"namespace": "data"}))
    store.put("pgpools", obj("c", 4, spec={"serverRef": {"name": "db"}}))
    assert {b["metadata"]["name"] for b in store.naming("data", "db")} == {"a", "b", "db"}
    assert [b["metadata"]["name"] for b in store.naming("demo", "db")] == ["c"]


def following(name: str, version: int, server: object) -> dict[str, Any]:
    return obj(name, version, metadata={"annotations": {"poolfleet.dev/next": json.dumps({"server": server})}})


def test_the_next_logins_of_a_server_whatever_their_namespace(store: Store) -> None:
    far = following("b-next", 1, "demo/db")
    far["metadata"] |= {"namespace": "team", "uid": "far"}
    for body in (following("a-next", 1, "demo/db"), far, following("c-next", 1, "demo/other"), obj("d-next", 1)):
        store.put("secrets", body)
    assert {body["metadata"]["name"] for body in store.next_logins("demo/db")} == {"a-next", "b-next"}
    store.put("secrets", following("a-next", 2, "demo/other"))
    store.remove("secrets", far)
    assert store.next_logins("demo/db") == []
    assert len(store.next_logins("demo/other")) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"server": 7}'])
def test_a_spoilt_next_login_is_nobodys(store: Store, text: str) -> None:
    store.put("secrets", obj("a-next", 1, metadata={"annotations": {"poolfleet.dev/next": text}}))
    assert store.next_logins("demo/db") == []
    assert store.get("secrets", "demo", "a-next") is not None
