"""The rules of the ledger one by one; tests/property/test_ledger.py has them all under noise."""

from dataclasses import replace
from typing import Any

import pytest

from poolfleet.api.wire import AgentState, DatabaseState
from poolfleet.plan import ledger as plan
from poolfleet.plan.ledger import advance, orders, proves
from poolfleet.plan.model import Pod, Sessions
from poolfleet.plan.shares import Division
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Entry, Ledger, Rest, World

WISH = PoolWish("ns/shop", "u", 0.0, {"a": 1}, "c1", roles={"a": frozenset({"shop"})})
OTHER = PoolWish("team/late", "v", 1.0, {"a": 1}, "c2", roles={"a": frozenset({"late"})})


def pod(uid: str = "p1", state: AgentState | None = None, **changes: object) -> Pod:
    first = Pod(uid, uid, "ns", 0.0, False, True, False, True, "", "server", pool="ns/shop", state=state)
    return replace(first, **changes)  # type: ignore[arg-type]


def answer(
    uid: str = "p1",
    rev: int = 1,
    loaded: int = 1,
    held: int = 1,
    samples: int = 2,
    config: str = "c1",
    started: str = "x",
) -> AgentState:
    return AgentState(
        "server", uid, 1, rev, config, "", started, {"a": DatabaseState(loaded, held, samples, clients=held)}
    )


def told(uid: str, rev: int, grant: int, config: str = "c1") -> dict[str, object]:
    return {"server": "server", "pod": uid, "rev": rev, "config": config, "grant": {"a": grant}}


def entry(
    uid: str = "p1", bound: int = 5, grant: int = 5, rev: int = 1, since: float = 0.0, pool: str = "ns/shop"
) -> Entry:
    return Entry(uid, uid, pool, "a", bound, grant, rev, since)


def world(ledger: Ledger, *pods: Pod, budget: int | None = 20, now: float = 100.0, **more: object) -> World:
    first = World("server", budget, ledger, pods, (WISH,), now)
    return replace(first, **more)  # type: ignore[arg-type]


def test_the_first_grant_is_one_per_database_and_comes_before_the_pod_answers() -> None:
    w = world(Ledger(), pod())
    after = advance(w)
    assert [(e.bound, e.grant, e.revision) for e in after.entries] == [(1, 1, 1)]
    [(to, directive)] = orders(w, after)
    assert (to.uid, directive.rev, directive.grant, directive.config) == ("p1", 1, {"a": 1}, "c1")
    assert directive.share == {"a": 19}  # warm means half of this


def test_a_pod_without_a_node_gets_nothing() -> None:
    w = world(Ledger(), pod(scheduled=False))
    assert advance(w) is w.ledger


def test_a_pod_that_has_answered_gets_its_share_less_the_reserve() -> None:
    after = advance(world(Ledger(1, (entry(bound=1, grant=1),)), pod(state=answer())))
    assert [(e.bound, e.grant, e.revision) for e in after.entries] == [(19, 19, 2)]


def test_a_pod_that_a_new_leader_has_not_heard_of_keeps_what_it_has() -> None:
    ledger = Ledger(3, (entry("p1", 10, 10, 2), entry("p2", 9, 9, 3)))
    heard = pod("p1", state=answer("p1", 2, 10, 10), directive=told("p1", 2, 10))
    silent = pod("p2", directive=told("p2", 3, 9), created=1.0)
    assert advance(world(ledger, heard, silent)) is ledger
    # a cut of the budget does reach it
    after = advance(world(ledger, heard, silent, budget=5))
    assert [(e.pod, e.bound, e.grant) for e in after.entries] == [("p1", 10, 2), ("p2", 9, 9)]
    after = advance(world(replace(after, entries=(entry("p1", 2, 2, 4), after.entries[1])), heard, silent, budget=5))
    assert [(e.pod, e.bound, e.grant) for e in after.entries] == [("p1", 2, 2), ("p2", 9, 2)]


def test_an_unknown_budget_raises_nothing() -> None:
    w = world(Ledger(), pod(), budget=None)
    assert advance(w) is w.ledger


