"""What test_bad_input.py puts in, and what a user is told: the reason, the thing and the remedy."""

import base64
import secrets
from dataclasses import dataclass

from poolfleet.api import names
from tests.e2e import kit

BUDGET = 20 - 3  # of the pool that is edited: maxConnections less superuser_reserved_connections
MARK = "marked" + secrets.token_hex(8)  # in every password that is made here, so that one can look for it

# Specs that the API server refuses, as changes of GOOD, and a part of its answer.

SERVER = {"host": "db.data.svc", "maxConnections": 100}
GOOD: kit.Manifest = {"server": SERVER, "databases": [{"name": "shop"}], "users": [{"secretRef": {"name": "app"}}]}

REFUSED: dict[str, tuple[kit.Manifest, str]] = {
    "neither server nor serverRef": ({"server": None}, "set exactly one of server"),
    "both server and serverRef": ({"serverRef": {"name": "main"}}, "set exactly one of server"),
    "no limit, and nobody to ask for it": (
        {"server": {"host": "db"}},
        "set maxConnections to the server's max_connections, or adminSecretRef",
    ),
    "two hosts": ({"server": {**SERVER, "host": "a,b"}}, "must be one DNS name or IP address"),
    "a port that is none": ({"server": {**SERVER, "port": 99999}}, "less than or equal to 65535"),
    "headroom in words": ({"server": {**SERVER, "headroom": "some"}}, "a number of connections (0 or more) or a perc"),
    "no database": ({"databases": []}, "should have at least 1 items"),
    "a database with PgBouncer's own name": ({"databases": [{"name": "pgbouncer"}]}, "PgBouncer's own console"),
    "all databases": ({"databases": [{"name": "*"}]}, "it would have no limit"),
    "a database twice": ({"databases": [{"name": "shop"}, {"name": "shop"}]}, "Duplicate value"),
    "a line break in a name": (
        {"databases": [{"name": "shop\n%include /etc/passwd"}]},
        "must not hold control characters (line breaks, tabs, NUL)",
    ),
    "no user": ({"users": []}, "should have at least 1 items"),
    "an unknown mode": ({"poolMode": "turbo"}, 'supported values: "transaction", "session", "statement"'),
    "fewer than no pods": ({"replicas": -1}, "greater than or equal to 0"),
    "a line break in a parameter": (
        {"pgbouncer": {"parameters": {"verbose": "0\n%include x"}}},
        "verbose in body should match",
    ),
    "a parameter that is no name": (
        {"pgbouncer": {"parameters": {"verbose = 1\nx": 0}}},
        "names must be PgBouncer settings: lower case letters, digits and _ only",
    ),
    "a field with a slip of the pen": ({"replica": 3}, 'unknown field "spec.replica"'),
}


# Secrets that PgBouncer's files cannot carry.


