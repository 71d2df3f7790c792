"""Certificates for tests: an authority, and what it issues, in PEM."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

FOR_SERVERS, FOR_CLIENTS = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
DAY = 86400.0


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: bytes
    key: bytes


class Authority:
    """A CA of the test's own, valid for ten days from a day before `now` (seconds since the epoch) on."""

    def __init__(self, name: str, now: float, days: float = 10) -> None:
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key, now - DAY, now + days * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def issue(
        self,
        name: str,
        hosts: Sequence[str] = (),
        *,
        use: x509.ObjectIdentifier | None = None,
        begin: float | None = None,
        end: float | None = None,
        password: bytes | None = None,
    ) -> Pair:
        """A certificate for `hosts` (names and addresses), valid for five days around `now` unless `begin` or `end`
        (seconds since the epoch) say otherwise; its key encrypted if there is a `password`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        begin = self._now - DAY / 2 if begin is None else begin
        builder = self._builder(subject, key, begin, self._now + 5 * DAY if end is None else end)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), False)
        if use is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([use]), False)
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
        return Pair(
            builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption),
        )

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, begin: float, end: float
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(begin))
            .not_valid_after(_time(end))
        )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=int(seconds))


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
