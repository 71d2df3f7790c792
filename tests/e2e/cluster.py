"""kubectl against the project's kind cluster, and waiting for what one wishes to see. Standard library only."""

import base64
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from poolfleet.api import names

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = "kind-poolfleet"
SYSTEM_NAMESPACE = "poolfleet-system"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
"""Namespace labels under which the API server refuses every pod that is not restricted."""
WRITES = ("POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION")

Manifest = dict[str, Any]
T = TypeVar("T")


def await_until(
    predicate: Callable[[], T],
    timeout: float,
    what: str,
    *,
    interval: float = 0.1,
    tolerate: tuple[type[Exception], ...] = (),
) -> T:
    """Poll `predicate` until it is truthy and return what it said; AssertionError with `what` after `timeout` seconds.

    An exception in `tolerate` means "not yet".
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            if answer := predicate():
                return answer
            last: object = answer
        except tolerate as error:
            last = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}; last seen: {last!r}")
        time.sleep(interval)


class KubectlError(Exception):
    """kubectl said no; the message holds the command and its standard error."""


class Kubectl:
    """kubectl against the project's kind cluster, and never against another one."""

    def __init__(self, kubeconfig: Path = ROOT / ".cluster/kubeconfig") -> None:
        if not kubeconfig.exists():
            raise KubectlError(f"there is no {kubeconfig.relative_to(ROOT)}: run `make cluster`")
        # the project's own kubectl, where the Makefile has not put it on PATH
        cache = os.environ.get("POOLFLEET_CACHE", str(Path.home() / ".cache/poolfleet"))
        folder = os.environ.get("POOLFLEET_BIN", f"{cache}/kind/bin")
        self._env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
        self._base = ["kubectl", "--kubeconfig", str(kubeconfig)]
        current = self.run("config", "current-context").strip()
        if current != CONTEXT:
            raise KubectlError(f"the kubeconfig's context is {current!r}; this works with {CONTEXT!r} only")
        self._base += ["--context", CONTEXT]

    def popen(self, *args: str, **options: Any) -> "subprocess.Popen[str]":
        """Start kubectl in the background, with subprocess.Popen's options."""
        return subprocess.Popen([*self._base, *args], env=self._env, text=True, **options)

    def run(self, *args: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run kubectl and return its standard output; KubectlError if it fails or takes over `timeout` seconds."""
        source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        with self.popen(*args, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                out, err = process.communicate(stdin, timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise KubectlError(f"kubectl {' '.join(args)}: no end after {timeout:g} s") from None
        if process.returncode:
            raise KubectlError(f"kubectl {' '.join(args)}: {err.strip() or out.strip()}")
        return out

    def apply(self, *manifests: Manifest | Path) -> None:
        """`kubectl apply` of objects or files, in order, as one call each."""
        for manifest in manifests:
            if isinstance(manifest, Path):
                self.run("apply", "-f", str(manifest))
            else:
                self.run("apply", "-f", "-", stdin=json.dumps(manifest))

    def get_json(self, *args: str) -> Manifest:
        """`kubectl get … -o json`."""
        found: Manifest = json.loads(self.run("get", *args, "-o", "json"))
        return found

    def find(self, *args: str) -> Manifest | None:
        """`kubectl get … -o json` of one object; None if it does not exist."""
        text = self.run("get", *args, "--ignore-not-found", "-o", "json")
        found: Manifest | None = json.loads(text) if text.strip() else None
        return found

    def patch(self, namespace: str, resource: str, patch: Manifest, *more: str) -> None:
        """A merge patch of `resource` (kind/name)."""
        self.run("-n", namespace, "patch", resource, "--type=merge", "-p", json.dumps(patch), *more)

    def exec(
        self,
        namespace: str,
        pod: str,
        *command: str,
        container: str = "",
        stdin: str | None = None,
        timeout: float = 120,
    ) -> str:
        """Run a command in a pod and return its standard output."""
        where = ["-n", namespace, "exec", *(["-i"] if stdin is not None else []), pod]
        args = [*where, *(["-c", container] if container else []), "--", *command]
        try:
            return self.run(*args, stdin=stdin, timeout=timeout)
        except KubectlError as error:
            # The node's runc could not start the process, seen once in hundreds of calls: nothing of it has run.
            if "unable to start container process" not in str(error):
                raise
            return self.run(*args, stdin=stdin, timeout=timeout)

    def namespace(self, name: str, labels: Mapping[str, str] = RESTRICTED) -> None:
        """Make a namespace; one of that name that is just going is waited for."""
        if ((self.find("namespace", name) or {}).get("status") or {}).get("phase") == "Terminating":
            self.run("wait", "--for=delete", f"namespace/{name}", "--timeout=120s", timeout=130)
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels)}})

    def delete_namespace(self, name: str, wait: bool = True) -> None:
        """Delete a namespace; wait until nothing of it is left or, without `wait`, until its pools' pods are gone."""
        if self.find("namespace", name) is None:
            return
        # The pools' pods first: a namespace that still has some is looked at again after half of their grace period.
        self.run("-n", name, "delete", "pgpools", "--all", "--timeout=60s", timeout=70)
        pods = ("pods", "-l", names.LABEL_POOL, "--for=delete", "--timeout=120s")
        self.run("-n", name, "wait", *pods, timeout=130)
        waiting = ("--timeout=180s",) if wait else ("--wait=false",)
        self.run("delete", "namespace", name, "--ignore-not-found", *waiting, timeout=190)

    def secret(self, namespace: str, name: str) -> dict[str, str]:
        """A Secret's data, as text."""
        data = self.get_json("-n", namespace, "secret", name).get("data") or {}
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def writes(self) -> Counter[tuple[str, str, str]]:
        """Writes that the API server has answered since its start, by (resource, subresource, verb)."""
        counts: Counter[tuple[str, str, str]] = Counter()
        for line in self.run("get", "--raw", "/metrics").splitlines():
            if not line.startswith("apiserver_request_total{"):
                continue
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["verb"] in WRITES:
                counts[labels["resource"], labels["subresource"], labels["verb"]] += int(float(line.rpartition(" ")[2]))
        return counts


def basic_auth(namespace: str, name: str, username: str, password: str, watch: bool = True) -> Manifest:
    """A Secret with a login; with `watch` its changes are seen at once."""
    labels = {names.LABEL_WATCH: "true"} if watch else {}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "type": "kubernetes.io/basic-auth",
        "stringData": {"username": username, "password": password},
    }


def operator_image(kubectl: Kubectl) -> str:
    """The operator's image that the cluster has: the installed release's, else the checkout's."""
    deployment = kubectl.find("-n", SYSTEM_NAMESPACE, "deployment", "poolfleet")
    if deployment is not None:
        return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
    return checkout_image("operator")


def checkout_image(name: str) -> str:
    """The full name of an image of the checkout, as hack/images.sh makes it and `make cluster` loads it."""
    images = subprocess.run([ROOT / "hack/images.sh", "names", name], check=True, text=True, capture_output=True)
    return images.stdout.strip()
