"""poolfleet.pgbouncer.render"""

import pytest

from poolfleet.pgbouncer import fill
from poolfleet.pgbouncer.quoting import Unwritable
from poolfleet.pgbouncer.render import CA_BUNDLE, DatabaseLine, Settings, render_ini, render_userlist

SHOP = DatabaseLine("shop", "db.data.svc", 5432, "shop_db", "role", "it's")
OWN = DatabaseLine("own", "10.0.0.1", 6543, "own", pool_mode="session")


def value(text: str, name: str) -> str | None:
    lines = [line for line in text.splitlines() if line.startswith(f"{name} =")]
    assert len(lines) <= 1
    return lines[0].removeprefix(f"{name} =").strip() if lines else None


def test_a_line_with_a_forced_role_and_one_with_the_client_s_own_login() -> None:
    lines = render_ini([SHOP, OWN], Settings(100)).splitlines()
    shop, own = (lines[lines.index(f';@database "{name}"') + 1] for name in ("shop", "own"))
    assert shop.startswith("'shop' = host='db.data.svc' port=5432 dbname='shop_db' user='role' password='it''s' ")
    assert own.startswith("'own' = host='10.0.0.1' port=6543 dbname='own' pool_mode=session reserve_pool_size=0 ")
    for line in (shop, own):
        assert "client_connection_check_interval" in line
        assert "pg_catalog.set_config(name, ''500'', false)" in line
        assert "pool_size=0 max" not in line


def test_nothing_opens_a_connection_by_itself_and_the_console_is_the_agent_s() -> None:
    text = render_ini([SHOP], Settings(100))
    for name, wanted in {
        "min_pool_size": "0",
        "reserve_pool_size": "0",
        "admin_users": "",
        "stats_users": "",
        "auth_type": "scram-sha-256",
        "auth_file": "/run/pgbouncer/userlist.txt",
        "unix_socket_dir": "/run/pgbouncer",
        "unix_socket_mode": "0700",
        "listen_addr": "*",
        "listen_port": "6432",
        "max_client_conn": "100",
        "query_wait_notify": "0",
        "server_login_retry": "1",
    }.items():
        assert value(text, name) == wanted
    assert value(text, "logfile") is None
    assert "'*'" not in text


@pytest.mark.parametrize(
    ("mode", "ca", "file"),
    [
        ("disable", True, None),
        ("prefer", False, None),
        ("require", True, "/run/pgbouncer/server-ca.crt"),
        ("verify-ca", False, CA_BUNDLE),
        ("verify-full", True, "/run/pgbouncer/server-ca.crt"),
    ],
)
def test_server_tls(mode: str, ca: bool, file: str | None) -> None:
    text = render_ini([SHOP], Settings(1, tls_mode=mode, server_ca=ca))
    assert value(text, "server_tls_sslmode") == mode
    assert value(text, "server_tls_ca_file") == file


@pytest.mark.parametrize("mode", ["disable", "prefer", "verify-full"])
def test_what_the_server_is_shown(mode: str) -> None:
    text = render_ini([SHOP], Settings(1, tls_mode=mode, server_certificate=True))
    shown = None if mode == "disable" else "/run/pgbouncer/server-client"
    assert value(text, "server_tls_cert_file") == (shown and f"{shown}.crt")
    assert value(text, "server_tls_key_file") == (shown and f"{shown}.key")
    assert "server_tls_key_file" not in render_ini([SHOP], Settings(1, tls_mode=mode))


@pytest.mark.parametrize("mode", [None, "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_tls_of_clients(mode: str | None) -> None:
    text = render_ini([SHOP], Settings(1, client_tls_mode=mode))
    assert value(text, "client_tls_sslmode") == mode
    assert value(text, "client_tls_cert_file") == (mode and "/run/pgbouncer/client-tls.crt")
    assert value(text, "client_tls_key_file") == (mode and "/run/pgbouncer/client-tls.key")
    checked = mode in ("verify-ca", "verify-full")
    assert value(text, "client_tls_ca_file") == ("/run/pgbouncer/client-ca.crt" if checked else None)
    with pytest.raises(ValueError, match="TLS mode"):
        render_ini([SHOP], Settings(1, client_tls_mode="maybe"))


def test_parameters_replace_defaults() -> None:
    text = render_ini([SHOP], Settings(1, parameters={"query_wait_timeout": 30, "verbose": "1"}))
    assert value(text, "query_wait_timeout") == "30"
    assert value(text, "verbose") == "1"
    with pytest.raises(ValueError, match="pool_mode"):
        render_ini([SHOP], Settings(1, parameters={"pool_mode": "session"}))


@pytest.mark.parametrize("given", ["", "search_path", "options", "a,options"])
def test_the_startup_parameter_options_is_always_ignored(given: str) -> None:
    text = render_ini([SHOP], Settings(1, parameters={"ignore_startup_parameters": given}))
    assert "options" in (value(text, "ignore_startup_parameters") or "").split(",")


def test_the_template_is_one_that_fill_understands() -> None:
    text = render_ini([SHOP, OWN], Settings(1))
    assert fill.databases(text) == ["shop", "own"]
    assert fill.databases(render_ini([], Settings(1))) == []
    assert text.endswith("\n;@fill\n")


@pytest.mark.parametrize(
    "line",
    [
        DatabaseLine("a", "h", 0, "d"),
        DatabaseLine("a", "h", 65536, "d"),
        DatabaseLine("a", "h", 1, "d", user="u"),
        DatabaseLine("a", "h", 1, "d", password="p"),
        DatabaseLine("a", "h", 1, "d", pool_mode="x"),
        DatabaseLine("a", "h,i", 1, "d"),
        DatabaseLine("a", "h", 1, "d\n"),
        DatabaseLine("a'", "h", 1, "d"),
        DatabaseLine("shop", "h", 1, "d"),
    ],
)
def test_impossible_lines(line: DatabaseLine) -> None:
    with pytest.raises(ValueError, match=r"."):
        render_ini([SHOP, line], Settings(1))


@pytest.mark.parametrize("settings", [Settings(0), Settings(1, tls_mode="x"), Settings(1, run_dir="/a\nb")])
def test_impossible_settings(settings: Settings) -> None:
    with pytest.raises(ValueError, match=r"."):
        render_ini([SHOP], settings)


def test_no_password_shows_in_a_repr() -> None:
    assert "it's" not in repr(SHOP)


def test_the_userlist_keeps_the_order() -> None:
    assert render_userlist({"b": "1", "a": '"'}) == '"b" "1"\n"a" """"\n'
    assert render_userlist({}) == ""
    with pytest.raises(Unwritable):
        render_userlist({"a": ""})
