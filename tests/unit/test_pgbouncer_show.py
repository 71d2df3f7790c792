"""poolfleet.pgbouncer.show"""

from datetime import datetime

import pytest

from poolfleet.pgbouncer import show
from poolfleet.pgbouncer.admin import Rows

DATABASES = Rows(
    ("max_connections", "name", "host", "port", "force_user", "pool_size", "current_connections", "paused", "disabled"),
    (
        ("6", "shop", "db", "5432", None, "5", "2", "0", "1"),
        ("0", "open", "db", "5432", "role", "7", "0", "1", "0"),
        ("0", "pgbouncer", None, "6432", "pgbouncer", "2", "0", "0", "0"),
    ),
)


def pools(*rows: tuple[str, str, int, int, int]) -> Rows:
    columns = ("database", "user", *show.COUNTS, "maxwait", "maxwait_us")
    filled = [
        (name, user, *(str(n) if c in ("sv_active", "cl_active") else "0" for c in show.COUNTS), str(wait), str(us))
        for name, user, n, wait, us in rows
    ]
    return Rows(columns, tuple(filled))


def test_columns_are_found_by_name_and_the_console_is_left_out() -> None:
    shop, unlimited = show.databases(DATABASES)
    assert (shop.name, shop.host, shop.port, shop.force_user) == ("shop", "db", 5432, "")
    assert (shop.pool_size, shop.max_connections, shop.current_connections) == (5, 6, 2)
    assert (shop.paused, shop.disabled) == (False, True)
    assert unlimited.force_user == "role"


def test_the_limit_is_the_larger_one_and_0_means_unlimited() -> None:
    shop, unlimited = show.databases(DATABASES)
    assert shop.limit == 6
    assert unlimited.limit == show.UNLIMITED


def test_a_missing_column_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_connections"):
        show.databases(Rows(DATABASES.columns[1:], tuple(row[1:] for row in DATABASES.rows)))


def test_pools_are_summed_per_database_and_waits_are_whole() -> None:
    found = show.pools(pools(("shop", "a", 2, 1, 500_000), ("shop", "b", 3, 0, 7), ("pgbouncer", "p", 9, 0, 0)))
    assert [pool.user for pool in found] == ["a", "b"]
    assert found[0].maxwait_us == 1_500_000
    total = show.by_database(found)["shop"]
    assert (total.sv_active, total.cl_active, total.maxwait_us) == (5, 5, 1_500_000)
    assert total.servers == total.logged_in == total.clients == 5


def test_connections_that_carry_a_cancel_request_use_no_slot_of_postgresql() -> None:
    pool = show.Pool("d", "u", sv_active=1, sv_active_cancel=5, sv_being_canceled=1, sv_login=1, sv_tested=1)
    assert pool.servers == 4
    assert pool.logged_in == 1


def test_clients() -> None:
    columns = ("id", "database", "addr", "state", "link", "request_time")
    rows = (
        ("7", "shop", "10.0.0.9", "idle", "", "2026-01-02 03:04:05 UTC"),
        ("8", "shop", "unix", "active", "0x1", "2026-01-02 03:04:05 CEST"),
        ("9", "shop", "unix", "idle", "0x1", "2026-01-02 03:04:05 UTC"),
        ("10", "pgbouncer", "unix", "waiting", "", "2026-01-02 03:04:05 UTC"),
    )
    found = show.clients(Rows(columns, rows))
    at = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 - as show.Client
    assert found[0] == show.Client("shop", "10.0.0.9", True, at, 7)
    assert [client.idle for client in found] == [True, False, False, False]
    with pytest.raises(ValueError, match="request_time"):
        show.clients(Rows(columns[:5], (rows[0][:5],)))
    with pytest.raises(ValueError, match="never"):
        show.clients(Rows(columns, ((*rows[0][:5], "never"),)))


def test_servers_config_version_and_stats() -> None:
    columns = ("database", "user", "state", "remote_pid", "close_needed")
    (server,) = show.servers(Rows(columns, (("shop", "u", "active", "4711", "1"), ("pgbouncer", "p", "x", "0", "0"))))
    assert (server.remote_pid, server.close_needed) == (4711, True)
    assert show.config(Rows(("key", "value"), (("a", "b"), ("c", None)))) == {"a": "b", "c": ""}
    assert show.version(Rows(("version",), (("PgBouncer 1.26.1",),))) == "PgBouncer 1.26.1"
    stats = show.stats(Rows(("database", "total_x"), (("shop", "5"), ("pgbouncer", "1"))))
    assert stats == {"shop": {"total_x": 5}}


def test_users_with_clients_and_an_older_pgbouncer_that_does_not_count_them() -> None:
    counted = Rows(("name", "current_client_connections"), (("app", "3"), ("shop", "0"), ("pgbouncer", None)))
    assert show.users(counted) == {"app": 3}
    assert show.users(Rows(("name", "pool_size"), (("app", "3"),))) == {}
