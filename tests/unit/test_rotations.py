"""Rotations carried out: in which order, only on fresh words of the agents, and what comes of it if something fails."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from poolfleet.api import names
from poolfleet.controller.rotation_state import Memory, Rotations
from poolfleet.controller.rotations import finish
from poolfleet.kube.errors import ApiError, Conflict, Forbidden, NotFound, NotLeader, Unavailable
from poolfleet.kube.kinds import POOL, SECRET
from poolfleet.plan.secrets import Login, former_login, next_role_login
from poolfleet.postgres.connection import ServerError
from poolfleet.postgres.passwords import Refused, Unknown
from poolfleet.postgres.roles import Busy
from tests.unit.pool_fixtures import Body
from tests.unit.rotation_kit import POOL_KEY, FakeAdmin, House, later, make_house
from tests.unit.test_units import KEY, TWO, answer, following, pod, pool, secret


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return make_house(monkeypatch)


async def test_a_rotation_begins_with_a_look_and_then_the_next_secret(house: House) -> None:
    house.ask()
    house.put(secret())
    await house.turn()
    assert house.done == ["check", "create"]
    made = house.context.store.get(SECRET.plural, "demo", "role-next")
    assert made is not None and json.loads(made["metadata"]["annotations"][names.NEXT]) == {
        "kind": "role",
        "secret": "role",
        "server": "demo/db",
        "strategy": "Password",
        "former": "app",
        "for": {"shop": "1"},
    }
    assert house.context.queue.get_nowait() in (KEY, POOL_KEY)
    await house.turn()
    assert house.done == ["check", "create"]  # it was just seen that the present password is valid
    assert house.phases == ["Staging"]


async def test_pods_hold_and_only_then_the_password_is_set(house: House) -> None:
    house.underway(pod(state=answer(None)))
    turn = await house.turn()
    assert (house.done, house.phases) == (["check"], ["Holding"])
    [told] = turn.view.world.wishes
    assert (told.hold, told.staged, turn.load) == (frozenset({"shop"}), True, False)
    house.pods(pod(state=answer(8.0)))
    house.agents.fresh = {"a": answer(7.0)}
    turn = await house.turn()
    assert house.done == ["check", "ask", "alter"]
    assert house.calls[-1] == ("alter", ("app", False))
    [told] = turn.view.world.wishes
    assert (told.hold, told.staged, turn.load) == (frozenset(), False, True)  # what was staged is loaded, without hold
    assert later(turn) == ["store"]


@pytest.mark.parametrize("left", [None, 3.9])
async def test_what_an_agent_says_now_counts_and_not_what_it_said(house: House, left: float | None) -> None:
    house.underway(pod(state=answer(9.0)))
    house.agents.fresh = {"a": answer(left)}
    turn = await house.turn()
    assert house.done == ["check", "ask"]
    assert turn.view.world.wishes[0].hold == {"shop"}
    assert turn.again is not None and turn.again <= 1.0


async def test_the_time_that_asking_took_is_gone_from_the_hold(house: House) -> None:
    house.underway(pod(state=answer(9.0)))
    house.agents.fresh = {"a": answer(5.0)}
    house.agents.takes = lambda: house.now.__setitem__(0, house.now[0] + 1.5)
    await house.turn()
    assert house.done == ["check", "ask"]


async def test_a_statement_that_comes_too_late_is_not_sent(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The admin's connection was busy for longer than the holds have left to spare."""
    house.underway(pod(state=answer(9.0)))
    house.agents.fresh = {"a": answer(9.0)}

    async def run(self: FakeAdmin, work: Callable[[Any], Awaitable[Any]]) -> Any:
        house.now[0] += 2.1
        return await work(None)

    monkeypatch.setattr(FakeAdmin, "run", run)
    turn = await house.turn()
    assert later(turn) == ["remove"]
    assert "Not any more." in house.words


async def test_who_leads_no_longer_for_long_alters_nothing(house: House) -> None:
    house.underway()
    house.kube.left = 2.9
    await house.turn()
    assert "Not any more." in house.words


async def test_without_pods_nobody_is_asked(house: House) -> None:
    house.underway()
    turn = await house.turn()
    assert (house.done, turn.load) == (["check", "alter"], True)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Refused('role "app" could not be altered: denied'), 'Role "app" could not be altered: denied.'),
        (ServerError("h:1: no route", refused=False), "H:1: no route."),
    ],
)
async def test_a_password_that_was_surely_not_set_is_dropped(house: House, error: Exception, says: str) -> None:
    house.underway()
    house.fails = error
    turn = await house.turn()
    assert (house.phases, house.words) == (["Failed"], says)
    assert later(turn) == ["remove"]
    assert (turn.load, turn.view.world.wishes[0].hold) == (False, frozenset())
    await finish(house.context, KEY, turn)
    assert house.calls[-1] == ("delete", ("role-next", "uid-role-next"))
    await house.turn()
    assert house.done.count("create") == 0  # not before the backoff
    await house.turn(16.0)
    assert house.done[-1] == "create"


