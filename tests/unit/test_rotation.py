"""plan/rotation.py: each branch of `decide`, with what it says."""

from dataclasses import replace
from typing import Any

import pytest

from poolfleet.api.conditions import Reason
from poolfleet.plan import rotation
from poolfleet.plan.rotation import ALTERNATING, PASSWORD, Check, Effect, Holder, Known, Main, Next, Seen, Step, Wanted
from poolfleet.plan.secrets import Login

NOW = 10_000.0
OLD, NEW, OTHER = Login("app", "old"), Login("app", "new"), Login("app_2", "new")
MAIN = Main(OLD, "", NOW - 100, None, {})
ASKED = Wanted(PASSWORD, tokens={"main": "1"})
TWO = Wanted(ALTERNATING, roles=("app", "app_2"), tokens={"main": "1"})
NEXT = Next(NEW, NOW - 5, PASSWORD, "app")
NEXT_ROLE = Next(OTHER, NOW - 5, ALTERNATING, "app")
SWITCHED = replace(MAIN, login=OTHER)
READY = Holder("a", staged=True, loaded=True)


def checked(works: str = "main", ago: float = 1.0, **more: Any) -> Known:
    return Known(check=Check(NOW - ago, works, **more))


def decide(known: Known | None = None, **more: Any) -> Step:
    given: dict[str, Any] = {
        "wanted": ASKED,
        "main": MAIN,
        "following": None,
        "staged": True,
        "holders": (READY,),
        "refusal": "",
    }
    return rotation.decide(Seen(now=NOW, secret="app", known=known or Known(), **(given | more)))


def password(known: Known | None = None, **more: Any) -> Step:
    return decide(known, **({"following": NEXT} | more))


def alternating(known: Known | None = None, **more: Any) -> Step:
    return decide(known, **({"following": NEXT_ROLE, "wanted": TWO} | more))


def said(step: Step) -> tuple[str, str, Effect | None]:
    return step.line.phase, step.line.reason, step.effect


def test_nobody_asks() -> None:
    step = decide(wanted=None)
    assert said(step) == ("Idle", "", None)
    assert step.line.login == "app"
    assert (step.line.next, step.again) == (None, None)


def test_what_was_obeyed_is_not_done_again() -> None:
    step = decide(checked(ago=5000), main=replace(MAIN, obeyed={"main": "1"}, rotated=NOW - 50.0))
    assert said(step) == ("Idle", "", None)
    assert step.line.last == NOW - 50


def test_the_interval_says_when() -> None:
    obeyed = replace(MAIN, obeyed={"main": "1"})
    step = decide(checked(), main=obeyed, wanted=replace(ASKED, interval=130.0))
    assert (said(step), step.again, step.line.next) == (("Idle", "", None), 30.0, NOW + 30)
    assert decide(checked(), main=obeyed, wanted=replace(ASKED, interval=100.0)).effect is Effect.CREATE


def test_the_objects_forbid_it() -> None:
    step = decide(checked(), refusal="Not in managedRoles.")
    assert said(step) == ("Blocked", Reason.ROTATION_BLOCKED, None)
    assert (step.line.message, step.again) == ("Not in managedRoles.", rotation.ANEW_SECONDS)
    assert said(decide(checked(), main=None)) == ("Blocked", Reason.ROTATION_BLOCKED, None)


def test_it_is_looked_at_first_and_anew_before_it_begins() -> None:
    assert said(decide()) == ("Checking", "", Effect.CHECK)
    assert said(decide(checked(ago=9))) == ("Checking", "", Effect.CREATE)
    assert said(decide(checked(ago=11))) == ("Checking", "", Effect.CHECK)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (Check(NOW - 1, "main", refusal="It is superuser."), "It is superuser."),
        (Check(NOW - 1, "neither"), 'The password in Secret "app" does not log in as "app".'),
        (Check(NOW - 1, "main", idle="app_2", sessions=3), '"app_2", the role that is next, still has 3 sessions.'),
    ],
)
def test_the_server_forbids_it(check: Check, words: str) -> None:
    step = decide(Known(check=check))
    assert said(step) == ("Blocked", Reason.ROTATION_BLOCKED, None)
    assert step.line.message.startswith(words)
    assert step.again == rotation.ANEW_SECONDS - 1
    assert said(decide(Known(check=replace(check, at=NOW - 60)))) == ("Checking", "", Effect.CHECK)


