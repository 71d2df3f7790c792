"""The same rollout and scale steps with poolers sized as peers size them, and with Poolfleet, on the same PostgreSQL.

One contender after the other: three pods, saturated by clients, are restarted, scaled to six and to two, and one is
deleted, at the same seconds each time. A sampler outside all of them reads pg_stat_activity every 100 ms.
"""

import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import contenders, figures, plot
from bench.contenders import BUDGET, Contender, Fleet, Ground, Workload
from bench.load import Load
from bench.sampler import INTERVAL, Sampler, counted
from tests.e2e import kit

NAMESPACE = "bench-peers"
CLIENTS = 200
SECONDS = 60
WORKLOADS = (
    Workload(("bench_a",), ("bench_a",)),
    Workload(("bench_a", "bench_b"), ("bench_a", "bench_b")),
)
STEPS: tuple[tuple[float, str], ...] = (
    (10, "rollout restart"),
    (26, "scale to 6"),
    (38, "scale to 2"),
    (50, "delete a pod"),
)
"""(seconds after the clients' start, what is done)"""
PROGRAM = kit.ROOT / "bench/transactions.py"
TOO_MANY = "too many clients"  # bench/transactions.py's word


@dataclass(frozen=True)
class Trial:
    """One contender under one workload."""

    workload: str
    contender: str
    samples: tuple[tuple[float, int], ...]  # (seconds since the clients' start, connections of the contender)
    steps: tuple[tuple[float, str], ...]  # (seconds since the clients' start, what was done)
    load: dict[str, Any]  # what bench/transactions.py printed
    refused_logins: int  # that PostgreSQL logged

    @property
    def peak(self) -> int:
        return max(count for _, count in self.samples)

    @property
    def median(self) -> float:
        return statistics.median(count for _, count in self.samples)

    @property
    def over(self) -> int:
        """Samples above the budget."""
        return sum(count > BUDGET for _, count in self.samples)

    @property
    def seconds_over(self) -> float:
        """Seconds above the budget: each sample counts until the next; the last one for INTERVAL."""
        ends = [at for at, _ in self.samples[1:]] + [self.samples[-1][0] + INTERVAL]
        return sum(end - at for (at, count), end in zip(self.samples, ends, strict=True) if count > BUDGET)

    @property
    def refused(self) -> int:
        """Connects and transactions of clients that PostgreSQL had no connection for."""
        return int(self.load["errors"].get(TOO_MANY, 0))

    @property
    def failures(self) -> dict[str, int]:
        """All other errors of clients, by kind."""
        return {kind: count for kind, count in self.load["errors"].items() if kind != TOO_MANY}

    @property
    def rate(self) -> float:
        """Transactions per second."""
        return float(self.load["transactions"] / self.load["seconds"])


Row = tuple[str, Callable[[Trial], str]]
ROWS: tuple[Row, ...] = (
    ("peak server connections", lambda t: str(t.peak)),
    ("median of the samples", lambda t: f"{t.median:.0f}"),
    (f"seconds above the budget of {BUDGET}", lambda t: f"{t.seconds_over:.1f}"),
    ("samples above it, of all", lambda t: f"{t.over} of {len(t.samples)}"),
    ('clients refused ("too many clients")', lambda t: str(t.refused)),
    ("other errors of clients", lambda t: str(sum(t.failures.values()))),
    ("logins that PostgreSQL refused to the poolers", lambda t: str(t.refused_logins)),
    ("transactions per second", lambda t: f"{t.rate:.0f}"),
    ("a transaction, p50 / p99, ms", lambda t: f"{t.load['p50_ms'] or '-'} / {t.load['p99_ms'] or '-'}"),
)


def measure(kubectl: kit.Kubectl, workloads: Sequence[Workload], seconds: int) -> list[Trial]:
    """Every workload with every contender; each takes `seconds` seconds and about 30 more to come and go."""
    kubectl.delete_namespace(NAMESPACE)
    kubectl.namespace(NAMESPACE)
    try:
        postgres = kit.Postgres(kubectl, NAMESPACE).ensure()
        ground = Ground(kubectl, postgres, contenders.pgbouncer_image(kubectl), secrets.token_urlsafe(18))
        clients = kit.Clients(kubectl, NAMESPACE).ensure()
        for user in sorted({user for workload in workloads for user in workload.users}):
            postgres.make(user, ground.password)
        return [
            trial(ground, clients, workload, contender, seconds)
            for workload in workloads
            for contender in contenders.all_of(ground, workload)
        ]
    finally:
        kubectl.delete_namespace(NAMESPACE, wait=False)


