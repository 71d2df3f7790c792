"""poolfleet.agent.drain on a clock of its own; tests/integration/test_agent_drain.py has a real PgBouncer."""

import asyncio
from collections.abc import Callable

import pytest

from poolfleet.agent import drain
from poolfleet.agent.drain import Drain, Phase, idle_timeout
from poolfleet.plan.objects import pod


class Pooler:
    """A PgBouncer whose clients are a function of the time."""

    def __init__(self, clients: Callable[[float], int | None], ends_at: float = 1e9, reads: bool = True) -> None:
        self.now = 0.0
        self.process = "1"
        self.phases: list[tuple[Phase, float]] = []
        self.idles: list[tuple[float | None, float]] = []
        self.come_and_go_until = 0.0
        self.next_at = 1e9  # when another process runs
        self._clients, self._ends_at, self._reads = clients, ends_at, reads
        self.drain = Drain(self.clock, self.sleep)

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self._note()
        self.now = round(self.now + seconds, 6)
        self.process = "1" if self.now < self.next_at else "2"
        await asyncio.sleep(0)

    def _note(self) -> None:
        if not self.phases or self.phases[-1][0] is not self.drain.phase:
            self.phases.append((self.drain.phase, self.now))
        if not self.idles or self.idles[-1][0] != self.drain.idle:
            self.idles.append((self.drain.idle, self.now))

    def ended(self, process: str) -> bool:
        stopping = [at for phase, at in self.phases if phase is Phase.STOPPING]
        return process != self.process or self.now >= self._ends_at or bool(stopping and self.now >= stopping[0] + 1)

    def clients_left(self, since: float) -> int | None:
        assert since == 0
        return self._clients(self.now)

    async def transactions(self) -> int:
        return int(min(self.now, self.come_and_go_until) * 10)

    def told(self, cut: int) -> bool:
        return self._reads and self.drain.cut == cut

    async def run(self, seconds: float, propagation: float = 5.0) -> tuple[str, float]:
        """How it ended and when."""
        words = await self.drain.run(self, seconds, propagation)
        self._note()
        return words, self.now


async def test_without_clients_it_is_over_when_the_endpoints_have_had_their_time() -> None:
    pooler = Pooler(lambda now: 0)
    words, at = await pooler.run(60)
    assert words == "no client is left"
    assert at == pytest.approx(5, abs=0.3)
    assert [phase for phase, _ in pooler.phases] == [Phase.PROPAGATING, Phase.DRAINED]


async def test_clients_leave_by_themselves() -> None:
    pooler = Pooler(lambda now: 3 if now < 20 else 0)
    words, at = await pooler.run(60)
    assert words == "no client is left"
    assert at == pytest.approx(21, abs=0.5)
    assert pooler.idles == [(None, 0)]
    assert pooler.drain.cut == 0


async def test_clients_that_come_and_go_keep_it_until_the_time_is_over() -> None:
    pooler = Pooler(lambda now: 0)
    pooler.come_and_go_until = 30
    assert (await pooler.run(60))[1] == pytest.approx(31, abs=0.5)
    pooler = Pooler(lambda now: 0)
    pooler.come_and_go_until = 1e9
    words, at = await pooler.run(60)
    assert words == "no client is left"
    assert at == pytest.approx(65, abs=0.5)


async def test_from_half_of_the_time_on_idle_clients_are_closed_sooner_in_the_last_quarter() -> None:
    pooler = Pooler(lambda now: 3 if now < 60 else 0)
    await pooler.run(60)
    assert [(idle, round(at)) for idle, at in pooler.idles] == [(None, 0), (5, 35), (1, 50)]
    assert [(phase, round(at)) for phase, at in pooler.phases] == [
        (Phase.PROPAGATING, 0),
        (Phase.LEAVING, 5),
        (Phase.IDLING, 35),
        (Phase.DRAINED, 61),
    ]


async def test_who_is_left_at_the_end_is_told_and_cut() -> None:
    pooler = Pooler(lambda now: 7 if now < 64 else 2)
    words, at = await pooler.run(60)
    assert words == "the time is over: 2 clients are cut"
    assert pooler.drain.cut == 2
    assert [phase for phase, _ in pooler.phases][-2:] == [Phase.STOPPING, Phase.DRAINED]
    assert at == pytest.approx(66, abs=0.5)


async def test_the_operator_gets_a_moment_to_read_how_many_are_cut() -> None:
    pooler = Pooler(lambda now: 1, reads=False)
    await pooler.run(60)
    stopping = next(at for phase, at in pooler.phases if phase is Phase.STOPPING)
    assert stopping == pytest.approx(65 + drain.TELL_SECONDS, abs=0.3)


async def test_a_pgbouncer_that_does_not_stop_is_left_to_the_kubelet_in_time() -> None:
    pooler = Pooler(lambda now: 1, reads=False)
    pooler.ended = lambda process: False  # type: ignore[method-assign]
    words, at = await pooler.run(60, float(pod.PROPAGATION_SECONDS))
    assert words == "the time is over: 1 clients are cut, and PgBouncer still runs"
    assert at <= pod.grace_seconds(60) - 3  # both containers have to end after it


async def test_no_time_at_all() -> None:
    words, at = await Pooler(lambda now: 1).run(0)
    assert words == "the time is over: 1 clients are cut"
    assert at == pytest.approx(6, abs=0.5)
    assert (await Pooler(lambda now: 0).run(0))[0] == "no client is left"


async def test_what_is_not_known_is_not_nobody() -> None:
    pooler = Pooler(lambda now: None if now < 30 else 0)
    assert (await pooler.run(60))[1] == pytest.approx(31, abs=0.5)
    pooler = Pooler(lambda now: 4 if now < 30 else None)
    assert (await pooler.run(60))[0] == "the time is over: 4 clients are cut"


@pytest.mark.parametrize("how", ["it ends", "another one runs"])
async def test_it_is_over_with_its_process(how: str) -> None:
    pooler = Pooler(lambda now: 1, ends_at=10 if how == "it ends" else 1e9)
    if how == "another one runs":
        pooler.next_at = 10.0
    words, at = await pooler.run(60)
    assert words == "PgBouncer has ended"
    assert at == pytest.approx(10, abs=0.5)


async def test_who_asks_again_gets_the_same_end_also_when_the_first_has_gone() -> None:
    pooler = Pooler(lambda now: 1)
    first, second = (asyncio.create_task(pooler.run(60)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    words, at = await second
    assert words == "the time is over: 1 clients are cut"
    assert at == pytest.approx(66, abs=0.5)
    assert [phase for phase, _ in pooler.phases].count(Phase.PROPAGATING) == 1


@pytest.mark.parametrize(
    ("left", "whole", "idle"),
    [(60, 60, None), (31, 60, None), (30, 60, 5), (15, 60, 1), (0, 60, 1), (2, 4, 1), (1, 4, 1), (0.5, 1, 0.25)],
)
def test_idle_timeout(left: float, whole: float, idle: float | None) -> None:
    assert idle_timeout(left, whole) == idle
