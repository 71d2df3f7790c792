"""poolfleet.agent.samples"""

from typing import Any

from poolfleet.agent.samples import SPACING, Sample, Samples
from poolfleet.pgbouncer import show


def sample(at: float, current: int = 0, **pool: Any) -> Sample:
    database = show.Database("shop", "h", 1, "", 9, 9, current, False, False)
    return Sample(at, {"shop": database}, {"shop": show.Pool("shop", "", **pool)}, ())


def test_held_is_the_larger_of_the_last_two_samples() -> None:
    samples = Samples()
    for at, current in ((0.0, 9), (1.0, 5), (2.0, 3)):
        assert samples.add(sample(at, current))
    assert (samples.held("shop"), samples.samples("shop")) == (5, 3)


def test_samples_too_close_together_prove_nothing() -> None:
    samples = Samples()
    assert samples.add(sample(0.0, 3))
    assert not samples.add(sample(SPACING - 0.01, 1))
    assert (samples.held("shop"), samples.samples("shop")) == (3, 1)
    assert samples.add(sample(SPACING, 1))


def test_a_load_starts_the_proof_again_but_what_was_held_stays_known() -> None:
    samples = Samples()
    samples.add(sample(0.0, 7))
    samples.add(sample(1.0, 7))
    samples.reset(["shop"])
    assert (samples.held("shop"), samples.samples("shop")) == (7, 0)
    samples.add(sample(1.1, 2))
    assert (samples.held("shop"), samples.samples("shop")) == (2, 1)


def test_another_process_starts_from_nothing() -> None:
    samples = Samples()
    samples.add(sample(0.0, 7))
    samples.reset()
    assert (samples.held("shop"), samples.samples("shop")) == (0, 0)


def test_a_database_that_appears_later_needs_its_own_two_samples() -> None:
    samples = Samples()
    samples.add(Sample(0.0, {}, {}, ()))
    samples.add(sample(1.0, 1))
    assert samples.count == 2
    assert samples.samples("shop") == 1


def test_cancels_are_left_out_and_the_larger_count_wins() -> None:
    assert sample(0.0, 8, sv_active=3, sv_active_cancel=5).held("shop") == 3
    assert sample(0.0, 2, sv_active=3).held("shop") == 3
    assert sample(0.0, 4, sv_active=3, sv_login=1).held("shop") == 4
    assert sample(0.0, 4).held("other") == 0


def test_clients_count_cancel_requests_too() -> None:
    assert sample(0.0, cl_active=1, cl_waiting=2, cl_active_cancel_req=4, cl_waiting_cancel_req=8).clients() == 15
