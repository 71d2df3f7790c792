"""Secrets that a rotation may write: those that it made, and those that their owner has handed over. Pure.

A rotation under way has a Secret of its own beside the one that it changes, `names.next_secret`: whatever it is going
to set is stored there first, so that no crash can lose it. Both carry the label poolfleet.dev/managed=true.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

from poolfleet.api import names
from poolfleet.plan.objects.meta import annotation

Body = Mapping[str, Any]
"""A live Secret as JSON."""


def refusal(secret: Body) -> str:
    """Why a rotation must not write this Secret and who owns it, "" if it may."""
    metadata = secret["metadata"]
    if (metadata.get("labels") or {}).get(names.LABEL_MANAGED) == "true":
        return ""
    owners = metadata.get("ownerReferences") or ()
    owner = next((each for each in owners if each.get("controller")), next(iter(owners), None))
    by = (metadata.get("labels") or {}).get(names.LABEL_MANAGED_BY)
    if owner is not None:
        whose = f"it belongs to {owner.get('kind')} {owner.get('name')}"
    else:
        whose = f"it is managed by {by}" if by else "somebody else made it"
    return (
        f'Secret "{metadata["name"]}" is not Poolfleet\'s to write: {whose}. Rotate it there, or set the label '
        f"{names.LABEL_MANAGED}=true on it."
    )


def next_login(
    main: str, namespace: str, login: Mapping[str, str], about: Mapping[str, Any], pool: str
) -> dict[str, Any]:
    """The Secret with the next login of Secret `main`. `about` is what `read_about` gives back; `pool` is looked at
    when it changes. It has no owner: with the pool it would vanish, and with it perhaps the only valid password."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names.next_secret(main),
            "namespace": namespace,
            "labels": {
                names.LABEL_MANAGED_BY: names.MANAGED_BY,
                names.LABEL_MANAGED: "true",
                names.LABEL_WATCH: "true",
                names.LABEL_POOL: pool,
            },
            "annotations": {names.NEXT: json.dumps(dict(about), sort_keys=True, separators=(",", ":"))},
        },
        "type": "Opaque",
        "data": encoded(login),
    }


def encoded(values: Mapping[str, str]) -> dict[str, str]:
    """`values` as they stand in a Secret's data."""
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


def read_about(following: Body) -> dict[str, Any]:
    """What the annotation of such a Secret says; empty if it is not one of ours."""
    try:
        about = json.loads(annotation(following, names.NEXT) or "{}")
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def rotated(secret: Body) -> dict[str, Any]:
    """What the annotation names.ROTATED says: `at`, RFC 3339, and `for`, the values of names.ROTATE by pool that were
    obeyed; empty if nothing was."""
    try:
        record = json.loads(annotation(secret, names.ROTATED) or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
