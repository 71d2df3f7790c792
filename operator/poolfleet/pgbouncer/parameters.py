"""Which PgBouncer settings a user may set in `spec.pgbouncer.parameters`, and what is wrong with those given.

An allow-list: everything that holds the connection budget, the listeners, the files or the agent's access is the
operator's. Kinds and restart-only settings: SHOW CONFIG of 1.26.1 (facts/pgbouncer.md 6). Standard library only.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from poolfleet.pgbouncer import quoting

Value = int | str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One allowed setting. `read` returns the text to write or raises ValueError with what is wanted instead."""

    restart: bool = False  # PgBouncer takes a new value only when it starts

    def read(self, value: Value) -> str:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Integer(Parameter):
    """A whole number within bounds."""

    low: int = 0
    high: int = 2_147_483_647

    def read(self, value: Value) -> str:
        text = str(value).strip()
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,10}", text) or not self.low <= int(text) <= self.high:
            raise ValueError(f"a whole number from {self.low} to {self.high}")
        return str(int(text))


@dataclass(frozen=True, slots=True)
class Seconds(Parameter):
    """A number of seconds, decimals possible."""

    low: float = 0.0
    high: float = 31_536_000.0

    def read(self, value: Value) -> str:
        text = str(value).strip()
        good = not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text)
        if not good or not self.low <= float(text) <= self.high:
            raise ValueError(f"seconds from {self.low:g} to {self.high:g}")
        return text


@dataclass(frozen=True, slots=True)
class Boolean(Parameter):
    """On or off."""

    def read(self, value: Value) -> str:
        text = str(value).strip().lower()
        if text in ("1", "true", "yes", "on"):
            return "1"
        if text in ("0", "false", "no", "off"):
            return "0"
        raise ValueError("0 or 1")


@dataclass(frozen=True, slots=True)
class Choice(Parameter):
    """One of a few words."""

    words: tuple[str, ...] = ()

    def read(self, value: Value) -> str:
        if str(value) not in self.words:
            raise ValueError("one of " + ", ".join(self.words))
        return str(value)


@dataclass(frozen=True, slots=True)
class Text(Parameter):
    """A text of a certain form."""

    pattern: str = r"[^\x00-\x1f\x7f]*"
    wanted: str = "one line of text"

    def read(self, value: Value) -> str:
        text = str(value).strip(" ")
        if isinstance(value, bool) or not re.fullmatch(self.pattern, text) or len(text) > 1000:
            raise ValueError(self.wanted)
        return text


_WORDS: Final = r"([a-zA-Z_][a-zA-Z0-9_.]*(\s*,\s*[a-zA-Z_][a-zA-Z0-9_.]*)*)?"
_CIPHERS: Final = Text(pattern=r"[A-Za-z0-9_:+!@=.\-]*", wanted="a cipher list as OpenSSL writes them")

ALLOWED: Final[Mapping[str, Parameter]] = {
    # timeouts
    "query_timeout": Seconds(),
    "query_wait_timeout": Seconds(),
    "query_wait_notify": Integer(high=86_400),
    "cancel_wait_timeout": Seconds(),
    "client_idle_timeout": Seconds(),
    "client_login_timeout": Seconds(),
    "idle_transaction_timeout": Seconds(),
    "transaction_timeout": Seconds(),
    "pool_idle_timeout": Seconds(),
    "server_idle_timeout": Seconds(),
    "server_lifetime": Seconds(),
    "server_connect_timeout": Seconds(low=0.1),
    "server_login_retry": Seconds(low=0.1),
    "server_check_delay": Seconds(),
    # what happens on a server connection
    "server_check_query": Text(),
    "server_reset_query": Text(),
    "server_reset_query_always": Boolean(),
    "server_round_robin": Boolean(),
    "server_fast_close": Boolean(),
    "server_tls_protocols": Text(pattern=r"[a-z0-9.,:]+", wanted="such as secure, or tlsv1.2,tlsv1.3"),
    "server_tls_ciphers": _CIPHERS,
    "server_tls13_ciphers": _CIPHERS,
    # what clients may do
    "max_prepared_statements": Integer(high=100_000),
    "max_packet_size": Integer(low=1024),
    "max_db_client_connections": Integer(),
    "max_user_client_connections": Integer(),
    "ignore_startup_parameters": Text(pattern=_WORDS, wanted="names of startup parameters, with commas between"),
    "track_extra_parameters": Text(pattern=_WORDS, wanted="names of parameters, with commas between", restart=True),
    "application_name_add_host": Boolean(),
    "disable_pqexec": Boolean(restart=True),
    "login_notify_message": Text(),
    "scram_iterations": Integer(low=1024, high=1_000_000),
    # network
    "dns_max_ttl": Seconds(),
    "dns_nxdomain_ttl": Seconds(),
    "dns_zone_check_period": Seconds(),
    "listen_backlog": Integer(low=1, high=65_535, restart=True),
    "pkt_buf": Integer(low=512, high=65_536, restart=True),
    "sbuf_loopcnt": Integer(high=1000),
    "tcp_defer_accept": Integer(high=3600),
    "tcp_socket_buffer": Integer(high=16_777_216),
    "tcp_keepalive": Boolean(),
    "tcp_keepcnt": Integer(high=127),
    "tcp_keepidle": Integer(high=32_767),
    "tcp_keepintvl": Integer(high=32_767),
    "tcp_user_timeout": Integer(),
    # logs and statistics
    "log_connections": Boolean(),
    "log_disconnections": Boolean(),
    "log_pooler_errors": Boolean(),
    "log_stats": Boolean(),
    "stats_period": Integer(low=1, high=3600),
    "verbose": Integer(high=3),
}

