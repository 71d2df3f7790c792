"""What test_chaos.py does to pools on one PgServer, at random from a seed, and the clients that saturate them."""

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from poolfleet.api import names
from tests.e2e import node
from tests.e2e.clients import Clients, Running
from tests.e2e.cluster import SYSTEM_NAMESPACE, Kubectl, KubectlError, Manifest, await_until
from tests.e2e.database import Login, Postgres, Superuser, ident
from tests.e2e.pools import Pool
from tests.e2e.verdict import Budget
from tests.e2e.watching import Step, Steps

BUDGETS = (60, 30)
USABLE = 97  # of max_connections=100: 3 are the superuser's
OWN = 2  # the operator's own connections, if it has an admin Secret
ADMIN_SECRET = {"name": "postgres-admin"}
REPLICAS = (1, 6)
CLIENTS = {"one": 120, "two": 40, "three": 40}  # far more than connections
LOADS = {  # in transaction mode clients stay for a while; in session mode a session is over soon
    "transaction": ("--queries", "25", "--query-ms", "200", "--interval-ms", "10"),
    "session": ("--queries", "4", "--query-ms", "200", "--interval-ms", "10"),
}


class Witness:
    """CONNECTION LIMIT of the pools' role: what is promised, and one more for each pod. Checked at each login.

    The one more is for a backend on its way out while its successor logs in.
    """

    def __init__(self, postgres: Postgres, role: str, steps: Steps, budget: int) -> None:
        self._session, self._role, self._steps = Superuser(postgres), role, steps
        self._budget = budget
        self._limit = -1
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Witness":
        self.allow(self._budget)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(20)
        self._alter(-1)
        self._session.close()
        assert exc[0] is not None or self._failure is None, self._failure

    def allow(self, budget: int) -> None:
        """A larger budget before it is asked for; a smaller one as soon as the ledger fits."""
        with self._lock:
            self._budget = budget
            step = self._steps.last
            self._alter(max(budget, step.bound) + len({pod for pod, _ in step.bounds}))

    def _follow(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self.allow(self._budget)
            except (OSError, AssertionError) as error:
                self._failure = error
                return

    def _alter(self, limit: int) -> None:
        if limit != self._limit:
            self._session.sql(f"ALTER ROLE {ident(self._role)} CONNECTION LIMIT {limit}")
            self._limit = limit


class Sentinel:
    """Looks at SHOW SERVERS of all pods as soon as a sample shows more backends than the budget."""

    def __init__(self, sampler: Running, budget: Budget, pools: list[Pool]) -> None:
        self.readings: list[tuple[float, frozenset[int]]] = []  # (when they were there, remote_pid of all pods)
        self._sampler, self._budget, self._pools = sampler, budget, pools
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Sentinel":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _watch(self) -> None:
        seen = 0
        while not self._stop.wait(0.05):
            lines = self._sampler.lines()
            new, seen = lines[seen:], len(lines)
            if any(line["total"] > self._budget.at(line["t"]) for line in new if "t" in line):
                self.readings.append((time.time(), self._servers()))

    def _servers(self) -> frozenset[int]:
        pods = [(pool, pod["metadata"]["name"]) for pool in self._pools for pod in pool.pods(all=True)]
        with ThreadPoolExecutor(max(1, len(pods))) as together:
            return frozenset(itertools.chain.from_iterable(together.map(_remote_pids, pods)))


def _remote_pids(pod: tuple[Pool, str]) -> list[int]:
    pool, name = pod
    try:
        return [int(row["remote_pid"] or 0) for row in pool.show_on(name, "SERVERS")]
    except KubectlError:
        return []  # it has just gone, or has not begun


class Chaos:
    """Three pools on one server, the clients of each, and all that is done to them."""

    def __init__(
        self,
        pools: list[Pool],
        server: tuple[str, str],
        clients: Clients,
        login: Login,
        mode: str,
        seed: int,
        looks: bool,
    ) -> None:
        """`looks`: whether the operator has an admin Secret, and so looks at PostgreSQL itself."""
        self._looks = looks
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.spec: list[tuple[float, int]] = [
            (time.time(), max(BUDGETS))
        ]  # (since, budget) as the PgServer's spec says
        self.witness: Witness | None = None
        self.failures: Counter[str] = Counter()
        self.queries = 0
        self._pools = {pool.name: pool for pool in pools}
        self._server, self._clients, self._login, self._mode = server, clients, login, mode
        self._running: dict[str, Running] = {}
        self._ended: list[Running] = []
        self._wished: set[str] = set()
        self._last = pools[0]

    @property
    def kubectl(self) -> Kubectl:
        return self._clients.kubectl

    def _headroom(self, budget: int) -> int:
        """What makes this the budget."""
        return USABLE - (OWN if self._looks else 0) - budget

    @property
    def operations(self) -> dict[str, Callable[[], bool]]:
        """All that can be done; each returns whether it was possible."""
        return {
            "rollout restart": self.restart,
            "scale": self.scale,
            "pod deleted": self.delete,
            "pod force-deleted": self.force_delete,
            "operator killed": self.kill_operator,
            "agent killed": lambda: self.kill("python3"),
            "PgBouncer killed": lambda: self.kill("pgbouncer"),
            "second pool": lambda: self.come_or_go("two"),
            "third pool": lambda: self.come_or_go("three"),
            "budget": self.cut_or_restore,
        }

    # -- the course of a run

    def begin(self) -> None:
        """The whole budget, and the first pool, in the mode of this run, its clients at work."""
        namespace, server = self._server
        # The witness is a limit that is not the operator's business: with an admin Secret it would read it and obey it.
        secret = ADMIN_SECRET if self._looks else None
        spec = {"headroom": self._headroom(max(BUDGETS)), "adminSecretRef": secret}
        self.kubectl.patch(namespace, f"pgserver/{server}", {"spec": spec})
        self.come("one")
        self.tend(wait=True)

    def make_noise(self, seconds: float) -> None:
        """Operations one after the other: at first each once, and twice what comes and goes; then any."""
        until = time.monotonic() + seconds
        deck = [*self.operations, "second pool", "third pool", "budget"]
        self.random.shuffle(deck)
        seldom = "operator killed"  # for 15 seconds afterwards nobody would react to anything
        for name in itertools.chain(deck, self._endless([op for op in self.operations if op != seldom])):
            if time.monotonic() >= until:
                return
            if self.operations[name]():
                self.done[name] += 1
            self.tend()
            time.sleep(self.random.uniform(0.3, 1.5))

    def _endless(self, operations: list[str]) -> "itertools.chain[str]":
        return itertools.chain.from_iterable(iter(lambda: [self.random.choice(operations)], None))

    def calm(self) -> float:
        """Undo what holds connections back; return when that was done, in seconds since the epoch."""
        self.set_budget(max(BUDGETS))
        self._scale("one", 4)
        self.tend()
        return time.time()

    def await_rollouts(self, timeout: float) -> None:
        """Wait until every pool has the pods that it shall have, and no others; one that went has none."""

        def rolled() -> bool:
            for name, pool in self._pools.items():
                replicas = int(pool.get()["spec"]["replicas"]) if name in self._wished else 0
                pods = pool.pods(all=True)
                if not (len(pods) == replicas == len(pool.pods()) and all(_ready(pod) for pod in pods)):
                    return False
            return True

        await_until(rolled, timeout, "all pods are there", interval=0.5)

    def granted(self, step: Step) -> int:
        """What pods may hold that are not ghosts."""
        return step.bound - step.ghosts

    def describe(self) -> str:
        """All pods, those that are going with the time since when, and restarts."""
        words = []
        for pod in [pod for pool in self._pools.values() for pod in pool.pods(all=True)]:
            metadata = pod["metadata"]
            going = f" going since {metadata['deletionTimestamp']}" if "deletionTimestamp" in metadata else ""
            words.append(f"{metadata['name']} {pod['status'].get('phase')}{going} {_restarts(pod)} restarts")
        return f"{sorted(self._wished)} wished; pods: {', '.join(words)}"

    def hang_up(self) -> None:
        """Tell all clients to end, and delete the pools that come and go."""
        for running in self._running.values():
            running.hang_up()
            self._ended.append(running)
        self._running.clear()
        for name in self._wished - {"one"}:
            namespace = self._pools[name].namespace
            self.kubectl.run("-n", namespace, "delete", "pgpool", name, "--wait=false", "--ignore-not-found")
        self._wished.clear()

    def end(self) -> None:
        """Count what the clients saw."""
        self.hang_up()
        for running in self._ended:
            lines = running.stop()
            self.failures.update(line["error"] for line in lines if "error" in line)
            self.queries += sum(line["summary"]["queries"] for line in lines if "summary" in line)

    # -- pools, and their clients

    def come(self, name: str) -> None:
        pool = self._pools[name]
        namespace, server = self._server
        pool.apply(
            {
                "serverRef": {"name": server, "namespace": namespace},
                "poolMode": self._mode,
                "databases": [{"name": self._login.database}],
                "users": [{"secretRef": {"name": "app"}}],
                "replicas": 4 if name == "one" else 2,
                "drain": {"timeoutSeconds": 5},
            }
        )
        self._wished.add(name)

    def come_or_go(self, name: str) -> bool:
        if name not in self._wished:
            self.come(name)
            return True
        self._wished.discard(name)
        if running := self._running.pop(name, None):
            running.hang_up()
            self._ended.append(running)
        pool = self._pools[name]
        self.kubectl.run("-n", pool.namespace, "delete", "pgpool", name, "--wait=false")
        return True

    def tend(self, wait: bool = False) -> None:
        """Start the clients of pools that are there now, as the Service has an address."""
        for name in sorted(self._wished - set(self._running)):
            pool = self._pools[name]
            if wait:
                pool.ready()
            service = self.kubectl.find("-n", pool.namespace, "service", name)
            # not that of a PgPool of the same name which has just gone: its address goes with it
            if service is None or service["metadata"]["ownerReferences"][0]["uid"] != pool.get()["metadata"]["uid"]:
                continue
            login = Login(
                service["spec"]["clusterIP"],  # its name is not known everywhere yet
                names.PGBOUNCER_PORT,
                self._login.user,
                self._login.password,
                self._login.database,
            )
            load = ("--until-eof", "--clients", str(CLIENTS[name]), "--retry-ms", "500", "--timeout", "20")
            self._running[name] = self._clients.start("steady", login, *load, *LOADS[self._mode])

    # -- operations

    def restart(self) -> bool:
        return self._possible("rollout", "restart", f"deployment/{self._any().name}", pool=self._last)

    def scale(self) -> bool:
        return self._scale("one", self.random.randint(*REPLICAS))

    def _scale(self, name: str, replicas: int) -> bool:
        return self._possible("scale", f"pgpool/{name}", f"--replicas={replicas}", pool=self._pools[name])

    def delete(self, *options: str) -> bool:
        pod = self._pod()
        if pod is None:
            return False
        return self._possible("delete", "pod", pod["metadata"]["name"], "--wait=false", *options, pool=self._last)

    def force_delete(self) -> bool:
        return self.delete("--force", "--grace-period=0")

    def kill(self, process: str) -> bool:
        pod = self._pod(fresh=True)
        return pod is not None and _sigkill(pod, process)

    def kill_operator(self) -> bool:
        lease = self.kubectl.get_json("-n", SYSTEM_NAMESPACE, "lease", "poolfleet-leader")
        name = str(lease["spec"].get("holderIdentity") or "").partition("_")[0]
        pod = self.kubectl.find("-n", SYSTEM_NAMESPACE, "pod", name) if name else None
        if pod is None or not _sigkill(pod, "python3"):
            return False
        # another pod instead of this one restarted: the kubelet's back-off would grow from run to run
        self.kubectl.run("-n", SYSTEM_NAMESPACE, "delete", "pod", name, "--wait=false")
        return True

    def cut_or_restore(self) -> bool:
        self.set_budget(min(BUDGETS) if self.spec[-1][1] == max(BUDGETS) else max(BUDGETS))
        return True

    def set_budget(self, budget: int) -> None:
        if budget == self.spec[-1][1]:
            return
        namespace, name = self._server
        if self.witness is not None and budget > self.spec[-1][1]:
            self.witness.allow(budget)
        begun = time.time()
        if budget > self.spec[-1][1]:
            self.spec.append((begun, budget))
        self.kubectl.patch(namespace, f"pgserver/{name}", {"spec": {"headroom": self._headroom(budget)}})
        if budget < self.spec[-1][1]:
            self.spec.append((time.time(), budget))
        if self.witness is not None:
            self.witness.allow(budget)

    # -- whom

    def _any(self) -> Pool:
        self._last = self._pools[self.random.choice(sorted(self._wished))]
        return self._last

    def _pod(self, fresh: bool = False) -> Manifest | None:
        """A pod of a pool that runs; with `fresh` one in which nothing was restarted yet (the kubelet would wait)."""
        pods = [pod for pod in self._any().pods() if _runs(pod) and not (fresh and _restarts(pod))]
        return self.random.choice(pods) if pods else None

    def _possible(self, *command: str, pool: Pool) -> bool:
        try:
            self.kubectl.run("-n", pool.namespace, *command)
        except KubectlError as error:
            # what has just gone or is not there yet, and what kubectl refuses to do twice in one second
            if "not found" not in str(error) and "within the past second" not in str(error):
                raise
            return False
        return True


def _containers(pod: Manifest) -> list[Manifest]:
    status = pod["status"]
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _runs(pod: Manifest) -> bool:
    return all("running" in container["state"] for container in _containers(pod)) and bool(_containers(pod))


def _restarts(pod: Manifest) -> int:
    return sum(int(container["restartCount"]) for container in _containers(pod))


def _ready(pod: Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or ())


def _sigkill(pod: Manifest, process: str) -> bool:
    try:
        node.sigkill(pod, process)
    except AssertionError as error:
        if "no process" not in str(error):
            raise
        return False
    return True
