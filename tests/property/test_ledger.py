"""The promise under noise: births, deaths, restarts, late and lost messages, crashes, two operators, budget changes.

`make soak` looks 25 times as long. A run that breaks the promise is shortened and printed step by step.
"""

import random
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, given, settings

from tests.property.ledger_model import ModelPod, World
from tests.property.ledger_noise import Run, Step, shorten, swarm
from tests.property.ledger_quiet import calm, databases_by_hand, settle, shares_by_hand

EXAMPLES = 2000
LONG = max(EXAMPLES, 10 * settings.default.max_examples) if settings.default is not None else EXAMPLES
# Runs are drawn from a seed: there is nothing for Hypothesis to shrink, `play` shortens what broke.
NOISE = settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.explicit, Phase.generate])
QUIET = settings(NOISE, max_examples=EXAMPLES // 10)
SEEDS = st.integers(0, 2**32)


class Seen:
    """What the runs of this module were made of."""

    runs = steps = 0
    exceptions: ClassVar[Counter[str]] = Counter()


@pytest.fixture(scope="module", autouse=True)
def told(figures: list[str]) -> Iterator[None]:
    """Tell at the end how much was looked at, and how often an admitted exception came up."""
    yield
    exceptions = ", ".join(f"{name} {count}" for name, count in sorted(Seen.exceptions.items()))
    figures.append(
        f"under noise: {Seen.runs:,} runs, {Seen.steps:,} steps; admitted exceptions: {exceptions or 'none'}"
    )


def draw(seed: int) -> tuple[tuple[int, int, int, int], list[Step]]:
    """Budget, pools, operators and most pods of a run, and its steps."""
    rng = random.Random(seed)
    shape = (rng.choice((3, 4, 5, 6, 8, 12, 20)), rng.choice((1, 1, 2, 3)), rng.randint(1, 2), rng.choice((2, 3, 4, 7)))
    return shape, swarm(rng, rng.choice((60, 120, 200, 300)))


def play(shape: tuple[int, int, int, int], steps: list[Step]) -> Run:
    """A run; if it breaks the promise, the shortest that does it in the same way is told."""
    run = Run(*shape)
    try:
        run.play(steps)
    except AssertionError as error:
        few = shorten(steps, lambda fewer: _breaks(shape, fewer))
        text = "\n".join(f"    {step}" for step in few)
        raise AssertionError(f"{error}\n  budget, pools, operators, pods {shape}:\n{text}") from error
    Seen.runs += 1
    Seen.steps += len(steps)
    Seen.exceptions.update(run.world.exceptions)
    return run


def _breaks(shape: tuple[int, int, int, int], steps: list[Step]) -> bool:
    try:
        Run(*shape).play(steps)
    except AssertionError:
        return True
    return False


@NOISE
@given(SEEDS)
def test_the_budget_holds_under_noise(seed: int) -> None:
    """After every event: all that could be held stays within the budget, but for the admitted exceptions."""
    play(*draw(seed))


@pytest.mark.soak
@settings(NOISE, max_examples=LONG)
@given(SEEDS)
def test_the_budget_holds_under_noise_for_long(seed: int) -> None:
    """The same, for as long as the profile says."""
    play(*draw(seed))


@QUIET
@given(SEEDS, st.booleans(), st.booleans())
def test_quiet_after_noise_ends_at_the_shares(seed: int, busy: bool, fast_lane: bool) -> None:
    """With equal demand, or none, everybody has its water-filled share: no pod starves, and nothing is written."""
    run = play(*draw(seed))
    operator = calm(run)
    settle(run, operator, frozenset(run.world.wishes if busy else ()), fast_lane)
    everybody_has_its_share(run.world)
    version = run.world.version
    operator.observe()
    operator.write()
    assert run.world.version == version
    assert not operator.pending


def staying(world: World) -> dict[str, list[ModelPod]]:
    """Pool -> its pods at rest."""
    pods = [pod for pod in world.pods.values() if pod.alive and not pod.vanished]
    return {name: [pod for pod in pods if pod.pool == name] for name in world.wishes}


def everybody_has_its_share(world: World) -> None:
    """What is loaded is what comes out by hand, over pools, databases and pods."""
    pods = staying(world)
    shares, fit = shares_by_hand(world, pods)
    for wish in world.wishes.values():
        if wish.pool not in shares:
            assert all(entry.grant <= 1 for entry in world.ledger.of_pool(wish.pool))
            continue
        for name, total in databases_by_hand(shares[wish.pool], wish, len(pods[wish.pool])).items():
            loaded = [pod.loaded.get(name, 0) for pod in pods[wish.pool]]
            assert not fit or min(loaded) >= 1, "a pod starves"
            assert not fit or sum(loaded) == total, (wish, name, loaded, total, shares)
            assert not fit or max(loaded) - min(loaded) <= 1
    assert world.ledger.bound == sum(sum(pod.loaded.values()) for of_pool in pods.values() for pod in of_pool)


@QUIET
@given(SEEDS, st.integers(0, 2), st.booleans())
def test_quiet_with_demand_in_one_pool_uses_what_there_is(seed: int, which: int, fast_lane: bool) -> None:
    """Connections go where clients wait: nothing but reserves is left over, and nobody is below what it is sure of."""
    run = play(*draw(seed))
    operator = calm(run)
    world = run.world
    names = sorted(world.wishes)
    busy = frozenset(names[which % len(names) : which % len(names) + 1] if names else ())
    settle(run, operator, busy, fast_lane)
    everybody = staying(world)
    shares, fit = shares_by_hand(world, everybody)
    for name in busy & shares.keys():
        wish = world.wishes[name]
        has = sum(entry.bound for entry in world.ledger.of_pool(name))
        reserves = sum(world.wishes[pool].reserve for pool in shares)
        full = wish.most is not None and has >= max(wish.most, shares[name]) - wish.reserve
        assert full or world.ledger.bound >= world.budget - world.foreign - reserves, (has, shares, world.ledger)
    for pods in everybody.values():
        for pod in pods:
            if pod.pool in shares and fit:
                assert all(pod.loaded.get(name, 0) >= 1 for name in world.wishes[pod.pool].databases)
