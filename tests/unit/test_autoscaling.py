"""How many pods are decided on what was seen: replays of traces, and the rules one by one."""

from dataclasses import replace

import pytest

from poolfleet.api.conditions import Reason
from poolfleet.plan.autoscaling import Policy, Sample, begin, step
from tests.traces import (
    EPOCH,
    Point,
    at,
    changes,
    flash_sale,
    noise,
    recorded,
    replay,
    samples,
    sine,
    stairs,
    steady,
    storm,
)

POLICY = Policy(min_replicas=2, max_replicas=8, target_clients=250, target_cpu=0.7, stabilization=300.0)
WIDE = replace(POLICY, min_replicas=1, max_replicas=100)


def unimodal(points: list[Point]) -> bool:
    """Only up, then only down."""
    numbers = [n for _, n in changes(points)]
    peak = numbers.index(max(numbers))
    return numbers[: peak + 1] == sorted(numbers[: peak + 1]) and numbers[peak:] == sorted(numbers[peak:], reverse=True)


@pytest.mark.parametrize("target, right", [(200, 8), (250, 6), (300, 5), (500, 3)])
@pytest.mark.parametrize("every", [0.5, 0.8, 1.0])
def test_a_step_is_answered_at_once_and_with_the_right_number(target: int, right: int, every: float) -> None:
    points = replay(
        samples(stairs((0, 50), (100, 1500)), 130, every), replace(POLICY, target_clients=target), follow=True
    )
    shown = min(p.t for p in points if p.t >= 100)
    ((when, number),) = changes(points)
    assert number == right
    assert 1.75 <= when - shown <= 2.5
    assert at(points, when).decision.mode == "Panic"


def test_a_step_is_answered_at_once_where_samples_are_late_by_a_bit() -> None:
    trace = [
        replace(s, at=s.at + (0.2 if i % 2 else 0.0))
        for i, s in enumerate(samples(stairs((0, 50), (100.1, 1500)), 130))
    ]
    ((when, number),) = changes(replay(trace, POLICY))
    assert number == 6
    assert when == pytest.approx(101.2 + 2)


def test_a_lasting_rise_does_not_wait_for_a_minute() -> None:
    points = replay(samples(stairs((0, 1000), (100, 1300)), 200), POLICY, 4)
    assert changes(points) == [(106.0, 6)]
    assert at(points, 106).decision.mode == "Stable"


def test_a_noisy_rise_waits_for_no_more_than_a_minute() -> None:
    before, after = noise(1000, 0.2), noise(1400, 0.2)
    points = replay(samples(lambda t: before(t) if t < 100 else after(t), 300), POLICY, 4)
    assert next(p.t for p in points if p.replicas > 4) <= 160
    assert 5 <= points[-1].replicas <= 7


@pytest.mark.parametrize("part", [1.0, 1.05, 1.1])
def test_within_the_tolerance_nothing_changes(part: float) -> None:
    assert not changes(replay(samples(stairs((0, 1000), (100, 1000 * part)), 1000), POLICY, 4))


@pytest.mark.parametrize("seconds", [1, 3, 5])
def test_a_blip_adds_nothing(seconds: float) -> None:
    assert not changes(replay(samples(stairs((0, 1000), (100, 1400), (100 + seconds, 1000)), 1000), POLICY, 4))


def test_pods_are_given_up_down_to_the_most_that_was_asked_for_in_the_window() -> None:
    points = replay(samples(stairs((0, 1990), (100, 700), (200, 990), (250, 300)), 1000), POLICY, 8)
    assert all(p.replicas == 8 for p in points if p.t < 400)  # 1990 are asked for until 100
    assert at(points, 470).replicas == 4  # 990 until 250
    assert at(points, 540).replicas == 4
    assert at(points, 620).replicas == 2
    assert unimodal(points)


def test_a_fast_sine_keeps_what_its_peaks_need_and_a_slow_one_is_followed() -> None:
    fast = replay(samples(sine(1000, 800, 120), 3600), POLICY)
    assert all(when < 120 for when, _ in changes(fast))
    assert fast[-1].replicas in (7, 8)

    load = sine(1000, 900, 3600)
    slow = replay(samples(load, 7200), POLICY)
    assert {p.replicas for p in slow} == set(range(2, 8))  # 1900 / 250 = 7.6, within 10 % of 7
    short = [p.t for p in slow if p.t > 20 and load(p.t - 15) > 1.1 * 250 * p.replicas]
    assert not short
    idle = [p.t for p in slow if p.t > 900 and p.replicas > 2 and 250 * (p.replicas - 1) > max(map(load, _past(p.t)))]
    assert not idle


