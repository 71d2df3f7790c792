"""The operator's own metrics, in a registry of their own."""

import asyncio
import time
from collections.abc import Mapping
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

BUDGET: Final = Gauge(
    "poolfleet_budget_connections",
    "Connections that the pools may open to a PgServer.",
    ["namespace", "server"],
    registry=REGISTRY,
)
GRANTED: Final = Gauge(
    "poolfleet_granted_connections",
    "Connections that the pods of a pool may open at most, by the ledger.",
    ["namespace", "server", "pool"],
    registry=REGISTRY,
)
HELD: Final = Gauge(
    "poolfleet_held_connections",
    "Connections that the pods of a pool have open, as their agents say.",
    ["namespace", "server", "pool"],
    registry=REGISTRY,
)

GHOSTS: Final = Gauge(
    "poolfleet_ghost_connections",
    "Of the granted connections those of pods that vanished without proof that they ended.",
    ["namespace", "server"],
    registry=REGISTRY,
)

_pools_of: dict[tuple[str, str], set[str]] = {}


def set_server(namespace: str, server: str, budget: int, ghosts: int, pools: Mapping[str, tuple[int, int]]) -> None:
    """Set the numbers of one PgServer, in connections: its budget, what ghosts keep, and by pool ("namespace/name")
    what is granted and held."""
    BUDGET.labels(namespace, server).set(budget)
    GHOSTS.labels(namespace, server).set(ghosts)
    for pool in _pools_of.get((namespace, server), set()) - set(pools):
        _drop_pool(namespace, server, pool)
    for pool, (granted, held) in pools.items():
        GRANTED.labels(namespace, server, pool).set(granted)
        HELD.labels(namespace, server, pool).set(held)
    _pools_of[namespace, server] = set(pools)


def drop_server(namespace: str, server: str) -> None:
    """Forget a PgServer that does not exist any more; does nothing if it was never set."""
    pools = _pools_of.pop((namespace, server), None)
    if pools is None:
        return
    BUDGET.remove(namespace, server)
    GHOSTS.remove(namespace, server)
    for pool in pools:
        _drop_pool(namespace, server, pool)


def _drop_pool(namespace: str, server: str, pool: str) -> None:
    GRANTED.remove(namespace, server, pool)
    HELD.remove(namespace, server, pool)


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
