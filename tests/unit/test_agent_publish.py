"""poolfleet.agent.publish"""

import asyncio
import dataclasses
from typing import Any

import pytest

from poolfleet.agent.publish import LIVE_SECONDS, SURGE_SECONDS, Publisher, moved, surged
from poolfleet.api.wire import AgentState, DatabaseState

DATABASE = DatabaseState(loaded=5, held=3, samples=2, clients=100, waiting=0, reachable=True)
STATE = AgentState("srv", "pod", 0, 1, "c", "", "1-2", {"shop": DATABASE}, ready=True)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def published() -> tuple[Publisher, Clock]:
    clock = Clock()
    publisher = Publisher(clock)
    publisher.publish(STATE)
    return publisher, clock


@pytest.mark.parametrize(
    "change",
    [
        {"rev": 2},
        {"config": "d"},
        {"config_error": "x"},
        {"started": ""},
        {"draining": True},
        {"cut": 1},
        {"ready": False},
        {"mounted": "d"},
    ],
)
def test_what_matters_raises_seq_at_once(change: dict[str, Any]) -> None:
    publisher, _ = published()
    seq = publisher.state.seq
    publisher.publish(dataclasses.replace(STATE, **change))
    assert publisher.state.seq == seq + 1


@pytest.mark.parametrize(
    "change",
    [
        *({"loaded": 4}, {"samples": 1}, {"held": 6}, {"reachable": False}, {"reachable": None}, {"error": "x"}),
        *({"hold": 9.5}, {"hold": 0.0}),
    ],
)
def test_what_matters_of_a_database_raises_seq_at_once(change: dict[str, Any]) -> None:
    publisher, _ = published()
    seq = publisher.state.seq
    publisher.publish(dataclasses.replace(STATE, databases={"shop": dataclasses.replace(DATABASE, **change)}))
    assert publisher.state.seq == seq + 1


def test_the_same_again_and_further_samples_are_no_news() -> None:
    publisher, clock = published()
    seq = publisher.state.seq
    clock.now = 100.0
    further = dataclasses.replace(STATE, databases={"shop": dataclasses.replace(DATABASE, samples=3)}, max_wait=9.0)
    publisher.publish(further)
    assert publisher.state == dataclasses.replace(further, seq=seq)


def test_live_numbers_raise_seq_by_a_tenth_and_not_too_often() -> None:
    publisher, clock = published()
    seq = publisher.state.seq

    def publish(clients: int) -> int:
        publisher.publish(
            dataclasses.replace(STATE, databases={"shop": dataclasses.replace(DATABASE, clients=clients)})
        )
        assert publisher.state.databases["shop"].clients == clients
        return publisher.state.seq - seq

    clock.now = LIVE_SECONDS - 0.1
    assert publish(149) == 0
    clock.now = LIVE_SECONDS
    assert publish(109) == 0
    assert publish(110) == 1
    clock.now = 2 * LIVE_SECONDS
    assert publish(105) == 1
    assert publish(99) == 2


def test_a_surge_does_not_wait_as_long() -> None:
    publisher, clock = published()
    seq = publisher.state.seq
    surge = dataclasses.replace(STATE, databases={"shop": dataclasses.replace(DATABASE, clients=150)})
    clock.now = SURGE_SECONDS - 0.1
    publisher.publish(surge)
    assert publisher.state.seq == seq
    clock.now = SURGE_SECONDS
    publisher.publish(surge)
    assert publisher.state.seq == seq + 1


@pytest.mark.parametrize(
    ("before", "after", "far"),
    [
        ({}, {}, False),
        ({"clients": 100}, {"clients": 149}, False),
        ({"clients": 100}, {"clients": 150}, True),
        ({"clients": 100}, {"clients": 50}, True),
        ({"clients": 0}, {"clients": 3}, False),
        ({"clients": 0}, {"clients": 4}, True),
        ({"waiting": 0}, {"waiting": 50}, False),  # it swings, and the clients say it too
    ],
)
def test_surged(before: dict[str, Any], after: dict[str, Any], far: bool) -> None:
    old, new = (
        dataclasses.replace(STATE, databases={"shop": dataclasses.replace(DATABASE, **changes)})
        for changes in (before, after)
    )
    assert surged(old, new) is far


