"""What samples of pg_stat_activity say about the budget. Pure: samples and the budget's history in, a verdict out."""

import bisect
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tests.e2e.cluster import Manifest
from tests.e2e.watching import Step


@dataclass(frozen=True)
class Sample:
    """One line of hack/load/sampler.py, with the backends that were there."""

    since: float  # it shows a moment between these two, in seconds since the epoch
    until: float
    backends: Mapping[int, tuple[str, float]]  # pid -> (address, when it was started)
    came: frozenset[int] = frozenset()  # pids that the sample before did not have

    @property
    def total(self) -> int:
        """Backends."""
        return len(self.backends)


def samples_of(lines: Sequence[Manifest]) -> list[Sample]:
    """The samples that sampler.py has printed. Raises AssertionError if it contradicts itself."""
    samples: list[Sample] = []
    backends: dict[int, tuple[str, float]] = {}
    for line in lines:
        if "t" not in line:
            continue
        backends = {pid: what for pid, what in backends.items() if pid not in line["gone"]}
        backends |= {pid: (address, started) for pid, address, started in line["came"]}
        assert len(backends) == line["total"], line
        came = frozenset(pid for pid, _, _ in line["came"])
        samples.append(Sample(line["t"] - line["took"], line["t"], dict(backends), came))
    return samples


@dataclass(frozen=True)
class Budget:
    """What was allowed, and when: the budget by the spec, and Σ bounds of the ledger after a cut, until it fits."""

    spec: Sequence[tuple[float, int]]  # (when it was written, budget); oldest first
    steps: Sequence[Step]  # oldest first

    def allowed(self, sample: Sample) -> int:
        """The most that may show in this sample."""
        return max(self.at(sample.since), self.at(sample.until))

    def at(self, moment: float) -> int:
        """The most that may show at this moment.

        A version of the ledger is seen a little later than it was written, so what it releases counts a little longer.
        What a raised budget allows counts from when the test asked for it.
        """
        step = bisect.bisect_right(self.steps, moment, key=lambda s: s.at) - 1
        spec = bisect.bisect_right(self.spec, moment, key=lambda s: s[0]) - 1
        return max(self.spec[max(0, spec)][1], self.steps[max(0, step)].bound)


def broken_promises(budget: Budget) -> list[str]:
    """Versions of the ledger that promised more than its budget and more than the version before, in words."""
    broken, before = [], budget.steps[0].bound
    for step in budget.steps:
        if step.bound > max(step.budget, before):
            broken.append(f"{step.bound} promised, {before} before, budget {step.budget}")
        before = step.bound
    return broken


@dataclass(frozen=True)
class Excess:
    """A sample with more backends than were allowed."""

    sample: Sample
    allowed: int
    pairs: int  # backends on their way out while their successor on the same pod logs in

    @property
    def explained(self) -> bool:
        """Whether pairs are all that is too much."""
        return self.sample.total - self.allowed <= self.pairs

    def __str__(self) -> str:
        return f"{self.sample.total} of {self.allowed} at {self.sample.until:.1f}, {self.pairs} pairs"


def pairs(sample: Sample, after: Sample, in_use: Collection[int]) -> int:
    """Backends of `sample` that were on their way out while a successor of the same pod was there already.

    On its way out: the next sample does not have it, and PgBouncer has let go of it (it is not `in_use`, the
    remote_pid of SHOW SERVERS right after). Its successor is one that the sample before did not have.
    """
    leaving = [pid for pid in sample.backends if pid not in after.backends and pid not in in_use]
    came: dict[str, int] = {}
    for pid in sample.came:
        address, _ = sample.backends[pid]
        came[address] = came.get(address, 0) + 1
    found = 0
    for pid in leaving:
        address, _ = sample.backends[pid]
        if pid not in sample.came and came.get(address, 0):
            came[address] -= 1
            found += 1
    return found


@dataclass
class Verdict:
    """All samples of a run, judged."""

    samples: int = 0
    most: int = 0  # in one sample
    closest: int = 0  # the largest share of what was allowed, in percent
    excesses: list[Excess] = field(default_factory=list)

    @property
    def unexplained(self) -> list[Excess]:
        """What must never be."""
        return [excess for excess in self.excesses if not excess.explained]


def judge(samples: Sequence[Sample], budget: Budget, servers: Sequence[tuple[float, Collection[int]]]) -> Verdict:
    """Compare every sample with what was allowed at its time; `servers` are readings of SHOW SERVERS of all pods."""
    verdict = Verdict(samples=len(samples))
    for sample, after in zip(samples, [*samples[1:], *samples[-1:]], strict=True):
        allowed = budget.allowed(sample)
        verdict.most = max(verdict.most, sample.total)
        verdict.closest = max(verdict.closest, 100 * sample.total // max(1, allowed))
        if sample.total > allowed:
            in_use = next((pids for at, pids in servers if at >= sample.until), ())
            verdict.excesses.append(Excess(sample, allowed, pairs(sample, after, in_use)))
    return verdict


def use(samples: Sequence[Sample], steps: Sequence[Step], since: float, until: float) -> float:
    """The median, over the samples between two moments, of the part in use of what could be granted just then.

    Raises AssertionError if there is no sample.
    """
    parts = []
    for sample in samples:
        if since <= sample.since and sample.until <= until:
            step = steps[max(0, bisect.bisect_right(steps, sample.until, key=lambda s: s.at) - 1)]
            parts.append(sample.total / max(1, step.grantable))
    assert parts, "no sample in the quiet seconds"
    return statistics.median(parts)
