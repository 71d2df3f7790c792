"""Query cancels go to the Service, and so to any pod: all of them reach their query, also while a pod drains."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.e2e import kit

REPLICAS = 4
BUDGET = 40
DRAIN = 40  # seconds: the pod drains for the whole test

Report = Callable[[str], None]


@pytest.fixture(scope="module")
def pool(kubectl: kit.Kubectl, target: kit.Target, namespace: str) -> Iterator[kit.Pool]:
    """Four pods; more connections than there will be queries, or a cancel would find a client that waits."""
    pool = kit.Pool(kubectl, namespace, "shop")
    server = {"host": target.login.host, "maxConnections": BUDGET + 3, "headroom": 0}
    pool.apply(target.spec(server=server, replicas=REPLICAS, drain={"timeoutSeconds": DRAIN}))
    pool.ready()
    kit.await_until(lambda: pool.status().get("readyReplicas") == REPLICAS, 60, f"{REPLICAS} pods", interval=0.3)
    yield pool


def start(clients: kit.Clients, login: kit.Login, part: int, *options: str) -> dict[str, kit.Running]:
    """All three drivers cancel, on few connections at a time, until each has done its part (pgx one more)."""
    options = ("--cancels", f"{part}", *options)
    return {
        "psycopg": clients.start("cancels", login, "--driver", "psycopg", "--clients", "4", *options),
        "asyncpg": clients.start("cancels", login, "--driver", "asyncpg", "--clients", "3", *options),
        "pgx": clients.start("pgxpool", login, "--clients", "3", "--cancels", f"{part + 1}"),
    }


def tell(report: Report, when: str, lines: dict[str, list[kit.Manifest]]) -> int:
    """Report what became of the cancels; returns how many reached their query. Raises AssertionError if one did not."""
    summaries = {driver: each[-1]["summary"] for driver, each in lines.items()}
    reached, lost = (sum(int(summary[what]) for summary in summaries.values()) for what in ("cancelled", "lost"))
    slowest = max(float(summary["slowest_s"]) for summary in summaries.values())
    each = ", ".join(f"{driver} {summary['cancelled']}" for driver, summary in summaries.items())
    report(f"cancels through the Service of {REPLICAS} pods{when}: {reached} of {reached + lost} reached their query "
           f"({each}), slowest {slowest:.2f} s")  # fmt: skip
    errors = Counter(f"{driver}: {line['error']}" for driver, each in lines.items() for line in each if "error" in line)
    assert lost == 0, "\n".join(f"{count} × {words}" for words, count in errors.items())
    return reached


def test_a_hundred_cancels_reach_their_query(
    target: kit.Target, clients: kit.Clients, pool: kit.Pool, report: Report
) -> None:
    running = start(clients, target.through(pool), 33)
    assert tell(report, "", {driver: program.wait() for driver, program in running.items()}) == 100


def test_they_do_while_a_pod_drains(target: kit.Target, clients: kit.Clients, pool: kit.Pool, report: Report) -> None:
    login = target.through(pool)
    busy = ("--driver", "psycopg", "--clients", "8", "--stay", "--after-ms", "150")
    staying = clients.start("cancels", login, *busy)
    pod = kit.await_until(lambda: crowded(pool), 20, "a pod with three of the clients")
    pool.kubectl.run("-n", pool.namespace, "delete", "pod", pod, "--wait=false")
    kit.await_until(lambda: pod not in endpoints(pool), 20, "the Service leaves it out")
    before = queries(pool, pod)
    kit.await_until(lambda: queries(pool, pod) >= before + 20, 30, "it serves queries that are cancelled", interval=1)
    lines = {driver: program.wait() for driver, program in start(clients, login, 33).items()}
    lines["psycopg on connections that stay"] = staying.stop()
    assert tell(report, " while one drains", lines) >= 100
    assert pod in pool_pods(pool), "it has drained to the end"


def crowded(pool: kit.Pool) -> str:
    """A pod with at least three clients, the agent's own left out; "" if there is none."""
    for pod, rows in pool.show("POOLS").items():
        if sum(int(row["cl_active"] or 0) for row in rows if row["database"] != "pgbouncer") >= 3:
            return pod
    return ""


def endpoints(pool: kit.Pool) -> set[str]:
    """The pods that the Service sends new connections to."""
    where = ("-n", pool.namespace, "endpointslices", "-l", f"kubernetes.io/service-name={pool.name}")
    return {
        endpoint["targetRef"]["name"]
        for each in pool.kubectl.get_json(*where)["items"]
        for endpoint in each.get("endpoints") or ()
        if endpoint["conditions"].get("ready")
    }


def pool_pods(pool: kit.Pool) -> set[str]:
    """All pods, those included that drain."""
    return {pod["metadata"]["name"] for pod in pool.pods(all=True)}


def queries(pool: kit.Pool, pod: str) -> int:
    """Queries that a pod has seen."""
    rows = pool.show_on(pod, "STATS")
    return sum(int(row["total_query_count"] or 0) for row in rows if row["database"] != "pgbouncer")
