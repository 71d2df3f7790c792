"""poolfleet.agent.inbox and the directive's way into poolfleet.agent.intake"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from poolfleet.agent.accept import Forged, NotReady, Refused
from poolfleet.agent.files import APPLIED_FILE, Applied, Paths
from poolfleet.agent.inbox import Inbox
from poolfleet.agent.intake import Intake
from poolfleet.agent.publish import Publisher
from poolfleet.api import names, wire
from tests.integration.pgbouncer_fixtures import publish

KEY = bytes(range(32))


def directive(rev: int, key: bytes = KEY, **grant: int) -> str:
    return wire.sign(wire.Directive("srv", "pod", rev, "c", grant or {"shop": rev}).to_message(), key)


class House:
    """An intake on folders as the kubelet fills them, and an inbox before it."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder / "run", folder / "config", folder / "pod")
        self.paths.run.mkdir()
        self.intake, self.inbox = Intake(self.paths), Inbox()

    def mount(self, annotation: str = "") -> None:
        limits = json.dumps({"maxGrant": 50}).encode()
        publish(self.paths.config, {names.KEY_FILE: KEY.hex().encode(), names.LIMITS_FILE: limits})
        self.annotate(annotation)

    def annotate(self, text: str) -> None:
        publish(self.paths.pod, {"uid": b"pod", "server": b"srv", "directive": text.encode()})

    def look(self) -> bool:
        return self.intake.look()

    async def post(self, *texts: str) -> list[Any]:
        """POST all of these at once, let the loop take them in; what each was answered."""
        posts = [asyncio.create_task(self.inbox.post(text)) for text in texts]
        await self.inbox.wait(60)
        await asyncio.sleep(0)
        self.look()
        self.inbox.take(self.intake)
        self.inbox.answer(Publisher().state)
        return await asyncio.gather(*posts, return_exceptions=True)

    @property
    def rev(self) -> int:
        return self.intake.applied.rev if self.intake.applied else 0


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_a_posted_directive_is_durable_before_it_is_answered(house: House) -> None:
    house.mount()
    posted = asyncio.create_task(house.inbox.post(directive(3)))
    await house.inbox.wait(60)  # woken by it
    house.look()
    assert house.inbox.take(house.intake)
    assert json.loads((house.paths.run / APPLIED_FILE).read_text())["rev"] == 3
    await asyncio.sleep(0)
    assert not posted.done()
    state = Publisher().state
    house.inbox.answer(state)
    assert await posted == state
    assert not house.inbox.take(house.intake)


async def test_an_older_annotation_changes_nothing_afterwards_and_a_restart_neither(house: House) -> None:
    house.mount(directive(1))
    assert house.look()
    await house.post(directive(3))
    house.annotate(directive(2))
    assert not house.look()
    house.intake = Intake(house.paths)
    assert not house.look()
    assert house.rev == 3
    house.annotate(directive(4))
    assert house.look()
    assert house.rev == 4


async def test_several_at_once_end_with_the_newest_and_all_are_answered(house: House) -> None:
    house.mount()
    answers = await house.post(directive(2), directive(5), directive(4), directive(5))
    assert [type(answer) for answer in answers] == [wire.AgentState] * 4
    assert house.rev == 5
    assert house.intake.applied is not None
    assert house.intake.applied.grant == {"shop": 5}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", Forged),
        ("{}", Forged),
        ("[" * 60_000, Forged),
        ('{"mac":"x","a":"\\ud800"}', Forged),
        ('{"mac":"\\ud800"}', Forged),
        (directive(3, bytes(32)), Forged),
        (directive(3, shop=51), Refused),
        (directive(3, shop=0), Refused),
        (wire.sign(wire.Directive("srv", "other", 3, "c", {"shop": 1}).to_message(), KEY), Refused),
        (wire.sign(wire.Directive("other", "pod", 3, "c", {"shop": 1}).to_message(), KEY), Refused),
    ],
)
async def test_what_is_refused_is_not_applied(house: House, text: str, error: type[Exception]) -> None:
    house.mount()
    refused, taken = await house.post(text, directive(2))
    assert type(refused) is error
    assert isinstance(taken, wire.AgentState)
    assert house.rev == 2


async def test_before_everything_is_mounted_nothing_can_be_judged(house: House) -> None:
    assert [type(answer) for answer in await house.post(directive(1))] == [NotReady]
    house.annotate("")
    assert [type(answer) for answer in await house.post(directive(1))] == [NotReady]
    publish(house.paths.config, {names.KEY_FILE: KEY.hex().encode()})
    assert [type(answer) for answer in await house.post(directive(1))] == [NotReady]
    house.mount()
    assert [type(answer) for answer in await house.post(directive(1))] == [wire.AgentState]


async def test_what_cannot_be_written_is_not_applied(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.mount()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Applied, "save", full)
        answers = await house.post(directive(3))
    assert [type(answer) for answer in answers] == [OSError]
    assert house.rev == 0


async def test_whoever_has_gone_is_not_answered(house: House) -> None:
    house.mount()
    for text in (directive(3), "forged"):
        gone = asyncio.create_task(house.inbox.post(text))
        await house.inbox.wait(60)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        house.look()
        house.inbox.take(house.intake)
        house.inbox.answer(Publisher().state)
    assert house.rev == 3


async def test_the_loop_wakes_after_its_time_without_any_post(house: House) -> None:
    await house.inbox.wait(0.001)
