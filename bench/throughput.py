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
    figures = []
    for mode in MODES:
        results: dict[str, list[float]] = {POOL: [], BY_HAND: []}
        for name in results:  # opens the server connections, prepares the statements
            _run(ground, name, mode, 2)
        for number in range(rounds):
            order = (POOL, BY_HAND) if number % 2 else (BY_HAND, POOL)
            for name in order:
                results[name].append(_run(ground, name, mode, seconds))
        ratios = [ours / theirs for ours, theirs in zip(results[POOL], results[BY_HAND], strict=True)]
        for name, rates in results.items():
            print(f"    {mode:9} {name:8} {' '.join(f'{rate:7.0f}' for rate in rates)} tps", flush=True)
        note = (
            f"tps {spread(results[POOL], '.0f')} / {spread(results[BY_HAND], '.0f')}; {rounds} rounds of {seconds} s "
            f"each, in turn; `pgbench -S -M {mode} -c {CLIENTS}`, {CONNECTIONS} server connections"
        )
        ratio = spread(ratios, ".3f")
        met = round(statistics.median(ratios), 3) >= GOAL
        figures.append(Figure(f"throughput, {mode} protocol, Poolfleet / by hand", ratio, f">= {GOAL}", met, note))
    return figures


def _run(ground: Ground, name: str, mode: str, seconds: int) -> float:
    options = ("-n", "-S", "-M", mode, "-c", str(CLIENTS), "-j", "2", "-T", str(seconds))
    return tps(ground.pgbench(ground.hosts[name], *options))
