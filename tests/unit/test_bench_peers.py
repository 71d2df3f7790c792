"""bench/peers.py and what it stands on, without a cluster: sizes, manifests, clients, the table and the plot."""

import argparse
import io
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest

from bench import contenders, peers, plot, run, sampler, transactions
from bench.contenders import Fleet, Ground, Sizes, Workload, ini, zalando
from bench.load import Load
from bench.peers import Trial
from poolfleet.api.pgpool import PgPoolSpec
from tests.e2e import kit
from tests.unit.test_load import StandIn, standing_in

SVG = "{http://www.w3.org/2000/svg}"


def trial(contender: str, counts: list[int], errors: dict[str, int] | None = None, refused: int = 0) -> Trial:
    """Samples every half second."""
    load = {"transactions": 900, "seconds": 2.0, "errors": errors or {}, "p50_ms": 12.0, "p99_ms": None}
    samples = tuple((n / 2, count) for n, count in enumerate(counts))
    return Trial("1 database, 1 user", contender, samples, ((0.5, "scale to 6"),), load, refused)


@pytest.mark.parametrize("replicas, sizes", [(2, (15, 7, 30)), (3, (10, 5, 20)), (6, (5, 2, 10)), (7, (4, 2, 8))])
def test_zalandos_division_rounds_down_at_every_step(replicas: int, sizes: tuple[int, int, int]) -> None:
    assert zalando(replicas) == Sizes(*sizes)


def test_a_peers_file_has_every_database_of_the_server_and_its_sizes() -> None:
    text = ini("db.svc", zalando(3), {"server_login_retry": "5"})
    databases, settings = text.split("[pgbouncer]\n")
    assert databases.split() == ["[databases]", "*", "=", "host=db.svc", "port=5432"]
    found = dict(line.split(" = ", 1) for line in settings.splitlines())
    sizes = {key: found[key] for key in ("default_pool_size", "reserve_pool_size", "max_db_connections")}
    assert sizes == {"default_pool_size": "10", "reserve_pool_size": "5", "max_db_connections": "20"}
    assert found["server_login_retry"] == "5"
    assert contenders.pass_through(6) == Sizes(20)


def test_a_deployment_leaves_its_rolling_update_to_kubernetes() -> None:
    spec = contenders.deployment("ns", "zalando", "image", 6, "files-6")["spec"]
    assert "strategy" not in spec
    assert "terminationGracePeriodSeconds" not in spec["template"]["spec"]
    assert spec["replicas"] == 6
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    (volume,) = spec["template"]["spec"]["volumes"]
    assert volume["secret"]["secretName"] == "files-6"


class Cluster:
    """Takes notes instead of orders."""

    def __init__(self, pods: list[dict[str, Any]]) -> None:
        self.applied: list[kit.Manifest] = []
        self.calls: list[tuple[str, ...]] = []
        self.pods = pods

    def apply(self, *manifests: kit.Manifest) -> None:
        self.applied += manifests

    def run(self, *args: str, timeout: float = 0) -> str:
        self.calls.append(args)
        return ""

    def get_json(self, *args: str) -> kit.Manifest:
        return {"items": self.pods}


def ground(pods: list[dict[str, Any]] | None = None) -> tuple[Any, Ground]:
    cluster: Any = Cluster(pods or [])
    return cluster, Ground(cluster, kit.Postgres(cluster, "bench"), "image", "pass-word")


def test_scaling_sets_zalandos_sizes_anew_and_leaves_those_of_the_others() -> None:
    workload = Workload(("a",), ("u", "v"))
    secrets = {}
    for name in ("pass-through", "zalando"):
        cluster, base = ground()
        (contender,) = (c for c in contenders.all_of(base, workload) if c.name == name)
        contender.scale(3)
        contender.scale(6)
        secrets[name] = {m["metadata"]["name"] for m in cluster.applied if m["kind"] == "Secret"}
        userlist = cluster.applied[0]["stringData"]["userlist.txt"]
        assert userlist.splitlines() == ['"u" "pass-word"', '"v" "pass-word"']
    assert secrets == {"pass-through": {"pass-through-20-0-0"}, "zalando": {"zalando-10-5-20", "zalando-5-2-10"}}


def test_the_pod_that_is_deleted_runs_and_is_not_going_already() -> None:
    def pod(name: str, phase: str, **more: str) -> dict[str, Any]:
        return {"metadata": {"name": name, **more}, "status": {"phase": phase}}

    going = pod("going", "Running", deletionTimestamp="now")
    cluster, base = ground([going, pod("pending", "Pending"), pod("old", "Running"), pod("young", "Running")])
    contenders.delete_pod(cluster, Fleet(base, Workload(("a",), ("u",))), "bench")
    assert cluster.calls == [("-n", "bench", "delete", "pod", "old", "--wait=false")]


