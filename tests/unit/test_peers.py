"""peer_ids: leased with the first directive, kept while the pod has entries, told to every pod of the pool."""

from dataclasses import replace

from poolfleet.api.wire import MAX_PEER
from poolfleet.plan.ledger import PEERS_SECONDS, advance, orders
from poolfleet.plan.peers import peers, unused
from poolfleet.plan.server import read_ledger, write_ledger
from poolfleet.plan.world import Entry, Ledger
from tests.unit.test_ledger import answer, entry, pod, told, world


def leased(uid: str, peer: int) -> Entry:
    return replace(entry(uid), peer=peer)


def test_a_pod_gets_an_id_with_its_first_directive_and_keeps_it() -> None:
    first = advance(world(Ledger(revision=6), pod(ip="10.0.0.1")))
    [(_, directive)] = orders(world(first, pod(ip="10.0.0.1")), first)
    assert directive.peer == 7 and directive.peers == {"7": "10.0.0.1"}
    one = pod(state=answer(rev=7), directive=told("p1", 7, 1) | {"peer": 7, "peers": {"7": "10.0.0.1"}}, ip="10.0.0.1")
    later = advance(world(first, one, now=200.0))
    assert {e.peer for e in later.entries} == {7}


def test_every_pod_hears_of_a_new_one_as_soon_as_it_has_an_address() -> None:
    old = pod(
        state=answer(loaded=5), directive=told("p1", 1, 5) | {"peer": 1, "peers": {"1": "10.0.0.1"}}, ip="10.0.0.1"
    )
    new = pod("p2", state=answer("p2", loaded=5), directive=told("p2", 1, 5) | {"peer": 2, "peers": {"1": "10.0.0.1"}})
    ledger = Ledger(1, (leased("p1", 1), leased("p2", 2)))
    w = world(ledger, old, new, budget=11)
    assert advance(w) is ledger  # it has none yet
    w = world(ledger, old, replace(new, ip="10.0.0.2"), budget=11)
    after = advance(w)
    everybody = {"1": "10.0.0.1", "2": "10.0.0.2"}
    assert {to.uid: directive.peers for to, directive in orders(w, after)} == {"p1": everybody, "p2": everybody}
    assert [(e.bound, e.grant) for e in after.entries] == [(5, 5), (5, 5)]
    early = replace(w, now=ledger.entries[0].since + PEERS_SECONDS / 2)
    assert advance(early) is ledger  # not more often than that for this alone


def test_who_is_on_the_way_out_still_gets_cancels_and_who_has_ended_does_not() -> None:
    ledger = Ledger(1, (leased("p1", 1), leased("p2", 2)))
    leaving = pod("p2", terminating=True, ip="10.0.0.2")
    assert peers(world(ledger, pod(ip="10.0.0.1"), leaving), ledger, "ns/shop") == {"1": "10.0.0.1", "2": "10.0.0.2"}
    gone = replace(leaving, ended=True)
    assert peers(world(ledger, pod(ip="10.0.0.1"), gone), ledger, "ns/shop") == {"1": "10.0.0.1"}


def test_no_id_is_given_twice_and_old_ones_come_back_late() -> None:
    assert unused({8, 9}, 7) == 10
    assert unused({MAX_PEER}, MAX_PEER - 1) == 1
    ledger = Ledger(4, (leased("p1", 5),))
    after = advance(world(ledger, pod(state=answer(loaded=5)), pod("p2"), budget=11))
    assert {e.pod: e.peer for e in after.entries}["p2"] == 6


def test_the_lease_stands_in_status_and_a_lost_ledger_takes_it_from_the_directive() -> None:
    ledger = Ledger(1, (leased("p1", 5),))
    assert read_ledger({"ledger": write_ledger(ledger)}) == ledger
    [rebuilt] = advance(world(Ledger(), pod(state=answer(rev=3), directive=told("p1", 3, 5) | {"peer": 9}))).entries
    assert rebuilt.peer == 9


def test_pods_of_before_peers_were_leased_get_one() -> None:
    old = pod(state=answer(loaded=5), directive=told("p1", 1, 5), ip="10.0.0.1")
    ledger = Ledger(1, (leased("p1", 0), leased("p2", 3)))
    new = pod(
        "p2",
        state=answer("p2", loaded=5),
        ip="10.0.0.2",
        directive=told("p2", 1, 5) | {"peer": 3, "peers": {"3": "10.0.0.2"}},
    )
    after = advance(world(ledger, old, new, budget=11))
    assert {e.pod: e.peer for e in after.entries} == {"p1": 2, "p2": 3}
