"""TLS everywhere: clients to PgBouncer, PgBouncer and the operator to PostgreSQL; renewals, and what goes wrong.

The PostgreSQL here takes nobody over TCP without TLS, SCRAM and a certificate of the test's own CA.
"""

import base64
import hashlib
import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from poolfleet.api import names
from tests.certificates import FOR_CLIENTS, FOR_SERVERS, Authority, Pair
from tests.e2e import kit

Report = Callable[[str], None]

SERVER = "db"
HBA = """local all all trust
host all weak all md5
hostssl all all all scram-sha-256 clientcert=verify-ca
"""
PUT = """
set -eu; cd "$PGDATA"; umask 077
read -r certificate; read -r key; read -r ca; read -r hba
for file in server.crt=$certificate server.key=$key ca.crt=$ca pg_hba.conf=$hba; do
  base64 -d <<<"${file#*=}" >"${file%%=*}"
done
psql -qXU postgres -c "ALTER SYSTEM SET ssl_ca_file = 'ca.crt'" -c 'SELECT pg_reload_conf()'
"""

CLIENT = """
import hashlib, json, os, socket, ssl, struct, sys, tempfile, psycopg

def shown(host, port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, port), 10) as plain:
        plain.sendall(struct.pack("!ii", 8, 80877103))
        assert plain.recv(1) == b"S", "no TLS"
        with context.wrap_socket(plain) as secure:
            return hashlib.sha256(secure.getpeercert(True)).hexdigest()

said = []
with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
    for number, (do, what) in enumerate(json.load(sys.stdin)):
        for option in ("sslrootcert", "sslcert", "sslkey"):
            if option in what:
                path = os.path.join(folder, f"{number}-{option}")
                with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                    file.write(what[option])
                what[option] = path
        try:
            if do == "shown":
                said.append(shown(what["host"], what["port"]))
                continue
            uri = what.pop("uri", "")
            with psycopg.connect(uri, **what, connect_timeout=20, autocommit=True) as connection:
                sql = "SELECT ssl AND client_dn = '/CN=pooler' FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
                said.append(connection.execute(sql).fetchone()[0])
        except Exception as error:
            said.append(f"{error}")
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Place:
    """The server, its CAs, and who may do what."""

    kubectl: kit.Kubectl
    namespace: str
    postgres: kit.Postgres
    login: kit.Login  # straight to PostgreSQL
    of_servers: Authority  # of PostgreSQL's and of the pools' certificates
    of_clients: Authority  # of those that clients and poolers show
    clients: kit.Clients

    def put(self, name: str, **data: bytes | None) -> None:
        """Write a Secret, watched: keys with _ for the dot."""
        content = {key.replace("_", "."): value.decode() for key, value in data.items() if value is not None}
        metadata = {"name": name, "namespace": self.namespace, "labels": {names.LABEL_WATCH: "true"}}
        self.kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": content})

    def pool(self, name: str, **tls: Any) -> kit.Pool:
        """A PgPool with two pods, TLS for its clients."""
        pool = kit.Pool(self.kubectl, self.namespace, name)
        spec = {
            "serverRef": {"name": SERVER},
            "databases": [{"name": self.login.database}],
            "users": [{"secretRef": {"name": "app"}}],
            "tls": {"secretRef": {"name": f"{name}-tls"}, **tls},
            "pgbouncer": {"parameters": {"query_wait_timeout": 8}},
        }
        pool.apply(spec)
        return pool

    def certificate(self, pool: str, **more: Any) -> Pair:
        """A new certificate for the Service of a pool."""
        host = f"{pool}.{self.namespace}.svc"
        return self.of_servers.issue(pool, [host, f"{host}.cluster.local"], use=FOR_SERVERS, **more)

    def attempt(self, pool: kit.Pool, sslmode: str = "verify-full", pair: Pair | None = None, **more: Any) -> Any:
        """An attempt to connect, for `outcomes`."""
        where = {
            "host": f"{pool.name}.{self.namespace}.svc",
            "port": names.PGBOUNCER_PORT,
            "dbname": self.login.database,
        }
        login = {**where, "user": self.login.user, "password": self.login.password, "sslmode": sslmode}
        shown = {} if pair is None else {"sslcert": pair.certificate.decode(), "sslkey": pair.key.decode()}
        if sslmode == "verify-full":  # with a CA at hand libpq checks in mode `require`, too
            shown["sslrootcert"] = self.of_servers.certificate.decode()
        return "query", {**login, **shown, **more}

    def outcomes(self, *attempts: Any) -> list[Any]:
        """What became of each: True, or the error's words; of "shown" the certificate's hash."""
        command = ("python3", "-c", CLIENT)
        said = self.kubectl.exec(self.namespace, self.clients.POD, *command, stdin=json.dumps(attempts), timeout=90)
        found: list[Any] = json.loads(said)
        return found

    def await_shown(self, pool: kit.Pool, pair: Pair, timeout: float = 20) -> float:
        """Wait until every pod shows this certificate; the seconds that took."""
        begun = time.time()
        wanted = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pair.certificate.decode())).hexdigest()
        attempts = [("shown", {"host": ip, "port": names.PGBOUNCER_PORT}) for ip in pool.ips().values()]
        kit.await_until(lambda: set(self.outcomes(*attempts)) == {wanted}, timeout, f"all pods of {pool.name} show it")
        return time.time() - begun


@pytest.fixture(scope="module")
def place(kubectl: kit.Kubectl, namespace: str, clients: kit.Clients) -> Place:
    postgres = kit.Postgres(kubectl, namespace).ensure()
    kubectl.namespace(namespace)  # its labels, which the demo's namespace does not have
    password = secrets.token_urlsafe(18)
    postgres.make("app", password)
    now = time.time()
    login = kit.Login(postgres.host, 5432, "app", password, "app")
    place = Place(kubectl, namespace, postgres, login, Authority("servers", now), Authority("clients", now), clients)
    shown = place.of_servers.issue("postgres", [postgres.host], use=FOR_SERVERS)
    lines = (shown.certificate, shown.key, place.of_clients.certificate, HBA.encode())
    stdin = "".join(f"{base64.b64encode(line).decode()}\n" for line in lines)
    kubectl.exec(namespace, "postgres-0", "bash", "-c", PUT, stdin=stdin)
    kit.await_until(lambda: postgres.sql("SHOW ssl_ca_file") == [["ca.crt"]], 10, "PostgreSQL has read its files")
    pooler = place.of_clients.issue("pooler", use=FOR_CLIENTS)
    place.put("pooler", tls_crt=pooler.certificate, tls_key=pooler.key)
    place.put("server-ca", ca_crt=place.of_servers.certificate)
    kubectl.apply(kit.basic_auth(namespace, "app", "app", password))
    tls = {
        "mode": "verify-full",
        "caSecretRef": {"name": "server-ca"},
        "clientCertSecretRef": {"name": "pooler"},
    }
    admin = {"name": kit.Target.ADMIN_SECRET}
    kubectl.apply(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.SERVER_KIND,
            "metadata": {"name": SERVER, "namespace": namespace},
            "spec": {"host": postgres.host, "adminSecretRef": admin, "tls": tls},
        }
    )
    return place


@pytest.fixture(scope="module")
def required(place: Place) -> kit.Pool:
    """A pool that takes clients over TLS only."""
    pair = place.certificate("required")
    place.put("required-tls", tls_crt=pair.certificate, tls_key=pair.key, ca_crt=place.of_servers.certificate)
    return place.pool("required", mode="require")


@pytest.fixture(scope="module")
def mutual(place: Place) -> kit.Pool:
    """A pool whose clients must show a certificate as well."""
    pair = place.certificate("mutual")
    place.put("mutual-tls", tls_crt=pair.certificate, tls_key=pair.key, ca_crt=place.of_clients.certificate)
    return place.pool("mutual", mode="verify-ca")


@pytest.fixture
def under_load(place: Place, required: kit.Pool) -> Iterator[None]:
    """Clients of `required` that connect for some queries; afterwards not one of them has failed."""
    where = kit.Login(f"required.{place.namespace}.svc", names.PGBOUNCER_PORT, "app", place.login.password, "app")
    options = ("--until-eof", "--clients", "6", "--interval-ms", "20", "--queries", "5", "--sslmode", "require")
    running = place.clients.start("steady", where, *options)
    try:
        kit.await_until(running.lines, 20, "a first answer through the pool")
        yield
    finally:
        lines = running.stop()
    summary = lines[-1]["summary"]
    assert summary["queries"] > 50 and summary["failed"] == 0, [line for line in lines if "error" in line][:10]


def test_everything_is_encrypted_and_verified(place: Place, required: kit.Pool, mutual: kit.Pool) -> None:
    required.ready(90)
    mutual.ready(60)
    # The operator's own connection: nothing else says what the server's limit is.
    assert kit.server_status(place.kubectl, place.namespace, SERVER)["maxConnections"] == 100
    binding = place.kubectl.secret(place.namespace, "required-binding")
    assert binding["ca.crt"] == place.of_servers.certificate.decode()
    own, stranger = place.of_clients.issue("app"), place.of_servers.issue("app", use=FOR_CLIENTS)
    attempts = {
        "verified": place.attempt(required),
        "the binding": ("query", {"uri": binding["uri"]}),
        "verified and shown": place.attempt(mutual, pair=own),
        "plain": place.attempt(required, "disable"),
        "plain to the other": place.attempt(mutual, "disable", own),
        "nothing shown": place.attempt(mutual),
        "a stranger's": place.attempt(mutual, pair=stranger),
        "a wrong password": place.attempt(mutual, pair=own, password="another"),
    }
    found = dict(zip(attempts, place.outcomes(*attempts.values()), strict=True))
    refused = {
        "plain": "SSL required",
        "plain to the other": "SSL required",
        "nothing shown": "certificate required",
        "a stranger's": "unknown ca",
        "a wrong password": "authentication failed",
    }
    for what, outcome in found.items():
        assert outcome is True if what not in refused else refused[what] in outcome, (what, outcome)


def test_a_renewed_certificate_is_served_without_a_failed_query(
    place: Place, required: kit.Pool, under_load: None, report: Report
) -> None:
    pods = required.uids()
    for turn in range(2):
        pair = place.certificate("required")
        place.put("required-tls", tls_crt=pair.certificate, tls_key=pair.key, ca_crt=place.of_servers.certificate)
        report(f"TLS: renewed certificate {turn + 1} shown by all pods after {place.await_shown(required, pair):.1f} s")
    required.condition("CredentialsCurrent", "True", "Loaded")
    # What the server is shown is renewed the same way.
    pooler = place.of_clients.issue("pooler", use=FOR_CLIENTS)
    place.put("pooler", tls_crt=pooler.certificate, tls_key=pooler.key)
    required.condition("CredentialsCurrent", "True", "Loaded")
    assert place.outcomes(place.attempt(required)) == [True]
    assert required.uids() == pods


def test_a_wrong_certificate_is_told_and_the_last_good_one_serves(
    place: Place, required: kit.Pool, under_load: None
) -> None:
    good, other = place.certificate("required"), place.certificate("required")
    ca = place.of_servers.certificate
    place.put("required-tls", tls_crt=good.certificate, tls_key=good.key, ca_crt=ca)
    place.await_shown(required, good)
    expired = place.certificate("required", end=time.time() - 60)
    for reason, words, pair in (
        ("InvalidCertificate", "do not belong together", Pair(good.certificate, other.key)),
        ("CertificateExpired", "expired at", expired),
        ("InvalidCertificate", "holds no private key", Pair(good.certificate, b"nonsense")),
    ):
        place.put("required-tls", tls_crt=pair.certificate, tls_key=pair.key, ca_crt=ca)
        assert words in required.condition("CredentialsCurrent", "False", reason)
        assert 'Secret "required-tls"' in required.condition("Stalled", "True", reason)
        assert required.conditions()["Ready"]["status"] == "True"
    place.await_shown(required, good, timeout=5)
    place.put("required-tls", tls_crt=good.certificate, tls_key=good.key, ca_crt=ca)
    required.condition("CredentialsCurrent", "True", "Loaded")


def test_one_that_expires_in_force_is_told_and_goes_on(place: Place, mutual: kit.Pool) -> None:
    short = place.certificate("mutual", end=time.time() + 8)
    place.put("mutual-tls", tls_crt=short.certificate, tls_key=short.key, ca_crt=place.of_clients.certificate)
    place.await_shown(mutual, short, timeout=6)
    assert "It stays in force" in mutual.condition("CredentialsCurrent", "False", "CertificateExpired")
    assert mutual.conditions()["Stalled"]["status"] == "False"
    mutual.patch(maxClientConnections=500)  # anything that needs a new configuration
    kit.await_until(lambda: mutual.setting("max_client_conn") == {"500"}, 20, "it is loaded all the same")
    own = place.of_clients.issue("app")
    unchecked, checked = place.outcomes(place.attempt(mutual, "require", own), place.attempt(mutual, pair=own))
    assert unchecked is True
    assert "certificate verify failed" in checked
    good = place.certificate("mutual")
    place.put("mutual-tls", tls_crt=good.certificate, tls_key=good.key, ca_crt=place.of_clients.certificate)
    mutual.condition("CredentialsCurrent", "True", "Loaded")


def test_another_ca_of_the_server_is_told(place: Place, required: kit.Pool) -> None:
    place.put("server-ca", ca_crt=place.of_clients.certificate)
    try:
        kit.await_until(lambda: "certificate verify failed" in of_server(place), 20, "the PgServer says so")
        required.condition("CredentialsCurrent", "True", "Loaded")
        # What is connected goes on; PgBouncer looks at the CA when it connects the next time.
        assert place.outcomes(place.attempt(required)) == [True]
        place.postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
        each = [place.attempt(required, "require", host=ip) for ip in required.ips().values()]
        assert True not in place.outcomes(*each)
        assert f'tls of PgServer "{SERVER}"' in required.condition("ServerReachable", "False", "Unreachable")
    finally:
        place.put("server-ca", ca_crt=place.of_servers.certificate)
    required.condition("ServerReachable", "True", "Reachable", timeout=40)
    required.ready()


def of_server(place: Place) -> str:
    """What the PgServer's condition ServerReachable says is wrong, "" for nothing."""
    found = kit.server_status(place.kubectl, place.namespace, SERVER).get("conditions") or ()
    return next((c["message"] for c in found if c["type"] == "ServerReachable" and c["status"] == "False"), "")


def test_the_admins_password_is_never_given_as_md5(place: Place, required: kit.Pool) -> None:
    name = kit.Target.ADMIN_SECRET
    before, weak = place.kubectl.secret(place.namespace, name), secrets.token_urlsafe(18)
    place.postgres.sql("SET password_encryption = 'md5'; CREATE ROLE weak LOGIN PASSWORD '" + weak + "'")
    place.kubectl.apply(kit.basic_auth(place.namespace, name, "weak", weak))

    kit.await_until(lambda: "SCRAM only" in of_server(place), 20, "the PgServer says so")
    assert weak not in of_server(place)
    assert place.outcomes(place.attempt(required)) == [True]
    place.kubectl.apply(kit.basic_auth(place.namespace, name, before["username"], before["password"]))
    kit.await_until(lambda: not of_server(place), 20, "it is well again")
