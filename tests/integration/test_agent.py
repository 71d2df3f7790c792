"""The agent beside a real PgBouncer and a real PostgreSQL (design section 4)."""

import json
import signal
import threading
import time

import psycopg
import pytest

from poolfleet.api import names, wire
from poolfleet.pgbouncer.render import DatabaseLine
from tests.integration.agent_pod import POD, SERVER, USER, Load, Pod
from tests.integration.pgbouncer_fixtures import free_port, wait_until

ROLE = "shop"


def test_nothing_starts_before_the_first_grant(one: Pod) -> None:
    one.configure(one.config())
    one.agent.start()
    wait_until("the agent answers", lambda: one.get("/startupz")[0] == 503)
    assert one.get("/readyz")[0] == 503
    assert not (one.run / names.INI_FILE).exists()

    rev = one.direct(shop=4)
    wait_until("the gate opens", one.started)
    assert one.file_is_cold()
    assert not one.ready()

    one.bouncer.start()
    wait_until("ready", one.ready)
    assert one.limits() == {"shop": (4, 4)}
    assert one.setting("default_pool_size") == "4"
    assert one.setting("syslog_ident").startswith("cfg-")
    assert one.file_is_cold()
    state = one.state()
    assert (state.server, state.pod, state.rev) == (SERVER, POD, rev)
    assert state.config == wire.config_hash(one.files)
    assert state.config_error == ""
    assert state.pgbouncer == "PgBouncer 1.26.1"


def test_ready_needs_half_of_the_share(one: Pod) -> None:
    one.configure(one.config())
    one.direct(shop=2, share={"shop": 10})
    one.agent.start()
    wait_until("the gate opens", one.started)
    one.bouncer.start()
    wait_until("the grant is loaded", lambda: one.loaded(1, shop=2))
    time.sleep(0.3)  # nothing to await: what must not happen
    assert not one.ready()
    one.direct(shop=5, share={"shop": 10})
    wait_until("ready", one.ready)
    one.direct(shop=2, share={"shop": 10})
    wait_until("the shrink is loaded", lambda: one.loaded(3, shop=2))
    assert one.ready()


def test_a_client_is_served_and_its_backend_checks_for_vanished_clients(one: Pod) -> None:
    one.up(shop=2)
    with one.client() as connection:
        assert connection.execute("SHOW client_connection_check_interval").fetchone() == ("500ms",)
        wait_until("held is seen", lambda: one.state().databases["shop"].held >= 1)
        wait_until("reachable", lambda: one.state().databases["shop"].reachable is True)
        wait_until("its backend is seen", lambda: len(one.state().pids) >= 1)


def test_a_regrant_under_load_moves_the_connections_without_an_error(one: Pod) -> None:
    one.up(shop=12)
    with Load(one, clients=40) as load:
        wait_until("the pool is full", lambda: one.pg.sessions(ROLE) == 12)
        rev = one.direct(shop=4)

        def proven() -> bool:
            state = one.state()
            d = state.databases["shop"]
            return state.rev == rev and d.loaded == 4 and d.samples >= 2 and d.held <= 4

        wait_until("the shrink is proven", proven, 10)
        wait_until("its backends are gone", lambda: one.pg.sessions(ROLE) <= 4, names.LINGER_SECONDS)
        one.direct(shop=8)
        wait_until("the pool has grown", lambda: one.pg.sessions(ROLE) == 8)
        assert one.file_is_cold()
        wait_until("clients are served", lambda: load.served > 100)
    assert load.errors == []
    assert one.setting("server_lifetime") == "1800"


def test_a_killed_pgbouncer_comes_back_cold_and_then_gets_its_grant(one: Pod) -> None:
    one.up(shop=5)
    before = one.state().started
    most = 0
    with Load(one, clients=5, query="SELECT pg_sleep(30)") as load:
        wait_until("all queries run", lambda: one.pg.sessions(ROLE) == 5)
        one.bouncer.kill()
        wait_until("the agent notices", lambda: one.state().started == "" and not one.ready())
        assert one.file_is_cold()
    assert len(load.errors) == 5
    one.bouncer.start()
    begun = time.monotonic()
    wait_until("the new process is seen", lambda: one.state().started not in ("", before))
    with Load(one, clients=10, query="SELECT pg_sleep(0.05)") as second:
        while one.limits() != {"shop": (5, 5)}:
            most = max(most, one.pg.sessions(ROLE))
            assert time.monotonic() - begun < 5
        most = max(most, one.pg.sessions(ROLE))
        assert time.monotonic() - begun >= names.LINGER_SECONDS - 0.1
        wait_until("ready again", one.ready)
    assert second.errors == []
    assert most <= 5 + 1


