"""bench/flash.py and bench/many.py without a cluster: who is compared, what is told, the plot, the page."""

import argparse
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import contenders, flash, many, plot, run, wire
from bench.contenders import Direct, Fleet, Peer
from bench.figures import Figure, columns, columns_markdown
from bench.flash import Trial
from bench.sampler import Replicas
from poolfleet.api.pgpool import PgPoolSpec
from tests.e2e import kit
from tests.unit.test_bench_peers import SVG, ground


def phase(served: int, p50: float | None = 210.4, **errors: int) -> dict[str, Any]:
    return {"served": served, "errors": errors, "p50_ms": p50, "p99_ms": p50, "max_ms": p50}


def trial(contender: str, replicas: tuple[tuple[float, int], ...] = (), at_once: dict[str, int] | None = None) -> Trial:
    phases = {"rise": phase(90, timeout=2), "at once": {**phase(300), "errors": at_once or {}}, "after": phase(0, None)}
    load = {"seconds": 3.0, "late_ms": 4.2, "phases": phases}
    return Trial(contender, ((0.0, 5), (2.0, 97), (3.0, 0)), replicas, load, 199)


def test_the_pods_of_a_fixed_size_have_the_whole_budget() -> None:
    cluster, base = ground()
    direct, fixed, _ = flash.all_of(base)
    assert isinstance(direct, Direct)
    assert (direct.name, direct.port) == ("postgres", 5432)
    assert isinstance(fixed, Peer)
    fixed.start()
    (deployment,) = (m for m in cluster.applied if m["kind"] == "Deployment")
    (secret,) = (m for m in cluster.applied if m["kind"] == "Secret")
    assert deployment["spec"]["replicas"] == 2
    assert "default_pool_size = 30\n" in secret["stringData"]["pgbouncer.ini"]


def test_the_pool_begins_with_as_many_pods_and_scales_itself() -> None:
    _, base = ground()
    fleet = flash.all_of(base)[-1]
    assert isinstance(fleet, Fleet)
    spec = PgPoolSpec.model_validate(fleet.spec())
    assert spec.autoscaling is not None
    assert spec.replicas == spec.autoscaling.min_replicas == flash.PODS
    peak = flash.RATE[1] * sum(flash.WORK_MS) / 2 / 1000  # requests under way
    assert flash.PODS < peak / spec.autoscaling.target_clients_per_replica <= spec.autoscaling.max_replicas
    assert peak < contenders.BUDGET < flash.AT_ONCE
    assert (Fleet(base, flash.WORKLOAD).spec()["replicas"], contenders.REPLICAS) == (3, 3)


def test_the_clients_are_led_to_the_contender_and_the_password_is_in_no_argument() -> None:
    class Kubectl:
        def popen(self, *args: str, **_: Any) -> None:
            self.args = args

    kubectl: Any = Kubectl()
    _, base = ground()
    clients = kit.Clients(kubectl, flash.NAMESPACE)
    for contender, host, port in zip(
        flash.all_of(base), ("postgres", "fixed", "poolfleet"), (5432, 6432, 6432), strict=True
    ):
        flash.load_of(clients, base, contender, 90)
        parsed = kubectl.args[kubectl.args.index("flash") + 1 :]
        assert parsed[parsed.index("--host") + 1] == f"{host}.bench-flash.svc"
        assert parsed[parsed.index("--port") + 1] == str(port)
        assert base.password not in kubectl.args
    many.load_of(clients, base, Fleet(base, many.WORKLOAD), 20, 1)
    assert "poolfleet.bench-many.svc" in kubectl.args


def test_numbers_that_hold_are_told_from_the_clients_start_on() -> None:
    samples = [(7.0, 1), (9.0, 2), (12.5, 3), (30.0, 4)]
    assert flash.since(samples, 10.0, 8.0) == ((0.0, 2), (2.5, 3))
    assert flash.since(samples, 5.0, 3.0) == ((2.0, 1),)


def test_ready_pods_are_read_from_a_watch_and_only_changes_kept() -> None:
    class Watch:
        stdout = ("2\n", "2\n", "\n", "3\n")

    class Kubectl:
        def popen(self, *args: str, **_: Any) -> Watch:
            assert "--watch" in args
            return Watch()

    kubectl: Any = Kubectl()
    replicas = Replicas(kubectl, "ns", "poolfleet")
    replicas._read()
    assert [count for _, count in replicas.samples] == [2, 0, 3]


# What is told


