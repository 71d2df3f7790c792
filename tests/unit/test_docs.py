"""Pages and examples: links lead somewhere, metrics are those of the code, autoscalers scale the pools beside them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from poolfleet.api import names
from poolfleet.api.conditions import AUTOSCALING_LIMITED, Reason
from poolfleet.api.rotation import Rotation
from poolfleet.controller import metrics

ROOT = Path(__file__).parents[2]
AUTOSCALERS = {"hpa.yaml": "HorizontalPodAutoscaler", "keda.yaml": "ScaledObject"}
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("charts/*/*.md")])
SOURCES = [ROOT / "operator/poolfleet" / part for part in ("plan", "postgres", "controller", "pgbouncer")]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made from them on the web."""
    plain = [re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading) for heading in HEADING.findall(page.read_text())]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        where, _, anchor = link.partition("#")
        target = (page.parent / where).resolve() if where else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_metrics_that_the_pages_name_exist() -> None:
    known = {family.name for family in metrics.REGISTRY.collect()}
    for page in PAGES:
        for name in re.findall(r"\bpoolfleet_[a-z_]+", page.read_text()):
            if not name.startswith("poolfleet_agent_"):
                assert re.sub(r"_(total|bucket|sum|count)$", "", name) in known or name in known, f"{page.name}: {name}"


def test_reasons_that_the_pages_on_scaling_name_exist() -> None:
    reasons = {value for name, value in vars(Reason).items() if name.isupper()}
    text = (ROOT / "docs/scaling.md").read_text() + (ROOT / "docs/operations.md").read_text()
    named = set(re.findall(r"`((?:TooMany|TooFew|Scaled|Clients|Within)[A-Z]\w+|\w*Limited\w*)`", text))
    assert named >= {"ScaledUp", "ScaledDown", "ClientsCut", "BudgetLimited"}
    assert named - {AUTOSCALING_LIMITED} <= reasons


def texts() -> Iterator[str]:
    """Every text that the operator may say, with … for what is put in, in lower case."""
    for file in (file for folder in SOURCES for file in sorted(folder.rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value.lower()
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values).lower()


@pytest.mark.parametrize(("page", "least"), [("credentials.md", 10), ("tls.md", 4)])
def test_messages_that_the_pages_explain_are_said(page: str, least: int) -> None:
    tables = re.findall(r"^\| message \|.*\n\|[-|]+\n((?:\|.*\n)+)", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    told = [message for table in tables for message in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)]
    assert len(told) >= least
    said = set(texts())
    for message in told:
        # PostgreSQL's own words may follow a colon
        words = [part.strip() for part in message.lower().partition(": ")[0].split("…")]
        assert any(all(part in text for part in words) for text in said), message


def test_phases_of_a_rotation_that_the_pages_name_are_those_of_the_status() -> None:
    described = Rotation.model_fields["phase"].description or ""
    section = (ROOT / "docs/credentials.md").read_text().partition("### What happens")[2].partition("\n### ")[0]
    named = set(re.findall(r"^\| `([A-Z]\w+)` \|", section, re.MULTILINE))
    assert named >= {"Checking", "Staging", "Holding", "Setting", "Storing", "Rolling", "Retiring", "Idle"}
    assert all(phase in described for phase in named)


@pytest.mark.parametrize("example", AUTOSCALERS)
def test_an_autoscaler_scales_the_pool_beside_it_which_leaves_the_number_to_it(example: str) -> None:
    pool, autoscaler = pool_and(AUTOSCALERS[example], example)
    target = autoscaler["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (names.API_VERSION, names.POOL_KIND)
    assert target["name"] == pool["metadata"]["name"]
    assert autoscaler["metadata"]["namespace"] == pool["metadata"]["namespace"]
    assert not {"replicas", "autoscaling"} & set(pool["spec"])


def test_the_hpa_asks_for_the_clients_of_that_pool() -> None:
    pool, hpa = pool_and("HorizontalPodAutoscaler", "hpa.yaml")
    [metric] = hpa["spec"]["metrics"]
    asked = metric["external"]["metric"]
    assert asked["name"] == "poolfleet_pool_clients"
    # the HPA's namespace comes with the request
    assert asked["selector"]["matchLabels"] == {"pool": pool["metadata"]["name"]}
    assert metric["external"]["target"]["type"] == "AverageValue"


def test_keda_asks_for_the_clients_of_that_pool() -> None:
    pool, scaled = pool_and("ScaledObject", "keda.yaml")
    spec = scaled["spec"]
    assert set(spec) <= {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "triggers", "advanced"}
    assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
    [trigger] = spec["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    assert all(isinstance(value, str) for value in trigger["metadata"].values())  # as its schema wants them
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    found = re.fullmatch(r"sum\((\w+)\{(.*)\}\)", trigger["metadata"]["query"])
    assert found
    labels = dict(re.findall(r'(\w+)="([^"]*)"', found[2]))
    assert found[1] == "poolfleet_pool_clients"
    assert labels == {"namespace": pool["metadata"]["namespace"], "pool": pool["metadata"]["name"]}


def test_the_metric_of_the_autoscalers_has_these_labels() -> None:
    family = metrics.CLIENTS.labels(namespace="shop", pool="shop", state="active")
    assert family is not None  # other labels raise


def pool_and(kind: str, example: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The PgPool and the object of `kind` in an example."""
    documents = {each["kind"]: each for each in yaml.safe_load_all((ROOT / "examples" / example).read_text())}
    return documents[names.POOL_KIND], documents[kind]
