"""Holds beside a real PgBouncer and a real PostgreSQL (agent/holds.py; design section 4)."""

import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from poolfleet.api import wire
from tests.integration.agent_pod import Drained, Load, Pod, pod
from tests.integration.pgbouncer_fixtures import Postgres, wait_until

ROLE = "shop"
FAST = 0.5
"""Seconds in which a hold is there; 4 to 15 ms on a quiet machine."""


@pytest.fixture
def one(pg: Postgres, tmp_path: Path) -> Iterator[Pod]:
    with pod(tmp_path, pg) as made:
        yield made
    pg.query(f"ALTER ROLE {ROLE} PASSWORD '{ROLE}'")
    wait_until("all sessions of the test are gone", lambda: pg.sessions(ROLE) == 0)


class Query:
    """One query of a client of its own, in a thread; `seconds` is how long it took, `error` why it failed."""

    def __init__(
        self, pod: Pod, query: str = "SELECT 1", connected: "psycopg.Connection[object] | None" = None
    ) -> None:
        self.error, self.seconds = "", 0.0
        self._pod, self._query, self._connected = pod, query, connected
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        begun = time.monotonic()
        try:
            (self._connected or self._pod.client()).execute(self._query.encode())
        except psycopg.Error as error:
            self.error = str(error)
        self.seconds = time.monotonic() - begun

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def end(self, seconds: float = 15.0) -> None:
        """Wait until it has ended, well."""
        self._thread.join(seconds)
        assert self.done
        assert self.error == ""


def held(state: wire.AgentState, database: str = "shop") -> bool:
    return database in state.databases and state.databases[database].hold is not None


def hold(one: Pod, *databases: str, grant: int = 5, config: str = "") -> float:
    """Have them held, and no other; seconds until a state said so."""
    begun = time.monotonic()
    state = one.told({"hold": databases, "config": config or one.state().config}, shop=grant)
    while not all(held(state, name) for name in databases):
        assert time.monotonic() < begun + 9, "no hold"
        state = one.state(state.seq, "1s")
    return time.monotonic() - begun


def paused(one: Pod, database: str = "shop") -> bool:
    return any(row["name"] == database and row["paused"] for row in one.show("SHOW DATABASES"))


def test_a_hold_waits_for_no_transaction_and_what_waits_goes_on(one: Pod) -> None:
    one.up(shop=5)
    long = Query(one, "SELECT pg_sleep(6)")
    running = "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(6)'"
    wait_until("it runs", lambda: one.pg.query(running))
    assert hold(one, "shop") < FAST
    state = one.state()
    assert 8 < (state.databases["shop"].hold or 0) <= 10
    wait_until("PgBouncer has closed the others", lambda: one.pg.sessions(ROLE) == 1)
    waiting = [Query(one) for _ in range(8)]
    wait_until("they wait", lambda: one.state().databases["shop"].waiting == 8)
    assert one.pg.sessions(ROLE) == 1
    long.end()
    assert not any(query.done for query in waiting)
    assert one.state().databases["shop"].demand <= 2  # who waits for a hold says nothing of how many are wanted
    state = one.told({"hold": ()}, shop=5)
    assert not held(state)
    for query in waiting:
        query.end(2)
    assert not paused(one)
    assert one.state().config_error == ""


def served(load: Load, least: int) -> bool:
    return load.served > least


def test_a_role_s_password_changes_under_load_without_an_error(one: Pod) -> None:
    one.up(shop=5)
    with Load(one, 20, "SELECT pg_sleep(0.01)") as load:
        for turn in range(5):
            before = wire.config_hash(one.files)
            one.configure(one.config([one.line(password=f"turn-{turn}")]))
            wait_until("it is mounted", lambda: one.state().mounted == wire.config_hash(one.files))
            assert one.state().config == before
            assert hold(one, "shop", config=before) < FAST
            fresh = [Query(one) for _ in range(3)]
            one.pg.query(f"ALTER ROLE {ROLE} PASSWORD 'turn-{turn}'")
            state = one.told({"hold": ()}, shop=5)
            assert state.config == wire.config_hash(one.files)
            assert not held(state)
            for query in fresh:
                query.end()
            wait_until("the load goes on", partial(served, load, load.served + 50))
    assert load.errors == []


