"""Polling agents: what is believed, when it is told, and that a lost one is not shown for long."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from poolfleet.api import names
from poolfleet.api.wire import AgentState, DatabaseState, sign
from poolfleet.controller import agents as agents_module
from poolfleet.controller.agents import STALE, Agents
from poolfleet.controller.store import Store

KEY = bytes(range(32))


def state(pod: str = "pod-1", seq: int = 1, held: int = 0) -> AgentState:
    databases = {"shop": DatabaseState(loaded=5, held=held, samples=2)}
    return AgentState("server", pod, seq, 1, "hash", "", "started", databases)


def pod(uid: str = "pod-1", ip: str = "127.0.0.1", phase: str = "Running") -> dict[str, Any]:
    metadata = {"namespace": "demo", "name": f"shop-{uid}", "uid": uid, "labels": {names.LABEL_POOL: "shop"}}
    return {"metadata": metadata, "status": {"podIP": ip, "phase": phase}}


class StubAgent:
    """Answers /state as an agent does: at once, or when something changes after `after`."""

    def __init__(self) -> None:
        self.text = sign(state().to_message(), KEY)
        self.seq = 1
        self.status = 200
        self.asked: list[dict[str, str]] = []
        self.told: list[str] = []
        self.post_status = 200
        self.let_post = asyncio.Event()
        self.let_post.set()
        self.news = asyncio.Event()

    def say(self, new: AgentState, key: bytes = KEY) -> None:
        self.text, self.seq = sign(new.to_message(), key), new.seq
        self.news.set()

    def say_raw(self, text: str, status: int = 200) -> None:
        self.text, self.status, self.seq = text, status, 2
        self.news.set()

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(dict(request.query))
        if int(request.query.get("after", "0")) >= self.seq:
            self.news.clear()
            await self.news.wait()
        return web.Response(text=self.text, status=self.status)

    async def take(self, request: web.Request) -> web.Response:
        self.told.append(await request.text())
        await self.let_post.wait()
        return web.Response(text=self.text, status=self.post_status)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class House:
    def __init__(self, agents: Agents, stub: StubAgent, store: Store, clock: Clock) -> None:
        self.agents, self.stub, self.store, self.clock = agents, stub, store, clock
        self.changed: list[tuple[str, str, str]] = []
        agents.changed = lambda *pod: self.changed.append(pod)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)


def config_secret(key: bytes, version: int) -> dict[str, Any]:
    data = {"key": base64.b64encode(key.hex().encode()).decode()}
    metadata = {"namespace": "demo", "name": "shop-config", "uid": "config", "resourceVersion": str(version)}
    return {"metadata": metadata, "data": data}


@pytest.fixture
async def house() -> AsyncIterator[House]:
    stub, store, clock = StubAgent(), Store(), Clock()
    application = web.Application()
    application.router.add_get("/state", stub.answer)
    application.router.add_post("/directive", stub.take)
    runner = web.AppRunner(application, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    store.put("secrets", config_secret(KEY, 1))
    async with Agents(store, clock, port=runner.addresses[0][1]) as agents:
        yield House(agents, stub, store, clock)
    await runner.cleanup()


async def test_a_state_is_shown_and_told(house: House) -> None:
    assert house.agents.state("pod-1") is None
    house.agents.follow([pod()])
    await house.until(lambda: house.agents.state("pod-1") is not None)
    assert house.agents.state("pod-1") == state()
    assert house.changed == [("demo", "shop", "pod-1")]
    assert house.stub.asked[0] == {}
    await house.until(lambda: len(house.stub.asked) == 2)
    assert house.stub.asked[1] == {"after": "1", "wait": "25s"}


async def test_a_change_is_told_when_it_happens_and_nothing_else(house: House) -> None:
    house.agents.follow([pod()])
    await house.until(lambda: len(house.stub.asked) == 2)
    house.stub.say(state(seq=2, held=3))
    await house.until(lambda: len(house.changed) == 2)
    await house.until(lambda: len(house.stub.asked) == 3)
    house.stub.news.set()  # the wait is over and nothing is new
    await house.until(lambda: len(house.stub.asked) == 4)
    house.agents.follow([pod()])
    assert len(house.changed) == 2
    assert house.agents.answers == 3


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (lambda stub: stub.say(state(seq=2), bytes(32)), "wrong MAC"),
        (lambda stub: stub.say(state(pod="pod-2", seq=2)), "another pod"),
        (lambda stub: stub.say_raw("nonsense"), "not JSON"),
        (lambda stub: stub.say_raw("{}", 500), "500"),
        (lambda stub: stub.say_raw("x" * (2 << 20)), "longer"),
    ],
)
async def test_what_is_not_to_be_believed_is_an_error(
    house: House, said: Callable[[StubAgent], Any], words: str
) -> None:
    house.agents.follow([pod()])
    await house.until(lambda: len(house.stub.asked) == 2)
    said(house.stub)
    await house.until(lambda: words in house.agents.error("pod-1"))
    assert house.agents.state("pod-1") == state()
    assert house.agents.failing == 1
    house.clock.now += STALE
    assert house.agents.state("pod-1") is None
    await house.until(lambda: len(house.changed) == 2)  # and it is told that it is not known any more
    house.stub.status = 200
    house.stub.say(state(seq=3))
    await house.until(lambda: house.agents.state("pod-1") == state(seq=3))
    assert (house.agents.error("pod-1"), house.agents.failing) == ("", 0)
    assert len(house.changed) == 3


async def test_without_the_pools_key_nothing_is_believed(house: House) -> None:
    house.store.remove("secrets", config_secret(KEY, 2))
    house.agents.follow([pod()])
    await house.until(lambda: "no key" in house.agents.error("pod-1"))
    metadata = {"uid": "config-2", "resourceVersion": "3"}
    new = config_secret(KEY, 3)
    house.store.put("secrets", {**new, "metadata": {**new["metadata"], **metadata}})
    await house.until(lambda: house.agents.state("pod-1") is not None)


async def test_nobody_listens(house: House) -> None:
    house.agents.follow([pod(ip="127.0.0.2")])
    await house.until(lambda: "cannot be reached" in house.agents.error("pod-1"))


async def test_forgetting_asks_afresh(house: House) -> None:
    house.agents.follow([pod()])
    await house.until(lambda: len(house.stub.asked) == 2)
    house.agents.forget(["pod-1", "unknown"])
    assert house.agents.state("pod-1") is None
    await house.until(lambda: house.agents.state("pod-1") is not None)
    assert house.stub.asked[2] == {}


@pytest.mark.parametrize("last", [pod(ip=""), pod(phase="Succeeded"), pod(phase="Failed")])
async def test_pods_that_do_not_run_are_not_asked(house: House, last: dict[str, Any]) -> None:
    house.agents.follow([pod()])
    assert len(house.agents) == 1
    house.agents.follow([last])
    assert len(house.agents) == 0
    assert house.agents.state("pod-1") is None


async def test_others_pods_are_left_alone(house: House) -> None:
    other = pod()
    other["metadata"]["labels"] = {}
    house.agents.follow([other])
    assert len(house.agents) == 0


async def test_a_dropped_pod_is_not_asked_any_more(house: House) -> None:
    house.agents.follow([pod()])
    await house.until(lambda: len(house.stub.asked) == 2)
    house.agents.drop("pod-1")
    house.agents.drop("pod-1")
    assert len(house.agents) == 0


async def test_a_directive_is_posted_and_its_answer_is_the_newest_state(house: House) -> None:
    house.agents.follow([pod()])
    await house.until(lambda: len(house.stub.asked) == 2)
    house.clock.now = 1.0  # the question of now was asked before the answer comes
    house.stub.text = sign(state(seq=5, held=2).to_message(), KEY)
    house.agents.tell("pod-1", "the signed text")
    await house.until(lambda: len(house.changed) == 2)
    assert house.stub.told == ["the signed text"]
    assert house.agents.state("pod-1") == state(seq=5, held=2)
    assert house.agents.posts == {"taken": 1, "refused": 0, "failed": 0}
    house.stub.say(state(seq=4))  # an answer that was overtaken
    await house.until(lambda: len(house.stub.asked) == 3)
    assert house.agents.state("pod-1") == state(seq=5, held=2)
    assert len(house.changed) == 2


async def test_an_agent_that_starts_anew_may_count_from_less(house: House) -> None:
    house.agents.follow([pod()])
    await house.until(lambda: len(house.stub.asked) == 2)
    house.stub.say(state(seq=9))
    await house.until(lambda: len(house.stub.asked) == 3)
    house.stub.say(state(seq=3))
    house.stub.seq = 10  # the stub would wait; an agent answers whatever is not `after`
    await house.until(lambda: house.agents.state("pod-1") == state(seq=3))


async def test_one_post_at_a_time_and_of_those_that_wait_the_newest(house: House) -> None:
    house.stub.let_post.clear()
    house.agents.follow([pod()])
    for text in ("1", "2", "3"):
        house.agents.tell("pod-1", text)
        await house.until(lambda: bool(house.stub.told))
    house.stub.let_post.set()
    await house.until(lambda: house.agents.posts["taken"] == 2)
    assert house.stub.told == ["1", "3"]
    house.agents.tell("pod-1", "4")
    await house.until(lambda: house.agents.posts["taken"] == 3)


@pytest.mark.parametrize(
    ("spoil", "result"),
    [
        (lambda stub: setattr(stub, "post_status", 409), "refused"),
        (lambda stub: setattr(stub, "post_status", 404), "refused"),
        (lambda stub: setattr(stub, "text", "nonsense"), "failed"),
        (lambda stub: setattr(stub, "text", sign(state(seq=9).to_message(), bytes(32))), "failed"),
        (lambda stub: setattr(stub, "text", sign(state(pod="pod-2").to_message(), KEY)), "failed"),
        (lambda stub: stub.let_post.clear(), "failed"),
    ],
)
async def test_a_post_that_fails_is_counted_and_changes_nothing(
    house: House, spoil: Callable[[StubAgent], Any], result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents_module, "NOW", 0.05)
    house.agents.follow([pod()])
    await house.until(lambda: len(house.stub.asked) == 2)
    spoil(house.stub)
    house.agents.tell("pod-1", "text")
    await house.until(lambda: house.agents.posts[result] == 1)
    assert house.agents.state("pod-1") == state()
    assert len(house.changed) == 1
    assert house.agents.failing == 0


async def test_without_the_fast_lane_and_to_strangers_nothing_is_posted(house: House) -> None:
    slow = Agents(house.store, house.clock, port=house.agents._port, fast_lane=False)
    async with slow:
        slow.follow([pod()])
        await house.until(lambda: slow.state("pod-1") is not None)
        slow.tell("pod-1", "text")
        house.agents.tell("pod-1", "text")
        house.agents.follow([pod()])
        house.agents.tell("pod-1", "the only one")
        await house.until(lambda: bool(house.stub.told))
    assert house.stub.told == ["the only one"]
    assert slow.posts == {"taken": 0, "refused": 0, "failed": 0}


async def test_what_a_forgotten_pod_answers_to_an_earlier_post_does_not_count(house: House) -> None:
    house.stub.let_post.clear()
    house.agents.follow([pod()])
    await house.until(lambda: len(house.stub.asked) == 2)
    house.agents.tell("pod-1", "text")
    await house.until(lambda: bool(house.stub.told))
    house.agents.forget(["pod-1"])
    await house.until(lambda: len(house.stub.asked) == 4)
    house.stub.text = sign(state(seq=9).to_message(), KEY)
    house.stub.let_post.set()
    await house.until(lambda: house.agents.posts["taken"] == 1)
    assert house.agents.state("pod-1") == state()
    assert len(house.changed) == 2  # when it was first heard, and heard afresh


async def test_a_dropped_pod_is_not_told_what_waits(house: House) -> None:
    house.stub.let_post.clear()
    house.agents.follow([pod()])
    house.agents.tell("pod-1", "1")
    await house.until(lambda: bool(house.stub.told))
    house.agents.tell("pod-1", "2")
    house.agents.drop("pod-1")
    assert not house.agents._orders
    house.agents.follow([pod()])
    house.agents.tell("pod-1", "3")
    await house.until(lambda: len(house.stub.told) == 2)
    house.agents.tell("pod-1", "4")  # still one at a time
    await house.agents.ask_now(["pod-1"])
    house.agents.tell("pod-1", "5")
    house.stub.let_post.set()
    await house.until(lambda: house.agents.posts["taken"] == 2)
    assert house.stub.told == ["1", "3", "5"]


async def test_a_vanished_pod_answers_until_it_is_silent_for_long(house: House) -> None:
    assert house.agents.answering(["pod-1"]) == frozenset()
    house.agents.follow([pod()])
    assert house.agents.answering(["pod-1"]) == frozenset()  # nothing was heard yet
    await house.until(lambda: house.agents.answering(["pod-1"]) == {"pod-1"})
    await house.until(lambda: house.stub.asked[-1] == {"after": "1", "wait": "2s"})
    house.clock.now += STALE
    assert house.agents.answering(["pod-1", "other"]) == frozenset()
    house.stub.news.set()  # it answers that nothing is new
    await house.until(lambda: house.agents.answering(["pod-1"]) == {"pod-1"})
    house.agents.drop("pod-1")
    assert house.agents.answering(["pod-1"]) == frozenset()


async def test_a_pod_that_had_no_news_for_long_gets_time_to_answer(house: House) -> None:
    house.agents.follow([pod()])
    await house.until(lambda: len(house.stub.asked) == 2)
    house.clock.now += 20
    assert house.agents.answering(["pod-1"]) == {"pod-1"}
    house.clock.now += STALE
    assert house.agents.answering(["pod-1"]) == frozenset()
    assert house.agents.state("pod-1") == state()


async def test_a_vanished_pod_is_believed_by_the_key_it_has_used(house: House) -> None:
    house.agents.follow([pod()])
    await house.until(lambda: len(house.stub.asked) == 2)
    house.store.remove("secrets", config_secret(KEY, 2))
    house.stub.say(state(seq=2, held=3))
    await house.until(lambda: house.agents.state("pod-1") == state(seq=2, held=3))
    new = config_secret(bytes(32), 4)  # the pool was made anew
    house.store.put("secrets", {**new, "metadata": {**new["metadata"], "uid": "config-2"}})
    house.stub.say(state(seq=3, held=4))
    await house.until(lambda: house.agents.state("pod-1") == state(seq=3, held=4))


async def test_asking_now(house: House) -> None:
    house.agents.follow([pod(), pod("pod-2"), pod("pod-3", ip="127.0.0.2")])
    await house.until(lambda: house.agents.state("pod-1") is not None)
    house.stub.text = sign(state(seq=1, held=4).to_message(), KEY)
    asked = len(house.stub.asked)
    assert await house.agents.ask_now(["pod-1", "pod-2", "pod-3", "unknown"]) == {"pod-1": state(held=4)}
    assert {} in house.stub.asked[asked:]
    assert house.agents.state("pod-1") == state(held=4)


async def test_asking_now_does_not_wait_for_a_silent_one(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents_module, "NOW", 0.05)
    house.agents.follow([pod()])
    await house.until(lambda: len(house.stub.asked) == 2)
    house.stub.seq = 0  # so that it waits for news, whoever asks
    assert await house.agents.ask_now(["pod-1"]) == {}
    assert house.agents.state("pod-1") == state()
