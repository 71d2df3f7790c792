"""poolfleet.agent.moves"""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolfleet.agent import moves
from poolfleet.agent.moves import Moves, choose
from poolfleet.api.wire import Move
from poolfleet.pgbouncer.admin import Rows, ServerError
from poolfleet.pgbouncer.show import Client

NOW = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 - as show.Client
CONSOLE = Client("pgbouncer", "unix", True, NOW, 1)
MOVE = Move(above=10, idle=60, percent=50)


def client(id: int, idle_for: float = 1000.0, *, idle: bool = True, address: str = "10.0.0.9") -> Client:
    return Client("shop", address, idle, NOW - timedelta(seconds=idle_for), id)


def chosen(clients: list[Client], move: Move = MOVE, recently: int = 0) -> list[int]:
    return [client.id for client in choose([CONSOLE, *clients], move, recently)]


def test_the_longest_idle_go_first_a_tenth_of_what_is_allowed_at_once() -> None:
    clients = [client(id, idle_for=100 + id) for id in range(100, 200)]
    assert chosen(clients) == [199, 198, 197, 196, 195]
    assert chosen(clients, recently=48) == list(range(199, 191, -1))  # of 148 half are 74
    assert chosen(clients, recently=99) == [199]
    assert chosen(clients, recently=100) == []


def test_never_below_the_line() -> None:
    clients = [client(id) for id in range(100, 200)]
    assert len(chosen(clients, Move(98, 60, 100))) == 2
    assert chosen(clients, Move(100, 60, 100)) == []
    assert chosen(clients, Move(101, 60, 100)) == []


def test_only_who_is_idle_for_long_enough() -> None:
    clients = [client(1, 59), client(2, 60), client(3, 61), client(4, idle=False)]
    assert chosen(clients, Move(0, 60, 100)) == [3]
    assert chosen(clients[:2], Move(0, 60, 100)) == [2]


def test_the_agent_s_own_do_not_count() -> None:
    own = [client(id, address="unix") for id in range(50)]
    assert chosen([*own, client(100), client(101)], Move(2, 60, 100)) == []
    assert chosen([*own, client(100), client(101)], Move(1, 60, 100)) == [100]


def test_percent_is_rounded_up_and_0_is_nobody() -> None:
    clients = [client(100), client(101)]
    assert len(chosen(clients, Move(0, 60, 1))) == 1
    assert chosen(clients, Move(0, 60, 1), recently=1) == []
    assert chosen(clients, Move(0, 60, 0)) == []


def test_without_the_console_s_own_row_the_time_is_not_known() -> None:
    assert choose([client(100)], Move(0, 0, 100), 0) == []


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 200)), max_size=40),
    st.builds(Move, st.integers(0, 50), st.integers(0, 200), st.integers(0, 200)),
    st.integers(0, 50),
)
def test_bounds(given: list[tuple[bool, int]], move: Move, recently: int) -> None:
    clients = [client(n, idle_for, idle=idle) for n, (idle, idle_for) in enumerate(given)]
    found = chosen(clients, move, recently)
    assert len(clients) - len(found) >= min(move.above, len(clients))
    assert (len(found) + recently) * 100 < (len(clients) + recently) * move.percent + 100 or not found
    assert all(given[id][0] and given[id][1] >= move.idle for id in found)


class Console:
    """A PgBouncer with clients that have all been idle for a while."""

    def __init__(self, clients: int) -> None:
        self.ids = list(range(100, 100 + clients))
        self.killed: list[str] = []
        self.looks = 0

    async def query(self, sql: str) -> Rows:
        if sql != "SHOW CLIENTS":
            self.killed.append(sql)
            if int(sql.split()[1]) not in self.ids:
                raise ServerError("client not found")
            self.ids.remove(int(sql.split()[1]))
            return Rows((), ())
        self.looks += 1
        columns = ("database", "addr", "state", "link", "request_time", "id")
        theirs = [("shop", "10.0.0.9", "idle", "", "2026-01-02 03:00:00 UTC", str(id)) for id in self.ids]
        return Rows(columns, (("pgbouncer", "unix", "idle", "", "2026-01-02 04:00:00 UTC", "1"), *theirs))


async def test_it_counts_whom_it_closed_and_waits_before_it_looks_again() -> None:
    now = [1000.0]
    console, moved = Console(100), Moves(lambda: now[0])
    await moved.tend(console, None, 100)
    await moved.tend(console, MOVE, 10)
    assert console.looks == 0
    for _ in range(3):
        await moved.tend(console, MOVE, 100)
    assert (console.looks, moved.moved, len(console.ids)) == (1, 5, 95)
    for _ in range(60):
        now[0] += 1.0
        before = len(console.ids)
        await moved.tend(console, MOVE, before)
        assert moved.recently(now[0]) <= 50
    assert len(console.ids) == 10
    assert moved.moved == 90


async def test_who_left_meanwhile_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    console, moved = Console(100), Moves()
    real = console.query

    async def query(sql: str) -> Rows:
        rows = await real(sql)
        console.ids.clear()
        return rows

    monkeypatch.setattr(console, "query", query)
    await moved.tend(console, MOVE, 100)
    assert len(console.killed) == 5
    assert moved.moved == 0


async def test_looks_that_take_long_are_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    console, moved = Console(100), Moves(lambda: now[0])
    real = console.query

    async def query(sql: str) -> Rows:
        now[0] += 0.25
        return await real(sql)

    monkeypatch.setattr(console, "query", query)
    await moved.tend(console, Move(10, 7200, 50), 100)
    begun = now[0]
    while console.looks == 1:
        now[0] += 0.5
        await moved.tend(console, Move(10, 7200, 50), 100)
    assert now[0] - begun == pytest.approx(0.25 / moves.LOAD, abs=1)
