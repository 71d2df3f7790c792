"""Writing Secrets of a rotation: each only over what was seen (plan/managed.py says which may be written)."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from poolfleet.api import names
from poolfleet.controller.context import Context
from poolfleet.controller.store import Body
from poolfleet.kube.errors import NotFound
from poolfleet.kube.kinds import SECRET
from poolfleet.plan.managed import encoded


async def create(context: Context, manifest: Mapping[str, Any]) -> Body:
    """Make a Secret; Conflict if there is one of that name."""
    return await context.kube.create(dict(manifest), manager=names.ROTATION_FIELD_MANAGER)


async def write(context: Context, secret: Body, values: Mapping[str, str], rotated: Mapping[str, Any]) -> Body:
    """Set these keys of a Secret, and its annotation names.ROTATED; Conflict if it is not what was seen any more.

    `values`: key to text. Raises ApiError.
    """
    metadata = secret["metadata"]
    operations: list[dict[str, Any]] = [
        {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
        {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
    ]
    if not metadata.get("annotations"):
        operations.append({"op": "add", "path": "/metadata/annotations", "value": {}})
    if not secret.get("data"):
        operations.append({"op": "add", "path": "/data", "value": {}})
    for key, value in encoded(values).items():
        operations.append({"op": "add", "path": f"/data/{key}", "value": value})  # no key of a Secret holds / or ~
    record = json.dumps(dict(rotated), sort_keys=True, separators=(",", ":"))
    path = "/metadata/annotations/" + names.ROTATED.replace("/", "~1")
    operations.append({"op": "add", "path": path, "value": record})
    body = await context.kube.json_patch(
        SECRET, metadata["namespace"], metadata["name"], operations, manager=names.ROTATION_FIELD_MANAGER
    )
    context.secrets.written(body)
    return body


async def remove(context: Context, secret: Body) -> None:
    """Delete the Secret if it is still the one that was seen; Conflict if it is another."""
    metadata = secret["metadata"]
    with suppress(NotFound):  # somebody else has
        await context.kube.delete(SECRET, metadata["namespace"], metadata["name"], uid=metadata["uid"])
    context.store.remove(SECRET.plural, secret)
    context.secrets.forget(metadata["namespace"], metadata["name"])
