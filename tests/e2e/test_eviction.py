"""A node is drained by the eviction API: one pod of a pool at a time, and no query fails."""

import json
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e import kit, styles
from tests.e2e.guard import guarded

REPLICAS = 2
BUDGET = 24
DRAIN = 10  # seconds

Report = Callable[[str], None]


@pytest.fixture(scope="module")
def pool(kubectl: kit.Kubectl, target: kit.Target, namespace: str) -> Iterator[kit.Pool]:
    """Two pods."""
    pool = kit.Pool(kubectl, namespace, "shop")
    server = {"host": target.login.host, "maxConnections": BUDGET + 3, "headroom": 0}
    pool.apply(target.spec(server=server, replicas=REPLICAS, drain={"timeoutSeconds": DRAIN}))
    pool.ready()
    kit.await_until(lambda: pool.status().get("readyReplicas") == REPLICAS, 60, f"{REPLICAS} pods", interval=0.3)
    yield pool


def evict(pool: kit.Pool, pod: str) -> bool:
    """Ask for the eviction of a pod, as `kubectl drain` does; False if the PodDisruptionBudget forbids it for now."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": pool.namespace},
    }
    path = f"/api/v1/namespaces/{pool.namespace}/pods/{pod}/eviction"
    try:
        pool.kubectl.run("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    except kit.KubectlError as error:
        if "disruption budget" not in str(error):  # 429
            raise
        return False
    return True


def test_pods_are_evicted_one_by_one(target: kit.Target, clients: kit.Clients, pool: kit.Pool, report: Report) -> None:
    before = list(pool.uids())
    refused = 0
    with (
        guarded(target, clients, pool, report, "evictions") as guard,
        styles.at_work(clients, target.through(pool), styles.SAVABLE) as outcomes,
    ):
        # the disruption controller has counted the pods by now, or would refuse the first one, too
        kit.await_until(lambda: evict(pool, before[0]), 20, "the first pod may go")
        begun = time.time()
        for pod in before[1:]:
            while not evict(pool, pod):
                serving = guard.pods.last.serving
                assert serving, "nobody serves"
                refused += 1
                assert time.time() - begun < 60, f"{pod} is never let go: {guard.pods.last}"
                time.sleep(0.2)
            assert len(guard.pods.last.serving) >= REPLICAS - 1
        kit.await_until(lambda: not set(before) & set(guard.pods.last.pods), 60, "the evicted pods are gone")
        kit.await_until(lambda: len(guard.pods.last.serving) == REPLICAS, 60, f"{REPLICAS} pods serve again")
        seconds = time.time() - begun
        least = min(len(moment.serving) for moment in guard.pods.moments)
    report(
        f"{REPLICAS} pods evicted one by one in {seconds:.0f} s: the second was refused {refused} times before the "
        f"first was replaced; at least {least} served at every moment"
    )
    for outcome in outcomes:
        report(f"evictions, {outcome}")
        assert outcome.errors == [], f"{outcome}: {outcome.errors[:5]}"
    assert refused, "the PodDisruptionBudget had nothing to say"
    assert least >= REPLICAS - 1