def test_the_pool_has_the_same_budget_as_the_others_and_a_spec_that_is_one() -> None:
    _, base = ground()
    spec = Fleet(base, peers.WORKLOADS[1]).spec()
    parsed = PgPoolSpec.model_validate(spec)
    assert [d.name for d in parsed.databases] == ["bench_a", "bench_b"]
    assert spec["server"]["maxConnections"] - 3 - 2 - spec["server"]["headroom"] == contenders.BUDGET


# The clients


@pytest.mark.parametrize(
    "error, expected",
    [
        (psycopg.errors.TooManyConnections("whatever"), "too many clients"),
        (psycopg.OperationalError("FATAL:  server login failed: FATAL sorry, too many clients"), "too many clients"),
        (psycopg.OperationalError("FATAL:  remaining connection slots are reserved for roles"), "too many clients"),
        (psycopg.OperationalError("connection failed: Connection refused\n\tIs the server"), "connection refused"),
        (psycopg.OperationalError("consuming input: server closed the connection unexpectedly"), "connection lost"),
        (psycopg.OperationalError('server at "10.0.0.1", port 6432 failed: expected a, got b'), "expected a, got b"),
        (TimeoutError(), "timeout"),
        (psycopg.OperationalError('at "10.0.0.1", port 6432 failed: FATAL:  query_wait_timeout'), "query_wait_timeout"),
    ],
)  # fmt: skip
def test_errors_are_sorted(error: Exception, expected: str) -> None:
    assert transactions.kind(error) == expected


def test_postgresqls_own_refusals_are_found_in_its_log() -> None:
    cluster, base = ground()
    lines = [
        "2026-01-01 FATAL:  sorry, too many clients already",
        "2026-01-01 FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        "2026-01-01 FATAL:  password authentication failed",
    ]
    cluster.run = lambda *args: "\n".join(lines)
    assert base.postgres.refused(0.0) == lines[:2]


def options(where: list[str], monkeypatch: pytest.MonkeyPatch, *more: str) -> Any:
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    return transactions.parse([*where, "--work-ms", "0", "0", *more])


async def test_clients_run_transactions_and_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "BACK_OFF", (0.0, 0.0))
    server = StandIn(broken=(4,))  # the first query of the second transaction
    async with standing_in(server) as where:
        parsed = options(where, monkeypatch, "--clients", "1", "--duration", "0.5")
        told = await transactions.run(parsed)
    assert parsed.target["password"] == "secret"
    assert list(told["errors"].values()) == [1]
    assert server.logins == 2
    assert told["transactions"] == (server.queries - 1) // 3 > 1
    assert told["p50_ms"] <= told["p99_ms"]


async def test_clients_of_a_full_server_are_counted_as_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing_in(StandIn(room=0)) as where:
        told = await transactions.run(options(where, monkeypatch, "--clients", "2", "--duration", "0.05"))
    assert told["errors"] == {"too many clients": 2}
    assert (told["transactions"], told["p50_ms"]) == (0, None)


def loading(answer: str) -> Load:
    """The clients' program, which answers so once it has the password."""
    code = f"assert input() == 'pass-word'\nprint({answer!r})"

    class Kubectl:
        def popen(self, *args: str, **pipes: Any) -> subprocess.Popen[str]:
            assert "pass-word" not in " ".join(args)
            assert args[args.index("--host") + 1] == f"poolfleet.{peers.NAMESPACE}.svc"
            assert args[args.index("--port") + 1] == "6432"
            assert [a for a in args if a.startswith("--user")] == ["--user=bench_a", "--user=bench_b"]
            return subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)

    kubectl: Any = Kubectl()
    base = Ground(kubectl, kit.Postgres(kubectl, peers.NAMESPACE), "image", "pass-word")
    workload = peers.WORKLOADS[1]
    return peers.load_of(kit.Clients(kubectl, peers.NAMESPACE), base, workload, Fleet(base, workload), 60)


def test_the_clients_say_when_they_began_and_what_they_have_seen() -> None:
    with loading('{"began": 5.5}\n{"summary": {"transactions": 3}}') as load:
        assert load.began == 5.5
        assert load.summary(30) == {"transactions": 3}


