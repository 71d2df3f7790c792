"""Kubernetes events (events.k8s.io/v1), written sparingly: the same news within ten minutes only raises a count."""

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from poolfleet.kube.client import Body, Kube
from poolfleet.kube.errors import ApiError, NotFound, NotLeader
from poolfleet.kube.kinds import EVENT
from poolfleet.plan.model import Event

CONTROLLER: Final = "poolfleet.dev/operator"
WINDOW: Final = 600.0  # seconds in which the same news is not told again
COUNT_EVERY: Final = 60.0  # a series' count is written at most this often, in seconds
LONGEST_NOTE: Final = 1024  # what the API allows
REMEMBERED: Final = 5000  # news in memory

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _News:
    namespace: str
    name: str  # of the Event
    told: float
    count: int
    written: float


class Recorder:
    """Writes events about objects. Never raises what the API server says: events are news, not state."""

    def __init__(self, kube: Kube, instance: str, clock: Callable[[], float] = time.time) -> None:
        """`instance` is this process (the pod's name); `clock` in seconds since the epoch."""
        self._kube = kube
        self._instance = instance[:128]
        self._clock = clock
        self._news: dict[tuple[str, str, str], _News] = {}
        self.failures = 0
        """How many events could not be written."""

    async def event(self, regarding: Mapping[str, Any], event: Event) -> None:
        """Tell `event` about the object `regarding` (its whole body, or apiVersion, kind and metadata).

        News are the same when object, reason and message are, numbers in the message aside (unless it says `each`).
        """
        try:
            await self._tell(regarding, event)
        except (ApiError, NotLeader) as error:
            self.failures += 1
            logger.warning("event %s was not written: %s", event.reason, error)

    async def _tell(self, regarding: Mapping[str, Any], event: Event) -> None:
        metadata = regarding["metadata"]
        words = event.message if event.each else re.sub(r"\d+", "#", event.message)
        key = (str(metadata.get("uid", "")), event.reason, words)
        now = self._clock()
        known = self._news.get(key)
        if known is not None and now - known.told < WINDOW:
            known.count += 1
            if now - known.written < COUNT_EVERY:
                return
            series = {"count": known.count, "lastObservedTime": _micro(now)}
            known.written = now
            try:
                # "add" of a member that is there replaces it (RFC 6902).
                operation = {"op": "add", "path": "/series", "value": series}
                await self._kube.json_patch(EVENT, known.namespace, known.name, [operation])
                return
            except NotFound:
                pass  # expired; tell it anew
        name = f"{metadata['name'][:200]}.{secrets.token_hex(8)}"
        self._remember(key, _News(metadata["namespace"], name, now, 1, now), now)
        await self._kube.create(
            {
                "apiVersion": EVENT.api_version,
                "kind": EVENT.kind,
                "metadata": {"namespace": metadata["namespace"], "name": name},
                "eventTime": _micro(now),
                "reportingController": CONTROLLER,
                "reportingInstance": self._instance,
                "action": event.action[:128],
                "reason": event.reason[:128],
                "type": event.type,
                "note": _shorten(event.message),
                "regarding": _reference(regarding),
            }
        )

    def _remember(self, key: tuple[str, str, str], news: _News, now: float) -> None:
        if len(self._news) >= REMEMBERED:
            self._news = {k: n for k, n in self._news.items() if now - n.told < WINDOW}
            while len(self._news) >= REMEMBERED:
                del self._news[next(iter(self._news))]
        self._news.pop(key, None)
        self._news[key] = news


def _reference(body: Mapping[str, Any]) -> Body:
    metadata = body["metadata"]
    return {
        "apiVersion": body["apiVersion"],
        "kind": body["kind"],
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata.get("uid", ""),
        "resourceVersion": metadata.get("resourceVersion", ""),
    }


def _shorten(note: str) -> str:
    # The limit is in bytes.
    data = note.encode()
    return note if len(data) <= LONGEST_NOTE else data[: LONGEST_NOTE - 3].decode(errors="ignore") + "…"


def _micro(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
