"""From `kubectl apply` to an answer: grants as PgBouncer has loaded them, 500 clients at once, modes, roles, TLS."""

import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from poolfleet.api import names
from tests.e2e import kit

BUDGET = 40 - 3  # maxConnections less superuser_reserved_connections; no headroom, no admin Secret
REPORTING = "e2e_serving_reporting"  # a role of the server that no client knows

Report = Callable[[str], None]


@pytest.fixture(scope="module")
def pool(kubectl: kit.Kubectl, target: kit.Target, namespace: str, report: Report) -> kit.Pool:
    """A PgPool with an inline server, applied and waited for."""
    pool = kit.Pool(kubectl, namespace, "shop")
    seconds = pool.ready(timeout=60, since=pool.apply(target.spec(replicas=2)))
    report(f"apply → Ready: {seconds:.1f} s (two pods)")
    assert seconds <= 20
    return pool


class TestOnePool:
    def test_psql_gets_its_query_through(self, postgres: kit.Postgres, target: kit.Target, pool: kit.Pool) -> None:
        assert postgres.psql(target.through(pool), "SELECT current_user") == target.login.user

    def test_the_uri_in_the_binding_secret_is_all_an_application_needs(
        self, kubectl: kit.Kubectl, postgres: kit.Postgres, target: kit.Target, pool: kit.Pool
    ) -> None:
        binding = kubectl.secret(pool.namespace, pool.status()["binding"]["name"])
        script = 'read -r uri; exec psql -XAtq "$uri" -c "SELECT current_user"'
        said = kubectl.exec(postgres.namespace, "postgres-0", "bash", "-c", script, stdin=binding["uri"] + "\n")
        assert said.strip() == target.login.user

    def test_every_pod_has_loaded_the_grant_that_directive_and_ledger_name(
        self, kubectl: kit.Kubectl, pool: kit.Pool
    ) -> None:
        loaded = await_grants(kubectl, pool)
        assert len(loaded) == 2
        for pod in pool.pods():
            databases = loaded[pod["metadata"]["name"]]
            directive = json.loads(pod["metadata"]["annotations"][names.DIRECTIVE])
            assert directive["grant"] == {name: size for name, (size, _) in databases.items()}
        assert sum(size for databases in loaded.values() for size, _ in databases.values()) <= BUDGET

    def test_500_clients_at_once_are_all_served_within_the_budget(
        self, postgres: kit.Postgres, target: kit.Target, pool: kit.Pool, clients: kit.Clients, report: Report
    ) -> None:
        with kit.Sampler(postgres) as sampler:
            storm = clients.run("storm", target.through(pool), "--clients", "500", "--queries", "3")[-1]
        peak = sampler.peak(target.login.user)
        report(
            f"500 clients at once: {storm['served']} served, {storm['refused']} refused, {storm['failed']} failed in "
            f"{storm['wall_s']:.1f} s; at most {peak} server connections of {BUDGET} in {len(sampler.samples)} samples"
        )
        assert (storm["served"], storm["refused"], storm["failed"]) == (500, 0, 0)
        assert BUDGET // 2 < peak <= BUDGET  # the storm did press against it


@pytest.fixture(scope="module")
def guest(postgres: kit.Postgres, kubectl: kit.Kubectl, namespace: str) -> Iterator[kit.Login]:
    """A client that PostgreSQL has never heard of, and the role REPORTING in whose name it may work."""
    postgres.sql(f"DROP ROLE IF EXISTS {REPORTING}; CREATE ROLE {REPORTING} LOGIN PASSWORD 'reporting''s own'")
    kubectl.apply(
        kit.basic_auth(namespace, "guest", "guest", "a guest's password"),
        kit.basic_auth(namespace, "reporting-role", REPORTING, "reporting's own"),
    )
    yield kit.Login("", names.PGBOUNCER_PORT, "guest", "a guest's password", "reports")
    postgres.sql(f"DROP ROLE {REPORTING}")


@pytest.fixture(scope="module")
def several(kubectl: kit.Kubectl, target: kit.Target, guest: kit.Login, namespace: str) -> kit.Pool:
    """A PgPool that refers to a PgServer, with three databases in front of one, and two users."""
    kubectl.apply(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.SERVER_KIND,
            "metadata": {"name": "main", "namespace": namespace},
            "spec": {"host": target.other_host("main"), "maxConnections": 30, "headroom": "10%"},
        }
    )
    real = target.login.database
    pool = kit.Pool(kubectl, namespace, "several")
    pool.apply(
        {
            "serverRef": {"name": "main"},
            "replicas": 2,
            "databases": [
                {"name": "shop", "serverDatabase": real},
                {"name": "shop_session", "serverDatabase": real, "poolMode": "session"},
                {"name": "reports", "serverDatabase": real, "credentialsSecretRef": {"name": "reporting-role"}},
            ],
            "users": [{"secretRef": {"name": target.SECRET}}, {"secretRef": {"name": guest.user}}],
        }
    )
    pool.ready()
    return pool


