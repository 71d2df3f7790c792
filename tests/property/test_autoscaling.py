"""What holds of the autoscaling on every series of samples.

Monotone in load, exactly: because of the tolerance a fleet that was once a bit busier may be left at 11 pods with a
load on which another goes from 10 to 12. So with everywhere at least the other's load a fleet never has fewer than
what is within the tolerance of the other's number; with everywhere at least 1.1 times the load never fewer at all.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from poolfleet.plan.autoscaling import Policy, Sample, begin, step
from tests.traces import EPOCH, Point, changes, replay

Knot = tuple[float, int, int]  # for so many seconds, clients, hundredths of a core

KNOTS = st.lists(
    st.tuples(st.sampled_from([1.0, 3.0, 10.0, 40.0, 90.0]), st.integers(0, 3000), st.integers(0, 900)),
    min_size=1,
    max_size=7,
)
STABILIZATION = st.sampled_from([0.0, 7.0, 60.0, 200.0])
EVERY = st.sampled_from([0.3, 0.5, 1.0, 2.0])


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    least = draw(st.integers(1, 5))
    return Policy(least, draw(st.integers(least, 30)), draw(st.sampled_from([30, 100, 1000])), 0.7, draw(STABILIZATION))


def series(
    knots: Sequence[Knot], every: float, ready: Sequence[int] = (2,), silent: Sequence[int] = (0,)
) -> list[Sample]:
    """Samples of steps in load; `ready` and `silent` pods change with the steps."""
    found, t, end = [], 0.0, 0.0
    for i, (seconds, clients, cores) in enumerate(knots):
        end += seconds
        while t < end:
            mute = min(silent[i % len(silent)], ready[i % len(ready)])
            found.append(Sample(EPOCH + t, clients, ready[i % len(ready)] - mute, mute, cores / 100))
            t += every
    return found


def numbers(points: Sequence[Point]) -> list[int]:
    return [p.replicas for p in points]


PODS = st.lists(st.integers(0, 12), min_size=1, max_size=4)


@given(KNOTS, policies(), EVERY, PODS, PODS, st.integers(0, 30), st.none() | st.integers(0, 30))
@settings(deadline=None)
def test_bounds(
    knots: list[Knot], policy: Policy, every: float, ready: list[int], silent: list[int], start: int, fed: int | None
) -> None:
    """minReplicas to maxReplicas, and what the budget feeds: never a rise above it, never a fall because of it."""
    for p in replay(series(knots, every, ready, silent), policy, start, fed, follow=False):
        assert p.replicas <= policy.max_replicas
        assert p.replicas >= min(policy.min_replicas, p.before if fed is None else max(fed, p.before))
        if fed is not None:
            assert p.replicas <= max(fed, p.before)
        else:
            assert p.replicas >= policy.min_replicas


@given(st.integers(0, 3000), st.integers(0, 900), policies(), EVERY, st.integers(1, 30), st.booleans())
@settings(deadline=None)
def test_constant_load_changes_the_number_once_at_most(
    clients: int, cores: int, policy: Policy, every: float, start: int, follow: bool
) -> None:
    start = min(max(start, policy.min_replicas), policy.max_replicas)
    points = replay(series([(300.0, clients, cores)], every, [start]), policy, start, follow=follow)
    assert len(changes(points)) <= 1
    need = max(clients / policy.target_clients, round(cores / 100 / 0.7, 6))
    last = points[-1].replicas
    assert need <= 1.1 * last + 1e-6 or last == policy.max_replicas
    assert last == policy.min_replicas or last == start or last == policy.max_replicas or last == math.ceil(need)


@given(
    st.integers(1, 3000),
    st.lists(st.tuples(st.sampled_from([1.0, 3.0, 10.0, 40.0, 90.0]), st.floats(1.0, 1.1)), min_size=1, max_size=9),
    policies(),
    EVERY,
    st.integers(1, 30),
)
@settings(deadline=None)
def test_noise_within_the_tolerance_never_adds_twice_nor_after_giving_up(
    least: int, parts: list[tuple[float, float]], policy: Policy, every: float, start: int
) -> None:
    knots = [(seconds, math.floor(least * part), math.floor(100 * part)) for seconds, part in parts]
    start = min(max(start, policy.min_replicas), policy.max_replicas)
    went = [
        0,
        *(
            1 if p.replicas > p.before else -1
            for p in replay(series(knots, every), policy, start)
            if p.replicas != p.before
        ),
    ]
    assert went[1:] in ([-1] * (len(went) - 1), [1] + [-1] * (len(went) - 2))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1.0, 3.0, 10.0, 40.0, 90.0]),
            st.integers(0, 3000),
            st.integers(0, 900),
            st.integers(0, 1000),
            st.integers(0, 300),
        ),
        min_size=1,
        max_size=7,
    ),
    policies(),
    EVERY,
    PODS,
    PODS,
    st.integers(1, 30),
    st.none() | st.integers(1, 30),
    st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_monotone_in_load(
    knots: list[tuple[float, int, int, int, int]],
    policy: Policy,
    every: float,
    ready: list[int],
    silent: list[int],
    start: int,
    fed: int | None,
    tenth: bool,
) -> None:
    low = series([(s, clients, cores) for s, clients, cores, _, _ in knots], every, ready, silent)
    high = series(
        [(s, clients + more, cores + hotter) for s, clients, cores, more, hotter in knots], every, ready, silent
    )
    if tenth:
        high = [
            replace(
                h, clients=max(h.clients, math.ceil(1.1 * s.clients)), cpu=max(h.cpu or 0, round(1.1 * (s.cpu or 0), 4))
            )
            for h, s in zip(high, low, strict=True)
        ]
    fewer = numbers(replay(low, policy, start, fed, follow=False))
    more = numbers(replay(high, policy, start, fed, follow=False))
    for a, b in zip(more, fewer, strict=True):
        assert b <= (a if tenth else math.ceil(round(1.1 * a, 6)))


@given(KNOTS, policies(), EVERY, PODS, st.integers(0, 30), st.integers(-2_000_000_000_000, 2_000_000_000_000))
@settings(deadline=None)
def test_a_shift_of_all_times_changes_nothing(
    knots: list[Knot], policy: Policy, every: float, ready: list[int], start: int, shift: int
) -> None:
    trace = [replace(s, at=round((s.at - EPOCH) * 1000) / 1000) for s in series(knots, every, ready)]
    here = replay(trace, policy, start, follow=False, origin=0.0)
    moved = [replace(s, at=s.at + shift / 1000) for s in trace]
    there = replay(moved, policy, start, follow=False, origin=shift / 1000)
    assert [p.decision for p in here] == [p.decision for p in there]


@given(KNOTS, policies(), EVERY, st.integers(1, 30), st.integers(1, 30), st.integers(1, 3))
@settings(deadline=None)
def test_silence_never_scales_below_the_pods_that_are_silent(
    knots: list[Knot], policy: Policy, every: float, start: int, silent: int, answering: int
) -> None:
    """Nor does it add one: there are never more than with silent pods known to be empty, and never fewer (but for the
    tolerance)."""
    start = min(max(start, policy.min_replicas), policy.max_replicas)
    trace = series(knots, every, [silent + answering], [silent])
    mute = numbers(replay(trace, policy, start, follow=False))
    assert min(mute) >= min(start, silent)
    known = numbers(
        replay([replace(s, silent=0, answering=silent + answering) for s in trace], policy, start, follow=False)
    )
    assert all(k <= math.ceil(round(1.1 * m, 6)) for m, k in zip(mute, known, strict=True))
    assert max(mute) <= max(start, *known)


@given(KNOTS, policies(), EVERY, st.integers(1, 30), st.integers(1, 5))
@settings(deadline=None)
def test_where_no_pod_answers_nothing_changes(
    knots: list[Knot], policy: Policy, every: float, start: int, silent: int
) -> None:
    start = min(max(start, policy.min_replicas), policy.max_replicas)
    assert not changes(replay(series(knots, every, [silent], [silent]), policy, start, follow=False))


@given(KNOTS, st.sampled_from([60.0, 100.0, 200.0]), st.sampled_from([0.5, 1.0, 2.0]), st.integers(2, 30))
@settings(deadline=None)
def test_nothing_is_given_up_that_was_asked_for_in_the_stabilisation_window(
    knots: list[Knot], stabilization: float, every: float, start: int
) -> None:
    """Against a plain reading of the rule: nothing falls in the first window, and later to no less than what the mean
    of a minute asked for at any time in the window."""
    policy = Policy(1, 100, 100, 0.7, stabilization)
    trace = series([(seconds, clients, 0) for seconds, clients, _ in [*knots, (300.0, 0, 0)]], every)
    minute = round(60 / every)
    asked = {
        end: math.ceil(sum(s.clients for s in trace[end - minute : end + 1]) / (minute + 1) / 100)
        for end in range(minute, len(trace))
    }
    for now, p in enumerate(replay(trace, policy, start)):
        if p.replicas < p.before:
            assert p.t >= stabilization
            window = range(max(minute, now - round(stabilization / every) + 1), now + 1)
            assert p.replicas >= max(asked[end] for end in window)


@given(KNOTS, policies(), EVERY, PODS, st.integers(1, 30), st.lists(st.none() | st.integers(0, 30), min_size=1))
@settings(deadline=None)
def test_a_budget_that_moves_takes_no_pod(
    knots: list[Knot], policy: Policy, every: float, ready: list[int], start: int, feeds: list[int | None]
) -> None:
    """Nor does the load, with a stabilisation window longer than the trace; so none is taken at all."""
    policy = replace(policy, stabilization=3600.0)
    state, replicas = begin(start, EPOCH), min(start, policy.max_replicas)
    for i, sample in enumerate(series(knots, every, ready)):
        fed = feeds[i % len(feeds)]
        state, decision = step(state, sample, policy, replicas, fed)
        assert replicas <= decision.replicas <= policy.max_replicas
        assert fed is None or decision.replicas <= max(fed, replicas)
        replicas = decision.replicas
