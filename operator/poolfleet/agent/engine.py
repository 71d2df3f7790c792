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
from poolfleet.agent.drain import Drain, Phase
from poolfleet.agent.files import Config, Paths, Staged
from poolfleet.agent.holds import Holds
from poolfleet.agent.inbox import Inbox
from poolfleet.agent.intake import Intake
from poolfleet.agent.loader import Loader, Rejected
from poolfleet.agent.logs import log
from poolfleet.agent.process import Console
from poolfleet.agent.publish import Publisher
from poolfleet.agent.watch import Watch
from poolfleet.api import names
from poolfleet.api.wire import AgentState
from poolfleet.pgbouncer import fill
from poolfleet.pgbouncer.admin import AdminError

TICK: Final = 0.1
RETRY: Final = 1.0  # after a full disk, or a load that failed
CALM_SECONDS: Final = 0.1  # of waiting for logins before a hold, until the agent looks at something else again
QUIET_LOGINS: Final = 1.0  # how long a new configuration waits for logins under way (facts/pgbouncer.md 4, the race)
READY_ANYWAY: Final = 20.0
MAX_TRIES: Final = 2  # a configuration with which PgBouncer ends this often is refused


class Engine:
    """State and loop of one agent. `run` never returns; everything else is for `service` to read."""

    def __init__(self, paths: Paths, port: int = names.PGBOUNCER_PORT) -> None:
        self.paths = paths
        self.console = Console(paths.run, port)
        self.holds = Holds(paths.run)
        self.watch = Watch(self.console, self.holds)
        self.publisher = Publisher()
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
        self._calming: list[str] = []  # databases in which no login may begin, before they are paused
        self._due = False  # the grant or the configuration is to be loaded
        self._load_at = 0.0
        self._done = 0  # the revision whose load was tried last, with this process
        self._tried = ("", 0)
        self._refused = ""  # hash of a configuration that PgBouncer did not take
        self._config_error = ""
        self._ready = False

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
            if self.holds.some and await self.console.connect():
                await self._end_holds()
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
            await self._end_holds()
            await self.console.query("SHUTDOWN WAIT_FOR_SERVERS")
            self._stopped = True
        calm = self._stopped or await self._calm(self.holds.due(self.console, self._rev(), self._to_hold()))
        if calm and not self._stopped:
            await self.holds.begin(self.console, self._rev(), self._to_hold())
        if calm and time.monotonic() >= self._load_at and self._load_due():
            await self._load()
        await self.holds.finish(self.console, self._rev(), self._to_hold(), settled=self._settled())
        applied = self.intake.applied
        quiet = self._ready and not self.drain.draining
        await self.watch.look(len(applied.peers) if applied else 0, quiet=quiet)
        if self.intake.staged is not None and not self.drain.draining:
            await self.watch.act(self.intake.staged.config, applied.move if applied else None)

    def _rev(self) -> int:
        return self.intake.applied.rev if self.intake.applied else 0

    def _to_hold(self) -> list[str]:
        """Databases that the directive wants to be held, of those that PgBouncer has."""
        applied, sample = self.intake.applied, self.watch.sample
        if applied is None or self._stopped:
            return []
        granted = [name for name in applied.hold if name in applied.grant]
        return [name for name in granted if sample is None or name in sample.databases]

    async def _calm(self, databases: list[str]) -> bool:
        """Whether no login is under way in databases that are about to be paused (holds.py says why); none begins
        there meanwhile, for they may have no more than they have. Raises AdminError."""
        applied, staged = self.intake.applied, self.intake.staged
        if not databases or not self._loaded or applied is None or staged is None:
            self._due = self._due or bool(self._calming)
            self._calming = []
            return True
        if self._calming != databases:
            found = (await self.console.sample()).databases
            held = {name: found[name].current_connections for name in databases if name in found}
            grant = {name: max(1, min(n, held.get(name, n))) for name, n in applied.grant.items()}
            try:
                await self._loader.load(staged.config, grant, staged.config, self._own())
            except Rejected as error:
                log.warning("logins go on while a hold begins", extra={"reason": str(error)})
                return True
            self._calming, self._due = databases, True
        if not await self.console.quiet_logins(CALM_SECONDS, databases, pace=0.005):
            return False
        self._calming = []
        return True

    def _settled(self) -> bool:
        """What the applied directive wants loaded is loaded, or PgBouncer has refused it."""
        applied, staged = self.intake.applied, self.intake.staged
        if applied is None or staged is None or self._done != applied.rev:
            return False
        return applied.config in (staged.config.hash, self._refused)

    async def _end_holds(self) -> None:
        await self.holds.finish(self.console, self._rev(), (), settled=True)

    async def _new_process(self) -> None:
        self._process, self._loaded = self.console.started, False
        self._ready = self._stopped = False
        if self.drain.draining:  # of a process that is gone
            self.drain = Drain()
        self._done = 0
        self.watch.started()
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
            self._done = self._rev()
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
        self._done = self._rev()
        if config.hash == self.intake.applied.config:
            self._config_error = self._refused = ""
        self._cold = self._made_of(config)
        served = [name for name in fill.databases(config.template) if name in self.intake.applied.grant]
        self.watch.loaded(served, config)
        log.info(
            "loaded", extra={"rev": self.intake.applied.rev, "grant": self.intake.applied.grant, "config": config.hash}
        )

    def _refuse(self, config: Config, reason: str) -> None:
        self.reloads["refused"] += 1
        self._refused = config.hash
        self._config_error = f"configuration {config.hash}: {reason}"
        log.error("configuration refused; the last good one stays", extra={"config": config.hash, "reason": reason})

    def _pace(self) -> float:
        """Seconds to the next round of the loop, while nothing else asks for another."""
        pace = self.watch.pace() if self._up else None
        return TICK if pace is None else min(pace, TICK)

    # -- what a drain asks for (drain.Pooler) -------------------------------------------------------------------------

    @property
    def process(self) -> str:
        return self._process

    def ended(self, process: str) -> bool:
        return self._process != process or (not self._up and self.console.ended(process))

    def clients_left(self, since: float) -> int | None:
        return self.watch.clients(since) if self._up else None

    async def transactions(self) -> int:
        return await self.console.transactions()

    def told(self, cut: int) -> bool:
        return self.publisher.told.cut == cut

    def _is_ready(self) -> bool:
        sample = self.watch.sample
        if not self._up or self.intake.applied is None or sample is None:
            return self._ready and self._up
        if self._ready or not self._loaded:
            return self._ready
        loaded = {name: database.limit for name, database in sample.databases.items()}
        shares = {name: self.intake.applied.share.get(name, 0) for name in loaded}
        if all(2 * loaded[name] >= share for name, share in shares.items()):
            return True
        return time.time() - self.intake.applied.first >= READY_ANYWAY

    def _publish(self) -> None:
        self._ready = self._is_ready()
        sample = self.watch.sample if self._up else None
        applied, mounted = self.intake.applied, self.intake.mounted
        self.publisher.publish(
            AgentState(
                server=applied.server if applied else "",
                pod=self.intake.pod,
                seq=0,
                rev=applied.rev if applied else 0,
                config=self.intake.staged.config.hash if self.intake.staged else "",
                config_error=self._config_error,
                started=self._process if sample else "",  # of a process that was not looked at nothing is said
                databases=self.watch.databases() if sample else {},
                mounted=mounted.hash if mounted.files else "",
                users=self.watch.users.clients if sample else {},
                max_wait=max((pool.maxwait_us for pool in sample.pools.values()), default=0) / 1e6 if sample else 0.0,
                pids=sample.pids if sample else (),
                draining=self.drain.draining,
                cut=self.drain.cut,
                moved=self.watch.moves.moved,
                cpu=self.watch.cpu.cores() if sample else None,
                ready=self._ready,
                version=poolfleet.__version__,
                pgbouncer=self._version,
            )
        )

    def _trouble(self, error: OSError) -> None:
        log.error("a file cannot be written", extra={"reason": str(error)})
