"""What all children of a PgPool have in common: names, labels, owner, and the hash of what was applied."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from poolfleet.api import names

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""

COMPONENT: Final = "pooler"


@dataclass(frozen=True, slots=True)
class Owner:
    """The PgPool that children belong to."""

    namespace: str
    name: str
    uid: str


def labels(owner: Owner) -> dict[str, str]:
    """The labels of every child."""
    return {
        names.LABEL_NAME: "pgbouncer",
        names.LABEL_INSTANCE: owner.name,
        names.LABEL_COMPONENT: COMPONENT,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_POOL: owner.name,
    }


def owner_references(owner: Owner) -> list[Manifest]:
    """metadata.ownerReferences of a child."""
    return [
        {
            "apiVersion": names.API_VERSION,
            "kind": names.POOL_KIND,
            "name": owner.name,
            "uid": owner.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def selector(owner: Owner) -> dict[str, str]:
    """The labels that select the pool's pods. Immutable in a Deployment: never add one."""
    return {names.LABEL_COMPONENT: COMPONENT, names.LABEL_POOL: owner.name}


def selector_text(owner: Owner) -> str:
    """The same selector as text, for the scale subresource."""
    return ",".join(f"{key}={value}" for key, value in sorted(selector(owner).items()))


def manifest(
    owner: Owner,
    api_version: str,
    kind: str,
    name: str,
    *,
    extra_labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    **body: Any,
) -> Manifest:
    """A child of `owner` with its metadata; `body` are its other top-level fields. Our labels win over extra ones."""
    metadata: Manifest = {
        "name": name,
        "namespace": owner.namespace,
        "labels": {**(extra_labels or {}), **labels(owner)},
        "ownerReferences": owner_references(owner),
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def stamp(obj: Manifest, salt: bytes) -> Manifest:
    """`obj` with the annotation APPLIED_HASH over all of it.

    The hash is keyed with `salt`: an annotation is shown where a Secret's data is not (kubectl describe), and a plain
    hash would let a weak password be guessed from it.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()[:16]
    metadata = obj["metadata"]
    annotations = {**metadata.get("annotations", {}), names.APPLIED_HASH: digest}
    return {**obj, "metadata": {**metadata, "annotations": annotations}}


def annotation(obj: Mapping[str, Any] | None, name: str) -> str | None:
    """The value of an annotation of a live object; None if the object or the annotation is not there."""
    value = ((obj or {}).get("metadata", {}).get("annotations") or {}).get(name)
    return None if value is None else str(value)


def controlled_by(obj: Mapping[str, Any], uid: str) -> bool:
    """Whether the object with this UID is the controller of `obj`."""
    references = obj.get("metadata", {}).get("ownerReferences") or []
    return any(ref.get("uid") == uid and ref.get("controller") for ref in references)
