"""Beside a test: samples of pg_stat_activity against the budget, and every version of the ledger and of the pods."""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from poolfleet.api import names
from tests.e2e import verdict
from tests.e2e.chaos import Sentinel
from tests.e2e.clients import Clients
from tests.e2e.cluster import Kubectl, Manifest, await_until
from tests.e2e.database import Login
from tests.e2e.pools import Pool, Target
from tests.e2e.watching import Step, Steps

SUPERUSER_RESERVED = 3


@dataclass(frozen=True)
class PodSeen:
    """A pod as the API server showed it."""

    name: str
    ready: bool
    going: bool  # deleted; it may be draining


def _seen(pod: Manifest) -> PodSeen:
    conditions = pod["status"].get("conditions") or ()
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return PodSeen(pod["metadata"]["name"], ready, "deletionTimestamp" in pod["metadata"])


@dataclass(frozen=True)
class Moment:
    """All pods of a pool at one time."""

    at: float  # seconds since the epoch
    pods: dict[str, PodSeen]  # by name

    @property
    def serving(self) -> set[str]:
        """The pods that a new client may be sent to."""
        return {pod.name for pod in self.pods.values() if pod.ready and not pod.going}


class Pods:
    """Every version of a pool's pods since this began: with Pods(…) as pods: …"""

    def __init__(self, pool: Pool) -> None:
        self.moments: list[Moment] = []
        self._first = len(pool.pods(all=True))
        where = ("-n", pool.namespace, "get", "pods", "-l", f"{names.LABEL_POOL}={pool.name}")
        options = ("--watch", "--output-watch-events", "-o", "json")
        self._process = pool.kubectl.popen(*where, *options, stdout=subprocess.PIPE)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Pods":
        self._thread.start()
        # the pods that were there already come one by one
        await_until(lambda: self.moments and len(self.last.pods) >= self._first, 20, "the pods", interval=0.02)
        del self.moments[:-1]
        return self

    def __exit__(self, *exc: object) -> None:
        ended = self._process.poll()
        self._process.kill()
        self._thread.join(10)
        assert exc[0] is not None or ended is None, f"the watch has ended before the test, with {ended}"

    @property
    def last(self) -> Moment:
        """The newest."""
        return self.moments[-1]

    def since(self, at: float) -> list[Moment]:
        """What was seen from then on, and what was true at that time."""
        later = [moment for moment in self.moments if moment.at >= at]
        return [*[moment for moment in self.moments if moment.at < at][-1:], *later]

    def _read(self) -> None:
        assert self._process.stdout is not None
        pods: dict[str, PodSeen] = {}
        with self._process:
            for line in self._process.stdout:
                event = json.loads(line)
                pod = _seen(event["object"])
                pods = {name: other for name, other in pods.items() if name != pod.name}
                if event["type"] != "DELETED":
                    pods[pod.name] = pod
                self.moments.append(Moment(time.time(), pods))


@dataclass(frozen=True)
class Guard:
    """What is watched."""

    steps: Steps
    pods: Pods

    def step_at(self, at: float) -> Step:
        """The newest version of the ledger at that time."""
        return [step for step in self.steps.all if step.at <= at][-1]


@contextlib.contextmanager
def guarded(target: Target, clients: Clients, pool: Pool, report: Callable[[str], None], what: str) -> Iterator[Guard]:
    """While this lasts, no sample of the pool's sessions may be above its inline server's budget, and no version of the
    ledger may promise more. Judged at the end, unless the block has failed."""
    kubectl: Kubectl = pool.kubectl
    spec = pool.get()["spec"]["server"]
    budget = verdict.Budget([(time.time(), int(spec["maxConnections"]) - SUPERUSER_RESERVED)], [])
    admin = kubectl.secret(target.namespace, target.ADMIN_SECRET)
    login = Login(target.login.host, target.login.port, admin["username"], admin["password"], "postgres")
    with contextlib.ExitStack() as stack:
        steps = stack.enter_context(Steps(kubectl, pool.namespace, pool.name))
        pods = stack.enter_context(Pods(pool))
        budget = verdict.Budget(budget.spec, steps.all)
        only = ("--role", target.login.user, "--only-database", target.login.database)
        sampler = clients.start("sampler", login, *only, "--until-eof")
        stack.callback(sampler.hang_up)
        await_until(sampler.lines, 20, "a first sample")
        with Sentinel(sampler, budget, [pool]) as sentinel:
            yield Guard(steps, pods)
        lines = sampler.stop()
    judged = verdict.judge(verdict.samples_of(lines), budget, sentinel.readings)
    leaving = len(judged.excesses) - len(judged.unexplained)
    report(
        f"{what}: {judged.samples} samples, at most {judged.most} of {budget.spec[0][1]} server connections "
        f"({len(judged.excesses)} above it, {leaving} of these a leaving backend beside its successor)"
    )
    assert not judged.unexplained, [str(excess) for excess in judged.unexplained]
    broken = verdict.broken_promises(budget)
    assert not broken, broken
