"""Operators that a test starts, one after the other, in place of the release's: with other flags, or a failpoint."""

import contextlib
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e import kit, node

POD = "operator"
CRASHED = 137  # exit code of a process that a failpoint ended (controller/failpoints.py)
DEPLOYMENT = "deployment/poolfleet"
LEASE = "poolfleet-leader"


class Process:
    """One operator in the pod."""

    def __init__(self, process: "subprocess.Popen[str]", log: Any) -> None:
        self._process, self._log = process, log

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    @property
    def log(self) -> str:
        """What it has printed."""
        return Path(self._log.name).read_text()

    def says(self, words: str, timeout: float = 60) -> None:
        """Wait until it has logged this."""
        kit.await_until(lambda: words in self.log or self.code is not None, timeout, f"the operator says: {words}")
        assert words in self.log, f"{self.code}: {self.log[-3000:]}"

    def crashed(self, timeout: float = 40) -> None:
        """Wait until its failpoint has ended it."""
        kit.await_until(lambda: self.code is not None, timeout, "the operator's end at its failpoint", interval=0.05)
        assert self.code == CRASHED, self.log[-3000:]


class Operators:
    """A pod with the release's image, account and settings, in which operators run: one leads, others stand by."""

    def __init__(self, kubectl: kit.Kubectl, deployment: kit.Manifest) -> None:
        self._kubectl = kubectl
        self._template = deployment["spec"]["template"]
        self._container = self._template["spec"]["containers"][0]
        self._processes: list[Process] = []

    def ensure(self) -> None:
        """The pod is there and runs; no operator does yet."""
        idle = {key: value for key, value in self._container.items() if not key.endswith("Probe")}
        del idle["args"], idle["resources"]
        spec = {**self._template["spec"], "containers": [{**idle, "command": ["sleep", "infinity"]}]}
        labels = self._template["metadata"]["labels"]
        metadata = {"name": POD, "namespace": kit.SYSTEM_NAMESPACE, "labels": {**labels, "release-of": "a-test"}}
        self._kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        wait = ("-n", kit.SYSTEM_NAMESPACE, "wait", "--for=condition=Ready", f"pod/{POD}", "--timeout=60s")
        self._kubectl.run(*wait, timeout=70)

    def start(self, *flags: str, failpoint: str = "") -> Process:
        """Start an operator; it stands by."""
        args = [arg.replace("$(POD_NAMESPACE)", kit.SYSTEM_NAMESPACE) for arg in self._container["args"]]
        args += ["--http-port=0", *flags]
        command = shlex.join(["env", f"POOLFLEET_FAILPOINT={failpoint}", *self._container["command"], *args])
        log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115 (Process keeps it)
        where = ("-n", kit.SYSTEM_NAMESPACE, "exec", POD, "-c", self._container["name"])
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        started = Process(self._kubectl.popen(*where, "--", "sh", "-c", f"exec {command}", **options), log)
        self._processes.append(started)
        started.says("everything is listed")
        return started

    def lead(self, operator: Process) -> None:
        """Wait until this one, the only one that runs, leads: at once, for if the Lease is anybody's he is dead."""
        if any(process.code is not None for process in self._processes):
            self._kubectl.run("-n", kit.SYSTEM_NAMESPACE, "delete", "lease", LEASE)
        operator.says("leading as")

    def kill(self) -> None:
        """SIGKILL to all that run; afterwards they are gone."""
        running = [process for process in self._processes if process.code is None]
        if running:
            node.sigkill(self._kubectl.get_json("-n", kit.SYSTEM_NAMESPACE, "pod", POD), "python3")
        gone = lambda: all(process.code is not None for process in running)  # noqa: E731
        kit.await_until(gone, 20, "the operators are gone", interval=0.05)

    def delete(self) -> None:
        """The pod is gone, and whatever runs in it."""
        where = ("-n", kit.SYSTEM_NAMESPACE)
        self._kubectl.run(*where, "delete", "pod", POD, "--ignore-not-found", "--grace-period=1", "--timeout=60s")
        self._kubectl.run(*where, "delete", "lease", LEASE, "--ignore-not-found")


@contextlib.contextmanager
def alone(kubectl: kit.Kubectl) -> Iterator[Operators]:
    """While this lasts, the release has no operator; those that run are the test's."""
    where = ("-n", kit.SYSTEM_NAMESPACE)
    deployment = kubectl.get_json(*where, DEPLOYMENT)
    operators = Operators(kubectl, deployment)
    operators.delete()  # of a run that was cut short
    replicas = max(1, int(deployment["spec"]["replicas"]))
    try:
        kubectl.run(*where, "scale", DEPLOYMENT, "--replicas=0")
        operators.ensure()
        gone = ("wait", "--for=delete", "pods", "-l", "app.kubernetes.io/component=operator,release-of!=a-test")
        kubectl.run(*where, *gone, "--timeout=60s", timeout=70)
        yield operators
    finally:
        operators.delete()
        kubectl.run(*where, "scale", DEPLOYMENT, f"--replicas={replicas}")
        kubectl.run(*where, "rollout", "status", DEPLOYMENT, "--timeout=60s", timeout=70)
