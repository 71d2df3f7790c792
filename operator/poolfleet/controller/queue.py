"""A work queue by key: the level-triggered heart of the operator.

A key is queued once however often it is added, is worked on by one worker at a time, and is queued again if it was
added while being worked on. Events only say *that* something changed; a reconciliation reads what there is.
"""

import asyncio
import heapq
import random
import time
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

URGENT: Final = 0  # a change that somebody waits for
ROUTINE: Final = 1  # the initial list, a periodic look: goes after what became urgent up to ROUTINE_WAITS later
ROUTINE_WAITS: Final = 30.0  # seconds

FIRST_RETRY: Final = 0.2  # seconds; doubles with each further failure
LONGEST_RETRY: Final = 60.0


class QueueClosed(Exception):
    """The queue gives out no more keys."""


class KeyedQueue(Generic[K]):
    """See the module. Not thread-safe: it belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, rand: Callable[[], float] = random.random) -> None:
        """`clock` in seconds; `rand` in [0, 1) spreads retries."""
        self._clock = clock
        self._rand = rand
        self._waiting: dict[K, tuple[float, int]] = {}  # key -> (due, priority); what the heaps say else is outdated
        self._later: list[tuple[float, int, int, K]] = []  # (due, priority, n, key), due in the future
        self._ready: list[tuple[float, int, K, tuple[float, int]]] = []  # (rank, n, key, (due, priority)), due now
        self._count = 0  # breaks ties, so that keys need no order
        self._working: set[K] = set()
        self._dirty: dict[K, tuple[float, int]] = {}
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Event()
        self._closed = False
        self.adds = 0
        """How often a key was added, for the metrics."""

    def add(self, key: K, delay: float = 0.0, priority: int = URGENT) -> None:
        """Have `key` worked on in `delay` seconds. Added twice, the earliest time and the most urgent priority win."""
        self.adds += 1
        wish = (self._clock() + max(0.0, delay), priority)
        known = self._dirty if key in self._working else self._waiting
        if key in known:
            wish = (min(wish[0], known[key][0]), min(wish[1], known[key][1]))
            if wish == known[key]:
                return
        known[key] = wish
        if known is self._waiting:
            self._push(key, *wish)

    def retry(self, key: K) -> float:
        """Add `key` again after a failure; return the delay: 0.2 s, doubled each time up to 60 s, ± 25 %."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** min(failures, 16)) * (0.75 + 0.5 * self._rand())
        self.add(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """Forget the failures of `key`: it worked."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Wait for the next key that is due and mark it as worked on, until done(); raise QueueClosed after close()."""
        while True:
            if self._closed:
                raise QueueClosed
            key = self.get_nowait()
            if key is not None:
                return key
            self._wake.clear()
            due = self._later[0][0] - self._clock() if self._later else None
            try:
                async with asyncio.timeout(due):
                    await self._wake.wait()
            except TimeoutError:
                pass  # something is due now

    def get_nowait(self) -> K | None:
        """The next key that is due, or None; what get() does without waiting."""
        self._mature()
        while self._ready:
            _, _, key, wish = heapq.heappop(self._ready)
            if self._waiting.get(key) == wish:
                del self._waiting[key]
                self._working.add(key)
                return key
        return None

    def done(self, key: K) -> None:
        """The work on `key` has ended; it is queued again if it was added meanwhile."""
        self._working.discard(key)
        wish = self._dirty.pop(key, None)
        if wish is not None:
            self._waiting[key] = wish
            self._push(key, *wish)

    def close(self) -> None:
        """Give out no more keys; what is being worked on goes on."""
        self._closed = True
        self._wake.set()

    @property
    def depth(self) -> int:
        """How many keys are due and wait for a worker."""
        now = self._clock()
        return sum(due <= now for due, _ in self._waiting.values())

    @property
    def working(self) -> frozenset[K]:
        """The keys that are being worked on."""
        return frozenset(self._working)

    def oldest(self) -> float:
        """For how many seconds the longest waiting key has been due; 0 if none is."""
        now = self._clock()
        return max((now - due for due, _ in self._waiting.values() if due <= now), default=0.0)

    def _push(self, key: K, due: float, priority: int) -> None:
        self._count += 1
        heapq.heappush(self._later, (due, priority, self._count, key))
        self._wake.set()

    def _mature(self) -> None:
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            due, priority, count, key = heapq.heappop(self._later)
            if self._waiting.get(key) == (due, priority):
                heapq.heappush(self._ready, (due + priority * ROUTINE_WAITS, count, key, (due, priority)))
