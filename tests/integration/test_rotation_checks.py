"""What a rotation asks a real PostgreSQL before it alters anything: which password is valid, and whose role it is."""

import itertools
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from poolfleet.plan.rotation import Check
from poolfleet.plan.secrets import Login as Credentials
from poolfleet.postgres.checks import Questions, check
from poolfleet.postgres.connection import Admin, Login
from poolfleet.postgres.roles import LOCK
from tests.integration.pgbouncer_fixtures import Postgres, postgres

OLD, NEW = "the old one", "it's the new one"


@pytest.fixture(scope="module")
def pg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("postgres"), max_connections=20) as server:
        server.query("CREATE DATABASE shop")
        server.query("CREATE ROLE owner")
        for role, options in {
            "admin": "LOGIN CREATEROLE",
            "app": "LOGIN",
            "off": "NOLOGIN",
            "blue": "LOGIN IN ROLE owner",
            "green": "NOLOGIN IN ROLE owner CONNECTION LIMIT 7",
            "red": "LOGIN IN ROLE owner",
            "grey": "NOLOGIN",
            "boss": "LOGIN SUPERUSER",
            "copier": "LOGIN REPLICATION",
            "seer": "LOGIN BYPASSRLS",
            "trusted": "LOGIN",
        }.items():
            server.query(f"CREATE ROLE {role} PASSWORD '{OLD}' {options}")
        hba = server.folder / "data" / "pg_hba.conf"
        hba.write_text("host all trusted 127.0.0.1/32 trust\n" + hba.read_text())
        server.query("SELECT pg_reload_conf()")
        yield server


@pytest.fixture
async def admin(pg: Postgres) -> AsyncIterator[Admin]:
    connection = Admin(login(pg))
    yield connection
    await connection.close()


def login(pg: Postgres) -> Login:
    return Login("127.0.0.1", pg.port, "admin", OLD, "prefer", None)


def one(role: str = "app", main: str | None = OLD, following: str | None = NEW, dbname: str = "shop") -> Questions:
    """About the password of one role."""
    logins = [None if password is None else Credentials(role, password) for password in (main, following)]
    return Questions(logins[0], logins[1], dbname, roles=(role,))


def two(current: str = "blue", idle: str = "green", password: str = OLD, following: str | None = None) -> Questions:
    """About two roles of which one is idle."""
    upcoming = None if following is None else Credentials(idle, following)
    return Questions(Credentials(current, password), upcoming, "shop", idle, roles=(current, idle))


async def asked(admin: Admin, ask: Questions) -> Check:
    ticks = itertools.count(100.0)
    found = await check(admin, ask, lambda: next(ticks))
    assert found.at >= 100.0
    assert not any(word in repr(found) for word in (OLD, NEW))
    return found


@pytest.mark.parametrize(
    ("ask", "works"),
    [
        (one(), "main"),
        (one(main="wrong", following=OLD), "next"),
        (one(main=OLD, following=OLD), "next"),  # set and stored: it is only to be removed
        (one(main="wrong"), "neither"),
        (one(following=None), "main"),
        (one(main=None), "neither"),
        (one(main="wrong", following=None), "neither"),
    ],
)
async def test_which_password_is_valid(admin: Admin, ask: Questions, works: str) -> None:
    found = await asked(admin, ask)
    assert (found.works, found.refusal, found.error) == (works, "", "")


@pytest.mark.parametrize(
    ("role", "why"),
    [
        ("boss", "it is SUPERUSER"),
        ("copier", "it is REPLICATION"),
        ("seer", "it is BYPASSRLS"),
        ("admin", "it is the role of adminSecretRef itself"),
        ("nobody", "there is no such role"),
    ],
)
async def test_roles_that_are_never_altered(admin: Admin, role: str, why: str) -> None:
    assert (await asked(admin, one(role))).refusal == f'Role "{role}" must not be altered: {why}.'


async def test_a_role_without_a_login_has_no_valid_password(admin: Admin) -> None:
    assert (await asked(admin, one("off"))).works == "neither"


async def test_a_server_that_asks_for_no_password_tells_nothing(admin: Admin) -> None:
    found = await asked(admin, one("trusted"))
    assert (found.works, found.error) == ("", "")
    assert found.refusal.startswith("What the password is worth cannot be tried: ")
    assert "trust, peer or cert" in found.refusal


async def test_a_database_that_is_not_there_tells_nothing(admin: Admin) -> None:
    assert (await asked(admin, one(dbname="nowhere"))).works == ""


