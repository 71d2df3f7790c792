"""What an agent weighs, and what it costs."""

import time
from concurrent.futures import ThreadPoolExecutor

from bench import proc
from bench.figures import Figure, spread
from bench.ground import NAMESPACE, PGBENCH, POOL, ROWS, Ground
from poolfleet.api import names
from tests.e2e import kit

GOAL = 35  # MiB
CLIENTS = 500
LOGINS = 8  # seconds that they are given to log in
PAUSES = f"""\\set id random(1, {ROWS * 100_000})
\\sleep 500 ms
SELECT abalance FROM pgbench_accounts WHERE aid = :id;
"""


def measure(ground: Ground, seconds: int) -> list[Figure]:
    """Memory of the agents of all pools that are there; CPU of one, at rest and with 500 clients, `seconds` each."""
    kubectl = ground.kubectl
    where = ("-A", "pods", "-l", names.LABEL_POOL, "--field-selector=status.phase=Running")
    pods = [p["metadata"] for p in kubectl.get_json(*where)["items"] if "deletionTimestamp" not in p["metadata"]]
    rest = [proc.memory(_read(kubectl, pod["namespace"], pod["name"], "status"))["VmRSS"] for pod in pods]
    idle = _cpu(ground, seconds)
    kubectl.exec(NAMESPACE, PGBENCH, "sh", "-c", "cat >/tmp/pauses.sql", stdin=PAUSES)
    with ThreadPoolExecutor(1) as executor:
        options = ("-n", "-f", "/tmp/pauses.sql", "-c", str(CLIENTS), "-j", "4", "-T", str(LOGINS + seconds + 2))
        load = executor.submit(ground.pgbench, ground.hosts[POOL], *options)
        time.sleep(LOGINS)
        busy = _cpu(ground, seconds)
        load.result()
    peak = proc.memory(_read(kubectl, NAMESPACE, ground.pod, "status"))["VmHWM"]
    return [
        Figure(
            "agent RSS, at rest",
            spread(rest, ".1f", " MiB"),
            f"<= {GOAL} MiB",
            max(rest) <= GOAL,
            f"VmRSS of the {len(rest)} agents of the cluster's pools; CloudNativePG's in-pod manager: 50 MiB",
        ),
        Figure(
            "agent RSS, largest ever",
            f"{peak:.1f} MiB",
            f"<= {GOAL} MiB",
            peak <= GOAL,
            f"VmHWM of one agent after {CLIENTS} clients",
        ),
        Figure("agent CPU, at rest", f"{idle:.2f} % of a core", note=f"over {seconds} s, probes and samples included"),
        Figure(
            f"agent CPU, {CLIENTS} clients",
            f"{busy:.2f} % of a core",
            note=f"over {seconds} s, two queries per client and second through that pod",
        ),
    ]


def _cpu(ground: Ground, seconds: int) -> float:
    """Percent of a core that the agent of the pool's pod uses over so many seconds."""
    before, begun = proc.cpu_seconds(_read(ground.kubectl, NAMESPACE, ground.pod, "stat")), time.monotonic()
    time.sleep(seconds)
    after = proc.cpu_seconds(_read(ground.kubectl, NAMESPACE, ground.pod, "stat"))
    return 100 * (after - before) / (time.monotonic() - begun)


def _read(kubectl: kit.Kubectl, namespace: str, pod: str, file: str) -> str:
    return proc.read(kubectl, namespace, pod, names.AGENT_CONTAINER, proc.AGENT, file)
