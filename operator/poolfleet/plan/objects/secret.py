"""The pool's own Secrets: the configuration that pods mount, and the bindings that applications mount."""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Final

from poolfleet.api import names
from poolfleet.plan.objects.meta import Manifest, Owner, manifest

BINDING_TYPE: Final = "servicebinding.io/postgresql"
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def config_secret(owner: Owner, files: Mapping[str, bytes], annotations: Mapping[str, str]) -> Manifest:
    """Secret x-config: the files that every pod of the pool mounts."""
    return _secret(owner, names.config_secret(owner.name), "Opaque", files, annotations)


def binding_secret(
    owner: Owner,
    user: str | None,
    *,
    host: str,
    port: int,
    database: str,
    username: str,
    password: str,
    tls_required: bool = False,
    ca: bytes | None = None,
) -> Manifest:
    """Secret x-binding (`user` None: the pool's first user) or x-binding-<user>, as the Service Binding
    specification wants it: type, provider, host, port, database, username, password, uri. With
    `tls_required` also sslmode, and the uri says so; with `ca`, what the pool's certificate can be checked by, ca.crt:
    then clients may ask for sslmode verify-full."""
    uri = f"postgresql://{percent(username)}:{percent(password)}@{host}:{port}/{percent(database)}"
    fields = {
        "type": "postgresql",
        "provider": "poolfleet",
        "host": host,
        "port": str(port),
        "database": database,
        "username": username,
        "password": password,
        "uri": uri,
    }
    if tls_required:
        fields |= {"sslmode": "require", "uri": f"{uri}?sslmode=require"}
    data = {key: value.encode() for key, value in fields.items()}
    if ca is not None:
        data["ca.crt"] = ca
    return _secret(owner, binding_name(owner, user), BINDING_TYPE, data, {})


def binding_name(owner: Owner, user: str | None) -> str:
    """Name of a binding Secret. A user name that cannot be part of an object's name is put into letters that can, with
    a hash of it, so that two users never share one."""
    if user is None or _LABEL.fullmatch(user):
        return names.binding_secret(owner.name, user)
    plain = re.sub(r"[^a-z0-9]+", "-", user.lower()).strip("-")[:40]
    digest = hashlib.sha256(user.encode()).hexdigest()[:8]
    return names.binding_secret(owner.name, f"{plain}-{digest}" if plain else digest)


def percent(text: str) -> str:
    """`text` percent-encoded for any part of a URI (RFC 3986)."""
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode())


def decode(secret: Mapping[str, object] | None) -> dict[str, bytes]:
    """The data of a live Secret; empty if there is none."""
    data = (secret or {}).get("data") or {}
    assert isinstance(data, Mapping)
    return {str(key): base64.b64decode(value) for key, value in data.items()}


def _secret(
    owner: Owner, name: str, secret_type: str, data: Mapping[str, bytes], annotations: Mapping[str, str]
) -> Manifest:
    return manifest(
        owner,
        "v1",
        "Secret",
        name,
        extra_labels={names.LABEL_WATCH: "true"},
        annotations=annotations,
        type=secret_type,
        data={key: base64.b64encode(data[key]).decode() for key in sorted(data)},
    )
