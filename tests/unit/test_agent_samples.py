"""poolfleet.agent.samples"""

from dataclasses import replace
from typing import Any

from poolfleet.agent.samples import SPACING, WINDOW, Demand, Sample, Samples, Usage
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
    assert not samples.add(sample(SPACING - 0.01, 4))
    assert (samples.held("shop"), samples.samples("shop")) == (3, 1)
    assert samples.add(sample(SPACING, 1))


def test_an_early_sample_that_shows_less_takes_the_place_of_the_last_one() -> None:
    samples = Samples()
    samples.add(sample(0.0, 9))
    samples.add(sample(1.0, 9))
    early = 1.0 + SPACING / 2
    assert not samples.add(sample(early, 4))
    assert (samples.held("shop"), samples.samples("shop")) == (9, 2)  # the first one still says 9
    assert not samples.add(sample(1.0 + SPACING, 4))  # too early after the one that counts now
    assert samples.add(sample(early + SPACING, 4))
    assert (samples.held("shop"), samples.samples("shop")) == (4, 3)


def test_an_early_sample_of_other_databases_takes_no_place() -> None:
    samples = Samples()
    samples.add(sample(0.0, 9))
    assert not samples.add(Sample(SPACING / 2, {}, {}, ()))
    assert samples.held("shop") == 9
    assert samples.add(sample(SPACING, 9))


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


def test_usage_leaves_the_own_probe_out() -> None:
    waits = sample(0.0, cl_active=3, cl_waiting=2, sv_active=3)
    assert waits.usage("shop", probing=False) == Usage(clients=5, waiting=2, busy=3)
    assert waits.usage("shop", probing=True) == Usage(clients=4, waiting=1, busy=3)
    linked = sample(0.0, cl_active=3, sv_active=3)
    assert linked.usage("shop", probing=True) == Usage(clients=2, waiting=0, busy=2)
    assert sample(0.0).usage("shop", probing=True) == Usage(0, 0, 0)
    assert sample(0.0).usage("other", probing=False) == Usage(0, 0, 0)


def test_busy_is_what_no_other_client_could_have() -> None:
    seen = sample(0.0, sv_active=1, sv_tested=2, sv_being_canceled=4, sv_idle=8, sv_used=16, sv_login=32)
    assert seen.usage("shop", probing=False).busy == 7


def test_demand_is_the_most_of_the_window() -> None:
    samples = Samples()
    samples.add(sample(0.0, sv_active=7, cl_active=7, cl_waiting=4))
    samples.add(sample(1.0, sv_active=8, cl_active=8))
    for at in range(2, 10):
        samples.add(sample(float(at), sv_active=2, cl_active=90))
    assert samples.demand("shop") == Demand(peak=8, demand=11)
    samples.add(sample(WINDOW, sv_active=2))
    assert samples.demand("shop") == Demand(peak=8, demand=8)
    samples.add(sample(WINDOW + 1.0, sv_active=2))
    assert samples.demand("shop") == Demand(peak=2, demand=2)
    assert samples.demand("other") == Demand()


def test_waited_needs_two_moments_and_many_looks_at_one_are_one() -> None:
    samples = Samples()
    for at in (0.0, 0.05, 0.1, 0.39):
        samples.add(sample(at, cl_waiting=5))
    assert not samples.demand("shop").waited
    samples.add(sample(0.45, cl_waiting=1))
    assert samples.demand("shop").waited
    samples.add(sample(10.0, sv_active=1))  # only the second is left in the window
    assert not samples.demand("shop").waited


def test_a_load_does_not_end_the_window_and_the_probe_is_no_demand() -> None:
    samples = Samples()
    samples.add(sample(0.0, sv_active=7))
    samples.reset(["shop"])
    samples.add(sample(0.5, cl_waiting=1), lambda name: name == "shop")
    samples.add(sample(1.0, cl_waiting=1), lambda name: name == "shop")
    assert samples.demand("shop") == Demand(peak=7, demand=7)


def test_who_waits_while_it_is_paused_is_no_demand() -> None:
    samples = Samples()
    samples.add(sample(0.0, sv_active=2))
    paused = sample(1.0, cl_waiting=50)
    samples.add(replace(paused, databases={"shop": replace(paused.databases["shop"], paused=True)}))
    assert samples.demand("shop") == Demand(2, 2, False)
