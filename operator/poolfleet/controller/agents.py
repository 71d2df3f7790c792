"""What the agents say: one long poll per pod, so that the operator hears of a change within milliseconds.

200 pods are 200 idle connections and one answer each per 25 s. An answer counts only if its MAC is right under the
key of the pod's own pool and it speaks for that pod's UID.
"""

import asyncio
import base64
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from poolfleet.api import names
from poolfleet.api.wire import AgentState, WireError, verify
from poolfleet.controller.store import Store
from poolfleet.kube.kinds import SECRET

WAIT: Final = 25  # seconds that an agent may keep a question
TIMEOUT: Final = 35.0  # seconds until it counts as lost
FIRST_RETRY: Final = 0.2
LONGEST_RETRY: Final = 5.0
STALE: Final = 5.0  # seconds of failing after which the last answer is no longer shown
PACE: Final = 0.1  # seconds between two questions at least
LARGEST: Final = 1 << 20  # bytes of an answer

logger = logging.getLogger(__name__)


class AgentError(Exception):
    """An agent's answer is not to be believed, or there is none; the message says why."""


@dataclass(slots=True)
class _Poll:
    namespace: str
    pod: str
    pool: str
    ip: str
    task: asyncio.Task[None]
    state: AgentState | None = None
    failing_since: float | None = None
    error: str = ""


class Agents:
    """See the module."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        port: int = names.AGENT_PORT,
    ) -> None:
        """`clock` in seconds; `port` is another one only in tests. To be used as an async context manager."""
        self._store = store
        self.changed: Callable[[str, str, str], None] = lambda namespace, pool, uid: None
        """Called when a pod's state is new, or cannot be read any more: namespace, pool, pod UID."""
        self._clock = clock
        self._port = port
        self._polls: dict[str, _Poll] = {}
        self._session: aiohttp.ClientSession | None = None
        self.answers = 0
        """Answers taken, for the metrics."""
        self.failures = 0
        """Questions that failed, for the metrics."""

    async def __aenter__(self) -> "Agents":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # one connection per pod, however many
            timeout=aiohttp.ClientTimeout(total=TIMEOUT, sock_connect=5.0),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [poll.task for poll in self._polls.values()]
        for uid in [*self._polls]:
            self.drop(uid)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def follow(self, pods: Iterable[Mapping[str, Any]]) -> None:
        """Start or stop polling each of these pods, as their bodies tell; other pods are left as they are."""
        for body in pods:
            metadata, status = body["metadata"], body.get("status") or {}
            uid, ip = str(metadata.get("uid", "")), str(status.get("podIP") or "")
            pool = (metadata.get("labels") or {}).get(names.LABEL_POOL)
            if not pool or not ip or status.get("phase") in ("Succeeded", "Failed"):
                self.drop(uid)
                continue
            known = self._polls.get(uid)
            if known is None or known.ip != ip:
                self._start(uid, str(metadata.get("namespace", "")), str(metadata["name"]), pool, ip)

    def drop(self, pod_uid: str) -> None:
        """Stop polling this pod: it is gone."""
        poll = self._polls.pop(pod_uid, None)
        if poll is not None:
            poll.task.cancel()

    def forget(self, pod_uids: Iterable[str]) -> None:
        """Drop what these pods have said and ask them afresh (after a lost compare-and-set of the ledger)."""
        for uid in pod_uids:
            poll = self._polls.get(uid)
            if poll is not None:
                self._start(uid, poll.namespace, poll.pod, poll.pool, poll.ip)

    def state(self, pod_uid: str) -> AgentState | None:
        """The newest answer of this pod's agent; None before the first and while it cannot be read."""
        poll = self._polls.get(pod_uid)
        if poll is None or (poll.failing_since is not None and self._clock() - poll.failing_since >= STALE):
            return None
        return poll.state

    def error(self, pod_uid: str) -> str:
        """Why the agent of this pod cannot be read, "" if it can."""
        poll = self._polls.get(pod_uid)
        return poll.error if poll is not None else ""

    def __len__(self) -> int:
        """How many pods are polled."""
        return len(self._polls)

    @property
    def failing(self) -> int:
        """How many of them do not answer as they should."""
        return sum(poll.failing_since is not None for poll in self._polls.values())

    def _start(self, uid: str, namespace: str, pod: str, pool: str, ip: str) -> None:
        self.drop(uid)
        task = asyncio.create_task(self._follow(uid), name=f"agent of {namespace}/{pod}")
        self._polls[uid] = _Poll(namespace, pod, pool, ip, task)

    async def _follow(self, uid: str) -> None:
        poll = self._polls[uid]
        delay = FIRST_RETRY
        while True:
            asked = self._clock()
            try:
                state = await self._ask(uid, poll)
            except AgentError as error:
                self._failed(uid, poll, str(error))
                await asyncio.sleep(delay * (0.75 + 0.5 * random.random()))  # noqa: S311 - no secret
                delay = min(LONGEST_RETRY, delay * 2)
                continue
            delay = FIRST_RETRY
            self.answers += 1
            news = poll.failing_since is not None or poll.state is None or poll.state != state
            poll.state, poll.failing_since, poll.error = state, None, ""
            if news:
                self.changed(poll.namespace, poll.pool, uid)
            await asyncio.sleep(max(0.0, PACE - (self._clock() - asked)))

    def _failed(self, uid: str, poll: _Poll, error: str) -> None:
        self.failures += 1
        if poll.failing_since is None:
            poll.failing_since = self._clock()
        if error != poll.error:
            logger.debug("agent of %s/%s: %s", poll.namespace, poll.pod, error)
        told = poll.state is None
        poll.error = error
        if not told and self._clock() - poll.failing_since >= STALE:
            poll.state = None
            self.changed(poll.namespace, poll.pool, uid)

    async def _ask(self, uid: str, poll: _Poll) -> AgentState:
        """Ask once and return the believed answer; raise AgentError for everything else."""
        assert self._session is not None, "to be used within `async with`"
        host = f"[{poll.ip}]" if ":" in poll.ip else poll.ip
        # Without `after` the agent answers at once: the first time, and to find out whether it is there again.
        fresh = poll.state is None or poll.failing_since is not None
        query = {} if fresh or poll.state is None else {"after": str(poll.state.seq), "wait": f"{WAIT}s"}
        try:
            async with self._session.get(
                f"http://{host}:{self._port}/state", params=query, allow_redirects=False
            ) as response:
                text = b""
                async for chunk in response.content.iter_any():
                    text += chunk
                    if len(text) > LARGEST:
                        raise AgentError(f"its answer is longer than {LARGEST} bytes")
                if response.status != 200:
                    raise AgentError(f"it answers with HTTP status {response.status}")
        except TimeoutError as error:
            raise AgentError("no answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AgentError(f"it cannot be reached: {error}") from error
        try:
            state = AgentState.from_message(verify(text, self._key(poll)))
        except WireError as error:
            raise AgentError(f"its answer is not to be believed: {error}") from error
        if state.pod != uid:
            raise AgentError("it speaks for another pod")
        return state

    def _key(self, poll: _Poll) -> bytes:
        secret = self._store.get(SECRET.plural, poll.namespace, names.config_secret(poll.pool))
        data = (secret or {}).get("data") or {}
        try:
            return bytes.fromhex(base64.b64decode(data[names.KEY_FILE]).decode().strip())
        except (KeyError, ValueError) as error:
            raise AgentError(f"Secret {names.config_secret(poll.pool)} has no key to check its answer with") from error
