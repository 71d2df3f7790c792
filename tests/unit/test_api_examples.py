"""Every example is something that the models accept, and the demo's names are the ones that other checks rely on."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from poolfleet.api import names
from tests.api_corpus import MODELS

EXAMPLES = Path(__file__).parents[2] / "examples"
OURS = [
    (file.name, document)
    for file in sorted(EXAMPLES.glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
]


def test_all_are_here() -> None:
    assert {name for name, _ in OURS} >= {
        "pgpool.yaml",
        "rds.yaml",
        "neon.yaml",
        "cloudnativepg.yaml",
        "plain-postgresql.yaml",
        "shared.yaml",
    }


@pytest.mark.parametrize(("name", "document"), OURS)
def test_accepted_without_unknown_fields(name: str, document: dict[str, Any]) -> None:
    assert document["metadata"]["namespace"]
    if (
        document["kind"] not in MODELS
    ):  # somebody else's, such as a Secret; tests/unit/test_docs.py looks at autoscalers
        assert not document["apiVersion"].startswith(names.GROUP)
        return
    read = MODELS[document["kind"]].model_validate(document)
    said = read.spec.model_dump(by_alias=True, exclude_unset=True)
    assert said == document["spec"]


@pytest.mark.parametrize("name", sorted({name for name, _ in OURS}))
def test_an_example_holds_a_pool_and_says_what_it_is(name: str) -> None:
    assert any(each == name and document["kind"] == "PgPool" for each, document in OURS)
    assert (EXAMPLES / name).read_text().startswith("#")


def test_the_demo() -> None:
    secret, pool = (document for name, document in OURS if name == "pgpool.yaml")
    assert (pool["kind"], pool["metadata"]) == ("PgPool", {"name": "shop", "namespace": "demo"})
    assert pool["spec"]["server"] == {"host": "postgres", "adminSecretRef": {"name": "postgres-admin"}}
    assert pool["spec"]["databases"] == [{"name": "shop"}]
    assert pool["spec"]["users"] == [{"secretRef": {"name": "shop-app"}}]
    assert pool["spec"]["replicas"] == 2
    assert secret["metadata"]["name"] == "shop-app"
    assert secret["metadata"]["labels"] == {"poolfleet.dev/watch": "true"}
    assert secret["type"] == "kubernetes.io/basic-auth"
    assert secret["stringData"] == {"username": "shop", "password": "change-me-shop"}
