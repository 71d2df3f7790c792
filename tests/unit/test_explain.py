"""The explanation adds up, says what the operator's own functions say, and why something is smaller than wished."""

from dataclasses import replace
from typing import Any

import pytest

from poolfleet.plan.explain import explain, from_pool
from poolfleet.plan.explanation import Explanation, FleetLine, Line, PodLine, PoolLine
from poolfleet.plan.facts import Facts, Seen, facts
from poolfleet.plan.shares import divide_budget
from poolfleet.plan.world import Entry, Ledger
from tests.unit.explain_fixtures import NOW, Body, discovery, entry, pod, pool, rest, server, told

SHOP = pool()
EVEN = (entry("p1", 43), entry("p2", 43))


def seen(body: Body, *pools: Body, pods: tuple[Body, ...] = ()) -> Facts:
    return facts(Seen(body, pools, pods), NOW)


def shop(ledger: Ledger, *pods: Body, spec: Body | None = None, **status: Any) -> Explanation:
    """demo/shop alone on data/db."""
    return explain(seen(server(ledger, (SHOP,), spec, **status), SHOP, pods=pods))


def adds_up(lines: tuple[Line, ...]) -> bool:
    """Whether what there is, less what goes off, is what is left."""
    taken = sum(line.connections for line in lines if line.sign == "-")
    [left] = [line.connections for line in lines if line.sign == "="]
    return lines[0].connections - taken == left


def named(lines: tuple[Line, ...], what: str) -> Line:
    [line] = [line for line in lines if line.what == what]
    return line


def of_pod(explanation: Explanation, name: str) -> PodLine:
    [line] = [line for line in explanation.pods if line.pod == name]
    return line


def of_pool(explanation: Explanation, name: str) -> PoolLine:
    [line] = [line for line in explanation.pools if line.pool == name]
    return line


def test_from_max_connections_to_the_budget() -> None:
    said = shop(Ledger()).budget
    assert [(line.sign, line.connections, line.what) for line in said] == [
        ("", 100, "max_connections"),
        ("-", 3, "superuser_reserved_connections"),
        ("-", 0, "reserved_connections"),
        ("-", 10, "headroom"),
        ("=", 87, "budget"),
    ]
    assert adds_up(said) and "10%" in said[3].note


@pytest.mark.parametrize(
    ("declared", "read", "counts", "words"),
    [
        (100, None, 100, "as declared"),
        (100, 200, 100, "declared in spec.maxConnections; the server itself says 200"),
        (100, 80, 80, "the declared 100 is larger, the smaller counts"),
        (None, 80, 80, "read from the server"),
    ],
)
def test_which_max_connections_counts(declared: int | None, read: int | None, counts: int, words: str) -> None:
    spec = {"maxConnections": declared, "adminSecretRef": {"name": "admin"}}
    said = shop(Ledger(), spec=spec, **({} if read is None else {"discovery": discovery(read)})).budget
    assert said[0].connections == counts and words in said[0].note
    assert named(said, "own").connections == 2
    assert adds_up(said)


def test_a_larger_reading_that_waits_is_told() -> None:
    candidate = {"maxConnections": 300, "superuserReserved": 3, "reserved": 0, "since": "2027-01-15T07:59:00Z"}
    spec = {"adminSecretRef": {"name": "admin"}}
    said = shop(Ledger(), spec=spec, discovery=discovery(80, candidate=candidate)).budget
    assert "larger reading of 300 waits" in said[0].note


def test_what_is_not_free() -> None:
    gone = replace(entry("g", 5), gone_since=NOW - 20)
    left = entry("s", 4, of="demo/gone")
    ledger = Ledger(7, (entry("p1", 30), gone, left), (rest(2), rest(9, -1.0)))
    said = shop(ledger, pod("p1", directive=told(30)), free=87 - 39 - 6, unaccounted=1)
    assert adds_up(said.free) and adds_up(said.shared)
    assert named(said.free, "granted").connections == 39
    assert named(said.free, "ghosts") == Line("of which", 5, "ghosts", "vanished without proof of their end: g 5")
    assert named(said.free, "resting").connections == 2
    assert named(said.free, "unaccounted").connections == named(said.shared, "unaccounted").connections == 1
    assert named(said.free, "still promised").connections == 5
    assert "s 4" in named(said.shared, "leftovers").note
    assert named(said.free, "reserve").connections == 1
    assert [line.pod for line in said.pods] == ["p1", "g", "s"]


def test_a_server_that_is_anothers_has_nothing_to_share() -> None:
    stalled = {"type": "Stalled", "status": "True", "reason": "SharedServer", "message": "an older one has it"}
    said = shop(Ledger(), conditions=[stalled])
    assert adds_up(said.free) and adds_up(said.shared)
    assert named(said.shared, "to share").connections == 0
    assert named(said.free, "of another PgServer").note == "an older one has it"


