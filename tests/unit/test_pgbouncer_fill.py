"""poolfleet.pgbouncer.fill"""

from typing import Any

import pytest

from poolfleet.pgbouncer import fill
from poolfleet.pgbouncer.fill import Malformed, Own
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


PEERS = {"10": "10.0.0.7", "2": "FD00:0::1"}


def test_peers_have_a_section_before_the_settings_in_a_template_of_any_age() -> None:
    own = Own(peer=2, peers=PEERS, port=7432)
    text = fill.fill(TEMPLATE, {"shop": 7}, "cfg-1", own)
    assert text == (
        ";; comment\n[databases]\n"
        "'shop' = host='a' pool_size=7 max_db_connections=7\n"
        "\n[peers]\n"
        "2 = host=fd00::1 port=7432 pool_size=50\n"
        "10 = host=10.0.0.7 port=7432 pool_size=50\n"
        "\n[pgbouncer]\nlisten_addr = *\ndefault_pool_size = 7\npeer_id = 2\nsyslog_ident = cfg-1\n"
    )
    assert fill.cold(TEMPLATE, {"shop": 7}, own) == text.replace("=7 ", "=1 ").replace("=7\n", "=1\n").replace(
        "default_pool_size = 7", "default_pool_size = 1"
    ).replace("cfg-1", "cold")


def test_without_an_id_of_its_own_there_are_no_peers() -> None:
    assert fill.fill(TEMPLATE, {"shop": 7}, "cfg-1", Own(peers=PEERS)) == fill.fill(TEMPLATE, {"shop": 7}, "cfg-1")


@pytest.mark.parametrize("address", ["pod.shop", "10.0.0.7\nadmin_users = x", "fe80::1%\nadmin_users = x", ""])
def test_a_peer_is_an_ip_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        fill.fill(TEMPLATE, {"shop": 7}, "cfg-1", Own(peer=2, peers={"1": address}))


def test_the_section_stands_right_whatever_a_value_looks_like() -> None:
    lines = [DatabaseLine("[pgbouncer]", "pg.x", 5432, "[pgbouncer]")]
    template = render_ini(lines, Settings(max_client_conn=10))
    text = fill.fill(template, {"[pgbouncer]": 1}, "cfg-1", Own(peer=1, peers={"1": "10.0.0.7"}))
    sections = [line for line in text.splitlines() if line.startswith("[")]
    assert sections == ["[databases]", "[peers]", "[pgbouncer]"]


@pytest.mark.parametrize(
    ("set_to", "wanted", "line"),
    [
        (None, None, None),
        (None, 5.0, "5"),
        (None, 0.25, "0.25"),
        ("0", 5.0, "5"),
        ("300", 5.0, "5"),
        ("3", 5.0, None),
        ("5", 5.0, None),
        ("3", 1.0, "1"),
    ],
)
def test_an_idle_timeout_stands_before_the_marker_unless_a_shorter_one_is_set(
    set_to: str | None, wanted: float | None, line: str | None
) -> None:
    parameters = {} if set_to is None else {"client_idle_timeout": set_to}
    template = render_ini([DatabaseLine("shop", "pg.x", 5432, "shop")], Settings(10, parameters=parameters))
    text = fill.fill(template, {"shop": 1}, "cfg-1", Own(client_idle_timeout=wanted))
    found = [line for line in text.splitlines() if line.startswith("client_idle_timeout")]
    expected = [] if set_to is None else [f"client_idle_timeout = {set_to}"]
    assert found == expected + ([] if line is None else [f"client_idle_timeout = {line}"])
    if line is not None:
        assert text.endswith(f"client_idle_timeout = {line}\nsyslog_ident = cfg-1\n")
    assert fill.cold(template, {"shop": 1}, Own(client_idle_timeout=wanted)) == fill.cold(template, {"shop": 1})


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
