"""poolfleet.pgbouncer.quoting; tests/property/test_ini.py asks a real PgBouncer."""

from collections.abc import Callable

import pytest

from poolfleet.pgbouncer import quoting
from poolfleet.pgbouncer.quoting import Unwritable

WRITERS: dict[str, Callable[[str], str]] = {
    "database_value": lambda value: quoting.database_value("x", value),
    "database_key": quoting.database_key,
    "host": lambda value: quoting.host("x", value),
    "password": lambda value: quoting.password("x", value),
    "userlist user": lambda value: quoting.userlist_line(value, "p"),
    "userlist password": lambda value: quoting.userlist_line("u", value),
    "identifier": quoting.identifier,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("value", ["", "a\nb", "a\rb", "a\0b", "\ud800", "a" * 5000])
def test_every_writer_refuses_what_no_file_can_carry(writer: str, value: str) -> None:
    with pytest.raises(Unwritable):
        WRITERS[writer](value)


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", " a", "a ", "\ta", "a\v"])
def test_a_setting_refuses_what_would_not_arrive(value: str) -> None:
    with pytest.raises(Unwritable):
        quoting.setting("x", value)


def test_quotes_are_doubled_and_nothing_else_is_touched() -> None:
    assert quoting.database_value("x", "it's \\ \"#;") == "'it''s \\ \"#;'"
    assert quoting.userlist_line('a"b', "c\\'\"") == '"a""b" "c\\\'"""'
    assert quoting.identifier('we"ird') == '"we""ird"'
    assert quoting.database_key('we"ird ;#') == "'we\"ird ;#'"
    assert quoting.setting("query_timeout", "1") == "query_timeout = 1"
    assert quoting.setting("admin_users", "") == "admin_users ="


@pytest.mark.parametrize("name", ["a'b", "*", "pgbouncer", "n" * 64, "ü" * 32])
def test_database_names_that_pgbouncer_cannot_have(name: str) -> None:
    with pytest.raises(Unwritable):
        quoting.database_key(name)


def test_names_are_measured_in_bytes() -> None:
    assert quoting.database_key("ü" * 31 + "x") == "'" + "ü" * 31 + "x'"


@pytest.mark.parametrize("host", ["a,b", "/run/x", "@x", "a b", "fe80::1%eth0", "-x", "a'b", "h" * 254])
def test_a_host_that_is_not_one_host_is_refused(host: str) -> None:
    with pytest.raises(Unwritable):
        quoting.host("x", host)


@pytest.mark.parametrize("host", ["db", "shop-db.data.svc", "10.0.0.1", "::1", "2001:db8::1", "a_b.c"])
def test_hosts(host: str) -> None:
    assert quoting.host("x", host) == f"'{host}'"


@pytest.mark.parametrize("secret", ["md5" + "0aF" * 10 + "00", "SCRAM-SHA-256$4096:salt$a:b"])
def test_a_password_that_pgbouncer_would_take_for_a_hash_is_refused(secret: str) -> None:
    with pytest.raises(Unwritable, match="hash"):
        quoting.userlist_line("u", secret)


def test_the_admin_console_s_user_is_refused() -> None:
    with pytest.raises(Unwritable):
        quoting.userlist_line("pgbouncer", "x")


def test_messages_name_the_thing_and_never_its_value() -> None:
    with pytest.raises(Unwritable) as refused:
        quoting.userlist_line("shop", "top\nsecret")
    assert "shop" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_userlist_is_read_back() -> None:
    pairs = [("app", "x"), ('a"b', 'c" "d'), (" ;", "\\"), ("ü", "\u2028\x0b")]
    text = "".join(quoting.userlist_line(*pair) + "\n" for pair in pairs)
    assert quoting.read_userlist(text) == pairs
