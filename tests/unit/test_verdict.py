"""How samples of pg_stat_activity are judged: what is above the budget, and what only looks like it."""

import pytest

from tests.e2e.cluster import Manifest
from tests.e2e.verdict import Budget, Sample, broken_promises, judge, pairs, samples_of, use
from tests.e2e.watching import Step

A, B = "10.0.0.1", "10.0.0.2"


def step(at: float, budget: int, bound: int) -> Step:
    return Step(at, budget, 0, 0, {("a-1", "app"): bound}, {}, {}, {})


def sample(at: float, *pids: int, came: tuple[int, ...] = (), address: str = A) -> Sample:
    return Sample(at - 0.01, at, dict.fromkeys(pids, (address, 0.0)), frozenset(came))


def line(at: float, total: int, came: list[list[object]], gone: list[int]) -> Manifest:
    return {"t": at, "took": 0.01, "total": total, "by": {}, "came": came, "gone": gone}


def test_samples_are_put_together_from_what_came_and_went() -> None:
    lines = [line(1.0, 2, [[7, A, 0.1], [8, B, 0.2]], []), line(1.1, 2, [[9, A, 1.05]], [8]), {"summary": {}}]
    first, second = samples_of(lines)
    assert (first.total, first.until) == (2, 1.0) and second.since == pytest.approx(1.09)
    assert second.backends == {7: (A, 0.1), 9: (A, 1.05)} and second.came == {9}


def test_a_pid_that_the_system_gave_away_again_is_another_backend() -> None:
    (_, second) = samples_of([line(1.0, 1, [[7, A, 0.1]], []), line(1.1, 1, [[7, B, 1.05]], [7])])
    assert second.backends == {7: (B, 1.05)} and second.came == {7}


def test_samples_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(AssertionError):
        samples_of([line(1.0, 2, [[7, A, 0.1]], [])])


def test_the_budget_in_force_follows_the_spec_and_after_a_cut_the_ledger() -> None:
    budget = Budget(
        spec=[(0.0, 60), (10.0, 30), (20.0, 60)],
        steps=[step(0.0, 60, 58), step(10.1, 30, 58), step(12.0, 30, 44), step(14.0, 30, 29), step(20.1, 60, 29)],
    )
    allowed = {5.0: 60, 10.05: 58, 11.0: 58, 13.0: 44, 15.0: 30, 20.05: 60, 30.0: 60}
    assert {at: budget.at(at) for at in allowed} == allowed


def test_a_sample_may_show_what_was_allowed_at_any_moment_of_its_taking() -> None:
    budget = Budget(spec=[(0.0, 30)], steps=[step(0.0, 30, 44), step(12.0, 30, 30)])
    assert budget.allowed(Sample(11.99, 12.01, {})) == 44
    assert budget.allowed(Sample(12.0, 12.02, {})) == 30


def test_a_ledger_that_promises_more_than_budget_and_before_is_found() -> None:
    def found(*steps: Step) -> list[str]:
        return broken_promises(Budget([(0.0, 30)], steps))

    assert found(step(0.0, 30, 44), step(1.0, 30, 44), step(2.0, 30, 30), step(3.0, 60, 60)) == []
    assert found(step(0.0, 30, 30), step(1.0, 30, 31)) == ["31 promised, 30 before, budget 30"]


class TestAnExcess:
    BUDGET = Budget(spec=[(0.0, 2)], steps=[step(0.0, 2, 2)])

    def test_is_none_without_an_extra_backend(self) -> None:
        verdict = judge([sample(1.0, 7, 8), sample(1.1, 7)], self.BUDGET, [])
        assert (verdict.samples, verdict.most, verdict.closest, verdict.excesses) == (2, 2, 100, [])

    def test_of_one_that_leaves_beside_its_successor_is_explained(self) -> None:
        samples = [sample(1.0, 7, 8), sample(1.1, 7, 8, 9, came=(9,)), sample(1.2, 8, 9)]
        verdict = judge(samples, self.BUDGET, [(1.5, {8, 9})])
        assert len(verdict.excesses) == 1 and verdict.unexplained == []

    def test_that_stays_for_another_sample_is_not(self) -> None:
        samples = [sample(1.0, 7, 8), sample(1.1, 7, 8, 9, came=(9,)), sample(1.2, 7, 8, 9), sample(1.3, 8, 9)]
        assert len(judge(samples, self.BUDGET, []).unexplained) == 2

    def test_of_one_that_pgbouncer_still_has_is_not(self) -> None:
        samples = [sample(1.1, 7, 8, 9, came=(9,)), sample(1.2, 8, 9)]
        assert judge(samples, self.BUDGET, [(1.0, ()), (1.5, {7, 8, 9})]).unexplained
        assert not judge(samples, self.BUDGET, [(1.0, {7}), (1.5, {8, 9})]).unexplained

    def test_beside_a_newcomer_on_another_pod_is_not(self) -> None:
        shown = Sample(1.09, 1.1, {7: (A, 0.0), 8: (A, 0.0), 9: (B, 1.05)}, frozenset({9}))
        assert pairs(shown, sample(1.2, 8, 9), ()) == 0

    def test_of_two_needs_two_pairs(self) -> None:
        shown = sample(1.1, 5, 6, 8, 9, came=(8, 9))
        assert not judge([shown, sample(1.2, 8, 9)], self.BUDGET, []).unexplained
        assert judge([shown, sample(1.2, 6, 8, 9)], self.BUDGET, []).unexplained

    def test_in_the_last_sample_is_not_explained_by_its_own_repetition(self) -> None:
        assert judge([sample(1.1, 7, 8, 9, came=(9,))], self.BUDGET, []).unexplained


def test_what_is_in_use_is_measured_by_what_could_be_granted_just_then() -> None:
    samples = [sample(1.0, 1), sample(2.0, 1, 2), sample(2.1, 1, 2), sample(2.2, 1, 2, 3), sample(3.5, 1)]
    steps = [step(0.0, 2, 0), step(2.15, 4, 0), step(3.0, 8, 0)]
    assert use(samples, steps, 1.5, 3.0) == 1.0
    assert use(samples, steps, 2.15, 3.0) == 0.75
    with pytest.raises(AssertionError):
        use(samples, steps, 5.0, 6.0)
