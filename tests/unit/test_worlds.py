"""The admin's login, as the Secrets give it; the rest of controller/worlds.py is seen in test_servers.py."""

import base64
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from poolfleet.api.conditions import Reason
from poolfleet.api.pgserver import PgServerSpec
from poolfleet.controller import worlds
from poolfleet.controller.context import Context
from poolfleet.plan.server import Problem
from poolfleet.postgres.connection import Login
from tests.certificates import Authority
from tests.unit.pool_fixtures import NOW

CA = Authority("ca", NOW)
PAIR, OTHER = CA.issue("operator"), CA.issue("other")
ADMIN = {"username": b"admin", "password": b"word"}
SPEC = PgServerSpec.model_validate(
    {
        "host": "db",
        "adminSecretRef": {"name": "admin"},
        "tls": {"mode": "verify-full", "caSecretRef": {"name": "ca"}, "clientCertSecretRef": {"name": "shown"}},
    }
)


async def login(shown: Mapping[str, bytes] | None, now: float = NOW) -> Login | Problem:
    secrets = {"admin": ADMIN, "ca": {"ca.crt": CA.certificate}, "shown": shown}

    async def get(namespace: str, name: str) -> dict[str, Any] | None:
        assert namespace == "data"
        data = secrets[name]
        return None if data is None else {"data": {key: base64.b64encode(v).decode() for key, v in data.items()}}

    context = SimpleNamespace(secrets=SimpleNamespace(get=get), clock=lambda: now)
    return await worlds._login(cast(Context, context), "data", SPEC)


async def test_the_operator_connects_as_the_pods_do() -> None:
    found = await login({"tls.crt": PAIR.certificate, "tls.key": PAIR.key})
    ca = CA.certificate.decode()
    assert found == Login("db.data.svc", 5432, "admin", "word", "verify-full", ca, PAIR.certificate, PAIR.key)
    assert "PRIVATE" not in repr(found) and "word" not in repr(found)


@pytest.mark.parametrize(
    ("shown", "reason", "words"),
    [
        (None, Reason.SECRET_NOT_FOUND, "(tls.clientCertSecretRef) does not exist"),
        ({"tls.crt": PAIR.certificate}, Reason.SECRET_KEY_NOT_FOUND, 'no key "tls.key"; its keys: tls.crt.'),
        ({"tls.crt": PAIR.certificate, "tls.key": OTHER.key}, Reason.INVALID_CERTIFICATE, "do not belong together"),
    ],
)
async def test_what_keeps_it_from_that(shown: Mapping[str, bytes] | None, reason: str, words: str) -> None:
    found = await login(shown)
    assert isinstance(found, Problem)
    assert found.reason == reason
    assert words in found.message


async def test_an_expired_certificate() -> None:
    found = await login({"tls.crt": PAIR.certificate, "tls.key": PAIR.key}, NOW + 6 * 86400)
    assert isinstance(found, Problem) and found.reason == Reason.CERTIFICATE_EXPIRED
