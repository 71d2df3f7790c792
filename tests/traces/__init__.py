"""What a fleet's clients and CPU do over time, as functions of seconds, and the autoscaling replayed on it.

A shape says the whole load at second t; `replay` plays the fleet: a wanted pod is ready some seconds later, an unwanted
one leaves at once. `recorded` reads what `python -m tests.traces.record` wrote down of a real PgBouncer.
"""

import csv
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from poolfleet.plan.autoscaling import Decision, Policy, Sample, begin, step

EPOCH = 1_800_000_000.0
START_SECONDS = 4.0  # from the decision to a ready pod

Shape = Callable[[float], float]


@dataclass(frozen=True)
class Point:
    """One step: seconds since the beginning, what was wanted before it, and what it decided."""

    t: float
    before: int
    decision: Decision

    @property
    def replicas(self) -> int:
        return self.decision.replicas


def steady(clients: float) -> Shape:
    return lambda t: clients


def noise(clients: float, part: float, seed: int = 1) -> Shape:
    """Uniformly within ± `part`, another value each second."""

    def shape(t: float) -> float:
        return clients * (1 + random.Random(f"{seed}/{math.floor(t)}").uniform(-part, part))

    return shape


def sine(middle: float, swing: float, period: float) -> Shape:
    return lambda t: middle + swing * math.sin(2 * math.pi * t / period)


def stairs(*steps: tuple[float, float]) -> Shape:
    """(from second, value), in order; 0 before the first."""

    def shape(t: float) -> float:
        return next((value for since, value in reversed(steps) if t >= since), 0.0)

    return shape


def flash_sale(start: float = 60, rise: float = 90, hold: float = 120, seconds_each: float = 0.5) -> Shape:
    """Connection-per-request clients, 20 → 800 requests/s within `rise` and back: each is there for `seconds_each`,
    so that by Little's law rate × seconds are there at a time, give or take its square root."""

    def shape(t: float) -> float:
        part = max(0.0, min(1.0, (t - start) / rise, (start + 2 * rise + hold - t) / rise))
        mean = (20 + 780 * part) * seconds_each
        return max(0.0, random.Random(f"sale/{t}").gauss(mean, math.sqrt(mean)))

    return shape


def storm(clients: float, at: float, back: float = 5.0) -> Shape:
    """All clients vanish at once and return one after the other within `back` seconds."""
    return lambda t: clients * max(0.0, min(1.0, (t - at) / back)) if t >= at else clients


def samples(
    clients: Shape, seconds: float, every: float = 1.0, pods: int = 2, silent: int = 0, cpu: Shape | None = None
) -> list[Sample]:
    """A series as a fleet of constant size would show it."""
    times = [i * every for i in range(math.floor(seconds / every) + 1)]
    return [Sample(EPOCH + t, round(clients(t)), pods - silent, silent, cpu(t) if cpu else None) for t in times]


def replay(
    trace: Iterable[Sample],
    policy: Policy,
    replicas: int = 2,
    fed: int | None = None,
    follow: bool = True,
    origin: float = EPOCH,
) -> list[Point]:
    """Every decision on a trace. `follow`: the pods that answer are those of the decisions so far, else the trace's."""
    state = begin(replicas, origin)
    there, coming = replicas, list[tuple[float, int]]()  # ready pods; (ready at, how many then)
    points = []
    for sample in trace:
        t = sample.at - origin
        if follow:
            there = max([there, *(n for at, n in coming if at <= t)])
            coming = [(at, n) for at, n in coming if at > t]
            there = min(there, replicas)
            sample = Sample(sample.at, sample.clients, max(0, there - sample.silent), sample.silent, sample.cpu)
        state, decision = step(state, sample, policy, replicas, fed)
        points.append(Point(t, replicas, decision))
        if decision.replicas > replicas:
            coming.append((t + START_SECONDS, decision.replicas))
        replicas = decision.replicas
    return points


def changes(points: Sequence[Point]) -> list[tuple[float, int]]:
    """(second, replicas) of every decision that changed the number."""
    return [(p.t, p.replicas) for p in points if p.replicas != p.before]


def at(points: Sequence[Point], t: float) -> Point:
    """The last decision until second `t`."""
    return [p for p in points if p.t <= t][-1]


def recorded(name: str) -> list[Sample]:
    """A trace of a real PgBouncer: seconds, its clients (SHOW CLIENTS) and its CPU, as one pod that answers."""
    with (Path(__file__).parent / f"{name}.csv").open(newline="") as file:
        return [
            Sample(EPOCH + float(row["seconds"]), int(row["clients"]), 1, 0, float(row["cores"]))
            for row in csv.DictReader(file)
        ]
