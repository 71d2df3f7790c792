"""The operator's metrics."""

from typing import Any

from poolfleet.controller import metrics
from poolfleet.controller.metrics import FleetNumbers, PoolNumbers, ServerNumbers
from poolfleet.kube.client import Call
from poolfleet.kube.kinds import POOL


def lines(*parts: str) -> list[str]:
    return [line for line in metrics.render().decode().splitlines() if all(part in line for part in parts)]


def numbers(budget: int = 85, **more: Any) -> ServerNumbers:
    pools = {"demo/shop": PoolNumbers(granted=40, held=12, unproven=6), "demo/old": PoolNumbers(5, 0, 0)}
    values: dict[str, Any] = {"free": 37, "reserve": 2, "ghosts": 3, "others": 7, "unaccounted": 1, "pools": pools}
    return ServerNumbers(budget, **{**values, **more})


def test_the_numbers_of_a_server_follow_its_pools_and_go_with_it() -> None:
    metrics.set_server("demo", "db", numbers())
    for name, value in (("budget", 85), ("free", 37), ("reserve", 2), ("ghost", 3), ("others", 7), ("unaccounted", 1)):
        assert lines(f'poolfleet_{name}_connections{{namespace="demo",server="db"}} {value}.0')
    for name, value in (("granted", 40), ("held", 12), ("unproven", 6)):
        assert lines(f'poolfleet_{name}_connections{{namespace="demo",pool="demo/shop",server="db"}} {value}.0')
    pools = {"demo/shop": PoolNumbers(41, 12, 0)}
    metrics.set_server("demo", "db", numbers(80, others=None, unaccounted=None, pools=pools))
    assert not lines('pool="demo/old"')
    assert not lines("poolfleet_others_connections{")
    metrics.drop_server("demo", "db")
    metrics.drop_server("demo", "db")
    assert not lines('server="db"')


def test_certificates_come_and_go() -> None:
    metrics.set_certificates("demo", "tls", {"clients": 2e9, "server-ca": 3e9})
    name = "poolfleet_certificate_expiry_timestamp_seconds"
    assert lines(name + '{kind="clients",namespace="demo",pool="tls"} 2e+09')
    metrics.set_certificates("demo", "tls", {"clients": 2.5e9})
    assert lines(name, 'pool="tls"} 2.5e+09')
    assert not lines(name, 'kind="server-ca"')
    metrics.drop_fleet("demo", "tls")
    assert not lines(name, 'pool="tls"')


def test_the_numbers_of_a_fleet_follow_its_pods_and_go_with_it() -> None:
    metrics.set_fleet("demo", "fleet", FleetNumbers(4, 3, (30, 2), {"fleet-a": 20, "fleet-b": 12}, 0.75))
    pool = 'namespace="demo",pool="fleet"'
    assert lines(f'poolfleet_pool_clients{{{pool},state="active"}} 30.0')
    assert lines(f'poolfleet_pool_clients{{{pool},state="waiting"}} 2.0')
    assert lines(f'poolfleet_pool_replicas{{kind="desired",{pool}}} 4.0')
    assert lines(f'poolfleet_pool_replicas{{kind="ready",{pool}}} 3.0')
    assert lines('poolfleet_pool_pod_clients{namespace="demo",pod="fleet-b",pool="fleet"} 12.0')
    assert lines(f"poolfleet_pool_cpu_cores{{{pool}}} 0.75")
    assert lines(f"poolfleet_pool_credentials_current{{{pool}}} -1.0")
    assert lines(f"poolfleet_pool_clients_cut_total{{{pool}}} 0.0"), "so that its first increase is seen"
    metrics.set_fleet("demo", "fleet", FleetNumbers(4, 3, None, {"fleet-a": 20}, None))
    assert not lines("poolfleet_pool_clients{", pool), "too few would make an autoscaler give pods up"
    assert not lines('pod="fleet-b"') and lines('pod="fleet-a"')
    assert not lines("poolfleet_pool_cpu_cores{", pool)
    metrics.drop_fleet("demo", "fleet")
    metrics.drop_fleet("demo", "fleet")
    assert not lines('pool="fleet"')


def test_seconds_over_the_budget() -> None:
    def seconds() -> str:
        [line] = lines('poolfleet_over_budget_seconds_total{namespace="demo",server="cut"}')
        return line.rpartition(" ")[2]

    metrics.set_server("demo", "cut", numbers(45), 100.0)
    metrics.set_server("demo", "cut", numbers(44), 110.0)
    assert seconds() == "0.0", "45 granted, and a budget of 45 until now"
    metrics.set_server("demo", "cut", numbers(44), 112.5)
    assert seconds() == "2.5"
    metrics.set_server("demo", "cut", numbers(45), 113.0)
    metrics.set_server("demo", "cut", numbers(45), 120.0)
    assert seconds() == "3.0"
    metrics.drop_server("demo", "cut")
    assert not lines('server="cut"')


def test_directives_sent_by_http_are_counted() -> None:
    metrics.set_posts({"taken": 3, "refused": 0})
    metrics.set_posts({"taken": 5, "refused": 1})
    assert lines('poolfleet_directive_posts_total{result="taken"} 5.0')
    assert lines('poolfleet_directive_posts_total{result="refused"} 1.0')


def test_a_request_is_counted_by_verb_kind_and_code() -> None:
    metrics.count(Call("patch", POOL, "status", 409, 0.25))
    assert lines('poolfleet_api_requests_total{code="409",kind="pgpools/status",verb="patch"} 1.0')
    assert lines('poolfleet_api_seconds_total{kind="pgpools/status",verb="patch"} 0.25')


def test_the_process_is_measured() -> None:
    assert lines("process_resident_memory_bytes ")
