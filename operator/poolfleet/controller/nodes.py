"""Whether a Node is known to run nothing any more: it is deleted, or somebody marked it as out of service."""

from collections.abc import Callable
from typing import Final

from poolfleet.kube.client import Kube
from poolfleet.kube.errors import ApiError, Forbidden, NotFound
from poolfleet.kube.kinds import NODE

OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"
"""Taint that an administrator sets on a Node that is shut down for sure (Kubernetes' non-graceful node shutdown)."""

KEEP_SECONDS: Final = 10.0


class Nodes:
    """Asked only about the nodes of pods that vanished or do not end: nothing is watched for it."""

    def __init__(self, kube: Kube, clock: Callable[[], float]) -> None:
        """`clock` in seconds."""
        self._kube = kube
        self._clock = clock
        self._known: dict[str, tuple[float, bool]] = {}

    async def off(self, name: str) -> bool:
        """Whether the Node `name` is deleted or out of service; False also where it may not be read (rbac.scope
        Namespaced) or the API server does not answer: then nothing is known."""
        known = self._known.get(name)
        if known is not None and self._clock() - known[0] < KEEP_SECONDS:
            return known[1]
        try:
            body = await self._kube.get(NODE, "", name)
            taints = (body.get("spec") or {}).get("taints") or ()
            result = any(taint.get("key") == OUT_OF_SERVICE for taint in taints)
        except NotFound:
            result = True
        except Forbidden:
            result = False
        except ApiError:
            return False
        self._known = {node: seen for node, seen in self._known.items() if self._clock() - seen[0] < KEEP_SECONDS}
        self._known[name] = (self._clock(), result)
        return result
