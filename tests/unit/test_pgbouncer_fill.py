"""poolfleet.pgbouncer.fill"""

from typing import Any

import pytest

from poolfleet.pgbouncer import fill
from poolfleet.pgbouncer.fill import Malformed
from poolfleet.pgbouncer.render import DatabaseLine, Settings, render_ini

TEMPLATE = """;; comment
[databases]
;@database "shop"
'shop' = host='a'
;@database "\\u00fc"
'ü' = host='b'

[pgbouncer]
listen_addr = *
;@fill
"""


def test_each_granted_database_gets_its_limits_twice_and_the_marker_is_last() -> None:
    assert fill.fill(TEMPLATE, {"shop": 7, "ü": 3}, "cfg-1") == (
        ";; comment\n[databases]\n"
        "'shop' = host='a' pool_size=7 max_db_connections=7\n"
        "'ü' = host='b' pool_size=3 max_db_connections=3\n"
        "\n[pgbouncer]\nlisten_addr = *\ndefault_pool_size = 3\nsyslog_ident = cfg-1\n"
    )


def test_a_database_without_a_grant_is_not_rendered() -> None:
    text = fill.fill(TEMPLATE, {"ü": 3, "unknown": 1}, "cfg-1")
    assert "shop" not in text
    assert "unknown" not in text
    assert "default_pool_size = 3\n" in text


def test_no_grant_at_all_still_limits_everything() -> None:
    text = fill.fill(TEMPLATE, {}, "cfg-1")
    assert "host=" not in text
    assert "default_pool_size = 1\n" in text


def test_the_cold_file_allows_one_connection_each() -> None:
    text = fill.cold(TEMPLATE, {"shop": 7})
    assert "'shop' = host='a' pool_size=1 max_db_connections=1\n" in text
    assert "'ü'" not in text
    assert text.endswith("default_pool_size = 1\nsyslog_ident = cold\n")


@pytest.mark.parametrize("grant", [0, -1, True, 1.5, "3", None])
def test_0_is_never_rendered(grant: Any) -> None:
    for name in ("shop", "not in the template"):
        with pytest.raises(ValueError, match="at least 1"):
            fill.fill(TEMPLATE, {name: grant}, "cfg-1")


@pytest.mark.parametrize("marker", ["", "a b", "x\ny", "ü", "a;b"])
def test_a_marker_is_a_plain_word(marker: str) -> None:
    with pytest.raises(ValueError, match="marker"):
        fill.fill(TEMPLATE, {"shop": 1}, marker)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (";@fill\n", ""),
        (";@fill\n", ";@fill\nadmin_users = x\n"),
        ("listen_addr = *\n", ";@fill\n"),
        (';@database "shop"\n', ""),
        (';@database "shop"\n', ";@database shop\n"),
        (';@database "shop"\n', ";@database 7\n"),
        ("'shop' = host='a'\n", ""),
        ("'shop' = host='a'\n", "shop = host='a'\n"),
        ("listen_addr = *\n", ";@database \"x\"\n'x' = host=h\n"),
        ("listen_addr = *\n", "%include /etc/passwd\n"),
        ("listen_addr = *\n", "[databases]\n* = host=h\n"),
        ('"\\u00fc"', '"shop"'),
        ("listen_addr = *\n", "listen_addr = *\r\n"),
        ("[pgbouncer]\n", "[users]\n"),
    ],
)
def test_a_malformed_template_is_refused(old: str, new: str) -> None:
    assert old in TEMPLATE
    with pytest.raises(Malformed):
        fill.fill(TEMPLATE.replace(old, new), {"shop": 1, "ü": 1}, "cfg-1")


def test_databases() -> None:
    assert fill.databases(TEMPLATE) == ["shop", "ü"]
    with pytest.raises(Malformed):
        fill.databases("")


def test_the_roles_that_databases_log_in_as() -> None:
    odd = "o'brien user=x = ' y"
    lines = [
        DatabaseLine("shop", "pg.x", 5432, "shop", odd, "it's user='no'"),
        DatabaseLine("a user=b = c", "pg.x", 5432, "user='no'"),
        DatabaseLine("user=", "pg.x", 5432, "' user="),
    ]
    found = fill.users(render_ini(lines, Settings(max_client_conn=10)))
    assert found == {"shop": odd, "a user=b = c": None, "user=": None}
    assert fill.users(TEMPLATE) == {"shop": None, "ü": None}
    with pytest.raises(Malformed):
        fill.users("no template")
