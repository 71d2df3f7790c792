"""The files of the Secret x-config: what every pod of a pool mounts."""

import json
import math
from collections.abc import Mapping

from poolfleet.api import names
from poolfleet.api.wire import config_hash, tombstone
from poolfleet.pgbouncer import fill, quoting
from poolfleet.pgbouncer.render import DatabaseLine, Settings, render_ini, render_userlist
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.secrets import Credentials

KEY_LENGTH = 64
"""Hex digits of a pool's HMAC key."""


def pool_key(view: PoolView) -> str:
    """The pool's HMAC key: the one in x-config, live or as last seen, else a fresh one."""
    text = view.config_files.get(names.KEY_FILE, b"").decode(errors="replace").strip()
    return text if len(text) == KEY_LENGTH and set(text) <= set("0123456789abcdef") else view.fresh_key


def client_connections(total: int, replicas: int) -> int:
    """max_client_conn of one pod, so that the fleet takes `total` clients with one pod lost (design section 2)."""
    return math.ceil(total / max(1, replicas - 1))


def largest_grant(view: PoolView) -> int | None:
    """No directive may grant one database more: the server's max_connections. While that is not known (a PgServer made
    anew), what the live x-config says; None if nothing is known."""
    known = view.server_status.get("maxConnections")
    if known is None:
        try:
            known = json.loads(view.config_files.get(names.LIMITS_FILE, b"{}")).get("maxGrant")
        except (ValueError, AttributeError):
            known = None
    return known if isinstance(known, int) and known > 0 else None


def files(view: PoolView, given: Credentials, users: Mapping[str, str], key: str, max_grant: int) -> dict[str, bytes]:
    """The files by name. `users` is the whole userlist. Raises quoting.Unwritable for a value that PgBouncer's files
    cannot carry, ValueError for a setting that is not possible."""
    spec, server = view.spec, view.server_spec
    assert spec is not None and server is not None
    lines = []
    for database in spec.databases:
        login = given.databases.get(database.name)
        lines.append(
            DatabaseLine(
                name=database.name,
                host=view.server_host,
                port=server.port,
                dbname=database.dbname,
                user=login.username if login else None,
                password=login.password if login else None,
                pool_mode=database.pool_mode or spec.pool_mode,
            )
        )
    settings = Settings(
        # Not the replicas of the moment: every step of autoscaling would be a RELOAD of all pods.
        max_client_conn=client_connections(spec.max_client_connections, view.least_replicas),
        tls_mode=server.tls.mode,
        server_ca=names.SERVER_CA_FILE in given.tls,
        server_certificate=names.SERVER_CERT_FILE in given.tls,
        client_tls_mode=spec.tls.mode if spec.tls is not None else None,
        parameters=spec.pgbouncer.parameters,
    )
    return {
        **given.tls,
        names.INI_FILE: render_ini(lines, settings).encode(),
        names.USERLIST_FILE: render_userlist(users).encode(),
        names.KEY_FILE: key.encode(),
        names.LIMITS_FILE: json.dumps({"maxGrant": max_grant}).encode(),
    }


def live_hash(data: Mapping[str, bytes]) -> str:
    """The directive's `config` for the data of x-config, "" if there is none."""
    return config_hash(data) if data else ""


def served_roles(data: Mapping[str, bytes]) -> dict[str, frozenset[str]]:
    """Database -> the roles on the server that its connections log in as, by x-config: its one login, or every client's
    own, without removed users. Empty if there is no x-config, or it was spoilt by hand."""
    try:
        logins = fill.users(data.get(names.INI_FILE, b"").decode())
        listed = quoting.read_userlist(data.get(names.USERLIST_FILE, b"").decode())
        key = bytes.fromhex(data.get(names.KEY_FILE, b"").decode())
    except ValueError:  # Malformed, not UTF-8, or no hex
        return {}
    clients = frozenset(user for user, password in listed if password != tombstone(key, user))
    return {database: clients if user is None else frozenset({user}) for database, user in logins.items()}


def other_roles(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
    """Whether a database of both versions of x-config's data is served as another role. PgBouncer 1.26 must not load
    that under its sessions: each would get a FATAL (facts/pgbouncer.md 4)."""
    try:
        roles = [fill.users(data.get(names.INI_FILE, b"").decode()) for data in (before, after)]
    except ValueError:  # there was none, or it was spoilt by hand
        return False
    return any(database in roles[1] and roles[1][database] != role for database, role in roles[0].items())


def served_databases(data: Mapping[str, bytes]) -> tuple[str, ...]:
    """The databases that x-config serves, in its order; none if there is no x-config, or it was spoilt by hand."""
    try:
        return tuple(fill.databases(data.get(names.INI_FILE, b"").decode()))
    except ValueError:  # Malformed, or not UTF-8
        return ()
