"""A flash sale of clients that open a connection per request: PostgreSQL alone, PgBouncer of a fixed size, Poolfleet.

One contender after the other, on the same PostgreSQL with max_connections=100: the rate of requests rises evenly, then
many come at once, then the rate is again what it was. A sampler outside reads pg_stat_activity every 100 ms.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bench import contenders, figures, plot, wire
from bench.contenders import BUDGET, Contender, Direct, Fleet, Ground, Peer, Sizes, Workload
from bench.load import Load
from bench.sampler import Replicas, Sampler, counted
from tests.e2e import kit

NAMESPACE: Final = "bench-flash"
WORKLOAD: Final = Workload(("bench_flash",), ("bench_flash",))
PROGRAM: Final = kit.ROOT / "bench/wire.py"
RATE: Final = (10, 100)  # requests per second: what two cores bear is an eighth of 800
WORK_MS: Final = (200, 600)  # of one query: eight times as long, so that as many are under way as with 800 per second
RISE, AFTER = 90, 20  # seconds
AT_ONCE: Final = 500
PODS: Final = 2  # of the fixed size, and the fewest of Poolfleet
AUTOSCALING: Final = {"minReplicas": PODS, "maxReplicas": 6, "targetClientsPerReplica": 10}
"""One pod for ten requests that are under way: about 40 at the end of the rise."""


@dataclass(frozen=True)
class Trial:
    """One contender."""

    contender: str
    samples: tuple[tuple[float, int], ...]  # (seconds since the clients' start, connections of the contender)
    replicas: tuple[tuple[float, int], ...]  # (seconds since the clients' start, ready pods); () without pods
    load: dict[str, Any]  # what bench/wire.py printed
    refused_logins: int  # that PostgreSQL logged

    @property
    def peak(self) -> int:
        return max(count for _, count in self.samples)

    def refused(self, phase: str) -> int:
        """Requests of this phase that found no room."""
        return int(self.load["phases"][phase]["errors"].get(wire.REFUSED, 0))

    def failed(self, phase: str) -> int:
        """Requests of this phase that were not served for any other reason."""
        return sum(map(int, self.load["phases"][phase]["errors"].values())) - self.refused(phase)

    def requests(self, phase: str) -> int:
        found = self.load["phases"][phase]
        return int(found["served"] + sum(found["errors"].values()))

    def waits(self, phase: str) -> str:
        """p50 / p99 of what was served, in ms."""
        found = self.load["phases"][phase]
        return " / ".join("-" if found[name] is None else f"{found[name]:.0f}" for name in ("p50_ms", "p99_ms"))

    @property
    def failures(self) -> Counter[str]:
        """Errors of all phases by kind, those without room left out."""
        found: Counter[str] = Counter()
        for phase in self.load["phases"].values():
            found.update(phase["errors"])
        found.pop(wire.REFUSED, None)
        return found

    @property
    def history(self) -> str:
        """Ready pods over time, such as "2, 3 at 41 s"."""
        if not self.replicas:
            return "-"
        (_, first), *changes = self.replicas
        return ", ".join([str(first), *(f"{count} at {at:.0f} s" for at, count in changes)])


def measure(kubectl: kit.Kubectl, rise: float) -> list[Trial]:
    """Every contender, with so many seconds of rising; each takes about a minute more."""
    kubectl.delete_namespace(NAMESPACE)
    kubectl.namespace(NAMESPACE)
    try:
        postgres = kit.Postgres(kubectl, NAMESPACE).ensure()
        ground = Ground(kubectl, postgres, contenders.pgbouncer_image(kubectl), secrets.token_urlsafe(18))
        clients = kit.Clients(kubectl, NAMESPACE).ensure()
        postgres.make("bench_flash", ground.password)
        return [trial(ground, clients, contender, rise) for contender in all_of(ground)]
    finally:
        kubectl.delete_namespace(NAMESPACE, wait=False)


def all_of(ground: Ground) -> list[Contender]:
    """In the order in which they run."""
    return [
        Direct(),
        # so that its pods' pools are the budget, as somebody who knows of it would size them
        Peer(
            ground, WORKLOAD, "fixed", f"PgBouncer, {PODS} pods", lambda pods: Sizes(BUDGET // PODS), replicas=PODS
        ),
        Fleet(ground, WORKLOAD, replicas=PODS, autoscaling=AUTOSCALING),
    ]  # fmt: skip


def trial(ground: Ground, clients: kit.Clients, contender: Contender, rise: float) -> Trial:
    """Start the contender, load it, remove it."""
    print(f"    {contender.title}", flush=True)
    try:
        contender.start()
        pods = nullcontext() if isinstance(contender, Direct) else Replicas(ground.kubectl, NAMESPACE, contender.name)
        with Sampler(ground.postgres) as sampler, pods as watch, load_of(clients, ground, contender, rise) as load:
            told = load.summary(rise + AFTER + 90)
        refused = len(ground.postgres.refused(load.began))
    finally:
        contender.stop()
        gone = f"no session of {contender.title} is left in PostgreSQL"
        kit.await_until(lambda: not any(map(ground.postgres.sessions, WORKLOAD.users)), 90, gone, interval=0.5)
    replicas = () if watch is None else since(watch.samples, load.began, told["seconds"])
    samples = counted(sampler.samples, WORKLOAD.users, load.began, told["seconds"])
    result = Trial(contender.title, samples, replicas, told, refused)
    print(f"      peak {result.peak}, pods {result.history}, {told}", flush=True)
    return result


def since(samples: Sequence[tuple[float, int]], began: float, seconds: float) -> tuple[tuple[float, int], ...]:
    """Numbers that hold until the next one, by seconds since `began`: the one that held then, and those within
    `seconds`."""
    before = [count for at, count in samples if at <= began][-1:]
    return (*((0.0, count) for count in before), *((at - began, n) for at, n in samples if 0 < at - began <= seconds))


def load_of(clients: kit.Clients, ground: Ground, contender: Contender, rise: float) -> Load:
    """bench/wire.py flash against a contender's Service."""
    ((user,), (database,)) = WORKLOAD.users, WORKLOAD.databases
    where = ("--host", f"{contender.name}.{NAMESPACE}.svc", "--port", str(contender.port))
    who = ("--user", user, "--database", database, "--work-ms", *map(str, WORK_MS))
    when = ("--rate", *map(str, RATE), "--rise", str(rise), "--at-once", str(AT_ONCE), "--after", str(AFTER))
    return Load(clients, PROGRAM, ground.password, "flash", *where, *who, *when)


