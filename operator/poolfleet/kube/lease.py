"""Leader election over one Lease, with the timing of client-go and none of the remote clocks.

A process leads from a successful write of the Lease until `renew_deadline` after *sending* it. Another process takes
over only when it has seen the Lease unchanged for `duration` of its own clock. Since duration > renew_deadline, and
writes carry a timeout that ends within it, no two processes write at the same time (facts/kopf.md A.6).
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from poolfleet.kube.client import Body, Kube
from poolfleet.kube.errors import ApiError, Conflict, LostLease, NotFound
from poolfleet.kube.kinds import LEASE

REQUEST_TIMEOUT: Final = 5.0  # seconds

logger = logging.getLogger(__name__)


class Elector:
    """Holds, or tries to get, the Lease `namespace`/`name` as `identity` (unique per process start)."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry_period: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """All times in seconds. `clock` measures spans; `wall` only fills in the times that people read."""
        if not duration > renew_deadline > retry_period > 0:
            raise ValueError("wanted: duration > renew_deadline > retry_period > 0")
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._duration = duration
        self._renew_deadline = renew_deadline
        self._retry_period = retry_period
        self._clock = clock
        self._wall = wall
        self._observed: Body | None = None  # the Lease as last seen
        self._observed_at = 0.0
        self._renewed_at: float | None = None  # when the last successful write was sent; None: not the leader
        self.acquired = asyncio.Event()
        """Set when this process has become the leader; never cleared: a process leads once."""
        self.contact: float | None = None
        """`clock` at the last answer of the API server."""

    def remaining(self) -> float:
        """For how many more seconds this process may send writes; <= 0: not at all."""
        if self._renewed_at is None:
            return 0.0
        return self._renewed_at + self._renew_deadline - self._clock()

    def is_leader(self) -> bool:
        """Whether this process leads now; false as soon as the renew deadline has passed, whatever run() is doing."""
        return self.remaining() > 0

    @property
    def holder(self) -> str:
        """Who holds the Lease as far as is known; "" if nobody."""
        return _spec(self._observed).get("holderIdentity") or ""

    async def run(self) -> None:
        """Get the Lease, keep it, for ever; raise LostLease when it cannot be kept."""
        while not await self._attempt():  # noqa: ASYNC110 - the Lease is polled
            await asyncio.sleep(self._retry_period * random.uniform(1.0, 1.2))  # noqa: S311 - no secret
        logger.info("leading as %s", self._identity)
        self.acquired.set()
        while True:
            await asyncio.sleep(self._retry_period)
            while not await self._attempt():
                if self.holder not in (self._identity, ""):
                    self._renewed_at = None
                    raise LostLease(f"{self.holder} holds the Lease now")
                if not self.is_leader():
                    self._renewed_at = None
                    raise LostLease(f"the Lease could not be renewed for {self._renew_deadline:.0f} s")
                await asyncio.sleep(min(self._retry_period, max(0.01, self.remaining())))

    async def release(self) -> None:
        """Give the Lease up, so that another process need not wait; this process must have stopped writing."""
        if self._renewed_at is None or self._observed is None:
            return
        self._renewed_at = None
        try:
            await self._look(REQUEST_TIMEOUT)  # a renewal may have been cut off after it was taken
        except ApiError as error:
            logger.warning("the Lease could not be released and runs out by itself: %s", error)
            return
        if self.holder != self._identity:
            return
        spec = {**_spec(self._observed), "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._now()}
        try:
            await self._kube.replace(self._lease(spec), timeout=REQUEST_TIMEOUT)
        except ApiError as error:
            logger.warning("the Lease could not be released and runs out by itself: %s", error)
        else:
            logger.info("released the Lease")

    async def _attempt(self) -> bool:
        """Try once to get or to renew the Lease; whether it is ours afterwards."""
        timeout = REQUEST_TIMEOUT if self._renewed_at is None else max(0.01, min(REQUEST_TIMEOUT, self.remaining()))
        try:
            # The leader knows the Lease: one request instead of two. Anything unexpected makes it look.
            if self._renewed_at is None or self._observed is None:
                await self._look(timeout)
                if not self._is_free():
                    return False
            sent = self._clock()
            written = await self._write(timeout)
        except (Conflict, NotFound):  # a lost race, or the Lease was edited or deleted: see what it says now
            await self._look_again(timeout)
            return False
        except ApiError as error:
            level = logging.WARNING if self._renewed_at is not None else logging.INFO
            logger.log(level, "the Lease: %s", error)
            return False
        self._observe(written)
        self._renewed_at = sent
        return True

    async def _look_again(self, timeout: float) -> None:
        try:
            await self._look(timeout)
        except ApiError as error:
            logger.info("the Lease: %s", error)

    async def _look(self, timeout: float) -> None:
        try:
            self._observe(await self._kube.get(LEASE, self._namespace, self._name, timeout=timeout))
        except NotFound:
            self.contact = self._clock()
            self._observed = None

    def _observe(self, lease: Body) -> None:
        self.contact = self._clock()
        # A change is what a holder does to stay; its times are by its clock, ours says when it was seen.
        if self._observed is None or _spec(self._observed) != _spec(lease):
            self._observed_at = self._clock()
        self._observed = lease

    def _is_free(self) -> bool:
        if self.holder in ("", self._identity):
            return True
        duration = max(self._duration, float(_spec(self._observed).get("leaseDurationSeconds") or 0))
        return self._clock() >= self._observed_at + duration

    async def _write(self, timeout: float) -> Body:
        spec = _spec(self._observed)
        now = self._now()
        if spec.get("holderIdentity") == self._identity:
            spec = {**spec, "renewTime": now}
        else:
            transitions = int(spec.get("leaseTransitions") or 0) + (1 if spec else 0)
            spec = {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, round(self._duration)),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": transitions,
            }
        if self._observed is None:
            return await self._kube.create(self._lease(spec), timeout=timeout)
        return await self._kube.replace(self._lease(spec), timeout=timeout)

    def _lease(self, spec: Body) -> Body:
        metadata: Body = {"namespace": self._namespace, "name": self._name}
        if self._observed is not None:  # keep labels and annotations of others; the version makes it a compare-and-set
            metadata = {k: v for k, v in self._observed["metadata"].items() if k != "managedFields"}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}

    def _now(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _spec(lease: Body | None) -> Body:
    return dict((lease or {}).get("spec") or {})
