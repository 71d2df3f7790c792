"""Rotations where the Secrets or what is remembered of them cannot be trusted: forged, spoilt, unreadable, changed."""

import asyncio
import json
from typing import cast

import pytest

from poolfleet.api import names
from poolfleet.controller import rotations
from poolfleet.controller.rotations import finish
from poolfleet.kube.errors import Conflict, Unavailable
from tests.unit.rotation_kit import House, later, make_house
from tests.unit.test_units import KEY, FakeSecrets, answer, following, pod, secret


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return make_house(monkeypatch)


# Secrets that somebody forged or spoilt


@pytest.mark.parametrize("namespace", ["evil", "demo"])
async def test_a_forged_next_secret_disables_nobody(house: House, namespace: str) -> None:
    """Whoever may make Secrets may say in one that a role is to be disabled."""
    if namespace == "demo":
        house.ask()
    login = ("app", "old")
    house.pods(staged=False)
    forged = following(login, strategy="AlternatingRoles", former="victim", namespace=namespace)
    house.put(secret(login=login, namespace=namespace, uid="forged"), forged)
    for _ in range(3):
        await finish(house.context, KEY, await house.turn())
    assert not {"disable", "alter", "patch"} & {*house.done}
    assert house.phases == (["Blocked"] if namespace == "demo" else [])
    assert namespace == "demo" or house.done == []  # nobody's guesses are tried on a server that is not theirs


@pytest.mark.parametrize("at", ["soon", "2027-13-01T00:00:00Z", 7])
async def test_a_spoilt_time_of_the_last_rotation_harms_nobody(house: House, at: object) -> None:
    house.ask()
    house.put(secret(annotations={names.ROTATED: json.dumps({"at": at})}))
    await house.turn()
    assert house.done == ["check", "create"]


@pytest.mark.parametrize("word", ["ü", ""])
async def test_a_next_password_that_cannot_be_set_harms_nobody(house: House, word: str) -> None:
    house.underway()
    spoilt = following(("app", word))
    spoilt["metadata"]["resourceVersion"] = "8"
    house.put(spoilt)
    house.kube.error = Conflict("exists", 409)
    await house.turn()
    assert "alter" not in house.done


async def test_who_does_not_answer_at_the_last_moment_does_not_hold(house: House) -> None:
    house.underway(pod("a", state=answer(9.0)), pod("b", state=answer(9.0)))
    house.agents.fresh = {"a": answer(9.0)}
    turn = await house.turn()
    assert house.done == ["check", "ask"]
    assert turn.view.world.wishes[0].hold == {"shop"}


# What is known, and of what


async def test_who_holds_goes_on_holding_while_the_secrets_cannot_be_read(house: House) -> None:
    house.underway(pod(state=answer(None)))
    first = await house.turn()
    unreadable(house)
    turn = await house.turn()
    assert (later(turn), turn.view.world.wishes, turn.again) == ([], first.view.world.wishes, rotations.RETRY)
    assert turn.view.world.wishes[0].hold == {"shop"}
    assert (house.phases, house.words) == (["Holding"], 'Secret "role" cannot be read: down.')
    unreadable(house, so=False)
    await house.turn()
    assert (house.phases, house.done) == (["Holding"], ["check"])


async def test_a_new_leader_that_cannot_read_the_secrets_does_nothing(house: House) -> None:
    house.underway(pod(state=answer(9.0)))
    unreadable(house)
    turn = await house.turn()
    assert (house.done, later(turn), turn.load, house.phases) == ([], [], False, ["Checking"])


def unreadable(house: House, so: bool = True) -> None:
    cast(FakeSecrets, house.context.secrets).error = Unavailable("down") if so else None


async def test_what_was_found_of_one_login_says_nothing_of_another(house: House) -> None:
    """A Secret that names another role by now: of that one no password was seen."""
    house.ask()
    house.put(secret(annotations={names.ROTATED: json.dumps({"at": "x", "for": {"shop": "1"}})}))
    await house.turn()
    assert house.done == ["check"]
    other = secret(login=("blue", "guess"))
    other["metadata"]["resourceVersion"] = "8"
    house.put(other)
    house.works = "neither"
    await house.turn(1.0)
    assert house.done == ["check", "check"]
    assert house.phases == ["Blocked"]
    assert 'does not log in as "blue"' in house.words


async def test_a_check_that_was_under_way_when_the_login_changed_does_not_count(house: House) -> None:
    house.ask()
    house.put(secret())
    house.slow = asyncio.Event()
    await rotations.turn(house.context, KEY, house.seen)
    await asyncio.sleep(0)  # its check begins
    assert house.done == ["check"]
    other = secret(login=("blue", "guess"))
    other["metadata"]["resourceVersion"] = "8"
    house.put(other)
    await rotations.turn(house.context, KEY, house.seen)
    (memory,) = house.context.rotations.memories.values()
    assert memory.task is not None
    house.slow.set()
    await memory.task
    assert (house.done, memory.known.check) == (["check"], None)


async def test_a_look_at_what_nobody_knows_lets_nobody_go(house: House) -> None:
    """A new leader, or an outcome that is not known: the pods hold, and have the old password still."""
    house.underway(pod(state=answer(5.0)))
    turn = await rotations.turn(house.context, KEY, house.seen)
    assert turn.view.world.wishes[0].hold == {"shop"}


async def test_what_was_found_of_one_next_secret_says_nothing_of_another(house: House) -> None:
    """Somebody has removed it, and made another one of the same name."""
    house.underway(pod(state=answer(None)))
    house.works = "next"
    assert later(await house.turn()) == ["store"]
    made = following()
    made["metadata"] |= {"uid": "another", "resourceVersion": "8"}
    house.put(made)
    house.config("role=another")
    house.works = "main"
    assert later(await house.turn()) == []
    assert house.done == ["check", "check"]
