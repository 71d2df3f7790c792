"""What the agent sees of the running PgBouncer, and what it does about it besides loading."""

import time
from collections.abc import Iterable
from typing import Final

from poolfleet.agent.cancels import Cancels
from poolfleet.agent.cpu import Cpu, used
from poolfleet.agent.files import Config
from poolfleet.agent.holds import Holds
from poolfleet.agent.logs import log
from poolfleet.agent.moves import Moves
from poolfleet.agent.probe import Probes
from poolfleet.agent.process import Console
from poolfleet.agent.reach import Reach
from poolfleet.agent.samples import SPACING, Sample, Samples, Usage
from poolfleet.agent.shrinks import Shrinks
from poolfleet.agent.users import Users
from poolfleet.api.wire import DatabaseState, Move
from poolfleet.pgbouncer import quoting, show
from poolfleet.pgbouncer.admin import ServerError

BUSY_SAMPLE: Final = 0.5
QUIET_SAMPLE: Final = 2.0


class Watch:
    """Samples of one PgBouncer after the other. Used by the engine's loop only."""

    def __init__(self, console: Console, holds: Holds) -> None:
        self.sample: Sample | None = None
        self.moves = Moves()
        self.users = Users()
        self.cpu = Cpu()
        self._console = console
        self._holds = holds
        self._samples = Samples()
        self._reach = Reach()
        self._shrinks = Shrinks()
        self._probes = Probes(console.socket)
        self._cancels = Cancels(console.socket)
        self._reached = ""  # hash of the configuration whose databases `_reach` was told of

    def started(self) -> None:
        """It is another process."""
        self.sample = None
        self._samples, self.moves, self.users = Samples(), Moves(), Users()
        self._shrinks.loaded([], time.monotonic())

    def loaded(self, served: Iterable[str], config: Config) -> None:
        """`config`, with the databases `served`, was loaded."""
        served, now = list(served), time.monotonic()
        self._samples.reset(served)
        self.sample = None
        self._shrinks.loaded(served, now)
        if config.hash != self._reached:
            self._reached = config.hash
            self._reach.loaded(served, now)
        else:
            self._reach.granted(served, now)

    async def look(self, peers: int, *, quiet: bool) -> None:
        """Take a sample if one is due, and do what it shows to be due. `quiet`: few are enough while there are no
        clients. `peers`: how many pods the pool has. Raises AdminError if PgBouncer went away."""
        if self._due(quiet):
            self.sample = await self._console.sample()
            self.cpu.add(self._console.pid, self.sample.at, used(self._console.pid))
            self._samples.add(self.sample, self._reach.probing)
            self._holds.seen(self.sample)
            for name, database in self.sample.databases.items():
                pool = self.sample.pools.get(name, show.Pool(name, ""))
                waiting = self._usage(name).waiting
                self._reach.seen(name, pool, waiting, self.sample.at, paused=database.paused)
            await self._follow_shrinks(self.sample)
        await self._cancels.tend(self._console, peers)
        await self.users.tend(self._console, probing=self._probes.running)

    async def act(self, config: Config, move: Move | None) -> None:
        """Probe and move clients, as is due. `config` is the last good one. Raises AdminError."""
        self._probes.start(self._reach, self.sample, config)
        await self.moves.tend(self._console, move, self.clients(0.0) or 0)

    def pace(self) -> float | None:
        """Seconds to the next look, None if nothing waits for it."""
        paces = (self._holds.pace(), self._shrinks.pace(self.sample) if self.sample else None)
        return min((pace for pace in paces if pace is not None), default=None)

    def clients(self, since: float) -> int | None:
        """Clients, the agent's own left out; None while nothing was seen after `since` (monotonic)."""
        if self.sample is None or self.sample.at < since:
            return None
        return sum(self._usage(name).clients for name in self.sample.pools)

    def databases(self) -> dict[str, DatabaseState]:
        """What is known of each database; nothing while there is no sample."""
        return (
            {name: self._state(name, database) for name, database in self.sample.databases.items()}
            if (self.sample)
            else {}
        )

    def _state(self, name: str, database: show.Database) -> DatabaseState:
        usage, demand = self._usage(name), self._samples.demand(name)
        reachable, error = self._reach.state(name)
        return DatabaseState(
            loaded=database.limit,
            held=self._samples.held(name),
            samples=self._samples.samples(name),
            clients=usage.clients,
            waiting=usage.waiting,
            peak=demand.peak,
            demand=demand.demand,
            waited=demand.waited,
            reachable=reachable,
            error=error,
            hold=self._holds.left(name),
        )

    def _due(self, quiet: bool) -> bool:
        if self.sample is None:
            return True
        age, pace = time.monotonic() - self.sample.at, self.pace()
        if pace is not None or self._samples.count < 2:
            return age >= (pace or SPACING)
        return age >= (QUIET_SAMPLE if quiet and self.sample.clients() == 0 else BUSY_SAMPLE)

    def _usage(self, name: str) -> Usage:
        """Clients and busy connections of a database at the last sample, the agent's own probe left out."""
        return self.sample.usage(name, probing=self._reach.probing(name)) if self.sample else Usage(0, 0, 0)

    async def _follow_shrinks(self, sample: Sample) -> None:
        for step in self._shrinks.seen(sample, self._samples):
            try:
                if step.reconnect:
                    await self._console.query(f"RECONNECT {quoting.identifier(step.database)}")
                    log.info("reconnect, to shrink", extra={"database": step.database, "held": step.held})
                else:
                    await self._console.with_lifetime(step.lifetime, step.seconds)
            except ServerError as error:
                log.warning("shrinking failed", extra={"database": step.database, "reason": error.text})
