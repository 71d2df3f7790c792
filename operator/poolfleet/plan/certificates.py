"""Certificates in PEM, as Secrets hold them: whether they can be used, and until when.

What is found here is refused before a pod sees it, for PgBouncer itself tells nobody: a certificate that it cannot use
leaves the former one in force without a word (facts/pgbouncer.md 6).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from poolfleet.api import names
from poolfleet.api.base import CaSecretRef, CertificateSecretRef
from poolfleet.api.conditions import Reason
from poolfleet.api.tls import PoolTls, ServerTls
from poolfleet.plan.model import Problem
from poolfleet.plan.times import timestamp

TO_CLIENTS: Final = ExtendedKeyUsageOID.SERVER_AUTH
"""The use of what PgBouncer shows to clients."""
TO_SERVER: Final = ExtendedKeyUsageOID.CLIENT_AUTH
"""The use of what PgBouncer, and the operator, show to the server."""
USES: Final[Mapping[x509.ObjectIdentifier, str]] = {TO_CLIENTS: "server auth", TO_SERVER: "client auth"}

FILES: Final[Mapping[str, str]] = {
    names.CLIENT_CERT_FILE: "clients",
    names.CLIENT_CA_FILE: "clients-ca",
    names.SERVER_CERT_FILE: "server",
    names.SERVER_CA_FILE: "server-ca",
}
"""The files of x-config that hold certificates, and what they are called in metrics: who sees, or is checked by, it."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, as they are in the Secret."""

    chain: bytes
    key: bytes = field(repr=False)


def check_pair(
    found: Certificate, secret: str, reference: CertificateSecretRef, use: x509.ObjectIdentifier, now: float
) -> Problem | None:
    """What is wrong with a certificate and its key, in words without their content; None if they can be used for `use`
    at `now` (seconds since the epoch)."""
    where, key_where = f'Key "{reference.cert_key}" of Secret "{secret}"', f'key "{reference.private_key_key}"'
    chain = _read(found.chain)
    if not chain:
        return _invalid(f"{where} holds no certificate in PEM")
    try:
        # Whether its numbers are sound is not asked: that takes a tenth of a second, and PgBouncer does not ask either.
        private: PrivateKeyTypes = load_pem_private_key(found.key, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        return _invalid(f'{_upper(key_where)} of Secret "{secret}" is encrypted; PgBouncer needs it without a password')
    except (ValueError, UnsupportedAlgorithm):
        return _invalid(f'{_upper(key_where)} of Secret "{secret}" holds no private key in PEM')
    try:
        if private.public_key() != chain[0].public_key():
            return _invalid(
                f"{where} and {key_where} do not belong together: the first certificate must be that of the key"
            )
        extended = chain[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if use not in extended and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in extended:
            return _invalid(f'{where} is not made out for "{USES[use]}" (extended key usage), which this one is for')
    except x509.ExtensionNotFound:
        pass  # made out for anything
    except (ValueError, UnsupportedAlgorithm):
        return _invalid(f"{where} holds a certificate that cannot be read")
    return _lapsed(where, [chain[0]], now)


def check_authorities(content: bytes, secret: str, key: str, now: float) -> Problem | None:
    """What is wrong with certificates to trust; None if one of them can be used at `now` (seconds since the epoch)."""
    where = f'Key "{key}" of Secret "{secret}"'
    found = _read(content)
    if not found:
        return _invalid(f"{where} holds no certificate in PEM")
    return _lapsed(where, found, now)


def expiries(files: Mapping[str, bytes]) -> dict[str, float]:
    """Until when what x-config holds is valid, by the names in FILES, in seconds since the epoch: a certificate of the
    pool's own, or the last one of those to trust. Nothing for a file that is absent or cannot be read."""
    return {FILES[name]: max(map(_until, found)) for name, found in _in_force(files)}


def lapsed(files: Mapping[str, bytes], now: float) -> dict[str, str]:
    """The files of x-config whose certificates are not valid at `now` (seconds since the epoch), and since when or how
    long not, in words."""
    return {name: words for name, found in _in_force(files) if (words := _not_valid(found, now))}


def next_change(files: Mapping[str, bytes], now: float) -> float | None:
    """Seconds from `now` until a certificate of x-config begins or ceases to be valid; None if none will."""
    found = [each for _, certificates in _in_force(files) for each in certificates]
    ends = [end for each in found for end in (_since(each), _until(each)) if end >= now]
    return min(ends) - now + 1.0 if ends else None


def references(pool: PoolTls | None, server: ServerTls) -> dict[str, tuple[str, str]]:
    """File of x-config -> the name and the key of the Secret that its certificates come from."""
    found: dict[str, tuple[str, str]] = {}
    if pool is not None:
        found[names.CLIENT_CERT_FILE] = (pool.secret_ref.name, pool.secret_ref.cert_key)
        ca = clients_ca(pool)
        found[names.CLIENT_CA_FILE] = (ca.name, ca.key)
    if server.client_cert_secret_ref is not None:
        shown = server.client_cert_secret_ref
        found[names.SERVER_CERT_FILE] = (shown.name, shown.cert_key)
    if server.ca_secret_ref is not None:
        found[names.SERVER_CA_FILE] = (server.ca_secret_ref.name, server.ca_secret_ref.key)
    return found


def clients_ca(pool: PoolTls) -> CaSecretRef:
    """Where the CA is that clients' certificates must come from: beside the pool's own one, if nothing else is said."""
    return pool.ca_secret_ref or CaSecretRef(name=pool.secret_ref.name)


def _in_force(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[x509.Certificate]]]:
    for name in FILES:
        found = _read(files.get(name, b""))
        if found:
            # Behind the first one stand those between it and its CA, which clients may have in a newer version.
            yield name, found if name in (names.CLIENT_CA_FILE, names.SERVER_CA_FILE) else found[:1]


def _read(content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        return []


def _lapsed(where: str, found: list[x509.Certificate], now: float) -> Problem | None:
    words = _not_valid(found, now)
    return Problem(Reason.CERTIFICATE_EXPIRED, f"{where} {words}. Renew it.") if words else None


def _not_valid(found: list[x509.Certificate], now: float) -> str:
    """ "" if one of the certificates is valid at `now`."""
    if any(_since(each) <= now <= _until(each) for each in found):
        return ""
    if all(now > _until(each) for each in found):
        return f"expired at {timestamp(max(map(_until, found)))[:19]}Z"
    return f"is not valid before {timestamp(min(_since(each) for each in found if _since(each) > now))[:19]}Z"


def _since(certificate: x509.Certificate) -> float:
    return certificate.not_valid_before_utc.timestamp()


def _until(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _invalid(words: str) -> Problem:
    return Problem(Reason.INVALID_CERTIFICATE, f"{words}. Write it anew.")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
