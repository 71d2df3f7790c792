"""The pages of the project: every relative link leads somewhere, and names of metrics are those of the code."""

import re
from pathlib import Path

import pytest

from poolfleet.controller import metrics

ROOT = Path(__file__).parents[2]
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