def test_the_table_shows_refused_failed_and_times_of_each_phase() -> None:
    ours = trial("Poolfleet", ((0.0, 2), (1.2, 3), (2.6, 4)))
    theirs = trial("direct", at_once={wire.REFUSED: 200, "connection lost": 3})
    lines = flash.markdown([theirs, ours]).splitlines()
    assert lines[0] == "| | direct | Poolfleet |"
    assert lines[1] == "| --- | --- | --- |"
    rise, at_once, after = (i for i, line in enumerate(lines) if ": requests " in line)
    assert lines[rise : rise + 4] == [
        "| 10 to 100 requests/s: requests | 92 | 92 |",
        "| refused | 0 | 0 |",
        "| failed | 2 | 2 |",
        "| served: p50 / p99, ms | 210 / 210 | 210 / 210 |",
    ]
    assert lines[at_once : at_once + 3] == [
        "| 500 at once: requests | 503 | 300 |",
        "| refused | 200 | 0 |",
        "| failed | 3 | 0 |",
    ]
    assert lines[after + 3] == "| served: p50 / p99, ms | - / - | - / - |"
    for line in (
        "| peak server connections | 97 | 97 |",
        "| logins that PostgreSQL refused | 199 | 199 |",
        "| ready pods | - | 2, 3 at 1 s, 4 at 3 s |",
        "| failed: connection lost | 3 | 0 |",
        "| failed: timeout | 2 | 2 |",
    ):
        assert line in lines
    assert not any("failed: too many" in line for line in lines)
    assert flash.text([]) == ""


def test_columns_stand_below_each_other() -> None:
    rows = [("", "a", "bb"), ("what", "1", "2")]
    assert columns(rows).splitlines() == ["      a  bb", "-----------", "what  1  2"]
    assert columns_markdown(rows).splitlines() == ["| | a | bb |", "| --- | --- | --- |", "| what | 1 | 2 |"]


def test_the_plot_has_a_panel_for_connections_and_one_for_pods_and_a_name_has_one_colour() -> None:
    trials = [trial("direct"), trial("fixed", ((0.0, 2),)), trial("Poolfleet", ((0.0, 2), (1.5, 3)))]
    root = ElementTree.fromstring(flash.picture(trials, 2.0))
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"direct", "fixed", "Poolfleet", "budget 60", "Ready pods", "500 at once"} <= set(words)
    lines = [path for path in root.iter(f"{SVG}path") if path.get("fill") == "none"]
    assert [line.get("stroke") for line in lines] == [*plot.COLOURS[:3], *plot.COLOURS[1:3]]
    pods = plot.Scale(plot.TOP + 14 + plot.PANEL + plot.GAP, 3.0, 4, 110)
    assert lines[4].get("d") == f"M{pods.x(0)} {pods.y(2)}H{pods.x(1.5)}V{pods.y(3)}H{pods.x(3)}"
    height = float(root.get("viewBox", "").split()[3])
    assert pods.y(0) < height


# many


def test_memory_per_client_is_what_a_pod_grew_by() -> None:
    before, after = {"a": {"VmRSS": 10.0}, "b": {"VmRSS": 10.0}}, {"a": {"VmRSS": 20.0}, "b": {"VmRSS": 15.0}}
    assert many.per_client(before, after, {"a": 5120, "b": 2560}) == [2.0, 2.0]
    assert many.per_client(before, after, {"a": 1024, "b": 0}) == [10.0]


@pytest.mark.parametrize("errors, served, met", [({}, 100, True), ({wire.REFUSED: 1, "timeout": 2}, 97, False)])
def test_figures_say_whether_all_were_served(errors: dict[str, int], served: int, met: bool) -> None:
    refused = {kind: count for kind, count in errors.items() if kind == wire.REFUSED}
    failed = {kind: count for kind, count in errors.items() if kind != wire.REFUSED}
    logins = {"seconds": 2.5, "connected": {"errors": refused, "p50_ms": 12.0, "p99_ms": 54.0}}
    queries = {"served": 600, "errors": failed, "p50_ms": 9.0, "p99_ms": 35.7}
    told = {"clients": 100, "served": served, "seconds": 60.2, "queries": queries}
    rss = ({"a": {"VmRSS": 18.0}}, {"a": {"VmRSS": 30.0}}, {"a": {"VmRSS": 31.0}})
    figures = many.told_of(logins, told, 42, {"a": 100}, rss, {"a": {"VmHWM": 23.0}})
    assert figures[0].met is met
    assert figures[0].measured == f"{served} of 100; refused {len(refused)}, failed {2 if failed else 0}"
    assert [f.measured for f in figures if "per connected client" in f.what] == ["122.9 KiB"]
    assert any(f.measured == "18.0 MiB / 30.0 MiB / 31.0 MiB" for f in figures)


# The page


def test_the_page_has_a_place_for_both() -> None:
    bench = run.Bench()
    bench.flash = [trial("Poolfleet", ((0.0, 2),))]
    bench.many = [Figure("clients", "all")]
    page = run.page(run.PAGE.read_text(), bench, "on a machine\n", argparse.Namespace(rise=90))
    assert "| 500 at once: requests | 300 |" in page
    assert f"]({run.FLASH_PLOT.name})" in page
    assert "| clients | all |" in page
