"""Changed logins and certificates beside a real PgBouncer and a real PostgreSQL."""

import contextlib
import socket
import ssl
import stat
import struct
import time

import psycopg
import pytest
from cryptography import x509

from poolfleet.agent.loader import LIVE
from poolfleet.api import names, wire
from poolfleet.pgbouncer.render import Settings, render_ini
from tests.certificates import Authority, Pair
from tests.integration.agent_pod import PASSWORD, USER, Pod
from tests.integration.pgbouncer_fixtures import wait_until

SSL_REQUEST = struct.pack("!II", 8, 80877103)  # PostgreSQL's protocol


def load(one: Pod, files: dict[str, bytes]) -> wire.AgentState:
    """Mount a configuration and have it loaded; the state after that."""
    one.configure(files)
    wait_until("it is mounted", lambda: one.state().mounted == wire.config_hash(files))
    return one.told(shop=4)


def test_a_removed_user_is_refused_and_a_changed_password_counts(one: Pod) -> None:
    one.up(shop=4)
    with one.client() as before:
        before.execute("SELECT 1")
        gone = one.config(users={USER: wire.tombstone(one.key, USER), "other": "first"})
        assert load(one, gone).config == wire.config_hash(gone)
        with pytest.raises(psycopg.OperationalError, match="SASL authentication failed"):
            one.client(password=PASSWORD)
        one.client(user="other", password="first").close()
        before.execute("SELECT 1")  # who is connected stays so
    load(one, one.config(users={"other": "second"}))
    with pytest.raises(psycopg.OperationalError, match="SASL authentication failed"):
        one.client(user="other", password="first")
    one.client(user="other", password="second").close()


def test_who_the_clients_are_is_told(one: Pod) -> None:
    one.configure(one.config(users={USER: PASSWORD, "other": "second"}))
    one.up(shop=4)
    with one.client(), one.client():
        with one.client(user="other", password="second"):
            wait_until("they are counted", lambda: one.state().users == {USER: 2, "other": 1})
        wait_until("one has gone", lambda: one.state().users == {USER: 2})


def with_tls(one: Pod, pair: Pair) -> dict[str, bytes]:
    """A configuration whose PgBouncer shows `pair` to its clients."""
    settings = Settings(
        max_client_conn=50, tls_mode="disable", client_tls_mode="require", run_dir=str(one.run), port=one.port
    )
    files = one.config(ini=render_ini([one.line()], settings))
    return files | {names.CLIENT_CERT_FILE: pair.certificate, names.CLIENT_KEY_FILE: pair.key}


def shown(one: Pod) -> bytes:
    """The certificate, in PEM, that a new client sees."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(socket.create_connection(("127.0.0.1", one.port), timeout=5))
        raw.sendall(SSL_REQUEST)
        assert raw.recv(1) == b"S"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        answer = stack.enter_context(context.wrap_socket(raw)).getpeercert(binary_form=True)
    assert answer is not None
    return ssl.DER_cert_to_PEM_cert(answer).encode()


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


def test_a_renewed_certificate_is_shown_and_a_broken_one_is_refused(one: Pod) -> None:
    authority = Authority("test", time.time())
    first, second = authority.issue("first"), authority.issue("second")
    one.configure(with_tls(one, first))
    one.up(shop=4)
    assert serial(shown(one)) == serial(first.certificate)
    modes = {name: stat.S_IMODE((one.run / name).stat().st_mode) for name in LIVE if (one.run / name).exists()}
    assert modes == dict.fromkeys((names.USERLIST_FILE, names.CLIENT_CERT_FILE, names.CLIENT_KEY_FILE), 0o600)

    renewed = with_tls(one, second)
    assert load(one, renewed).config == wire.config_hash(renewed)
    assert serial(shown(one)) == serial(second.certificate)

    for broken in (Pair(b"no certificate", second.key), Pair(first.certificate, second.key)):
        state = load(one, with_tls(one, broken))
        assert state.config == wire.config_hash(renewed)
        assert "PgBouncer refused it" in state.config_error
        assert serial(shown(one)) == serial(second.certificate)
        assert (one.run / names.CLIENT_CERT_FILE).read_bytes() == second.certificate

    before = one.state().started
    one.bouncer.kill()
    one.bouncer.start()  # with the last good files: a PgBouncer that starts does not take a broken one
    wait_until("it is back", lambda: one.state().started not in ("", before) and one.loaded(one.rev, shop=4))
    assert serial(shown(one)) == serial(second.certificate)
