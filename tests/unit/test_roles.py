"""How the operator keeps the roles' limits around a ledger write when PostgreSQL does not play along."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from poolfleet.controller import roles as module
from poolfleet.controller.discoveries import Discoveries
from poolfleet.controller.roles import REFUSED_RETRY, RETRY, Roles, RoleStep
from poolfleet.plan.role_limits import Demand
from poolfleet.postgres.connection import ServerError
from poolfleet.postgres.roles import Outcome

NEEDS = {"app": Demand(9, 1)}


class FakeServer:
    """A PostgreSQL that keeps the limits of roles, and refuses what it is told to refuse."""

    def __init__(self) -> None:
        self.limits: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self.error: Exception | None = None
        self.calls: list[dict[str, int]] = []
        self.hangs = False

    def admin(self, uid: str) -> "FakeServer":
        return self

    async def run(self, work: Callable[[Any], Any]) -> Any:
        return await work(self)

    async def set(self, _: object, limits: dict[str, int]) -> dict[str, Outcome]:
        self.calls.append(dict(limits))
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        for role, limit in limits.items():
            if role not in self.refused:
                self.limits[role] = limit
        return {role: Outcome(self.limits.get(role, -1), self.refused.get(role, "")) for role in limits}


class House:
    def __init__(self) -> None:
        self.now = 1000.0
        self.server = FakeServer()
        self.roles = Roles(cast(Discoveries, self.server), lambda: self.now)

    async def step(self, recorded: dict[str, int], managed: list[str] | None) -> RoleStep:
        return await self.roles.raise_first("uid", needs=NEEDS, recorded=recorded, managed=managed)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    found = House()
    monkeypatch.setattr(module, "set_limits", found.server.set)
    return found


async def test_switched_off_nobody_is_asked_anything(house: House) -> None:
    assert await house.step({}, None) == RoleStep({}, frozenset(), "")
    await house.roles.settle("uid", {})
    assert house.server.calls == []


async def test_a_server_that_cannot_be_asked_holds_back_what_needs_more(house: House) -> None:
    house.server.error = ServerError("db:5432: no route", refused=False)
    step = await house.step({"app": 5}, ["app"])
    assert (step.recorded, step.blocked) == ({"app": 5}, frozenset({"app"}))
    assert "no route" in step.problem
    assert (await house.step({"app": 5}, ["app"])).blocked == {"app"}
    await house.roles.settle("uid", {"app": 5})
    assert len(house.server.calls) == 1, "not asked at every step"
    house.server.error = None
    house.now += RETRY
    assert await house.step({"app": 5}, ["app"]) == RoleStep({"app": 11}, frozenset(), "")


async def test_a_server_that_hangs_holds_up_the_ledger_only_for_a_moment(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    house.server.hangs = True
    async with asyncio.timeout(10):
        assert (await house.step({"app": 5}, ["app"])).blocked == {"app"}


async def test_after_a_change_that_nobody_confirmed_the_limit_is_set_again(house: House) -> None:
    await house.step({}, ["app"])
    await house.roles.settle("uid", {"app": 11})
    more = {"app": Demand(20, 1)}
    house.server.error = ServerError("the connection broke", refused=False)
    await house.roles.raise_first("uid", needs=more, recorded={"app": 11}, managed=["app"])
    house.server.error, house.server.limits["app"] = None, 22  # it had worked
    house.now += RETRY
    await house.step({"app": 11}, ["app"])
    await house.roles.settle("uid", {"app": 11})
    assert house.server.limits == {"app": 11}


async def test_within_the_margin_nothing_is_held_back(house: House) -> None:
    house.server.error = ServerError("no route", refused=False)
    assert (await house.step({"app": 9}, ["app"])).blocked == frozenset()


async def test_a_role_that_may_not_be_altered_holds_back_nothing(house: House) -> None:
    house.server.refused["app"] = "it is SUPERUSER"
    step = await house.step({}, ["app"])
    await house.roles.settle("uid", step.recorded)
    for _ in range(2):
        step = await house.step(dict(step.recorded), ["app"])
        await house.roles.settle("uid", step.recorded)
        assert (step.recorded, step.blocked) == ({}, frozenset())
        assert "SUPERUSER" in step.problem
    assert len(house.server.calls) == 1, "it would say the same again"
    house.server.refused.clear()
    house.now += REFUSED_RETRY
    step = await house.step(dict(step.recorded), ["app"])
    await house.roles.settle("uid", step.recorded)
    assert (step.problem, house.server.limits) == ("", {"app": 11})


async def test_a_limit_that_was_set_and_can_no_longer_be_altered_still_holds(house: House) -> None:
    house.server.limits["app"] = 5
    house.server.refused["app"] = "permission denied"
    for _ in range(2):
        step = await house.step({"app": 5}, ["app"])
        assert (step.recorded, step.blocked) == ({"app": 5}, frozenset({"app"}))
        assert "permission denied" in step.problem


async def test_a_role_that_is_not_managed_is_only_spoken_of(house: House) -> None:
    step = await house.step({}, [])
    assert (step.recorded, step.blocked) == ({}, frozenset())
    assert "managedRoles" in step.problem
    assert house.server.calls == []


async def test_what_is_recorded_is_made_true_until_it_is(house: House) -> None:
    step = await house.step({}, ["app"])
    house.server.error = ServerError("no route", refused=False)
    await house.roles.settle("uid", step.recorded)
    assert house.roles.wake("uid") == RETRY
    house.server.error = None
    house.now += RETRY
    step = await house.step(dict(step.recorded), ["app"])
    await house.roles.settle("uid", step.recorded)
    assert (house.server.limits, step.blocked, house.roles.wake("uid")) == ({"app": 11}, frozenset(), None)
    house.server.calls.clear()
    step = await house.step(dict(step.recorded), ["app"])
    await house.roles.settle("uid", step.recorded)
    assert house.server.calls == [], "at rest nothing is asked"


async def test_without_an_admin_secret_a_limit_that_was_set_cannot_be_raised(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.server, "admin", lambda uid: None)
    step = await house.step({"app": 5}, None)
    assert step.blocked == {"app"}
    assert "adminSecretRef" in step.problem
