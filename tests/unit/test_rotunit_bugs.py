"""Bugs."""
import asyncio, json
import pytest
from poolfleet.api import names
from poolfleet.controller.rotations import finish
from poolfleet.postgres.roles import Busy
from poolfleet.postgres.passwords import Unknown
from tests.unit.rotation_kit import House, make_house
from tests.unit.test_rotations import house, later
from tests.unit.test_units import KEY, TWO, answer, following, pod, pool, secret


async def test_forged_alternating_disables_anybody(house: House) -> None:
    forged = following(("x", "y"), namespace="evil", uid="e1", **{}) if False else following(("x", "y"), strategy="AlternatingRoles", former="victim", namespace="evil")
    house.put(secret(login=("x", "y"), namespace="evil", uid="e2"), forged)
    house.works = "neither"
    for _ in range(3):
        await finish(house.context, KEY, await house.turn())
    assert "disable" not in house.done, house.calls


async def test_forged_alternating_in_an_allowed_pools_namespace(house: House) -> None:
    house.ask()
    house.put(secret(), following(("app", "old"), strategy="AlternatingRoles", former="victim"))
    house.pods(staged=False)
    for _ in range(3):
        await finish(house.context, KEY, await house.turn())
    assert "disable" not in house.done, house.calls


async def test_forged_password_checks(house: House) -> None:
    house.put(secret(login=("victim", "guess"), namespace="evil", uid="e2"), following(("victim", "guess2"), namespace="evil"))
    await finish(house.context, KEY, await house.turn())
    assert house.done == [], house.calls


@pytest.mark.parametrize("at", ["soon", "2027-13-01T00:00:00Z", "\x00"])
async def test_spoilt_at(house: House, at: str) -> None:
    house.ask()
    house.put(secret(annotations={names.ROTATED: json.dumps({"at": at})}))
    await house.turn()


@pytest.mark.parametrize("word", ["ü", ""])
async def test_spoilt_next(house: House, word: str) -> None:
    house.ask()
    house.put(secret(), following(("app", word)))
    house.config()
    house.pods()
    await house.turn()


async def test_silent_at_the_last_moment(house: House) -> None:
    house.underway(pod(state=answer(9.0)))
    house.agents.fresh = {}
    await house.turn()
    assert house.done == ["check", "ask"]


async def test_busy_after_unknown_keeps_the_next(house: House) -> None:
    house.underway(pod(state=answer(9.0)))
    house.agents.fresh = {"a": answer(9.0)}
    house.fails = Unknown("x")
    async def again() -> None: ...
    house.agents.takes = lambda: setattr(house, "fails", house.fails if "alter" not in house.done else Busy())
    turn = await house.turn()
    assert "remove" not in later(turn), house.done


async def test_verdict_of_a_plain_read_error(house: House) -> None:
    house.underway(pod(state=answer(None)))
    await house.turn()
    from poolfleet.kube.errors import Unavailable
    house.context.secrets.error = Unavailable("down")
    turn = await house.turn()
    assert "remove" not in later(turn), house.words
