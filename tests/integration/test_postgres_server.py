"""What the operator asks of a real PostgreSQL: limits, identity, sessions, roles."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from typing import Any

import psycopg
import pytest

from poolfleet.controller.discoveries import BLIND, PROXY, Discoveries
from poolfleet.controller.roles import Roles
from poolfleet.plan.discovery import Limits
from poolfleet.plan.model import Sessions
from poolfleet.plan.role_limits import Demand
from poolfleet.postgres import discovery, roles, sessions
from poolfleet.postgres.connection import Admin, Login, ServerError
from poolfleet.postgres.roles import Busy, Outcome, set_limits
from tests.integration.pgbouncer_fixtures import Postgres, postgres, wait_until

WORD = 'it\'s a "word"'
UID = "uid"


@pytest.fixture(scope="module")
def pg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("postgres")) as server:
        quoted = WORD.replace("'", "''")
        for role, options in {
            "admin": "CREATEROLE IN ROLE pg_monitor",
            "blind": "",
            "app": "",
            "job": "CONNECTION LIMIT 9",
            'odd"; name': "",
            "boss": "SUPERUSER CONNECTION LIMIT 4",
            "copier": "REPLICATION",
        }.items():
            name = role.replace('"', '""')
            server.query(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{quoted}' {options}")
        server.query("CREATE DATABASE shop CONNECTION LIMIT 20")
        yield server


@pytest.fixture(autouse=True)
def alone(pg: Postgres) -> None:
    """The sessions of the test before have ended: PostgreSQL takes a moment."""
    mine = "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    wait_until("everybody is gone", lambda: not pg.query(mine))


def login(pg: Postgres, role: str = "admin") -> Login:
    return Login("127.0.0.1", pg.port, role, WORD, "prefer", None)


@pytest.fixture
async def admin(pg: Postgres) -> AsyncIterator[Admin]:
    connection = Admin(login(pg))
    yield connection
    await connection.close()


@pytest.fixture
async def discoveries() -> AsyncIterator[Discoveries]:
    reader = Discoveries(asyncio.get_running_loop().time, confirm=0.1)
    yield reader
    await reader.close()


def session(pg: Postgres, role: str) -> psycopg.Connection[Any]:
    """A connection that no PgBouncer knows of."""
    return psycopg.connect(host="127.0.0.1", port=pg.port, user=role, password=WORD, dbname="postgres", autocommit=True)


def limit(pg: Postgres, role: str) -> object:
    return pg.query(f"SELECT rolconnlimit FROM pg_roles WHERE rolname = '{role}'")[0][0]


def pid(connection: psycopg.Connection[Any]) -> int:
    return connection.info.backend_pid


# Limits and identity


async def test_limits_and_identity_are_read(pg: Postgres, admin: Admin) -> None:
    found = await admin.run(discovery.read)
    assert found.limits == Limits(100, 3, 0)
    assert found.database_limits == {"shop": 20}
    assert found.role_limits == {"job": 9}, "nobody keeps the limit of a superuser"
    assert [(found.system_identifier,)] == pg.query("SELECT system_identifier::text FROM pg_control_system()")
    assert found.started_at.startswith("20") and found.started_at.endswith("Z")
    assert found == await admin.run(discovery.read)


async def test_a_server_that_keeps_its_identity_to_itself(pg: Postgres, admin: Admin) -> None:
    pg.query("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    try:
        found = await admin.run(discovery.read)
    finally:
        pg.query("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
    assert found.system_identifier == ""
    assert found.limits == Limits(100, 3, 0)


# The connection


async def test_one_connection_serves_every_reading_and_is_replaced_when_it_breaks(pg: Postgres, admin: Admin) -> None:
    async def own_pid(connection: psycopg.AsyncConnection[Any]) -> int:
        return connection.info.backend_pid

    first = await admin.run(own_pid)
    await asyncio.gather(*(admin.run(sessions.read) for _ in range(5)), admin.run(discovery.read))
    assert await admin.run(own_pid) == first
    assert pg.sessions("admin") == 1
    pg.query(f"SELECT pg_terminate_backend({first})")
    wait_until("the backend is gone", lambda: pg.sessions("admin") == 0)
    assert await admin.run(sessions.read) is not None
    assert await admin.run(own_pid) != first
    assert await admin.run(own_pid, oldest=0.0) != first
    assert pg.sessions("admin") == 1


async def test_a_caller_that_is_cancelled_leaves_the_connection_usable(pg: Postgres, admin: Admin) -> None:
    async def slow(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("SELECT pg_sleep(4)")

    task = asyncio.create_task(admin.run(slow))
    sleeping = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(4)' AND usename = 'admin'"
    await asyncio.to_thread(wait_until, "the query runs", lambda: pg.query(sleeping))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await admin.run(sessions.read) is not None
    assert pg.sessions("admin") == 1


async def test_why_a_server_cannot_be_asked(pg: Postgres) -> None:
    async def never(connection: psycopg.AsyncConnection[Any]) -> None:
        raise AssertionError

    wrong = Admin(Login("127.0.0.1", pg.port, "admin", "wrong", "prefer", None))
    with pytest.raises(ServerError, match="password authentication failed") as refused:
        await wrong.run(never)
    assert refused.value.refused and "wrong" not in str(refused.value)
    nobody = Admin(Login("127.0.0.1", 1, "admin", WORD, "prefer", None))
    with pytest.raises(ServerError) as absent:
        await nobody.run(never)
    assert not absent.value.refused


async def test_work_that_fails_midway_leaves_no_transaction_behind(admin: Admin) -> None:
    async def unfinished(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("BEGIN")
        raise KeyError

    async def transaction_began(connection: psycopg.AsyncConnection[Any]) -> bool:
        return connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE

    with pytest.raises(KeyError):
        await admin.run(unfinished)
    assert not await admin.run(transaction_began)


# Sessions


async def test_the_operators_own_session_is_not_among_them(pg: Postgres, admin: Admin) -> None:
    found = await admin.run(sessions.read)
    assert found is not None and not any(backend.role == "admin" for backend in found)
    other = Admin(login(pg))
    assert await other.run(sessions.read) is not None
    assert [b.operators for b in await admin.run(sessions.read) or () if b.role == "admin"] == [True], "another leader"
    await other.close()
    await asyncio.to_thread(wait_until, "it is gone", lambda: pg.sessions("admin") == 1)
    with session(pg, "admin"), session(pg, "app") as client:
        client.execute("SET application_name = 'poolfleet-operator'")  # as any client may
        assert [b.operators for b in await admin.run(sessions.read) or ()] == [False, False]


class Agents:
    """What the agents would say, and how often they were asked."""

    def __init__(self, *pids: int) -> None:
        self.pids = pids
        self.asked = 0
        self.between: Callable[[], object] = lambda: None

    async def __call__(self) -> Collection[int]:
        self.asked += 1
        self.between()
        return self.pids


async def look(discoveries: Discoveries, access: Login, agents: Agents) -> Sessions | None:
    ended = asyncio.Event()
    discoveries.watch_sessions(UID, access, {"app", "job"}, agents, 0.0, ended.set)
    async with asyncio.timeout(10):
        await ended.wait()
    return discoveries.sessions(UID)


async def test_sessions_that_the_agents_know_are_accounted_for(pg: Postgres, discoveries: Discoveries) -> None:
    with session(pg, "app") as one, session(pg, "job") as two, session(pg, "boss"):
        agents = Agents(pid(one), pid(two))
        found = await look(discoveries, login(pg), agents)
        assert found is not None and (found.pools, found.orphans, found.others) == (2, {}, 1)
        assert agents.asked == 1, "nothing unknown, nothing more to ask"


async def test_a_session_that_no_agent_knows_twice_is_an_orphan(pg: Postgres, discoveries: Discoveries) -> None:
    with session(pg, "app") as one, session(pg, "app"), session(pg, "job"):
        agents = Agents(pid(one))
        found = await look(discoveries, login(pg), agents)
        assert found is not None and (found.pools, found.orphans) == (3, {"app": 1, "job": 1})
        assert agents.asked == 2
    wait_until("the sessions are gone", lambda: pg.sessions("app") + pg.sessions("job") == 0)
    found = await look(discoveries, login(pg), Agents())
    assert found is not None and (found.pools, found.orphans) == (0, {})


async def test_a_session_that_ends_or_is_claimed_meanwhile_is_no_orphan(pg: Postgres, discoveries: Discoveries) -> None:
    with session(pg, "app") as known, session(pg, "app") as leaving, session(pg, "job") as late:
        agents = Agents(pid(known))

        def change() -> None:
            leaving.close()
            agents.pids = (pid(known), pid(late)) if agents.asked == 2 else (pid(known),)

        agents.between = change
        found = await look(discoveries, login(pg), agents)
        assert found is not None and found.orphans == {}
        assert agents.asked == 2


async def test_without_pg_monitor_no_sessions_are_reported(pg: Postgres, discoveries: Discoveries) -> None:
    with session(pg, "app"):
        assert await look(discoveries, login(pg, "blind"), Agents()) is None
    assert discoveries.blind(UID) == BLIND
    assert await look(discoveries, login(pg), Agents()) is not None
    assert discoveries.blind(UID) == ""


async def test_pids_of_a_proxys_making_make_no_orphans(pg: Postgres, discoveries: Discoveries) -> None:
    with session(pg, "app") as one:
        assert await look(discoveries, login(pg), Agents(1 << 30)) is None
        assert discoveries.blind(UID) == PROXY
        assert await look(discoveries, login(pg), Agents(pid(one))) is not None
        found = await look(discoveries, login(pg), Agents(1 << 30))
        assert found is not None and found.orphans == {"app": 1}, "no proxy: the pid was found once"


async def test_limits_sessions_and_roles_share_one_connection(pg: Postgres, discoveries: Discoveries) -> None:
    ended = asyncio.Event()
    discoveries.want(UID, login(pg), 0.0, ended.set)
    await look(discoveries, login(pg), Agents())
    async with asyncio.timeout(10):
        await ended.wait()
    reading = discoveries.take(UID)
    assert reading is not None and reading.limits == Limits(100, 3, 0)
    assert pg.sessions("admin") == 1
    discoveries.forget(UID)
    await discoveries.close()
    wait_until("the connection is closed", lambda: pg.sessions("admin") == 0)


async def test_one_server_says_the_same_of_itself_under_two_names(pg: Postgres) -> None:
    found = []
    for host in ("127.0.0.1", "localhost"):
        admin = Admin(Login(host, pg.port, "admin", WORD, "prefer", None))
        reading = await admin.run(discovery.read)
        found.append((reading.system_identifier, reading.started_at))
        await admin.close()
    assert found[0] == found[1] and all(found[0])


# Roles


async def test_limits_of_roles_are_set_and_cleared(pg: Postgres, admin: Admin) -> None:
    done = await admin.run(lambda c: set_limits(c, {"app": 12, 'odd"; name': 3}))
    assert done == {"app": Outcome(12), 'odd"; name': Outcome(3)}
    assert (limit(pg, "app"), limit(pg, 'odd"; name')) == (12, 3)
    assert await admin.run(lambda c: set_limits(c, {"app": -1, 'odd"; name': -1})) == {
        "app": Outcome(-1),
        'odd"; name': Outcome(-1),
    }
    assert (limit(pg, "app"), limit(pg, 'odd"; name')) == (-1, -1)


async def test_special_roles_are_left_alone_and_the_others_altered(pg: Postgres, admin: Admin) -> None:
    done = await admin.run(lambda c: set_limits(c, dict.fromkeys(["boss", "copier", "admin", "nobody", "app"], 12)))
    assert {role: outcome.limit for role, outcome in done.items()} == {
        "boss": -1,
        "copier": -1,
        "admin": -1,
        "nobody": -1,
        "app": 12,
    }
    assert {role for role, outcome in done.items() if outcome.refused} == {"boss", "copier", "admin", "nobody"}
    assert (limit(pg, "boss"), limit(pg, "copier"), limit(pg, "admin")) == (4, -1, -1)
    await admin.run(lambda c: set_limits(c, {"app": -1}))


async def test_an_admin_without_createrole_is_told_so(pg: Postgres) -> None:
    blind = Admin(login(pg, "blind"))
    done = await blind.run(lambda c: set_limits(c, {"app": 12}))
    assert "CREATEROLE" in done["app"].refused
    assert done["app"].limit == limit(pg, "app") == -1
    assert await blind.run(sessions.read) is None, "the connection is still good"
    await blind.close()


async def test_one_operator_alters_roles_at_a_time(pg: Postgres, admin: Admin) -> None:
    with session(pg, "admin") as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(%s)", (roles.LOCK,))
        with pytest.raises(Busy):
            await admin.run(lambda c: set_limits(c, {"app": 12}))
    assert limit(pg, "app") == -1


async def test_limits_follow_the_ledger_up_down_and_away(pg: Postgres, discoveries: Discoveries) -> None:
    now = 1000.0
    keeper = Roles(discoveries, lambda: now)
    await look(discoveries, login(pg), Agents())
    step = await keeper.raise_first(UID, needs={"app": Demand(4, 2)}, recorded={}, managed=["app"])
    assert (step.recorded, step.blocked, step.problem, limit(pg, "app")) == ({"app": 6}, frozenset(), "", -1)
    await keeper.settle(UID, step.recorded)
    assert limit(pg, "app") == 6
    step = await keeper.raise_first(UID, needs={"app": Demand(9, 2)}, recorded=step.recorded, managed=["app"])
    assert (step.recorded, step.blocked, limit(pg, "app")) == ({"app": 11}, frozenset(), 11)
    for waited, expected in ((0.0, 11), (9.0, 11), (2.0, 7)):
        now += waited
        step = await keeper.raise_first(UID, needs={"app": Demand(5, 2)}, recorded=step.recorded, managed=["app"])
        await keeper.settle(UID, step.recorded)
        assert (step.recorded, limit(pg, "app")) == ({"app": expected}, expected)
    step = await keeper.raise_first(UID, needs={"app": Demand(5, 2)}, recorded=step.recorded, managed=None)
    assert (step.recorded, limit(pg, "app")) == ({}, -1)


async def test_what_postgresql_does_not_raise_holds_back_the_ledger(pg: Postgres, discoveries: Discoveries) -> None:
    now = 1000.0
    keeper = Roles(discoveries, lambda: now)
    await look(discoveries, login(pg), Agents())
    needs, recorded = {"app": Demand(9, 2), "job": Demand(2, 1)}, {"app": 6, "job": 3}
    with session(pg, "admin") as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(%s)", (roles.LOCK,))
        step = await keeper.raise_first(UID, needs=needs, recorded=recorded, managed=["app", "job"])
        assert (step.recorded, step.blocked) == (recorded, frozenset({"app"})), "job's bounds fit the limit that it has"
        assert "another operator" in step.problem
        assert keeper.wake(UID) == 5.0
    now += 5.0
    step = await keeper.raise_first(UID, needs=needs, recorded=recorded, managed=["app", "job"])
    assert (step.recorded, step.blocked, step.problem) == ({"app": 11, "job": 4}, frozenset(), "")
    await keeper.raise_first(UID, needs={}, recorded=step.recorded, managed=None)
    pg.query("ALTER ROLE job CONNECTION LIMIT 9")


async def test_a_limit_that_others_changed_is_set_again(pg: Postgres, discoveries: Discoveries) -> None:
    now = 1000.0
    keeper = Roles(discoveries, lambda: now)
    await look(discoveries, login(pg), Agents())
    for since, expected in ((0.0, 6), (1.0, -1), (300.0, 6)):
        now += since
        step = await keeper.raise_first(UID, needs={"app": Demand(4, 2)}, recorded={"app": 6}, managed=["app"])
        await keeper.settle(UID, step.recorded)
        assert limit(pg, "app") == expected
        pg.query("ALTER ROLE app CONNECTION LIMIT -1")
