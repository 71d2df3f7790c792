"""Passwords of roles on a real PostgreSQL: which one is valid, and setting another."""

import asyncio
import itertools
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from poolfleet.plan.role_limits import RoleState
from poolfleet.postgres import passwords, roles
from poolfleet.postgres.connection import Admin, Login, ServerError
from poolfleet.postgres.passwords import Refused, Unknown, disable, logs_in, role_facts, sessions_of, verifier
from poolfleet.postgres.roles import Busy
from tests.integration.pgbouncer_fixtures import Postgres, postgres, wait_until

WORD = 'it\'s a "word"'
NEXT = "the next, longer word"
ODD = 'odd"; name'


@pytest.fixture(scope="module")
def pg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("postgres"), max_connections=20) as server:
        server.query("CREATE DATABASE shop")
        server.query("CREATE DATABASE narrow CONNECTION LIMIT 0")
        server.query("CREATE ROLE owner")
        quoted = WORD.replace("'", "''")
        for role, options in {
            "admin": "LOGIN CREATEROLE",
            "plain": "LOGIN",
            "app": "LOGIN",
            ODD: "LOGIN",
            "blue": "LOGIN IN ROLE owner",
            "green": "NOLOGIN IN ROLE owner CONNECTION LIMIT 7 VALID UNTIL '2099-01-01 00:00:00+00'",
            "boss": "LOGIN SUPERUSER",
            "copier": "LOGIN REPLICATION",
            "seer": "LOGIN BYPASSRLS",
            "trusted": "LOGIN",
            "stranger": "LOGIN",
            "full": "LOGIN CONNECTION LIMIT 0",
        }.items():
            name = role.replace('"', '""')
            server.query(f"CREATE ROLE \"{name}\" PASSWORD '{quoted}' {options}")
        for role in ("blue", "green"):
            server.query(f"ALTER ROLE {role} SET role = owner")
        server.query("ALTER ROLE green IN DATABASE shop SET work_mem = '8MB'")
        hba = server.folder / "data" / "pg_hba.conf"
        lines = ["host all trusted 127.0.0.1/32 trust", "host all old 127.0.0.1/32 md5"]
        lines.append("host all stranger 127.0.0.1/32 reject")
        hba.write_text("\n".join([*lines, hba.read_text()]))
        server.query("SELECT pg_reload_conf()")
        yield server


@pytest.fixture
async def admin(pg: Postgres) -> AsyncIterator[Admin]:
    connection = Admin(login(pg, "admin"))
    yield connection
    await connection.close()


def login(pg: Postgres, role: str, password: str = WORD) -> Login:
    return Login("127.0.0.1", pg.port, role, password, "prefer", None)


