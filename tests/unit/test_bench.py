"""The parts of bench/ that can be wrong without a cluster: what is read out of programs' answers, and the table."""

import argparse
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import agents, fleet, polling, proc, run, throughput
from bench.figures import Figure, percentile, spread, text
from bench.ground import Ground, by_key, differences
from bench.proc import cpu_seconds, memory
from bench.throughput import PgbenchError, tps
from tests.e2e import kit

PGBENCH = """\
transaction type: <builtin: select only>
number of transactions actually processed: 24680
number of failed transactions: {failed} (0.000%)
latency average = 2.431 ms
initial connection time = 35.610 ms
tps = 8226.514790 (without initial connection time)
"""
METRICS = """\
# HELP poolfleet_api_requests_total Requests
poolfleet_api_requests_total{code="200",kind="leases",verb="update"} 52.0
poolfleet_api_requests_total{code="201",kind="events",verb="create"} 3.0
poolfleet_api_requests_total{code="200",kind="pgpools",verb="list"} 2.0
poolfleet_api_requests_total{code="200",kind="pgpools/status",verb="patch"} 6.0
poolfleet_api_requests_total{code="201",kind="services",verb="patch"} 1.0
poolfleet_reconcile_total{kind="pgpools",result="ok"} 4.0
poolfleet_reconcile_total{kind="pgservers",result="ok"} 5.0
poolfleet_leader 1.0
"""


def test_pgbench_output_is_read_and_failed_transactions_are_no_measurement() -> None:
    assert tps(PGBENCH.format(failed=0)) == pytest.approx(8226.51479)
    for output in (PGBENCH.format(failed=1), "pgbench: error: connection failed"):
        with pytest.raises(PgbenchError):
            tps(output)


def test_settings_that_differ_are_named_but_for_the_marker_and_what_moves() -> None:
    def loaded(marker: str, size: str, now: str) -> dict[str, str]:
        config = by_key([{"key": "syslog_ident", "value": marker}, {"key": "pkt_buf", "value": "4096"}], "key")
        return config | by_key([{"name": "shop", "pool_size": size, "current_connections": now}], "name")

    assert differences(loaded("cfg-3", "10", "7"), loaded("by-hand", "10", "0")) == []
    assert differences(loaded("cfg-3", "10", "7"), loaded("by-hand", "11", "7")) == ["shop.pool_size: 10 / 11"]
    assert differences({"a.value": "1"}, {}) == ["a.value: 1 / absent"]


def test_writes_are_counted_without_lease_and_events() -> None:
    metrics = fleet.parse(METRICS)
    assert metrics["poolfleet_leader"] == 1
    assert fleet.writes(metrics) == 7
    assert fleet.looks(metrics) == 9


def test_a_process_is_found_by_its_name_wherever_it_stands() -> None:
    class Here:
        def exec(self, namespace: str, pod: str, *command: str, container: str) -> str:
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    here: Any = Here()
    name = Path("/proc/self/comm").read_text().strip()
    found = proc.read(here, "ns", "pod", "container", name, "comm")
    assert found.strip() == name
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        status = proc.read(here, "ns", "pod", "container", "sleep", "status")
        sleeper.kill()
    assert status.startswith("Name:\tsleep\n")
    with pytest.raises(subprocess.CalledProcessError):
        proc.read(here, "ns", "pod", "container", "nobody-is-called-so", "status")


def test_proc_files_are_read() -> None:
    assert memory("VmHWM:\t   26624 kB\nVmRSS:\t   24576 kB\nThreads:\t1\n") == {"VmHWM": 26.0, "VmRSS": 24.0}
    # the command's name may hold blanks and parentheses
    assert cpu_seconds("1 (a) b)) S 0 1 1 0 -1 4194560 900 0 0 0 150 50 0 0 20 0 1 0 100") == 2.0


def test_numbers_are_summed_up() -> None:
    assert spread([3.0, 1.0, 2.0], ".1f", " MiB") == "2.0 MiB (1.0–3.0)"
    assert spread([0.5], ".2f") == "0.50"
    assert [percentile([4, 1, 3, 2], percent) for percent in (1, 50, 75, 99)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_the_table_says_what_missed_its_goal() -> None:
    figures = [Figure("memory", "36 MiB", "<= 35 MiB", False, "of | all"), Figure("CPU", "1 %")]
    lines = text(figures).splitlines()
    assert lines[2].split("  ")[-1] == "<= 35 MiB MISSED"
    assert "memory: of | all" in lines[-1]
    bench = run.Bench()
    bench.figures = figures
    page = run.page(run.PAGE.read_text(), bench, "on a machine\n", argparse.Namespace())
    assert "on a machine" in page
    assert "| memory | 36 MiB | <= 35 MiB MISSED | of \\| all |" in page


def test_a_block_of_the_page_is_written_between_its_markers_and_nowhere_else() -> None:
    page = "head\n<!-- bench a -->\nold\n<!-- end of bench a -->\ntail\n"
    new = run.between(page, "a", "new")
    assert new == "head\n<!-- bench a -->\n\nnew\n\n<!-- end of bench a -->\ntail\n"
    assert run.between(new, "a", "new") == new
    for broken in ("head\n", page + page, page.replace("<!-- end of bench a -->\n", "")):
        with pytest.raises(ValueError, match="bench a"):
            run.between(broken, "a", "new")


@pytest.mark.parametrize("parts", [["operator"], ["throughput", "agent", "peers"]])
def test_the_table_is_not_written_from_some_of_its_parts(parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main([*parts, "--write"])
    assert "operator, polling, throughput, agent together" in capsys.readouterr().err


def test_a_part_that_fails_costs_no_other_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = []

    class Stub:
        def drop(self) -> None:
            dropped.append(True)

    def fail(*_: object) -> list[Figure]:
        raise AssertionError("another operator leads now")

    monkeypatch.setattr(kit, "Kubectl", lambda: None)
    monkeypatch.setattr(Ground, "make", lambda kubectl: Stub())
    monkeypatch.setattr(fleet, "measure", fail)
    monkeypatch.setattr(throughput, "measure", fail)
    monkeypatch.setattr(polling, "measure", lambda kubectl, rest, busy: [Figure("polling", "1 %")])
    monkeypatch.setattr(agents, "measure", lambda ground, seconds: [Figure("agent", "2 MiB")])
    options = argparse.Namespace(rest=1, edits=1, rounds=1, seconds=1)
    bench = run.measure(run.FIGURES, options)
    assert [figure.what for figure in bench.figures] == ["polling", "agent"]
    assert len(bench.failed) == 2
    assert dropped == [True]
