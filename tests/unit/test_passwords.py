"""Verifiers, and what the words of a refused connection mean; a real server is asked in integration."""

import base64
import contextlib
import hashlib
import hmac
import re
import traceback
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

from poolfleet.postgres import passwords as module
from poolfleet.postgres.connection import Login, ServerError
from poolfleet.postgres.passwords import Unknown, logs_in, set_password, verifier

LOGIN = Login("db", 5432, "app", "the-word", "prefer", None)
FATAL = 'connection to server at "10.0.0.1", port 5432 failed: FATAL:  '


def test_the_verifier_fits_the_exchange_of_rfc_7677() -> None:
    """Section 3: the salt, proof and server signature of user "user" with password "pencil"."""
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    salt = "W22ZaJ0SNY7soEsUEjb6gQ=="
    exchange = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s={salt},i=4096,c=biws,r={nonce}".encode()
    method, parameters, keys = verifier("pencil", salt=base64.b64decode(salt)).split("$")
    stored_key, server_key = map(base64.b64decode, keys.split(":"))
    assert (method, parameters) == ("SCRAM-SHA-256", f"4096:{salt}")
    signature = hmac.digest(server_key, exchange, "sha256")
    assert signature == base64.b64decode("6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    client_key = bytes(a ^ b for a, b in zip(proof, hmac.digest(stored_key, exchange, "sha256"), strict=True))
    assert hashlib.sha256(client_key).digest() == stored_key


def test_each_verifier_has_a_salt_of_its_own() -> None:
    first, second = verifier("word"), verifier("word")
    assert first != second
    assert re.fullmatch(r"SCRAM-SHA-256\$4096:[A-Za-z0-9+/]{22}==\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=", first)
    assert "word" not in first


@pytest.mark.parametrize("password", ["", "caf\u00e9"])
def test_only_ascii_passwords_are_set(password: str) -> None:
    with pytest.raises(ValueError, match="ASCII"):
        verifier(password)


async def _logs_in(monkeypatch: pytest.MonkeyPatch, text: str, asked: bool = True) -> bool:
    """The answer where the connection fails with these words, after a password was asked for or not."""

    async def fail(*_: object) -> None:
        raise psycopg.OperationalError(FATAL + text, pgconn=cast(Any, SimpleNamespace(used_password=asked)))

    monkeypatch.setattr(module, "connect", fail)
    return await logs_in(LOGIN, "shop")


@pytest.mark.parametrize(
    "text",
    [
        'too many connections for role "app"',
        'too many connections for database "shop"',
        "remaining connection slots are reserved for non-replication superuser connections",
        "remaining connection slots are reserved for roles with the SUPERUSER attribute",
    ],
)
async def test_a_server_that_is_full_for_a_login_knows_its_password(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert await _logs_in(monkeypatch, text)
    with pytest.raises(ServerError) as unknown:
        await _logs_in(monkeypatch, text, asked=False)
    assert not unknown.value.refused


async def test_a_wrong_password_is_known_whatever_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = 'password authentication failed for user "app"'
    assert not await _logs_in(monkeypatch, wrong)
    unencrypted = f'{wrong}\n{FATAL}no pg_hba.conf entry for host "10.0.0.2", user "app", no encryption'
    assert not await _logs_in(monkeypatch, unencrypted), "sslmode=prefer tried again without TLS"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ('no pg_hba.conf entry for host "10.0.0.2"', True),
        ('role "app" is not permitted to log in', True),
        ("sorry, too many clients already", False),
        ("the database system is starting up", False),
        ("the database system is shutting down", False),
    ],
)
async def test_what_tells_nothing_of_the_password_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, text: str, refused: bool
) -> None:
    with pytest.raises(ServerError) as told:
        await _logs_in(monkeypatch, text)
    assert told.value.refused is refused
    assert "the-word" not in str(told.value)


@pytest.mark.parametrize("text", ["plain", "SCRAM-SHA-256$", "SCRAM-SHA-256$4096:c2FsdA==$x:y", "md5" + "0" * 32])
async def test_what_is_no_verifier_never_reaches_the_server(text: str) -> None:
    untouched: Any = None
    with pytest.raises(ValueError, match="verifier") as told:
        await set_password(untouched, "app", text, alive=lambda: True)
    assert text not in str(told.value)


async def test_a_login_that_works_is_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    class Connection:
        pgconn = SimpleNamespace(used_password=True)

        async def close(self) -> None:
            ended.append(self)

    async def succeed(login: Login, dbname: str) -> Connection:
        assert (login, dbname) == (LOGIN, "shop")
        return Connection()

    monkeypatch.setattr(module, "connect", succeed)
    assert await logs_in(LOGIN, "shop")
    assert len(ended) == 1


class Server:
    """A PostgreSQL that lets everything be done, and fails at the commit."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        yield
        raise self.error

    async def execute(self, *_: object) -> "Server":
        return self

    async def fetchone(self) -> tuple[bool]:
        return (True,)

    async def fetchall(self) -> list[tuple[object, ...]]:
        ours = (-1, False, False, False, False)
        return [("app", *ours, True, False, False, True, None, [], [], [])]


async def test_of_a_commit_that_fails_nobody_knows() -> None:
    quoting = psycopg.errors.InternalError_(f"something\nLINE 1: ALTER ROLE app PASSWORD '{verifier('word')}'")
    server = cast(Any, Server(quoting))
    with pytest.raises(Unknown) as told:
        await set_password(server, "app", verifier("word"), alive=lambda: True)
    assert "SCRAM" not in "".join(traceback.format_exception(told.value))
