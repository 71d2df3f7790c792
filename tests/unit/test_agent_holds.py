"""poolfleet.agent.holds; tests/integration/test_agent_holds.py has a real PgBouncer."""

import json
from pathlib import Path
from typing import Any

import pytest

from poolfleet.agent.holds import HOLD_SECONDS, HOLDS_FILE, PACE, RETRY, Holds
from poolfleet.agent.samples import Sample
from poolfleet.pgbouncer import show
from poolfleet.pgbouncer.admin import AdminError, ServerError


class PgBouncer:
    """The paused databases, and what was said."""

    def __init__(self) -> None:
        self.started = "1"
        self.paused: set[str] = set()
        self.said: list[str] = []
        self.sessions: list[Session] = []
        self.gone = False

    async def fresh(self) -> "Session":
        if self.gone:
            raise AdminError("gone")
        self.sessions.append(Session(self))
        return self.sessions[-1]

    async def query(self, sql: str) -> Any:
        if self.gone:
            raise AdminError("gone")
        self.said.append(sql)
        verb, _, name = sql.partition(" ")
        if verb == "RESUME":
            name = name.strip('"')
            if name not in self.paused:
                raise ServerError("ERROR: not paused")
            self.paused.discard(name)

    def restart(self) -> None:
        self.started, self.paused = self.started + "1", set()

    def sample(self, *databases: str, **pool: int) -> Sample:
        shown = {
            name: show.Database(name, "h", 1, "", 5, 5, 0, name in self.paused, False) for name in databases or ["shop"]
        }
        return Sample(0.0, shown, {name: show.Pool(name, "", **pool) for name in shown}, ())


class Session:
    def __init__(self, bouncer: PgBouncer) -> None:
        self.bouncer, self.closed = bouncer, False

    def send(self, sql: str) -> None:
        self.bouncer.said.append(sql)
        self.bouncer.paused.add(sql.removeprefix('PAUSE "').removesuffix('"'))

    def close(self) -> None:
        self.closed = True


class Pod:
    """An agent's holds, another agent's after `restart`. Two clocks: `now`, and the wall's `ahead` of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bouncer = folder, PgBouncer()
        self.now, self.ahead = 100.0, 1e9
        self.restart()

    def restart(self) -> None:
        self.holds = Holds(self.folder, lambda: self.now, lambda: self.now + self.ahead)

    async def round(self, rev: int, *wanted: str, settled: bool = True, look: bool = True, **pool: int) -> float | None:
        """One round of the engine's loop; how long "shop" is still held."""
        await self.holds.begin(self.bouncer, rev, wanted)
        await self.holds.finish(self.bouncer, rev, wanted, settled=settled)
        if look:
            self.holds.seen(self.bouncer.sample(**pool))
        return self.holds.left("shop")


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


async def test_a_hold_is_there_when_it_is_seen_and_no_login_is_under_way(pod: Pod) -> None:
    assert await pod.round(1) is None
    assert pod.bouncer.said == []
    assert await pod.round(2, "shop", look=False) is None
    assert pod.bouncer.said == ['PAUSE "shop"', "SHOW VERSION"]
    assert pod.holds.pace() == PACE
    assert await pod.round(2, "shop", sv_login=1) is None
    assert pod.holds.pace() == PACE
    assert await pod.round(2, "shop") == HOLD_SECONDS
    assert pod.holds.pace() is None
    assert pod.bouncer.said == ['PAUSE "shop"', "SHOW VERSION"]


async def test_what_is_let_go_of_is_resumed_and_its_session_dropped(pod: Pod) -> None:
    await pod.round(1, "shop")
    assert await pod.round(2) is None
    assert pod.bouncer.said[-1] == 'RESUME "shop"'
    assert [session.closed for session in pod.bouncer.sessions] == [True]
    assert not pod.holds.some
    assert json.loads((pod.folder / HOLDS_FILE).read_text()) == {}


async def test_not_before_what_the_directive_wants_is_loaded_unless_its_time_is_over(pod: Pod) -> None:
    await pod.round(1, "shop")
    pod.now += 9.0
    assert await pod.round(2, settled=False) == 1.0
    pod.now += 1.0
    assert await pod.round(2, settled=False) is None
    assert pod.bouncer.paused == set()


async def test_a_hold_ends_by_itself_counted_from_the_first_and_not_again_by_the_same_revision(pod: Pod) -> None:
    await pod.round(1, "shop")
    pod.now += 6.0
    assert await pod.round(2, "shop") == 4.0
    pod.now += 4.0
    assert await pod.round(2, "shop", settled=False) is None
    assert pod.bouncer.paused == set()
    assert await pod.round(2, "shop") is None
    assert pod.bouncer.paused == set()
    assert await pod.round(3, "shop") == HOLD_SECONDS


