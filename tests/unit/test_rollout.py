"""An operator upgrade rolls no pod; what rolls the fleet anyway takes the current images."""

from dataclasses import replace

import pytest

from poolfleet.plan import rollout
from poolfleet.plan.model import Settings
from poolfleet.plan.rollout import Rolled, decide, inputs_hash

OLD = Settings(agent_image="agent:1", pgbouncer_image="pgbouncer:1", run_as_user=65532)
NEW = Settings(
    agent_image="agent:2",
    pgbouncer_image="pgbouncer:2",
    image_pull_policy="Always",
    image_pull_secrets=("pull",),
    run_as_user=None,
)


def roll(
    previous: Rolled | None,
    settings: Settings = NEW,
    *,
    inputs: str = "i",
    restarted_at: str = "",
    pgbouncer_image: str | None = None,
    immediately: bool = False,
) -> Rolled:
    return decide(
        previous,
        settings,
        inputs=inputs,
        restarted_at=restarted_at,
        pgbouncer_image=pgbouncer_image,
        immediately=immediately,
    )


@pytest.fixture
def fleet() -> Rolled:
    return roll(None, OLD)


def test_a_new_fleet_takes_what_the_operator_has(fleet: Rolled) -> None:
    assert (fleet.agent_image, fleet.pgbouncer_image, fleet.run_as_user) == ("agent:1", "pgbouncer:1", 65532)


def test_an_upgrade_alone_changes_nothing(fleet: Rolled) -> None:
    assert roll(fleet) == fleet
    assert rollout.outdated(fleet, NEW)
    assert not rollout.outdated(fleet, OLD)


def test_changed_inputs_take_everything_current(fleet: Rolled) -> None:
    rolled = roll(fleet, inputs="j")
    assert (rolled.agent_image, rolled.pgbouncer_image) == ("agent:2", "pgbouncer:2")
    assert (rolled.image_pull_policy, rolled.image_pull_secrets, rolled.run_as_user) == ("Always", ("pull",), None)
    assert roll(rolled, inputs="j") == rolled


def test_a_restart_takes_current_images_once(fleet: Rolled) -> None:
    rolled = roll(fleet, restarted_at="2027-01-01T00:00:00Z")
    assert rolled.agent_image == "agent:2"
    newer = replace(NEW, agent_image="agent:3")
    assert roll(rolled, newer, restarted_at="2027-01-01T00:00:00Z") == rolled
    assert roll(rolled, newer, restarted_at="2027-01-02T00:00:00Z").agent_image == "agent:3"


def test_a_restart_that_was_undone_takes_no_images(fleet: Rolled) -> None:
    restarted = replace(fleet, restarted_at="2027-01-01T00:00:00Z")
    assert roll(restarted, restarted_at="") == fleet


def test_immediately_follows_the_operator(fleet: Rolled) -> None:
    assert roll(fleet, immediately=True).agent_image == "agent:2"


def test_the_users_image_wins_over_the_operators(fleet: Rolled) -> None:
    rolled = roll(fleet, inputs="with-image", pgbouncer_image="mine:1")
    assert rolled.pgbouncer_image == "mine:1"


def test_a_revision_that_cannot_be_built_any_more_is_rolled(fleet: Rolled) -> None:
    assert roll(replace(fleet, revision=0)).agent_image == "agent:2"
    assert rollout.outdated(replace(fleet, revision=0), OLD)


def test_the_annotation_keeps_everything(fleet: Rolled) -> None:
    for rolled in (fleet, roll(fleet, inputs="j", restarted_at="2027-01-01T00:00:00Z")):
        assert Rolled.from_annotation(rolled.to_annotation()) == rolled


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "null", "7", '{"inputs": 1}', "not json"])
def test_a_spoilt_annotation_counts_as_absent(text: str | None) -> None:
    assert Rolled.from_annotation(text) is None


def test_inputs_hash_depends_on_contents_not_on_order() -> None:
    assert inputs_hash({"a": 1, "b": [1, 2]}) == inputs_hash({"b": [1, 2], "a": 1})
    assert inputs_hash({"a": 1}) != inputs_hash({"a": 2})