def test_without_a_budget_there_is_a_reason_and_no_arithmetic() -> None:
    spec = {"maxConnections": None, "adminSecretRef": {"name": "admin"}}
    said = shop(Ledger(), pod("p1"), spec=spec)
    assert (said.budget, said.shared, said.free) == ((), (), ())
    assert said.notes[0].startswith("max_connections is not known yet")
    assert of_pod(said, "p1").why == "the budget is not known yet"


def test_shares_are_those_of_the_operator() -> None:
    pools = (SHOP, pool("web", born=2, share={"weight": 3}, replicas=4), pool("job", born=3, share={"max": 9}))
    entries = (*EVEN[:1], entry("w1", 20, of="demo/web"))
    known = seen(server(Ledger(7, entries), pools), *pools, pods=(pod("p1"), pod("p2"), pod("w1", "web")))
    division = divide_budget(known.world, known.world.ledger)
    said = explain(known)
    assert {line.pool: line.share for line in said.pools} == dict(division.shares)
    assert {line.pool: line.sure for line in said.pools} == dict(division.sure)
    fair = {(f"uid-{line.pod}", line.database): line.fair for line in said.pods}
    assert fair == dict(division.fair)
    assert [line.pool for line in said.pools] == ["demo/shop", "demo/web", "demo/job"]
    assert of_pool(said, "demo/job").why.startswith("held at share.max")


def test_a_pool_that_does_not_fit_with_the_sums() -> None:
    pools = (pool(replicas=60), pool("web", born=2, replicas=30), pool("job", born=3, share={"min": 50}))
    said = explain(seen(server(None, pools), *pools))
    assert of_pool(said, "demo/web").why == (
        "BudgetTooSmall: needs (30 replicas + 1) x 1 databases = 31, "
        "there is 87 - 61 that older pools are sure of = 26; it gets nothing new"
    )
    assert "needs share.min = 50, there is 87 - 61" in of_pool(said, "demo/job").why
    assert (of_pool(said, "demo/web").sure, of_pool(said, "demo/web").share) == (0, 0)
    grown = pool(replicas=90)
    running = explain(seen(server(None, (grown,)), grown, pods=(pod("p1"),)))
    assert of_pool(running, "demo/shop").why.startswith(
        "BudgetTooSmall: needs (90 replicas + 1) x 1 databases = 91, there is 87; the pods that it has keep 2"
    )


def test_who_lends_and_who_borrows() -> None:
    pools = (SHOP, pool("web", born=2))
    entries = (entry("p1", 60), entry("w1", 20, of="demo/web"))
    bodies = (pod("p1", directive=told(60)), pod("w1", "web", directive=told(20, 20, database="web")))
    said = explain(seen(server(Ledger(7, entries), pools), *pools, pods=bodies))
    assert [line.share for line in said.pools] == [44, 43]
    assert of_pool(said, "demo/shop").why == "16 borrowed from demo/web"
    assert of_pool(said, "demo/web").why == "22 lent to demo/shop"
    assert of_pod(said, "p1").why == "17 borrowed: its clients wait, others need less"
    assert of_pod(said, "w1").why == "22 lent: its clients need no more"
    only = explain(seen(server(Ledger(7, entries), pools), *pools, pods=bodies), ["demo/web"])
    assert [line.pod for line in only.pods] == ["w1"] and len(only.pools) == 2


def test_limits_of_postgresql_are_named() -> None:
    spec = {"adminSecretRef": {"name": "admin"}}
    found = discovery(100, databaseLimits=[{"name": "shop", "limit": 12}])
    said = shop(Ledger(), pod("p1"), pod("p2"), spec=spec, discovery=found)
    assert 'PostgreSQL allows database "shop" 12' in of_pool(said, "demo/shop").why
    assert [line.fair for line in said.pods] == [6, 6]


FREED = (rest(5),)
NOT_READY = {"conditions": [{"type": "Ready", "status": "False"}]}
ENDING = {"deletionTimestamp": "2027-01-15T08:00:00Z"}


def with_metadata(body: Body, **more: Any) -> Body:
    return {**body, "metadata": {**body["metadata"], **more}}