@pytest.fixture(scope="module")
def steady(pool: kit.Pool, target: kit.Target, clients: kit.Clients) -> Iterator["Steady"]:
    """Clients that connect for every query, beside all that follows; it ends when the last test has looked at it."""
    load = ("--clients", "8", "--query-ms", "200", "--interval-ms", "200", "--until-eof")
    with Changes(pool, "pgpool") as of_pool, Changes(pool, "pgserver") as of_server:
        yield Steady(clients.start("steady", target.through(pool), *load), of_pool, of_server)


@pytest.mark.usefixtures("steady")
class TestSeveralDatabasesAndUsers:
    def test_the_pgserver_is_shared_out_over_databases_and_pods(self, kubectl: kit.Kubectl, several: kit.Pool) -> None:
        loaded = await_grants(kubectl, several, server="main")
        assert [set(databases) for databases in loaded.values()] == [{"shop", "shop_session", "reports"}] * 2
        total = sum(size for databases in loaded.values() for size, _ in databases.values())
        assert 6 < total <= 30 - 3 - 3  # 10 % of 30 are headroom

    def test_clients_log_in_as_themselves_or_work_in_the_name_of_a_forced_role(
        self, postgres: kit.Postgres, target: kit.Target, guest: kit.Login, several: kit.Pool
    ) -> None:
        def who(client: kit.Login, database: str) -> str:
            login = kit.Login(target.through(several).host, client.port, client.user, client.password, database)
            return postgres.psql(login, "SELECT current_user")

        client = target.through(several)
        assert who(client, "shop") == client.user
        assert who(client, "reports") == REPORTING
        assert who(guest, "reports") == REPORTING
        with pytest.raises(kit.KubectlError, match=r'FATAL: .* "guest"'):
            who(guest, "shop")  # PostgreSQL knows no such role

    def test_transaction_and_session_mode_stand_side_by_side(
        self, kubectl: kit.Kubectl, target: kit.Target, clients: kit.Clients, several: kit.Pool
    ) -> None:
        for pod, ip in several.ips().items():
            modes = {row["name"]: row["pool_mode"] for row in several.show_on(pod, "DATABASES")}
            assert (modes["shop"], modes["shop_session"]) == ("transaction", "session")
            one_pod = target.through(several, host=ip)
            shared = backends_of_two_idle_clients(clients, one_pod, "shop")
            own = backends_of_two_idle_clients(clients, one_pod, "shop_session")
            assert (len(set(shared)), len(set(own))) == (1, 2)


class TestServerTls:
    """The demo's PostgreSQL offers TLS with a certificate of its own; these pools insist on it."""

    def test_the_server_is_verified_and_one_of_another_ca_is_refused(
        self, kubectl: kit.Kubectl, postgres: kit.Postgres, target: kit.Target, namespace: str
    ) -> None:
        pool = kit.Pool(kubectl, namespace, "secure")
        server = {"host": postgres.host, "maxConnections": 20}  # a name that its certificate has
        pool.apply(target.spec(replicas=1, server={**server, "tls": {"mode": "require"}}))
        pool.ready()
        pods = pool.uids()
        assert uses_tls(postgres, target.through(pool)) == "t"

        ca_of_somebody_else = make_ca(postgres)
        kubectl.apply(ca_secret(namespace, ca_of_somebody_else))
        verify = {"mode": "verify-full", "caSecretRef": {"name": "server-ca", "key": "ca.crt"}}
        pool.patch(server={**server, "tls": verify})
        assert postgres.host in pool.condition("ServerReachable", "False", "Unreachable")

        kubectl.apply(ca_secret(namespace, postgres_ca(postgres)))
        pool.condition("ServerReachable", "True", "Reachable", timeout=40)
        assert uses_tls(postgres, target.through(pool)) == "t"
        assert pool.uids() == pods  # all of it by reloading