def trial(ground: Ground, clients: kit.Clients, workload: Workload, contender: Contender, seconds: int) -> Trial:
    """Start the contender, load it, take the steps, remove it."""
    print(f"    {workload.title}: {contender.title}", flush=True)
    try:
        contender.start()
        with Sampler(ground.postgres) as sampler, load_of(clients, ground, workload, contender, seconds) as load:
            plan = [(load.began + at * seconds / SECONDS, what) for at, what in STEPS]
            steps = [(step(ground, contender, due, what) - load.began, what) for due, what in plan]
            told = load.summary(seconds + 60)
        refused = len(ground.postgres.refused(load.began))
    finally:
        contender.stop()
        gone = f"no session of {contender.title} is left in PostgreSQL"
        kit.await_until(lambda: not any(map(ground.postgres.sessions, workload.users)), 90, gone, interval=0.5)
    result = Trial(
        workload.title,
        contender.title,
        counted(sampler.samples, workload.users, load.began, told["seconds"]),
        tuple(steps),
        told,
        refused,
    )
    print(f"      peak {result.peak}, over {result.over} of {len(result.samples)} samples, {told}", flush=True)
    return result


def load_of(clients: kit.Clients, ground: Ground, workload: Workload, contender: Contender, seconds: int) -> Load:
    """bench/transactions.py against a contender's Service."""
    where = ("--host", f"{contender.name}.{NAMESPACE}.svc", "--port", str(contender.port))
    logins = [f"--user={user}" for user in workload.users] + [f"--database={name}" for name in workload.databases]
    options = (*where, *logins, "--clients", str(CLIENTS), "--duration", str(seconds))
    return Load(clients, PROGRAM, ground.password, *options)


def step(ground: Ground, contender: Contender, due: float, what: str) -> float:
    """Do `what` when the clock says `due`; returns when it was begun, in seconds since the epoch."""
    time.sleep(max(0.0, due - time.time()))
    begun = time.time()
    if what == "rollout restart":
        contenders.restart(ground.kubectl, contender, NAMESPACE)
    elif what == "delete a pod":
        contenders.delete_pod(ground.kubectl, contender, NAMESPACE)
    else:
        contender.scale(int(what.removeprefix("scale to ")))
    return begun


# What is told


def tables(trials: Sequence[Trial]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """By workload: its title, and rows with the contenders side by side; the first row has their names."""
    titles = list(dict.fromkeys(t.workload for t in trials))
    by_title = {title: [t for t in trials if t.workload == title] for title in titles}
    return [
        (title, [("", *(t.contender for t in row)), *((what, *map(tell, row)) for what, tell in (*ROWS, *kinds(row)))])
        for title, row in by_title.items()
    ]


def kinds(trials: Sequence[Trial]) -> list[Row]:
    """A row for each kind of error that is not "too many clients"."""
    found = sorted({kind for t in trials for kind in t.failures})
    return [(f"errors: {kind}", partial(of_kind, kind)) for kind in found]


def of_kind(kind: str, trial: Trial) -> str:
    return str(trial.failures.get(kind, 0))


def text(trials: Sequence[Trial]) -> str:
    """The tables for a terminal."""
    return "\n\n".join(f"{title}:\n{figures.columns(rows)}" for title, rows in tables(trials))


def markdown(trials: Sequence[Trial]) -> str:
    """The tables for a page."""
    return "\n\n".join(f"**{title}**\n\n{figures.columns_markdown(rows)}" for title, rows in tables(trials))


def picture(trials: Sequence[Trial]) -> str:
    """The SVG file. Steps are marked where the last contender took them; the others took them at the same seconds."""
    panels = []
    for title in dict.fromkeys(t.workload for t in trials):
        row = [t for t in trials if t.workload == title]
        lines = [plot.Line(t.contender, t.samples) for t in row]
        panels.append(plot.Panel(title, lines, row[-1].steps, Fleet.MAX_CONNECTIONS, budget=BUDGET))
    return plot.svg("Server connections in PostgreSQL while the same steps are taken", panels)
