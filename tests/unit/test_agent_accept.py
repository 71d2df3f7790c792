"""poolfleet.agent.accept"""

from typing import Any

import pytest

from poolfleet.agent.accept import Forged, NotReady, Refused, Superseded, accept
from poolfleet.agent.files import Applied
from poolfleet.api import wire

KEY, OLD_KEY = bytes(32), bytes(range(32))
APPLIED = Applied("srv", 5, {"shop": 3}, {}, "c", 1.0)


def signed(key: bytes = KEY, **changes: Any) -> str:
    message = wire.Directive("srv", "pod", 6, "c", {"shop": 4}).to_message() | changes
    return wire.sign(message, key)


def obey(text: str, **changes: Any) -> wire.Directive | None:
    words: dict[str, Any] = {"keys": [KEY], "pod": "pod", "server": "srv", "applied": APPLIED, "max_grant": 10}
    return accept(text, **(words | changes))


def test_a_newer_directive_is_obeyed() -> None:
    directive = obey(signed())
    assert directive is not None
    assert (directive.rev, directive.grant) == (6, {"shop": 4})
    assert obey(signed(rev=1), applied=None) is not None


def test_the_same_revision_is_no_news() -> None:
    assert obey(signed(rev=5)) is None
    assert obey(signed(rev=5, grant={"shop": 9})) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rev": 4}, "older"),
        ({"rev": 0}, "older"),
        ({"pod": "other"}, "another pod"),
        ({"server": "other"}, "another server"),
        ({"grant": {"shop": 11}}, "more than"),
        ({"grant": {"shop": 1, "b": 11}}, "more than"),
        ({"grant": {"shop": 0}}, "grant"),
        ({"v": 7}, "version"),
    ],
)
def test_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why) as refused:
        obey(signed(**changes))
    assert type(refused.value) is (Superseded if why == "older" else Refused)


def test_an_applied_directive_of_another_server_is_never_followed_by_this_one() -> None:
    with pytest.raises(Refused, match="another server"):
        obey(signed(server="new"), server="new")


def test_the_mac_may_fit_the_key_in_force_but_no_other() -> None:
    assert obey(signed(OLD_KEY), keys=[KEY, OLD_KEY]) is not None
    for keys in ([KEY], [KEY, KEY]):
        with pytest.raises(Forged, match="MAC"):
            obey(signed(OLD_KEY), keys=keys)


@pytest.mark.parametrize(
    ("changes", "why"), [({"max_grant": None}, "not known"), ({"pod": ""}, "not known"), ({"keys": []}, "no key")]
)
def test_before_everything_is_mounted_nothing_is_obeyed(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(NotReady, match=why):
        obey(signed(), **changes)


@pytest.mark.parametrize("text", ["", "x", "{}", "[" * 100_000, '{"mac":"x"}', "\x00", '{"mac":"\\ud800"}'])
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(Forged):
        obey(text)
