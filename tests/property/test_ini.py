"""No value breaks out of its place in pgbouncer.ini or userlist.txt: a real PgBouncer is asked.

Each value is either refused by our quoting, or PgBouncer shows exactly it and nothing else has changed.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from poolfleet.pgbouncer import fill
from poolfleet.pgbouncer.quoting import Unwritable
from poolfleet.pgbouncer.render import DatabaseLine, Settings, render_ini, render_userlist
from tests.integration.pgbouncer_fixtures import PgBouncer, Postgres, free_port, postgres, wait_until

PLAIN_USER, PLAIN_PASSWORD = "plain", "plain"

PIECES = ["'", '"', "''", '""', "\\", ";", "#", "=", " ", "\t", "\v", "\n", "\r", "\0", "%include ", "[pgbouncer]", "*"]
PIECES += [
    "pool_size=0",
    ";@fill",
    ";@database",
    " max_db_connections=0 ",
    "pgbouncer",
    ",",
    "/",
    "@",
    "ü",
    "中",
    "\x01",
]
PIECES += ["\u00a0", "\u200b", "a", "B", "7", "md5", "SCRAM-SHA-256$", "$", "\x7f", "\u0130", "\ufb01", "א"]
HOSTILE = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=0, max_size=8).map("".join),
    st.text(max_size=30),
    st.text(alphabet=st.characters(blacklist_categories=["Cs"]), min_size=50, max_size=70),
)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Subject:
    """One PgBouncer whose files are replaced and loaded again and again."""

    def __init__(self, folder: Path, pg: Postgres) -> None:
        self.pg = pg
        self.run = folder / "run"
        self.run.mkdir()
        self.port = free_port()
        self.loads = 0
        self.write([self.line("plain")], {})
        self.bouncer = PgBouncer(self.run, self.port)
        self.bouncer.start()
        wait_until("PgBouncer answers", self._answers)
        self.before = self.config()

    def line(self, name: str, **changes: Any) -> DatabaseLine:
        values: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.pg.port,
            "dbname": "postgres",
            "user": PLAIN_USER,
            "password": PLAIN_PASSWORD,
        }
        return DatabaseLine(name, **(values | changes))

    def write(self, lines: Sequence[DatabaseLine], users: dict[str, str], **parameters: int | str) -> None:
        """Render and write all files; raises what rendering raises, and writes nothing then."""
        given_settings = Settings(50, "disable", parameters=parameters, run_dir=str(self.run), port=self.port)
        self.loads += 1
        ini = fill.fill(render_ini(lines, given_settings), {line.name: 3 for line in lines}, marker=f"cfg-{self.loads}")
        userlist = render_userlist({PLAIN_USER: PLAIN_PASSWORD, **users})
        for name, text in (("pgbouncer.ini", ini), ("userlist.txt", userlist)):
            new = self.run / f"{name}.new"
            new.write_bytes(text.encode())
            new.rename(self.run / name)

    def admin(self, command: str) -> list[dict[str, Any]]:
        with psycopg.connect(
            host=str(self.run),
            port=self.port,
            user="pgbouncer",
            dbname="pgbouncer",
            autocommit=True,
            cursor_factory=psycopg.ClientCursor,
        ) as connection:
            cursor = connection.execute(command.encode())
            columns = [column.name for column in cursor.description or ()]
            return [dict(zip(columns, row, strict=True)) for row in (cursor.fetchall() if columns else [])]

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            return bool(self.admin("SHOW VERSION"))
        return False

    def config(self) -> dict[str, str]:
        return {row["key"]: row["value"] for row in self.admin("SHOW CONFIG")}

    def load(self) -> dict[str, str]:
        """RELOAD; return the settings that differ from the plain file's, the marker left out."""
        self.admin("RELOAD")
        after = self.config()
        assert after.pop("syslog_ident") == f"cfg-{self.loads}"
        return {key: value for key, value in after.items() if value != self.before[key]}

    def databases(self) -> dict[str, tuple[Any, ...]]:
        shown = ("host", "database", "force_user", "pool_size", "max_connections", "reserve_pool_size", "pool_mode")
        rows = self.admin("SHOW DATABASES")
        return {row["name"]: tuple(row[name] for name in shown) for row in rows if row["name"] != "pgbouncer"}

    def login(self, database: str, user: str, password: str) -> str:
        """Connect as a client and return the server's current_user."""
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=user,
            password=password,
            dbname=database,
            sslmode="disable",
            connect_timeout=10,
            autocommit=True,
        ) as connection:
            row = connection.execute("SELECT current_user::text").fetchone()
            assert row is not None
            return str(row[0])


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    folder = tmp_path_factory.mktemp("ini")
    with postgres(folder / "postgres") as pg:
        pg.query(f"CREATE ROLE {PLAIN_USER} LOGIN PASSWORD '{PLAIN_PASSWORD}'")
        made = Subject(folder, pg)
        try:
            yield made
        finally:
            made.bouncer.stop()