def test_a_posted_first_grant_opens_the_gate(one: Pod) -> None:
    one.configure(one.config())
    one.agent.start()
    wait_until("the agent answers", lambda: one.get("/startupz")[0] == 503)
    state = one.told(shop=4)
    assert (state.server, state.pod, state.rev, state.started) == (SERVER, POD, 1, "")
    assert one.started()
    one.bouncer.start()
    wait_until("the grant is loaded", lambda: one.loaded(1, shop=4))


def test_a_post_before_anything_is_mounted_has_to_come_again(one: Pod) -> None:
    files, one.files = one.config(), {}
    one.agent.start()
    wait_until("the agent answers", lambda: one.get("/startupz")[0] == 503)
    assert one.post(one.order({"shop": 4})) == (503, "refused: there is no key to check it with\n")
    one.configure(files)
    wait_until("the key is known", lambda: one.get("/state?after=0")[0] == 200)
    assert one.told(shop=4).rev == 2


def test_a_posted_grant_is_loaded_when_it_is_answered_and_the_older_annotation_changes_nothing(one: Pod) -> None:
    one.up(shop=4)
    late = one.order({"shop": 9})
    state = one.told(shop=6)
    assert (state.rev, state.databases["shop"].loaded) == (3, 6)
    assert one.limits() == {"shop": (6, 6)}
    assert one.file_is_cold()
    one.annotate(late)
    wait_until("it is seen", lambda: "is older than 3" in one.agent.text())
    assert one.limits() == {"shop": (6, 6)}
    one.agent.kill()
    one.agent.start()
    wait_until("ready", one.ready)
    assert one.state().rev == 3
    assert one.limits() == {"shop": (6, 6)}
    # what is not newer than what is applied is answered with what is applied
    for text in (late, one.order({"shop": 9}, rev=3)):
        status, body = one.post(text)
        assert (status, wire.AgentState.from_message(wire.verify(body, one.key)).rev) == (200, 3)
    assert one.limits() == {"shop": (6, 6)}


def test_what_is_posted_is_checked_as_the_annotation_is(one: Pod) -> None:
    one.up(shop=4)
    config = wire.config_hash(one.files)
    for directive, key, status in [
        (wire.Directive("another", POD, 9, config, {"shop": 9}), one.key, 409),
        (wire.Directive(SERVER, "another", 9, config, {"shop": 9}), one.key, 409),
        (wire.Directive(SERVER, POD, 9, config, {"shop": 101}), one.key, 409),
        (wire.Directive(SERVER, POD, 9, config, {"shop": 9}), bytes(32), 403),
    ]:
        answer = one.post(wire.sign(directive.to_message(), key).encode())
        assert answer[0] == status
        assert answer[1].startswith("refused: ")
    for garbage in (b"", b"\xff\xfe", b"[" * 60_000):
        assert one.post(garbage)[0] == 403
    assert one.limits() == {"shop": (4, 4)}
    assert one.state().rev == 1


