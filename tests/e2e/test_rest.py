"""A fleet at rest costs the API server no write at all, and one with steady clients hardly any."""

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e import kit

REST = 120  # seconds
STEADY = 42  # seconds
APART = 15  # seconds between two status writes

RESOURCES = (
    "pgpools",
    "pgservers",
    "deployments",
    "pods",
    "services",
    "secrets",
    "poddisruptionbudgets",
    "networkpolicies",
)

Report = Callable[[str], None]
Writes = Counter[tuple[str, str, str]]  # by resource, subresource and verb


@pytest.fixture(scope="module")
def pool(kubectl: kit.Kubectl, target: kit.Target, namespace: str) -> kit.Pool:
    """A pool with all that the operator looks at again and again: its server's limits, a Secret without the label."""
    kubectl.apply(kit.basic_auth(namespace, "guest", "guest", "not watched", watch=False))
    server = {
        "host": target.login.host,
        "adminSecretRef": {"name": target.ADMIN_SECRET},
        "discoveryIntervalSeconds": 30,
        "headroom": 60,
    }
    pool = kit.Pool(kubectl, namespace, "shop")
    pool.apply(target.spec(server=server, users=[{"secretRef": {"name": name}} for name in (target.SECRET, "guest")]))
    pool.ready()
    return pool


def test_at_rest_nothing_is_written(kubectl: kit.Kubectl, pool: kit.Pool, report: Report) -> None:
    before = await_rest(kubectl)
    begun = time.time()
    while (seconds := time.time() - begun) < REST:
        time.sleep(5)
        assert writes(kubectl) - before == Counter(), f"after {seconds:.0f} s"
    report(f"at rest for {seconds:.0f} s: no write to {', '.join(RESOURCES)}")
    assert pool.conditions()["Ready"]["status"] == "True"


def test_steady_clients_are_worth_one_status_write_in_15_seconds(
    pool: kit.Pool, target: kit.Target, clients: kit.Clients, report: Report
) -> None:
    with Changes(pool, "pgpool") as of_pool, Changes(pool, "pgserver") as of_server:
        load = ("--clients", "12", "--query-ms", "200", "--interval-ms", "200", "--duration", f"{STEADY}")
        summary = clients.run("steady", target.through(pool), *load)[-1]["summary"]
    assert summary["failed"] == 0
    for what, changes in (("PgPool", of_pool), ("PgServer", of_server)):
        gaps = [later - earlier for earlier, later in zip(changes.times, changes.times[1:], strict=False)]
        report(f"{summary['queries']} queries in {STEADY} s: {len(changes.times)} changes of the {what}")
        assert len(changes.times) <= STEADY // APART + 1
        assert min(gaps, default=APART) >= APART - 1
    assert len(of_pool.times) >= 2  # its numbers do move


def writes(kubectl: kit.Kubectl) -> Writes:
    """Writes to RESOURCES that the API server has answered since its start."""
    return Counter({key: count for key, count in kubectl.writes().items() if key[0] in RESOURCES})


def await_rest(kubectl: kit.Kubectl) -> Writes:
    """Wait until twenty seconds have gone by without a write, for live numbers move at most every 15 s; the writes
    until then."""
    seen = [writes(kubectl)]

    def unchanged() -> bool:
        seen.append(writes(kubectl))
        return seen[-1] == seen[-2]

    kit.await_until(unchanged, 100, "twenty seconds without a write", interval=20)
    return seen[-1]


class Changes:
    """When an object of the pool's name has changed, as a watch shows it."""

    def __init__(self, pool: kit.Pool, kind: str) -> None:
        version = ("-o", "jsonpath={.metadata.resourceVersion}{'\\n'}")
        self._watch = pool.kubectl.popen(
            "-n", pool.namespace, "get", kind, pool.name, "--watch", *version, stdout=subprocess.PIPE
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._lines: list[float] = []

    @property
    def times(self) -> list[float]:
        """Seconds since the epoch of each change; the first line of a watch is how it was."""
        return self._lines[1:]

    def __enter__(self) -> "Changes":
        self._thread.start()
        kit.await_until(lambda: self._lines, 20, "a watch")
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.kill()
        self._thread.join(10)

    def _read(self) -> None:
        assert self._watch.stdout is not None
        with self._watch:
            for _ in self._watch.stdout:
                self._lines.append(time.time())
