"""kubectl pgpool: its commands, what they print and how they fail. Against a real API server: tests/integration."""

import io
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from poolfleet.cli import cluster
from poolfleet.cli.cluster import Target, connect, explain_pool
from poolfleet.cli.main import main
from poolfleet.cli.text import addition, explained, table
from poolfleet.kube.client import ConfigException, Kube
from poolfleet.kube.errors import Forbidden, NotFound
from poolfleet.kube.kinds import POD, POOL, SERVER, Kind
from poolfleet.plan.explanation import Line
from poolfleet.plan.world import Ledger
from tests.unit.explain_fixtures import Body, entry, pod, pool, server, told

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVER_DOCUMENT: Body = {
    "kind": "PgServer",
    "metadata": {"name": "db", "namespace": "data"},
    "spec": {"host": "db", "maxConnections": 100, "allowedNamespaces": {"from": "All"}},
}


def document(name: str = "shop", **spec: Any) -> Body:
    """A PgPool as somebody writes it."""
    made = pool(name, **spec)
    return {"kind": "PgPool", "metadata": {"name": name, "namespace": "demo"}, "spec": made["spec"]}


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(*documents: Body) -> str:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump_all(documents))
        return str(path)

    return write


# simulate


def simulate(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["simulate", *argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_simulate_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = simulate(capsys, "-f", str(EXAMPLES / "neon.yaml"))
    assert (code, err) == (0, "")
    assert "=   97   budget" in out
    assert "shop-pod-1  shop        48      48         48     48" in out
    assert "At most 97 of 97 connections at any moment: within the budget." in out
    assert out == "\n".join(line.rstrip() for line in out.split("\n"))  # no trailing spaces, no colours
    assert "\x1b" not in out


def test_every_example_can_be_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    for example in sorted(EXAMPLES.glob("*.yaml")):
        assert simulate(capsys, "-f", str(example), "--max-connections", "100")[0] == 0, example.name


def test_flags_change_the_documents(capsys: pytest.CaptureFixture[str], file: Any) -> None:
    spec = file(SERVER_DOCUMENT, document())
    argv = ("-f", spec, "--max-connections", "200", "--replicas", "3", "--pools", "2", "--surge", "2", "-o", "json")
    code, out, _ = simulate(capsys, *argv)
    [result] = json.loads(out)["servers"]
    assert code == 0
    assert [(p["pool"], p["replicas"], p["share"]) for p in result["pools"]] == [
        ("demo/shop", 3, 89),
        ("demo/shop-copy-2", 3, 88),
    ]
    assert [p["poolSize"] for p in result["pods"]] == [30, 29, 29, 29, 29, 29]
    assert {moment["bound"] for moment in result["rollout"]} == {175, 177}
    assert result["surge"] == 2


def test_autoscaling_is_shown_with_the_pods_that_it_has_at_least(capsys: pytest.CaptureFixture[str], file: Any) -> None:
    spec = file(SERVER_DOCUMENT, document(autoscaling={"minReplicas": 3, "maxReplicas": 9}))
    code, out, _ = simulate(capsys, "-f", spec, "--max-connections", "100", "-o", "json")
    [result] = json.loads(out)["servers"]
    assert (code, [p["replicas"] for p in result["pools"]]) == (0, [3])
    assert [n for n in result["notes"] if "between 3 and 9 pods, never more than fit; shown with 3" in n]
    code, out, _ = simulate(capsys, "-f", spec, "--max-connections", "100", "-o", "json", "--replicas", "9")
    [result] = json.loads(out)["servers"]
    assert [p["replicas"] for p in result["pools"]] == [9]
    assert not [n for n in result["notes"] if "between" in n]


def test_documents_come_from_many_files_lists_and_standard_input(
    capsys: pytest.CaptureFixture[str], file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = {"kind": "List", "items": [document(), {"kind": "Secret", "metadata": {"name": "login"}}]}
    monkeypatch.setattr(sys, "stdin", io.StringIO(yaml.safe_dump(objects)))
    code, out, _ = simulate(capsys, "-f", file(SERVER_DOCUMENT), "-f", "-")
    assert code == 0 and "demo/shop " in out


def test_the_older_pool_of_a_cluster_comes_first_wherever_it_stands(
    capsys: pytest.CaptureFixture[str], file: Any
) -> None:
    young, old = pool("young", born=9), pool("old", born=1)
    old["metadata"]["creationTimestamp"] = datetime(2026, 1, 1, tzinfo=UTC)  # as YAML reads it without quotes
    out = simulate(capsys, "-f", file(SERVER_DOCUMENT, young, old), "-o", "json")[1]
    assert [p["pool"] for p in json.loads(out)["servers"][0]["pools"]] == ["demo/old", "demo/young"]


def test_a_pool_that_gets_nothing_is_an_exit_code(capsys: pytest.CaptureFixture[str], file: Any) -> None:
    code, out, err = simulate(capsys, "-f", file(SERVER_DOCUMENT, document(replicas=90)))
    assert (code, err) == (1, "")
    assert "BudgetTooSmall: needs (90 replicas + 1) x 1 databases = 91, there is 87; it gets nothing new" in out
    assert "No pods, so there is nothing to roll out." in out


def test_a_server_that_is_not_there_can_be_taken_for_one(capsys: pytest.CaptureFixture[str], file: Any) -> None:
    spec = file(document())
    assert simulate(capsys, "-f", spec)[::2] == (
        1,
        "error: PgPool demo/shop: spec.serverRef: PgServer data/db is not in the files. Add it, or give "
        "--max-connections\n",
    )
    code, out, _ = simulate(capsys, "-f", spec, "--max-connections", "50")
    assert code == 0 and "! PgServer data/db is not in the files" in out


def test_copies_of_a_pool_share_its_inline_server(capsys: pytest.CaptureFixture[str], file: Any) -> None:
    inline = document(serverRef=None, server={"host": "db", "maxConnections": 50})
    del inline["spec"]["serverRef"]
    code, out, _ = simulate(capsys, "-f", file(inline), "--pools", "2")
    assert code == 0 and out.count("PgServer demo/shop, ") == 1 and "! The server of PgPool demo/shop is inline" in out


def test_a_namespace_that_is_not_allowed_gets_nothing(capsys: pytest.CaptureFixture[str], file: Any) -> None:
    chosen = {"from": "Selector", "selector": {"matchLabels": {"db": "yes"}}}
    closed = {**SERVER_DOCUMENT, "spec": {**SERVER_DOCUMENT["spec"], "allowedNamespaces": chosen}}
    assert "does not allow PgPools" in simulate(capsys, "-f", file(closed, document()))[1]
    namespace = {"kind": "Namespace", "metadata": {"name": "demo", "labels": {"db": "yes"}}}
    code, out, _ = simulate(capsys, "-f", file(closed, document(), namespace))
    assert code == 0 and "!" not in out


@pytest.mark.parametrize(
    ("documents", "error"),
    [
        ([document(replicas=-1)], "PgPool demo/shop: spec.replicas: Input should be greater than or equal to 0"),
        ([SERVER_DOCUMENT, document(databases=[])], "PgPool demo/shop: spec.databases: List should have at least 1"),
        (
            [{"kind": "PgServer", "metadata": {"name": "A"}, "spec": {}}],
            "PgServer default/A: spec.host: Field required",
        ),
        ([document(), document()], "PgPool demo/shop: is there twice"),
        ([SERVER_DOCUMENT], "there is no PgPool in the files"),
        ([{"kind": "PgPool", "spec": {}}], "spec.yaml: PgPool: metadata.name: Field required"),
        ([{"spec": {}}], "a document is no Kubernetes object"),
    ],
)
def test_documents_that_are_wrong(
    capsys: pytest.CaptureFixture[str], file: Any, documents: Sequence[Body], error: str
) -> None:
    code, out, err = simulate(capsys, "-f", file(*documents))
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and error in err and err.count("\n") == 1


def test_files_that_are_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    code, _, err = simulate(capsys, "-f", str(tmp_path / "none"), "-f", str(broken))
    assert code == 1
    assert err.splitlines()[0] == f"error: {tmp_path}/none: No such file or directory"
    assert err.splitlines()[1].startswith(f"error: {broken}: not YAML: ")


def test_maxconnections_that_can_only_be_discovered(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = simulate(capsys, "-f", str(EXAMPLES / "pgpool.yaml"))
    assert code == 1 and "spec.maxConnections: is not set" in err and "--max-connections" in err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["simulate"],
        ["simulate", "-f", "x", "--surge", "-1"],
        ["simulate", "-f", "x", "--pools", "0"],
        ["simulate", "-f", "x", "-o", "yaml"],
        ["explain"],
        ["drain", "x"],
    ],
)
def test_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as failed:
        main(argv)
    assert failed.value.code == 2 and "usage: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["explain", "simulate"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and "examples:" in capsys.readouterr().out


# explain


class FakeKube:
    """What an API server would answer; `hidden` are (plural, namespace) that may not be read."""

    def __init__(self, *objects: Body, hidden: Sequence[tuple[str, str | None]] = ()) -> None:
        self.objects, self.hidden = objects, hidden

    async def get(self, kind: Kind, namespace: str, name: str) -> Body:
        if (kind.plural, namespace) in self.hidden:
            raise Forbidden(f"{kind.plural} is forbidden", 403)
        for each in await self.list(kind, namespace):
            if each["metadata"]["name"] == name:
                return each
        raise NotFound(f"{kind.plural} {name} not found", 404)

    async def list(self, kind: Kind, namespace: str | None = None, label_selector: str | None = None) -> list[Body]:
        if (kind.plural, namespace) in self.hidden:
            raise Forbidden(f"{kind.plural} is forbidden", 403)
        assert (label_selector is not None) == (kind == POD)
        found = [each for each in self.objects if each["kind"] == kind.kind]
        return [each for each in found if namespace in (None, each["metadata"]["namespace"])]


def a_cluster(hidden: Sequence[tuple[str, str | None]] = ()) -> Kube:
    """Two pools of two namespaces on data/db."""
    mine, other = pool(), pool("web", "other", born=2)
    mine["status"] = {
        "connections": {"budget": 44, "granted": 40},
        "conditions": [{"type": "Ready", "status": "False", "reason": "WaitingForPods", "message": "0 of 2 ready"}],
    }
    entries = (entry("p1", 40), entry("w1", 30, of="other/web"))
    bodies = (pod("p1", directive=told(40)), pod("w1", "web", "other", told(30, database="web")), pod("x", "else"))
    objects = (server(Ledger(7, entries), (mine, other)), mine, other, *bodies)
    return cast(Kube, FakeKube(*objects, hidden=hidden))


async def test_explain_with_all_rights() -> None:
    said = await explain_pool(a_cluster(), "demo", "shop")
    assert (said.server, [p.pool for p in said.pools]) == ("data/db", ["demo/shop", "other/web"])
    assert [(p.pod, p.pool_size) for p in said.pods] == [("p1", 40)]
    assert said.notes == ("PgPool: WaitingForPods: 0 of 2 ready",)
    assert [fleet.pool for fleet in said.fleets] == ["demo/shop"]
    assert "Clients, as status shows them" in explained(said)


async def test_explain_with_a_tenants_rights() -> None:
    hidden = [(SERVER.plural, "data"), (SERVER.plural, None)]
    said = await explain_pool(a_cluster(hidden), "demo", "shop")
    assert [fleet.pool for fleet in said.fleets] == ["demo/shop"]
    assert said.notes[0].startswith('PgServer "db" of namespace "data" cannot be read: pgservers is forbidden. Ask')
    assert [(p.pool, p.share, p.sure) for p in said.pools] == [("demo/shop", 44, None)]
    assert [(p.pod, p.pool_size, p.bound) for p in said.pods] == [("p1", 40, None)]


async def test_explain_names_what_else_cannot_be_read() -> None:
    hidden = [(SERVER.plural, None), (POOL.plural, "other"), (POD.plural, "other")]
    said = await explain_pool(a_cluster(hidden), "demo", "shop")
    assert any("PgPool other/web" in note for note in said.notes)
    assert any('The pods of namespace "other"' in note for note in said.notes)
    assert len(said.pools) == 2


async def test_explain_without_the_server() -> None:
    objects = [each for each in cast(FakeKube, a_cluster()).objects if each["kind"] != "PgServer"]
    said = await explain_pool(cast(Kube, FakeKube(*objects)), "demo", "shop")
    assert "cannot be read: pgservers db not found." in said.notes[0] and "Ask" not in said.notes[0]


async def test_no_kubeconfig_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "IN_CLUSTER", tmp_path / "none")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(ConfigException, match="there is no kubeconfig at"):
        async with connect(Target()):
            pass


def test_explain_fails_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "shop", "--kubeconfig", str(tmp_path / "config")]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: there is no kubeconfig at ") and said.err.count("\n") == 1


# text


def test_tables_align_numbers_to_the_right_and_end_without_spaces() -> None:
    assert table([("POD", "SIZE", "WHY"), ("a", 5, "x"), ("long", None, ""), ("b", 123, "")], " ") == (
        " POD   SIZE  WHY\n a        5  x\n long     -\n b      123\n"
    )
    assert table([]) == ""


def test_an_addition_is_one_column_of_numbers() -> None:
    lines = [
        Line("", 100, "budget"),
        Line("-", 7, "granted", "now"),
        Line("of which", 2, "ghosts"),
        Line("=", 93, "free"),
    ]
    assert "".join(addition("Now", lines)) == (
        "Now\n     100   budget\n  -    7   granted          now\n      (2)  of which ghosts\n  =   93   free\n\n"
    )
    assert list(addition("Now", [])) == []
