"""poolfleet.plan.certificates, and what a pool does with them."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from poolfleet.api.base import CertificateSecretRef
from poolfleet.api.conditions import Reason
from poolfleet.plan import certificates
from poolfleet.plan.certificates import TO_CLIENTS, TO_SERVER, Certificate, check_authorities, check_pair
from poolfleet.plan.pool import plan
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.secrets import credentials
from poolfleet.plan.status import conclude
from tests.certificates import DAY, FOR_CLIENTS, FOR_SERVERS, Authority, Pair
from tests.unit.pool_fixtures import (
    NOW,
    SECRETS,
    Body,
    conditions,
    data,
    of,
    pod,
    pool_body,
    server_body,
    settled,
    state,
    view,
)

CA = Authority("test", NOW)
GOOD = CA.issue("shop", ["shop.demo.svc"])
OTHER = CA.issue("other")
REFERENCE = CertificateSecretRef(name="tls", cert_key="c", private_key_key="k")


def check(certificate: bytes, key: bytes, use: Any = TO_CLIENTS, now: float = NOW) -> tuple[str, str]:
    found = check_pair(Certificate(certificate, key), "tls", REFERENCE, use, now)
    return ("", "") if found is None else (found.reason, found.message)


# One certificate and its key


@pytest.mark.parametrize("use", [TO_CLIENTS, TO_SERVER])
def test_a_certificate_without_a_use_fits_both(use: Any) -> None:
    assert check(GOOD.certificate, GOOD.key, use) == ("", "")
    assert check(GOOD.certificate + CA.certificate, GOOD.key, use) == ("", "")


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        (b"", GOOD.key, 'Key "c" of Secret "tls" holds no certificate in PEM'),
        (b"nonsense", GOOD.key, 'Key "c" of Secret "tls" holds no certificate in PEM'),
        (b"\xff" + GOOD.key, GOOD.key, 'Key "c" of Secret "tls" holds no certificate in PEM'),
        (GOOD.certificate, b"nonsense", 'Key "k" of Secret "tls" holds no private key in PEM'),
        (GOOD.certificate, GOOD.certificate, 'Key "k" of Secret "tls" holds no private key in PEM'),
        (GOOD.certificate, OTHER.key, 'Key "c" of Secret "tls" and key "k" do not belong together'),
        (CA.certificate + GOOD.certificate, GOOD.key, "the first certificate must be that of the key"),
    ],
)
def test_what_cannot_be_used_is_said_without_its_content(certificate: bytes, key: bytes, words: str) -> None:
    reason, message = check(certificate, key)
    assert reason == Reason.INVALID_CERTIFICATE
    assert words in message
    assert "MII" not in message and "nonsense" not in message


def test_an_encrypted_key() -> None:
    locked = CA.issue("locked", password=b"word")
    reason, message = check(locked.certificate, locked.key)
    assert reason == Reason.INVALID_CERTIFICATE
    assert message.startswith('Key "k" of Secret "tls" is encrypted; ')


def test_a_certificate_of_another_use() -> None:
    to_clients, to_server = CA.issue("a", use=FOR_SERVERS), CA.issue("b", use=FOR_CLIENTS)
    assert check(to_clients.certificate, to_clients.key, TO_CLIENTS) == ("", "")
    assert check(to_server.certificate, to_server.key, TO_SERVER) == ("", "")
    assert 'not made out for "client auth"' in check(to_clients.certificate, to_clients.key, TO_SERVER)[1]
    assert 'not made out for "server auth"' in check(to_server.certificate, to_server.key, TO_CLIENTS)[1]


def test_expired_and_not_valid_yet() -> None:
    pair = CA.issue("short", begin=NOW - 10, end=NOW + 10)
    assert (
        check(pair.certificate, pair.key, now=NOW - 10) == check(pair.certificate, pair.key, now=NOW + 10) == ("", "")
    )
    late = 'Key "c" of Secret "tls" expired at 2027-01-15T08:00:10Z. Renew it.'
    assert check(pair.certificate, pair.key, now=NOW + 11) == (Reason.CERTIFICATE_EXPIRED, late)
    reason, early = check(pair.certificate, pair.key, now=NOW - 11)
    assert reason == Reason.CERTIFICATE_EXPIRED
    assert "is not valid before 2027-01-15T07:59:50Z" in early


def test_authorities_are_good_while_one_of_them_is() -> None:
    old = Authority("old", NOW - 30 * DAY)
    assert check_authorities(CA.certificate, "ca", "ca.crt", NOW) is None
    assert check_authorities(b"# both\n" + old.certificate + CA.certificate, "ca", "ca.crt", NOW) is None
    expired = check_authorities(old.certificate, "ca", "ca.crt", NOW)
    assert expired is not None and expired.reason == Reason.CERTIFICATE_EXPIRED
    nothing = check_authorities(GOOD.key, "ca", "ca.crt", NOW)
    assert nothing is not None and nothing.reason == Reason.INVALID_CERTIFICATE


def test_no_key_in_a_repr() -> None:
    assert "PRIVATE" not in repr(Certificate(GOOD.certificate, GOOD.key))


def test_expiries_and_the_next_change() -> None:
    soon = CA.issue("soon", end=NOW + 100)
    files = {"client-tls.crt": soon.certificate, "client-tls.key": soon.key, "server-ca.crt": CA.certificate}
    assert certificates.expiries(files) == {"clients": NOW + 100, "server-ca": NOW + 10 * DAY}
    assert certificates.next_change(files, NOW) == 101.0
    assert certificates.next_change(files, NOW + 11 * DAY) is None
    assert certificates.lapsed(files, NOW) == {}
    assert list(certificates.lapsed(files, NOW + 101)) == ["client-tls.crt"]
    assert certificates.expiries({"client-tls.crt": b"spoilt"}) == {}


# A pool


def secret_of(pair: Pair, **more: bytes) -> dict[str, bytes]:
    return {"tls.crt": pair.certificate, "tls.key": pair.key, **more}


Secrets = Mapping[str, Mapping[str, bytes] | None]
NO_MORE: Secrets = {}


def secrets(pair: Pair = GOOD, more: Secrets = NO_MORE) -> dict[str, Mapping[str, bytes] | None]:
    return {**SECRETS, "shop-tls": secret_of(pair, **{"ca.crt": CA.certificate}), **more}


def tls_body(mode: str = "require", **more: Any) -> Body:
    return pool_body(tls={"secretRef": {"name": "shop-tls"}, "mode": mode, **more})


def files(observed: PoolView) -> dict[str, str]:
    return data(of(plan(observed), "Secret", "shop-config"))


def test_what_clients_are_shown() -> None:
    found = files(view(tls_body(), secrets=secrets()))
    assert found["client-tls.crt"] == GOOD.certificate.decode()
    assert found["client-tls.key"] == GOOD.key.decode()
    assert "client-ca.crt" not in found
    for line in ("client_tls_sslmode = require", "client_tls_cert_file = /run/pgbouncer/client-tls.crt"):
        assert line in found["pgbouncer.ini"].splitlines()
    assert "client_tls" not in files(view())["pgbouncer.ini"]


@pytest.mark.parametrize("reference", [None, {"name": "their-ca", "key": "bundle"}])
def test_whose_certificates_clients_must_show(reference: Body | None) -> None:
    body = tls_body("verify-ca", **({"caSecretRef": reference} if reference else {}))
    theirs = Authority("theirs", NOW).certificate
    observed = view(body, secrets=secrets(more={"their-ca": {"bundle": theirs}}))
    assert ("demo", "their-ca") in observed.secret_names() or reference is None
    assert ("demo", "shop-tls") in observed.secret_names()
    found = files(observed)
    assert found["client-ca.crt"].encode() == (theirs if reference else CA.certificate)
    assert "client_tls_ca_file = /run/pgbouncer/client-ca.crt" in found["pgbouncer.ini"].splitlines()


def test_what_the_server_is_shown_is_in_its_own_namespace() -> None:
    server = server_body("db")
    server["metadata"]["namespace"] = "data"
    server["spec"] |= {
        "tls": {"mode": "verify-full", "clientCertSecretRef": {"name": "pooler"}, "caSecretRef": {"name": "ca"}},
        "allowedNamespaces": {"from": "All"},
    }
    body = pool_body(server=None, serverRef={"name": "db", "namespace": "data"})
    observed = view(body, server)
    assert {("data", "pooler"), ("data", "ca")} <= observed.secret_names()
    all_secrets = {**observed.secrets, ("data", "pooler"): secret_of(GOOD), ("data", "ca"): {"ca.crt": CA.certificate}}
    given = credentials(PoolView(**{**fields(observed), "secrets": all_secrets}))
    assert given.problems == ()
    assert sorted(given.tls) == ["server-ca.crt", "server-client.crt", "server-client.key"]
    assert "PRIVATE" not in repr(given)


def fields(observed: PoolView) -> dict[str, Any]:
    return {name: getattr(observed, name) for name in ("body", "server", "children", "pods", "settings", "now")} | {
        "fresh_key": observed.fresh_key,
        "secrets": observed.secrets,
    }


@pytest.mark.parametrize(
    ("secret", "reason", "words"),
    [
        (None, Reason.SECRET_NOT_FOUND, "tls.secretRef"),
        ({"tls.crt": GOOD.certificate}, Reason.SECRET_KEY_NOT_FOUND, "tls.secretRef.privateKeyKey"),
        (secret_of(Pair(GOOD.certificate, OTHER.key)), Reason.INVALID_CERTIFICATE, "do not belong together"),
        (secret_of(CA.issue("old", end=NOW - 1)), Reason.CERTIFICATE_EXPIRED, "expired at"),
    ],
)
def test_the_last_good_one_stays(secret: Mapping[str, bytes] | None, reason: str, words: str) -> None:
    before = settled(tls_body(), secrets=secrets())
    after = view(tls_body(), live=before.children, secrets=secrets(more={"shop-tls": secret}), pods=before.pods)
    planned = plan(after)
    assert planned.apply == ()
    assert planned.config == plan(before).config
    found = conditions(conclude(after, planned).status)
    for type in ("Stalled", "CredentialsCurrent"):
        assert found[type]["reason"] == reason
        assert words in found[type]["message"]


def test_one_in_force_that_expires_keeps_nothing_else_back() -> None:
    short = CA.issue("short", end=NOW + 10)
    before = settled(tls_body(), secrets=secrets(short))
    assert conclude(before, plan(before)).again == 11.0
    new_word = {**secrets(short), "shop-app": {"username": b"shop", "password": b"next"}}
    changed = view(tls_body(), live=before.children, secrets=new_word, now=NOW + 20)
    assert [obj["metadata"]["name"] for obj in plan(changed).apply] == ["shop-config", "shop-binding"]
    assert plan(changed).findings == ()
    loaded = (pod(state=state(plan(before).config)),)
    later = view(tls_body(), live=before.children, secrets=secrets(short), now=NOW + 20, pods=loaded)
    found = conditions(conclude(later, plan(later)).status)
    assert found["Stalled"]["status"] == "False"
    assert found["CredentialsCurrent"]["reason"] == Reason.CERTIFICATE_EXPIRED
    assert found["CredentialsCurrent"]["message"].startswith('Key "tls.crt" of Secret "shop-tls" expired at 2027-')
    soon = view(tls_body(), live=before.children, secrets=secrets(short), now=NOW + 5, pods=loaded)
    assert conditions(conclude(soon, plan(soon)).status)["CredentialsCurrent"]["status"] == "True"


@pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
def test_the_binding_says_how_to_connect(mode: str) -> None:
    binding = data(of(plan(view(tls_body(mode), secrets=secrets())), "Secret", "shop-binding"))
    needed = mode not in ("allow", "prefer")
    assert binding["uri"].endswith("?sslmode=require") is needed
    assert binding.get("sslmode") == ("require" if needed else None)
    assert binding["ca.crt"] == CA.certificate.decode()
    plain = data(of(plan(view()), "Secret", "shop-binding"))
    assert not {"sslmode", "ca.crt"} & set(plain) and "sslmode" not in plain["uri"]


# Fleets whose agents are older than this


def of_revision(revision: int, body: Body, before: Body | None = None, **more: Any) -> PoolView:
    """A fleet that was rolled with that revision for `before`, and wants `body` now."""
    settled_before = settled(before, **more)
    deployment = json.loads(json.dumps(settled_before.children["Deployment", "shop"]))
    rolled = json.loads(deployment["metadata"]["annotations"]["poolfleet.dev/rolled"])
    rolled |= {"revision": revision, "agentImage": "example/operator:0"}
    deployment["metadata"]["annotations"]["poolfleet.dev/rolled"] = json.dumps(rolled)
    return view(body, live={**settled_before.children, ("Deployment", "shop"): deployment}, **more)


ROLE = {"name": "shop", "credentialsSecretRef": {"name": "role"}}
WISHES = {
    "tls": tls_body(),
    "certificate": pool_body(
        server={"host": "postgres", "maxConnections": 100, "tls": {"clientCertSecretRef": {"name": "shop-tls"}}}
    ),
    "rotation": pool_body(databases=[{**ROLE, "rotation": {"strategy": "Password"}}]),
}


@pytest.mark.parametrize("wish", WISHES)
def test_a_fleet_that_cannot_do_it_is_rolled(wish: str) -> None:
    given = secrets(more={"role": {"username": b"r", "password": b"p"}})
    for revision, image in ((2, "example/operator:1"), (3, "example/operator:0")):
        before = pool_body(databases=[ROLE]) if wish == "rotation" else None
        rolled = plan(of_revision(revision, WISHES[wish], before, secrets=given)).rolled
        assert rolled is not None and rolled.agent_image == image


def test_any_other_one_is_not() -> None:
    rolled = plan(of_revision(2, pool_body())).rolled
    assert rolled is not None and (rolled.revision, rolled.agent_image) == (2, "example/operator:0")
