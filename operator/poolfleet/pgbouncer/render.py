"""pgbouncer.ini as a template for the agents, and userlist.txt.

Defaults follow facts/pgbouncer.md 9 and 10, but nothing here opens a connection by itself (`min_pool_size = 0`), so
that a database that scales to zero stays asleep. What fill.py adds per pod is not here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import jinja2

from poolfleet.api import names
from poolfleet.pgbouncer import parameters as allowed
from poolfleet.pgbouncer import quoting

CA_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
"""The certificate authorities of the PgBouncer image, for a verifying TLS mode without a CA of one's own."""

POOL_MODES: Final = ("transaction", "session", "statement")
TLS_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

CONNECT_QUERY: Final = (
    f"SELECT pg_catalog.set_config(name, '{names.CLIENT_CHECK_MILLISECONDS}', false) FROM pg_catalog.pg_settings "  # noqa: S608
    "WHERE name OPERATOR(pg_catalog.=) 'client_connection_check_interval'"
)
"""Run on every new server connection: a backend whose client vanished ends by itself (design section 3). Over
pg_settings, for PostgreSQL before 14 does not know the setting and would refuse a plain SET, and with it the login."""

DEFAULTS: Final[Mapping[str, str]] = {
    "listen_backlog": "4096",
    "max_prepared_statements": "200",
    "server_idle_timeout": "60",
    "server_lifetime": "1800",
    "server_login_retry": "1",
    "server_connect_timeout": "5",
    "server_check_delay": "10",
    "query_wait_timeout": "120",
    "query_wait_notify": "0",
    "client_login_timeout": "15",
    "cancel_wait_timeout": "10",
    "dns_max_ttl": "5",
    "dns_nxdomain_ttl": "2",
    "tcp_keepalive": "1",
    "tcp_keepidle": "30",
    "tcp_keepintvl": "10",
    "tcp_keepcnt": "3",
    # keepidle + keepcnt * keepintvl: less would end an idle connection for one lost probe, whatever keepcnt says.
    "tcp_user_timeout": "60000",
    "ignore_startup_parameters": "extra_float_digits,options",
    "log_connections": "0",
    "log_disconnections": "0",
    "log_stats": "0",
    "stats_period": "15",
}
"""What `spec.pgbouncer.parameters` may change (parameters.py says how)."""


