"""The operator with one PgPool and with a hundred: memory, CPU at rest, and how soon an edit is in the child.

The pods of the hundred are kept from scheduling, so that the cluster's machine measures the operator and not 200
PgBouncers. They exist and are watched all the same.
"""

import asyncio
import base64
import json
import re
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.figures import Figure, percentile
from poolfleet.api import names
from poolfleet.kube.client import Kube
from poolfleet.kube.kinds import POOL, SECRET, SERVICE, Kind
from tests.e2e import kit

NAMESPACE = "bench-fleet"
POOLS = 100
GOAL_MIB = 100
GOAL_CPU = 1.0  # percent of a core
QUIET = 5.0  # seconds without a write of the operator, after which it is at rest
EDIT_PAUSE = 0.1  # seconds between two edits: one edit, not a storm


@dataclass(frozen=True)
class Reading:
    """The operator over some seconds at rest."""

    pools: int
    rss: float  # MiB, of the leader
    standby: float | None  # MiB
    cpu: float  # percent of a core, of the leader
    writes: int  # requests of the leader that change something, the Lease aside
    looks: int  # its reconciliations


class Operator:
    """The operator's pods, by their metrics."""

    def __init__(self, kubectl: kit.Kubectl) -> None:
        self._kubectl = kubectl

    def restart(self) -> None:
        """New processes: what an old one has seen before would count in its memory."""
        self._kubectl.run("-n", kit.SYSTEM_NAMESPACE, "delete", "pod", *self._select(), "--wait=true")
        rollout = ("-n", kit.SYSTEM_NAMESPACE, "rollout", "status", "deployment/poolfleet", "--timeout=90s")
        self._kubectl.run(*rollout)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics by pod; a sample's name includes its labels."""
        pods = self._kubectl.get_json("-n", kit.SYSTEM_NAMESPACE, "pods", *self._select())["items"]
        staying = [pod["metadata"]["name"] for pod in pods if not pod["metadata"].get("deletionTimestamp")]
        path = f"/api/v1/namespaces/{kit.SYSTEM_NAMESPACE}/pods/{{}}:8080/proxy/metrics"
        return {pod: parse(self._kubectl.run("get", "--raw", path.format(pod))) for pod in staying}

    def leader(self) -> dict[str, float]:
        """The leader's metrics; while there is none, it is waited for."""

        def leads() -> dict[str, float]:
            return next((metrics for metrics in self.metrics().values() if metrics["poolfleet_leader"]), {})

        return kit.await_until(leads, 60, "an operator that leads", interval=0.5, tolerate=(kit.KubectlError,))

    def settle(self, timeout: float = 180) -> None:
        """Wait until a leader has written nothing for QUIET seconds."""
        last, since = -1, time.monotonic()

        def quiet() -> bool:
            nonlocal last, since
            count = writes(self.leader())
            if count < 1 or count != last:
                last, since = count, time.monotonic()
            return time.monotonic() - since >= QUIET

        kit.await_until(quiet, timeout, "an operator that has nothing to write", interval=1.0)

    def rest(self, seconds: int) -> Reading:
        """Watch it for so many seconds."""
        pools = len(self._kubectl.get_json("-A", names.POOL_PLURAL)["items"])
        before, begun = self.leader(), time.monotonic()
        time.sleep(seconds)
        took, leader = time.monotonic() - begun, self.leader()
        started = "process_start_time_seconds"
        assert leader[started] == before[started], "another operator leads now: nothing was measured"
        standbys = [metrics for metrics in self.metrics().values() if not metrics["poolfleet_leader"]]
        cpu = leader["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
        return Reading(
            pools=pools,
            rss=leader["process_resident_memory_bytes"] / 2**20,
            standby=standbys[0]["process_resident_memory_bytes"] / 2**20 if standbys else None,
            cpu=100 * cpu / took,
            writes=writes(leader) - writes(before),
            looks=looks(leader) - looks(before),
        )

    @staticmethod
    def _select() -> tuple[str, str]:
        return "-l", "app.kubernetes.io/component=operator,app.kubernetes.io/instance=poolfleet"


def parse(text: str) -> dict[str, float]:
    """Samples of Prometheus' text format by name, labels included."""
    samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def writes(metrics: dict[str, float]) -> int:
    """Requests of an operator that change something, the Lease and events aside."""
    pattern = re.compile(
        r'poolfleet_api_requests_total\{.*kind="(?!leases|events).*verb="(patch|create|update|delete)"'
    )
    return int(sum(value for name, value in metrics.items() if pattern.match(name)))


def looks(metrics: dict[str, float]) -> int:
    """Reconciliations."""
    return int(sum(value for name, value in metrics.items() if name.startswith("poolfleet_reconcile_total{")))


def pool(name: str) -> kit.Manifest:
    """A PgPool whose pods no node takes."""
    spec: dict[str, Any] = {
        "server": {"host": "nowhere.invalid", "maxConnections": 100},
        "databases": [{"name": "shop"}],
        "users": [{"secretRef": {"name": "app"}}],
        "template": {"spec": {"nodeSelector": {"poolfleet.dev/bench": "nowhere"}}},
    }
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": names.API_VERSION, "kind": names.POOL_KIND, "metadata": metadata, "spec": spec}


def measure(kubectl: kit.Kubectl, seconds: int, edits: int) -> list[Figure]:
    """The operator's figures with the PgPools that are there (one is made if there is none), then with 100 in all."""
    operator = Operator(kubectl)
    kubectl.delete_namespace(NAMESPACE)
    kubectl.namespace(NAMESPACE)
    try:
        kubectl.apply(kit.basic_auth(NAMESPACE, "app", "app", "bench"))
        present = len(kubectl.get_json("-A", names.POOL_PLURAL)["items"])
        if not present:
            kubectl.apply(pool("pool-000"))
            present = 1
        operator.restart()
        operator.settle()
        few = operator.rest(seconds)
        print(f"    {few}", flush=True)
        made = [pool(f"pool-{number:03}") for number in range(present, POOLS)]
        begun = time.monotonic()
        kubectl.run(
            "apply", "--server-side", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
        )
        applied = time.monotonic() - begun
        _await_children(kubectl, len(made))
        converged = time.monotonic() - begun
        operator.settle()
        many = operator.rest(seconds)
        print(f"    {many}", flush=True)
        times = asyncio.run(_edits([manifest["metadata"]["name"] for manifest in made[:edits]]))
    finally:
        print("    cleaning up", flush=True)
        kubectl.run("-n", NAMESPACE, "delete", names.POOL_PLURAL, "--all", "--timeout=120s", timeout=130)
        kubectl.delete_namespace(NAMESPACE)
    figures = [figure for reading in (few, many) for figure in _resting(reading, seconds)]
    figures.append(
        Figure(
            f"{len(made)} PgPools created at once → all children there",
            f"{converged:.1f} s",
            note=f"`kubectl apply` itself took {applied:.1f} s of them",
        )
    )
    return figures + [_edited(what, *both) for what, both in times.items()]


def _resting(reading: Reading, seconds: int) -> list[Figure]:
    size = f"{reading.pools} PgPool{'s' if reading.pools != 1 else ''}"
    standby = f"; the standby {reading.standby:.1f} MiB" if reading.standby is not None else ""
    peer = f"; CloudNativePG's operator with {POOLS}: 74 MiB" if reading.pools > POOLS / 2 else ""
    return [
        Figure(
            f"operator RSS, {size}",
            f"{reading.rss:.1f} MiB",
            f"<= {GOAL_MIB} MiB",
            reading.rss <= GOAL_MIB,
            f"the leader, started anew before the first PgPool{standby}{peer}",
        ),
        Figure(
            f"operator CPU at rest, {size}",
            f"{reading.cpu:.2f} % of a core",
            f"<= {GOAL_CPU:g} %",
            reading.cpu <= GOAL_CPU,
            f"the leader over {seconds} s, with probes, Lease and lists; {reading.looks} reconciliations, "
            f"{reading.writes} writes",
        ),
    ]


def _edited(what: str, answered: list[float], sent: list[float]) -> Figure:
    def both(values: list[float]) -> str:
        return f"p50 {statistics.median(values) * 1000:.0f} / p99 {percentile(values, 99) * 1000:.0f} ms"

    return Figure(
        f"edit → child changed, {what}",
        both(answered),
        note=f"from the PATCH's answer until a watch shows the child; from its start: {both(sent)}; {len(sent)} edits "
        f"with {POOLS} PgPools, one after another; CloudNativePG: p50 25 ms",
    )


def _await_children(kubectl: kit.Kubectl, wanted: int) -> None:
    """Every pool has the last of its children, and its pods exist."""

    def there() -> bool:
        for kind in ("deployments", "services", "networkpolicies", "poddisruptionbudgets"):
            if len(kubectl.run("-n", NAMESPACE, "get", kind, "-o", "name").splitlines()) < wanted:
                return False
        return len(kubectl.run("-n", NAMESPACE, "get", "pods", "-o", "name").splitlines()) >= 2 * wanted

    kit.await_until(there, 180, f"the children of {wanted} PgPools", interval=0.5)


# Edits, over one connection and without a kubectl process per edit

Times = tuple[list[float], list[float]]


async def _edits(pools: list[str]) -> dict[str, Times]:
    async with Kube.connect(str(kit.ROOT / ".cluster/kubeconfig")) as kube:
        annotated = await _series(kube, pools, SERVICE, lambda name: name, _annotate, _annotated)
        parameter = await _series(kube, pools, SECRET, names.config_secret, _set_parameter, _has_parameter)
    return {"Service annotation → Service": annotated, "PgBouncer parameter → Secret": parameter}


def _annotate(number: int) -> list[dict[str, Any]]:
    return [{"op": "add", "path": "/spec/service/annotations", "value": {"example.com/edit": str(number)}}]


def _annotated(child: dict[str, Any], number: int) -> bool:
    return bool((child["metadata"].get("annotations") or {}).get("example.com/edit") == str(number))


def _set_parameter(number: int) -> list[dict[str, Any]]:
    return [{"op": "add", "path": "/spec/pgbouncer", "value": {"parameters": {"query_wait_timeout": 1000 + number}}}]


def _has_parameter(child: dict[str, Any], number: int) -> bool:
    ini = base64.b64decode(child["data"][names.INI_FILE]).decode()
    return f"query_wait_timeout = {1000 + number}\n" in ini


async def _series(
    kube: Kube,
    pools: list[str],
    kind: Kind,
    child_of: Callable[[str], str],
    edit: Callable[[int], list[dict[str, Any]]],
    shows: Callable[[dict[str, Any], int], bool],
) -> Times:
    """Seconds from each edit's answer, and from its start, until the watch shows the child as it has to be."""
    answered, sent = [], []
    async with _watch(kube, kind) as events:
        for number, name in enumerate(pools):
            begun = time.perf_counter()
            await kube.json_patch(POOL, NAMESPACE, name, edit(number), manager="bench")
            answer = time.perf_counter()
            async with asyncio.timeout(30):
                while True:
                    seen, child = await events.get()
                    if child["metadata"]["name"] == child_of(name) and shows(child, number):
                        break
            answered.append(max(0.0, seen - answer))
            sent.append(seen - begun)
            await asyncio.sleep(EDIT_PAUSE)
    return answered, sent


@asynccontextmanager
async def _watch(kube: Kube, kind: Kind) -> AsyncIterator["asyncio.Queue[tuple[float, dict[str, Any]]]"]:
    """What a watch of `kind` shows from now on, with the time at which its line was read."""
    queue: asyncio.Queue[tuple[float, dict[str, Any]]] = asyncio.Queue()

    async def read(response: aiohttp.ClientResponse) -> None:
        async for line in response.content:
            queue.put_nowait((time.perf_counter(), json.loads(line)["object"]))

    url = kube.host + kind.path(NAMESPACE)
    async with kube.session() as session:
        async with session.get(url, params={"limit": "1"}) as response:
            version = (await response.json())["metadata"]["resourceVersion"]
        params = {"watch": "1", "resourceVersion": version}
        async with session.get(url, params=params, timeout=aiohttp.ClientTimeout(total=None)) as response:
            response.raise_for_status()
            task = asyncio.create_task(read(response))
            try:
                yield queue
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
