"""A fleet at rest costs the API server no write at all. (One with steady clients: test_serving.py.)"""

import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e import kit

REST = 120  # seconds

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
    # The agents' first look at the server leaves a connection that PgBouncer closes when it was idle for a minute.
    kit.await_until(lambda: pool.status()["connections"]["inUse"] == 0, 120, "no connection is left", interval=2)
    return pool


def test_at_rest_nothing_is_written(kubectl: kit.Kubectl, pool: kit.Pool, report: Report) -> None:
    before = await_rest(kubectl)
    begun = time.time()
    while (seconds := time.time() - begun) < REST:
        time.sleep(5)
        assert writes(kubectl) - before == Counter(), f"after {seconds:.0f} s"
    report(f"at rest for {seconds:.0f} s: no write to {', '.join(RESOURCES)}")
    assert pool.conditions()["Ready"]["status"] == "True"


def writes(kubectl: kit.Kubectl) -> Writes:
    """Writes to RESOURCES that the API server has answered since its start."""
    return Counter({key: count for key, count in kubectl.writes().items() if key[0] in RESOURCES})


def await_rest(kubectl: kit.Kubectl) -> Writes:
    """Wait until twenty seconds have gone by without a write, for live numbers move at most every 15 s; the writes
    until then."""
    seen, since = writes(kubectl), time.time()

    def quiet() -> bool:
        nonlocal seen, since
        before, seen = seen, writes(kubectl)
        since = since if seen == before else time.time()
        return time.time() - since >= 20

    kit.await_until(quiet, 120, "twenty seconds without a write", interval=2)
    return seen
