"""The user's pod template fields (spec.template), laid over the operator's pod template.

Maps merge field by field, null removes a field, and lists whose items have keys (containers by name, volumeMounts by
mountPath ...) merge item by item, as Kubernetes' own strategic merge does. What holds the promise is then laid over the
result once more, and everything of the user's that this took away is named.

Why a merge here and not a second field manager on the Deployment: with two managers each reconciliation would be two
writes, the user's fields and then the forced ones, and every write of a pod template starts a rollout in between.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

from poolfleet.api import names
from poolfleet.plan.objects.drift import merge_keys

Manifest = dict[str, Any]

SETTINGS_PREFIX: Final = "POOLFLEET_"
"""Environment variables of this prefix are the agent's own."""


class TemplateError(ValueError):
    """spec.template is not of the shape of a pod template; the message says where."""


# What of the operator's containers a user cannot change. Free are resources, imagePullPolicy, further env, ports and
# volumeMounts, and whatever else is not here.
_CONTAINER_FIELDS: Final = (
    "image",  # spec.pgbouncer.image is the field for it
    "command",
    "args",
    "workingDir",
    "restartPolicy",
    "restartPolicyRules",
    "startupProbe",
    "readinessProbe",
    "livenessProbe",  # one that fires on a draining PgBouncer would cut its clients off
    "lifecycle",
    "securityContext",
    "stdin",
    "tty",
)
_SPEC_FIELDS: Final = (
    "automountServiceAccountToken",
    "restartPolicy",
    "activeDeadlineSeconds",
    "shareProcessNamespace",
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "hostUsers",
    "os",
)
_SECURITY_FIELDS: Final = ("runAsNonRoot", "runAsUser", "fsGroup")  # both containers and the volumes need the same


def overlay(base: Manifest, user: Mapping[str, Any]) -> tuple[Manifest, tuple[str, ...]]:
    """Return (pod template, paths of the user's fields that were overridden).

    `base` is the operator's template: metadata and spec. Raises TemplateError for a `user` that cannot be merged; what
    the API server would refuse is left to the API server.
    """
    user = {key: value for key, value in user.items() if value is not None}
    for key in user:
        if key not in ("metadata", "spec"):
            raise TemplateError(f"{key} is not a field of a pod template; metadata and spec are")
    metadata = user.get("metadata", {})
    for key in metadata if isinstance(metadata, Mapping) else ():
        if key not in ("labels", "annotations"):
            raise TemplateError(f"metadata.{key} cannot be set in a pod template here; labels and annotations can")
    merged = merge(base, user)
    overridden: list[str] = []
    _hold_metadata(merged["metadata"], base["metadata"], overridden)
    _hold_spec(merged["spec"], base["spec"], overridden)
    return merged, tuple(overridden)


def merge(base: Any, over: Any, path: str = "") -> Any:
    """Lay `over` on `base` and return a new value; `path` is where, for messages. Raises TemplateError."""
    if isinstance(base, Mapping):
        if not isinstance(over, Mapping):
            raise TemplateError(f"{path or 'the template'} must be a map")
        result = {key: copy.deepcopy(value) for key, value in base.items() if key not in over}
        for key, value in over.items():
            if value is None:
                continue
            where = f"{path}.{key}" if path else str(key)
            # What is not there yet is merged with nothing, so that its own nulls and keys are seen to as well.
            result[key] = merge(base.get(key, _nothing_like(value)), value, where)
        # In the base's order, so that an empty template changes nothing at all.
        return {key: result[key] for key in [*base, *result] if key in result}
    if isinstance(base, list):
        if not isinstance(over, list):
            raise TemplateError(f"{path} must be a list")
        keys = merge_keys(path.rpartition(".")[2], "Deployment")
        return _without_null(over) if keys is None else _merge_list(base, over, keys, path)
    return copy.deepcopy(over)


def _nothing_like(value: Any) -> Any:
    return {} if isinstance(value, Mapping) else [] if isinstance(value, list) else None


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


