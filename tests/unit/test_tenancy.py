"""Which pools may use which server."""

from typing import Any

import pytest

from poolfleet.api.network import LabelSelector
from poolfleet.plan.tenancy import Standing, full_host, refusal, selects, server_name, standing

POOL: dict[str, Any] = {
    "metadata": {"namespace": "team-a", "name": "shop", "uid": "u1"},
    "spec": {"serverRef": {"name": "db", "namespace": "data"}},
}
GOLD = {"from": "Selector", "selector": {"matchLabels": {"tier": "gold"}}}


def server(allowed: Any, *lines: dict[str, Any]) -> dict[str, Any]:
    metadata = {"namespace": "data", "name": "db", "uid": "u2"}
    return {"metadata": metadata, "spec": {"allowedNamespaces": allowed}, "status": {"pools": list(lines)}}


def line(**more: Any) -> dict[str, Any]:
    return {"namespace": "team-a", "name": "shop", "uid": "u1", **more}


def test_the_server_of_a_pool() -> None:
    metadata = {"namespace": "ns", "name": "shop"}
    assert server_name({"metadata": metadata, "spec": {"server": {"host": "h"}}}) == ("ns", "shop")
    assert server_name({"metadata": metadata, "spec": {"serverRef": {"name": "db"}}}) == ("ns", "db")
    assert server_name({"metadata": metadata, "spec": {"serverRef": {"name": "db", "namespace": "x"}}}) == ("x", "db")


@pytest.mark.parametrize(
    ("allowed", "labels", "expected"),
    [
        (None, {}, Standing.REFUSED),
        ({}, {}, Standing.REFUSED),
        ({"from": "Same"}, {}, Standing.REFUSED),
        ({"from": "All"}, {}, Standing.ALLOWED),
        ({"from": "All"}, None, Standing.ALLOWED),
        (GOLD, {"tier": "gold", "x": "y"}, Standing.ALLOWED),
        (GOLD, {"tier": "tin"}, Standing.REFUSED),
        (GOLD, None, Standing.REFUSED),
        ({"from": "Selector", "selector": {}}, {}, Standing.ALLOWED),
        ({"from": "Selector", "selector": {}}, None, Standing.REFUSED),
        ({"from": "nonsense"}, {}, Standing.REFUSED),
        ("nonsense", {}, Standing.REFUSED),
    ],
)
def test_who_is_allowed(allowed: Any, labels: dict[str, str] | None, expected: Standing) -> None:
    assert standing(POOL, server(allowed), labels) is expected


def test_the_own_namespace_always_is() -> None:
    own = {**POOL, "metadata": {**POOL["metadata"], "namespace": "data"}}
    assert standing(own, server(GOLD), {}) is Standing.ALLOWED
    assert standing(own, None, None) is Standing.ALLOWED
    assert standing(POOL, None, {}) is Standing.REFUSED


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (line(admitted=True), Standing.KEPT),
        (line(granted=1), Standing.KEPT),
        (line(granted=3, admitted=False), Standing.KEPT),
        (line(granted=0, admitted=False), Standing.REFUSED),
        (line(budget=5), Standing.REFUSED),
        (line(uid="a namesake", granted=3), Standing.REFUSED),
        (line(namespace="team-b", granted=3), Standing.REFUSED),
    ],
)
def test_who_keeps_what_he_has(known: dict[str, Any], expected: Standing) -> None:
    assert standing(POOL, server({}, known), {}) is expected


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ({}, True),
        ({"matchLabels": {"tier": "gold", "team": "a"}}, True),
        ({"matchLabels": {"tier": "gold", "team": "b"}}, False),
        ({"matchLabels": {"none": ""}}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["tin", "gold"]}]}, True),
        ({"matchExpressions": [{"key": "none", "operator": "In", "values": ["gold"]}]}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["gold"]}]}, False),
        ({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["gold"]}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "none", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"team": "a"}, "matchExpressions": [{"key": "none", "operator": "Exists"}]}, False),
    ],
)
def test_selectors_are_those_of_kubernetes(selector: dict[str, Any], chosen: bool) -> None:
    assert selects(LabelSelector.model_validate(selector), {"tier": "gold", "team": "a"}) is chosen


def test_the_refusal_names_the_remedy_and_not_the_selector() -> None:
    said = refusal(POOL, server(GOLD), {"tier": "tin"})
    assert said == (
        'PgServer "db" of namespace "data" does not allow PgPools of namespace "team-a". Its administrator must set '
        "spec.allowedNamespaces there: from: All, or from: Selector with a selector that the labels of namespace "
        '"team-a" fit.'
    )
    assert "rbac.scope Namespaced" in refusal(POOL, server(GOLD), None)
    assert "rbac.scope" not in refusal(POOL, server({}), None)


def test_a_single_label_is_a_service_of_the_servers_namespace() -> None:
    assert full_host("pg", "data") == "pg.data.svc"
    assert full_host("pg.example.com", "data") == "pg.example.com"
    assert full_host("::1", "data") == "::1"
