"""What tests do on the cluster's node itself, over `docker exec`: kill a pod's process, give an image another name."""

import subprocess

from tests.e2e.cluster import Manifest

NODE = "poolfleet-control-plane"

# A pod's UID is in the cgroup of its processes, with dashes or underscores as the kubelet's cgroup driver has it.
_SIGKILL = r"""
for pid in $(pgrep -x "$2"); do
  if tr _ - <"/proc/$pid/cgroup" | grep -q "pod$1"; then kill -9 "$pid" && echo "$pid"; fi
done
"""


def on_node(script: str, *args: str) -> str:
    """Run a shell script on the node and return what it prints. Raises AssertionError with its words if it fails."""
    command = ["docker", "exec", NODE, "sh", "-c", script, "sh", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"on {NODE}: {done.stderr.strip() or done.stdout.strip()}"
    return done.stdout


def sigkill(pod: Manifest, process: str) -> None:
    """SIGKILL to the processes of that name (as in `ps -o comm`) in a pod. Raises AssertionError if there is none."""
    killed = on_node(_SIGKILL, pod["metadata"]["uid"], process).split()
    assert killed, f"no process {process} in pod {pod['metadata']['name']}"


def tag_image(image: str, name: str) -> None:
    """Give the node's image (repository:tag of Docker Hub's form) one more name."""
    on_node('ctr -n k8s.io images tag --force "docker.io/$1" "docker.io/$2"', image, name)


def untag_image(name: str) -> None:
    """Take that name away again."""
    on_node('ctr -n k8s.io images rm "docker.io/$1"', name)
