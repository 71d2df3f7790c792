"""TLS on both sides of PgBouncer."""

from typing import Literal

from pydantic import Field

from poolfleet.api.base import CaSecretRef, CertificateSecretRef, Model

TlsMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
"""PgBouncer's server_tls_sslmode."""


class ServerTls(Model):
    """TLS between PgBouncer and the server."""

    mode: TlsMode = Field(
        default="prefer",
        description="As PgBouncer's server_tls_sslmode. disable: no TLS. allow, prefer: TLS if the server has it, "
        "unchecked. require: TLS or nothing, the certificate is not checked. verify-ca: the certificate must come from "
        "a trusted CA. verify-full: and it must be made out for `host`.",
    )
    ca_secret_ref: CaSecretRef | None = Field(
        default=None,
        description="CA certificates to trust in verify-ca and verify-full. Left out: the bundle of the PgBouncer "
        "image (the public CAs).",
    )
    client_cert_secret_ref: CertificateSecretRef | None = Field(
        default=None,
        description="Certificate that the pods, and the operator itself, show to the server. Left out: none.",
    )


class PoolTls(Model):
    """TLS between clients and PgBouncer."""

    secret_ref: CertificateSecretRef = Field(
        description="Certificate that PgBouncer shows to clients, and its private key."
    )
    mode: Literal["allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        default="require",
        description="As PgBouncer's client_tls_sslmode. allow, prefer: clients may use TLS. require: they must. "
        "verify-ca, verify-full: and they must show a certificate of a trusted CA, besides their password.",
    )
    ca_secret_ref: CaSecretRef | None = Field(
        default=None,
        description="CA certificates that clients' certificates must come from, in verify-ca and verify-full. Left "
        "out: key ca.crt of secretRef.",
    )
