"""The pod `clients`, and the programs of hack/load in it."""

import contextlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.e2e.cluster import ROOT, Kubectl, KubectlError, Manifest, checkout_image
from tests.e2e.database import Login

PROGRAMS = ROOT / "hack/load"


class Running:
    """A program of hack/load in the clients' pod."""

    def __init__(self, process: "subprocess.Popen[str]", out: Any, err: Any, program: str) -> None:
        self._process, self._out, self._err, self._program = process, out, err, program
        self._lines: list[Manifest] = []
        self._read = 0  # bytes

    def lines(self) -> list[Manifest]:
        """What it has printed so far."""
        with Path(self._out.name).open("rb") as printed:
            printed.seek(self._read)
            text = printed.read()
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        self._lines += [json.loads(line) for line in text.splitlines()]
        return self._lines

    def wait(self, timeout: float = 120) -> list[Manifest]:
        """Wait until it has ended by itself, and return all lines. Raises KubectlError if it failed."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise KubectlError(f"{self._program}: no end after {timeout:g} s") from None
        finally:
            self.hang_up()
        lines = self.lines()
        if self._process.returncode:
            raise KubectlError(f"{self._program}: {Path(self._err.name).read_text().strip()}; last lines: {lines[-3:]}")
        return lines

    def stop(self, timeout: float = 60) -> list[Manifest]:
        """End it by closing its standard input (steady and sampler with --until-eof); return all lines."""
        self.hang_up()
        return self.wait(timeout)

    def hang_up(self) -> None:
        """Tell it to end, as `stop` does, and wait for nothing."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it has ended already; its exit code says how
                # a line more, which nobody reads: kubectl sends the end within 60 s of the last byte, or never
                self._process.stdin.write("\n")
                self._process.stdin.close()


class Clients:
    """A pod from which programs connect, of the image `clients`: Python and Go drivers as users have them."""

    POD = "clients"

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self.kubectl = kubectl
        self.namespace = namespace

    def ensure(self) -> "Clients":
        """The pod is there and runs."""
        if self.kubectl.find("-n", self.namespace, "pod", self.POD) is None:
            self.kubectl.apply(self._manifest())
        wait = ("-n", self.namespace, "wait", "--for=condition=Ready", f"pod/{self.POD}", "--timeout=60s")
        self.kubectl.run(*wait, timeout=70)
        return self

    def run(self, program: str, login: Login, *options: str, timeout: float = 120) -> list[Manifest]:
        """Run hack/load/`program` to its end; return the JSON lines that it printed."""
        return self.start(program, login, *options).wait(timeout)

    def start(self, program: str, login: Login, *options: str) -> Running:
        """Start hack/load/`program`: the checkout's own .py file, or the Go program that the image has."""
        source = PROGRAMS / f"{program}.py"
        # not `python3 -`: standard input is for the password, and its end for "stop"
        how = ("python3", "-c", source.read_text()) if source.exists() else (program,)
        command = ("exec", "-i", self.POD, "--", *how, *login.options(), *options)
        out, err = tempfile.NamedTemporaryFile("w+"), tempfile.NamedTemporaryFile("w+")  # noqa: SIM115 (Running keeps them)
        process = self.kubectl.popen("-n", self.namespace, *command, stdin=subprocess.PIPE, stdout=out, stderr=err)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already; Running.wait says why
            process.stdin.write(login.password + "\n")
            process.stdin.flush()
        return Running(process, out, err, program)

    def _manifest(self) -> Manifest:
        container = {
            "name": "clients",
            "image": checkout_image("clients"),
            "command": ["sleep", "infinity"],
            "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.POD, "namespace": self.namespace},
            "spec": {
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 1,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [container],
            },
        }
