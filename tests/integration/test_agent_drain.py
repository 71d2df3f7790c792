"""The drain of a real PgBouncer, as its preStop hook asks for it (design section 4, facts/pgbouncer.md 3)."""

import signal
import threading
import time

import psycopg
import pytest

from poolfleet.api import names, wire
from tests.integration.agent_pod import Drained, Load, Pod
from tests.integration.pgbouncer_fixtures import wait_until


def phase(one: Pod) -> str:
    """How far the drain is, by /metrics."""
    lines = one.get("/metrics")[1].splitlines()
    return next(
        line.split('"')[1] for line in lines if line.startswith("poolfleet_agent_drain_phase{") and "} 1" in line
    )


def test_only_the_hook_may_ask(one: Pod) -> None:
    one.up(shop=4)
    assert one.get("/drain")[0] == 403
    assert one.get("/drain", {names.DRAIN_TOKEN_HEADER: "wrong"})[0] == 403
    assert not one.state().draining
    assert phase(one) == "serving"


def test_it_waits_for_the_clients_and_serves_them(one: Pod) -> None:
    one.up(shop=4)
    with one.client() as connection:
        hook = Drained(one)
        wait_until("it waits for the client only", lambda: phase(one) == "leaving")
        again = Drained(one)  # whoever asks twice drains once
        assert one.ready()
        one.client().close()  # the listener is there
        assert one.told(shop=3).databases["shop"].loaded == 3
        connection.execute("SELECT 1")
        assert not hook.answered
        left = time.monotonic()
    assert hook.wait(10) == again.wait(10) == (200, "no client is left\n")
    assert hook.at - left < 3
    assert one.state().cut == 0
    assert one.agent.text().count("draining") == 1


def test_it_goes_on_while_new_clients_still_come(one: Pod) -> None:
    one.up(shop=4)
    hook = Drained(one)
    wait_until("draining", lambda: one.state().draining)
    deadline = time.monotonic() + 2.5  # the propagation takes 0.5 s here
    pause = threading.Event()
    while time.monotonic() < deadline:
        with one.client() as connection:
            connection.execute("SELECT 1")
        pause.wait(0.3)
        assert not hook.answered  # nobody is there most of the time
    hook.wait(5)


def test_idle_clients_are_closed_in_the_second_half_and_no_busy_one(one: Pod) -> None:
    one.agent.env["POOLFLEET_DRAIN_SECONDS"] = "8"
    one.up(shop=4)
    with one.client() as idle, Load(one, clients=3, query="SELECT pg_sleep(0.1)", pause=0.1) as load:
        idle.execute("SELECT 1")
        hook = Drained(one)
        wait_until("idle ones are to be closed", lambda: one.setting("client_idle_timeout") == "2")
        assert phase(one) == "idling"
        # a grant that comes meanwhile changes nothing of it
        assert one.told(shop=3).databases["shop"].loaded == 3
        assert one.setting("client_idle_timeout") == "2"
        assert one.file_is_cold()
        assert "client_idle_timeout" not in (one.run / names.INI_FILE).read_text()
        wait_until("the idle one is closed", lambda: clients(one) == 3, 5)
        with pytest.raises(psycopg.OperationalError, match="client_idle_timeout"):
            idle.execute("SELECT 1")
        wait_until("the busy ones are served", lambda: load.served > 20)
        assert load.errors == []
    assert hook.wait(10) == (200, "no client is left\n")
    assert load.errors == []


def clients(one: Pod) -> int:
    """Clients as PgBouncer counts them."""
    return sum(row["database"] == "shop" for row in one.show("SHOW CLIENTS"))


def test_at_the_end_who_is_left_is_told_first_and_transactions_end(one: Pod) -> None:
    one.agent.env["POOLFLEET_DRAIN_SECONDS"] = "1"
    one.up(shop=4)
    assert one.bouncer.process is not None
    result: list[object] = []

    def transact() -> None:
        with one.client() as connection, connection.transaction():
            result.append(connection.execute("SELECT pg_sleep(4)").fetchall())

    transaction = threading.Thread(target=transact)
    transaction.start()
    with Load(one, clients=2, query="SELECT 1", pause=0.05) as load:
        wait_until("all are there", lambda: one.state().databases["shop"].clients == 3)
        hook = Drained(one)
        wait_until("it drains", lambda: one.state().draining)
        state = one.state()
        while not state.cut:
            state = one.state(after=state.seq)
        assert state.cut == 3
        assert one.bouncer.process.running()
        wait_until("it stops", lambda: "SHUTDOWN WAIT_FOR_SERVERS" in one.bouncer.text())
        # a RELOAD opens nothing again, and grants are still obeyed
        assert one.told(shop=2).databases["shop"].loaded == 2
        with pytest.raises(psycopg.OperationalError, match="refused"):
            one.client()
        assert "poolfleet_agent_clients_cut 3.0" in one.get("/metrics")[1]
        assert not hook.answered
        wait_until("those that are cut notice", lambda: len(load.errors) == 2)
    status, text = hook.wait(10)
    assert (status, text) == (200, "the time is over: 3 clients are cut\n")
    one.bouncer.process.popen.wait(2)
    transaction.join()
    assert result == [[("",)]]
    assert one.state().cut == 3


def test_the_hook_is_answered_before_the_kubelet_loses_patience(one: Pod) -> None:
    one.agent.env["POOLFLEET_DRAIN_SECONDS"] = "0.5"
    one.up("from poolfleet.agent import drain; drain.STOP_SECONDS = 1.0", shop=4)
    with Load(one, clients=1, query="SELECT pg_sleep(30)") as load:
        wait_until("it runs", lambda: one.pg.sessions("shop") >= 1)
        assert Drained(one).wait(6) == (200, "the time is over: 1 clients are cut, and PgBouncer still runs\n")
        one.bouncer.kill(signal.SIGTERM)  # as the kubelet then does
    assert len(load.errors) == 1


def test_a_drained_pgbouncer_is_not_kept_by_its_own_agent(one: Pod) -> None:
    one.up(shop=4)
    assert one.drain()[0] == 200
    begun = time.monotonic()
    one.bouncer.kill(signal.SIGTERM)  # as the kubelet does now: PgBouncer ends when its last client has left
    assert time.monotonic() - begun < 3
    assert one.agent.running()


def test_a_pgbouncer_that_dies_meanwhile_ends_it_and_the_next_one_does_not_drain(one: Pod) -> None:
    one.up(shop=4)
    with one.client():
        hook = Drained(one)
        wait_until("it drains", lambda: phase(one) == "leaving")
        one.bouncer.kill()
        assert hook.wait(5) == (200, "PgBouncer has ended\n")
        one.bouncer.start()
        wait_until("the next one is loaded", lambda: one.state().started != "" and one.limits() == {"shop": (4, 4)})
        assert not one.state().draining
    assert wire.drain_token(one.key) not in one.agent.text()
