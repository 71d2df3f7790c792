"""poolfleet.pgbouncer.parameters"""

import pytest

from poolfleet.pgbouncer import parameters
from poolfleet.pgbouncer.render import DEFAULTS

# SHOW CONFIG of PgBouncer 1.26.1, without what is fixed at compile time or only for display.
SHOWN = """
    admin_users application_name_add_host auth_dbname auth_file auth_hba_file auth_ident_file auth_ldap_options
    auth_query auth_type auth_user autodb_idle_timeout cancel_wait_timeout client_idle_timeout client_login_timeout
    client_tls13_ciphers client_tls_ca_file client_tls_cert_file client_tls_ciphers client_tls_dheparams
    client_tls_ecdhcurve client_tls_key_file client_tls_protocols client_tls_sslmode conffile default_pool_size
    disable_pqexec dns_max_ttl dns_nxdomain_ttl dns_zone_check_period idle_transaction_timeout
    ignore_startup_parameters job_name listen_addr listen_backlog listen_port log_connections log_disconnections
    log_pooler_errors log_stats logfile login_notify_message max_client_conn max_db_client_connections
    max_db_connections max_packet_size max_prepared_statements max_user_client_connections max_user_connections
    min_pool_size peer_id pidfile pkt_buf pool_idle_timeout pool_mode query_timeout query_wait_notify
    query_wait_timeout reserve_pool_size reserve_pool_timeout resolv_conf sbuf_loopcnt scram_iterations
    server_check_delay server_check_query server_connect_timeout server_fast_close server_idle_timeout
    server_lifetime server_login_retry server_reset_query server_reset_query_always server_round_robin
    server_tls13_ciphers server_tls_ca_file server_tls_cert_file server_tls_ciphers server_tls_key_file
    server_tls_protocols server_tls_sslmode so_reuseport stats_period stats_users syslog syslog_facility syslog_ident
    tcp_defer_accept tcp_keepalive tcp_keepcnt tcp_keepidle tcp_keepintvl tcp_socket_buffer tcp_user_timeout
    track_extra_parameters transaction_timeout unix_socket_dir unix_socket_group unix_socket_mode user verbose
"""
KNOWN = set(SHOWN.split())

# SHOW CONFIG: changeable=no (facts/pgbouncer.md 6)
RESTART = {"disable_pqexec", "listen_backlog", "pkt_buf", "track_extra_parameters"}


def test_every_setting_of_pgbouncer_is_either_allowed_or_refused_with_a_reason() -> None:
    assert set(parameters.ALLOWED) | set(parameters.REFUSED) >= KNOWN
    assert not set(parameters.ALLOWED) & set(parameters.REFUSED)
    assert set(parameters.ALLOWED) <= KNOWN


def test_what_holds_the_promise_is_refused() -> None:
    for name in ("default_pool_size", "reserve_pool_size", "min_pool_size", "max_db_connections", "pool_mode", "user"):
        assert parameters.check({name: 1}) != []
    for name in (
        "listen_addr",
        "auth_file",
        "syslog_ident",
        "admin_users",
        "stats_users",
        "peer_id",
        "unix_socket_dir",
    ):
        assert parameters.check({name: "x"}) != []


def test_only_these_need_a_restart() -> None:
    assert {name for name, kind in parameters.ALLOWED.items() if kind.restart} == RESTART
    assert parameters.restart_only({"pkt_buf": 8192, "verbose": "1"}) == {"pkt_buf": "8192"}


def test_our_own_defaults_are_allowed() -> None:
    assert parameters.check(DEFAULTS) == []
    assert parameters.normalize(DEFAULTS) == dict(sorted(DEFAULTS.items()))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("query_wait_timeout", 30, "30"),
        ("query_wait_timeout", "0.5", "0.5"),
        ("log_connections", "yes", "1"),
        ("log_connections", 0, "0"),
        ("verbose", "2", "2"),
        ("server_reset_query", "DISCARD ALL; SELECT 'a'", "DISCARD ALL; SELECT 'a'"),
        ("server_reset_query", "", ""),
        ("ignore_startup_parameters", "extra_float_digits, search_path", "extra_float_digits, search_path"),
    ],
)
def test_values(name: str, value: int | str, text: str) -> None:
    assert parameters.normalize({name: value}) == {name: text}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("query_wait_timeout", "-1"),
        ("query_wait_timeout", "1e3"),
        ("query_wait_timeout", "nan"),
        ("query_wait_timeout", True),
        ("server_login_retry", 0),
        ("max_prepared_statements", "1.5"),
        ("max_prepared_statements", "0x10"),
        ("max_prepared_statements", "1\nadmin_users = x"),
        ("max_prepared_statements", "٣"),
        ("server_reset_query", "a\nb"),
        ("server_reset_query", "a\0b"),
        ("server_reset_query", "\u0085\nx"),
        ("ignore_startup_parameters", "a\nb"),
        ("server_tls_ciphers", "a b"),
        ("log_stats", "2"),
        ("nonsense", 1),
        ("server_check_query\nadmin_users", "x"),
    ],
)
def test_problems(name: str, value: int | str) -> None:
    assert len(parameters.check({name: value})) == 1
    with pytest.raises(ValueError, match="Parameter"):
        parameters.normalize({name: value})


def test_messages_say_what_to_do() -> None:
    assert "spec.maxClientConnections" in parameters.check({"max_client_conn": 1})[0]
    assert "spec.poolMode" in parameters.check({"pool_mode": "session"})[0]
    assert '"query_wait_timeout"' in parameters.check({"query_wait_timout": 1})[0]
    assert "from 0 to 3" in parameters.check({"verbose": 9})[0]