def _past(t: float) -> list[float]:
    return [t - s for s in range(0, 400, 10)]


def test_a_flash_sale_is_followed_up_and_left_late() -> None:
    load = flash_sale()
    policy = replace(POLICY, target_clients=60)
    points = replay(samples(load, 1200), policy)
    assert unimodal(points)
    assert max(p.replicas for p in points) in (7, 8)  # 400 clients at a time, give or take 20
    mean = {t: sum(load(float(s)) for s in range(t - 9, t + 1)) / 10 for t in range(10, 1200)}
    assert all(mean[int(p.t) - 6] <= 1.25 * 60 * p.replicas for p in points if p.t >= 20)
    assert at(points, 60 + 90 + 10).replicas >= 6  # 6 × 1.1 × 60 are 396
    assert at(points, 60 + 90 + 120 + 290).replicas == max(p.replicas for p in points)
    assert points[-1].replicas == 2


def test_a_recorded_flash_sale() -> None:
    trace = recorded("sale")
    top = max(s.clients for s in trace)
    assert top > 60  # 150 requests/s of 0.5 s
    points = replay(trace, replace(POLICY, target_clients=10, target_cpu=10.0, stabilization=60.0), follow=True)
    assert unimodal(points)
    assert at(points, 100).replicas >= 6
    assert all(p.replicas <= p.before for p in points if p.t > 130)


@pytest.mark.parametrize("back", [1.0, 5.0])
def test_a_reconnect_storm_changes_nothing(back: float) -> None:
    trace = samples(storm(1900, 100, back), 1200)
    assert not changes(replay(trace, POLICY, 8))
    assert not changes(replay(trace, replace(POLICY, stabilization=60.0), 8))


def test_a_recorded_reconnect_storm_changes_nothing() -> None:
    trace = recorded("storm")
    assert min(s.clients for s in trace[60:80]) < 100 < 240 < max(s.clients for s in trace[60:90])
    points = replay(trace[10:], replace(POLICY, target_clients=50), 5, origin=trace[10].at)
    assert not changes(points)


def test_one_slow_pod_does_not_add_pods() -> None:
    points = replay(samples(steady(400), 900, cpu=steady(1.0 + 3 * 0.02)), POLICY, 4)
    assert [n for _, n in changes(points)] == [3, 2] or [n for _, n in changes(points)] == [2]
    assert not changes(replay(samples(steady(400), 900, cpu=noise(1.06, 0.05)), POLICY, 2))


def test_cpu_adds_pods_as_clients_do() -> None:
    points = replay(samples(steady(100), 200, cpu=stairs((0, 0.3), (100, 2.1))), POLICY)
    assert changes(points) == [(102.0, 3)]
    assert at(points, 102).decision.message == "2.10 cores on 2 pods (least of 2 s) / 0.7 per replica = 3; was 2"
    assert at(points, 102).decision.reason == Reason.SCALED_UP


def test_unknown_cpu_says_nothing() -> None:
    trace = samples(steady(900), 900, cpu=steady(0.1))
    trace = [replace(s, cpu=None) if i % 3 else s for i, s in enumerate(trace)]
    assert not changes(replay(trace, POLICY, 4))
    busy = [replace(s, cpu=None) if i % 3 else replace(s, cpu=3.5) for i, s in enumerate(trace)]
    assert [n for _, n in changes(replay(busy, POLICY, 4))] == [5]


def test_missing_samples_change_nothing_up_to_half_a_minute() -> None:
    trace = samples(stairs((0, 1990), (100, 300)), 1000)
    whole = changes(replay(trace, POLICY, 8))
    gap = [s for s in trace if not 150 < s.at - EPOCH < 179]
    # the falling mean is of fewer samples
    assert [n for _, n in changes(replay(gap, POLICY, 8))] == [n for _, n in whole]
    assert changes(replay(gap, POLICY, 8))[-1][0] == pytest.approx(whole[-1][0], abs=30)


