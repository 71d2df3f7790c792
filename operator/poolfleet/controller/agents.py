"""What the agents say, and what they are told: one long poll per pod, and the POST of a directive.

By the long poll the operator hears of a change within milliseconds; 200 pods are 200 idle connections and one answer
each per 25 s. The POST is the fast lane of a directive that stands in the pod's annotation already (design section 4):
it may fail without harm. An answer to either counts only if its MAC is right under the key of the pod's own pool and it
speaks for that pod's UID.
"""

import asyncio
import base64
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp

from poolfleet.api import names
from poolfleet.api.wire import AgentState, WireError, verify
from poolfleet.controller.store import Store
from poolfleet.kube.kinds import SECRET

WAIT: Final = 25  # seconds that an agent may keep a question
TIMEOUT: Final = 35.0  # seconds until it counts as lost
CONNECT: Final = 5.0  # seconds to connect
FIRST_RETRY: Final = 0.2
LONGEST_RETRY: Final = 5.0
STALE: Final = 5.0  # seconds of failing after which the last answer is no longer shown
PACE: Final = 0.1  # seconds between two questions at least
LARGEST: Final = 1 << 20  # bytes of an answer
NOW: Final = 2.0  # seconds for an answer that somebody waits for: to a POST, or to `ask_now`
CLOSE_WAIT: Final = 2  # seconds that the agent of a pod that is watched closely may keep a question
CLOSE_TIMEOUT: Final = 4.0

logger = logging.getLogger(__name__)


class AgentError(Exception):
    """An agent's answer is not to be believed, or there is none; the message says why."""


class StatusError(AgentError):
    """It answers, but not with what was asked for."""


@dataclass(slots=True)
class _Poll:
    namespace: str
    pod: str
    pool: str
    ip: str
    task: asyncio.Task[None] | None = None
    state: AgentState | None = None
    taken: float = float("-inf")  # when `state` came in
    failing_since: float | None = None
    error: str = ""
    key: bytes | None = None  # that the newest answer was signed with
    close: bool = False  # the pod has vanished: whether it answers is to be known at any time


