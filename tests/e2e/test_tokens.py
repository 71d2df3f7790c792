"""A role whose password a command in the operator's pod really changes every 15 s, and a pool that serves through it.

The release is upgraded with the command, and put back at the end.
"""

import itertools
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e import kit
from tests.e2e.release import Images

ROLE, VENDOR = "e2e_tokens_vended", "e2e_tokens_vendor"
SECRET = "e2e-tokens-vendor"
FOLDER = "/opt/vend"
LIFE = 30  # seconds of a token; the next one is made after less than half of a life as short as this
CHANGES = 2
SERVER_LIFETIME = 8  # seconds: no connection outlives a token, so that each of them has to log in

VEND = f"""
import json, os, pathlib, secrets
import psycopg
from psycopg import sql

token = secrets.token_urlsafe(1500)
password = (pathlib.Path(__file__).parent / "password").read_text()
where = {{"host": os.environ["POOLFLEET_HOST"], "port": os.environ["POOLFLEET_PORT"]}}
with psycopg.connect(**where, user="{VENDOR}", password=password, dbname="postgres") as connection:
    alter = sql.SQL("ALTER ROLE {{}} PASSWORD {{}}")
    connection.execute(alter.format(sql.Identifier(os.environ["POOLFLEET_ROLE"]), sql.Literal(token)))
print(json.dumps({{"token": token, "expiresInSeconds": {LIFE}}}))
"""

Report = Callable[[str], None]


@dataclass
class Vendor:
    """The role that changes passwords, and what it has changed."""

    postgres: kit.Postgres

    def may(self, log_in: bool) -> None:
        self.postgres.sql(f"ALTER ROLE {VENDOR} {'LOGIN' if log_in else 'NOLOGIN'}")

    def stored(self) -> str:
        """A hash of what PostgreSQL has of the password now."""
        return self.postgres.sql(f"SELECT md5(rolpassword) FROM pg_authid WHERE rolname = '{ROLE}'")[0][0]

    def logins(self, since: float) -> bool:
        """Whether the role has logged in after that moment (seconds since the epoch)."""
        where = f"usename = '{ROLE}' AND backend_start > to_timestamp({since})"
        return self.postgres.sql(f"SELECT count(*) > 0 FROM pg_stat_activity WHERE {where}") == [["t"]]

    def await_change(self, before: str) -> str:
        return kit.await_until(
            lambda: now if (now := self.stored()) != before else "", LIFE, "another password", interval=0.3
        )


@pytest.fixture(scope="module")
def vendor(
    kubectl: kit.Kubectl, postgres: kit.Postgres, namespace: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Vendor]:
    """The release knows the command `vend`, for PgServers of the module's namespace."""
    password = secrets.token_urlsafe(18)
    postgres.sql(f"DROP ROLE IF EXISTS {ROLE}; DROP ROLE IF EXISTS {VENDOR}")
    postgres.sql(f"CREATE ROLE {ROLE} LOGIN; CREATE ROLE {VENDOR} LOGIN CREATEROLE PASSWORD {kit.quoted(password)}")
    postgres.sql(f"GRANT {ROLE} TO {VENDOR} WITH ADMIN OPTION")
    program = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": kit.SYSTEM_NAMESPACE}}
    kubectl.apply({**program, "stringData": {"vend.py": VEND, "password": password}})
    values = {
        "tokenCommands": {"vend": {"command": ["python3", f"{FOLDER}/vend.py"], "namespaces": [namespace]}},
        "operator": {
            "extraVolumes": [{"name": "vend", "secret": {"secretName": SECRET}}],
            "extraVolumeMounts": [{"name": "vend", "mountPath": FOLDER, "readOnly": True}],
        },
    }
    file = tmp_path_factory.mktemp("values") / "values.json"
    file.write_text(json.dumps(values))
    today = Images.of_release(kubectl)
    try:
        today.install("--values", str(file))
        yield Vendor(postgres)
    finally:
        today.install()
        kubectl.run("-n", kit.SYSTEM_NAMESPACE, "delete", "secret", SECRET)
        postgres.sql(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}; DROP ROLE {VENDOR}")


