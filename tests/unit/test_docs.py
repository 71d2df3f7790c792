"""Pages and examples: links lead somewhere, metrics are those of the code, autoscalers scale the pools beside them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from poolfleet.api import names
from poolfleet.api.conditions import AUTOSCALING_LIMITED, Reason
from poolfleet.controller import metrics

ROOT = Path(__file__).parents[2]
AUTOSCALERS = {"hpa.yaml": "HorizontalPodAutoscaler", "keda.yaml": "ScaledObject"}
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("charts/*/*.md")])
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