class Agents:
    """See the module."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        port: int = names.AGENT_PORT,
        fast_lane: bool = True,
    ) -> None:
        """`clock` in seconds; `port` is another one only in tests; without `fast_lane` nothing is POSTed.

        To be used as an async context manager.
        """
        self._store = store
        self.changed: Callable[[str, str, str], None] = lambda namespace, pool, uid: None
        """Called when a pod's state is new, or cannot be read any more: namespace, pool, pod UID."""
        self._clock = clock
        self._port = port
        self._fast_lane = fast_lane
        self._polls: dict[str, _Poll] = {}
        self._orders: dict[str, str] = {}  # pod UID -> the directive to POST next
        self._posting: dict[str, asyncio.Task[None]] = {}  # pod UID -> whoever POSTs to it, one directive at a time
        self._session: aiohttp.ClientSession | None = None
        self.answers = 0
        """Answers taken, for the metrics."""
        self.failures = 0
        """Questions that failed, for the metrics."""
        self.posts = {"taken": 0, "refused": 0, "failed": 0}
        """Directives POSTed by result, for the metrics; `failed`: no answer, or none to be believed."""

    async def __aenter__(self) -> "Agents":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # one connection per pod, however many
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*(poll.task for poll in self._polls.values() if poll.task), *self._posting.values()]
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
        """Stop polling this pod, and telling it anything: it is gone."""
        poll = self._polls.pop(pod_uid, None)
        if poll is not None and poll.task is not None:
            poll.task.cancel()
        self._orders.pop(pod_uid, None)
        posting = self._posting.pop(pod_uid, None)
        if posting is not None:
            posting.cancel()

    def forget(self, pod_uids: Iterable[str]) -> None:
        """Drop what these pods have said and ask them afresh (after a lost compare-and-set of the ledger)."""
        for uid in pod_uids:
            poll = self._polls.get(uid)
            if poll is not None:
                self._again(uid, replace(poll, state=None, taken=float("-inf"), failing_since=None, error=""))

    def tell(self, pod_uid: str, text: str) -> None:
        """POST this signed directive to the pod, in the background; never raises.

        One at a time per pod; a newer text replaces one that still waits. An answer that is believed is the pod's
        newest state. What fails is counted in `posts`: the annotation is the record, and brings it too.
        """
        if not self._fast_lane or pod_uid not in self._polls:
            return
        self._orders[pod_uid] = text
        if pod_uid not in self._posting:
            self._posting[pod_uid] = asyncio.create_task(self._post_all(pod_uid), name=f"directives for {pod_uid}")

    def answering(self, pod_uids: Iterable[str]) -> frozenset[str]:
        """Those of these pods, as far as they are still polled, whose agent has answered within STALE seconds.

        For pods whose API object has vanished: from the first call on they are asked every CLOSE_WAIT seconds, until
        `drop`. So that an agent that was silent for having no news is not missed, it gets STALE seconds then.
        """
        found = set()
        for uid in pod_uids:
            poll = self._polls.get(uid)
            if poll is None:
                continue
            if not poll.close:
                since = self._clock() if poll.state is not None and poll.failing_since is None else poll.taken
                poll = self._again(uid, replace(poll, close=True, taken=since))
            if self._clock() - poll.taken < STALE:
                found.add(uid)
        return frozenset(found)

    async def ask_now(self, pod_uids: Iterable[str]) -> dict[str, AgentState]:
        """The states of these pods as of now, asked in parallel: those that are believed and come within NOW seconds.

        The backend pids in a state are those of a sample that is QUIET_SAMPLE of the agent old at most (2 s).
        """
        polls = {uid: self._polls[uid] for uid in pod_uids if uid in self._polls}
        answers = await asyncio.gather(*(self._ask_one(uid, poll) for uid, poll in polls.items()))
        return {uid: state for uid, state in zip(polls, answers, strict=True) if state is not None}

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
        self._again(uid, _Poll(namespace, pod, pool, ip))

    def _again(self, uid: str, poll: _Poll) -> _Poll:
        """Poll as `poll` says, in the place of what was: answers to earlier questions do not count any more."""
        if poll.task is not None:
            poll.task.cancel()
        poll.task = asyncio.create_task(self._follow(uid, poll), name=f"agent of {poll.namespace}/{poll.pod}")
        self._polls[uid] = poll
        return poll

    async def _follow(self, uid: str, poll: _Poll) -> None:
        delay = FIRST_RETRY
        while True:
            asked = self._clock()
            try:
                state = await self._ask(uid, poll)
                self._take(uid, poll, state, asked)
            except AgentError as error:
                self._failed(uid, poll, str(error))
                await asyncio.sleep(delay * (0.75 + 0.5 * random.random()))  # noqa: S311 - no secret
                delay = min(CLOSE_WAIT if poll.close else LONGEST_RETRY, delay * 2)
                continue
            delay = FIRST_RETRY
            self.answers += 1
            await asyncio.sleep(max(0.0, PACE - (self._clock() - asked)))

    def _take(self, uid: str, poll: _Poll, state: AgentState, asked: float) -> None:
        """A believed answer to a question of the moment `asked`. It counts unless a newer one has overtaken it."""
        if self._polls.get(uid) is not poll:  # forgotten meanwhile
            return
        if poll.state is not None and asked < poll.taken and state.seq < poll.state.seq:
            return
        news = poll.failing_since is not None or poll.state is None or poll.state != state
        poll.state, poll.taken, poll.failing_since, poll.error = state, self._clock(), None, ""
        if news:
            self.changed(poll.namespace, poll.pool, uid)

    async def _ask_one(self, uid: str, poll: _Poll) -> AgentState | None:
        asked = self._clock()
        try:
            state = await self._request(uid, poll, "GET", "/state", {}, None, NOW)
        except AgentError as error:
            logger.debug("agent of %s/%s, asked for its state: %s", poll.namespace, poll.pod, error)
            return None
        self._take(uid, poll, state, asked)
        return state

    async def _post_all(self, uid: str) -> None:
        try:
            while (text := self._orders.pop(uid, None)) is not None:
                poll = self._polls[uid]
                asked = self._clock()
                try:
                    state = await self._request(uid, poll, "POST", "/directive", {}, text, NOW)
                except AgentError as error:
                    self.posts["refused" if isinstance(error, StatusError) else "failed"] += 1
                    logger.debug("agent of %s/%s, told a directive: %s", poll.namespace, poll.pod, error)
                    continue
                self.posts["taken"] += 1
                self._take(uid, poll, state, asked)
        finally:
            if self._posting.get(uid) is asyncio.current_task():
                del self._posting[uid]

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
        """Ask once what is new. Raises AgentError."""
        # Without `after` the agent answers at once: the first time, and to find out whether it is there again.
        query = {}
        if poll.state is not None and poll.failing_since is None:
            query = {"after": str(poll.state.seq), "wait": f"{CLOSE_WAIT if poll.close else WAIT}s"}
        return await self._request(uid, poll, "GET", "/state", query, None, CLOSE_TIMEOUT if poll.close else TIMEOUT)

    async def _request(
        self, uid: str, poll: _Poll, method: str, path: str, query: Mapping[str, str], body: str | None, seconds: float
    ) -> AgentState:
        """One request, answered with a state that is believed. Raises AgentError for everything else."""
        assert self._session is not None, "to be used within `async with`"
        host = f"[{poll.ip}]" if ":" in poll.ip else poll.ip
        try:
            async with self._session.request(
                method,
                f"http://{host}:{self._port}{path}",
                params=query,
                data=body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT)),
            ) as response:
                text = b""
                async for chunk in response.content.iter_any():
                    text += chunk
                    if len(text) > LARGEST:
                        raise AgentError(f"its answer is longer than {LARGEST} bytes")
                if response.status != 200:
                    raise StatusError(f"it answers with HTTP status {response.status}")
        except TimeoutError as error:
            raise AgentError("no answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AgentError(f"it cannot be reached: {error}") from error
        state = self._believed(poll, text)
        if state.pod != uid:
            raise AgentError("it speaks for another pod")
        return state

    def _believed(self, poll: _Poll, text: bytes) -> AgentState:
        """Read an answer. Raises AgentError.

        The key that this pod has used before counts too: with its pool the Secret is deleted, and its pods still run.
        """
        problem = f"Secret {names.config_secret(poll.pool)} has no key to check its answer with"
        for key in (self._key(poll), poll.key):
            if key is not None:
                try:
                    state = AgentState.from_message(verify(text, key))
                except WireError as error:
                    problem = f"its answer is not to be believed: {error}"
                else:
                    poll.key = key
                    return state
        raise AgentError(problem)

    def _key(self, poll: _Poll) -> bytes | None:
        secret = self._store.get(SECRET.plural, poll.namespace, names.config_secret(poll.pool))
        data = (secret or {}).get("data") or {}
        try:
            return bytes.fromhex(base64.b64decode(data[names.KEY_FILE]).decode().strip()) or None
        except (KeyError, ValueError):
            return None
