"""Which PgServers are the same server."""

from typing import Any

import pytest

from poolfleet.controller.store import Store
from poolfleet.plan.identity import normal_host, refusal, rivals


def server(name: str, host: str = "", second: int = 0, *, namespace: str = "data", **more: Any) -> dict[str, Any]:
    created = f"2026-01-01T00:00:{second:02}Z"
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "creationTimestamp": created}
    discovery = {key: more.pop(key) for key in ("systemIdentifier", "startedAt") if key in more}
    return {
        "metadata": metadata,
        "spec": {"host": host or f"{name}.example.com", **more},
        "status": {"discovery": discovery},
    }


def elder(one: dict[str, Any], *others: dict[str, Any]) -> str | None:
    found = rivals(one, others).elder
    return None if found is None else str(found["metadata"]["name"])


def youngers(one: dict[str, Any], *others: dict[str, Any]) -> list[str]:
    return [str(each["metadata"]["name"]) for each in rivals(one, others).youngers]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pg.example.com", "PG.Example.com."),
        ("pg", "pg.data.svc"),
        ("pg", "PG.data.svc.cluster.local."),
        ("fd00::7", "FD00:0::7"),
        ("10.0.0.7", "10.0.0.7"),
    ],
)
def test_spellings_of_one_host(one: str, other: str) -> None:
    assert normal_host(one, "data") == normal_host(other, "data")
    assert elder(server("b", one, 2), server("a", other, 1, port=5432)) == "a"


@pytest.mark.parametrize(
    ("one", "other"), [("pg", "pg.other.svc"), ("pg.example.com", "pg2.example.com"), ("10.0.0.7", "10.0.0.70")]
)
def test_other_hosts(one: str, other: str) -> None:
    assert elder(server("b", one, 2), server("a", other, 1)) is None


def test_the_port_is_part_of_it() -> None:
    assert elder(server("b", "pg.x", 2, port=5433), server("a", "pg.x", 1)) is None
    assert elder(server("b", "pg.x", 2, port=5433), server("a", "pg.x", 1, port=5433)) == "a"


def test_a_service_of_the_same_name_in_another_namespace_is_another_server() -> None:
    assert elder(server("b", "pg", 2, namespace="one"), server("a", "pg", 1, namespace="two")) is None


def test_the_same_run_of_the_same_server_under_two_names() -> None:
    run = {"systemIdentifier": "7", "startedAt": "2026-01-01 00:00:00+00"}
    assert elder(server("b", second=2, **run), server("a", second=1, **run)) == "a"
    replica = {**run, "startedAt": "2026-01-02 00:00:00+00"}
    assert elder(server("b", second=2, **run), server("a", second=1, **replica)) is None, "a replica is another one"
    for half in ({"systemIdentifier": "7"}, {"startedAt": "x"}, {"systemIdentifier": "", "startedAt": ""}):
        assert elder(server("b", second=2, **half), server("a", second=1, **half)) is None


def test_the_oldest_has_the_budget_and_knows_the_others() -> None:
    a, b, c = (server(name, "pg.x", second) for name, second in (("a", 1), ("b", 2), ("c", 3)))
    assert (elder(a, b, c), youngers(a, a, c, b)) == (None, ["b", "c"])
    assert (elder(b, a, b, c), youngers(b, a, c)) == ("a", [])
    assert elder(c, a, b) == "a"
    same_second = [server(name, "pg.x", 1) for name in ("b", "a")]
    assert elder(same_second[0], same_second[1]) == "a", "by UID"


def test_the_same_as_the_same_is_the_same() -> None:
    run = {"systemIdentifier": "7", "startedAt": "x"}
    a, b, c = server("a", "pg.x", 1), server("b", "pg.x", 2, **run), server("c", "alias.x", 3, **run)
    assert youngers(a, b, c) == ["b", "c"]
    assert elder(c, a, b) == "a"
    assert "a third PgServer" in refusal(rivals(c, [a, b]))


def test_the_words() -> None:
    a, b = server("a", "pg.x", 1), server("b", "pg.x", 2)
    assert refusal(rivals(b, [a])).startswith(
        "PgServer data/a, which is older, is the same server (same host and port) and has its budget."
    )
    assert refusal(rivals(a, [b])) == ""


def test_the_store_finds_those_that_may_be_the_same() -> None:
    run = {"systemIdentifier": "7", "startedAt": "x"}
    a, b, c = server("a", "pg.x", 1), server("b", "pg.x", 2, **run), server("c", "alias.x", 3, **run)
    store = Store()
    for each in (a, b, c, server("d", "else.x", 4)):
        store.put("pgservers", each)
    assert {each["metadata"]["name"] for each in store.same_server(a)} == {"a", "b", "c"}
    assert store.same_server(server("new", "nobody.x")) == []
