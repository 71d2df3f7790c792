"""Tokens are made ahead of time, tried again, told to the pools that need them, and forgotten."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from poolfleet.api.conditions import Reason
from poolfleet.controller import metrics
from poolfleet.controller import tokens as module
from poolfleet.controller.tokens import Tokens
from poolfleet.plan.model import Problem
from poolfleet.plan.tokens import NoToken, Request, Token

APP = Request("uid", "dba", "db", "db.dba.svc", 5432, "app", command="vend")
JOB = Request("uid", "dba", "db", "db.dba.svc", 5432, "job", command="vend")


class House:
    """A provider whose tokens live 900 s, and a clock that moves when everybody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.made: list[tuple[float, str]] = []  # when, for which role
        self.fails: Exception | None = None
        self.hangs = False
        self.told: list[tuple[str, str]] = []
        self.sleeping: list[tuple[float, asyncio.Future[None]]] = []
        self.tokens = Tokens(self.make, clock=lambda: self.now, chance=lambda: 0.0, sleep=self.sleep)
        self.tokens.changed = lambda namespace, name: self.told.append((namespace, name))

    async def make(self, request: Request) -> Token:
        self.made.append((self.now, request.role))
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails is not None:
            raise self.fails
        return Token(f"secret-{request.host}-{request.role}-{len(self.made)}", self.now, self.now + 900)

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self.sleeping.append((self.now + seconds, future))
        await future

    async def pass_to(self, when: float) -> None:
        """Let the time pass, as far as `when`; all that is due is done."""
        await settle()
        while due := [each for each in self.sleeping if each[0] <= when and not each[1].done()]:
            self.now, future = min(due, key=lambda each: each[0])
            future.set_result(None)
            await settle()
        self.now = when

    async def want(self, *requests: Request, pool: str = "shop") -> dict[str, str | Problem]:
        return await self.tokens.want("demo", pool, requests)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    yield house
    await house.tokens.close()


def metric(name: str, role: str = "app") -> float | None:
    return metrics.REGISTRY.get_sample_value(name, {"namespace": "dba", "server": "db", "role": role})


async def test_it_is_made_when_it_is_wanted_and_again_after_two_thirds_of_its_life(house: House) -> None:
    assert await house.want(APP) == {"app": "secret-db.dba.svc-app-1"}
    await house.pass_to(1599)
    assert house.made == [(1000, "app")]
    assert house.told == [("demo", "shop")]
    await house.pass_to(1600)
    assert house.made == [(1000, "app"), (1600, "app")]
    assert house.told == [("demo", "shop")] * 2
    assert await house.want(APP) == {"app": "secret-db.dba.svc-app-2"}
    assert metric("poolfleet_token_expiry_timestamp_seconds") == 2500
    assert metric("poolfleet_token_failures_total") == 0


async def test_pools_share_it_and_the_last_one_to_go_ends_it(house: House) -> None:
    await house.want(APP, JOB)
    await house.want(APP, pool="blog")
    assert len(house.made) == 2
    await house.want(pool="shop")
    await house.pass_to(1700)
    assert [role for _, role in house.made[2:]] == ["app"], "nobody needs the job's any more"
    assert metric("poolfleet_token_expiry_timestamp_seconds", "job") is None
    house.tokens.forget("demo", "blog")
    await house.pass_to(9000)
    assert len(house.made) == 3
    assert metric("poolfleet_token_expiry_timestamp_seconds") is None
    house.tokens.forget("demo", "blog")


async def test_another_host_needs_another_token(house: House) -> None:
    await house.want(APP)
    moved = Request("uid", "dba", "db", "elsewhere", 5432, "app", command="vend")
    assert await house.want(moved) == {"app": "secret-elsewhere-app-2"}
    await house.pass_to(1601)
    assert len(house.made) == 3, "the old one is made no more"


async def test_a_failure_is_tried_again_and_told_when_the_token_is_late(house: House) -> None:
    await house.want(APP)
    await house.pass_to(1001)
    house.fails = NoToken("the command ended with 1")
    house.told.clear()
    await house.pass_to(1839)
    assert [when for when, _ in house.made[1:7]] == [1600, 1601, 1603, 1607, 1615, 1631]
    assert house.told == [], "the old one is good for more than a minute"
    assert await house.want(APP) == {"app": "secret-db.dba.svc-app-1"}
    await house.pass_to(1840)
    assert house.told == [("demo", "shop")]
    answer = (await house.want(APP))["app"]
    assert answer == Problem(
        Reason.TOKEN_UNAVAILABLE,
        'The token for role "app" of PgServer "db" ends at 1970-01-01T00:31:40.000000Z, and there is no other: '
        "the command ended with 1.",
    )
    await house.pass_to(1900)
    answer = (await house.want(APP))["app"]
    assert isinstance(answer, Problem)
    assert answer.message == 'There is no token for role "app" of PgServer "db": the command ended with 1.'
    assert house.told == [("demo", "shop")] * 2
    assert (metric("poolfleet_token_failures_total") or 0) > 6
    house.fails = None
    await house.pass_to(1931)
    assert house.told == [("demo", "shop")] * 3
    assert isinstance((await house.want(APP))["app"], str)
    tries = len(house.made)
    await house.pass_to(house.made[-1][0] + 599)
    assert len(house.made) == tries, "the next one has its time again"


async def test_the_first_one_is_waited_for_but_not_long(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    house.hangs = True
    answer = (await house.want(APP))["app"]
    assert isinstance(answer, Problem)
    assert answer.message.endswith("it is being made.")


async def test_a_mistake_of_ours_is_a_failure_like_others(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.fails = RuntimeError("oops")
    answer = (await house.want(APP))["app"]
    assert isinstance(answer, Problem)
    assert "oops" not in answer.message
    house.fails = None
    await house.pass_to(1001)
    assert isinstance((await house.want(APP))["app"], str)


async def test_no_token_is_in_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await house.want(APP)
    house.fails = NoToken("why")
    await house.pass_to(3000)
    assert "a new token, for 900 s" in caplog.text and "no token: why" in caplog.text
    assert "secret" not in caplog.text + repr([vars(record) for record in caplog.records])
    assert "secret" not in repr(house.tokens._entries)