@dataclass(frozen=True, slots=True)
class DatabaseLine:
    """One entry of [databases]. Without a user each client's own login is used on the server."""

    name: str  # what clients ask for
    host: str
    port: int
    dbname: str  # the server's name of it
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    pool_mode: str = "transaction"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the [pgbouncer] section depends on."""

    max_client_conn: int  # of one pod
    tls_mode: str = "prefer"  # towards the server
    server_ca: bool = False  # x-config holds server-ca.crt
    server_certificate: bool = False  # x-config holds what PgBouncer shows to the server, and its key
    client_tls_mode: str | None = None  # towards clients; None: no TLS. Otherwise x-config holds certificate and key
    parameters: Mapping[str, int | str] = field(default_factory=dict)  # spec.pgbouncer.parameters
    run_dir: str = names.RUN_DIR
    port: int = names.PGBOUNCER_PORT


def render_ini(databases: Sequence[DatabaseLine], settings: Settings) -> str:
    """The template of pgbouncer.ini. Raises Unwritable for a value that the file cannot carry, ValueError for a
    parameter, mode or port that is not possible, or a name given twice."""
    if len({database.name for database in databases}) != len(databases):
        raise ValueError("two databases have the same name")
    return _TEMPLATE.render(
        databases=[{"marker": json.dumps(d.name), "line": _database(d)} for d in databases],
        settings=[quoting.setting(name, value) for name, value in _settings(settings)],
    )


def render_userlist(users: Mapping[str, str]) -> str:
    """userlist.txt for user name -> password, in the mapping's order: put the users that clients use first, for the
    agent tries the first ones when it probes the server. Raises Unwritable."""
    return "".join(quoting.userlist_line(user, password) + "\n" for user, password in users.items())


def _database(d: DatabaseLine) -> str:
    what = f"of database {d.name!r}"
    if d.pool_mode not in POOL_MODES:
        raise ValueError(f"pool mode {what} must be one of {', '.join(POOL_MODES)}")
    if not 1 <= d.port <= 65535:
        raise ValueError(f"port {what} must be between 1 and 65535")
    if (d.user is None) != (d.password is None):
        raise ValueError(f"user and password {what} belong together")
    parts = [
        f"{quoting.database_key(d.name)} =",
        f"host={quoting.host(f'host {what}', d.host)}",
        f"port={d.port}",
        f"dbname={quoting.database_value(f'server database {what}', d.dbname, quoting.MAX_NAME_BYTES)}",
    ]
    if d.user is not None and d.password is not None:
        parts.append(f"user={quoting.database_value(f'server user {what}', d.user, quoting.MAX_NAME_BYTES)}")
        password = quoting.password(f"server password {what}", d.password)
        parts.append(f"password={quoting.database_value(f'server password {what}', password)}")
    parts += [
        f"pool_mode={d.pool_mode}",
        "reserve_pool_size=0",
        f"connect_query={quoting.database_value('connect_query', CONNECT_QUERY)}",
    ]
    return " ".join(parts)


def _settings(s: Settings) -> Iterator[tuple[str, str]]:
    if s.tls_mode not in TLS_MODES or s.client_tls_mode not in (None, *TLS_MODES):
        raise ValueError(f"TLS mode must be one of {', '.join(TLS_MODES)}")
    if s.max_client_conn < 1:
        raise ValueError("max_client_conn must be at least 1")
    yield "listen_addr", "*"
    yield "listen_port", str(s.port)
    yield "unix_socket_dir", s.run_dir
    yield "unix_socket_mode", "0700"
    yield "auth_type", "scram-sha-256"
    yield "auth_file", f"{s.run_dir}/{names.USERLIST_FILE}"
    yield "admin_users", ""
    yield "stats_users", ""
    yield "pool_mode", "transaction"
    yield "min_pool_size", "0"
    yield "reserve_pool_size", "0"
    yield "max_client_conn", str(s.max_client_conn)
    yield "server_tls_sslmode", s.tls_mode
    if s.tls_mode != "disable" and s.server_ca:
        yield "server_tls_ca_file", f"{s.run_dir}/{names.SERVER_CA_FILE}"
    elif s.tls_mode in ("verify-ca", "verify-full"):
        yield "server_tls_ca_file", CA_BUNDLE
    if s.tls_mode != "disable" and s.server_certificate:
        yield "server_tls_cert_file", f"{s.run_dir}/{names.SERVER_CERT_FILE}"
        yield "server_tls_key_file", f"{s.run_dir}/{names.SERVER_KEY_FILE}"
    if s.client_tls_mode is not None:
        yield "client_tls_sslmode", s.client_tls_mode
        yield "client_tls_cert_file", f"{s.run_dir}/{names.CLIENT_CERT_FILE}"
        yield "client_tls_key_file", f"{s.run_dir}/{names.CLIENT_KEY_FILE}"
        if s.client_tls_mode in ("verify-ca", "verify-full"):
            yield "client_tls_ca_file", f"{s.run_dir}/{names.CLIENT_CA_FILE}"
    merged = {**DEFAULTS, **allowed.normalize(s.parameters)}
    # CVE-2026-107349 (facts/pgbouncer.md 8): a non-empty list without `options` was exploitable before 1.26.1.
    ignored = merged["ignore_startup_parameters"].split(",")
    if "options" not in ignored:
        merged["ignore_startup_parameters"] = ",".join([*(word for word in ignored if word), "options"])
    yield from merged.items()


_TEMPLATE: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("poolfleet.pgbouncer"),
    autoescape=False,  # noqa: S701 - not HTML; quoting.py has quoted every value
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
).get_template("pgbouncer.ini.j2")