def test_the_server_cannot_be_asked() -> None:
    step = decide(checked("", error="timeout"))
    assert (said(step), step.again) == (("Failed", Reason.ROTATION_FAILED, None), 1.0)
    assert step.line.message == "It cannot begin: timeout."
    assert decide(checked("", ago=2, error="timeout")).effect is Effect.CHECK
    obeyed = replace(MAIN, obeyed={"main": "1"})
    assert said(decide(checked("", error="timeout"), main=obeyed)) == ("Idle", "", None)


def test_a_failure_is_tried_again_later() -> None:
    known = replace(checked(), failure="It was busy.", failed=NOW - 10, failures=2, back=True)
    step = decide(known)
    assert said(step) == ("Failed", Reason.ROTATION_FAILED, None)
    assert (step.line.message, step.again) == ("It was busy. It is tried again in 30 s.", 20.0)
    assert not step.known.back
    assert decide(replace(known, failed=NOW - 30)).effect is Effect.CREATE


def test_backoff() -> None:
    assert [rotation.backoff(Known(failures=n)) for n in (0, 1, 2, 3, 50)] == [0.0, 15.0, 30.0, 60.0, 3600.0]


def test_due_at() -> None:
    assert rotation.due_at(ASKED, MAIN) is None
    assert rotation.due_at(Wanted(interval=60), MAIN) == MAIN.created + 60
    assert rotation.due_at(Wanted(interval=60), replace(MAIN, rotated=NOW)) == NOW + 60


def test_asked_for() -> None:
    both = Wanted(tokens={"a": "1", "b": "1"})
    assert not rotation.asked_for(Wanted(), MAIN)
    assert rotation.asked_for(both, replace(MAIN, obeyed={"a": "1"}))
    assert rotation.asked_for(both, replace(MAIN, obeyed={"a": "1", "b": "0"}))
    assert not rotation.asked_for(both, replace(MAIN, obeyed={"a": "1", "b": "1"}))


def test_what_came_of_it() -> None:
    known = replace(checked(), holding=NOW - 1)
    failed = rotation.failed(known, "Why.", NOW)
    assert (failed.failure, failed.failed, failed.failures, failed.back, failed.holding) == ("Why.", NOW, 1, True, None)
    assert rotation.failed(failed, "Why.", NOW).failures == 2
    altered = rotation.altered(failed, NOW)
    assert altered == Known(check=Check(NOW, "next"), failed=NOW)
    assert rotation.unknown(known) == Known()


def test_which_password_is_valid_is_tried_first() -> None:
    assert said(password()) == ("Checking", "", Effect.CHECK)
    for known in (checked("", error="timeout"), checked("", refusal="trust")):
        step = password(known)
        assert said(step) == ("Checking", "", None)
        assert step.line.message.endswith(("timeout", "timeout.", "trust", "trust."))
        assert password(replace(known, check=replace(known.check, at=NOW - 2) if known.check else None)).effect


def test_who_is_held_stays_held_until_it_is_known() -> None:
    """Else he would log in with a password that may be invalid by now."""
    assert not password().hold
    for holder in (Holder("a", known=False, told=True), replace(READY, left=5.0)):
        step = password(holders=(READY, holder))
        assert (said(step), step.hold, step.load) == (("Checking", "", Effect.CHECK), True, False)


def test_staging() -> None:
    for holders, staged, words in (
        ((READY, replace(READY, staged=False)), True, "1 of 2 pods have the next configuration."),
        ((READY,), False, "0 of 1 pods have the next configuration."),
    ):
        step = password(checked(), holders=holders, staged=staged)
        assert (said(step), step.again) == (("Staging", "", None), rotation.STAGE_SECONDS - 5)
        assert step.line.message == words
        assert not step.hold and not step.load


