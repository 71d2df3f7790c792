"""The operator's metrics."""

from poolfleet.controller import metrics
from poolfleet.kube.client import Call
from poolfleet.kube.kinds import POOL


def lines(*parts: str) -> list[str]:
    return [line for line in metrics.render().decode().splitlines() if all(part in line for part in parts)]


def test_the_numbers_of_a_server_follow_its_pools_and_go_with_it() -> None:
    metrics.set_server("demo", "db", 85, 3, {"demo/shop": (40, 12), "demo/old": (5, 0)})
    assert lines('poolfleet_budget_connections{namespace="demo",server="db"} 85.0')
    assert lines('poolfleet_granted_connections{namespace="demo",pool="demo/shop",server="db"} 40.0')
    assert lines('poolfleet_held_connections{namespace="demo",pool="demo/shop",server="db"} 12.0')
    metrics.set_server("demo", "db", 80, 0, {"demo/shop": (41, 12)})
    assert not lines('pool="demo/old"')
    metrics.drop_server("demo", "db")
    metrics.drop_server("demo", "db")
    assert not lines('server="db"')


def test_a_request_is_counted_by_verb_kind_and_code() -> None:
    metrics.count(Call("patch", POOL, "status", 409, 0.25))
    assert lines('poolfleet_api_requests_total{code="409",kind="pgpools/status",verb="patch"} 1.0')
    assert lines('poolfleet_api_seconds_total{kind="pgpools/status",verb="patch"} 0.25')


def test_the_process_is_measured() -> None:
    assert lines("process_resident_memory_bytes ")