def stored(pg: Postgres, role: str) -> object:
    quoted = role.replace("'", "''")
    return pg.query(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{quoted}'")[0][0]


async def set_password(admin: Admin, role: str, password: str = NEXT, alive: bool = True) -> None:
    await admin.run(lambda c: passwords.set_password(c, role, verifier(password), alive=lambda: alive))


# Which password is valid


async def test_a_right_password_is_told_from_a_wrong_one(pg: Postgres) -> None:
    assert await logs_in(login(pg, "app"), "shop")
    assert not await logs_in(login(pg, "app", NEXT), "shop")
    assert not await logs_in(login(pg, "nobody"), "shop")
    await asyncio.to_thread(wait_until, "nobody stays", lambda: pg.sessions("app") == 0)


async def test_a_login_that_finds_no_room_is_right_all_the_same(pg: Postgres) -> None:
    assert await logs_in(login(pg, "full"), "shop")
    assert not await logs_in(login(pg, "full", NEXT), "shop")
    assert await logs_in(login(pg, "app"), "narrow")


async def test_a_server_without_any_slot_says_nothing_of_passwords(pg: Postgres) -> None:
    held: list[psycopg.Connection[Any]] = []
    try:
        for user in ["app"] * 17 + ["postgres"] * 3:  # 3 slots are for superusers
            held.append(psycopg.connect(host="127.0.0.1", port=pg.port, user=user, password=WORD, dbname="postgres"))
        with pytest.raises(ServerError, match="too many clients") as full:
            await logs_in(login(pg, "app"), "shop")
        assert not full.value.refused
        held.pop().close()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await logs_in(login(pg, "app"), "shop"), "reserved slots are kept after the login is known"
                    break
                except ServerError as error:
                    assert "too many clients" in str(error)  # the backend is still on its way out
        assert not await logs_in(login(pg, "app", NEXT), "shop")
    finally:
        for connection in held:
            connection.close()
    await asyncio.to_thread(wait_until, "they are gone", lambda: pg.sessions("app") == 0)


@pytest.mark.parametrize(
    ("role", "dbname", "words"),
    [
        ("green", "shop", "not permitted to log in"),
        ("stranger", "shop", "pg_hba.conf rejects|no pg_hba.conf entry"),
        ("app", "nowhere", "does not exist"),
        ("trusted", "shop", "no password is wrong"),
    ],
)
async def test_a_login_refused_for_another_reason_is_no_wrong_password(
    pg: Postgres, role: str, dbname: str, words: str
) -> None:
    with pytest.raises(ServerError, match=words) as told:
        await logs_in(login(pg, role), dbname)
    assert WORD not in str(told.value)


async def test_no_answer_tells_nothing(pg: Postgres) -> None:
    with pytest.raises(ServerError) as told:
        await logs_in(Login("127.0.0.1", 1, "app", WORD, "prefer", None), "shop")
    assert not told.value.refused


# What a role is


async def test_what_two_roles_have_in_common_is_read(pg: Postgres, admin: Admin) -> None:
    facts = await admin.run(lambda c: role_facts(c, ["blue", "green", "app", "admin", "boss", "nobody"]))
    assert set(facts) == {"blue", "green", "app", "admin", "boss"}
    blue, green = facts["blue"], facts["green"]
    assert (blue.can_login, green.can_login) == (True, False)
    assert (set(blue.member_of), set(green.member_of), set(facts["app"].member_of)) == ({"owner"}, {"owner"}, set())
    assert (blue.set_role, green.set_role, facts["app"].set_role) == ("owner", "owner", "")
    assert green.state == RoleState(7)
    assert (blue.valid_until, green.valid_until[:4]) == ("", "2099")
    assert facts["admin"].state.admin and facts["boss"].state.superuser
    assert blue.rights != green.rights, "one has another work_mem in one database"
    pg.query("ALTER ROLE green IN DATABASE shop RESET work_mem")
    facts = await admin.run(lambda c: role_facts(c, ["blue", "green", "app"]))
    assert facts["blue"].rights == facts["green"].rights != facts["app"].rights


async def test_sessions_of_a_role_are_counted_by_whoever_asks(pg: Postgres) -> None:
    plain = Admin(login(pg, "plain"))
    with psycopg.connect(host="127.0.0.1", port=pg.port, user="blue", password=WORD, dbname="shop") as session:
        session.execute("SELECT 1")
        assert await plain.run(lambda c: sessions_of(c, "blue")) == 1
        assert await plain.run(lambda c: sessions_of(c, "owner")) == 0, "SET role is no login"
    await asyncio.to_thread(wait_until, "it is gone", lambda: pg.sessions("blue") == 0)
    assert await plain.run(lambda c: sessions_of(c, "blue")) == 0
    await plain.close()


# Setting one


@pytest.mark.parametrize("role", ["app", ODD])
async def test_another_password_is_set_and_back(pg: Postgres, admin: Admin, role: str) -> None:
    await set_password(admin, role)
    assert str(stored(pg, role)).startswith("SCRAM-SHA-256$4096:")
    assert await logs_in(login(pg, role, NEXT), "shop")
    assert not await logs_in(login(pg, role), "shop")
    await set_password(admin, role, WORD)
    assert await logs_in(login(pg, role), "shop")


async def test_a_verifier_made_here_is_stored_as_it_is(pg: Postgres, admin: Admin) -> None:
    made = verifier(WORD)
    await admin.run(lambda c: passwords.set_password(c, "app", made, alive=lambda: True))
    assert stored(pg, "app") == made


async def test_a_role_with_an_md5_password_gets_a_scram_one(pg: Postgres, admin: Admin) -> None:
    pg.query(f"SET password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD '{NEXT}'")
    try:
        assert str(stored(pg, "old")).startswith("md5")
        with pytest.raises(ServerError, match="SCRAM only") as weak:
            await logs_in(login(pg, "old", NEXT), "shop")
        assert weak.value.refused
        await set_password(admin, "old", WORD)
        assert str(stored(pg, "old")).startswith("SCRAM")
        assert await logs_in(login(pg, "old"), "shop"), "a line md5 in pg_hba.conf takes SCRAM as well"
        assert not await logs_in(login(pg, "old", NEXT), "shop")
    finally:
        pg.query("DROP ROLE old")


async def test_a_role_is_disabled_and_enabled_again(pg: Postgres, admin: Admin) -> None:
    await admin.run(lambda c: disable(c, "blue", alive=lambda: True))
    assert stored(pg, "blue") is None
    assert not (await admin.run(lambda c: role_facts(c, ["blue"])))["blue"].can_login
    made = verifier(WORD)
    await admin.run(lambda c: passwords.set_password(c, "blue", made, alive=lambda: True, login=True))
    assert await logs_in(login(pg, "blue"), "shop")


@pytest.fixture
async def root(pg: Postgres) -> AsyncIterator[Admin]:
    """An admin whom PostgreSQL itself forbids nothing."""
    pg.query(f"CREATE ROLE root LOGIN SUPERUSER PASSWORD '{NEXT}'")
    connection = Admin(login(pg, "root", NEXT))
    yield connection
    await connection.close()
    pg.query("DROP ROLE root")


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("boss", "SUPERUSER"),
        ("copier", "REPLICATION"),
        ("seer", "BYPASSRLS"),
        ("root", "adminSecretRef itself"),
        ("nobody", "no such role"),
    ],
)
async def test_what_is_not_ours_is_not_altered_even_by_a_superuser(
    pg: Postgres, root: Admin, admin: Admin, role: str, words: str
) -> None:
    everything = "SELECT rolname, rolpassword, rolcanlogin FROM pg_authid ORDER BY 1"
    before = pg.query(everything)
    with pytest.raises(Refused, match=words):
        await set_password(root, role)
    with pytest.raises(Refused, match=words):
        await root.run(lambda c: disable(c, role, alive=lambda: True))
    with pytest.raises(Refused):
        await set_password(admin, role if role != "root" else "admin")
    assert pg.query(everything) == before