def test_a_newcomer_is_made_room_for_by_one_donor_at_a_time() -> None:
    ledger = Ledger(3, (entry("p1", 10, 10, 2), entry("p2", 9, 9, 2), entry("p3", 1, 1, 3)))
    pods = [
        pod(uid, state=answer(uid, rev, held, held), directive=told(uid, rev, held), created=n)
        for n, (uid, rev, held) in enumerate([("p1", 2, 10), ("p2", 2, 9), ("p3", 3, 1)])
    ]
    after = advance(world(ledger, *pods))
    assert [(e.pod, e.bound, e.grant) for e in after.entries] == [("p1", 10, 7), ("p2", 9, 9), ("p3", 1, 1)]
    # p1 has not proved it for 5 s: the next donor is asked as well
    pods[0] = replace(pods[0], directive=told("p1", 4, 7))
    later = advance(world(after, *pods, now=106.0))
    assert [(e.bound, e.grant) for e in later.entries][:2] == [(10, 7), (9, 6)]


def test_a_proof_releases_and_the_released_rests_before_anybody_gets_it() -> None:
    ledger = Ledger(4, (entry("p1", 10, 7, 4, since=99.0), entry("p2", 10, 10, 2)))
    pods = [
        pod("p1", state=answer("p1", 4, 7, 7), directive=told("p1", 4, 7)),
        pod("p2", state=answer("p2", 2, 10, 10), directive=told("p2", 2, 10), created=1.0),
    ]
    w = world(ledger, *pods)
    after = advance(w)
    assert after.entries[0].bound == 7
    assert after.resting == (Rest(3, 100.6),)
    assert w.free(after) == 0
    assert plan.wake_at(w, after) == pytest.approx(100.6)


@pytest.mark.parametrize(
    "state",
    [
        answer(rev=3),
        answer(rev=4, loaded=8),
        answer(rev=4, loaded=7, held=8),
        answer(rev=4, loaded=7, held=7, samples=1),
        answer(rev=4, loaded=7, held=7, started=""),
        answer("p2", rev=4, loaded=7, held=7),
        replace(answer(rev=4, loaded=7, held=7), server="another"),
        None,
    ],
    ids=[
        "older revision",
        "limit not loaded",
        "still held",
        "one sample",
        "no process",
        "other pod",
        "other server",
        "silent",
    ],
)
def test_what_is_no_proof(state: AgentState | None) -> None:
    assert not proves(state, entry(bound=10, grant=7, rev=4), "server")
    assert proves(answer(rev=4, loaded=7, held=7), entry(bound=10, grant=7, rev=4), "server")


def test_a_pod_that_ended_is_released_one_that_vanished_waits_for_the_grace() -> None:
    ended = advance(world(Ledger(1, (entry(),)), pod(ended=True)))
    assert ended.entries == () and ended.resting == (Rest(5, 100.6),)
    missed = advance(world(Ledger(1, (entry(),))))
    assert missed.entries[0].gone_since == 100.0 and missed.bound == 5
    waiting = world(missed, now=219.0)
    assert advance(waiting) is missed
    assert advance(world(missed, now=220.0)).entries == ()


def test_a_terminating_pod_counts_and_is_cut_to_what_its_clients_use() -> None:
    ledger = Ledger(2, (entry("p1", 19, 19, 2, since=90.0),))
    state = replace(answer("p1", 2, 19, 19), databases={"a": DatabaseState(19, 19, 2, clients=4)})
    after = advance(world(ledger, pod(state=state, terminating=True, directive=told("p1", 2, 19))))
    assert [(e.bound, e.grant) for e in after.entries] == [(19, 4)]


def test_after_a_budget_cut_the_newcomer_gets_nothing_until_it_fits() -> None:
    ledger = Ledger(2, (entry("p1", 19, 19, 2),))
    pods = [pod(state=answer(rev=2, loaded=19, held=19), directive=told("p1", 2, 19)), pod("p2", created=1.0)]
    after = advance(world(ledger, *pods, budget=10))
    assert [(e.pod, e.bound, e.grant) for e in after.entries] == [("p1", 19, 8)]


