"""The operator's own metrics, in a registry of their own."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

from poolfleet.kube.client import Call

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice as many lines, and nobody asks for them
REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

RECONCILE_TOTAL: Final = Counter(
    "poolfleet_reconcile",
    "Reconciliations by kind and result (ok or an error class).",
    ["kind", "result"],
    registry=REGISTRY,
)
RECONCILE_SECONDS: Final = Histogram(
    "poolfleet_reconcile_seconds",
    "Seconds of one reconciliation.",
    ["kind"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
API_REQUESTS: Final = Counter(
    "poolfleet_api_requests",
    "Requests to the API server, watches aside; code 0 is no answer.",
    ["verb", "kind", "code"],
    registry=REGISTRY,
)
API_SECONDS: Final = Counter(
    "poolfleet_api_seconds", "Seconds spent waiting for the API server.", ["verb", "kind"], registry=REGISTRY
)
WATCH_EVENTS: Final = Counter("poolfleet_watch_events", "Events of the watches.", ["kind", "type"], registry=REGISTRY)
RESYNC_FOUND: Final = Counter(
    "poolfleet_resync_found", "Changes that no watch had shown, found by listing.", ["kind", "what"], registry=REGISTRY
)
QUEUE_DEPTH: Final = Gauge("poolfleet_queue_depth", "Keys that are due and wait for a worker.", registry=REGISTRY)
QUEUE_OLDEST: Final = Gauge("poolfleet_queue_oldest_seconds", "Age of the longest waiting key.", registry=REGISTRY)
QUEUE_ADDS: Final = Gauge("poolfleet_queue_adds", "How often keys were added since the start.", registry=REGISTRY)
LEADER: Final = Gauge("poolfleet_leader", "1 in the process that leads.", registry=REGISTRY)
AGENTS: Final = Gauge("poolfleet_agents", "Pods whose agent is polled.", registry=REGISTRY)
AGENTS_FAILING: Final = Gauge("poolfleet_agents_failing", "Those that do not answer as they should.", registry=REGISTRY)
AGENT_ANSWERS: Final = Gauge("poolfleet_agent_answers", "Answers of agents since the start.", registry=REGISTRY)
EVENT_FAILURES: Final = Gauge("poolfleet_event_failures", "Events that could not be written.", registry=REGISTRY)
LOOP_LAG: Final = Gauge(
    "poolfleet_event_loop_lag_seconds", "By how much the event loop was late last.", registry=REGISTRY
)

POSTS: Final = Counter(
    "poolfleet_directive_posts",
    "Directives sent to agents by HTTP, by result: taken, refused, failed (the annotation brings those).",
    ["result"],
    registry=REGISTRY,
)


def _of_server(name: str, meaning: str) -> Gauge:
    return Gauge(f"poolfleet_{name}_connections", meaning, ["namespace", "server"], registry=REGISTRY)


def _of_pool(name: str, meaning: str) -> Gauge:
    return Gauge(f"poolfleet_{name}_connections", meaning, ["namespace", "server", "pool"], registry=REGISTRY)


BUDGET: Final = _of_server("budget", "Connections that the pools may open to a PgServer.")
FREE: Final = _of_server("free", "Connections that can be granted; the reserve is part of them.")
RESERVE: Final = _of_server("reserve", "Connections kept for the first grants of new pods.")
GHOSTS: Final = _of_server(
    "ghost", "Of the granted connections those of pods that vanished without proof that they ended."
)
OTHERS: Final = _of_server(
    "others", "Sessions of everybody who does not come through a pool; absent where nobody looks."
)
UNACCOUNTED: Final = _of_server(
    "unaccounted", "Sessions of the pools' roles that no pod accounts for; absent where nobody looks."
)
GRANTED: Final = _of_pool("granted", "Connections that the pods of a pool may open at most, by the ledger.")
HELD: Final = _of_pool("held", "Connections that the pods of a pool have open, as their agents say.")
UNPROVEN: Final = _of_pool(
    "unproven", "Of the granted connections those that pods were told to give back, and have not proved yet."
)
CLIENTS: Final = Gauge(
    "poolfleet_pool_clients",
    "Clients of a pool by state: active (connected and not waiting) or waiting for a server connection.",
    ["namespace", "pool", "state"],
    registry=REGISTRY,
)
POD_CLIENTS: Final = Gauge(
    "poolfleet_pool_pod_clients", "Clients of one pod of a pool.", ["namespace", "pool", "pod"], registry=REGISTRY
)
REPLICAS: Final = Gauge(
    "poolfleet_pool_replicas",
    "Pods of a pool by kind: desired (spec.replicas, or what autoscaling decided) or ready.",
    ["namespace", "pool", "kind"],
    registry=REGISTRY,
)
CPU: Final = Gauge(
    "poolfleet_pool_cpu_cores",
    "CPU that the PgBouncers of a pool use, in cores; one can use one at most. Absent while no pod says it.",
    ["namespace", "pool"],
    registry=REGISTRY,
)
CREDENTIALS: Final = Gauge(
    "poolfleet_pool_credentials_current",
    "The condition CredentialsCurrent: 1 while it is True, 0 while it is False, else -1.",
    ["namespace", "pool"],
    registry=REGISTRY,
)
CLIENTS_CUT: Final = Counter(
    "poolfleet_pool_clients_cut",
    "Clients that lost their connection because spec.drain.timeoutSeconds was over.",
    ["namespace", "pool"],
    registry=REGISTRY,
)
CERTIFICATE_EXPIRY: Final = Gauge(
    "poolfleet_certificate_expiry_timestamp_seconds",
    "When a certificate that a pool uses ends, in seconds since the epoch. Kinds: clients (what they are shown), "
    "server (what it is shown), and clients-ca, server-ca (the last one of those that check them).",
    ["namespace", "pool", "kind"],
    registry=REGISTRY,
)
TOKEN_EXPIRY: Final = Gauge(
    "poolfleet_token_expiry_timestamp_seconds",
    "When the newest token of a role on a PgServer ends, in seconds since the epoch; 0: there never was one.",
    ["namespace", "server", "role"],
    registry=REGISTRY,
)
TOKEN_FAILURES: Final = Counter(
    "poolfleet_token_failures",
    "Tries to get a token for a role on a PgServer that gave none.",
    ["namespace", "server", "role"],
    registry=REGISTRY,
)
OVER: Final = Counter(
    "poolfleet_over_budget_seconds",
    "Seconds in which more connections were granted than the budget has, as after a budget cut.",
    ["namespace", "server"],
    registry=REGISTRY,
)


@dataclass(frozen=True, slots=True)
class PoolNumbers:
    """What one pool has of a server, in connections."""

    granted: int  # Σ bounds
    held: int  # as the agents say
    unproven: int  # Σ (bound - grant)


@dataclass(frozen=True, slots=True)
class ServerNumbers:
    """The numbers of one PgServer, in connections."""

    budget: int
    free: int
    reserve: int
    ghosts: int
    others: int | None  # None: nobody looks at the sessions
    unaccounted: int | None  # None: likewise
    pools: Mapping[str, PoolNumbers]  # by "<namespace>/<name>"


@dataclass(frozen=True, slots=True)
class FleetNumbers:
    """The pods of one PgPool and their clients."""

    desired: int
    ready: int
    clients: tuple[int, int] | None  # active, waiting; None: some pod that takes clients cannot be read
    pods: Mapping[str, int]  # clients by the pod's name
    cpu: float | None  # cores; None: no pod says it
    credentials: bool | None = None  # the condition CredentialsCurrent; None: Unknown


_pods_of: dict[tuple[str, str], set[str]] = {}  # PgPool -> its pods
_pools_of: dict[tuple[str, str], set[str]] = {}
_certificates_of: dict[tuple[str, str], set[str]] = {}  # PgPool -> kinds
_over_since: dict[tuple[str, str], float] = {}  # PgServers that are over their budget, and up to when it is counted
_posts: dict[str, int] = {}


def set_server(namespace: str, server: str, numbers: ServerNumbers, now: float | None = None) -> None:
    """Set the numbers of one PgServer; `now` in seconds of a clock that only goes forward (default: the process's)."""
    key = (namespace, server)
    for gauge, value in (
        (BUDGET, numbers.budget),
        (FREE, numbers.free),
        (RESERVE, numbers.reserve),
        (GHOSTS, numbers.ghosts),
        (OTHERS, numbers.others),
        (UNACCOUNTED, numbers.unaccounted),
    ):
        if value is not None:
            gauge.labels(*key).set(value)
        else:
            gauge.remove(*key)  # says nothing if there is no value
    for pool in _pools_of.get(key, set()) - set(numbers.pools):
        _drop_pool(*key, pool)
    for pool, of_pool in numbers.pools.items():
        GRANTED.labels(*key, pool).set(of_pool.granted)
        HELD.labels(*key, pool).set(of_pool.held)
        UNPROVEN.labels(*key, pool).set(of_pool.unproven)
    _pools_of[key] = set(numbers.pools)
    now = time.monotonic() if now is None else now
    seconds = OVER.labels(*key)  # there from the start, so that its first increase is seen
    if key in _over_since:
        seconds.inc(now - _over_since.pop(key))
    if sum(of_pool.granted for of_pool in numbers.pools.values()) > numbers.budget:
        _over_since[key] = now


def drop_server(namespace: str, server: str) -> None:
    """Forget a PgServer that does not exist any more; does nothing if it was never set."""
    pools = _pools_of.pop((namespace, server), None)
    _over_since.pop((namespace, server), None)
    if pools is None:
        return
    for metric in (BUDGET, FREE, RESERVE, GHOSTS, OTHERS, UNACCOUNTED, OVER):
        metric.remove(namespace, server)
    for pool in pools:
        _drop_pool(namespace, server, pool)


def set_fleet(namespace: str, pool: str, numbers: FleetNumbers) -> None:
    """Set the numbers of one PgPool's pods."""
    key = (namespace, pool)
    for number, state in enumerate(("active", "waiting")):
        if numbers.clients is not None:
            CLIENTS.labels(*key, state).set(numbers.clients[number])
        else:
            CLIENTS.remove(*key, state)  # too few would be worse than none: an autoscaler would give pods up
    CREDENTIALS.labels(*key).set(-1 if numbers.credentials is None else numbers.credentials)
    REPLICAS.labels(*key, "desired").set(numbers.desired)
    REPLICAS.labels(*key, "ready").set(numbers.ready)
    CLIENTS_CUT.labels(*key)  # there from the start, so that its first increase is seen
    if numbers.cpu is not None:
        CPU.labels(*key).set(numbers.cpu)
    else:
        CPU.remove(*key)
    for pod in _pods_of.get(key, set()) - set(numbers.pods):
        POD_CLIENTS.remove(*key, pod)
    for pod, clients in numbers.pods.items():
        POD_CLIENTS.labels(*key, pod).set(clients)
    _pods_of[key] = set(numbers.pods)


def drop_fleet(namespace: str, pool: str) -> None:
    """Forget a PgPool that does not exist any more; does nothing if it was never set."""
    set_certificates(namespace, pool, {})
    pods = _pods_of.pop((namespace, pool), None)
    if pods is None:
        return
    for metric in (CPU, CLIENTS_CUT, CREDENTIALS):
        metric.remove(namespace, pool)
    for state in ("active", "waiting"):
        CLIENTS.remove(namespace, pool, state)
    for kind in ("desired", "ready"):
        REPLICAS.remove(namespace, pool, kind)
    for pod in pods:
        POD_CLIENTS.remove(namespace, pool, pod)


def set_certificates(namespace: str, pool: str, expiries: Mapping[str, float]) -> None:
    """Tell until when a pool's certificates are valid: seconds since the epoch by kind; none drops them all."""
    for kind in _certificates_of.pop((namespace, pool), set()) - set(expiries):
        CERTIFICATE_EXPIRY.remove(namespace, pool, kind)
    for kind, until in expiries.items():
        CERTIFICATE_EXPIRY.labels(namespace, pool, kind).set(until)
        _certificates_of.setdefault((namespace, pool), set()).add(kind)


def set_token(namespace: str, server: str, role: str, expires: float, *, failed: bool) -> None:
    """Tell of a try to get a token; `expires`: the end of the newest one that there is, 0.0 if there is none."""
    TOKEN_EXPIRY.labels(namespace, server, role).set(expires)
    TOKEN_FAILURES.labels(namespace, server, role).inc(1 if failed else 0)  # there from the start


def drop_token(namespace: str, server: str, role: str) -> None:
    """Forget a role whose tokens nobody needs any more; does nothing if there never was a try."""
    for metric in (TOKEN_EXPIRY, TOKEN_FAILURES):
        metric.remove(namespace, server, role)


def set_posts(posts: Mapping[str, int]) -> None:
    """Count directives sent by HTTP: `posts` by result, since the start of the process."""
    for result, number in posts.items():
        POSTS.labels(result).inc(number - _posts.get(result, 0))
        _posts[result] = number


def _drop_pool(namespace: str, server: str, pool: str) -> None:
    for metric in (GRANTED, HELD, UNPROVEN):
        metric.remove(namespace, server, pool)


def count(call: Call) -> None:
    """Count one request to the API server."""
    kind = call.kind.plural + (f"/{call.subresource}" if call.subresource else "")
    API_REQUESTS.labels(call.verb, kind, str(call.code)).inc()
    API_SECONDS.labels(call.verb, kind).inc(call.seconds)


async def measure_lag(period: float = 1.0) -> None:
    """Measure for ever by how many seconds the event loop is late."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(period)
        LOOP_LAG.set(max(0.0, time.monotonic() - before - period))


def render() -> bytes:
    """All metrics in Prometheus' text format."""
    return generate_latest(REGISTRY)