def test_many_posts_at_once_end_with_the_newest(one: Pod) -> None:
    one.up(shop=4)
    orders = [one.order({"shop": n}) for n in range(5, 25)]
    answers: list[tuple[int, str]] = []
    threads = [threading.Thread(target=lambda text=text: answers.append(one.post(text))) for text in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [200] * len(orders)
    assert one.limits() == {"shop": (24, 24)}
    assert one.state().rev == one.rev


def test_a_post_on_a_full_disk_is_not_applied(one: Pod) -> None:
    full = one.run.parent / "full"
    one.up(code=FULL_DISK.format(path=str(full)), shop=4)
    full.touch()
    text = one.order({"shop": 8})
    assert one.post(text) == (503, "it cannot be written down: No space left on device\n")
    assert one.state().rev == 1
    full.unlink()
    assert one.post(text)[0] == 200
    assert one.limits() == {"shop": (8, 8)}


def test_a_shrink_while_clients_wait_is_proved_in_less_than_the_linger_time(one: Pod) -> None:
    one.up(shop=20)
    with Load(one, clients=40, query="SELECT pg_sleep(0.01)") as load:
        seconds = []
        for _ in range(3):
            wait_until("the pool is full", lambda: one.pg.sessions(ROLE) == 20)
            begun = time.monotonic()
            state, least = one.told(shop=10), 20
            while (shop := state.databases["shop"]).samples < 2 or shop.held > 10:
                state = one.state(after=state.seq)
                least = min(least, shop.held)
            seconds.append(time.monotonic() - begun)
            assert (state.rev, shop.loaded) == (one.rev, 10)
            assert least >= 7, "those that stay are to stay, not to be opened anew"
            wait_until("its backends are gone", lambda: one.pg.sessions(ROLE) <= 10, names.LINGER_SECONDS)
            one.told(shop=20)
        assert sorted(seconds)[1] < names.LINGER_SECONDS, seconds
    assert load.errors == []


def test_demand_is_told_while_clients_wait_and_is_over_10_s_later(one: Pod) -> None:
    one.up(shop=2)
    with Load(one, clients=6, query="SELECT pg_sleep(0.05)"):
        wait_until("clients are seen to wait", lambda: one.state().databases["shop"].waited)
        shop = one.state().databases["shop"]
        assert shop.peak == 2
        assert 3 <= shop.demand <= 6
    wait_until("nobody waits any more", lambda: one.state().databases["shop"].waiting == 0)
    shop = one.state().databases["shop"]
    assert (shop.peak, shop.waited) == (2, True)
    wait_until("it is forgotten", lambda: one.state().databases["shop"].demand == 0, 15)
    assert not one.state().databases["shop"].waited


def test_at_rest_no_state_is_news(one: Pod) -> None:
    one.up(shop=4)
    wait_until("probed", lambda: one.state().databases["shop"].reachable is True)
    with one.client() as connection:
        connection.execute("SELECT 1")
        wait_until("the client is seen", lambda: one.state().databases["shop"].clients == 1)
        wait_until("and its user", lambda: one.state().users == {USER: 1})
        wait_until("its window is over", lambda: one.state().databases["shop"].peak == 0, 15)
        before = one.state()
        assert one.state(after=before.seq, wait="5s").seq == before.seq


def test_a_new_backend_is_in_the_state_within_2_5_s_in_a_quiet_pod_too(one: Pod) -> None:
    one.up(shop=4)
    wait_until("proven and probed", lambda: one.ready() and one.state().databases["shop"].reachable is True)
    one.pg.query(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")
    wait_until("no backend is left", lambda: one.state().pids == ())
    with one.client() as connection:
        pid = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert pid is not None
    wait_until("its backend is among the pids", lambda: pid[0] in one.state().pids, 2.5)


# Where the agent dies, once the file `armed` is there: in the place of, or right after, one step of a load.
DEATHS = {
    "before the revision is durable": "at(files.Applied, 'save')",
    "after the revision is durable": "after(files.Applied, 'save')",
    "with the granted file in place": "at(process.Console, 'query', 'RELOAD')",
    "after RELOAD": "at(process.Console, 'marker')",
    "before the configuration is durable": "at(files.Staged, 'save')",
}
DEADLY = """
import os, pathlib, signal
from poolfleet.agent import files, process
def die():
    if pathlib.Path({armed!r}).exists():
        os.kill(os.getpid(), signal.SIGKILL)
def at(owner, name, *words):
    real = getattr(owner, name)
    def wrapped(self, *args):
        if args[: len(words)] == words:
            die()
        return real(self, *args)
    setattr(owner, name, wrapped)
def after(owner, name):
    real = getattr(owner, name)
    def wrapped(self, *args):
        real(self, *args)
        die()
    setattr(owner, name, wrapped)
"""


@pytest.mark.parametrize("where", DEATHS)
@pytest.mark.parametrize("lane", ["annotation", "POST"])
def test_an_agent_that_dies_in_a_load_never_goes_back(one: Pod, where: str, lane: str) -> None:
    armed = one.run.parent / "armed"
    one.up(code=DEADLY.format(armed=str(armed)) + DEATHS[where], shop=9)
    armed.touch()
    one.configure(one.config(query_wait_timeout=77))
    text = one.order({"shop": 3})
    rev = one.rev
    if lane == "POST":
        assert one.post(text)[0] == 0  # it dies before it answers
    else:
        one.annotate(text)
    wait_until("it dies", lambda: not one.agent.running(), 10)
    durable = json.loads((one.run / "applied.json").read_text())["rev"]

    # The kubelet's file may lag: the next agent first sees the old directive, which grants 9.
    one.direct(rev=1, shop=9)
    one.agent.start()
    wait_until("the next agent has loaded", lambda: one.get("/readyz")[0] == 200)
    if durable == rev:
        assert one.state().rev == rev
        assert one.limits() == {"shop": (3, 3)}
    else:
        assert one.limits() == {"shop": (9, 9)}
    one.annotate(text)
    wait_until("the new directive is loaded", lambda: one.loaded(rev, shop=3))
    wait_until("the new configuration is loaded", lambda: one.setting("query_wait_timeout") == "77")
    wait_until("it says so", lambda: one.state().config == wire.config_hash(one.files))
    assert one.file_is_cold()


def test_a_configuration_that_pgbouncer_does_not_take_is_refused_and_the_last_good_one_stays(one: Pod) -> None:
    one.up(shop=4)
    good = one.state().config
    files = one.config(users={"app": "another word"})
    files[names.INI_FILE] = files[names.INI_FILE].replace(b";@fill", b"no_such_setting = 1\n;@fill")
    one.configure(files)
    rev = one.direct(shop=6)
    wait_until("refused", lambda: one.state().config_error != "")
    state = one.state()
    assert (state.rev, state.config, state.ready) == (rev, good, True)
    assert wire.config_hash(files) in state.config_error
    wait_until("grants go on", lambda: one.limits() == {"shop": (6, 6)})
    assert one.file_is_cold()
    one.client().close()  # with the password of the last good configuration
    time.sleep(0.5)  # nothing to await: it must not be tried again and again
    assert 'poolfleet_agent_reloads_total{result="refused"} 1.0\n' in one.get("/metrics")[1]

    one.configure(one.config(users={"app": "another word"}))
    rev = one.direct(shop=6)
    wait_until("the mended one is loaded", lambda: one.state().config == wire.config_hash(one.files))
    assert one.state().config_error == ""
    one.client(password="another word").close()
    with pytest.raises(psycopg.OperationalError):
        one.client()


def test_a_configuration_whose_template_is_malformed_is_refused(one: Pod) -> None:
    one.up(shop=4)
    one.configure(one.config(ini="[pgbouncer]\n"))
    one.direct(shop=5)
    wait_until("refused", lambda: one.state().config_error != "")
    wait_until("grants go on", lambda: one.limits() == {"shop": (5, 5)})
    one.client().close()


def test_grants_do_not_wait_for_a_configuration_that_is_not_mounted(one: Pod) -> None:
    one.up(shop=4)
    mounted, in_force = one.files, one.state().config
    one.files = one.config(query_wait_timeout=33)  # the directive names it, the kubelet has not mounted it
    rev = one.direct(shop=7)
    wait_until("the grant is loaded", lambda: one.loaded(rev, shop=7))
    assert one.state().config == in_force == wire.config_hash(mounted)
    one.configure(one.files)
    wait_until("the configuration follows", lambda: one.state().config == wire.config_hash(one.files))
    assert one.setting("query_wait_timeout") == "33"


def test_databases_come_and_go_with_their_grants(one: Pod) -> None:
    one.configure(one.config(lines=[one.line("shop"), one.line("other")]))
    one.up(shop=4)
    assert one.limits() == {"shop": (4, 4)}
    rev = one.direct(shop=3, other=1, unknown=5)
    wait_until("both", lambda: one.loaded(rev, shop=3, other=1))
    one.client("other").close()
    rev = one.direct(other=2)
    wait_until("one", lambda: one.loaded(rev, other=2))


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xfe", b"{", b"null", b"[" * 100_000, b'{"v":1}', b"0" * 100_000],
)
def test_garbage_in_the_annotation_changes_nothing(one: Pod, garbage: bytes) -> None:
    one.up(shop=4)
    one.annotate(garbage)
    if garbage != b"\xff\xfe":  # no text at all: as if absent
        wait_until("it is logged", lambda: "directive refused" in one.agent.text())
    one.annotate(garbage)
    time.sleep(0.5)  # nothing to await: what must not happen
    assert one.agent.text().count("directive refused") <= 1
    assert one.limits() == {"shop": (4, 4)}
    assert one.ready()


def test_a_directive_that_is_not_for_this_pod_or_too_large_or_forged_is_refused(one: Pod) -> None:
    one.up(shop=4)
    config = wire.config_hash(one.files)
    other_key = bytes(32)
    for directive, key in [
        (wire.Directive("another", POD, 9, config, {"shop": 9}), one.key),
        (wire.Directive(SERVER, "another", 9, config, {"shop": 9}), one.key),
        (wire.Directive(SERVER, POD, 9, config, {"shop": 101}), one.key),
        (wire.Directive(SERVER, POD, 0, config, {"shop": 9}), one.key),
        (wire.Directive(SERVER, POD, 9, config, {"shop": 9}), other_key),
    ]:
        refused = one.agent.text().count("directive refused")
        one.annotate(wire.sign(directive.to_message(), key).encode())
        wait_until("refused", lambda n=refused: one.agent.text().count("directive refused") == n + 1)  # type: ignore[misc]
    assert one.limits() == {"shop": (4, 4)}
    assert one.state().rev == 1


def test_an_agent_restart_disturbs_nobody(one: Pod) -> None:
    one.up(shop=4)
    with Load(one, clients=8) as load:
        started = one.state().started
        one.agent.kill(signal.SIGTERM)
        assert one.agent.process is not None
        assert one.agent.process.popen.returncode == 0
        one.annotate(b"")
        one.agent.start()
        wait_until("ready", one.ready)
        state = one.state()
        assert (state.rev, state.started) == (1, started)
        assert one.limits() == {"shop": (4, 4)}
    assert load.errors == []


def test_state_is_a_long_poll(one: Pod) -> None:
    one.up(shop=4)
    wait_until("proven", lambda: one.state().databases["shop"].samples >= 2 and one.state().ready)
    wait_until("probed", lambda: one.state().databases["shop"].reachable is True)
    seq = one.state().seq
    begun = time.monotonic()
    later = one.state(after=seq, wait="0.7")
    if later.seq == seq:
        assert 0.6 < time.monotonic() - begun < 5
    threading.Timer(0.3, lambda: one.direct(shop=5)).start()
    begun = time.monotonic()
    later = one.state(after=one.state().seq, wait="25s")
    assert later.seq > seq
    assert time.monotonic() - begun < 3
    assert one.get("/state?after=x")[0] == 400
    assert one.get("/state?wait=nan")[0] == 400


def test_an_unreachable_server_and_a_wrong_password_are_told_apart(one: Pod) -> None:
    dead = DatabaseLine("dead", "127.0.0.1", free_port(), "shop", "shop", "shop")
    one.configure(one.config(lines=[one.line("shop"), one.line("wrong", password="not it"), dead]))
    one.up(shop=2, wrong=2, dead=2)

    def known() -> bool:
        return all(d.reachable is not None for d in one.state().databases.values())

    wait_until("all are probed", known)
    found = one.state().databases
    assert (found["shop"].reachable, found["shop"].error) == (True, "")
    assert found["wrong"].reachable is False
    assert "password authentication failed" in found["wrong"].error
    assert found["dead"].reachable is False
    assert found["dead"].error.startswith(f"PgBouncer got no connection to 127.0.0.1:{dead.port} within")
    assert "not it" not in one.agent.text()
    assert one.ready()  # never depends on the database

    one.configure(one.config(lines=[one.line("shop"), one.line("wrong"), dead]))
    one.direct(shop=2, wrong=2, dead=2)
    wait_until("mended", lambda: one.state().databases["wrong"].reachable is True)


def test_the_client_s_own_login_is_probed_where_no_role_is_forced(one: Pod) -> None:
    one.configure(one.config(lines=[one.line(user=None, password=None)], users={"nobody": "x", "shop": "shop"}))
    one.up(shop=2)
    wait_until("probed", lambda: one.state().databases["shop"].reachable is True)


def test_a_removed_user_is_not_tried_at_the_server(one: Pod) -> None:
    # as many users are tried as there would be with him, one less without
    users = {"gone": wire.tombstone(one.key, "gone"), "nobody": "x", "nobody else": "x", "shop": "shop"}
    one.configure(one.config(lines=[one.line(user=None, password=None)], users=users))
    one.up(shop=2)
    wait_until("probed", lambda: one.state().databases["shop"].reachable is True)


FULL_DISK = """
import pathlib
from poolfleet.agent import files, loader
real = files.prepare
def prepare(*args, **words):
    if pathlib.Path({path!r}).exists():
        raise OSError(28, "No space left on device")
    return real(*args, **words)
files.prepare = loader.prepare = prepare
"""


def test_a_full_disk_stops_nothing_but_the_change(one: Pod) -> None:
    one.up(shop=4)
    one.agent.kill()
    full = one.run.parent / "full"
    code = FULL_DISK.format(path=str(full))
    one.agent.start(code=code)
    wait_until("ready", one.ready)
    full.touch()
    rev = one.direct(shop=8)
    wait_until("it says so", lambda: "No space left" in one.agent.text())
    assert one.state().rev == rev - 1
    assert one.limits() == {"shop": (4, 4)}
    assert one.ready()
    one.client().close()
    full.unlink()
    wait_until("it goes on", lambda: one.loaded(rev, shop=8))


def test_metrics_and_memory(one: Pod) -> None:
    one.up(shop=4)
    with Load(one, clients=4) as load:
        wait_until("served", lambda: load.served > 0 and one.state().databases["shop"].held > 0)
        status, text = one.get("/metrics")
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['pgbouncer_databases_pool_size{name="shop"}'] == "4.0"
    assert values['poolfleet_agent_granted_connections{database="shop"}'] == "4.0"
    assert float(values['pgbouncer_stats_queries_pooled_total{database="shop"}']) > 0
    assert float(values['pgbouncer_stats_queries_duration_seconds_total{database="shop"}']) > 0
    assert values["pgbouncer_up"] == "1.0"
    assert one.agent.rss_mib() <= 35
    assert values['poolfleet_agent_drain_phase{phase="serving"}'] == "1.0"
    one.bouncer.kill()
    assert "pgbouncer_up 0.0" in one.get("/metrics")[1]


def test_the_cpu_of_pgbouncer_is_told(one: Pod) -> None:
    one.up(shop=2)
    wait_until("it is known", lambda: one.state().cpu is not None)
    with Load(one, clients=4, query="SELECT 1"):
        wait_until("it works", lambda: (one.state().cpu or 0.0) > 0.05, 15)
    assert "poolfleet_agent_pgbouncer_cpu_cores 0." in one.get("/metrics")[1]
    one.bouncer.kill()
    wait_until("nobody is there", lambda: one.state().cpu is None)


def test_other_paths_are_not_there(one: Pod) -> None:
    one.up(shop=4)
    assert one.get("/")[0] == 404
    assert one.get("/", body=b"")[0] == 404
    assert one.get("/directive")[0] == 405
    assert one.get("/directive", body=b"", method="PUT")[0] == 405
    assert one.get("/state", body=b"")[0] == 405


def test_no_secret_is_logged(one: Pod) -> None:
    one.up(shop=4)
    one.client().close()
    for secret in ("app's", one.key.hex(), wire.drain_token(one.key)):
        assert secret not in one.agent.text()


def test_idle_clients_are_closed_to_move_them_as_long_as_the_pod_has_too_many(one: Pod) -> None:
    one.up(shop=4)
    idle = [one.client() for _ in range(6)]
    for connection in idle[1:]:
        connection.execute("SELECT 1")
    idle[1].execute("BEGIN")
    with Load(one, clients=2, query="SELECT 1", pause=0.2) as load:
        one.told({"move": wire.Move(above=5, idle=1, percent=100)}, shop=4)
        wait_until("three were closed", lambda: one.state().moved == 3)
        wait_until("five are left", lambda: one.state().databases["shop"].clients == 5)
        idle[1].execute("COMMIT")
        assert [_closed(connection) for connection in idle].count(True) == 3
        assert not _closed(idle[1])
        wait_until("it stays", lambda: load.served > 20)
        assert one.state().moved == 3
        assert "poolfleet_agent_clients_moved_total 3" in one.get("/metrics")[1]
    assert load.errors == []
    for connection in idle:
        connection.close()


def _closed(connection: "psycopg.Connection[tuple[object, ...]]") -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False