def test_a_new_configuration_gets_a_revision_and_the_same_grant() -> None:
    ledger = Ledger(2, (entry("p1", 19, 19, 2),))
    w = world(ledger, pod(state=answer(rev=2, loaded=19), directive=told("p1", 2, 19, config="old")))
    after = advance(w)
    assert [(e.grant, e.revision) for e in after.entries] == [(19, 3)]
    assert [d.config for _, d in orders(w, after)] == ["c1"]


def test_a_directive_that_nobody_loads_is_sent_anew_but_a_refused_configuration_is_not() -> None:
    ledger = Ledger(2, (entry("p1", 19, 19, 2, since=96.0),))
    stuck = pod(state=answer(rev=2, loaded=19, config="old"), directive=told("p1", 2, 19))
    assert advance(world(ledger, stuck)).revision == 3
    assert stuck.state is not None
    refused = replace(stuck, state=replace(stuck.state, config_error="line 3"))
    assert advance(world(ledger, refused)) is ledger


def test_a_removed_database_is_taken_back_and_its_entry_goes_after_the_proof() -> None:
    gone = Entry("p1", "p1", "ns/shop", "b", 4, 4, 2, 0.0)
    ledger = Ledger(2, (entry("p1", 10, 10, 2), gone))
    first = advance(world(ledger, pod(state=answer(rev=2, loaded=10), directive=told("p1", 2, 10))))
    assert [(e.database, e.grant) for e in first.entries] == [("a", 10), ("b", 0)] or first.entries[1].grant == 0
    done = pod(state=answer(rev=first.revision, loaded=10), directive=told("p1", first.revision, 10))
    assert [e.database for e in advance(world(first, done)).entries] == ["a"]


def test_a_pod_of_an_earlier_server_is_counted_with_what_it_was_told() -> None:
    old = pod(directive={**told("p1", 7, 12), "server": "earlier"}, server="earlier")
    after = advance(world(Ledger(), old, pod("p2", created=1.0)))
    assert [(e.pod, e.bound) for e in after.entries] == [("p1", 12)]
    assert after.rebuilt == 100.0 and after.revision == 7 + plan.REVISION_GAP


def test_a_step_over_the_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Division({}, {"ns/shop": 99}, {"ns/shop": 99}, {}, {("p1", "a"): 99})
    monkeypatch.setattr(plan, "divide_budget", lambda *_: everything)
    monkeypatch.setattr(World, "free", lambda *_: 99)
    with pytest.raises(plan.IllegalStepError):
        advance(world(Ledger(1, (entry(bound=1, grant=1),)), pod(state=answer())))


# Several pools


QS = (("q1", "team/late"), ("q2", "team/late"))


def late(uid: str = "q1", state: AgentState | None = None, **changes: Any) -> Pod:
    return pod(uid, state, pool="team/late", namespace="team", **changes)


def test_a_pools_reserve_is_for_its_own_pods_only() -> None:
    """One connection is left, and it is the reserve of ns/shop: the pod of the other pool waits, its own does not."""
    full = Ledger(2, (entry("p1", 9, 9, 2), entry("q1", 10, 10, 2, pool="team/late")))
    mine = pod("p1", answer("p1", 2, 9, 9), directive=told("p1", 2, 9))
    theirs = late("q1", answer("q1", 2, 10, 10, config="c2"), directive=told("q1", 2, 10, config="c2"))
    both: dict[str, Any] = {"wishes": (WISH, OTHER)}
    after = advance(world(full, mine, theirs, late("q2", created=1.0), **both))
    assert "q2" not in {e.pod for e in after.entries}
    after = advance(world(full, mine, theirs, pod("p2", created=1.0), **both))
    assert ("p2", 1) in {(e.pod, e.bound) for e in after.entries}