def test_after_a_longer_gap_everything_begins_anew_with_the_pods_that_are() -> None:
    trace = samples(stairs((0, 1990), (100, 300)), 1000)
    points = replay([s for s in trace if not 350 < s.at - EPOCH < 390], POLICY, 8)
    assert all(p.replicas == 8 for p in points if p.t < 390 + 300)
    assert at(points, 390 + 300).replicas == 2
    assert changes(points)[0][0] == 390 + 300


@pytest.mark.parametrize("jump", [-3600.0, -1.5, 31.0, 86400.0])
def test_a_jump_of_the_clock_gives_nothing_up(jump: float) -> None:
    trace = samples(stairs((0, 1990), (100, 300)), 1000)
    jumped = [s if s.at < EPOCH + 380 else replace(s, at=s.at + jump) for s in trace]
    numbers = [p.replicas for p in replay(jumped, POLICY, 8)]
    assert numbers[: 380 + 300] == [8] * 680
    assert numbers[-1] == 2


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_jump_of_the_clock_does_not_hide_a_rise(jump: float) -> None:
    trace = samples(stairs((0, 300), (100, 1500)), 130)
    points = replay([s if s.at < EPOCH + 99 else replace(s, at=s.at + jump) for s in trace], POLICY)
    assert [n for _, n in changes(points)] == [6]
    assert points[102].replicas == 6
    assert len({p.decision.message for p in points[61:102]}) == 1  # not said anew


def test_silent_pods_hold_what_is_and_add_nothing() -> None:
    trace = samples(steady(900), 200) + [
        replace(s, at=s.at + 201, silent=2, answering=2) for s in samples(steady(450), 1000)
    ]
    assert not changes(replay(trace, POLICY, 4))
    gone = samples(steady(900), 200) + [
        replace(s, at=s.at + 201, answering=2) for s in samples(steady(450), 1000)
    ]  # the same without them
    assert [n for _, n in changes(replay(gone, POLICY, 4))] == [3, 2]


def test_silent_pods_add_nothing_even_where_more_are_ready_than_wanted() -> None:
    trace = [replace(s, silent=6, answering=2) for s in samples(steady(450), 400, cpu=steady(0.3))]
    assert not changes(replay(trace, POLICY, 4, follow=False))


def test_in_panic_the_mean_of_six_seconds_counts() -> None:
    """Clients that come and go by the second: no two samples in a row are high."""
    wave = samples(lambda t: 50 if t < 100 else 200 if t % 2 else 2800, 130)
    points = replay(wave, POLICY)
    assert changes(points)[-1][0] <= 106
    assert points[-1].replicas in (7, 8)  # 1500 ± 190


def test_silent_pods_hold_by_cpu_as_well() -> None:
    """1.3 cores and three times 0.7 ask for 5; 10 clients and three times 250 would ask for 4."""
    policy = replace(POLICY, min_replicas=1)
    trace = [replace(s, silent=3, answering=2) for s in samples(steady(10), 1000, cpu=steady(1.3))]
    assert not changes(replay(trace, policy, 5, follow=False))
    idle = [replace(s, cpu=0.1) for s in trace]
    assert replay(idle, policy, 5, follow=False)[-1].replicas == 4


def test_silent_pods_are_ready_pods_where_panic_is_weighed() -> None:
    trace = [replace(s, silent=3, answering=1) for s in samples(steady(400), 100)]
    assert {p.decision.mode for p in replay(trace, POLICY, 4, follow=False)} == {"Stable"}
    alone = [replace(s, silent=0) for s in trace]
    assert replay(alone, POLICY, 4, follow=False)[-1].decision.mode == "Panic"


def test_while_no_pod_answers_nothing_changes() -> None:
    trace = samples(steady(900), 200) + [replace(s, at=s.at + 201, clients=0) for s in samples(steady(0), 1000)]
    for silent in (0, 4):
        mute = [s if s.at < EPOCH + 201 else replace(s, answering=0, silent=silent) for s in trace]
        points = replay(mute, POLICY, 4, follow=False)
        assert not changes(points)
        assert len({(p.decision.message, p.decision.limited) for p in points[61:]}) == 1


