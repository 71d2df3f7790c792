"""Long tokens as passwords, through a real agent and PgBouncer to a real PostgreSQL that asks for them both ways."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from poolfleet.pgbouncer.quoting import MAX_VALUE_BYTES
from tests.integration.agent_pod import Pod, pod
from tests.integration.pgbouncer_fixtures import Postgres, postgres, wait_until


@pytest.fixture(scope="module")
def pg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL with the role `scram`, and the role `clear`, whose password it wants as it is: as RDS does."""
    with postgres(tmp_path_factory.mktemp("postgres")) as server:
        for role in ("scram", "clear"):
            server.query(f"CREATE ROLE {role} LOGIN")
        server.query("CREATE DATABASE shop")
        hba = server.folder / "data/pg_hba.conf"
        hba.write_text("host all clear 127.0.0.1/32 password\n" + hba.read_text())
        server.query("SELECT pg_reload_conf()")
        yield server


@pytest.fixture
def one(pg: Postgres, tmp_path: Path) -> Iterator[Pod]:
    with pod(tmp_path, pg) as made:
        yield made


def token(size: int, number: int) -> str:
    """A token of `size` bytes that looks like a presigned request to RDS, with what a file could take amiss."""
    start = f"db.example.com:5432/?Action=connect&DBUser=app&X-Amz-Security-Token={number}%2F'/+=;#\"\\"
    return start + "x" * (size - len(start))


def pids(pod: Pod) -> set[object]:
    """PostgreSQL's backends as PgBouncer knows them."""
    return {row["remote_pid"] for row in pod.show("SHOW SERVERS")}


def logged_in(pod: Pod) -> set[object]:
    """Likewise, when no login is under way: the agent's probe opens connections, too."""
    wait_until("every login has ended", lambda: pids(pod) and not {"0", 0} & pids(pod))
    return pids(pod)


@pytest.mark.parametrize("role", ["scram", "clear"])
@pytest.mark.parametrize("size", [1001, 2500, MAX_VALUE_BYTES])
def test_a_long_token_logs_in_and_the_next_one_too(pg: Postgres, one: Pod, role: str, size: int) -> None:
    def change(number: int) -> None:
        word = token(size, number)
        assert len(word.encode()) == size
        pg.query(f"ALTER ROLE {role} PASSWORD '{word.replace(chr(39), chr(39) * 2)}'")
        one.configure(one.config([one.line(user=role, password=word)]))

    change(1)
    one.up(shop=2)
    with one.client() as client:
        assert client.execute("SELECT current_user").fetchone() == (role,)
        before = logged_in(one)
        change(2)
        rev = one.direct(shop=2)
        wait_until("the new token is loaded", lambda: one.loaded(rev, shop=2))
        assert before <= logged_in(one), "a connection was closed"
        old = logged_in(one)
        pg.query(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")
        wait_until("PgBouncer has seen it", lambda: not old & pids(one))
        assert client.execute("SELECT current_user").fetchone() == (role,), "the new token logs in"


def test_only_the_whole_token_logs_in(pg: Postgres, one: Pod) -> None:
    word = token(2500, 3)
    pg.query(f"ALTER ROLE clear PASSWORD '{word.replace(chr(39), chr(39) * 2)}'")
    one.configure(one.config([one.line(user="clear", password=word[:-1])]))
    one.up(shop=2)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        one.client().close()