def test_in_each_pool_one_donor_at_a_time() -> None:
    """The budget is halved: one pod of either pool is told to shrink, not two of one."""
    ledger = Ledger(2, tuple(entry(u, 9, 9, 2, pool=p) for u, p in (("p1", "ns/shop"), ("p2", "ns/shop"), *QS)))
    pods = [pod(u, answer(u, 2, 9, 9), directive=told(u, 2, 9)) for u in ("p1", "p2")]
    pods += [late(u, answer(u, 2, 9, 9, config="c2"), directive=told(u, 2, 9, config="c2")) for u, _ in QS]
    after = advance(world(ledger, *pods, budget=20, wishes=(WISH, OTHER)))
    assert [(e.pod, e.grant) for e in after.entries] == [("p1", 9), ("p2", 4), ("q1", 9), ("q2", 4)]


def test_pods_whose_pool_is_gone_count_until_they_end() -> None:
    ledger = Ledger(2, (entry("q1", 8, 8, 2, pool="team/late"),))
    after = advance(world(ledger, late("q1", answer("q1", 2, 8, 8)), pod("p1", answer("p1", 0), created=1.0)))
    assert after.of_pool("team/late")[0].bound == 8
    nearly = advance(world(after, late("q1"), pod("p1", answer("p1", 3, 1, 1), directive=told("p1", 3, 1))))
    assert nearly.of_pool("ns/shop")[0].bound == 20 - 8 - 1  # the reserve


# What PostgreSQL shows, and who is known to be gone

QUIET = Sessions(at=120.0, pools=0, orphans={}, others=0, quiet_since=50.0)


@pytest.mark.parametrize(
    ("looks", "gone"),
    [
        (QUIET, True),
        (replace(QUIET, at=119.0), False),
        (replace(QUIET, quiet_since=101.0), False),
        (replace(QUIET, at=121.0, quiet_since=101.0), True),
        (replace(QUIET, orphans={"shop": 1}, quiet_since=None), False),
        (None, False),
    ],
    ids=["quiet for 20 s", "too short", "quiet too late", "quiet later", "a session", "nobody looks"],
)
def test_a_ghost_ends_when_postgresql_shows_nothing_of_it(looks: Sessions | None, gone: bool) -> None:
    ghost = replace(entry(), gone_since=100.0)
    after = advance(world(Ledger(1, (ghost,)), now=131.0, sessions=looks))
    assert (after.entries == ()) is gone


def test_a_ghost_that_answers_lives_however_long() -> None:
    ghost = Ledger(1, (replace(entry(), gone_since=100.0),))
    for looks in (QUIET, None):
        after = advance(world(ghost, now=900.0, sessions=looks, answering=frozenset({"p1"})))
        assert [(e.bound, e.gone_since) for e in after.entries] == [(5, None)]  # its grace begins when it falls silent
    assert advance(world(ghost, now=900.0)).entries == ()


def test_a_pod_of_a_node_that_is_off_is_gone_at_once() -> None:
    after = advance(world(Ledger(1, (entry(),)), pod(terminating=True), off=frozenset({"p1"})))
    assert after.entries == () and after.resting == (Rest(5, 100.6),)


def test_sessions_that_nobody_accounts_for_are_not_free() -> None:
    looks = Sessions(99.0, 7, {"shop": 6}, 0)
    one = world(Ledger(1, (entry(bound=1, grant=1),)), pod(state=answer()), sessions=looks)
    assert [e.bound for e in advance(one).entries] == [20 - 6 - 1]
    # what a pod that cannot be asked might hold is not counted twice
    silent = world(Ledger(1, (entry("p2", 4, 4), entry(bound=1, grant=1))), pod(state=answer()), sessions=looks)
    assert silent.unaccounted(silent.ledger) == 6 - 4


def test_what_another_pgserver_promised_of_the_same_server_is_not_free() -> None:
    after = advance(world(Ledger(1, (entry(bound=1, grant=1),)), pod(state=answer()), foreign=12))
    assert [e.bound for e in after.entries] == [20 - 12 - 1]


def test_a_role_without_room_in_postgresql_holds_raises_back_but_no_shrink() -> None:
    blocked: dict[str, Any] = {"blocked": frozenset({"shop"})}
    ledger = Ledger(1, (entry(bound=1, grant=1),))
    assert advance(world(ledger, pod(state=answer(), directive=told("p1", 1, 1)), **blocked)) is ledger
    assert advance(world(Ledger(), pod(), **blocked)).entries == ()
    large = Ledger(1, (entry(bound=19, grant=19),))
    cut = advance(world(large, pod(state=answer(loaded=19), directive=told("p1", 1, 19)), budget=10, **blocked))
    assert cut.entries[0].grant == 9