async def test_what_has_ended_and_was_let_go_of_may_be_held_again(pod: Pod) -> None:
    await pod.round(1, "shop")
    pod.now += HOLD_SECONDS
    await pod.round(1, "shop")
    await pod.round(2)
    assert await pod.round(3, "shop") == HOLD_SECONDS


async def test_another_agent_goes_on_with_a_live_hold(pod: Pod) -> None:
    await pod.round(1, "shop")
    pod.now += 3.0
    pod.restart()
    assert await pod.round(1, "shop") == pytest.approx(7.0)
    pod.now += 7.0
    assert await pod.round(1, "shop") is None
    assert pod.bouncer.paused == set()


async def test_another_agent_ends_one_that_is_over_its_time_for_the_revision_that_it_finds(pod: Pod) -> None:
    await pod.round(1, "shop")
    pod.now += 11.0
    pod.restart()
    said = len(pod.bouncer.said)
    for _ in range(3):
        assert await pod.round(1, "shop") is None
        assert pod.bouncer.paused == set()
    assert pod.bouncer.said[said:] == ['RESUME "shop"']


async def test_another_agent_resumes_what_was_let_go_of_meanwhile(pod: Pod) -> None:
    await pod.round(1, "shop")
    pod.restart()
    assert await pod.round(2, settled=False) is not None
    assert await pod.round(2) is None
    assert pod.bouncer.paused == set()


@pytest.mark.parametrize("back", [3600.0, -3600.0])
async def test_a_clock_that_is_set_makes_no_hold_longer(pod: Pod, back: float) -> None:
    await pod.round(1, "shop")
    pod.now += 1.0
    pod.ahead -= back
    pod.restart()
    left = await pod.round(1, "shop")
    assert (left or 0.0) <= HOLD_SECONDS
    pod.now += HOLD_SECONDS
    await pod.round(1, "shop")
    assert pod.bouncer.paused == set()


async def test_what_somebody_has_paused_is_resumed_and_what_somebody_resumed_is_paused_again(pod: Pod) -> None:
    pod.bouncer.paused.add("shop")
    await pod.round(1, look=True)
    await pod.round(1)
    assert pod.bouncer.paused == set()
    await pod.round(2, "shop")
    pod.bouncer.paused.clear()
    assert await pod.round(2, "shop") is None
    assert await pod.round(2, "shop") == HOLD_SECONDS


async def test_what_is_paused_after_its_hold_has_ended_is_resumed_at_once(pod: Pod) -> None:
    await pod.round(1, "shop")
    pod.now += HOLD_SECONDS
    await pod.round(1, "shop")
    pod.bouncer.paused.add("shop")
    await pod.round(1, "shop")
    await pod.round(1, "shop")
    assert pod.bouncer.paused == set()


async def test_another_pgbouncer_is_held_again_in_what_is_left_of_the_time(pod: Pod) -> None:
    await pod.round(1, "shop")
    pod.now += 4.0
    pod.bouncer.restart()
    assert await pod.round(1, "shop", look=False) is None
    assert await pod.round(1, "shop") == 6.0
    assert [session.closed for session in pod.bouncer.sessions] == [True, False]


async def test_a_beginning_that_cannot_be_written_down_is_none(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def full(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("poolfleet.agent.holds.write_durably", full)
        for _ in range(3):
            assert await pod.round(1, "shop") is None
        assert pod.bouncer.said == []
        assert tries == 1
    pod.now += RETRY
    assert await pod.round(1, "shop") == HOLD_SECONDS


async def test_an_end_needs_no_disk(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    await pod.round(1, "shop")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("poolfleet.agent.holds.write_durably", full)
    assert await pod.round(2) is None
    assert pod.bouncer.paused == set()


async def test_a_pgbouncer_that_goes_away_is_told(pod: Pod) -> None:
    await pod.round(1, "shop")
    pod.bouncer.gone = True
    with pytest.raises(AdminError):
        await pod.round(2)
    pod.bouncer.gone = False
    pod.bouncer.restart()
    assert await pod.round(2) is None


@pytest.mark.parametrize("text", ["", "x", "[]", '{"shop": "x"}', '{"shop": null}'])
async def test_a_damaged_file_is_as_none(pod: Pod, text: str) -> None:
    (pod.folder / HOLDS_FILE).write_text(text)
    pod.restart()
    assert await pod.round(1, "shop") == HOLD_SECONDS


async def test_a_database_that_is_gone_is_not_held(pod: Pod) -> None:
    await pod.round(1, "shop")
    pod.holds.seen(pod.bouncer.sample("other"))
    assert pod.holds.left("shop") is None
