"""Secrets as others make them (tests/secrets), read with the key names of the examples: nothing has to be special."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from poolfleet.api import names
from poolfleet.api.base import CredentialsSecretRef
from poolfleet.plan.managed import refusal
from poolfleet.plan.secrets import Login, credentials
from tests.unit.pool_fixtures import NOW, pool_body, view

ROOT = Path(__file__).parents[2]
Secret = dict[str, Any]

WEB = Login("web", "kv pass")
VAULT_ROLE = Login("shop", "A1a-ZQ3rUq8vYb2mWc7k")
LEASED = Login("v-kubernetes-reports-9mLqP2sT6bXcWdYfRj4k-1795336800", "-5Hc0nIvu3XGk1aPzTqM")
PGO = Login("shop", "^pW|<zq/{2")

READ = {
    "vault.yaml": ((WEB,), {"shop": VAULT_ROLE, "reports": LEASED}),
    "external-secrets.yaml": ((Login("web", "also from the store"),), {"shop": Login("shop", "from the store")}),
    "cloudnativepg.yaml": ((Login("app", "cnpg-pass"),), {}),
    "crunchy.yaml": ((PGO,), {"shop": PGO}),
}
"""Example -> what its pool must find: the clients, and the logins on the server by database."""

OWNERS = {
    "vault.yaml": ("shop-role", "VaultDynamicSecret shop-role"),
    "external-secrets.yaml": ("shop-role", "ExternalSecret shop-role"),
    "cloudnativepg.yaml": ("shop-db-app", "Cluster shop-db"),
    "crunchy.yaml": ("hippo-pguser-shop", "PostgresCluster hippo"),
}


def pem() -> tuple[str, str]:
    """A certificate that is valid at NOW, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    start = datetime.fromtimestamp(NOW, UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=90))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


CERTIFICATE, KEY = pem()
MADE = {"BEGIN CERTIFICATE": CERTIFICATE, "BEGIN EC PRIVATE KEY": KEY}


def secrets(name: str) -> dict[str, Secret]:
    """The Secrets that go with an example, by name."""
    found = yaml.safe_load_all((ROOT / "tests/secrets" / name).read_text())
    return {secret["metadata"]["name"]: secret for secret in found}


def contents(secret: Secret) -> dict[str, bytes]:
    """A Secret's data, with certificates where the file has only their first words."""
    return {key: MADE.get(value, value).encode() for key, value in secret["stringData"].items()}


def pool(name: str) -> dict[str, Any]:
    """The PgPool of an example."""
    documents = yaml.safe_load_all((ROOT / "examples" / name).read_text())
    return next(each for each in documents if each["kind"] == names.POOL_KIND)


def test_every_file_of_secrets_goes_with_an_example() -> None:
    assert {file.name for file in (ROOT / "tests/secrets").iterdir()} == set(READ)


@pytest.mark.parametrize("name", READ)
def test_logins_are_read_with_the_key_names_of_the_example(name: str) -> None:
    spec = pool(name)["spec"]
    there = {each: contents(secret) for each, secret in secrets(name).items()}
    given = credentials(view(pool_body(**spec), secrets=there))
    assert given.problems == ()
    assert (given.users, dict(given.databases)) == READ[name]
    if "caSecretRef" in spec["server"]["tls"]:
        assert given.tls[names.SERVER_CA_FILE].decode() == CERTIFICATE


@pytest.mark.parametrize("name", ["cloudnativepg.yaml", "crunchy.yaml"])
def test_the_operators_own_login_is_there_under_these_keys(name: str) -> None:
    reference = CredentialsSecretRef.model_validate(pool(name)["spec"]["server"]["adminSecretRef"])
    found = contents(secrets(name)[reference.name])
    assert found[reference.username_key] == b"poolfleet"
    assert found[reference.password_key]


@pytest.mark.parametrize("name", OWNERS)
def test_a_rotation_would_not_touch_them_and_says_whose_they_are(name: str) -> None:
    secret, owner = OWNERS[name]
    assert f"it belongs to {owner}. Rotate it there" in refusal(secrets(name)[secret])


@pytest.mark.parametrize("name", ["vault.yaml", "external-secrets.yaml"])
def test_what_an_example_has_made_carries_the_label_that_it_asks_for(name: str) -> None:
    documents = list(yaml.safe_load_all((ROOT / "examples" / name).read_text()))
    made = [each for each in documents if each["kind"] != names.POOL_KIND]
    assert {each["metadata"]["name"] for each in made} == set(secrets(name))
    for each in made:
        spec = each["spec"]
        target = spec.get("destination") or {**spec["target"], **spec["target"]["template"]["metadata"]}
        assert target["name"] == each["metadata"]["name"]
        assert target["labels"].items() <= secrets(name)[target["name"]]["metadata"]["labels"].items()
        assert target["labels"] == {names.LABEL_WATCH: "true"}