@pytest.mark.parametrize("error", [Unknown("no answer"), TimeoutError(), Busy()])
async def test_what_nobody_knows_is_tried(house: House, error: Exception) -> None:
    house.underway(pod(state=answer(9.0)))
    house.agents.fresh = {"a": answer(9.0)}
    house.fails, house.works_then = error, "next"
    turn = await house.turn()
    assert house.done == ["check", "ask", "alter", "check"]
    assert turn.load and later(turn) == ["store"]


async def test_what_was_not_set_although_nobody_knew_is_set_again(house: House) -> None:
    house.underway(pod(state=answer(9.0)))
    house.agents.fresh = {"a": answer(9.0)}
    house.fails = Unknown("no answer")
    turn = await house.turn()
    assert house.done == ["check", "ask", "alter", "check", "ask", "alter"]
    assert turn.load


async def test_without_an_admin_nothing_is_done(house: House) -> None:
    house.underway()
    house.discoveries.connection = None
    turn = await house.turn()
    assert (house.done, turn.later) == ([], [])
    await house.turn()
    assert house.words == "Whether the next password is set already is being tried: no admin login"


# After the pods were told


async def test_the_login_is_stored_over_what_was_seen_and_then_the_next_secret_goes(house: House) -> None:
    house.underway(**{"for": {"shop": "1"}})
    turn = await house.turn()
    await finish(house.context, KEY, turn)
    (_, patch) = house.calls[-1]
    assert patch[:2] == [
        {"op": "test", "path": "/metadata/uid", "value": "uid-role"},
        {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
    ]
    main = house.context.store.get(SECRET.plural, "demo", "role")
    assert main is not None and main["data"] == following()["data"]
    assert json.loads(main["metadata"]["annotations"][names.ROTATED])["for"] == {"shop": "1"}
    turn = await house.turn()
    assert turn.load
    await finish(house.context, KEY, turn)
    assert house.calls[-1] == ("delete", ("role-next", "uid-role-next"))
    house.works = "main"
    turn = await house.turn()
    assert (house.phases, turn.later, house.done.count("create")) == (["Idle"], [], 0)  # what was asked for was obeyed


@pytest.mark.parametrize(
    "error", [Conflict("changed", 409), Forbidden("no", 403), Unavailable("down"), NotFound("gone", 404)]
)
async def test_what_the_api_server_does_not_take_is_tried_again(house: House, error: ApiError) -> None:
    house.underway()
    turn = await house.turn()
    house.kube.error = error
    await finish(house.context, KEY, turn)
    assert house.done[-1] == "patch"
    house.kube.error = None
    await finish(house.context, KEY, await house.turn())
    assert house.done[-2:] == ["patch", "patch"]  # nothing was altered again
    assert house.done.count("alter") == 1


async def test_who_does_not_lead_any_more_stops(house: House) -> None:
    house.underway()
    turn = await house.turn()
    house.kube.error = NotLeader("lost")
    with pytest.raises(NotLeader):
        await finish(house.context, KEY, turn)


@pytest.mark.parametrize("error", [Conflict("exists", 409), Forbidden("quota", 403)])
async def test_a_next_secret_that_cannot_be_made_fails_the_rotation_and_nothing_else(
    house: House, error: ApiError
) -> None:
    house.ask()
    house.put(secret())
    house.kube.error = error
    turn = await house.turn()
    assert turn.view.world.wishes == house.seen.world.wishes
    await house.turn()
    assert f'Secret "role-next" could not be made: {error}.' in house.words
    assert house.done.count("create") == 1


# Two roles


async def test_an_idle_role_gets_a_password_without_any_hold(house: House) -> None:
    house.ask(TWO)
    house.put(secret(login=("blue", "1")), following(("green", "2"), strategy="AlternatingRoles", former="blue"))
    house.pods(pod(state=answer(None)), staged=False)
    turn = await house.turn()
    assert house.done == ["check", "alter"]
    assert house.calls[-1] == ("alter", ("green", True))
    assert (turn.load, turn.view.world.wishes[0].hold) == (False, frozenset())


async def test_the_next_secret_of_two_roles_keeps_the_login_that_it_replaces(house: House) -> None:
    """Only who knows its password disables a role."""
    house.ask(TWO)
    house.put(secret(login=("blue", "1")))
    await house.turn()
    made = house.context.store.get(SECRET.plural, "demo", "role-next")
    assert next_role_login(made) is not None and former_login(made) == Login("blue", "1")


def retiring(house: House, *, role: str = "green", **changes: Any) -> None:
    """The new login is stored, the pods are replaced or not."""
    house.ask(TWO)
    late = following(("green", "2"), strategy="AlternatingRoles", former="blue")
    house.put(secret(login=("green", "2")), late)
    state = answer(None, **changes)
    house.pods(pod(state=state), staged=False, roles={"shop": frozenset({role})})


async def test_the_former_role_ends_when_every_pod_is_new_and_no_session_is_left(house: House) -> None:
    retiring(house)
    await house.turn()
    assert (house.done, house.phases) == ([], ["Rolling"])
    retiring(house, config="c1", role="blue")  # what they have loaded is x-config from before the new login was stored
    await house.turn()
    assert (house.done, house.phases) == ([], ["Rolling"])
    house.found = {"sessions": 3}
    retiring(house, config="c1")
    await house.turn()
    assert house.words == '"blue" still has 3 sessions; it is disabled when there are none.'
    house.found = {}
    house.fails = Refused("denied")
    await finish(house.context, KEY, await house.turn(6.0))
    assert house.done[-1] == "disable"  # the next Secret stays
    await house.turn()
    assert house.words == 'Role "blue" is not disabled: Denied.'
    await finish(house.context, KEY, await house.turn(16.0))
    assert house.calls[-2:] == [("disable", "blue"), ("delete", ("role-next", "uid-role-next"))]
    (memory,) = house.context.rotations.memories.values()
    assert (memory.known.failure, memory.known.failures) == ("", 0)
    house.ask(TWO, token="2")
    house.put({**secret(login=("green", "2")), "metadata": {**secret()["metadata"], "resourceVersion": "8"}})
    house.works = "main"
    await house.turn()
    assert house.done[-1] == "create"  # what failed is over, the next one waits for nothing


@pytest.mark.parametrize("found", [{"refusal": "it is SUPERUSER."}, {"refusal": "not known.", "sessions": 1}])
async def test_a_former_role_that_must_not_be_disabled_is_told(house: House, found: Body) -> None:
    retiring(house, config="c1")
    house.found = found
    turn = await house.turn()
    assert (later(turn), house.done, house.phases) == ([], ["check"], ["Blocked"])
    assert house.words == f'Role "blue" is not disabled: {found["refusal"]}'


async def test_a_former_role_that_cannot_log_in_any_more_is_left(house: House) -> None:
    retiring(house, config="c1")
    house.found = {"disabled": True, "refusal": "not known."}
    assert (later(await house.turn()), house.done) == (["remove"], ["check"])


async def test_an_idle_role_is_not_altered_for_who_does_not_know_the_other_one(house: House) -> None:
    house.ask(TWO)
    house.put(secret(login=("blue", "1")), following(("green", "2"), strategy="AlternatingRoles", former="blue"))
    house.works = "neither"
    assert later(await house.turn()) == ["remove"]
    assert house.done == ["check"]


# Several


async def test_two_rotations_of_one_pool_wait_for_each_other(house: House) -> None:
    databases = [
        {"name": "shop", "credentialsSecretRef": {"name": "role"}, "rotation": {}},
        {"name": "late", "credentialsSecretRef": {"name": "zweite"}, "rotation": {}},
    ]
    for each in databases:
        each["rotation"] = {"strategy": "Password"}
    house.ask(databases=databases)
    house.put(secret(), secret("zweite", ("blue", "1")))
    await house.turn()
    assert house.done.count("create") == 1
    assert 'It waits for the rotation of Secret "role", which touches the same pool.' in house.words
    made = house.context.store.get(SECRET.plural, "demo", "role-next")
    assert made is not None
    house.context.store.remove(SECRET.plural, made)
    main = secret(annotations={names.ROTATED: json.dumps({"at": "2027-01-15T08:00:00Z", "for": {"shop": "1"}})})
    main["metadata"]["resourceVersion"] = "8"
    house.put(main)
    await house.turn()
    assert house.context.store.get(SECRET.plural, "demo", "zweite-next") is not None


async def test_what_nobody_wants_any_more_is_forgotten(house: House) -> None:
    house.ask()
    house.put(secret())
    await house.turn()
    made = house.context.store.get(SECRET.plural, "demo", "role-next")
    assert made is not None
    house.context.store.remove(SECRET.plural, made)
    body = pool(rotation=None)
    body["metadata"]["resourceVersion"] = "999"
    house.context.store.put(POOL.plural, body)
    turn = await house.turn()
    assert ([*turn.later], turn.again, house.context.rotations.memories) == ([], None, {})
    assert house.context.rotations.lines("demo/shop") == ()


async def test_a_server_that_is_gone_takes_its_checks_along() -> None:
    state, hanging = Rotations(), asyncio.Event()
    task = asyncio.create_task(cast(Any, hanging.wait()))
    state.memories["uid-server", "demo", "role"] = Memory(task=cast(Any, task))
    state.of_server["uid-server"] = {"demo/shop": ()}
    state.forget("uid-server")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (state.memories, state.of_server) == ({}, {})