# What is told

Row = tuple[str, Callable[[Trial], str]]
PHASES: Final = {
    "rise": f"{RATE[0]} to {RATE[1]} requests/s",
    "at once": f"{AT_ONCE} at once",
    "after": f"{RATE[0]} requests/s after that",
}


def rows_of(phase: str, title: str) -> list[Row]:
    """What is counted in each phase."""
    return [
        (f"{title}: requests", lambda t: str(t.requests(phase))),
        ("refused", lambda t: str(t.refused(phase))),
        ("failed", lambda t: str(t.failed(phase))),
        ("served: p50 / p99, ms", lambda t: t.waits(phase)),
    ]


ROWS: Final[tuple[Row, ...]] = (
    *(row for phase, title in PHASES.items() for row in rows_of(phase, title)),
    ("peak server connections", lambda t: str(t.peak)),
    ("logins that PostgreSQL refused", lambda t: str(t.refused_logins)),
    ("ready pods", lambda t: t.history),
    ("a request of the rise was begun late by at most, ms", lambda t: f"{t.load['late_ms']:.0f}"),
)


def table(trials: Sequence[Trial]) -> list[tuple[str, ...]]:
    """Rows with the contenders side by side; the first row has their names."""
    kinds = sorted({kind for t in trials for kind in t.failures})
    failures: list[Row] = [(f"failed: {kind}", partial(of_kind, kind)) for kind in kinds]
    head = ("", *(t.contender for t in trials))
    return [head, *((what, *map(tell, trials)) for what, tell in (*ROWS, *failures))]


def of_kind(kind: str, trial: Trial) -> str:
    return str(trial.failures[kind])


def text(trials: Sequence[Trial]) -> str:
    """The table for a terminal."""
    return figures.columns(table(trials)) if trials else ""


def markdown(trials: Sequence[Trial]) -> str:
    """The table for a page."""
    return figures.columns_markdown(table(trials))


def picture(trials: Sequence[Trial], rise: float) -> str:
    """The SVG file: server connections, and below them ready pods."""
    steps = ((rise, f"{AT_ONCE} at once"),)
    connections = [plot.Line(t.contender, t.samples) for t in trials]
    pods = [plot.Line(t.contender, held(t)) for t in trials if t.replicas]
    most = max((count for line in pods for _, count in line.points), default=0) + 1
    titles = (f"Server connections: {PHASES['rise']}, then {PHASES['at once']}", "Ready pods")
    panels = [
        plot.Panel(titles[0], connections, steps, Fleet.MAX_CONNECTIONS, budget=BUDGET),
        plot.Panel(titles[1], pods, (), most, tick=1, height=110),
    ]
    return plot.svg("A connection per request, at a rate that rises", panels)


def held(trial: Trial) -> tuple[tuple[float, int], ...]:
    """Ready pods until the clients' end."""
    return (*trial.replicas, (trial.load["seconds"], trial.replicas[-1][1]))
