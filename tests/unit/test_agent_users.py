"""poolfleet.agent.users"""

from typing import Any

import pytest

from poolfleet.agent.users import PACE, Users
from poolfleet.pgbouncer.admin import AdminError, Rows


class Console:
    def __init__(self) -> None:
        self.asked = 0
        self.columns: tuple[str, ...] = ("name", "current_client_connections")

    async def query(self, sql: str) -> Rows:
        assert sql == "SHOW USERS"
        self.asked += 1
        return Rows(self.columns, (("app", "3"), ("shop", "0"), ("pgbouncer", None)))


async def test_users_with_clients_every_few_seconds() -> None:
    now, console = 100.0, Console()
    users = Users(lambda: now)
    for _ in range(3):
        await users.tend(console, probing=False)
    assert users.clients == {"app": 3}
    assert console.asked == 1
    now += PACE
    await users.tend(console, probing=False)
    assert console.asked == 2


async def test_the_agent_s_own_client_is_not_counted() -> None:
    console: Any = Console()
    users = Users()
    await users.tend(console, probing=True)
    assert console.asked == 0
    await users.tend(console, probing=False)
    assert console.asked == 1


async def test_an_answer_that_is_not_understood() -> None:
    console = Console()
    console.columns = ("x", "current_client_connections")
    with pytest.raises(AdminError, match="no column name"):
        await Users().tend(console, probing=False)
