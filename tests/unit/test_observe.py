"""Who has a part in a server."""

from typing import Any

from poolfleet.api import names
from poolfleet.controller.observe import elders_of, pools_of, wishes_of
from poolfleet.controller.store import Store


def pool(name: str, namespace: str = "team-a", second: int = 0, **spec: Any) -> dict[str, Any]:
    created = f"2026-01-01T00:00:{second:02}Z"
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "creationTimestamp": created}
    base = {"serverRef": {"name": "db", "namespace": "data"}, "databases": [{"name": "shop"}], "replicas": 2}
    return {"metadata": metadata, "spec": {**base, **spec}}


def server(status: dict[str, Any] | None = None, allowed: str = "Same", **selector: str) -> dict[str, Any]:
    metadata = {"name": "db", "namespace": "data", "uid": "uid-db"}
    namespaces: dict[str, Any] = {"from": allowed}
    if selector:
        namespaces["selector"] = {"matchLabels": selector}
    return {"metadata": metadata, "spec": {"allowedNamespaces": namespaces}, "status": status or {}}


def line(name: str, **more: Any) -> dict[str, Any]:
    return {"namespace": "team-a", "name": name, "uid": f"uid-{name}", **more}


def filled(server_body: dict[str, Any], *pools: dict[str, Any]) -> Store:
    store = Store()
    store.put("pgservers", server_body)
    for each in pools:
        store.put("pgpools", each)
    return store


def parts(store: Store) -> list[str]:
    return [body["metadata"]["name"] for body in pools_of(store, "data", "db")]


def test_a_pool_gets_no_part_in_a_server_by_naming_it() -> None:
    store = filled(server(), pool("thief", replicas=100, share={"min": 50, "weight": 1000}), pool("own", "data", 5))
    assert parts(store) == ["own"]
    assert [wish.pool for wish in wishes_of(store, "data", "db")] == ["data/own"]
    # Not by what its owner can write in his own namespace either: configuration, pods, a status line of a namesake.
    store.put("secrets", {"metadata": {"name": "thief-config", "namespace": "team-a"}, "data": {}})
    status = {"pools": [{**line("thief", admitted=True), "uid": "an earlier one"}, line("thief", admitted=False)]}
    store.put("pgservers", server(status))
    assert parts(store) == ["own"]


def test_the_pools_of_a_server_are_oldest_first() -> None:
    store = filled(server(allowed="All"), pool("b", second=2), pool("a", "team-b", 3), pool("c", "data", 1))
    assert parts(store) == ["c", "b", "a"]
    assert [wish.pool for wish in wishes_of(store, "data", "db")] == ["data/c", "team-a/b", "team-b/a"]


def test_a_selector_follows_the_labels_of_the_namespace() -> None:
    store = filled(server(allowed="Selector", tier="gold"), pool("a"))
    assert parts(store) == [], "the labels are not known"
    for version, labels, seen in ((1, {"tier": "tin"}, []), (2, {"tier": "gold"}, ["a"]), (3, {}, [])):
        metadata = {"name": "team-a", "uid": "ns", "resourceVersion": str(version), "labels": labels}
        store.put("namespaces", {"metadata": metadata})
        assert parts(store) == seen


def test_a_pool_that_is_not_allowed_any_more_keeps_what_it_has_and_no_more() -> None:
    entries = [{"pod": "p", "pool": "team-a/a", "database": "shop", "bound": 9}]
    status = {"pools": [line("a", budget=9, granted=9, admitted=True)], "ledger": {"entries": entries}}
    greedy = pool(
        "a",
        replicas=100,
        share={"min": 70, "max": 80, "weight": 5},
        databases=[{"name": "shop"}, {"name": "more"}],
    )
    store = filled(server(status), greedy)
    [wish] = wishes_of(store, "data", "db")
    assert (wish.most, wish.least, dict(wish.databases)) == (9, 0, {"shop": 1})
    assert wish.floor <= 9
    assert wish.reserve == 1
    store.put("pgservers", server({"pools": [line("a", budget=9, granted=0, admitted=True)]}))
    [wish] = wishes_of(store, "data", "db")
    assert (wish.floor, wish.reserve) == (0, 0), "it has nothing, so there is nothing to keep"


def test_what_older_pools_are_sure_of() -> None:
    status = {"budget": 20}
    old, young = pool("old", second=1, replicas=2), pool("young", second=2)
    store = filled(server(status, "All"), old, young, pool("other", second=3, replicas=9))
    assert elders_of(store, old) == (0, 0)
    assert elders_of(store, young) == (1, 3)
    # An older one that asks for more than there is has what its pods need.
    store = filled(server(status, "All"), pool("old", second=1, replicas=30), young)
    assert elders_of(store, young) == (1, 0)
    labels = {names.LABEL_POOL: "old"}
    for name in ("old-0", "old-1"):
        store.put("pods", {"metadata": {"name": name, "namespace": "team-a", "uid": name, "labels": labels}})
    assert elders_of(store, young) == (1, 3)