def test_a_login_under_way_ends_before_the_hold_and_nobody_is_refused(one: Pod) -> None:
    one.up(shop=5)
    wait_until("probed", lambda: one.state().databases["shop"].reachable is True)
    one.pg.query("ALTER SYSTEM SET pre_auth_delay = 1")  # seconds that each login takes
    one.pg.query("SELECT pg_reload_conf()")
    try:
        wait_until("logins are slow", lambda: one.pg.query("SELECT 1 WHERE current_setting('pre_auth_delay') = '1s'"))
        with Load(one, 3, "SELECT pg_sleep(0.05)") as load:
            wait_until("a login is under way", lambda: any(row["sv_login"] for row in one.show("SHOW POOLS")))
            hold(one, "shop")
            wait_until("no connection is left", lambda: not any(row["sv_active"] for row in one.show("SHOW POOLS")))
            before = [Query(one) for _ in range(3)]
            state = one.told({"hold": ()}, shop=5)
            assert state.databases["shop"].loaded == 5
            for query in [*before, *(Query(one) for _ in range(3))]:
                query.end()
        assert load.errors == []
    finally:
        one.pg.query("ALTER SYSTEM RESET pre_auth_delay")
        one.pg.query("SELECT pg_reload_conf()")


def test_a_hold_ends_by_itself_and_does_not_begin_again_by_the_same_revision(one: Pod) -> None:
    one.up(shop=5)
    begun = time.monotonic()
    hold(one, "shop")
    query = Query(one)
    time.sleep(3)  # the later revision has to be later
    state = one.told({"hold": ("shop",), "config": one.state().config}, shop=4)
    assert (state.databases["shop"].hold or 0) < 7.5
    query.end(10)
    assert 9.5 < time.monotonic() - begun < 11
    wait_until("the state says so", lambda: not held(one.state()))
    one.agent.kill()
    one.agent.start()
    wait_until("the agent is back", lambda: one.get("/state")[0] == 200 and one.loaded(one.rev, shop=4))
    Query(one).end(2)
    assert not held(one.state())
    hold(one, "shop")  # by a later revision
    one.told({"hold": ()}, shop=5)
    Query(one).end(2)


def test_a_restarted_agent_goes_on_with_a_hold_and_ends_it_in_time(one: Pod) -> None:
    one.up(shop=5)
    begun = time.monotonic()
    hold(one, "shop")
    query = Query(one)
    time.sleep(2)
    one.agent.kill()
    one.agent.start()
    wait_until("the agent is back", lambda: one.get("/state")[0] == 200 and held(one.state()))
    assert (one.state().databases["shop"].hold or 0) < 8
    query.end(12)
    assert 9 < time.monotonic() - begun < 12


@pytest.mark.parametrize("late", [False, True], ids=["let go of meanwhile", "over its time meanwhile"])
def test_an_agent_that_starts_resumes_what_nobody_holds_any_more(one: Pod, late: bool) -> None:
    one.up(shop=5)
    hold(one, "shop")
    one.agent.kill()
    query = Query(one)
    if late:
        wait_until("its time is over", lambda: time.time() > (one.run / "holds.json").stat().st_mtime + 10.5, 15)
    else:
        one.more["hold"] = ()
        one.direct(shop=5)
    assert not query.done
    one.agent.start()
    query.end(3)
    wait_until("it is not held", lambda: not paused(one))


def test_a_database_that_somebody_has_paused_is_resumed(one: Pod) -> None:
    one.up(shop=5)
    with pytest.raises(psycopg.ProgrammingError):  # PAUSE has no rows
        one.show("PAUSE shop")
    Query(one).end(4)


