"""From API objects, whole or in part, to the world that the explanation speaks of."""

from dataclasses import replace
from typing import Any

from poolfleet.plan.facts import UNREAD, Facts, Seen, facts
from poolfleet.plan.world import Ledger
from tests.unit.explain_fixtures import NOW, Body, discovery, entry, pod, pool, rest, server, told

SHOP = pool()
TWO = (entry("p1", 40), entry("p2", 40))


def of(body: Body, *pools: Body, pods: tuple[Body, ...] = (), **more: Any) -> Facts:
    return facts(Seen(body, pools, pods, **more), NOW)


def test_the_world_as_the_operator_sees_it_but_without_its_secrets() -> None:
    ledger = Ledger(7, TWO, (rest(3),))
    seen = of(server(ledger, (SHOP,)), SHOP, pods=(pod("p1", directive=told(40)), pod("p2")))
    assert (seen.server, seen.headroom, seen.declared, seen.notes) == ("data/db", "10%", 100, ())
    assert seen.budget is not None and seen.budget.total == seen.world.budget == 87
    assert seen.world.ledger == ledger
    assert [p.uid for p in seen.world.members("demo/shop")] == ["uid-p1", "uid-p2"]
    [wish] = seen.world.wishes
    assert (wish.pool, dict(wish.databases), wish.replicas, wish.floor) == ("demo/shop", {"shop": 1}, 2, 3)
    assert seen.world.ghost_grace == 120.0
    assert seen.world.free(ledger) == 87 - 80 - 3


def test_discovered_limits_count_and_bound_databases() -> None:
    spec = {"adminSecretRef": {"name": "admin"}, "maxConnections": None}
    found = discovery(200, databaseLimits=[{"name": "shop", "limit": 12}], roleLimits=[{"name": "app", "limit": 9}])
    seen = of(server(None, (SHOP,), spec, discovery=found), SHOP)
    assert seen.budget is not None and seen.budget.total == 200 - 3 - 2 - 20 - 2
    assert seen.world.wishes[0].caps == {"shop": 12}
    assert seen.notes == (
        "PostgreSQL also limits roles (app 9), which bounds the databases that log in as them; not shown here.",
    )
    # a limit that the operator has set itself says nothing
    ours = of(server(None, (SHOP,), spec, discovery=found, roleLimits=[{"role": "app", "limit": 9}]), SHOP)
    assert ours.notes == ()
    # without an admin Secret nobody reads, whatever an older status says
    assert of(server(None, (SHOP,), discovery=found), SHOP).discovery is None


def test_a_pool_that_cannot_be_read_has_what_the_server_says_of_it() -> None:
    other = pool("other", "secret", born=2)
    body = server(Ledger(7, (*TWO, entry("x", 8, of="secret/other"))), (SHOP, other))
    body["status"]["pools"][1]["budget"] = 30
    seen = of(body, SHOP, blind=["secret"])
    wish = seen.world.wishes[1]
    assert (wish.pool, wish.least, wish.most, dict(wish.databases)) == ("secret/other", 30, 30, {"other": 1})
    assert wish.created > seen.world.wishes[0].created
    [stand_in] = seen.world.members("secret/other")
    assert (stand_in.uid, stand_in.raw_directive) == ("uid-x", UNREAD)
    assert "PgPool secret/other" in seen.notes[0] and '"secret"' in seen.notes[1]


def test_a_ghost_of_a_namespace_that_cannot_be_read_is_no_pod() -> None:
    gone = replace(entry("x", 8), gone_since=NOW - 5)
    assert of(server(Ledger(7, (gone,)), (SHOP,)), SHOP, blind=["demo"]).world.pods == ()


def test_a_pool_with_a_fault_is_served_as_it_was_and_one_that_may_not_any_more_is_frozen() -> None:
    body = server(Ledger(7, TWO), (SHOP,))
    stalled = {"type": "Stalled", "status": "True", "reason": "SecretNotFound"}
    faulty = pool(databases=[{"name": "shop", "weight": 4}, {"name": "new"}])
    assert set(of(body, faulty).world.wishes[0].databases) == {"shop", "new"}
    faulty["status"] = {"conditions": [stalled]}
    [wish] = of(body, faulty).world.wishes
    assert (dict(wish.databases), wish.most) == ({"shop": 4}, None)
    faulty["status"] = {"conditions": [{**stalled, "reason": "NamespaceNotAllowed"}]}
    assert of(body, faulty).world.wishes[0].most == 10


def test_what_a_younger_pgserver_still_promises() -> None:
    younger = server(Ledger(1, (entry("y", 6, of="demo/old"),)))
    younger["metadata"].update(name="db2", uid="uid-db2", creationTimestamp="2027-01-02T00:00:00Z")
    body = server(Ledger(7, TWO), (SHOP,), free=1, unaccounted=2)
    assert of(body, SHOP, servers=[body, younger]).world.foreign == 6 + 2
    # without the right to read it: what is missing from `free`
    unread = of(body, SHOP)
    assert (unread.world.foreign, unread.unaccounted) == (87 - 80 - 1, 2)
    assert of(server(Ledger(7, TWO), (SHOP,)), SHOP).world.foreign == 0


def test_a_server_whose_budget_is_anothers() -> None:
    stalled = {"type": "Stalled", "status": "True", "reason": "SharedServer", "message": "PgServer data/a is older."}
    seen = of(server(None, (SHOP,), conditions=[stalled]), SHOP)
    assert (seen.world.budget, seen.shared) == (0, "PgServer data/a is older.")


def test_a_spec_that_cannot_be_read_has_no_budget() -> None:
    seen = of(server(None, (SHOP,), {"headroom": "a lot"}), SHOP)
    assert seen.budget is None and seen.world.budget is None
    assert seen.notes[0].startswith("The PgServer's spec.headroom: ")
