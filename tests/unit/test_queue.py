"""The keyed queue: one worker per key, nothing lost, failures wait longer and longer."""

import asyncio

import pytest

from poolfleet.controller.queue import LONGEST_RETRY, ROUTINE, ROUTINE_WAITS, KeyedQueue, QueueClosed


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> KeyedQueue[str]:
    return KeyedQueue(clock, rand=lambda: 0.5)


def drain(queue: KeyedQueue[str]) -> list[str]:
    keys = []
    while (key := queue.get_nowait()) is not None:
        keys.append(key)
        queue.done(key)
    return keys


def test_a_key_is_queued_once(queue: KeyedQueue[str]) -> None:
    for _ in range(3):
        queue.add("a")
    queue.add("b")
    assert queue.depth == 2
    assert drain(queue) == ["a", "b"]
    assert queue.adds == 4


def test_a_key_is_worked_on_by_one_at_a_time_and_again_if_added_meanwhile(queue: KeyedQueue[str]) -> None:
    queue.add("a")
    assert queue.get_nowait() == "a"
    queue.add("a")
    queue.add("a")
    assert queue.get_nowait() is None
    assert queue.working == {"a"}
    queue.done("a")
    assert queue.get_nowait() == "a"
    queue.done("a")
    assert queue.get_nowait() is None


def test_the_earliest_time_wins(queue: KeyedQueue[str], clock: Clock) -> None:
    queue.add("a", delay=60)
    queue.add("a", delay=5)
    queue.add("a", delay=30)
    clock.now += 4.9
    assert queue.get_nowait() is None
    clock.now += 0.2
    assert drain(queue) == ["a"]
    clock.now += 100
    assert drain(queue) == []  # the outdated times are no work


def test_the_earliest_time_wins_while_being_worked_on(queue: KeyedQueue[str], clock: Clock) -> None:
    queue.add("a")
    assert queue.get_nowait() == "a"
    queue.add("a", delay=60)
    queue.add("a", delay=1)
    queue.done("a")
    assert queue.get_nowait() is None
    clock.now += 1
    assert drain(queue) == ["a"]


def test_urgent_keys_go_before_routine_ones_but_not_for_ever(queue: KeyedQueue[str], clock: Clock) -> None:
    queue.add("routine", priority=ROUTINE)
    queue.add("upgraded", priority=ROUTINE)
    clock.now += 1
    queue.add("urgent")
    queue.add("upgraded")
    assert queue.get_nowait() == "upgraded"  # urgent by now, and the older one
    assert queue.get_nowait() == "urgent"
    clock.now += ROUTINE_WAITS
    queue.add("later")
    assert queue.get_nowait() == "routine"
    assert queue.get_nowait() == "later"


def test_retries_wait_longer_each_time_until_it_works(queue: KeyedQueue[str], clock: Clock) -> None:
    delays = []
    for _ in range(12):
        delays.append(queue.retry("a"))
        clock.now += delays[-1]
        assert queue.get_nowait() == "a"
        queue.done("a")
    assert delays[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert delays[-1] == LONGEST_RETRY
    queue.forget("a")
    assert queue.retry("a") == pytest.approx(0.2)


def test_retries_are_spread() -> None:
    assert KeyedQueue[str](rand=lambda: 0.0).retry("a") < KeyedQueue[str](rand=lambda: 0.99).retry("a")


def test_depth_and_age_count_what_is_due(queue: KeyedQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.add("b", delay=10)
    clock.now += 4
    assert (queue.depth, queue.oldest()) == (1, 4)
    clock.now += 10
    assert (queue.depth, queue.oldest()) == (2, 14)
    drain(queue)
    assert (queue.depth, queue.oldest()) == (0, 0)


async def test_get_waits_for_a_key() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    assert await asyncio.wait_for(waiting, 1) == "a"


async def test_get_waits_for_a_time_and_no_longer() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    queue.add("a", delay=60)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("b", delay=0.01)
    assert await asyncio.wait_for(waiting, 1) == "b"


async def test_every_waiting_worker_gets_its_key() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for key in "abc":
        queue.add(key)
    assert sorted(await asyncio.wait_for(asyncio.gather(*waiting), 1)) == ["a", "b", "c"]


async def test_a_closed_queue_gives_out_nothing() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    queue.close()
    with pytest.raises(QueueClosed):
        await asyncio.wait_for(waiting, 1)
    with pytest.raises(QueueClosed):
        await queue.get()
