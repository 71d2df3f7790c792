"""Secrets that users own: labelled ones come with the watch, all others are read by name and looked at again.

A Secret with the label poolfleet.dev/watch=true is in the store within milliseconds of its change. Any other is read
when a reconciliation asks for it, and again every 55 s while a PgPool or PgServer names it (a missing one every 5 s).
Contents are never logged.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from poolfleet.controller.store import Body, Name, Store
from poolfleet.kube.client import Kube
from poolfleet.kube.errors import ApiError, NotFound
from poolfleet.kube.kinds import SECRET

REREAD: Final = 55.0  # seconds; with the time until the next look and until pods have loaded it: within 60 s
REREAD_MISSING: Final = 5.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    body: Body | None  # None: there is no such Secret
    read: float


class Secrets:
    """See the module. `changed(namespace, name)` is called when a Secret that was read by name is not what it was."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        changed: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` in seconds."""
        self._kube = kube
        self._store = store
        self._changed = changed
        self._clock = clock
        self._cache: dict[Name, _Entry] = {}
        self._reading: dict[Name, asyncio.Lock] = {}

    async def get(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return the Secret (`data` base64-encoded, as the API has it), at most 55 s old, or None if there is none.

        Raises ApiError if it cannot be read.
        """
        watched = self._store.get(SECRET.plural, namespace, name)
        if watched is not None:
            self._cache.pop((namespace, name), None)
            return watched
        lock = self._reading.setdefault((namespace, name), asyncio.Lock())
        try:
            async with lock:  # many pools may ask for one Secret at the same time
                entry = self._cache.get((namespace, name))
                if entry is None or self._clock() - entry.read >= _age(entry):
                    entry = await self._read(namespace, name)
                return entry.body
        finally:
            if not lock.locked():
                self._reading.pop((namespace, name), None)

    def written(self, body: Body) -> None:
        """Take a Secret as an own write has left it, if it is one that is read by name."""
        name = (body["metadata"]["namespace"], body["metadata"]["name"])
        if name in self._cache:
            self._cache[name] = _Entry(body, self._clock())
            self._changed(*name)

    def forget(self, namespace: str, name: str) -> None:
        """This Secret was deleted: read it anew when somebody asks."""
        self._cache.pop((namespace, name), None)

    async def run(self) -> None:
        """Look again at what was read by name, for ever."""
        while True:
            await asyncio.sleep(1.0)
            await self.refresh()

    async def refresh(self) -> None:
        """Read again what is due; forget what no PgPool and no PgServer names any more or the watch shows by now."""
        for (namespace, name), entry in list(self._cache.items()):
            if self._store.get(SECRET.plural, namespace, name) or not self._store.referring(namespace, name):
                self._cache.pop((namespace, name), None)
                continue
            if self._clock() - entry.read < _age(entry):
                continue
            try:
                await self._read(namespace, name)
            except ApiError as error:
                entry.read = self._clock()  # the old content stays good; no hurry
                logger.warning("Secret %s/%s could not be read again: %s", namespace, name, error)

    async def _read(self, namespace: str, name: str) -> _Entry:
        body: Body | None
        try:
            body = await self._kube.get(SECRET, namespace, name)
        except NotFound:
            body = None
        if body is not None:
            body["metadata"].pop("managedFields", None)
        known = self._cache.get((namespace, name))
        entry = self._cache[namespace, name] = _Entry(body, self._clock())
        if known is not None and _identity(known.body) != _identity(body):
            self._changed(namespace, name)
        return entry


def _age(entry: _Entry) -> float:
    return REREAD if entry.body is not None else REREAD_MISSING


def _identity(body: Body | None) -> tuple[str, str] | None:
    return None if body is None else (body["metadata"].get("uid", ""), body["metadata"].get("resourceVersion", ""))