@pytest.fixture(scope="module")
def pool(kubectl: kit.Kubectl, namespace: str, target: kit.Target, vendor: Vendor) -> kit.Pool:
    """A pool whose Secret for the server names a role and has no password."""
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "role", "namespace": namespace},
            "stringData": {"username": ROLE},
        }
    )
    pool = kit.Pool(kubectl, namespace, "vended")
    server = {"host": target.login.host, "maxConnections": 40, "headroom": 0}
    spec = target.spec(
        replicas=2,
        server={**server, "tokenProvider": {"exec": {"name": "vend", "roles": [ROLE]}}},
        databases=[{"name": target.login.database, "credentialsSecretRef": {"name": "role"}}],
        pgbouncer={"parameters": {"server_lifetime": SERVER_LIFETIME}},
    )
    pool.apply(spec)
    pool.ready()
    return pool


def token(pool: kit.Pool) -> str:
    """The token in the pool's x-config."""
    ini = pool.kubectl.secret(pool.namespace, f"{pool.name}-config")["pgbouncer.ini"]
    return ini.partition(" password='")[2].partition("'")[0]


def test_it_serves_through_every_change_and_says_when_the_provider_breaks(
    vendor: Vendor, pool: kit.Pool, target: kit.Target, clients: kit.Clients, report: Report
) -> None:
    load = ("--clients", "6", "--interval-ms", "50", "--until-eof")
    steady = clients.start("steady", target.through(pool), *load)
    stored, tokens, times = vendor.stored(), [token(pool)], []
    try:
        for _ in range(CHANGES):
            stored = vendor.await_change(stored)
            times.append(time.time())
            kit.await_until(lambda: token(pool) not in tokens, 10, "the new token in x-config")
            tokens.append(token(pool))
            kit.await_until(lambda: vendor.logins(times[-1] + 2), SERVER_LIFETIME * 2, "a login with the new token")
        vendor.may(log_in=False)
        message = pool.condition("Stalled", "True", "TokenUnavailable", timeout=LIFE)
        assert f'role "{ROLE}"' in message and "is not permitted to log in" in message
        assert pool.conditions()["Ready"]["status"] == "True"
        old = vendor.stored()
        kit.await_until(
            lambda: "There is no token" in pool.condition("Stalled", "True", "TokenUnavailable"), LIFE, "it has ended"
        )
        assert token(pool) == tokens[-1] and vendor.stored() == old, "what was there last stays"
        vendor.may(log_in=True)
        pool.condition("Stalled", "False", "AsWished", timeout=40)
        kit.await_until(lambda: token(pool) not in tokens, 10, "the new token in x-config")
        tokens.append(token(pool))
    finally:
        lines = steady.stop()
    summary = lines[-1]["summary"]
    apart = ", ".join(f"{after - before:.0f}" for before, after in itertools.pairwise(times))
    failed = f"{summary['failed']} of {summary['queries']} queries failed"
    report(f"{CHANGES} changes of the role's password, {apart} s apart, and a broken provider: {failed}")
    assert summary["queries"] > 100 and summary["failed"] == 0, lines[:5]
    assert len(set(tokens)) == CHANGES + 2 and min(map(len, tokens)) == 2000
    assert [where for where, text in everything_told(pool) if any(token in text for token in tokens)] == []


def everything_told(pool: kit.Pool) -> Iterator[tuple[str, str]]:
    """(where, text): logs, events, objects, metrics."""
    kubectl, system = pool.kubectl, ("-n", kit.SYSTEM_NAMESPACE)
    own = ("-n", pool.namespace)
    operator = "app.kubernetes.io/component=operator"
    for arguments in (
        (*system, "logs", "-l", operator, "--tail=-1", "--prefix"),
        (*system, "get", "pods,configmaps,events", "-o", "yaml"),
        (
            *own,
            "logs",
            "-l",
            "poolfleet.dev/pool",
            "--all-containers",
            "--tail=-1",
            "--prefix",
            "--max-log-requests=20",
        ),
        (*own, "get", "pods,deployments,pgpools,pgservers,events,configmaps", "-o", "yaml"),
    ):
        text = kubectl.run(*arguments)
        assert len(text) > 100, arguments
        yield " ".join(arguments), text