def _merge_list(base: Sequence[Any], over: Sequence[Any], keys: tuple[str, ...], path: str) -> list[Any]:
    result = {_identity(item, keys): copy.deepcopy(item) for item in base}
    for position, item in enumerate(over):
        where = f"{path}[{position}]"
        if not isinstance(item, Mapping):
            raise TemplateError(f"{where} must be a map")
        if keys == ("containerPort", "protocol") and "protocol" not in item:
            item = {**item, "protocol": "TCP"}
        if missing := [key for key in keys if item.get(key) is None]:
            raise TemplateError(f"{where} needs {' and '.join(missing)}")
        identity = _identity(item, keys)
        named = f"{path}[{item[keys[0]]}]"
        result[identity] = merge(result.get(identity, {}), item, named)
    return list(result.values())


def _identity(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(item.get(key)) for key in keys)


def _hold(target: Manifest, base: Mapping[str, Any], fields: Sequence[str], path: str, overridden: list[str]) -> None:
    """Give `fields` of `target` the values of `base`, or take them away where it has none."""
    for name in fields:
        if target.get(name) != base.get(name):
            overridden.append(f"{path}.{name}")
        if name in base:
            target[name] = copy.deepcopy(base[name])
        else:
            target.pop(name, None)


def _hold_metadata(metadata: Manifest, base: Mapping[str, Any], overridden: list[str]) -> None:
    for field in ("labels", "annotations"):
        wanted = base.get(field) or {}
        metadata[field] = metadata.get(field) or {}
        _hold(metadata[field], wanted, [*wanted], f"metadata.{field}", overridden)
    # A template's directive would be copied to every pod.
    _hold(metadata["annotations"], {}, [names.DIRECTIVE], "metadata.annotations", overridden)


def _hold_spec(spec: Manifest, base: Mapping[str, Any], overridden: list[str]) -> None:
    _hold(spec, base, _SPEC_FIELDS, "spec", overridden)
    context = spec.setdefault("securityContext", {})
    _hold(context, base["securityContext"], _SECURITY_FIELDS, "spec.securityContext", overridden)
    grace = spec.get("terminationGracePeriodSeconds")
    least = base["terminationGracePeriodSeconds"]
    if not isinstance(grace, int) or isinstance(grace, bool) or grace < least:
        overridden.append("spec.terminationGracePeriodSeconds")
        spec["terminationGracePeriodSeconds"] = least
    _hold_items(spec, base, "volumes", "name", "spec", overridden)
    for field in ("initContainers", "containers"):
        _hold_containers(spec, base, field, overridden)


def _hold_items(
    target: Manifest, base: Mapping[str, Any], field: str, key: str, path: str, overridden: list[str]
) -> None:
    """Give the list `field` of `target` every item of `base` as it is there; other items stay."""
    ours = {item[key]: item for item in base.get(field, [])}
    items = [item for item in target.get(field) or [] if item[key] not in ours]
    there = {item[key]: item for item in target.get(field) or []}
    overridden.extend(f"{path}.{field}[{name}]" for name, item in ours.items() if there.get(name) != item)
    if ours or items:
        target[field] = [*copy.deepcopy([*ours.values()]), *items]


def _drop_settings(target: Manifest, base: Mapping[str, Any], path: str, overridden: list[str]) -> None:
    """Take away further settings of the agent: they would move the files that the promise is kept in."""
    ours = {item["name"] for item in base.get("env", [])}
    for item in list(target.get("env") or []):
        if item["name"].startswith(SETTINGS_PREFIX) and item["name"] not in ours:
            target["env"].remove(item)
            overridden.append(f"{path}.env[{item['name']}]")


def _hold_containers(spec: Manifest, base: Mapping[str, Any], field: str, overridden: list[str]) -> None:
    ours = {container["name"]: container for container in base[field]}
    there = {container["name"]: container for container in spec.get(field) or []}
    held = []
    for name, container in ours.items():
        path = f"spec.{field}[{name}]"
        target = there.get(name)
        if target is None:
            overridden.append(path)
            target = copy.deepcopy(container)
        _hold(target, container, _CONTAINER_FIELDS, path, overridden)
        _hold_items(target, container, "env", "name", path, overridden)
        _drop_settings(target, container, path, overridden)
        _hold_items(target, container, "ports", "containerPort", path, overridden)
        _hold_items(target, container, "volumeMounts", "mountPath", path, overridden)
        held.append(target)
    # Ours first: an init container before the agent would delay its first grant, one after it runs once it has one.
    spec[field] = [*held, *(container for name, container in there.items() if name not in ours)]
