"""The tests of the promise can fail: each rule left out, one by one, breaks it in the run made for it.

What the planning does is replaced in the real functions, what an agent does is switched off in the model. Every
scenario passes with all rules in place (`test_all_rules_hold`).
"""

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest

from poolfleet.api.wire import AgentState
from poolfleet.plan import ledger as plan
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Entry, Ledger, World, highest_revision
from tests.property import scenarios
from tests.property.ledger_model import Switches
from tests.property.small_search import search
from tests.property.small_world import Scope

Scenario = Callable[[Switches], None]
Patch = Callable[[pytest.MonkeyPatch], None]

SCENARIOS: list[Scenario] = [
    function
    for name, function in vars(scenarios).items()
    if not name.startswith("_")
    and inspect.isfunction(function)
    and list(inspect.signature(function).parameters) == ["switches"]
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_all_rules_hold(scenario: Scenario) -> None:
    scenario(Switches())


def _terminating_pods_do_not_count(patch: pytest.MonkeyPatch) -> None:
    original = plan._Step.release_the_gone

    def release(step: plan._Step) -> None:
        original(step)
        for key, entry in list(step.entries.items()):
            pod = step.pods.get(entry.pod)
            if pod is not None and pod.terminating:
                del step.entries[key]

    patch.setattr(plan._Step, "release_the_gone", release)


def _proof_without_revision(patch: pytest.MonkeyPatch) -> None:
    original = plan.proves

    def proves(state: AgentState | None, entry: Entry, server: str) -> bool:
        return original(state, replace(entry, revision=0), server)

    patch.setattr(plan, "proves", proves)


def _proof_without_limit(patch: pytest.MonkeyPatch) -> None:
    original = plan.proves

    def proves(state: AgentState | None, entry: Entry, server: str) -> bool:
        if state is not None:
            databases = {name: replace(seen, loaded=0) for name, seen in state.databases.items()}
            state = replace(state, databases=databases)
        return original(state, entry, server)

    patch.setattr(plan, "proves", proves)


def _proof_by_one_sample(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "OBSERVED_SAMPLES", 1)


def _bounds_per_pod(patch: pytest.MonkeyPatch) -> None:
    """A pod's connections count as a whole: they move between its databases in one directive."""
    original = plan._Step.lower

    def lower(step: plan._Step) -> None:
        original(step)
        for key, entry in step.entries.items():
            if entry.grant < entry.bound and entry.pod in step.told:
                step.entries[key] = replace(entry, bound=entry.grant)

    patch.setattr(plan._Step, "lower", lower)


def _no_gap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "REVISION_GAP", 1)


def _no_rebuild(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "is_lost", lambda world: False)


def _rebuild_tells_its_bounds(patch: pytest.MonkeyPatch) -> None:
    original = plan.rebuild

    def rebuild(world: World) -> Ledger:
        ledger = original(world)
        return replace(ledger, entries=tuple(replace(entry, grant=entry.bound) for entry in ledger.entries))

    patch.setattr(plan, "rebuild", rebuild)


def _no_grace_after_rebuild(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan._Step, "finish_rebuild", lambda step: setattr(step, "rebuilt", None))


def _no_linger(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan._Step, "release", lambda step, connections: None)


def _vanished_is_gone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan._Step, "is_over", lambda step, entry: True)


def _answers_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """The grace of a vanished pod runs while its agent still answers."""
    original = World.__init__

    def init(world: World, *args: object, **kwargs: object) -> None:
        original(world, *args, **{**kwargs, "answering": frozenset()})  # type: ignore[arg-type]

    patch.setattr(World, "__init__", init)


def _barrier_by_word(patch: pytest.MonkeyPatch) -> None:
    """A rebuild ends when every pod has answered a directive of the new ledger, whatever it still holds."""

    def unproved(world: World, ledger: Ledger) -> list[str]:
        revisions = {pod.uid: pod.state.rev if pod.state is not None else 0 for pod in world.pods}
        return [entry.pod for entry in ledger.entries if revisions.get(entry.pod, entry.revision) < entry.revision]

    patch.setattr(plan, "unproved", unproved)


def _only_revisions_tell_a_loss(patch: pytest.MonkeyPatch) -> None:
    def is_lost(world: World) -> bool:
        return any(highest_revision(pod, world.server) > world.ledger.revision for pod in world.pods if not pod.ended)

    patch.setattr(plan, "is_lost", is_lost)


def _no_reserve(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PoolWish, "reserve", property(lambda wish: 0))


def _unaccounted_are_free(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "unaccounted", lambda world, ledger: 0)


def _newcomers_explain_sessions(patch: pytest.MonkeyPatch) -> None:
    def unaccounted(world: World, ledger: Ledger) -> int:
        asked = {pod.uid for pod in world.pods if world.answers(pod)}
        silent = sum(entry.bound for entry in ledger.entries if entry.pod not in asked)
        return max(0, sum(world.sessions.orphans.values()) - silent) if world.sessions is not None else 0

    patch.setattr(World, "unaccounted", unaccounted)


def _cut_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan._Step, "lower", lambda step: None)


IN_THE_PLAN: list[tuple[Patch, Scenario]] = [
    (_terminating_pods_do_not_count, scenarios.terminating),
    (_proof_without_revision, scenarios.unseen_shrink),
    (_proof_without_limit, scenarios.not_loaded),
    (_proof_by_one_sample, scenarios.one_look),
    (_bounds_per_pod, scenarios.resplit),
    (_no_gap, scenarios.stale_raise_after_loss),
    (_no_rebuild, scenarios.lost_ledger),
    (_no_grace_after_rebuild, scenarios.lost_ledger),
    (_rebuild_tells_its_bounds, scenarios.restored_ledger),
    (_no_linger, scenarios.killed),
    (_vanished_is_gone, scenarios.ghost),
    (_answers_do_not_count, scenarios.flapping_ghost),
    (_barrier_by_word, scenarios.stale_raise_after_loss),
    (_only_revisions_tell_a_loss, scenarios.stale_first_grant_after_loss),
    (_no_reserve, scenarios.starving_surge),
    (_unaccounted_are_free, scenarios.unaccounted),
    (_newcomers_explain_sessions, scenarios.unaccounted_beside_a_newcomer),
    (_cut_is_ignored, scenarios.cut),
]


@pytest.mark.parametrize(
    ("patch", "scenario"), IN_THE_PLAN, ids=[patch.__name__.strip("_") for patch, _ in IN_THE_PLAN]
)
def test_without_a_rule_of_the_plan_it_breaks(
    patch: Patch, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    with pytest.raises(AssertionError):
        scenario(Switches())


def test_the_exhaustive_search_finds_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _proof_without_revision(monkeypatch)
    assert search(Scope(4, 2, budgets=(3,)), 100_000).broken


IN_THE_AGENT: list[tuple[Switches, Scenario]] = [
    (Switches(durable=False), scenarios.restarted_agent),
    (Switches(ordered=False), scenarios.late_message),
    (Switches(fenced=False), scenarios.another_pods_directive),
    (Switches(checked_answers=False), scenarios.another_pods_answer),
    (Switches(cold_file=False), scenarios.restarted_pgbouncer),
]


@pytest.mark.parametrize(
    ("switches", "scenario"), IN_THE_AGENT, ids=[scenario.__name__ for _, scenario in IN_THE_AGENT]
)
def test_without_a_rule_of_the_agent_it_breaks(switches: Switches, scenario: Scenario) -> None:
    with pytest.raises(AssertionError):
        scenario(switches)