async def test_a_server_that_does_not_answer_is_an_error_and_no_verdict() -> None:
    nobody = Admin(Login("127.0.0.1", 1, "admin", OLD, "prefer", None))
    found = await asked(nobody, two())
    assert (found.works, found.refusal, found.idle) == ("", "", "green")
    assert found.error


async def test_nothing_is_tried_while_somebody_alters_roles(pg: Postgres, admin: Admin) -> None:
    """His password may be set and not be visible yet."""
    with psycopg.connect(host="127.0.0.1", port=pg.port, user="postgres", dbname="postgres") as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        found = await asked(admin, two())
        assert (found.works, found.refusal, found.idle) == ("", "", "green")
        assert "altering roles" in found.error
        other.rollback()
    assert (await asked(admin, two())).works == "main"


async def test_a_role_that_somebody_else_is_altering_is_looked_at_again(pg: Postgres, admin: Admin) -> None:
    """Not by an operator. The queries would be held for nothing."""
    with psycopg.connect(host="127.0.0.1", port=pg.port, user="postgres", dbname="postgres") as other:
        other.execute("ALTER ROLE app CONNECTION LIMIT 3")
        found = await asked(admin, one())
        assert (found.works, found.refusal) == ("", "")
        assert "a transaction that has altered roles is still open" in found.error
        other.rollback()
    assert (await asked(admin, one())).works == "main"


async def test_a_check_alters_nothing(pg: Postgres, admin: Admin) -> None:
    def roles() -> list[tuple[object, ...]]:
        return pg.query("SELECT rolname, rolpassword, rolconnlimit, rolcanlogin, xmin FROM pg_authid ORDER BY 1")

    before = roles()
    assert (await asked(admin, two())).refusal == ""
    assert (await asked(admin, one())).refusal == ""
    assert roles() == before


# Two roles


async def test_an_idle_role_with_the_same_rights(admin: Admin) -> None:
    found = await asked(admin, two())
    assert (found.works, found.refusal, found.idle, found.sessions) == ("main", "", "green", 0)


async def test_roles_with_other_rights(admin: Admin) -> None:
    said = (await asked(admin, two(idle="grey"))).refusal
    assert said.startswith('Roles "blue" and "grey" have not the same rights')


async def test_an_idle_role_that_somebody_may_use(pg: Postgres, admin: Admin) -> None:
    with psycopg.connect(host="127.0.0.1", port=pg.port, user="red", password=OLD, dbname="shop"):
        found = await asked(admin, two(idle="red"))
    assert found.refusal.startswith('Role "red" can log in, so somebody may use it.')
    assert found.sessions == 1
    # That it is the pool's is shown by the password that the pool's rotation has set.
    shown = await asked(admin, two(idle="red", following=OLD))
    assert (shown.works, shown.refusal) == ("next", "")


async def test_an_idle_role_that_must_not_be_altered(admin: Admin) -> None:
    assert (await asked(admin, two(idle="boss"))).refusal == 'Role "boss" must not be altered: it is SUPERUSER.'
    assert (await asked(admin, two(idle="gone"))).refusal == 'Role "gone" must not be altered: there is no such role.'


@pytest.mark.parametrize(
    ("former", "password", "refusal"),
    [
        ("red", OLD, ""),
        ("red", NEW, 'the valid password of "red" is not known.'),
        ("red", None, 'the valid password of "red" is not known.'),
    ],
)
async def test_the_former_role_is_only_disabled_by_who_knows_its_password(
    admin: Admin, former: str, password: str | None, refusal: str
) -> None:
    stored = Credentials("blue", OLD)
    known = None if password is None else Credentials(former, password)
    ask = Questions(stored, stored, "shop", former, retire=True, former=known, roles=(former, "blue"))
    found = await asked(admin, ask)
    assert (found.works, found.disabled, found.refusal) == ("next", False, refusal)


async def test_another_roles_login_does_not_end_this_one(admin: Admin) -> None:
    stored = Credentials("blue", OLD)
    ask = Questions(stored, stored, "shop", "red", retire=True, former=stored, roles=("red", "blue"))
    assert (await asked(admin, ask)).refusal == 'the valid password of "red" is not known.'


async def test_a_former_role_that_is_disabled_already(admin: Admin) -> None:
    stored = Credentials("blue", OLD)
    ask = Questions(stored, stored, "shop", "green", retire=True, roles=("green", "blue"))
    found = await asked(admin, ask)
    assert (found.works, found.disabled, found.refusal) == ("next", True, "")