def test_a_new_pgbouncer_is_held_at_once(one: Pod) -> None:
    one.up(shop=5)
    hold(one, "shop")
    left = one.state().databases["shop"].hold or 0
    started = one.state().started
    one.bouncer.kill()
    one.bouncer.start()
    wait_until("the new one is held", lambda: held(one.state()) and one.state().started not in ("", started))
    assert paused(one)
    assert (one.state().databases["shop"].hold or 0) < left
    query = Query(one)
    wait_until("it waits", lambda: one.state().databases["shop"].waiting == 1)
    assert one.pg.sessions(ROLE) == 0
    one.told({"hold": ()}, shop=5)
    query.end(4)


def test_what_is_refused_is_resumed_all_the_same(one: Pod) -> None:
    one.up(shop=5)
    before = one.state().config
    broken = one.config()
    broken["pgbouncer.ini"] = broken["pgbouncer.ini"].replace(b"[pgbouncer]", b"[pgbouncer]\nno_such_key = 1")
    one.configure(broken)
    wait_until("it is mounted", lambda: one.state().mounted == wire.config_hash(broken))
    hold(one, "shop", config=before)
    query = Query(one)
    state = one.told({"hold": ()}, shop=5)
    assert state.config == before
    assert state.config_error
    query.end(2)


def test_resume_waits_for_the_configuration_that_the_directive_wants(one: Pod) -> None:
    one.up(shop=5)
    hold(one, "shop")
    later = one.config([one.line(password="later")])
    query = Query(one)
    one.told({"hold": (), "config": wire.config_hash(later)}, shop=5)
    one.pg.query(f"ALTER ROLE {ROLE} PASSWORD 'later'")
    assert held(one.state())
    assert not query.done
    one.configure(later)
    query.end(3)
    assert one.state().config == wire.config_hash(later)


def test_in_session_mode_sessions_go_on_and_no_new_one_logs_in(one: Pod) -> None:
    one.configure(one.config([one.line(pool_mode="session")]))
    one.up(shop=5)
    with one.client() as client:
        client.execute("SELECT 1")
        assert hold(one, "shop") < FAST
        client.execute("SELECT 1")
        query = Query(one)
        wait_until("it waits", lambda: one.state().databases["shop"].waiting == 1)
        wait_until("nobody else is logged in", lambda: one.pg.sessions(ROLE) == 1)
        one.told({"hold": ()}, shop=5)
        query.end(2)
        client.execute("SELECT 1")


def test_of_several_databases_only_the_named_one_is_held_and_one_that_is_not_served_is_ignored(one: Pod) -> None:
    one.configure(one.config([one.line(), one.line("other"), one.line("third")]))
    one.up(shop=2, other=2)
    state = one.told({"hold": ("shop", "third", "no such")}, shop=2, other=2)
    assert [name for name in state.databases if held(state, name)] == ["shop"]
    one.client("other").execute("SELECT 1")
    query = Query(one)
    one.told({"hold": ()}, shop=2, other=2)
    query.end(2)


def test_a_draining_pod_holds_and_resumes_before_it_stops(one: Pod) -> None:
    one.agent.env["POOLFLEET_DRAIN_SECONDS"] = "3"
    one.up(shop=5)
    with one.client() as client:
        client.execute("SELECT 1")
        drained = Drained(one)
        wait_until("it drains", lambda: one.state().draining)
        assert hold(one, "shop") < FAST
        query = Query(one, connected=client)
        wait_until("it waits", lambda: one.state().databases["shop"].waiting == 1)
        assert drained.wait(12)[1].startswith("the time is over: 1 clients")
    log = one.bouncer.text()
    assert 0 < log.index("RESUME 'shop' command issued") < log.index("SHUTDOWN WAIT_FOR_SERVERS command issued")
    wait_until("the client is cut", lambda: query.done)


def test_a_drained_pod_is_not_kept_by_a_hold(one: Pod) -> None:
    one.up(shop=5)
    hold(one, "shop")
    assert Drained(one).wait(12) == (200, "no client is left\n")
    one.bouncer.kill(signal.SIGTERM)  # it waits until every client has left, the admin console's too
