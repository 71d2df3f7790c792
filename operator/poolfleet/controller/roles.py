"""The roles' CONNECTION LIMITs around a ledger write: raised before it, lowered after it (plan/role_limits.py).

while True:
    after = advance(world without raises of `blocked`)
    step = await roles.raise_first(…, after)         # ALTER ROLE upwards, or a word on why not
    if step.blocked <= blocked: break
    blocked |= step.blocked                          # what cannot be raised in PostgreSQL is not raised here
write the ledger, and status.roleLimits = step.recorded
await roles.settle(uid, step.recorded)               # ALTER ROLE downwards, and what is new
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from poolfleet.controller.discoveries import Discoveries
from poolfleet.plan import role_limits
from poolfleet.plan.role_limits import Demand, Memory
from poolfleet.postgres.connection import ServerError
from poolfleet.postgres.roles import Busy, Outcome, set_limits

PATIENCE: Final = 3.0  # seconds that a step of the ledger waits for PostgreSQL
RETRY: Final = 5.0  # seconds after the server could not be asked
REFUSED_RETRY: Final = 300.0  # seconds after PostgreSQL, or what the role is, forbade it
TRUSTED: Final = 300.0  # seconds that a limit is believed to stand as it was set

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoleStep:
    """What the ledger write must know."""

    recorded: Mapping[str, int]  # status.roleLimits to write: role -> limit
    blocked: frozenset[str]  # roles whose bounds must not be raised now
    problem: str  # for the status, "" if there is none


@dataclass(slots=True)
class _Server:
    memory: Memory = field(default_factory=Memory)
    set_at: dict[str, float] = field(default_factory=dict)  # role -> when `confirmed` was seen
    refused_at: dict[str, float] = field(default_factory=dict)
    failed: float | None = None
    error: str = ""
    altering: asyncio.Task[dict[str, Outcome]] | None = None


class Roles:
    """See the module. One reconciliation of a server at a time."""

    def __init__(self, discoveries: Discoveries, clock: Callable[[], float]) -> None:
        """`clock` in seconds since the epoch."""
        self._discoveries = discoveries
        self._clock = clock
        self._servers: dict[str, _Server] = {}

    def forget(self, uid: str) -> None:
        """The PgServer is gone."""
        self._servers.pop(uid, None)

    async def raise_first(
        self, uid: str, *, needs: Mapping[str, Demand], recorded: Mapping[str, int], managed: Collection[str] | None
    ) -> RoleStep:
        """Raise what the ledger that is about to be written needs, and clear what is not limited any more.

        `needs`: role_limits.demands of that ledger; `recorded`: role_limits.read of the status as it stands; `managed`:
        spec.managedRoles, None while spec.roleLimits is Off. Takes PATIENCE seconds at most.
        """
        if not recorded and managed is None:
            return RoleStep({}, frozenset(), "")
        server = self._servers.setdefault(uid, _Server())
        now = self._clock()
        self._forget_old(server, now)
        plan = role_limits.plan(needs, recorded, server.memory, managed=managed, now=now)
        server.memory = replace(server.memory, low=plan.low)
        after = dict(plan.recorded)
        if plan.raises:
            done = await self._alter(uid, server, plan.raises)
            for role in (role for role, limit in plan.raises.items() if done.get(role) != limit):
                after[role] = recorded[role]  # only what is recorded is ever raised; it stays as it was
        problem = role_limits.problem(needs, server.memory, managed)
        if server.error:
            problem = f"The roles' connection limits could not be changed: {server.error}."
        return RoleStep(after, role_limits.blocked(needs, after, server.memory), problem)

    def wake(self, uid: str) -> float | None:
        """In how many seconds time alone allows the next change, if ever: to be asked after `settle`."""
        server = self._servers.get(uid)
        if server is None:
            return None
        now = self._clock()
        times = [low.since + role_limits.LOWER_SECONDS for low in server.memory.low.values()]
        if server.failed is not None:
            times.append(server.failed + RETRY)
        return min((time - now for time in times if time > now), default=None)

    async def settle(self, uid: str, recorded: Mapping[str, int]) -> None:
        """Make true what was written into status.roleLimits. Takes PATIENCE seconds at most; what does not work is
        tried again by a later call."""
        server = self._servers.get(uid)
        if server is None:
            return
        due = {
            role: limit
            for role, limit in recorded.items()
            if server.memory.confirmed.get(role) != limit and role not in server.memory.refused
        }
        if due:
            await self._alter(uid, server, due)

    async def _alter(self, uid: str, server: _Server, limits: Mapping[str, int]) -> dict[str, int]:
        """Set these limits and remember what came of it; returns the limits that are in force now, as far as known."""
        now = self._clock()
        if server.failed is not None and now - server.failed < RETRY:
            return {}
        outcomes: Mapping[str, Outcome] = {}
        server.error = ""
        admin = self._discoveries.admin(uid)
        if admin is None:
            server.error = "they cannot be altered without adminSecretRef"
        elif server.altering is not None:
            server.error = "the server has not answered the last change yet"
        else:
            task = asyncio.create_task(admin.run(lambda connection: set_limits(connection, limits)))
            task.add_done_callback(lambda task: _ended(server, task))
            server.altering = task
            try:
                await asyncio.wait({task}, timeout=PATIENCE)
                if task.done():
                    outcomes = task.result()
                else:
                    server.error = f"no answer in {PATIENCE:.0f} s"
            except ServerError as error:
                server.error = str(error)
            except Busy:
                server.error = "another operator is altering roles"
            finally:
                task.cancel()  # if it still runs; its connection serves the next one only after it has ended
        confirmed, refused = dict(server.memory.confirmed), dict(server.memory.refused)
        for role, limit in limits.items():
            confirmed.pop(role, None)
            outcome = outcomes.get(role)
            if outcome is None:
                continue
            confirmed[role], server.set_at[role] = outcome.limit, now
            if outcome.refused:
                refused[role], server.refused_at[role] = outcome.refused, now
            elif outcome.limit == limit:
                logger.info("CONNECTION LIMIT of a role is %d now", limit, extra={"role": role})
        server.memory = replace(server.memory, confirmed=confirmed, refused=refused)
        server.failed = None if outcomes else now
        return {role: outcome.limit for role, outcome in outcomes.items()}

    def _forget_old(self, server: _Server, now: float) -> None:
        """What was seen too long ago is looked at again: others may alter roles as well."""
        memory = server.memory
        confirmed = {role: limit for role, limit in memory.confirmed.items() if now - server.set_at[role] < TRUSTED}
        refused = {
            role: words for role, words in memory.refused.items() if now - server.refused_at[role] < REFUSED_RETRY
        }
        server.memory = replace(memory, confirmed=confirmed, refused=refused)


def _ended(server: _Server, task: asyncio.Task[dict[str, Outcome]]) -> None:
    server.altering = None
    if not task.cancelled():
        task.exception()  # seen; of one that nobody waits for any more nothing is believed