@pytest.mark.parametrize(
    ("holder", "staged", "words"),
    [
        (replace(READY, staged=False), True, "These pods have not got the next configuration in 75 s: a."),
        (Holder("a", known=False), True, "These pods cannot be asked, so their clients could not be kept waiting: a."),
        (Holder("a", holds=False), True, "The agents of these pods are too old to hold clients: a."),
        (READY, False, "The pools' configuration could not be written."),
    ],
)
def test_staging_has_its_time(holder: Holder, staged: bool, words: str) -> None:
    late = replace(NEXT, created=NOW - rotation.STAGE_SECONDS)
    step = password(checked(), following=late, holders=(holder,), staged=staged)
    assert said(step) == ("Failed", Reason.ROTATION_FAILED, Effect.REMOVE)
    assert step.line.message.startswith(words)
    assert step.known.back and step.known.failures == 1


def test_holding() -> None:
    step = password(checked(), holders=(replace(READY, left=9.0), READY))
    assert (said(step), step.hold, step.load) == (("Holding", "", None), True, False)
    assert step.line.message == "1 of 2 pods hold."
    assert step.known.holding == NOW
    assert password(replace(checked(), holding=NOW - 3)).known.holding == NOW - 3


def test_it_is_set_while_all_hold_long_enough() -> None:
    enough = replace(READY, left=rotation.LEAST_HOLD)
    step = password(checked(), holders=(enough, replace(READY, left=9.0)))
    assert (said(step), step.hold, step.load) == (("Setting", "", Effect.ALTER), True, False)
    assert password(checked(), holders=(enough, replace(READY, left=3.9))).effect is None
    assert said(password(checked(), holders=())) == ("Setting", "", Effect.ALTER)


def test_holding_has_its_time() -> None:
    known = replace(checked(), holding=NOW - rotation.HOLD_SECONDS)
    step = password(known)
    assert (said(step), step.hold) == (("Failed", Reason.ROTATION_FAILED, Effect.REMOVE), False)
    assert step.line.message == "These pods did not hold in 7 s: a."
    step = password(known, holders=(replace(READY, left=3.0),))
    assert step.line.message == "The pods' hold was over before the password could be set."


def test_it_is_stored_and_loaded_then_over() -> None:
    step = password(checked("next"))
    assert (said(step), step.load, step.hold) == (("Storing", "", Effect.STORE), True, False)
    step = password(checked("next"), main=replace(MAIN, login=NEW))
    assert (said(step), step.load) == (("Storing", "", Effect.REMOVE), True)
    step = password(checked("next"), refusal="No.")
    assert step.effect is Effect.STORE, "what is set is set"


def test_the_main_secret_has_vanished() -> None:
    step = password(checked("next"), main=None)
    assert (said(step), step.load) == (("Blocked", Reason.ROTATION_BLOCKED, None), True)
    assert step.line.message == 'Secret "app" has vanished; the valid login is in "app-next".'
    step = alternating(main=None)
    assert said(step) == ("Blocked", Reason.ROTATION_BLOCKED, None)
    assert 'create it anew, "app-next" has a login' in step.line.message


def test_neither_password_is_valid() -> None:
    step = password(checked("neither"))
    assert (said(step), step.again) == (("Blocked", Reason.ROTATION_BLOCKED, None), 29.0)
    assert step.line.message.startswith('Neither the password in Secret "app" nor the next one logs in.')
    assert password(checked("neither", ago=30)).effect is Effect.CHECK


def test_password_goes_back() -> None:
    for step, words in (
        (password(replace(checked(), back=True, failure="Busy.", failures=1)), "Busy."),
        (password(checked(), refusal="Forbidden."), "Forbidden."),
        (password(checked(refusal="Superuser.")), "Superuser."),
        (password(checked(), main=replace(MAIN, login=OTHER)), 'Secret "app" names another role by now.'),
    ):
        assert (said(step), step.line.message) == (("Failed", Reason.ROTATION_FAILED, Effect.REMOVE), words)
        assert (step.known.failures, step.known.back, step.known.failure) == (1, True, words)