class TestSteadyClients:
    """They have queried the first pool all the time that the other pools were tested."""

    def test_they_are_worth_one_status_write_in_15_seconds(self, steady: "Steady", report: Report) -> None:
        kit.await_until(lambda: len(steady.pool_changes.times) >= 2, 40, "clients active, in the status, move twice")
        lines = steady.clients.stop()
        summary = lines[-1]["summary"]
        for what, changes in (("PgPool", steady.pool_changes), ("PgServer", steady.server_changes)):
            seconds, times = summary["seconds"], changes.times
            report(
                f"steady clients, {summary['queries']} queries in {seconds:.0f} s: {len(times)} writes of the {what}"
            )
            assert len(times) <= seconds / 15 + 1
            assert all(later - earlier >= 14 for earlier, later in itertools.pairwise(times))
        assert summary["failed"] == 0, lines[:5]


def await_grants(kubectl: kit.Kubectl, pool: kit.Pool, server: str = "") -> dict[str, dict[str, tuple[int, int]]]:
    """Wait until each pod has loaded just what the ledger says, as pool_size and as max_db_connections.

    Returns pod to database to (pool_size, max_db_connections).
    """

    def agreed() -> dict[str, dict[str, tuple[int, int]]] | None:
        bounds = kit.bounds(kubectl, pool.namespace, server or pool.name)
        loaded = pool.loaded()
        flat = {(pod, name): sizes for pod, databases in loaded.items() for name, sizes in databases.items()}
        return loaded if flat == {key: (bound, bound) for key, bound in bounds.items()} else None

    return kit.await_until(agreed, 20, "SHOW DATABASES of every pod is what the ledger says") or {}


TWO_CLIENTS = """
import json, sys, psycopg
login = json.load(sys.stdin)
with psycopg.connect(**login, autocommit=True) as one, psycopg.connect(**login, autocommit=True) as two:
    print(json.dumps([c.execute("SELECT pg_backend_pid()").fetchone()[0] for c in (one, two)]))
"""


def backends_of_two_idle_clients(clients: kit.Clients, login: kit.Login, database: str) -> list[int]:
    """The backends that answered two clients, both connected all the time, one after the other."""
    where = {"host": login.host, "port": login.port, "user": login.user, "password": login.password, "dbname": database}
    said = clients.kubectl.exec(
        clients.namespace, clients.POD, "python3", "-c", TWO_CLIENTS, stdin=json.dumps({**where, "sslmode": "disable"})
    )
    pids: list[int] = json.loads(said)
    return pids


def uses_tls(postgres: kit.Postgres, login: kit.Login) -> str:
    """Whether the server connection of this login is encrypted: t or f."""
    return postgres.psql(login, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")


def postgres_ca(postgres: kit.Postgres) -> str:
    """The certificate that the demo's PostgreSQL shows; it has signed itself."""
    return postgres.sql("SELECT pg_read_file('server.crt')")[0][0]


def make_ca(postgres: kit.Postgres) -> str:
    """A certificate that has nothing to do with the server."""
    openssl = "openssl req -x509 -quiet -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 1"
    return postgres.kubectl.exec(
        postgres.namespace, "postgres-0", "bash", "-c", f"{openssl} -subj /CN=postgres -keyout /dev/null"
    )


def ca_secret(namespace: str, certificate: str) -> kit.Manifest:
    """The Secret with the CA, watched."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "server-ca", "namespace": namespace, "labels": {names.LABEL_WATCH: "true"}},
        "stringData": {"ca.crt": certificate},
    }


@dataclass(frozen=True)
class Steady:
    """Clients that query all the time, and what the status makes of them."""

    clients: kit.Running
    pool_changes: "Changes"
    server_changes: "Changes"


class Changes:
    """When an object of the pool's name has changed, as a watch shows it, but for its grants.

    These follow demand, and the 500 clients of the test before have only just gone.
    """

    def __init__(self, pool: kit.Pool, kind: str) -> None:
        grants = "{.status.poolSize}{.status.connections.granted}{.status.ledger}{'\\n'}"
        self._watch = pool.kubectl.popen(
            "-n", pool.namespace, "get", kind, pool.name, "--watch", "-o", f"jsonpath={grants}", stdout=subprocess.PIPE
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._lines: list[tuple[float, str]] = []

    @property
    def times(self) -> list[float]:
        """Seconds since the epoch of each change; the first line of a watch is how it was."""
        pairs = itertools.pairwise(self._lines)
        return [when for (_, before), (when, grants) in pairs if grants == before]

    def __enter__(self) -> "Changes":
        self._thread.start()
        kit.await_until(lambda: self._lines, 20, "a watch")
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.kill()
        self._thread.join(10)

    def _read(self) -> None:
        assert self._watch.stdout is not None
        with self._watch:
            for line in self._watch.stdout:
                self._lines.append((time.time(), line))