_BUDGET: Final = "the connection budget decides it: see the PgServer's maxConnections and headroom"
_AUTH: Final = "use spec.users"
_LISTEN: Final = "the operator sets it; spec.service says how clients reach the pool"
_CLIENT_TLS: Final = "TLS towards clients is not a matter of parameters"
_SERVER_TLS: Final = "use spec.tls of the PgServer (spec.server.tls for an inline one)"
_FILES: Final = "the operator sets it: logs go to the container's log, the agent needs its files where they are"

REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        [
            "pool_size",
            "default_pool_size",
            "min_pool_size",
            "reserve_pool",
            "reserve_pool_size",
            "reserve_pool_timeout",
            "max_db_connections",
            "max_user_connections",
        ],
        _BUDGET,
    ),
    "pool_mode": "use spec.poolMode or spec.databases[].poolMode",
    "max_client_conn": "use spec.maxClientConnections",
    **dict.fromkeys(
        [
            "auth_type",
            "auth_file",
            "auth_hba_file",
            "auth_ident_file",
            "auth_ldap_options",
            "auth_user",
            "auth_query",
            "auth_dbname",
        ],
        _AUTH,
    ),
    **dict.fromkeys(["admin_users", "stats_users"], "the console is the agent's; statistics are in its /metrics"),
    **dict.fromkeys(
        ["listen_addr", "listen_port", "unix_socket_dir", "unix_socket_mode", "unix_socket_group", "so_reuseport"],
        _LISTEN,
    ),
    "peer_id": "the operator numbers the pods",
    **dict.fromkeys(
        ["sslmode", "key_file", "cert_file", "ca_file", "ciphers", "dheparams", "ecdhcurve", "protocols"], _CLIENT_TLS
    ),
    **dict.fromkeys(
        [
            "client_tls_sslmode",
            "client_tls_key_file",
            "client_tls_cert_file",
            "client_tls_ca_file",
            "client_tls_ciphers",
            "client_tls_dheparams",
            "client_tls_ecdhcurve",
            "client_tls_protocols",
            "client_tls13_ciphers",
        ],
        _CLIENT_TLS,
    ),
    **dict.fromkeys(
        ["server_tls_sslmode", "server_tls_ca_file", "server_tls_key_file", "server_tls_cert_file"], _SERVER_TLS
    ),
    **dict.fromkeys(
        [
            "logfile",
            "pidfile",
            "user",
            "syslog",
            "syslog_ident",
            "syslog_facility",
            "job_name",
            "service_name",
            "conffile",
            "resolv_conf",
        ],
        _FILES,
    ),
    "autodb_idle_timeout": "there is no automatic database: list them in spec.databases",
}


def check(parameters: Mapping[str, Value]) -> list[str]:
    """What is wrong with `parameters`, one sentence each; empty if nothing is."""
    return [problem for name, value in sorted(parameters.items()) for _, problem in [_read(name, value)] if problem]


def normalize(parameters: Mapping[str, Value]) -> dict[str, str]:
    """`parameters` as PgBouncer writes them, sorted by name. Raises ValueError with all that `check` finds."""
    problems = check(parameters)
    if problems:
        raise ValueError(" ".join(problems))
    return {name: _read(name, value)[0] for name, value in sorted(parameters.items())}


def restart_only(parameters: Mapping[str, Value]) -> dict[str, str]:
    """Those of `parameters`, normalized, that need another PgBouncer process, and so a rollout, to take effect."""
    return {name: text for name, text in normalize(parameters).items() if ALLOWED[name].restart}


def _read(name: str, value: Value) -> tuple[str, str]:
    """The text to write, and what is wrong ("" if nothing)."""
    if name in REFUSED:
        return "", f'Parameter "{name}" is not allowed: {REFUSED[name]}.'
    if name not in ALLOWED:
        close = difflib.get_close_matches(name, ALLOWED, n=1)
        hint = f' Did you mean "{close[0]}"?' if close else ""
        return "", f'Parameter "{name[:80]}" is not a PgBouncer setting that can be set here.{hint}'
    try:
        text = ALLOWED[name].read(value)
        quoting.setting(name, text)
    except quoting.Unwritable as error:
        return "", f'Parameter "{name}": {error}.'
    except ValueError as error:
        return "", f'Parameter "{name}" must be {error}.'
    return text, ""