# Holds, and configurations that are at hand but not loaded

STEADY = Ledger(3, (entry("p1", 19, 19, 3),))


def holding(state: AgentState | None = None, turn: int = 0, **directive: object) -> Pod:
    """A pod that has what the ledger STEADY says."""
    state = state or answer("p1", 3, 19, 19)
    return pod("p1", state, directive={**told("p1", 3, 19), **directive}, turn=turn)


def told_next(w: World) -> Any:
    """The directive of the next step; None if there is none."""
    found = [directive for _, directive in orders(w, advance(w))]
    return found[0] if found else None


def test_a_hold_is_told_at_once_and_its_end_as_well() -> None:
    held = (replace(WISH, hold=frozenset({"a", "gone"})),)
    first = told_next(world(STEADY, holding(), wishes=held))
    assert (first.rev, first.hold, first.grant, first.config) == (4, ("a",), {"a": 19}, "c1")
    assert told_next(world(STEADY, holding(hold=["a"]), wishes=held)) is None
    last = told_next(world(STEADY, holding(hold=["a"])))
    assert (last.rev, last.hold, last.grant) == (4, (), {"a": 19})


def test_a_hold_waits_for_no_proof_of_anything_else() -> None:
    shrinking = Ledger(3, (entry("p1", 19, 9, 3),))
    held = (replace(WISH, hold=frozenset({"a"})),)
    first = told_next(world(shrinking, holding(), wishes=held, budget=10))
    assert (first.hold, first.grant) == (("a",), {"a": 9})


def test_what_is_staged_is_told_once_and_not_to_be_loaded() -> None:
    staged = (replace(WISH, config="c2", staged=True),)
    first = told_next(world(STEADY, holding(), wishes=staged))
    assert (first.config, first.stage) == ("c1", "c2")
    assert told_next(world(STEADY, holding(stage="c2"), wishes=staged)) is None
    loading = told_next(world(STEADY, holding(stage="c2"), wishes=(replace(WISH, config="c2"),)))
    assert (loading.config, loading.stage) == ("c2", "")


@pytest.mark.parametrize(
    ("mounted", "since", "again"), [("c2", 0.0, False), ("c1", 0.0, True), ("c1", 98.0, False), ("", 0.0, False)]
)
def test_who_has_not_mounted_what_is_staged_is_told_again_if_he_can(mounted: str, since: float, again: bool) -> None:
    staged = (replace(WISH, config="c2", staged=True),)
    state = replace(answer("p1", 3, 19, 19), mounted=mounted)
    ledger = Ledger(3, (entry("p1", 19, 19, 3, since=since),))
    assert (told_next(world(ledger, holding(state, stage="c2"), wishes=staged)) is not None) is again


def test_a_new_pod_waits_while_what_there_is_must_not_be_loaded() -> None:
    staged = (replace(WISH, config="c2", staged=True),)
    assert told_next(world(Ledger(), pod(), wishes=staged)).config == ""


def test_a_pod_that_was_made_for_other_roles_keeps_its_configuration() -> None:
    """PgBouncer would end its sessions if it loaded another `user=`."""
    turned = (replace(WISH, config="c2", turn=1),)
    assert told_next(world(STEADY, holding(), wishes=turned)) is None
    assert told_next(world(STEADY, holding(turn=1), wishes=turned)).config == "c2"
    held = (replace(turned[0], hold=frozenset({"a"})),)
    assert told_next(world(STEADY, holding(), wishes=held)).config == "c1"
    assert told_next(world(Ledger(), pod(turn=1), wishes=turned)).config == "c2"


def test_pods_without_a_pool_load_and_hold_nothing() -> None:
    w = world(STEADY, holding(), wishes=())
    assert (w.config_of(w.pods[0]), w.stage_of(w.pods[0]), w.hold_of(w.pods[0], ["a"])) == ("", "", ())