@FAST
@given(name=HOSTILE, dbname=HOSTILE, user=HOSTILE, password=HOSTILE)
@example(name="a' = host=h pool_size=0 '", dbname="b", user="c", password="d")
@example(name="%include /etc/passwd", dbname="x' pool_size=0 y='", user="u;#", password="' max_db_connections=0 '")
@example(name="n" * 63, dbname="d" * 63, user="u" * 63, password="p" * 4096)
@example(name="n" * 64, dbname="d", user="u", password="p")
@example(name="a\n[pgbouncer]\nlisten_addr = x", dbname="d", user="u", password="p")
@example(name="n", dbname="d", user="u", password="p\n;@fill\nadmin_users = u")
def test_a_database_line_carries_its_values_exactly(
    subject: Subject, name: str, dbname: str, user: str, password: str
) -> None:
    try:
        subject.write([subject.line("plain"), subject.line(name, dbname=dbname, user=user, password=password)], {})
    except Unwritable as refused:
        assert_tells_no_secret(refused, password, name, user)
        return
    except ValueError as refused:
        assert name == "plain"
        assert "same name" in str(refused)
        return
    assert subject.load() == {}
    common = ("127.0.0.1",)
    limits = (3, 3, 0, "transaction")
    assert subject.databases() == {
        "plain": (*common, "postgres", PLAIN_USER, *limits),
        name: (*common, dbname, user, *limits),
    }


@FAST
@given(user=HOSTILE, password=HOSTILE)
@example(user='a" "b', password='c"\n"d" "e')
@example(user="u" * 63, password="p" * 4096)
@example(user='"' * 63, password='"' * 2000)
@example(user="u", password="md5" + "0" * 32)
@example(user="u", password="SCRAM-SHA-256$4096:c2FsdA==$a:b")
@example(user=";u", password="\\")
@example(user="u", password="\u00a0\u00ad\u2160ü")
def test_a_client_logs_in_with_exactly_its_password(subject: Subject, user: str, password: str) -> None:
    try:
        subject.write([subject.line("plain")], {user: password})
    except Unwritable as refused:
        assert_tells_no_secret(refused, password, user)
        return
    assert subject.load() == {}
    assert subject.login("plain", user, password) == PLAIN_USER
    with pytest.raises(psycopg.OperationalError):
        subject.login("plain", user, password + "x")
    if user != PLAIN_USER:
        assert subject.login("plain", PLAIN_USER, PLAIN_PASSWORD) == PLAIN_USER


@FAST
@given(user=HOSTILE, password=HOSTILE)
@example(user="role' x='", password="it''s \\' ")
@example(user="R" * 63, password="p" * 4096)
def test_pgbouncer_logs_in_to_the_server_with_exactly_its_password(subject: Subject, user: str, password: str) -> None:
    try:
        subject.write([subject.line("plain"), subject.line("hostile", user=user, password=password)], {})
    except Unwritable as refused:
        assert_tells_no_secret(refused, password, user)
        return
    if user.startswith("pg_") or user in (PLAIN_USER, "postgres", "none", "public"):
        return
    with psycopg.connect(host="127.0.0.1", port=subject.pg.port, user="postgres", autocommit=True) as connection:
        role = sql.Identifier(user)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
        try:
            assert subject.load() == {}
            assert subject.login("hostile", PLAIN_USER, PLAIN_PASSWORD) == user
        finally:
            subject.write([subject.line("plain")], {})
            subject.load()
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


@FAST
@given(value=HOSTILE)
@example(value="%include /etc/passwd")
@example(value="x\nadmin_users = plain")
@example(value="SELECT 1; -- ' \" #")
def test_a_setting_carries_its_value_exactly(subject: Subject, value: str) -> None:
    try:
        subject.write([subject.line("plain")], {}, server_check_query=value)
    except ValueError:
        return
    changed = subject.load()
    assert changed == {"server_check_query": value.strip(" ")}


@FAST
@given(host=st.one_of(HOSTILE, st.text(alphabet="abz09.:-_,/@%' ", max_size=30)))
@example(host="a,b")
@example(host="/tmp")
@example(host="@abstract")
@example(host="fe80::1")
@example(host="h' port=1 x='")
def test_a_host_is_one_host(subject: Subject, host: str) -> None:
    try:
        subject.write([subject.line("plain", host=host)], {})
    except Unwritable:
        return
    assert subject.load() == {}
    assert subject.databases()["plain"][0] == host
    assert not set(host) & set(",/@' ")


def assert_tells_no_secret(refused: Unwritable, password: str, *names: str) -> None:
    if len(password) > 8 and not any(password in name for name in names):
        assert password not in str(refused)
