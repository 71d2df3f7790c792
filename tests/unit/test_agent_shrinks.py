"""poolfleet.agent.shrinks"""

from dataclasses import replace
from typing import Any

import pytest

from poolfleet.agent.samples import SPACING, Sample, Samples
from poolfleet.agent.shrinks import (
    EAGER,
    EAGER_FOR,
    PATIENT,
    RECONNECT_AFTER,
    THIN_AFTER,
    THIN_GAP,
    THIN_SECONDS,
    Shrinks,
    Step,
)
from poolfleet.pgbouncer import show

LIMIT = 5


def sample(at: float, held: int, **pool: Any) -> Sample:
    database = show.Database("shop", "h", 1, "", LIMIT, LIMIT, held, False, False)
    return Sample(at, {"shop": database}, {"shop": show.Pool("shop", "", **pool)}, ())


class Loaded:
    """A load at 100 s, seen by the samples that follow."""

    def __init__(self) -> None:
        self.shrinks, self.samples = Shrinks(), Samples()
        self.shrinks.loaded(["shop"], 100.0)

    def see(self, after: float, held: int, **pool: Any) -> list[Step]:
        self.last = sample(100 + after, held, **pool)
        self.samples.add(self.last)
        return self.shrinks.seen(self.last, self.samples)

    @property
    def pace(self) -> float | None:
        return self.shrinks.pace(self.last)


def test_while_clients_wait_as_many_as_are_too_many_are_ended_one_after_the_other() -> None:
    [step] = Loaded().see(0.01, 20, cl_waiting=1, sv_login=1)
    assert step == Step("shop", held=20, limit=LIMIT, reconnect=False)
    assert step.gap == THIN_GAP
    assert step.lifetime == pytest.approx(step.gap * LIMIT)
    assert step.seconds == pytest.approx(15 * THIN_GAP)
    [many] = Loaded().see(0.01, LIMIT + 50, cl_waiting=1)
    assert many.seconds == pytest.approx(THIN_SECONDS)
    [one] = Loaded().see(0.01, LIMIT + 1, cl_waiting=1)
    assert one.seconds == pytest.approx(THIN_GAP)


def test_without_waiting_clients_the_janitor_comes_first() -> None:
    loaded = Loaded()
    assert loaded.see(0.01, 20) == []
    assert loaded.see(THIN_AFTER - 0.01, 20) == []
    assert [step.reconnect for step in loaded.see(THIN_AFTER, 20)] == [False]


@pytest.mark.parametrize("waiting", [0, 3])
def test_reconnect_is_for_what_a_lifetime_does_not_mend_once_and_never_while_a_login_is_under_way(waiting: int) -> None:
    loaded = Loaded()
    assert [s.reconnect for s in loaded.see(RECONNECT_AFTER - 0.01, 20, cl_waiting=waiting)] == [False]
    assert [s.reconnect for s in loaded.see(RECONNECT_AFTER, 20, sv_login=1, cl_waiting=waiting)] == [False]
    assert [s.reconnect for s in loaded.see(RECONNECT_AFTER + 0.1, 20, cl_waiting=waiting)] == [True]
    assert [s.reconnect for s in loaded.see(9.0, 20, cl_waiting=waiting)] == [False]
    loaded.shrinks.loaded(["shop"], 110.0)
    assert [s.reconnect for s in loaded.see(10 + RECONNECT_AFTER, 20, cl_waiting=waiting)] == [True]


def test_never_at_or_below_the_limit_and_never_when_it_is_proved() -> None:
    loaded = Loaded()
    assert loaded.see(1.0, LIMIT, cl_waiting=3) == []
    assert loaded.see(1.0 + 2 * SPACING, LIMIT, cl_waiting=3) == []
    assert loaded.pace is None
    assert loaded.see(2.0, LIMIT + 1, cl_waiting=3) == []


def test_one_sample_is_no_proof() -> None:
    loaded = Loaded()
    loaded.see(0.01, LIMIT)
    assert loaded.pace == SPACING
    loaded.see(0.5, LIMIT)
    assert loaded.pace is None


def test_the_pace() -> None:
    loaded = Loaded()
    loaded.see(0.01, LIMIT + 1)
    assert loaded.pace == EAGER
    loaded.see(EAGER_FOR - 0.01, LIMIT + 1)
    assert loaded.pace == EAGER
    loaded.see(EAGER_FOR, LIMIT + 1)
    assert loaded.pace == PATIENT
    loaded.see(6.0, LIMIT)
    assert loaded.pace == SPACING
    loaded.see(6.0 + 2 * SPACING, LIMIT)
    assert loaded.pace is None


def test_a_database_that_is_not_served_any_more_is_not_waited_for() -> None:
    shrinks = Shrinks()
    shrinks.loaded(["gone"], 0.0)
    assert shrinks.seen(sample(1.0, 9), Samples()) == []
    assert shrinks.pace(sample(1.0, 9)) is None


def test_what_is_paused_is_left_alone() -> None:
    shrinks, samples = Shrinks(), Samples()
    shrinks.loaded(["shop"], 0.0)
    seen = sample(9.0, 20, cl_waiting=3)
    seen = replace(seen, databases={"shop": replace(seen.databases["shop"], paused=True)})
    assert shrinks.seen(seen, samples) == []
    assert shrinks.pace(seen) is not None
