"""`make bench`: figures, measured side by side in one run.

    python -m bench.run [all | operator | polling | throughput | agent | peers | flash | many …] [--write]

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

from bench import agents, flash, fleet, many, peers, polling, throughput
from bench.contenders import BUDGET
from bench.figures import Figure, markdown, text
from bench.ground import Ground
from poolfleet.kube.errors import ApiError
from tests.e2e import kit

PAGE = kit.ROOT / "docs/benchmarks.md"
PLOT = kit.ROOT / "docs/peers.svg"
FLASH_PLOT = kit.ROOT / "docs/flash.svg"
FIGURES = ("operator", "polling", "throughput", "agent")
"""Parts whose figures are one table, in this order: the operator first, as long as there are few PgPools."""
PARTS = (*FIGURES, "peers", "flash", "many")

FAILURES = (kit.KubectlError, throughput.PgbenchError, ApiError, TimeoutError, AssertionError)

MACHINE = """\
One run of {minutes:.0f} minutes on {cpu}, {cores} cores, {memory:.0f} GiB; kind with Kubernetes {kubernetes}, one node.
"""
CONTENDERS = """\
{clients} clients for {seconds} s per contender; PostgreSQL with max_connections=100, of which {budget} may be used.

![Server connections over time, by contender]({plot})
"""
FLASH = """\
A connection per request: {low} to {high} requests per second within {rise} s, then {at_once} at once, then {low} per
second for {after} s.

![Server connections and ready pods over time, by contender]({plot})
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
        self.trials: list[peers.Trial] = []
        self.flash: list[flash.Trial] = []
        self.many: list[Figure] = []
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
    if "peers" in parts:

        def compare() -> list[Figure]:
            workloads = peers.WORKLOADS if options.workload is None else (peers.WORKLOADS[options.workload - 1],)
            bench.trials = peers.measure(kubectl, workloads, options.contender_seconds)
            return []

        bench.part("the same steps with poolers sized as peers size them, and with Poolfleet", compare)
    if "flash" in parts:

        def sell() -> list[Figure]:
            bench.flash = flash.measure(kubectl, options.rise)
            return []

        bench.part("a flash sale: PostgreSQL alone, PgBouncer of a fixed size, Poolfleet", sell)
    if "many" in parts:

        def stay() -> list[Figure]:
            bench.many = many.measure(kubectl, options.many_seconds, options.clients)
            return []

        bench.part(f"{options.clients} clients that stay connected", stay)
    return bench


def between(page: str, name: str, block: str) -> str:
    """`page` with `block` between its markers of this name. Raises ValueError if it has not both, once each."""
    begin, end = f"<!-- bench {name} -->\n", f"<!-- end of bench {name} -->\n"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page has not one {begin.strip()} with its end")
    return f"{page.partition(begin)[0]}{begin}\n{block.strip()}\n\n{end}{page.partition(end)[2]}"


def machine(seconds: float, kubernetes: str) -> str:
    """Where and how long was measured, in a sentence."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = os.cpu_count()
    return MACHINE.format(minutes=seconds / 60, cores=cores, memory=memory, cpu=_cpu_model(), kubernetes=kubernetes)


def page(old: str, bench: Bench, where: str, options: argparse.Namespace) -> str:
    """docs/benchmarks.md with what `bench` has measured; `where` is machine()."""
    if bench.figures:
        old = between(old, "figures", f"{where}\n{markdown(bench.figures)}")
    if bench.trials:
        seconds = options.contender_seconds
        how = CONTENDERS.format(clients=peers.CLIENTS, seconds=seconds, budget=BUDGET, plot=PLOT.name)
        old = between(old, "peers", f"{where}{how}\n{peers.markdown(bench.trials)}")
    if bench.flash:
        low, high = flash.RATE
        rates = {"low": low, "high": high, "rise": options.rise, "at_once": flash.AT_ONCE, "after": flash.AFTER}
        how = FLASH.format(**rates, plot=FLASH_PLOT.name)
        old = between(old, "flash", f"{where}{how}\n{flash.markdown(bench.flash)}")
    if bench.many:
        old = between(old, "many", f"{where}\n{markdown(bench.many)}")
    return old


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the page if that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all (the default), or some of {', '.join(PARTS)}")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and its plots too")
    parser.add_argument("--rounds", type=int, default=10, help="of pgbench, per protocol (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="of one run of pgbench (default: %(default)s)")
    parser.add_argument(
        "--rest", type=int, default=40, help="seconds that the operator is watched at rest (%(default)s)"
    )
    parser.add_argument("--edits", type=int, default=60, help="edits of each sort (default: %(default)s)")
    parser.add_argument(
        "--workload", type=int, choices=range(1, len(peers.WORKLOADS) + 1), help="of peers; default all"
    )
    parser.add_argument(
        "--contender-seconds", type=int, default=peers.SECONDS, help="of each contender of peers (%(default)s)"
    )
    parser.add_argument("--rise", type=int, default=flash.RISE, help="seconds of flash's rising rate (%(default)s)")
    parser.add_argument("--clients", type=int, default=many.CLIENTS, help="of many (default: %(default)s)")
    parser.add_argument("--many-seconds", type=int, default=60, help="for all clients' turns (default: %(default)s)")
    options = parser.parse_args(arguments)
    parts = list(PARTS) if options.parts in ([], ["all"]) else options.parts
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"there is no {', '.join(unknown)}; there are all, {', '.join(PARTS)}")
    if options.write and 0 < len(set(parts) & set(FIGURES)) < len(FIGURES):
        parser.error(f"--write needs {', '.join(FIGURES)} together: their table shows one run")
    begun = time.monotonic()
    bench = measure(parts, options)
    took = time.monotonic() - begun
    tables = [text(figures) if figures else "" for figures in (bench.figures, bench.many)]
    for told in (tables[0], peers.text(bench.trials), flash.text(bench.flash), tables[1]):
        print(f"\n{told}\n" if told else "", end="")
    print(f"{os.cpu_count()} cores are shared by cluster, database, pool and clients. The bench took {took:.0f} s.")
    if bench.failed:
        sys.exit(f"not measured: {', '.join(bench.failed)}")
    if options.write:
        version = json.loads(kit.Kubectl().run("get", "--raw", "/version"))
        where = machine(took, version["gitVersion"])
        PAGE.write_text(page(PAGE.read_text(), bench, where, options))
        print(f"written: {PAGE.relative_to(kit.ROOT)}")
        if bench.trials:
            PLOT.write_text(peers.picture(bench.trials))
            print(f"written: {PLOT.relative_to(kit.ROOT)}")
        if bench.flash:
            FLASH_PLOT.write_text(flash.picture(bench.flash, options.rise))
            print(f"written: {FLASH_PLOT.relative_to(kit.ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except FAILURES as error:
        sys.exit(f"error: {error}")
