"""The Helm release of the operator, as `make cluster` installs it."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster import CONTEXT, ROOT, SYSTEM_NAMESPACE, Kubectl, operator_image

RELEASE = "poolfleet"
CACHE = os.environ.get("POOLFLEET_CACHE", str(Path.home() / ".cache/poolfleet"))
BIN = os.environ.get("POOLFLEET_BIN", f"{CACHE}/kind/bin")


@dataclass(frozen=True)
class Images:
    """What a release is made of."""

    operator: str
    pgbouncer: str

    @classmethod
    def of_release(cls, kubectl: Kubectl) -> "Images":
        """The images of the release as it stands."""
        pgbouncer = json.loads(helm("get", "values", RELEASE, "--all", "-o", "json"))["fleet"]["image"]
        return cls(operator_image(kubectl), f"{pgbouncer['repository']}:{pgbouncer['tag']}")

    def install(self, *arguments: str) -> None:
        """Install the release, or upgrade it, with the script that `make cluster` uses."""
        run("hack/install.sh", self.operator, self.pgbouncer, *arguments)


def run(program: str, *arguments: str) -> str:
    """Run a program against the project's cluster, with the checkout as working directory; its standard output."""
    folders = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "KUBECONFIG": str(ROOT / ".cluster/kubeconfig"), "PATH": folders}
    command = [str(ROOT / program) if "/" in program else program, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, f"{program}: {done.stderr.strip() or done.stdout.strip()}"
    return done.stdout


def helm(*arguments: str) -> str:
    """Run helm on the namespace of the release; its standard output."""
    return run("helm", "--kube-context", CONTEXT, "--namespace", SYSTEM_NAMESPACE, *arguments)
