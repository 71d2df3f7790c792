"""What the server of external metrics that stands in for others on the cluster makes of the operator's metrics."""

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.external_metrics import value

TEXT = """
# TYPE poolfleet_pool_clients gauge
poolfleet_pool_clients{namespace="shop",pool="shop",state="active"} 50
poolfleet_pool_clients{namespace="shop",pool="shop",state="waiting"} 5
poolfleet_pool_clients{namespace="shop",pool="other",state="active"} 100
poolfleet_pool_clients{namespace="elsewhere",pool="shop",state="active"} 1000
"""
FAMILIES = list(text_string_to_metric_families(TEXT))


def test_all_samples_with_the_labels_are_summed() -> None:
    assert value(FAMILIES, "poolfleet_pool_clients", {"namespace": "shop", "pool": "shop"}) == 55
    assert value(FAMILIES, "poolfleet_pool_clients", {"namespace": "shop"}) == 155


def test_what_is_not_there_is_not_zero() -> None:
    assert value(FAMILIES, "poolfleet_pool_clients", {"namespace": "nowhere"}) is None
    assert value(FAMILIES, "poolfleet_pool_replicas", {"namespace": "shop"}) is None
