"""What it costs the operator to poll 200 agents: its own poller, against stubs that publish as agents do.

Both run in one pod with the operator's image, in two processes: the program is bench/stubs.py.
"""

import json

from bench.figures import Figure
from tests.e2e import kit

NAMESPACE = "bench-polling"
AGENTS = 200
PROGRAM = kit.ROOT / "bench/stubs.py"


def measure(kubectl: kit.Kubectl, rest: int, busy: int) -> list[Figure]:
    """CPU and memory of the poller, at rest for `rest` seconds and with news from everybody for `busy` seconds."""
    kubectl.namespace(NAMESPACE)
    try:
        clients = kit.Clients(kubectl, NAMESPACE).ensure()
        options = ("--agents", str(AGENTS), "--rest", str(rest), "--busy", str(busy))
        command = ("python3", "-c", PROGRAM.read_text(), *options)
        result = json.loads(kubectl.exec(NAMESPACE, clients.POD, *command, timeout=rest + busy + 60))
    finally:
        kubectl.run("delete", "namespace", NAMESPACE, "--wait=false")
    return [
        Figure(
            f"polling {AGENTS} agents at rest",
            f"{result['rest']['cpu']:.2f} % of a core",
            note=f"{result['rest']['answers']} answers in {result['rest']['seconds']:.0f} s: each is held for 25 s",
        ),
        Figure(
            f"polling {AGENTS} agents, all with news",
            f"{result['busy']['cpu']:.2f} % of a core",
            note=f"{result['busy']['answers']} answers in {result['busy']['seconds']:.0f} s: live numbers move all the "
            "time, and are told every 2 s at most; without the reconciliations that follow",
        ),
        Figure(
            f"memory for polling {AGENTS} agents",
            f"{result['mib']:.1f} MiB",
            note=f"RSS {result['before']:.1f} MiB before the first, {result['after']:.1f} MiB at the end",
        ),
    ]
