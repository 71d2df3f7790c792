"""Lists beside the watches: the first one, before anything is decided, and then one every few minutes.

A watch can miss things: kopf forgets nothing that vanishes while it is disconnected, and a stream can die without a
word (facts/kopf.md A.3). So every kind is listed, metadata only, and compared with the store. This is also how a dead
watch is found: without a canary object, for every kind, and without a write. What a watch should have shown long ago
is read and put right at once; if it happens twice running, DeadWatch ends the process and another one takes over.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Final

from poolfleet.api import names
from poolfleet.controller import metrics
from poolfleet.controller.handlers import DeadWatch, Observer, Watch
from poolfleet.controller.queue import ROUTINE
from poolfleet.controller.store import Body, Name, Store
from poolfleet.kube.client import Kube
from poolfleet.kube.errors import ApiError, NotFound
from poolfleet.kube.kinds import POOL, SECRET, Kind

PERIOD: Final = 180.0  # seconds between two looks at a kind, a third more or less
GRACE: Final = 10.0  # seconds that a watch may be late
AFTER_RELIST: Final = 2.0
OWN_SECRETS: Final = 60.0

logger = logging.getLogger(__name__)


class Resync:
    """See the module. `namespaces` empty: the whole cluster."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        observer: Observer,
        watches: Sequence[Watch],
        namespaces: Sequence[str] = (),
        *,
        period: float = PERIOD,
        grace: float = GRACE,
    ) -> None:
        """`period` and `grace` in seconds."""
        self._kube = kube
        self._store = store
        self._observer = observer
        self._watches = {watch.kind: watch for watch in watches}
        self._namespaces: Sequence[str | None] = list(namespaces) or [None]
        self._period = period
        self._grace = grace
        self._strikes: dict[Kind, int] = {}
        self._soon = {kind: asyncio.Event() for kind in self._watches}

    async def initial(self) -> None:
        """List everything into the store; afterwards what is not there does not exist. Raises ApiError."""
        for kind, watch in self._watches.items():
            for namespace in self._namespaces:
                for body in await self._kube.list(kind, namespace, watch.selector):
                    self._observer.seen(kind, body, ROUTINE)
            self._store.mark_synced(kind.plural)
        if SECRET not in self._watches:
            await self.own_secrets()
            self._store.mark_synced(SECRET.plural)
        self._observer.everything()

    def soon(self, kind: Kind) -> None:
        """Look at `kind` in about two seconds: its watch has started anew."""
        if kind in self._soon:
            self._soon[kind].set()

    async def run(self) -> None:
        """Look at every kind again and again; raise DeadWatch for a watch that does not show what happens."""
        try:
            async with asyncio.TaskGroup() as group:
                for kind in self._watches:
                    group.create_task(self._run(kind))
                if SECRET not in self._watches:
                    group.create_task(self._run_own_secrets())
        except* DeadWatch as errors:
            raise errors.exceptions[0] from None

    async def _run(self, kind: Kind) -> None:
        while True:
            wait = self._period if not self._strikes.get(kind) else 2 * self._grace
            try:
                async with asyncio.timeout(wait * random.uniform(0.67, 1.33)):  # noqa: S311 - no secret
                    await self._soon[kind].wait()
                await asyncio.sleep(AFTER_RELIST)
            except TimeoutError:
                pass
            self._soon[kind].clear()
            try:
                await self.look(kind)
            except ApiError as error:
                logger.warning("%s could not be listed: %s", kind.plural, error)

    async def look(self, kind: Kind) -> int:
        """Compare `kind` with the store once and put it right. Returns how many changes no watch had shown."""
        before = {_name(body): _uid(body) for body in self._store.list(kind.plural)}
        listed: dict[Name, Body] = {}
        for namespace in self._namespaces:
            for body in await self._kube.list(kind, namespace, self._watches[kind].selector, metadata_only=True):
                listed[_name(body)] = body
        # The list is newer than `before`: what was there then and is not listed has vanished.
        lost = [name for name, uid in before.items() if name not in listed or _uid(listed[name]) != uid]
        missed = [name for name, body in listed.items() if self._unseen(kind, body)]
        if lost or missed:
            await asyncio.sleep(self._grace)  # the watch may just be about to show it
        vanished = self._bury(kind, [name for name in lost if self._is(kind, name, before[name])])
        changed = 0
        for name in missed:
            if self._unseen(kind, listed[name]):
                changed += await self._read(kind, name)
        if vanished or changed:
            logger.warning("%s: a list found %d changed and %d vanished", kind.plural, changed, vanished)
        # Vanished ones are normal after a watch has started anew; a change must always be shown.
        self._strikes[kind] = self._strikes.get(kind, 0) + 1 if changed else 0
        if self._strikes[kind] >= 2:
            raise DeadWatch(f"the watch of {kind.plural} does not show what happens")
        return vanished + changed

    def _unseen(self, kind: Kind, body: Body) -> bool:
        """Whether the store has something older than this metadata of an object."""
        known = self._store.get(kind.plural, *_name(body))
        if known is None:
            return not self._store.buried(_uid(body))
        return _version(known) < _version(body)

    def _is(self, kind: Kind, name: Name, uid: str) -> bool:
        known = self._store.get(kind.plural, *name)
        return known is not None and _uid(known) == uid

    def _bury(self, kind: Kind, lost: Sequence[Name]) -> int:
        for name in lost:
            body = self._store.get(kind.plural, *name)
            if body is not None and self._observer.gone(kind, body):
                metrics.RESYNC_FOUND.labels(kind.plural, "vanished").inc()
        return len(lost)

    async def _read(self, kind: Kind, name: Name) -> int:
        try:
            body = await self._kube.get(kind, *name)
        except NotFound:
            return 0
        if not self._observer.seen(kind, body):
            return 0
        metrics.RESYNC_FOUND.labels(kind.plural, "changed").inc()
        return 1

    # Where Secrets may not be listed and watched, the operator's own are read by name.

    async def _run_own_secrets(self) -> None:
        while True:
            await asyncio.sleep(OWN_SECRETS * random.uniform(0.67, 1.0))  # noqa: S311 - no secret
            try:
                await self.own_secrets()
            except ApiError as error:
                logger.warning("the operator's own Secrets could not be read: %s", error)

    async def own_secrets(self) -> None:
        """Read the Secrets of every PgPool by name into the store. Raises ApiError."""
        for pool in self._store.list(POOL.plural):
            namespace, name = _name(pool)
            known = {_name(body)[1]: body for body in self._store.owned_by(_uid(pool), SECRET.plural)}
            for secret in sorted({names.config_secret(name), names.binding_secret(name), *known}):
                try:
                    body = await self._kube.get(SECRET, namespace, secret)
                except NotFound:
                    if secret in known:
                        self._observer.gone(SECRET, known[secret])
                else:
                    if any(owner.get("uid") == _uid(pool) for owner in body["metadata"].get("ownerReferences") or ()):
                        self._observer.seen(SECRET, body, ROUTINE)


def _name(body: Body) -> Name:
    return str(body["metadata"].get("namespace", "")), str(body["metadata"]["name"])


def _uid(body: Body) -> str:
    return str(body["metadata"].get("uid", ""))


def _version(body: Body) -> int:
    version = str(body["metadata"].get("resourceVersion", ""))
    return int(version) if version.isdigit() else 0