@pytest.mark.parametrize(
    ("before", "after", "is_moved", "is_surged"),
    [
        (None, None, False, False),
        (None, 0.0, True, True),
        (0.5, None, True, True),
        (0.02, 0.11, False, False),
        (0.02, 0.13, True, False),
        (0.1, 0.31, True, True),
        (0.9, 0.5, True, False),
        (0.9, 0.4, True, True),
    ],
)
def test_the_cpu_is_a_live_number(before: float | None, after: float | None, is_moved: bool, is_surged: bool) -> None:
    old, new = (dataclasses.replace(STATE, cpu=cpu) for cpu in (before, after))
    assert moved(old, new) is is_moved
    assert surged(old, new) is is_surged


def test_moved_clients_are_a_live_number() -> None:
    assert moved(STATE, dataclasses.replace(STATE, moved=1))
    assert not moved(dataclasses.replace(STATE, moved=100), dataclasses.replace(STATE, moved=105))


async def test_what_was_told_is_what_somebody_has_read() -> None:
    publisher, _ = published()
    publisher.publish(dataclasses.replace(STATE, cut=3))
    assert publisher.told.cut == 0
    await publisher.wait(0, 60)
    assert publisher.told.cut == 3


@pytest.mark.parametrize(
    ("before", "after", "far"),
    [
        ({}, {}, False),
        ({"clients": 0}, {"clients": 1}, True),
        ({"clients": 100}, {"clients": 91}, False),
        ({"held": 3}, {"held": 2}, True),
        ({"waited": False}, {"waited": True}, True),
        ({"waited": True}, {"waited": False}, True),
        *(({name: 0}, {name: 1}, False) for name in ("waiting", "peak", "demand")),
        *(({name: 12}, {name: 11}, False) for name in ("waiting", "peak", "demand")),
        *(({name: 12}, {name: 14}, True) for name in ("waiting", "peak", "demand")),
        *(({name: 40}, {name: 37}, False) for name in ("waiting", "peak", "demand")),
        *(({name: 40}, {name: 36}, True) for name in ("waiting", "peak", "demand")),
    ],
)
def test_moved(before: dict[str, Any], after: dict[str, Any], far: bool) -> None:
    old, new = (
        dataclasses.replace(STATE, databases={"shop": dataclasses.replace(DATABASE, **changes)})
        for changes in (before, after)
    )
    assert moved(old, new) is far


def test_a_new_database_is_news() -> None:
    assert moved(STATE, dataclasses.replace(STATE, databases={"new": DATABASE}))


async def test_waiting() -> None:
    publisher, _ = published()
    seq = publisher.state.seq
    assert (await publisher.wait(seq - 1, 60)).seq == seq
    assert (await publisher.wait(seq + 999, 60)).seq == seq  # what a predecessor said is no reason to wait
    assert (await publisher.wait(seq, 0.01)).seq == seq
    waiters = [asyncio.create_task(publisher.wait(seq, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    publisher.publish(dataclasses.replace(STATE, rev=2))
    assert [state.rev for state in await asyncio.gather(*waiters)] == [2, 2, 2]


def test_a_hold_that_goes_on_is_no_news() -> None:
    publisher, clock = published()
    for hold in (9.0, 8.0, 0.0):
        clock.now += LIVE_SECONDS
        publisher.publish(dataclasses.replace(STATE, databases={"shop": dataclasses.replace(DATABASE, hold=hold)}))
    assert publisher.state.seq == published()[0].state.seq + 1
    assert publisher.state.databases["shop"].hold == 0.0


def test_who_the_clients_users_are_is_told_in_its_time_and_how_many_they_are_is_not() -> None:
    one = dataclasses.replace(STATE, users={"app": 3})
    assert moved(STATE, one)
    assert moved(one, dataclasses.replace(STATE, users={"other": 3}))
    assert moved(one, STATE)
    assert not moved(one, dataclasses.replace(STATE, users={"app": 9}))
