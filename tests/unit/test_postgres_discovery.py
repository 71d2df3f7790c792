"""What is said of a server that could not be asked; asking a real one is for the e2e tests."""

import psycopg
import pytest

from poolfleet.postgres.discovery import _explained

REFUSED = (
    'connection to server at "10.0.0.1", port 5432 failed: FATAL:  password authentication failed for user "admin"'
)


def test_what_libpq_says_of_each_attempt_is_said_once() -> None:
    error = _explained(psycopg.OperationalError(f"connection failed: {REFUSED}\n{REFUSED}"), "db", 5432)
    assert str(error) == f"db:5432: {REFUSED}"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (REFUSED, True),
        ('FATAL: no pg_hba.conf entry for host "10.0.0.1"', True),
        ("[Errno -2] Name or service not known", False),
        ("FATAL:  sorry, too many clients already", False),
    ],
)
def test_a_refused_login_is_told_from_no_answer(text: str, refused: bool) -> None:
    assert _explained(psycopg.OperationalError(text), "db", 5432).refused is refused