async def test_an_admin_that_may_not_alter_roles_is_told_so(pg: Postgres) -> None:
    plain = Admin(login(pg, "plain"))
    try:
        with pytest.raises(Refused, match="CREATEROLE") as told:
            await set_password(plain, "app")
        assert "SCRAM" not in "".join(traceback.format_exception(told.value))
        assert await plain.run(lambda c: sessions_of(c, "app")) == 0, "the connection is still good"
    finally:
        await plain.close()
    assert await logs_in(login(pg, "app"), "shop")


async def test_who_must_not_act_any_more_alters_nothing(pg: Postgres, admin: Admin) -> None:
    with pytest.raises(Refused, match="must not act"):
        await set_password(admin, "app", alive=False)
    assert await logs_in(login(pg, "app"), "shop")


async def test_one_operator_alters_roles_at_a_time(pg: Postgres, admin: Admin) -> None:
    with superuser(pg) as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(%s)", (roles.LOCK,))
        with pytest.raises(Busy):
            await set_password(admin, "app")
    assert await logs_in(login(pg, "app"), "shop")


def superuser(pg: Postgres) -> psycopg.Connection[Any]:
    return psycopg.connect(host="127.0.0.1", port=pg.port, user="postgres", dbname="postgres", autocommit=True)


def waiting(pg: Postgres) -> list[tuple[object, ...]]:
    """Pids of the admin's sessions that wait for somebody's transaction."""
    return pg.query("SELECT pid FROM pg_stat_activity WHERE usename = 'admin' AND wait_event = 'transactionid'")


