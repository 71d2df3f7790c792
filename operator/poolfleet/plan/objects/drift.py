"""Whether a live object differs from what is wanted, so that only then something is written.

Server-side apply of an unchanged object writes nothing either, but costs a request; and an object that somebody edited
must be found. `desired` has to be a subset of `live`: what others added stays where server-side apply lets it stay.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

MERGE_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "ownerReferences": ("uid",),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
}
"""Lists whose items are identified by keys, as in the API's own schema (x-kubernetes-list-map-keys)."""

# `ports` has keys in a container and in a Service; in a NetworkPolicy the whole list is one value.
_PORTS: Final[Mapping[str, tuple[str, ...]]] = {
    "Service": ("port", "protocol"),
    "Deployment": ("containerPort", "protocol"),
}

# Selectors are one value to server-side apply: a label more selects other pods.
_WHOLE: Final = frozenset({"selector", "podSelector", "nodeSelector"})

_SUFFIXES: Final[Mapping[str, Decimal]] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{suffix: Decimal(1000) ** n for n, suffix in enumerate(["k", "M", "G", "T", "P", "E"], 1)},
    **{suffix: Decimal(1024) ** n for n, suffix in enumerate(["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"], 1)},
}


def differs(desired: Mapping[str, Any], live: Mapping[str, Any] | None) -> bool:
    """Whether `desired` must be applied: `live` is missing, was applied from something else, or was edited.

    "From something else" is what the annotation APPLIED_HASH in `desired` tells: a field that is not wished any more
    would not be missed otherwise.
    """
    if live is None:
        return True
    kind = str(desired.get("kind", ""))
    # Lists from a watch leave out kind and apiVersion of their items.
    body = {key: value for key, value in desired.items() if key not in ("kind", "apiVersion")}
    if kind == "Secret":
        data = body.pop("data", {})
        if not _same_data(data, live.get("data") or {}):
            return True
    return not is_subset(body, live, kind)


def is_subset(desired: Any, live: Any, kind: str = "", field: str = "") -> bool:
    """Whether all that `desired` says holds in `live`; `kind` is the object's kind, `field` the name of this value.

    Maps may have more keys; lists with merge keys more items; all other lists are compared item by item, and the items
    may have been completed with defaults. An empty value equals an absent one.
    """
    if field in _WHOLE or (field == "ingress" and kind == "NetworkPolicy"):
        return bool(_without_empty(desired) == _without_empty(live))
    if isinstance(desired, Mapping):
        if not isinstance(live, Mapping):
            return not desired and live is None
        if field in ("requests", "limits"):
            return all(_same_quantity(value, live.get(key)) for key, value in desired.items())
        return all(is_subset(value, live.get(key), kind, key) for key, value in desired.items())
    if isinstance(desired, list):
        if not desired:
            return not live
        return isinstance(live, list) and _list_is_subset(desired, live, kind, field)
    if desired is None or desired == "":
        return live is None or live == ""
    if field == "sizeLimit":
        return _same_quantity(desired, live)
    if isinstance(desired, bool) or isinstance(live, bool):
        return desired is live
    return bool(desired == live)


def merge_keys(field: str, kind: str) -> tuple[str, ...] | None:
    """The keys that identify the items of list `field` in an object of `kind`; None if the list is one value."""
    return _PORTS.get(kind) if field == "ports" else MERGE_KEYS.get(field)


def _list_is_subset(desired: Sequence[Any], live: Sequence[Any], kind: str, field: str) -> bool:
    keys = merge_keys(field, kind)
    if keys is None:
        return len(desired) == len(live) and all(
            is_subset(item, other, kind) for item, other in zip(desired, live, strict=True)
        )
    known = {tuple(item.get(key) for key in keys): item for item in live if isinstance(item, Mapping)}
    return all(is_subset(item, known.get(tuple(item.get(key) for key in keys)), kind) for item in desired)


def _without_empty(value: Any) -> Any:
    """`value` without empty maps, lists and nulls at any depth: the API server drops most of them."""
    if isinstance(value, Mapping):
        pairs = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in pairs.items() if item not in ({}, [], None)}
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    return value


def _same_data(desired: Mapping[str, str], live: Mapping[str, str]) -> bool:
    """Whether a Secret holds exactly the wanted files: one more would be hashed and mounted too."""
    return desired.keys() == live.keys() and all(_decoded(desired[key]) == _decoded(live[key]) for key in desired)


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return None


def _same_quantity(desired: Any, live: Any) -> bool:
    wanted = _quantity(desired)
    return desired == live if wanted is None else wanted == _quantity(live)


def _quantity(value: Any) -> Decimal | None:
    """A Kubernetes quantity ("10m", "48Mi", 1, "1e3") as a number; None if it is none."""
    text = str(value)
    for length in (2, 1, 0):
        suffix = text[len(text) - length :] if length else ""
        if suffix in _SUFFIXES and len(text) > length:
            try:
                return Decimal(text[: len(text) - length]) * _SUFFIXES[suffix]
            except InvalidOperation:
                continue
    return None
