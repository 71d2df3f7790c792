"""The agent's one serial loop: what is wanted in, PgBouncer loaded and watched, state out.

Every TICK, and at once when a directive is POSTed, it looks at the mounted files (two stats), at PgBouncer's socket
(one stat), and does what is due. Nothing else writes files or loads PgBouncer, so there is no order of events to get
wrong (design section 4).
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import poolfleet
from poolfleet.agent.cancels import Cancels
from poolfleet.agent.cpu import Cpu, used
from poolfleet.agent.drain import Drain, Phase
from poolfleet.agent.files import Config, Paths, Staged
from poolfleet.agent.inbox import Inbox
from poolfleet.agent.intake import Intake
from poolfleet.agent.loader import Loader, Rejected
from poolfleet.agent.logs import log
from poolfleet.agent.moves import Moves
from poolfleet.agent.probe import Probes
from poolfleet.agent.process import Console
from poolfleet.agent.publish import Publisher
from poolfleet.agent.reach import Reach
from poolfleet.agent.samples import SPACING, Sample, Samples, Usage
from poolfleet.agent.shrinks import Shrinks
from poolfleet.api import names
from poolfleet.api.wire import AgentState, DatabaseState
from poolfleet.pgbouncer import fill, quoting, show
from poolfleet.pgbouncer.admin import AdminError, ServerError

TICK: Final = 0.1
RETRY: Final = 1.0  # after a full disk, or a load that failed
BUSY_SAMPLE: Final = 0.5
QUIET_SAMPLE: Final = 2.0
QUIET_LOGINS: Final = 1.0  # how long a new configuration waits for logins under way (facts/pgbouncer.md 4, the race)
READY_ANYWAY: Final = 20.0
MAX_TRIES: Final = 2  # a configuration with which PgBouncer ends this often is refused


class Engine:
    """State and loop of one agent. `run` never returns; everything else is for `service` to read."""

    def __init__(self, paths: Paths, port: int = names.PGBOUNCER_PORT) -> None:
        self.paths = paths
        self.console = Console(paths.run, port)
        self.samples = Samples()
        self.reach = Reach()
        self.publisher = Publisher()
        self.sample: Sample | None = None
        self.gate = False  # the first grant is rendered: PgBouncer may start
        self.drain = Drain()
        self.reloads = {"taken": 0, "refused": 0}
        self.intake = Intake(paths)
        self.inbox = Inbox()
        self._port = port
        self._loader = Loader(paths.run, self.console)
        self._fresh = False  # this agent staged the pod's first configuration: no PgBouncer has run here before
        self._cold: object = None  # what the cold file on disk is made of
        self._up = False
        self._process = ""
        self._version = ""
        self._loaded = False  # this process has taken the grant
        self._idle: float | None = None  # client_idle_timeout that it has taken besides
        self._stopped = False  # it was told to SHUTDOWN
        self._due = False  # the grant or the configuration is to be loaded
        self._load_at = 0.0
        self._tried = ("", 0)
        self._refused = ""  # hash of a configuration that PgBouncer did not take
        self._config_error = ""
        self._reached = ""  # hash of the configuration whose databases `reach` was told of
        self._shrinks = Shrinks()
        self._ready = False
        self._probes = Probes(self.console.socket)
        self._cancels = Cancels(self.console.socket)
        self._cpu = Cpu()
        self._moves = Moves()

    @property
    def key(self) -> bytes | None:
        """The pool's HMAC key, None while there is none."""
        return next(iter(self.intake.keys), None)

    @property
    def state(self) -> AgentState:
        """What the loop last published."""
        return self.publisher.state

    async def run(self) -> None:
        """The loop."""
        while True:
            written = all([self._try(self._look), self._try(self._take_posted), self._try(self._stage)])
            try:
                if self.gate:
                    await self._tend()
            except AdminError as error:
                log.warning("the admin console is lost", extra={"reason": str(error)})
                self._up = False
            except OSError as error:
                self._trouble(error)
                self._load_at = time.monotonic() + RETRY
            self._publish()
            self.inbox.answer(self.state)
            await self.inbox.wait(self._pace() if written else RETRY)

    def _try(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except OSError as error:
            self._trouble(error)
            return False
        return True

    # -- what is wanted -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if self.intake.look():
            self._new_grant()

    def _take_posted(self) -> None:
        if self.inbox.take(self.intake):
            self._new_grant()

    def _new_grant(self) -> None:
        self._due = True
        self._load_at = min(self._load_at, self._linger_end())

    def _stage(self) -> None:
        """While no PgBouncer runs: have the cold file of the right configuration on disk, and open the gate."""
        applied, staged = self.intake.applied, self.intake.staged
        if applied is None or self._up:
            return
        wanted = self.intake.wanted()
        if wanted is not None and (staged is None or not staged.proved):
            self._fresh = staged is None and not self.console.socket.exists()
            staged = Staged(wanted, proved=False)
        if staged is None:
            return
        cold = self._made_of(staged.config)
        if cold != self._cold:
            try:
                self._loader.put_cold(staged.config, applied.grant, self._own())
            except Rejected as error:
                self._config_error = f"configuration {staged.config.hash}: {error}"
                return
            self._cold = cold
        if staged is not self.intake.staged:
            self.intake.stage(staged)
            self._config_error = ""
            log.info("configuration staged", extra={"config": staged.config.hash})
        self.gate = True

    def _own(self) -> fill.Own:
        assert self.intake.applied is not None
        return fill.Own(self.intake.applied.peer, self.intake.applied.peers, self._port, self.drain.idle)

    def _made_of(self, config: Config) -> object:
        """What a cold file of `config` is made of; equal values make equal files."""
        assert self.intake.applied is not None
        return config.hash, sorted(self.intake.applied.grant), replace(self._own(), client_idle_timeout=None)

    # -- PgBouncer ----------------------------------------------------------------------------------------------------

    async def _tend(self) -> None:
        """Do what is due with the running PgBouncer. Raises AdminError if it went away, OSError if a disk is full."""
        if self.drain.phase is Phase.DRAINED and self.console.still(self._process):
            # The kubelet stops it, and it waits until every client has left, its console's too.
            self.console.drop()
            self._up = False
            return
        self._up = await self.console.connect()
        if not self._up:
            return
        if self.console.started != self._process:
            await self._new_process()
        if self.drain.phase is Phase.STOPPING and not self._stopped:
            await self.console.query("SHUTDOWN WAIT_FOR_SERVERS")
            self._stopped = True
        if time.monotonic() >= self._load_at and self._load_due():
            await self._load()
        if self._sample_due():
            self.sample = await self.console.sample()
            self._cpu.add(self.console.pid, self.sample.at, used(self.console.pid))
            self.samples.add(self.sample, self.reach.probing)
            for name in self.sample.databases:
                pool = self.sample.pools.get(name, show.Pool(name, ""))
                self.reach.seen(name, pool, self._usage(name).waiting, self.sample.at)
            await self._follow_shrinks(self.sample)
        await self._cancels.tend(self.console, len(self.intake.applied.peers) if self.intake.applied else 0)
        if self.intake.staged is not None and not self.drain.draining:
            self._probes.start(self.reach, self.sample, self.intake.staged.config)
            move = self.intake.applied.move if self.intake.applied else None
            await self._moves.tend(self.console, move, self.clients_left(0.0) or 0)

    async def _new_process(self) -> None:
        self._process, self._loaded = self.console.started, False
        self._ready = self._stopped = False
        if self.drain.draining:  # of a process that is gone
            self.drain = Drain()
        self.sample = None
        self.samples, self._moves = Samples(), Moves()
        self._shrinks.loaded([], time.monotonic())
        self._version = await self.console.version()
        self._load_at = self._linger_end()
        self._fresh = False
        log.info("PgBouncer started", extra={"started": self._process, "version": self._version})

    def _linger_end(self) -> float:
        """When the backends of this process's predecessor are gone (monotonic); at once for the pod's first one."""
        if self._fresh:
            return 0.0
        since = time.time() - self.console.started_at
        return time.monotonic() + min(max(names.LINGER_SECONDS - since, 0.0), names.LINGER_SECONDS)

    def _load_due(self) -> bool:
        return self._due or not self._loaded or self._wanted() is not None or self._idle != self.drain.idle

    def _wanted(self) -> Config | None:
        """A configuration to load; None if there is none, or PgBouncer has refused it."""
        wanted = self.intake.wanted()
        return None if wanted is None or wanted.hash == self._refused else wanted

    async def _load(self) -> None:
        wanted = self._wanted()
        if wanted is not None:
            try:
                await self._load_new(wanted)
                return
            except Rejected as error:
                self._refuse(wanted, str(error))
            except AdminError:
                tries = self._tried[1] + 1 if self._tried[0] == wanted.hash else 1
                self._tried = (wanted.hash, tries)
                if tries >= MAX_TRIES:
                    self._refuse(wanted, "PgBouncer ended while loading it")
                raise
        assert self.intake.applied is not None and self.intake.staged is not None
        good, own = self.intake.staged.config, self._own()
        self._due = True
        try:
            await self._loader.load(good, self.intake.applied.grant, good, own)
        except Rejected as error:
            self.reloads["refused"] += 1
            self._config_error = f"configuration {good.hash}: {error}"
            self._load_at = time.monotonic() + RETRY
            log.error("the last good configuration was not taken", extra={"reason": str(error)})
            return
        proved = self.intake.staged.proved
        self._in_force(good, own)
        if not proved:
            self.intake.stage(Staged(good, proved=True))

    async def _load_new(self, wanted: Config) -> None:
        assert self.intake.applied is not None and self.intake.staged is not None
        await self.console.quiet_logins(QUIET_LOGINS)
        self._due, own = True, self._own()
        await self._loader.load(wanted, self.intake.applied.grant, self.intake.staged.config, own)
        self._in_force(wanted, own)
        self.intake.stage(Staged(wanted, proved=True))

    def _in_force(self, config: Config, own: fill.Own) -> None:
        """`config` with the applied grant and `own` is loaded and verified."""
        assert self.intake.applied is not None
        self.reloads["taken"] += 1
        self._due, self._loaded, self._tried = False, True, ("", 0)
        self._idle = own.client_idle_timeout
        if config.hash == self.intake.applied.config:
            self._config_error = self._refused = ""
        self._cold = self._made_of(config)
        now = time.monotonic()
        served = [name for name in fill.databases(config.template) if name in self.intake.applied.grant]
        self.samples.reset(served)
        self.sample = None
        self._shrinks.loaded(served, now)
        if config.hash != self._reached:
            self._reached = config.hash
            self.reach.loaded(served, now)
        else:
            self.reach.granted(served, now)
        log.info(
            "loaded", extra={"rev": self.intake.applied.rev, "grant": self.intake.applied.grant, "config": config.hash}
        )

    def _refuse(self, config: Config, reason: str) -> None:
        self.reloads["refused"] += 1
        self._refused = config.hash
        self._config_error = f"configuration {config.hash}: {reason}"
        log.error("configuration refused; the last good one stays", extra={"config": config.hash, "reason": reason})

    async def _follow_shrinks(self, sample: Sample) -> None:
        for step in self._shrinks.seen(sample, self.samples):
            try:
                if step.reconnect:
                    await self.console.query(f"RECONNECT {quoting.identifier(step.database)}")
                    log.info("reconnect, to shrink", extra={"database": step.database, "held": step.held})
                else:
                    await self.console.with_lifetime(step.lifetime, step.seconds)
            except ServerError as error:
                log.warning("shrinking failed", extra={"database": step.database, "reason": error.text})

    # -- watching -----------------------------------------------------------------------------------------------------

    def _sample_due(self) -> bool:
        sample = self.sample
        if sample is None:
            return True
        age = time.monotonic() - sample.at
        pace = self._shrinks.pace(sample)
        if pace is not None or self.samples.count < 2:
            return age >= (pace or SPACING)
        quiet = self._ready and not self.drain.draining and sample.clients() == 0
        return age >= (QUIET_SAMPLE if quiet else BUSY_SAMPLE)

    def _pace(self) -> float:
        """Seconds to the next round of the loop, while nothing else asks for another."""
        pace = self._shrinks.pace(self.sample) if self._up and self.sample is not None else None
        return TICK if pace is None else min(pace, TICK)

    def _usage(self, name: str) -> Usage:
        """Clients and busy connections of a database at the last sample, the agent's own probe left out."""
        return self.sample.usage(name, probing=self.reach.probing(name)) if self.sample else Usage(0, 0, 0)

    # -- what a drain asks for (drain.Pooler) -------------------------------------------------------------------------

    @property
    def process(self) -> str:
        return self._process

    def ended(self, process: str) -> bool:
        return self._process != process or (not self._up and self.console.ended(process))

    def clients_left(self, since: float) -> int | None:
        if not self._up or self.sample is None or self.sample.at < since:
            return None
        return sum(self._usage(name).clients for name in self.sample.pools)

    async def transactions(self) -> int:
        return await self.console.transactions()

    def told(self, cut: int) -> bool:
        return self.publisher.told.cut == cut

    def _is_ready(self) -> bool:
        if not self._up or self.intake.applied is None or self.sample is None:
            return self._ready and self._up
        if self._ready or not self._loaded:
            return self._ready
        loaded = {name: database.limit for name, database in self.sample.databases.items()}
        shares = {name: self.intake.applied.share.get(name, 0) for name in loaded}
        if all(2 * loaded[name] >= share for name, share in shares.items()):
            return True
        return time.time() - self.intake.applied.first >= READY_ANYWAY

    def _publish(self) -> None:
        self._ready = self._is_ready()
        sample = self.sample if self._up else None
        applied = self.intake.applied
        databases: dict[str, DatabaseState] = {}
        for name, database in sample.databases.items() if sample else ():
            usage, demand = self._usage(name), self.samples.demand(name)
            reachable, error = self.reach.state(name)
            databases[name] = DatabaseState(
                loaded=database.limit,
                held=self.samples.held(name),
                samples=self.samples.samples(name),
                clients=usage.clients,
                waiting=usage.waiting,
                peak=demand.peak,
                demand=demand.demand,
                waited=demand.waited,
                reachable=reachable,
                error=error,
            )
        self.publisher.publish(
            AgentState(
                server=applied.server if applied else "",
                pod=self.intake.pod,
                seq=0,
                rev=applied.rev if applied else 0,
                config=self.intake.staged.config.hash if self.intake.staged else "",
                config_error=self._config_error,
                started=self._process if sample else "",  # of a process that was not looked at nothing is said
                databases=databases,
                max_wait=max((pool.maxwait_us for pool in sample.pools.values()), default=0) / 1e6 if sample else 0.0,
                pids=sample.pids if sample else (),
                draining=self.drain.draining,
                cut=self.drain.cut,
                moved=self._moves.moved,
                cpu=self._cpu.cores() if sample else None,
                ready=self._ready,
                version=poolfleet.__version__,
                pgbouncer=self._version,
            )
        )

    def _trouble(self, error: OSError) -> None:
        log.error("a file cannot be written", extra={"reason": str(error)})
