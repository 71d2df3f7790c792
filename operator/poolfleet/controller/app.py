"""The operator's process: health, Lease, first lists, watches, workers; and an orderly end.

Order of life: the health server answers from the start, the standby waits for the Lease. The leader lists everything
into the store, and only then starts the workers: a reconciliation never takes an object for missing that merely was
not listed yet. On SIGTERM the running reconciliations get 20 s, then the Lease is given up.
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

from poolfleet.api import names
from poolfleet.controller import health, logs, metrics
from poolfleet.controller.agents import Agents
from poolfleet.controller.autoscalers import Autoscalers
from poolfleet.controller.config import Config, parse
from poolfleet.controller.context import Context, Key
from poolfleet.controller.discoveries import Discoveries
from poolfleet.controller.handlers import DeadWatch, Observer, watch, watches
from poolfleet.controller.nodes import Nodes
from poolfleet.controller.providers import Providers, load
from poolfleet.controller.queue import KeyedQueue, QueueClosed
from poolfleet.controller.resync import Resync
from poolfleet.controller.roles import Roles
from poolfleet.controller.rotation_state import Rotations
from poolfleet.controller.secrets import Secrets
from poolfleet.controller.store import Store
from poolfleet.controller.tokens import Tokens
from poolfleet.kube.client import ConfigException, Kube
from poolfleet.kube.errors import ApiError, Conflict, Forbidden, LostLease, NotFound, NotLeader
from poolfleet.kube.events import Recorder
from poolfleet.kube.kinds import POOL, SERVER
from poolfleet.kube.lease import Elector

Reconcile = Callable[[Context, Key], Awaitable[float | None]]

STOP_SECONDS: Final = 20.0  # for the reconciliations that run when SIGTERM comes
RECONCILE_SECONDS: Final = 120.0  # after which one counts as hanging
CONTACT_SECONDS: Final = 30.0  # without an answer of the API server: not ready

logger = logging.getLogger(__name__)


class StartError(Exception):
    """The operator cannot work here; the message says what to do."""


class _Stopped(Exception):
    """The orderly end."""


def main(argv: Sequence[str]) -> int:
    """`python3 -m poolfleet operator`: run until SIGTERM (returns 0) or until something else ends it (1)."""
    from poolfleet.controller import pools, servers

    config = parse(argv, os.environ)
    logs.configure(config.log_level)
    reconcilers: Mapping[str, Reconcile] = {names.POOL_PLURAL: pools.reconcile, names.SERVER_PLURAL: servers.reconcile}
    code = 0
    try:
        asyncio.run(_run_process(config, reconcilers))
    except* StartError as errors:
        code = 1
        for error in _leaves(errors):
            logger.error("%s", error)
    except* (LostLease, DeadWatch) as errors:
        code = 1
        for error in _leaves(errors):
            logger.error("%s; this process ends, another one takes over", error)
    return code


async def _run_process(config: Config, reconcilers: Mapping[str, Reconcile]) -> None:
    stopping = asyncio.Event()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    take_signals()
    await run(config, reconcilers, stopping, take_signals)


async def run(
    config: Config,
    reconcilers: Mapping[str, Reconcile],
    stopping: asyncio.Event,
    kopf_started: Callable[[], None] = lambda: None,
) -> None:
    """Be an operator until `stopping` is set. `kopf_started` is called after kopf has taken the process's signals.

    Raises StartError, or an ExceptionGroup with StartError, LostLease, DeadWatch or a mistake of ours.
    """
    async with AsyncExitStack() as stack:
        try:
            kube = await stack.enter_async_context(Kube.connect(config.kubeconfig))
        except (ConfigException, OSError, ValueError) as error:
            raise StartError(f"no way to the API server: {error}") from error
        operator = await stack.enter_async_context(Operator(kube, config, reconcilers))
        await operator.run(stopping, kopf_started)


class Operator:
    """The parts of one operator, wired. To be used as an async context manager."""

    def __init__(self, kube: Kube, config: Config, reconcilers: Mapping[str, Reconcile]) -> None:
        """`kube` may write to every kind; `reconcilers` by the plural of their keys."""
        self._config = config
        self._reconcilers = reconcilers
        identity = f"{config.identity or socket.gethostname()}_{secrets.token_hex(4)}"
        kube = kube.watched(on_call=metrics.count)
        self.elector = Elector(
            kube,
            config.lease_namespace,
            config.lease_name,
            identity,
            duration=config.lease_duration,
            renew_deadline=config.lease_renew_deadline,
            retry_period=config.lease_retry_period,
        )
        self.store = Store()
        self.queue: KeyedQueue[Key] = KeyedQueue()
        self.agents = Agents(self.store, port=config.agent_port, fast_lane=config.fast_lane)
        self.observer = Observer(self.store, self.queue, self.agents)
        self.agents.changed = self.observer.agent_changed
        self.kube = kube.guarded(self.elector.remaining).watched(on_write=self.observer.written)
        self.secrets = Secrets(self.kube, self.store, self.observer.secret_changed)
        self.discoveries = Discoveries(time.time)
        self.autoscalers = Autoscalers()
        self.rotations = Rotations()
        try:
            self.providers = Providers(load(config.token_providers))
        except ValueError as error:
            raise StartError(str(error)) from error
        self.tokens = Tokens(self.providers.make)
        self.tokens.changed = lambda namespace, name: self.queue.add(Key(POOL.plural, namespace, name))
        self.watches = watches(config.namespaces, config.watch_secrets)
        self.resync = Resync(
            self.kube, self.store, self.observer, self.watches, config.namespaces, period=config.resync_period
        )
        self.observer.relisted = self.resync.soon
        self.recorder = Recorder(self.kube, identity)
        self.watching = asyncio.Event()
        """Set when every kind is watched, also while another process leads."""
        self.port = 0
        """Port of the health server while it runs."""

    async def __aenter__(self) -> "Operator":
        await self.agents.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.agents.__aexit__(*error)
        await self.elector.release()  # everything that writes has ended by now

    async def run(self, stopping: asyncio.Event, kopf_started: Callable[[], None]) -> None:
        """See the function `run`."""
        checks = health.routes(
            alive={"queue": self._queue_moves}, ready={"API server": self._api_answers}, refresh=self._set_gauges
        )
        async with health.serve(checks, self._config.http_port, self._config.http_host) as self.port:
            try:
                async with asyncio.TaskGroup() as group:
                    workers: list[asyncio.Task[None]] = []
                    group.create_task(metrics.measure_lag(), name="lag")
                    group.create_task(self._stop(stopping, workers), name="stop")
                    await self._await_api()
                    self.observer.leading = False
                    group.create_task(self.elector.run(), name="elector")
                    await self.resync.initial()
                    logger.info("everything is listed")
                    group.create_task(self.resync.run(), name="resync")
                    watching = watch(
                        self.observer, self.kube, self.watches, self._config.namespaces, kopf_started, self.watching
                    )
                    group.create_task(watching, name="watches")
                    # A standby watches too: the last words of pods that end while nobody leads are said only once.
                    await self.elector.acquired.wait()
                    await self.watching.wait()
                    context = self._context()
                    self.observer.lead()
                    logger.info("leading; %d keys to look at", self.queue.depth)
                    workers += [group.create_task(self._work(context)) for _ in range(self._config.workers)]
                    group.create_task(self.secrets.run(), name="secrets")
                    group.create_task(self.autoscalers.run(context), name="autoscalers")
            except* _Stopped:
                logger.info("stopped")
            finally:
                self.rotations.close()
                await self.discoveries.close()
                await self.tokens.close()
                self.providers.close()

    def _context(self) -> Context:
        return Context(
            kube=self.kube,
            store=self.store,
            queue=self.queue,
            agents=self.agents,
            secrets=self.secrets,
            nodes=Nodes(self.kube, time.monotonic),
            discoveries=self.discoveries,
            roles=Roles(self.discoveries, time.time),
            recorder=self.recorder,
            settings=self._config.settings,
            clock=time.time,
            leader_since=time.time(),
            decided=self.autoscalers.decision,
            cuts=self.observer.cuts,
            tokens=self.tokens,
            rotations=self.rotations,
        )

    async def _await_api(self) -> None:
        """Wait for an API server that knows both kinds and lets us list them; raise StartError if it does not."""
        deadline = time.monotonic() + self._config.start_patience
        while True:
            problem = ""
            try:
                for kind in (POOL, SERVER):
                    for namespace in self._config.namespaces or (None,):
                        await self.kube.list(kind, namespace, limit=1)
                return
            except NotFound:
                problem = (
                    f"the API server does not know {names.POOL_PLURAL} and {names.SERVER_PLURAL} of {names.GROUP}: "
                    "install the CustomResourceDefinitions (kubectl apply --server-side -f crds/)"
                )
            except Forbidden as error:
                problem = f"the operator's ServiceAccount may not do its work: {error}"
            except ApiError as error:
                logger.warning("no API server yet: %s", error)
            # The chart installs CRDs, roles and this pod at the same time.
            if problem and time.monotonic() >= deadline:
                raise StartError(problem)
            await asyncio.sleep(0.5)

    async def _stop(self, stopping: asyncio.Event, workers: Sequence[asyncio.Task[None]]) -> None:
        await stopping.wait()
        logger.info("stopping; %d reconciliations are running", len(self.queue.working))
        self.queue.close()
        if workers:
            _, late = await asyncio.wait(workers, timeout=STOP_SECONDS)
            if late:
                logger.warning("%d reconciliations did not end in time", len(late))
        raise _Stopped

    async def _work(self, context: Context) -> None:
        while True:
            try:
                key = await self.queue.get()
            except QueueClosed:
                return
            try:
                await self._reconcile(context, key)
            finally:
                self.queue.done(key)

    async def _reconcile(self, context: Context, key: Key) -> None:
        about = logs.about(key.plural, key.namespace, key.name)
        started = time.monotonic()
        result = "ok"
        try:
            async with asyncio.timeout(RECONCILE_SECONDS):
                delay = await self._reconcilers[key.plural](context, key)
        except NotLeader:
            result = "not-leader"
            self.queue.retry(key)  # by somebody else, most likely
        except Conflict as error:
            result = "conflict"
            logger.info("again: %s (in %.1f s)", error, self.queue.retry(key), extra=about)
        except ApiError as error:
            result = type(error).__name__
            logger.warning("%s: %s (again in %.1f s)", result, error, self.queue.retry(key), extra=about)
        except Exception:  # one object's trouble must not end the others
            result = "error"
            logger.exception("the reconciliation failed (again in %.1f s)", self.queue.retry(key), extra=about)
        else:
            self.queue.forget(key)
            if delay is not None:
                self.queue.add(key, delay)
        finally:
            metrics.RECONCILE_TOTAL.labels(key.plural, result).inc()
            metrics.RECONCILE_SECONDS.labels(key.plural).observe(time.monotonic() - started)

    def _queue_moves(self) -> str:
        oldest = self.queue.oldest()
        return f"a key has waited for {oldest:.0f} s" if oldest > health.OLDEST else ""

    def _api_answers(self) -> str:
        contact = self.elector.contact
        if contact is None:
            return "has not answered yet"
        silent = time.monotonic() - contact
        return f"has not answered for {silent:.0f} s" if silent > CONTACT_SECONDS else ""

    def _set_gauges(self) -> None:
        metrics.LEADER.set(self.elector.is_leader())
        metrics.QUEUE_DEPTH.set(self.queue.depth)
        metrics.QUEUE_OLDEST.set(self.queue.oldest())
        metrics.QUEUE_ADDS.set(self.queue.adds)
        metrics.AGENTS.set(len(self.agents))
        metrics.AGENTS_FAILING.set(self.agents.failing)
        metrics.AGENT_ANSWERS.set(self.agents.answers)
        metrics.set_posts(self.agents.posts)
        metrics.EVENT_FAILURES.set(self.recorder.failures)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions in a group of groups."""
    found: list[BaseException] = []
    for each in group.exceptions:
        found += _leaves(each) if isinstance(each, BaseExceptionGroup) else [each]
    return found