@pytest.mark.parametrize("answer", ["Traceback: boom", '{"began": 5.5}\nTraceback:\nboom', '{"began": 5.5}'])
def test_clients_that_fail_say_why(answer: str) -> None:
    with pytest.raises(kit.KubectlError, match=r"boom|an early end"), loading(answer) as load:
        load.summary(30)


def test_the_program_needs_nothing_but_psycopg() -> None:
    imports = [
        line for line in Path(transactions.__file__).read_text().splitlines() if line.startswith(("import", "from"))
    ]
    modules = {line.split()[1].partition(".")[0] for line in imports}
    assert modules - sys.stdlib_module_names == {"psycopg"}
    assert peers.TOO_MANY == transactions.TOO_MANY


def test_lines_of_psql_are_read_and_what_stands_between_them_is_not_a_sample() -> None:
    assert sampler.parse('{"t" : 1.25, "by" : { "u" : 3, "" : 1 }}\n') == (1.25, {"u": 3, "": 1})
    assert sampler.parse('{"t" : 1.25, "by" : null}\n') == (1.25, {})
    assert sampler.parse("\n") is None


# What is told


def test_samples_count_the_users_connections_while_the_clients_ran() -> None:
    samples = [(9.9, {"u": 50}), (10.0, {"u": 2, "v": 3, "admin": 9}), (12.0, {"u": 1, "": 1}), (12.1, {"u": 70})]
    assert sampler.counted(samples, ("u", "v"), 10.0, 2.0) == ((0.0, 5), (2.0, 2))
    with pytest.raises(AssertionError, match="no sample"):
        sampler.counted(samples, ("u",), 20.0, 2.0)


def test_the_budget_itself_is_not_over_the_budget() -> None:
    result = trial("x", [60, 61, 60, 97])
    assert (result.peak, result.over, result.median) == (97, 2, 60.5)
    assert result.seconds_over == pytest.approx(0.5 + sampler.INTERVAL)


def test_the_tables_show_contenders_side_by_side() -> None:
    ours = trial("Poolfleet", [58, 60])
    theirs = trial("pass-through 20", [60, 97], {"too many clients": 7, "connection lost": 2, "timeout": 3}, refused=89)
    lines = peers.markdown([theirs, ours]).splitlines()
    assert lines[2] == "| | pass-through 20 | Poolfleet |"
    for line in (
        "| peak server connections | 97 | 60 |",
        "| samples above it, of all | 1 of 2 | 0 of 2 |",
        '| clients refused ("too many clients") | 7 | 0 |',
        "| other errors of clients | 5 | 0 |",
        "| errors: connection lost | 2 | 0 |",
        "| errors: timeout | 3 | 0 |",
        "| logins that PostgreSQL refused to the poolers | 89 | 0 |",
        "| transactions per second | 450 | 450 |",
        "| a transaction, p50 / p99, ms | 12.0 / - | 12.0 / - |",
    ):
        assert line in lines
    assert "1 database, 1 user:" in peers.text([theirs, ours])
    assert peers.text([]) == ""


def test_the_page_has_a_place_for_the_tables_and_shows_the_plot() -> None:
    bench = run.Bench()
    bench.trials = [trial("Poolfleet", [60])]
    page = run.page(run.PAGE.read_text(), bench, "on a machine\n", argparse.Namespace(contender_seconds=60))
    assert "| peak server connections | 60 |" in page
    assert f"]({run.PLOT.name})" in page


# The plot


def test_the_plot_has_a_line_for_each_contender_the_budget_and_the_steps() -> None:
    drawing = peers.picture([trial("pass-through 20", [0, 97, 97, 10]), trial("A & B", [60, 60, 60, 58])])
    root = ElementTree.fromstring(drawing)
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"pass-through 20", "A & B", "budget 60", "scale to 6", "1 database, 1 user", "100", "0 s"} <= set(words)
    lines = [path.get("d", "") for path in root.iter(f"{SVG}path") if path.get("fill") == "none"]
    scale = plot.Scale(plot.TOP + 14, 1.5, 100)
    assert lines[0] == (
        f"M{scale.x(0)} {scale.y(0)}H{scale.x(0.5)}V{scale.y(97)}H{scale.x(1.5)}V{scale.y(10)}H{scale.x(1.5)}"
    )
    assert lines[1].count("V") == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.svg("", [])


def test_the_plots_scale_has_its_origin_below_and_its_ends_within_the_picture() -> None:
    scale = plot.Scale(10, 60, 100)
    assert (scale.x(0), scale.x(60)) == (plot.LEFT, plot.WIDTH - plot.RIGHT)
    assert (scale.y(0), scale.y(100)) == (10 + plot.PANEL, 10)