@pytest.mark.parametrize(
    ("ledger", "body", "words"),
    [
        (Ledger(7, EVEN), pod("p1", directive=told(43)), ""),
        (Ledger(7, (entry("p1", 43, 50), EVEN[1])), pod("p1", directive=told(43)), "told 30 s ago to shrink from 50"),
        (Ledger(8, (entry("p1", 43, revision=8),)), pod("p1", directive=told(9)), "not told yet"),
        (Ledger(7, EVEN), with_metadata(pod("p1", directive=told(43)), **ENDING), "draining"),
        (Ledger(7, (entry("p1", 1), EVEN[1])), pod("p1", directive=told(1, 43), status=NOT_READY), "starts with one"),
        (Ledger(7, (entry("p1", 9), EVEN[1])), pod("p1", directive=told(9)), "34 lent: its clients need no more"),
        (Ledger(7, (entry("p1", 9), EVEN[1]), FREED), pod("p1", directive=told(9, 43)), "waits until others"),
        (Ledger(7, (entry("p1", 9), EVEN[1])), pod("p1", directive=told(9, 43)), "waits for free connections (34"),
        (Ledger(7, (entry("p1", 9),), (), NOW), pod("p1", directive=told(9, 43)), "the ledger was rebuilt"),
        (Ledger(7), pod("p1", spec={"nodeName": None}), "waits for a node"),
        (Ledger(7), with_metadata(pod("p1"), annotations={}), "of another PgServer than today's"),
        (Ledger(7), pod("p1"), "waits for a free connection (87 free)"),
        (Ledger(7, (), (), NOW), pod("p1"), "the ledger was rebuilt"),
    ],
)
def test_why_a_pod_has_what_it_has(ledger: Ledger, body: Body, words: str) -> None:
    why = of_pod(shop(ledger, body, pod("p2", directive=told(43))), "p1").why
    assert why.startswith(words) and bool(why) == bool(words)


def test_a_removed_database_a_pool_that_is_gone_and_a_ghost() -> None:
    removed = Entry("uid-p1", "p1", "demo/shop", "old", 3, 3, 7, NOW)
    lost = replace(entry("g", 5), gone_since=NOW - 20)
    ledger = Ledger(7, (removed, lost, entry("s", 4, of="demo/gone")))
    said = shop(ledger, pod("p1"), pod("s", "gone"))
    assert [line.why for line in said.pods if line.database == "old"] == [
        "no longer served; being taken away; not told yet"
    ]
    assert of_pod(said, "g").why == "vanished 20 s ago without proof of its end; kept for 100 s more"
    assert of_pod(said, "s").why.startswith("its pool asks for nothing any more")


def test_a_pod_shows_what_the_operator_told_it_last() -> None:
    said = shop(Ledger(7, EVEN), pod("p1", directive=told(43, 60)), pod("p2", directive=told(9, 60, rev=6)))
    assert [(line.target, line.pool_size, line.bound) for line in said.pods] == [(60, 43, 43), (None, 43, 43)]
    garbled = pod("p1")
    garbled["metadata"]["annotations"]["poolfleet.dev/directive"] = "{"
    assert of_pod(shop(Ledger(7, EVEN), garbled), "p1").target is None


def test_what_a_pool_knows_without_its_server() -> None:
    body = {**SHOP, "status": {"connections": {"budget": 40, "granted": 30}}}
    said = from_pool(body, [pod("p1", directive=told(15, 20)), pod("p2")], ["PgServer cannot be read"])
    assert (said.server, said.budget, said.notes) == ("data/db", (), ("PgServer cannot be read",))
    [line] = said.pools
    assert (line.needs, line.sure, line.share, line.now) == (3, None, 40, 30)
    assert said.pods == (PodLine("demo/shop", "p1", "shop", None, 20, 15, None, ""),)


def test_how_many_pods_and_their_clients() -> None:
    body = {**SHOP, "status": {"readyReplicas": 2, "clients": {"active": 7, "waiting": 1, "podMin": 3, "podMax": 5}}}
    assert FleetLine.of(body) == FleetLine("demo/shop", 2, 2, 8, 1, 3, 5, "spec.replicas")
    assert FleetLine.of(SHOP) == FleetLine("demo/shop", 2, None, None, None, None, None, "spec.replicas")
    status = {"desiredReplicas": 4, "autoscaling": {"message": "4200 clients"}}
    limited = {"type": "AutoscalingLimited", "status": "True", "reason": "BudgetLimited", "message": "it feeds 4"}
    auto = {**SHOP, "spec": {**SHOP["spec"], "autoscaling": {}}, "status": {**status, "conditions": [limited]}}
    line = FleetLine.of(auto)
    assert (line.replicas, line.why) == (4, "autoscaling 2..8: 4200 clients; BudgetLimited: it feeds 4")
    fine = {**auto, "status": {**status, "conditions": [{**limited, "status": "False"}]}}
    assert FleetLine.of(fine).why == "autoscaling 2..8: 4200 clients"
    assert FleetLine.of({**auto, "status": {}}).why == "autoscaling 2..8: nothing decided yet"
