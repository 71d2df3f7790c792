"""When servers are read and looked at; what they really answer is in tests/integration/test_postgres_server.py."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any, ClassVar

import pytest

from poolfleet.controller import discoveries as module
from poolfleet.controller.discoveries import AT_ONCE, RETRY, Discoveries
from poolfleet.plan.discovery import Limits, Reading
from poolfleet.plan.sessions import Backend
from poolfleet.postgres import discovery, sessions
from poolfleet.postgres.connection import Login, ServerError

LOGIN = Login("db", 5432, "admin", "word", "prefer", None)


class FakeAdmin:
    """Answers what the test says, and counts."""

    answers: ClassVar[dict[object, Any]] = {}
    asked: ClassVar[list[object]] = []
    closed: ClassVar[list[Login]] = []

    def __init__(self, login: Login) -> None:
        self.login = login

    async def run(self, work: Callable[..., Awaitable[Any]], *, oldest: float = 0.0) -> Any:
        self.asked.append(work)
        answer = self.answers[work]
        if isinstance(answer, Exception):
            raise answer
        return next(answer) if isinstance(answer, Iterator) else answer

    async def close(self) -> None:
        self.closed.append(self.login)


class House:
    def __init__(self) -> None:
        self.now = 1000.0
        self.discoveries = Discoveries(lambda: self.now, confirm=0.0)
        self.ended = asyncio.Event()

    async def want(self, due: float = 0.0, login: Login = LOGIN) -> int:
        """Ask for a reading; how often the limits were read by then."""
        self.again = self.discoveries.want("uid", login, due, self.ended.set)
        return await self._count(discovery.read)

    async def watch(self, every: float, agents: Callable[[], Awaitable[Collection[int]]]) -> int:
        self.again = self.discoveries.watch_sessions("uid", LOGIN, {"app"}, agents, every, self.ended.set)
        return await self._count(sessions.read)

    async def _count(self, work: object) -> int:
        for _ in range(20):  # let what was started end: nothing here waits for anything outside
            await asyncio.sleep(0)
        return FakeAdmin.asked.count(work)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(module, "Admin", FakeAdmin)
    monkeypatch.setattr(FakeAdmin, "asked", [])
    monkeypatch.setattr(FakeAdmin, "closed", [])
    monkeypatch.setattr(FakeAdmin, "answers", {discovery.read: Reading(Limits(100)), sessions.read: []})
    return House()


async def nobody() -> Collection[int]:
    return ()


async def test_limits_are_read_when_they_are_due_and_taken_once(house: House) -> None:
    assert await house.want(due=5000.0) == 1, "the first at once"
    assert house.ended.is_set()
    assert house.discoveries.take("uid") == Reading(Limits(100))
    assert house.discoveries.take("uid") is None
    assert await house.want(due=1300.0) == 1
    assert house.again == 1300.0
    house.now = 1300.0
    assert await house.want(due=1300.0) == 2


async def test_a_failed_reading_is_tried_again_soon(house: House) -> None:
    FakeAdmin.answers[discovery.read] = ServerError("words", refused=True)
    assert await house.want() == 1
    failure = house.discoveries.failure("uid")
    assert failure is not None and failure.refused
    house.discoveries.at_once("uid")
    house.now += RETRY - 0.1
    assert await house.want() == 1
    house.now += 0.1
    FakeAdmin.answers[discovery.read] = Reading(Limits(50))
    assert await house.want() == 2
    assert house.discoveries.failure("uid") is None


async def test_what_cannot_wait_is_read_at_most_every_five_seconds(house: House) -> None:
    await house.want()
    house.discoveries.at_once("uid")
    house.now += AT_ONCE - 0.1
    assert await house.want(due=9000.0) == 1
    assert house.again == 1000.0 + AT_ONCE
    house.now += 0.1
    assert await house.want(due=9000.0) == 2
    house.now += AT_ONCE
    assert await house.want(due=9000.0) == 2, "asked for once, read once"


async def test_a_new_login_is_tried_at_once_on_a_connection_of_its_own(house: House) -> None:
    await house.want()
    await house.watch(30.0, nobody)
    assert house.discoveries.sessions("uid") is not None
    other = Login("db", 5432, "admin", "other", "prefer", None)
    assert await house.want(due=9000.0, login=other) == 2
    assert FakeAdmin.closed == [LOGIN]
    assert house.discoveries.sessions("uid") is None, "of another server perhaps"
    house.discoveries.forget("uid")
    await house.discoveries.close()
    assert FakeAdmin.closed == [LOGIN, other]
    assert house.discoveries.admin("uid") is None


async def test_sessions_are_looked_at_as_often_as_asked_for(house: House) -> None:
    assert await house.watch(30.0, nobody) == 1
    house.now += 5.0
    assert await house.watch(30.0, nobody) == 1
    assert house.again == 1030.0
    assert await house.watch(5.0, nobody) == 2


async def test_a_look_that_failed_leaves_the_last_one_with_its_time(house: House) -> None:
    await house.watch(5.0, nobody)
    before = house.discoveries.sessions("uid")
    assert before is not None and before.at == 1000.0
    FakeAdmin.answers[sessions.read] = ServerError("words", refused=False)
    house.now += 5.0
    assert await house.watch(5.0, nobody) == 2
    assert house.discoveries.sessions("uid") == before
    house.now += 5.0
    assert await house.watch(5.0, nobody) == 2, "the server is left in peace for a while"
    house.now += RETRY - 5.0
    assert await house.watch(5.0, nobody) == 3


async def test_a_pid_that_is_used_again_between_two_readings_is_no_orphan(house: House) -> None:
    FakeAdmin.answers[sessions.read] = iter([[Backend(1, "app", "t1")], [Backend(1, "app", "t2")]])
    assert await house.watch(5.0, nobody) == 2
    found = house.discoveries.sessions("uid")
    assert found is not None and (found.pools, found.orphans) == (1, {})
