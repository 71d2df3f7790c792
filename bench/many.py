"""Ten thousand clients that stay connected to one PgPool, of which one in twenty is active at a time."""

import secrets
from collections import Counter
from typing import Any, Final

from bench import contenders, proc, wire
from bench.contenders import Fleet, Ground, Workload
from bench.figures import Figure, spread
from bench.load import Load
from bench.sampler import Sampler, counted
from poolfleet.api import names
from tests.e2e import kit

NAMESPACE: Final = "bench-many"
WORKLOAD: Final = Workload(("bench_many",), ("bench_many",))
PROGRAM: Final = kit.ROOT / "bench/wire.py"
CLIENTS: Final = 10000
WARM: Final = wire.TURNS  # clients before the first measurement
REPLICAS: Final = 2
LOGINS: Final = 120  # seconds that they may take to log in

Memory = dict[str, dict[str, float]]
"""MiB by field (VmRSS, VmHWM, RssAnon), by pod"""


def measure(kubectl: kit.Kubectl, seconds: int, clients: int = CLIENTS) -> list[Figure]:
    """Let them come, and give each its turn within `seconds`; about a minute more."""
    kubectl.delete_namespace(NAMESPACE)
    kubectl.namespace(NAMESPACE)
    try:
        postgres = kit.Postgres(kubectl, NAMESPACE).ensure()
        ground = Ground(kubectl, postgres, contenders.pgbouncer_image(kubectl), secrets.token_urlsafe(18))
        pod = kit.Clients(kubectl, NAMESPACE).ensure()
        postgres.make("bench_many", ground.password)
        fleet = Fleet(ground, WORKLOAD, replicas=REPLICAS, maxClientConnections=clients)
        fleet.start()
        with load_of(pod, ground, fleet, WARM, 1) as load:  # server connections and their buffers are there then
            load.told(30)
            load.say("")
            load.summary(60)
        before = memory(fleet.pool)
        with Sampler(postgres) as sampler, load_of(pod, ground, fleet, clients, seconds) as load:
            logins = load.told(LOGINS)
            idle, on_pods = memory(fleet.pool), clients_of(fleet.pool)
            load.say("")
            told = load.summary(seconds + 90)
        after = memory(fleet.pool)
        agents = memory(fleet.pool, names.AGENT_CONTAINER, proc.AGENT)
        peak = max(n for _, n in counted(sampler.samples, WORKLOAD.users, load.began, float("inf")))
        fleet.stop()
    finally:
        kubectl.delete_namespace(NAMESPACE, wait=False)
    return told_of(logins, told, peak, on_pods, (before, idle, after), agents)


def memory(pool: kit.Pool, container: str = names.PGBOUNCER_CONTAINER, process: str = proc.PGBOUNCER) -> Memory:
    """Memory of this process, in every pod."""
    where = (pool.kubectl, pool.namespace)
    return {pod: proc.memory(proc.read(*where, pod, container, process, "status")) for pod in pool.uids()}


def clients_of(pool: kit.Pool) -> dict[str, int]:
    """Clients by pod, as PgBouncer counts them."""
    lists = {pod: {row["list"]: row["items"] for row in rows} for pod, rows in pool.show("LISTS").items()}
    return {pod: int(row["used_clients"] or 0) for pod, row in lists.items()}


def per_client(before: Memory, after: Memory, clients: dict[str, int]) -> list[float]:
    """KiB that a pod's PgBouncer has grown by for each of its clients, by pod."""
    return [1024 * (after[pod]["VmRSS"] - before[pod]["VmRSS"]) / count for pod, count in clients.items() if count]


def load_of(pod: kit.Clients, ground: Ground, fleet: Fleet, clients: int, seconds: int) -> Load:
    """bench/wire.py many against the pool's Service."""
    ((user,), (database,)) = WORKLOAD.users, WORKLOAD.databases
    where = ("--host", f"{fleet.name}.{NAMESPACE}.svc", "--user", user, "--database", database)
    return Load(pod, PROGRAM, ground.password, "many", *where, "--clients", str(clients), "--duration", str(seconds))


def told_of(
    logins: dict[str, Any],
    told: dict[str, Any],
    peak: int,
    on_pods: dict[str, int],
    rss: tuple[Memory, Memory, Memory],
    agents: Memory,
) -> list[Figure]:
    """What bench/wire.py has told, and the memory of PgBouncer (before, with all connected, after) and agents."""
    clients, served, come = told["clients"], told["served"], logins["connected"]
    queries = told["queries"]
    errors = Counter(come["errors"]) + Counter(queries["errors"])
    refused = errors[wire.REFUSED]
    failed = errors.total() - refused
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(errors.items()))
    sizes = " / ".join(spread([pod["VmRSS"] for pod in one.values()], unit=" MiB") for one in rss)
    return [
        Figure(
            "clients connected and served",
            f"{served} of {clients}; refused {refused}, failed {failed}",
            "all, 0, 0",
            (served, refused, failed) == (clients, 0, 0),
            kinds or f"{clients // wire.TURNS} are active at a time, each twice a second; all have their turn",
        ),
        Figure(
            "time until all were connected",
            f"{logins['seconds']:.1f} s",
            note=f"{wire.LOGINS} at a time, by SCRAM; one login p50 {come['p50_ms']} ms, p99 {come['p99_ms']} ms",
        ),
        Figure(
            "a query of 5–10 ms of an active client, p50 / p99",
            f"{queries['p50_ms']} / {queries['p99_ms']} ms",
            note=f"{queries['served']} queries in {told['seconds']:.0f} s",
        ),
        Figure("peak server connections", str(peak), f"<= {contenders.BUDGET}", peak <= contenders.BUDGET),
        Figure(
            "memory of PgBouncer per connected client",
            spread(per_client(rss[0], rss[1], on_pods), unit=" KiB"),
            note=f"VmRSS with all connected less VmRSS before; clients by pod: {', '.join(map(str, on_pods.values()))}",
        ),
        Figure(
            "RSS of PgBouncer: before / all connected / after",
            sizes,
            note=f"VmRSS; median and range of {REPLICAS} pods",
        ),
        Figure(
            "RSS of the agent beside it, largest ever",
            spread([pod["VmHWM"] for pod in agents.values()], unit=" MiB"),
        ),
    ]
