"""TLS with a real PostgreSQL and a real PgBouncer: the operator's connection, PgBouncer's two sides, a renewal."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolfleet.api import names
from poolfleet.pgbouncer import fill
from poolfleet.pgbouncer.admin import Connection
from poolfleet.pgbouncer.render import DatabaseLine, Settings, render_ini, render_userlist
from poolfleet.postgres.connection import Admin, Login, ServerError
from tests.certificates import Authority, Pair
from tests.integration.pgbouncer_fixtures import PgBouncer, Postgres, free_port, postgres, wait_until

CA, OTHER_CA = Authority("ours", time.time()), Authority("another", time.time())
WORD = "admin's word"
HBA = """
host all postgres 127.0.0.1/32 trust
host all trusted 127.0.0.1/32 trust
host all clear 127.0.0.1/32 password
host all hashed 127.0.0.1/32 md5
hostssl all certified 127.0.0.1/32 cert
hostssl all proved 127.0.0.1/32 scram-sha-256 clientcert=verify-ca
hostssl all all 127.0.0.1/32 scram-sha-256
"""


@pytest.fixture(scope="module")
def pg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("postgres")) as server:
        data = server.folder / "data"
        shown = CA.issue("server", ["127.0.0.1", "localhost"])
        for name, content in (("server.crt", shown.certificate), ("server.key", shown.key), ("ca.crt", CA.certificate)):
            (data / name).touch(mode=0o600)
            (data / name).write_bytes(content)
        for role in ("trusted", "clear", "hashed", "certified", "proved", "plain"):
            encryption = "md5" if role == "hashed" else "scram-sha-256"
            server.query(f"SET password_encryption = '{encryption}'; CREATE ROLE {role} LOGIN PASSWORD 'admin''s word'")
        (data / "pg_hba.conf").write_text(HBA)
        server.query("ALTER SYSTEM SET ssl_ca_file = 'ca.crt'")
        server.query("ALTER SYSTEM SET ssl = on")
        server.query("SELECT pg_reload_conf()")
        wait_until("TLS is on", lambda: server.query("SHOW ssl") == [("on",)])
        yield server


# The operator's own connection


def login(pg: Postgres, role: str, mode: str = "verify-full", pair: Pair | None = None, **more: Any) -> Login:
    made = Login("127.0.0.1", pg.port, role, WORD, mode, CA.certificate.decode())
    if pair is not None:
        made = replace(made, certificate=pair.certificate, key=pair.key)
    return replace(made, **more)


async def encrypted(login: Login) -> bool:
    """Log in; whether that is encrypted. Raises ServerError."""

    async def ask(connection: psycopg.AsyncConnection[Any]) -> bool:
        cursor = await connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        row = await cursor.fetchone()
        return bool(row and row[0])

    admin = Admin(login)
    try:
        return await admin.run(ask)
    finally:
        await admin.close()


async def refusal(login: Login) -> ServerError:
    with pytest.raises(ServerError) as refused:
        await encrypted(login)
    assert WORD not in str(refused.value) and "PRIVATE" not in str(refused.value)
    return refused.value


async def test_the_admin_verifies_the_server(pg: Postgres) -> None:
    assert await encrypted(login(pg, "plain"))
    assert await encrypted(login(pg, "plain", "prefer", ca=None))
    wrong = await refusal(login(pg, "plain", ca=OTHER_CA.certificate.decode()))
    assert "certificate verify failed" in str(wrong)
    nobodys = await refusal(login(pg, "plain", ca=None))
    assert "certificate verify failed" in str(nobodys)


async def test_the_admin_shows_a_certificate(pg: Postgres) -> None:
    assert await encrypted(login(pg, "proved", pair=CA.issue("anybody")))
    assert await encrypted(login(pg, "certified", pair=CA.issue("certified")))
    none = await refusal(login(pg, "proved"))
    assert "requires a valid client certificate" in str(none)
    another = await refusal(login(pg, "proved", pair=OTHER_CA.issue("anybody")))
    assert "unknown ca" in str(another)
    expired = await refusal(login(pg, "proved", pair=CA.issue("old", end=time.time() - 60)))
    assert "certificate expired" in str(expired)


async def test_no_key_is_left_on_the_disk(pg: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert await encrypted(login(pg, "proved", pair=CA.issue("anybody")))
    assert list(tmp_path.iterdir()) == []


async def test_the_admins_password_is_given_by_scram_only(pg: Postgres) -> None:
    for role in ("clear", "hashed"):
        weak = await refusal(login(pg, role))
        assert weak.refused
        assert "SCRAM only" in str(weak)
    assert await encrypted(login(pg, "trusted"))


# PgBouncer


class Bouncer:
    """A PgBouncer whose files the test writes, as the agent does."""

    def __init__(self, folder: Path, pg: Postgres) -> None:
        self.run = folder / "run"
        self.run.mkdir()
        self.port, self.pg, self.turn = free_port(), pg, 0
        self.process = PgBouncer(self.run, self.port)

    def put(self, role: str = "plain", files: Mapping[str, bytes] | None = None, **settings: Any) -> None:
        """Write the files, and have them loaded if it runs."""
        self.turn += 1
        line = DatabaseLine("shop", "127.0.0.1", self.pg.port, "postgres", role, WORD)
        given = Settings(50, run_dir=str(self.run), port=self.port, **settings)
        text = fill.fill(render_ini([line], given), {"shop": 3}, f"cfg-{self.turn}")
        users = {names.USERLIST_FILE: render_userlist({"app": "app's word"}).encode()}
        for name, content in {names.INI_FILE: text.encode(), **users, **(files or {})}.items():
            (self.run / f"{name}.new").write_bytes(content)
            (self.run / f"{name}.new").replace(self.run / name)
        if self.process.process is None:
            self.process.start()
            wait_until("PgBouncer answers", self.socket.exists)
        else:
            self.console("RELOAD")

    @property
    def socket(self) -> Path:
        return self.run / f".s.PGSQL.{self.port}"

    def console(self, command: str) -> None:
        async def ask() -> None:
            connection = await Connection.open(str(self.socket), user="pgbouncer", database="pgbouncer")
            await connection.query(command)
            connection.close()

        asyncio.run(ask())

    def client(self, sslmode: str = "verify-full", **more: Any) -> psycopg.Connection[Any]:
        where: dict[str, Any] = {"host": "127.0.0.1", "port": self.port, "user": "app", "password": "app's word"}
        where |= {"dbname": "shop", "sslmode": sslmode, "connect_timeout": 10, **more}
        return psycopg.connect(**where, autocommit=True)

    def refuses(self, words: str, **more: Any) -> None:
        with pytest.raises(psycopg.OperationalError) as refused:
            self.client(**more)
        assert words in str(refused.value)


@pytest.fixture
def bouncer(tmp_path: Path, pg: Postgres) -> Iterator[Bouncer]:
    made = Bouncer(tmp_path, pg)
    try:
        yield made
    finally:
        made.process.stop()


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes], str]:
    """Write a file for a client, and return its path."""

    def written(name: str, content: bytes) -> str:
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return written


Put = Callable[[str, bytes], str]


def one(connection: psycopg.Connection[Any], sql: bytes) -> object:
    row = connection.execute(sql).fetchone()
    return row and row[0]


def to_clients(pair: Pair, ca: bytes | None = None) -> dict[str, bytes]:
    files = {names.CLIENT_CERT_FILE: pair.certificate, names.CLIENT_KEY_FILE: pair.key}
    return files if ca is None else {**files, names.CLIENT_CA_FILE: ca}


def test_clients_must_use_tls_and_the_agent_needs_none(bouncer: Bouncer, put: Put) -> None:
    bouncer.put()  # none at first, so that it is a RELOAD that turns it on
    bouncer.client("disable").close()
    bouncer.put(client_tls_mode="require", files=to_clients(CA.issue("pool", ["127.0.0.1"])))
    ca = put("ca.crt", CA.certificate)
    with bouncer.client(sslrootcert=ca) as connection:
        assert one(connection, b"SELECT 1") == 1
        assert connection.pgconn.ssl_in_use
    bouncer.refuses("SSL required", sslmode="disable")
    bouncer.refuses("certificate verify failed", sslrootcert=put("other.crt", OTHER_CA.certificate))

    async def probe() -> None:  # as the agent's own
        agents = await Connection.open(str(bouncer.socket), user="app", database="shop", password="app's word")
        await agents.query("SELECT 1")
        agents.close()

    asyncio.run(probe())
    bouncer.put()
    bouncer.client("disable").close()


def test_clients_must_show_a_certificate(bouncer: Bouncer, put: Put) -> None:
    bouncer.put(client_tls_mode="verify-ca", files=to_clients(CA.issue("pool", ["127.0.0.1"]), OTHER_CA.certificate))
    ca, pair, stranger = put("ca.crt", CA.certificate), OTHER_CA.issue("app"), CA.issue("app")
    shown = {"sslcert": put("c", pair.certificate), "sslkey": put("k", pair.key), "sslrootcert": ca}
    bouncer.client(**shown).close()
    bouncer.refuses("certificate required", sslrootcert=ca, sslcert="/does/not/exist")
    bouncer.refuses(
        "unknown ca", sslrootcert=ca, sslcert=put("c2", stranger.certificate), sslkey=put("k2", stranger.key)
    )
    bouncer.refuses("SASL authentication failed", **shown, password="another word")


def test_a_renewed_certificate_is_shown_and_clients_go_on(bouncer: Bouncer, put: Put) -> None:
    pairs = [CA.issue(f"turn {turn}", ["127.0.0.1"]) for turn in range(2)]
    bouncer.put(client_tls_mode="require", files=to_clients(pairs[0]))
    ca = put("ca.crt", CA.certificate)
    with bouncer.client(sslrootcert=ca) as connection:
        for pair in pairs:
            bouncer.put(client_tls_mode="require", files=to_clients(pair))
            assert one(connection, b"SELECT 1") == 1
            assert shown_by(bouncer) == ssl.PEM_cert_to_DER_cert(pair.certificate.decode())
            bouncer.client(sslrootcert=ca).close()


def shown_by(bouncer: Bouncer) -> bytes:
    """The certificate that PgBouncer shows now, in DER."""

    async def ask() -> bytes:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", bouncer.port)
        writer.write(bytes.fromhex("0000000804d2162f"))  # SSLRequest
        assert await reader.readexactly(1) == b"S"
        await writer.start_tls(context)
        certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
        return certificate

    return asyncio.run(ask())


def test_pgbouncer_verifies_the_server_and_shows_it_a_certificate(bouncer: Bouncer) -> None:
    pair = CA.issue("pooler")
    mine = {
        names.SERVER_CA_FILE: CA.certificate,
        names.SERVER_CERT_FILE: pair.certificate,
        names.SERVER_KEY_FILE: pair.key,
    }
    verified = {"tls_mode": "verify-full", "server_ca": True}
    bouncer.put("proved", mine, **verified, server_certificate=True)
    with bouncer.client("disable") as connection:
        found = one(
            connection, b"SELECT ssl AND client_dn = '/CN=pooler' FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        )
        assert found is True
    bouncer.put("proved", mine, **verified)  # shows none
    bouncer.console("RECONNECT")
    refused = pytest.raises(psycopg.OperationalError, match="requires a valid client certificate")
    with refused, bouncer.client("disable") as connection:
        connection.execute("SELECT 1")