def secret(namespace: str, name: str, **data: bytes) -> kit.Manifest:
    """A watched Secret with just these keys, byte for byte."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": {names.LABEL_WATCH: "true"}},
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def user(name: str, **more: str) -> kit.Manifest:
    """An item of spec.users."""
    return {"secretRef": {"name": name, **more}}


APP = user("app")
BROKEN = {
    "line-break": {"username": b"guest", "password": f"{MARK}\n%include /etc/passwd".encode()},
    "echoed": {"username": b"guest", "password": f"{MARK}\n".encode()},
    "nul": {"username": b"guest", "password": f"{MARK}\0".encode()},
    "no-text": {"username": b"guest", "password": MARK.encode() + b"\xff\xfe"},
    "empty": {"username": b"guest", "password": b""},
    "hash": {"username": b"guest", "password": b"md5" + b"0123456789abcdef" * 2},
    "admin-console": {"username": b"pgbouncer", "password": MARK.encode()},
    "no-certificate": {"ca.crt": MARK.encode()},
}


@dataclass(frozen=True)
class Edit:
    """An edit that leaves the pool stalled, and what it is told."""

    fields: kit.Manifest
    reason: str
    words: tuple[str, ...]  # the thing and the remedy


def of_users(*users: kit.Manifest) -> kit.Manifest:
    return {"users": [APP, *users]}


def of_parameter(name: str, value: int | str) -> kit.Manifest:
    return {"pgbouncer": {"parameters": {name: value}}}


EDITS: dict[str, Edit] = {
    "a Secret that is not there": Edit(
        of_users(user("nobody")),
        "SecretNotFound",
        ('Secret "nobody" (users[1].secretRef) does not exist', "Create it."),
    ),
    "a key that is not there": Edit(
        of_users(user("app", passwordKey="pass")),
        "SecretKeyNotFound",
        ('Secret "app" has no key "pass"', "it has: password, username", "Set users[1].secretRef.passwordKey or add"),
    ),
    "a user twice": Edit(of_users(APP), "InvalidSpec", ("users[1]", "of an earlier user; remove one of them")),
    "a line break in a password": Edit(
        of_users(user("line-break")), "InvalidCredentials", ('Secret "line-break"', "line feed", "Write it anew.")
    ),
    "a password that somebody echoed": Edit(
        of_users(user("echoed")), "InvalidCredentials", ('Secret "echoed"', "`echo` ends its output", "use printf")
    ),
    "NUL in a password": Edit(of_users(user("nul")), "InvalidCredentials", ('Secret "nul"', "NUL", "Write it anew.")),
    "bytes for a password": Edit(
        of_users(user("no-text")), "InvalidCredentials", ('Key "password" of Secret "no-text" is not UTF-8',)
    ),
    "no password": Edit(of_users(user("empty")), "InvalidCredentials", ('Secret "empty"', "is empty")),
    "a hash for a password": Edit(
        of_users(user("hash")), "InvalidCredentials", ('Secret "hash"', "PgBouncer needs the password itself")
    ),
    "a user with PgBouncer's own name": Edit(
        of_users(user("admin-console")), "InvalidCredentials", ('Secret "admin-console"', "admin console's")
    ),
    "a CA that is none": Edit(
        {"server": {"tls": {"caSecretRef": {"name": "no-certificate"}}}},
        "InvalidCertificate",
        ('Key "ca.crt" of Secret "no-certificate" holds no certificate in PEM', "Write it anew."),
    ),
    "a parameter that decides connections": Edit(
        of_parameter("max_db_connections", 1000),
        "ParameterNotAllowed",
        ('Parameter "max_db_connections" is not allowed', "the PgServer's maxConnections and headroom"),
    ),
    "a parameter that nobody knows": Edit(
        of_parameter("query_wait_timout", 5),
        "ParameterNotAllowed",
        ('Parameter "query_wait_timout"', 'Did you mean "query_wait_timeout"?'),
    ),
    "a parameter with a value that is none": Edit(
        of_parameter("query_wait_timeout", "soon"),
        "ParameterNotAllowed",
        ('Parameter "query_wait_timeout" must be seconds from 0',),
    ),
    "more replicas than connections": Edit(
        {"replicas": 40},
        "BudgetTooSmall",
        ("40 replicas x 1 databases + 1 in reserve", f'of PgServer "shop" is {BUDGET}', "Set replicas to 16 or less"),
    ),
    "a template of another shape": Edit(
        {"template": {"spec": {"containers": "none"}}}, "InvalidTemplate", ("spec.template", "spec.containers")
    ),
    "a template that no pod can have": Edit(
        {"template": {"spec": {"containers": [{"name": "beside"}]}}},
        "InvalidTemplate",
        ('The API server refuses Deployment "shop"', "image"),
    ),
}


# Pools that cannot have their server: changes of GOOD.

BEGINNINGS: dict[str, tuple[kit.Manifest, str, tuple[str, ...]]] = {
    "a PgServer that does not exist": (
        {"serverRef": {"name": "main"}},
        "ServerNotFound",
        ('PgServer "main" does not exist in namespace', "Create it."),
    ),
    "a PgServer of another namespace": (
        {"serverRef": {"name": "main", "namespace": "demo"}},
        "ServerNotFound",
        ('PgServer "main" does not exist in namespace "demo"', "Create it."),
    ),
}


# Strings that try to leave their place, and are possible all the same.

HOSTILE_ROLE = 'e2e "o\'neil"; %include /etc/passwd #\\'
HOSTILE_PASSWORD = f'\'{MARK}" host=evil ;\\ %include "x" \'\' ""'
HOSTILE_DATABASE = '* = host=evil "shop" ;%include x'