def test_the_budget_limits_rises() -> None:
    points = replay(samples(stairs((0, 50), (100, 1480)), 130), POLICY, fed=4)
    assert changes(points) == [(102.0, 4)]
    decision = points[-1].decision
    assert decision.limited == Reason.BUDGET_LIMITED
    assert decision.limited_message == "6 replicas are wanted, the budget feeds 4"
    assert decision.message == (
        "1480 clients on 2 pods (least of 2 s) / 250 per replica = 6, the budget feeds 4; was 2"
    )


def test_a_larger_budget_lets_the_rise_go_on_and_a_smaller_one_takes_nothing() -> None:
    state, replicas, seen = begin(2, EPOCH), 2, []
    for i, sample in enumerate(samples(steady(1480), 600)):
        fed = 4 if i < 50 else 5 if i < 100 else 3 if i < 200 else None
        state, decision = step(state, sample, POLICY, replicas, fed)
        replicas = decision.replicas
        seen.append(decision)
    assert [seen[i].replicas for i in (49, 99, 199, 200)] == [4, 5, 5, 6]
    assert seen[150].limited_message == "6 replicas are wanted, the budget feeds 3, 5 stay"
    assert seen[250].limited == Reason.WITHIN_LIMITS


def test_pods_that_are_asked_for_and_no_longer_fed_are_told() -> None:
    decision = replay(samples(steady(1200), 100), POLICY, 5, fed=3)[-1].decision
    assert (decision.replicas, decision.limited) == (5, Reason.BUDGET_LIMITED)
    assert decision.limited_message == "5 replicas are wanted, the budget feeds 3, 5 stay"


def test_min_replicas_do_not_outgrow_the_budget() -> None:
    points = replay(samples(steady(10), 30), replace(POLICY, min_replicas=4), 2, fed=3)
    assert points[-1].replicas == 3
    assert points[-1].decision.limited == Reason.BUDGET_LIMITED
    assert points[-1].decision.limited_message == "4 replicas are wanted, the budget feeds 3"


def test_max_replicas_limit_and_status_says_so() -> None:
    points = replay(samples(stairs((0, 1000), (100, 3000)), 200), POLICY, 4)
    assert points[99].decision.limited == Reason.WITHIN_LIMITS
    assert points[99].decision.limited_message == (
        "what is asked for is within the limits: minReplicas 2, maxReplicas 8"
    )
    assert points[-1].replicas == 8
    assert points[-1].decision.limited == Reason.TOO_MANY_REPLICAS
    assert points[-1].decision.limited_message == "12 replicas are asked for, maxReplicas 8"


def test_min_replicas_hold_more_than_is_asked_for_and_status_says_so() -> None:
    points = replay(samples(steady(100), 400), POLICY)
    assert points[299].decision.limited == Reason.WITHIN_LIMITS  # 2 were there: they may be needed
    assert points[-1].decision.limited == Reason.TOO_FEW_REPLICAS
    assert points[-1].decision.limited_message == "1 would be enough, minReplicas 2"
    assert points[-1].decision.message == "100 clients on 2 pods (mean of 60 s) / 250 per replica = 1, minReplicas 2"


def test_with_min_replicas_above_what_is_asked_for_the_tolerance_is_that_of_the_pods_that_are() -> None:
    points = replay(samples(stairs((0, 100), (400, 540)), 800), POLICY)  # 540 = 1.08 × 2 × 250
    assert not changes(points)
    assert points[-1].decision.limited == Reason.WITHIN_LIMITS


def test_limits_act_at_once() -> None:
    state, decision = begin(6, EPOCH), None
    for sample in samples(steady(1480), 100):
        state, decision = step(state, sample, POLICY, 6, None)
    assert decision is not None and decision.replicas == 6
    late = Sample(EPOCH + 101, 1480, 6, 0, None)
    _, fewer = step(state, late, replace(POLICY, max_replicas=4), 6, None)
    assert (fewer.replicas, fewer.reason, fewer.limited) == (4, Reason.SCALED_DOWN, Reason.TOO_MANY_REPLICAS)
    assert fewer.message == "1480 clients on 6 pods (mean of 60 s) / 250 per replica = 6, maxReplicas 4; was 6"
    _, more = step(state, late, replace(POLICY, min_replicas=7), 6, None)
    assert (more.replicas, more.reason, more.limited) == (7, Reason.SCALED_UP, Reason.TOO_FEW_REPLICAS)
    _, smaller = step(state, late, replace(POLICY, target_clients=190), 6, None)
    assert (smaller.replicas, smaller.reason) == (8, Reason.SCALED_UP)


