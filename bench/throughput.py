"""pgbench through a Poolfleet pod, against the same PgBouncer started by hand with the same settings."""

import re
import statistics

from bench.figures import Figure, spread
from bench.ground import BY_HAND, CONNECTIONS, POOL, Ground

CLIENTS = 20
MODES = ("simple", "prepared")
GOAL = 0.97


class PgbenchError(Exception):
    """pgbench said what cannot be taken for a measurement."""


def tps(output: str) -> float:
    """Transactions per second out of what pgbench prints. Raises PgbenchError if a transaction failed."""
    found = re.search(r"^tps = ([0-9.]+)", output, re.MULTILINE)
    failed = re.search(r"^number of failed transactions: ([0-9]+)", output, re.MULTILINE)
    if found is None or failed is None or int(failed[1]):
        raise PgbenchError(output.strip())
    return float(found[1])


def measure(ground: Ground, rounds: int, seconds: int) -> list[Figure]:
    """Each round runs both, in turn first and second. Raises PgbenchError, or AssertionError if settings differ."""
    differences = ground.differences()
    assert not differences, f"the two PgBouncers do not have the same settings: {differences}"
    print("    SHOW CONFIG and SHOW DATABASES of both: no difference", flush=True)
    return [_compared(ground, mode, rounds, seconds) for mode in MODES]


def _compared(ground: Ground, mode: str, rounds: int, seconds: int) -> Figure:
    rates: dict[str, list[float]] = {POOL: [], BY_HAND: []}
    for name in rates:  # opens the server connections, prepares the statements
        _run(ground, name, mode, 2)
    before = {name: ground.pgbouncer_cpu(name) for name in rates}
    for number in range(rounds):
        for name in (POOL, BY_HAND) if number % 2 else (BY_HAND, POOL):
            rates[name].append(_run(ground, name, mode, seconds))
    # What a busy machine disturbs least: the CPU time that either PgBouncer took for a query.
    cost = {name: (ground.pgbouncer_cpu(name) - before[name]) * 1e6 / (sum(rates[name]) * seconds) for name in rates}
    for name in rates:
        line = " ".join(f"{rate:6.0f}" for rate in rates[name])
        print(f"    {mode:8} {name:7} {line} tps, {cost[name]:.1f} µs of PgBouncer's CPU per query", flush=True)
    ratios = [ours / theirs for ours, theirs in zip(rates[POOL], rates[BY_HAND], strict=True)]
    note = (
        f"tps {spread(rates[POOL], '.0f')} / {spread(rates[BY_HAND], '.0f')}; PgBouncer's CPU per query "
        f"{cost[POOL]:.1f} / {cost[BY_HAND]:.1f} µs; {rounds} rounds of {seconds} s each, in turn first and second; "
        f"`pgbench -S -M {mode} -c {CLIENTS}`, {CONNECTIONS} server connections"
    )
    met = round(statistics.median(ratios), 3) >= GOAL
    return Figure(f"throughput, {mode} protocol, Poolfleet / by hand", spread(ratios, ".3f"), f">= {GOAL}", met, note)


def _run(ground: Ground, name: str, mode: str, seconds: int) -> float:
    options = ("-n", "-S", "-M", mode, "-c", str(CLIENTS), "-j", "2", "-T", str(seconds))
    return tps(ground.pgbench(ground.hosts[name], *options))