async def test_behind_somebodys_open_transaction_it_gives_up_and_says_whose_it_is(pg: Postgres, admin: Admin) -> None:
    with superuser(pg) as other, other.transaction():
        other.execute("ALTER ROLE app CONNECTION LIMIT 50")
        began = asyncio.get_running_loop().time()
        with pytest.raises(Refused, match=f'lock timeout.*pid {other.info.backend_pid} of "postgres"'):
            await set_password(admin, "app")
        assert asyncio.get_running_loop().time() - began < passwords.STATEMENT_MS / 1000
    assert await logs_in(login(pg, "app"), "shop")
    await set_password(admin, "app")
    assert await logs_in(login(pg, "app", NEXT), "shop")
    await set_password(admin, "app", WORD)


async def test_a_role_that_somebody_alters_meanwhile_is_left_to_him(pg: Postgres, admin: Admin) -> None:
    with superuser(pg) as other:
        with other.transaction():
            other.execute("ALTER ROLE app CONNECTION LIMIT -1")
            task = asyncio.create_task(set_password(admin, "app"))
            await asyncio.to_thread(wait_until, "it waits", lambda: waiting(pg))
        with pytest.raises(Refused, match="tuple concurrently updated"):
            await task
    assert await logs_in(login(pg, "app"), "shop")


async def test_an_answer_that_does_not_come_tells_nothing(pg: Postgres, admin: Admin) -> None:
    with superuser(pg) as other, other.transaction():
        other.execute("ALTER ROLE app CONNECTION LIMIT -1")
        task = asyncio.create_task(set_password(admin, "app"))
        await asyncio.to_thread(wait_until, "it waits", lambda: waiting(pg))
        pg.query(f"SELECT pg_terminate_backend({waiting(pg)[0][0]})")
        with pytest.raises(Unknown) as told:
            await task
    assert "SCRAM" not in "".join(traceback.format_exception(told.value))
    assert await logs_in(login(pg, "app"), "shop")
    await set_password(admin, "app", WORD)


LAGGING = "SELECT pid FROM pg_stat_activity WHERE usename = 'admin' AND wait_event = 'SyncRep'"


async def unconfirmed(pg: Postgres, admin: Admin) -> tuple[str, asyncio.Task[None]]:
    """A password, and its being set: the commit waits for a standby. It does so once the checkpointer has read the
    configuration, and nothing shows that."""
    for attempt in itertools.count():
        word = f"{NEXT} {attempt}"
        task = asyncio.create_task(set_password(admin, "app", word))
        await asyncio.to_thread(wait_until, "it waits or ends", lambda: task.done() or pg.query(LAGGING))  # noqa: B023
        if not task.done():
            return word, task
        await task
    raise AssertionError


async def test_a_commit_that_nobody_confirmed_may_have_been_done(pg: Postgres, admin: Admin) -> None:
    """PostgreSQL commits, then waits for a standby, and is stopped: the password is set, and nobody said so."""
    pg.query("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    pg.query("SELECT pg_reload_conf()")
    try:
        word, task = await unconfirmed(pg, admin)
        pg.query(f"SELECT pg_terminate_backend({pg.query(LAGGING)[0][0]})")
        with pytest.raises(Unknown):
            await task
    finally:
        pg.query("ALTER SYSTEM RESET synchronous_standby_names")
        pg.query("SELECT pg_reload_conf()")
    assert await logs_in(login(pg, "app", word), "shop")
    await set_password(admin, "app", WORD)


async def test_a_connection_that_broke_before_is_replaced(pg: Postgres, admin: Admin) -> None:
    await admin.run(lambda c: sessions_of(c, "app"))
    pg.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'admin'")
    await asyncio.to_thread(wait_until, "it is gone", lambda: pg.sessions("admin") == 0)
    await set_password(admin, "app")
    assert await logs_in(login(pg, "app", NEXT), "shop")
    await set_password(admin, "app", WORD)