def test_after_a_start_nothing_is_given_up_before_the_window_and_nothing_added_on_one_sample() -> None:
    points = replay(samples(steady(10), 400), POLICY, 6)
    assert changes(points) == [(300.0, 2)]
    assert points[0].decision.message == "6 as found"
    assert points[0].decision.reason == Reason.AS_WISHED
    busy = replay(samples(steady(5000), 10), POLICY, 2)
    assert [p.replicas for p in busy[:3]] == [2, 2, 8]


def test_after_a_start_nothing_is_given_up_before_a_minute_was_seen() -> None:
    assert changes(replay(samples(steady(0), 400), replace(POLICY, stabilization=0.0), 6)) == [(60.0, 2)]


def test_a_fleet_without_clients_is_one_pod() -> None:
    points = replay(samples(steady(0), 100), replace(POLICY, stabilization=0.0))
    assert points[-1].decision.limited_message == "1 would be enough, minReplicas 2"
    assert replay(samples(steady(0), 400), WIDE)[-1].replicas == 1


def test_panic_gives_nothing_up_for_a_minute() -> None:
    policy = replace(POLICY, stabilization=0.0)
    points = replay(samples(stairs((0, 50), (100, 1500), (110, 50)), 400), policy)
    assert at(points, 102).replicas == 6
    panic = [p.t for p in points if p.decision.mode == "Panic"]
    assert panic == [float(t) for t in range(102, round(panic[-1]) + 1)]  # one panic
    assert 162 <= panic[-1] <= 176  # its last cause was 102 to 116 s
    assert all(p.replicas == 6 for p in points if 102 <= p.t <= panic[-1])
    assert points[-1].replicas == 2


def test_words_stay_while_nothing_is_decided() -> None:
    points = replay(samples(noise(1400, 0.05), 1000, cpu=noise(1.0, 0.3)), POLICY, 6)
    assert not changes(points)
    said = [(p.decision.reason, p.decision.message, p.decision.limited_message) for p in points]
    assert len(set(said)) == 2  # as found; and once there is a minute to say it with
    assert said.index(said[-1]) == 60

    rising = replay(samples(stairs((0, 300), (100, 1400)), 1000, cpu=noise(1.0, 0.3)), POLICY, 2)
    said = [(p.decision.reason, p.decision.message, p.decision.limited_message) for p in rising]
    assert len(set(said)) == 3
    assert said[-1][0] == Reason.SCALED_UP


def test_words_name_silent_pods_and_the_stabilisation() -> None:
    trace = [replace(s, silent=1, answering=3) for s in samples(steady(300), 100)]
    (message,) = {p.decision.message for p in replay(trace, POLICY, 4, follow=False)[60:]}
    assert message == (
        "550 clients on 3 pods and 1 silent, taken as full (mean of 60 s) / 250 per replica = 3, most of 300 s 4"
    )


def test_words_name_the_tolerance() -> None:
    points = replay(samples(steady(1050), 100), POLICY, 4)
    assert points[-1].decision.message == (
        "1050 clients on 4 pods (mean of 60 s) / 250 per replica = 5, within 10% of 4"
    )


def test_the_state_stays_small() -> None:
    state, replicas = begin(2, EPOCH), 2
    load = sine(1000, 900, 400)
    for sample in samples(load, 500, every=0.1):
        state, decision = step(state, sample, WIDE, replicas, None)
        replicas = decision.replicas
        assert len(state.times) == len(state.clients) == len(state.silent) == len(state.cpu) <= 121
        assert len(state.asked) <= 10
    assert state.times[-1] - state.times[0] <= 60_500


def test_constant_noise_of_five_percent_never_flaps() -> None:
    for seed in range(20):
        for clients in (990, 1000, 1010, 1090, 1100):
            points = replay(samples(noise(clients, 0.05, seed), 900, every=2.0), replace(WIDE, stabilization=60.0), 4)
            numbers = [n for _, n in changes(points)]
            assert numbers in ([], [5]), (seed, clients)
