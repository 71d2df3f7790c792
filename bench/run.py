"""`make bench`: figures, measured side by side in one run.

    python -m bench.run [all | operator | polling | throughput | agent …] [--write]

Needs the kind cluster with the operator in it (`make cluster`), and nothing else that runs there: two cores are shared
by cluster, database, pool and clients. `operator` starts the operator's pods anew.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import agents, fleet, polling, throughput
from bench.figures import Figure, markdown, text
from bench.ground import Ground
from poolfleet.kube.errors import ApiError
from tests.e2e import kit

PAGE = kit.ROOT / "docs/benchmarks.md"
PARTS = ("operator", "polling", "throughput", "agent")
"""In this order: the operator first, while the cluster has as few PgPools as it had."""

FAILURES = (kit.KubectlError, throughput.PgbenchError, ApiError, TimeoutError, AssertionError)

HEADING = """\
# Benchmarks

Written by `make bench ARGS=--write`; `make bench` measures the same and prints it. All figures are of one run of
{minutes:.0f} minutes. What is compared was measured in turn, several times; a figure with a range is median
(smallest–largest).

**{cores} cores were shared by the cluster's control plane, PostgreSQL, PgBouncer, the operator and the clients**, so
ratios say more than rates. Figures of CloudNativePG are quoted for comparison; they were not measured in this run.

Machine: {cpu}, {cores} cores, {memory:.0f} GiB; kind with Kubernetes {kubernetes}, one node.

"""
FOOTING = """
What each line measures is in the programs: [throughput](../bench/throughput.py), [agent](../bench/agents.py),
[operator](../bench/fleet.py), [polling](../bench/polling.py). Goals are printed, never asserted by a test: a machine
that is busy otherwise misses them.
"""


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what begins, and the seconds that it took."""
    print(f"--- {what}", flush=True)
    begun = time.monotonic()
    yield
    print(f"=== {time.monotonic() - begun:6.1f} s", flush=True)


class Bench:
    """Figures as they come in. What goes wrong in one part is told and does not cost the others' figures."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.failed: list[str] = []

    def part(self, what: str, measure: Callable[[], Sequence[Figure]]) -> None:
        """Measure one part."""
        with step(what):
            try:
                self.figures += measure()
            except FAILURES as error:
                self.failed.append(what)
                print(f"    FAILED: {type(error).__name__} {error}", flush=True)

    def on_ground(self, ground: Ground, parts: Sequence[str], options: argparse.Namespace) -> None:
        """The parts that need one pod and its like."""

        def clean_up() -> list[Figure]:
            ground.drop()
            return []

        if "throughput" in parts:
            self.part("throughput", lambda: throughput.measure(ground, options.rounds, options.seconds))
        if "agent" in parts:
            self.part("agent", lambda: agents.measure(ground, 15))
        self.part("cleaning up", clean_up)


def measure(parts: Sequence[str], options: argparse.Namespace) -> Bench:
    """These parts, in the order of PARTS."""
    kubectl, bench = kit.Kubectl(), Bench()
    if "operator" in parts:
        what = f"the operator with the PgPools that are there, and with {fleet.POOLS}"
        bench.part(what, lambda: fleet.measure(kubectl, options.rest, options.edits))
    if "polling" in parts:
        bench.part(f"polling {polling.AGENTS} stub agents", lambda: polling.measure(kubectl, rest=26, busy=15))
    if "throughput" in parts or "agent" in parts:
        ground: Ground | None = None

        def prepare() -> list[Figure]:
            nonlocal ground
            ground = Ground.make(kubectl)
            return []

        bench.part("a PgPool with one pod, and the same PgBouncer started by hand", prepare)
        if ground is not None:
            bench.on_ground(ground, parts, options)
    return bench


def page(figures: Sequence[Figure], seconds: float, kubernetes: str) -> str:
    """docs/benchmarks.md."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    head = HEADING.format(
        minutes=seconds / 60, cores=os.cpu_count(), memory=memory, cpu=_cpu_model(), kubernetes=kubernetes
    )
    return head + markdown(figures) + "\n" + FOOTING


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the page if that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all (the default), or some of {', '.join(PARTS)}")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md too; only with all parts")
    parser.add_argument("--rounds", type=int, default=10, help="of pgbench, per protocol (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="of one run of pgbench (default: %(default)s)")
    parser.add_argument(
        "--rest", type=int, default=40, help="seconds that the operator is watched at rest (%(default)s)"
    )
    parser.add_argument("--edits", type=int, default=60, help="edits of each sort (default: %(default)s)")
    options = parser.parse_args(arguments)
    parts = list(PARTS) if options.parts in ([], ["all"]) else options.parts
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"there is no {', '.join(unknown)}; there are all, {', '.join(PARTS)}")
    if options.write and set(parts) != set(PARTS):
        parser.error("--write needs all parts: the page shows one run")
    begun = time.monotonic()
    bench = measure(parts, options)
    took = time.monotonic() - begun
    print(f"\n{text(bench.figures)}\n")
    print(f"{os.cpu_count()} cores are shared by cluster, database, pool and clients. The bench took {took:.0f} s.")
    if bench.failed:
        sys.exit(f"not measured: {', '.join(bench.failed)}")
    if options.write:
        version = json.loads(kit.Kubectl().run("get", "--raw", "/version"))
        PAGE.write_text(page(bench.figures, took, version["gitVersion"]))
        print(f"written: {PAGE.relative_to(kit.ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except FAILURES as error:
        sys.exit(f"error: {error}")
