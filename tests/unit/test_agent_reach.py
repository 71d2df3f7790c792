"""poolfleet.agent.reach"""

from poolfleet.agent.reach import MAX_BACKOFF, SETTLED, WAIT, Reach
from poolfleet.pgbouncer import show

NONE = show.Pool("shop", "")
LOGGED_IN = show.Pool("shop", "", sv_idle=1)


def reach() -> Reach:
    made = Reach()
    made.loaded(["shop"], 0.0)
    return made


def test_a_new_configuration_is_probed_once() -> None:
    r = reach()
    assert r.state("shop") == (None, "")
    assert r.due(0.0, 4) == ["shop"]
    assert r.probing("shop")
    assert r.due(0.0, 4) == []
    r.result("shop", True, "", 1.0)
    assert r.state("shop") == (True, "")
    assert r.due(1e9, 4) == []


def test_a_server_connection_is_evidence_enough() -> None:
    r = reach()
    r.seen("shop", LOGGED_IN, 0, SETTLED)
    assert r.state("shop") == (True, "")
    assert r.due(1e9, 4) == []


def test_a_server_connection_of_the_configuration_before_is_none() -> None:
    r = reach()
    r.seen("shop", LOGGED_IN, 0, SETTLED / 2)
    assert r.state("shop") == (None, "")
    assert r.due(SETTLED / 2, 4) == ["shop"]
    r.result("shop", False, "certificate verify failed", SETTLED)
    assert r.state("shop") == (False, "certificate verify failed")


def test_a_probe_that_fails_in_a_queue_says_nothing_against_the_connections_that_there_are() -> None:
    r = reach()
    r.due(0.0, 4)
    r.seen("shop", LOGGED_IN, 9, SETTLED)
    r.result("shop", False, "no connection within 6 s", 6.0)
    assert r.state("shop") == (True, "")
    assert r.due(1e9, 4) == []


def test_failures_back_off_until_one_succeeds() -> None:
    r = reach()
    now, waits = 0.0, []
    for _ in range(8):
        assert r.due(now, 4) == ["shop"]
        r.result("shop", False, "FATAL: no", now)
        begun = now
        while not r.due(now, 0) and not _due(r, now):
            now += 0.5
        waits.append(now - begun)
    assert waits[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert max(waits) == MAX_BACKOFF
    assert r.state("shop") == (False, "FATAL: no")
    r.seen("shop", LOGGED_IN, 0, now)
    assert r.state("shop") == (True, "")


def _due(r: Reach, now: float) -> bool:
    due = r._databases["shop"].due
    return due is not None and due <= now


def test_a_sleeping_server_is_left_asleep() -> None:
    r = reach()
    r.due(0.0, 4)
    r.result("shop", True, "", 0.0)
    for second in range(1, 1000):
        r.seen("shop", NONE, 0, float(second))
        assert r.due(float(second), 4) == []


def test_clients_that_wait_without_a_server_connection_are_a_reason_to_probe() -> None:
    r = reach()
    r.due(0.0, 4)
    r.result("shop", True, "", 0.0)
    r.seen("shop", NONE, 1, 10.0)
    r.seen("shop", NONE, 1, 10.0 + WAIT)
    assert r.due(10.0 + WAIT, 4) == []
    r.seen("shop", NONE, 1, 10.1 + WAIT)
    assert r.due(10.1 + WAIT, 4) == ["shop"]


def test_a_pause_in_the_waiting_starts_the_clock_again() -> None:
    r = reach()
    r.due(0.0, 4)
    r.result("shop", True, "", 0.0)
    r.seen("shop", NONE, 1, 10.0)
    r.seen("shop", NONE, 0, 11.0)
    r.seen("shop", NONE, 1, 12.0)
    r.seen("shop", NONE, 1, 13.0)
    assert r.due(13.0, 4) == []


def test_a_probe_that_says_nothing_about_the_server_changes_nothing() -> None:
    r = reach()
    r.due(0.0, 4)
    r.result("shop", None, "", 0.0)
    assert r.state("shop") == (None, "")
    assert r.due(1.0, 4) == ["shop"]


def test_a_new_grant_keeps_what_is_known_and_a_new_configuration_does_not() -> None:
    r = reach()
    r.seen("shop", LOGGED_IN, 0, SETTLED)
    r.granted(["shop", "new"], 1.5)
    assert r.state("shop") == (True, "")
    assert r.due(1.5, 4) == ["new"]
    r.loaded(["shop"], 2.0)
    assert r.state("shop") == (None, "")
    assert r.state("new") == (None, "")
    r.result("new", False, "x", 3.0)  # its probe ends after it has gone


def test_probes_at_once_are_limited() -> None:
    r = Reach()
    r.loaded(["a", "b", "c"], 0.0)
    assert r.due(0.0, 2) == ["a", "b"]
    assert r.due(0.0, 0) == []
    assert r.due(0.0, 2) == ["c"]


def test_while_a_database_is_paused_nothing_is_probed_or_learned() -> None:
    r = reach()
    r.seen("shop", NONE, 5, 0.0, paused=True)
    assert r.due(0.0, 4) == []
    r.seen("shop", NONE, 0, 10.0)
    assert r.due(10.0, 4) == ["shop"]
    r.seen("shop", NONE, 5, 11.0, paused=True)
    r.result("shop", False, "no connection within 6 s", 16.0)
    assert r.state("shop") == (None, "")
    r.seen("shop", NONE, 0, 17.0)
    assert r.due(17.0, 4) == ["shop"]
    r.result("shop", False, "FATAL: no", 18.0)
    assert r.state("shop") == (False, "FATAL: no")


def test_a_pause_is_known_after_a_load_too() -> None:
    r = reach()
    r.seen("shop", NONE, 0, 0.0, paused=True)
    r.loaded(["shop"], 1.0)
    assert r.due(1.0, 4) == []


def test_who_waits_for_a_pause_to_end_has_not_waited_for_the_server() -> None:
    r = reach()
    r.due(0.0, 4)
    r.result("shop", True, "", 0.0)
    for second in range(20):
        r.seen("shop", NONE, 5, float(second), paused=True)
    r.seen("shop", NONE, 5, 20.0)
    r.seen("shop", NONE, 5, 20.0 + WAIT)
    assert r.due(20.0 + WAIT, 4) == []
    r.seen("shop", NONE, 5, 20.1 + WAIT)
    assert r.due(20.1 + WAIT, 4) == ["shop"]