def test_the_idle_role_gets_a_password() -> None:
    assert said(alternating()) == ("Checking", "", Effect.CHECK)
    step = alternating(checked("", error="timeout"))
    assert said(step) == ("Checking", "", None)
    assert "timeout" in step.line.message
    step = alternating(checked())
    assert (said(step), step.hold) == (("Setting", "", Effect.ALTER), False)
    assert said(alternating(checked("next"))) == ("Storing", "", Effect.STORE)
    edited = replace(MAIN, login=Login("app_2", "by hand"))
    assert said(alternating(checked("next", idle="app"), main=edited)) == ("Storing", "", Effect.STORE)


def test_alternating_goes_back() -> None:
    third = replace(MAIN, login=Login("third", "x"))
    for step, words in (
        (alternating(replace(checked(), back=True, failure="Busy.")), "Busy."),
        (alternating(checked(), refusal="Forbidden."), "Forbidden."),
        (alternating(checked(refusal="It can log in.")), "It can log in."),
        (alternating(checked(), main=third), 'Secret "app" names another role by now.'),
        (alternating(checked("neither")), 'The password in Secret "app" does not log in.'),
    ):
        assert (said(step), step.line.message) == (("Failed", Reason.ROTATION_FAILED, Effect.REMOVE), words)


def retiring(known: Known | None = None, **more: Any) -> Step:
    return alternating(known, **({"main": SWITCHED} | more))


def test_the_pods_are_replaced_first() -> None:
    step = retiring(checked("next", idle="app"), holders=(READY, replace(READY, loaded=False)))
    assert said(step) == ("Rolling", "", None)
    assert step.line.message == "1 of 2 pods are still to be replaced."


def test_the_former_role_is_disabled_when_it_has_no_session() -> None:
    for known in (None, checked("next", ago=2, idle="app_2"), checked("next", ago=2, idle="app", error="x")):
        assert said(retiring(known)) == ("Retiring", "", Effect.CHECK)
    assert "timeout" in retiring(checked("", idle="app", error="timeout")).line.message
    step = retiring(checked("next", idle="app", sessions=2))
    assert (said(step), step.again) == (("Retiring", "", None), rotation.SESSIONS_SECONDS - 1)
    assert step.line.message == '"app" still has 2 sessions; it is disabled when there are none.'
    assert said(retiring(checked("next", idle="app"))) == ("Retiring", "", Effect.DISABLE)
    assert said(retiring(checked("next", idle="app", disabled=True))) == ("Retiring", "", Effect.REMOVE)


def test_what_may_not_be_altered_is_not_disabled() -> None:
    for step in (
        retiring(checked("next", idle="app"), refusal="Forbidden."),
        retiring(checked("next", idle="app", refusal="Forbidden.")),
    ):
        assert said(step) == ("Blocked", Reason.ROTATION_BLOCKED, None)
        assert step.line.message == 'Role "app" is not disabled: Forbidden.'
        assert step.again
    for step in (
        retiring(checked("next", idle="app"), refusal="Forbidden.", wanted=None),
        retiring(checked("next", idle="app", refusal="Forbidden."), wanted=None),
    ):
        assert said(step) == ("Failed", Reason.ROTATION_FAILED, Effect.REMOVE)
    assert retiring(checked("next", ago=60, idle="app", refusal="Forbidden.")).effect is Effect.CHECK


def test_disabling_is_tried_again_later() -> None:
    known = replace(checked("next", idle="app"), failure="Not disabled.", failed=NOW - 5, failures=1)
    step = retiring(known)
    assert (said(step), step.again) == (("Retiring", Reason.ROTATION_FAILED, None), 10.0)
    assert step.line.message == "Not disabled."
    assert retiring(replace(known, failed=NOW - 15)).effect is Effect.DISABLE


def test_the_next_secret_says_whose_it_is() -> None:
    main = replace(MAIN, obeyed={"main": "0", "second": "7"})
    seen = Seen(NOW, "app", TWO, main, None, False, (), "", Known())
    assert rotation.about("app", "demo/db", seen) == {
        "kind": "role",
        "secret": "app",
        "server": "demo/db",
        "strategy": ALTERNATING,
        "former": "app",
        "for": {"main": "1", "second": "7"},
    }
    assert rotation.next_username(seen) == "app_2"
    assert rotation.next_username(replace(seen, main=SWITCHED)) == "app"
    assert rotation.next_username(replace(seen, wanted=ASKED)) == "app"
