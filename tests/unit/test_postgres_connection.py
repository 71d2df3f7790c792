"""What is said of a server that could not be asked; a real one is asked in integration/test_postgres_server.py."""

import psycopg
import pytest

from poolfleet.plan.conditions import too_many
from poolfleet.postgres.connection import REQUIRE_AUTH, Login, explained

REFUSED = (
    'connection to server at "10.0.0.1", port 5432 failed: FATAL:  password authentication failed for user "admin"'
)


def test_what_libpq_says_of_each_attempt_is_said_once() -> None:
    error = explained(psycopg.OperationalError(f"connection failed: {REFUSED}\n{REFUSED}"), "db", 5432)
    assert str(error) == f"db:5432: {REFUSED}"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (REFUSED, True),
        ('FATAL: no pg_hba.conf entry for host "10.0.0.1"', True),
        ('FATAL: role "admin" does not exist', True),
        ("[Errno -2] Name or service not known", False),
        ("FATAL:  sorry, too many clients already", False),
    ],
)
def test_a_refused_login_is_told_from_no_answer(text: str, refused: bool) -> None:
    assert explained(psycopg.OperationalError(text), "db", 5432).refused is refused


@pytest.mark.parametrize(
    "text",
    [
        "FATAL:  sorry, too many clients already",
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        "FATAL:  remaining connection slots are reserved for non-replication superuser connections",
        'FATAL:  too many connections for role "app"',
        'FATAL:  too many connections for database "shop"',
    ],
)
def test_the_words_of_53300_are_known(text: str) -> None:
    assert too_many(text)
    assert not too_many(REFUSED)


def test_a_server_that_wants_less_than_scram_has_a_remedy() -> None:
    words = f'authentication method requirement "{REQUIRE_AUTH}" failed: server requested a hashed password'
    error = explained(psycopg.OperationalError(words), "db", 5432)
    assert error.refused
    assert "password_encryption = 'scram-sha-256'" in str(error)


def test_a_login_does_not_show_its_password() -> None:
    assert "word" not in repr(Login("db", 5432, "admin", "word", "prefer", None))
