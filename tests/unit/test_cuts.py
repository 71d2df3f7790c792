"""Clients that were cut off at the end of a drain: counted at once, told once."""

from poolfleet.controller import cuts as module
from poolfleet.controller import metrics
from poolfleet.controller.cuts import Cuts
from poolfleet.plan.poolview import Cut


def counted(pool: str) -> list[str]:
    start = f'poolfleet_pool_clients_cut_total{{namespace="demo",pool="{pool}"}}'
    return [line.rpartition(" ")[2] for line in metrics.render().decode().splitlines() if line.startswith(start)]


def test_a_pod_is_told_and_counted_once() -> None:
    cuts = Cuts()
    cuts.seen("demo", "cut", "uid-a", Cut("shop-a", 0))
    assert cuts.of("demo", "cut") == ()
    cuts.seen("demo", "cut", "uid-a", Cut("shop-a", 12))
    cuts.seen("demo", "cut", "uid-a", Cut("shop-a", 13))
    assert cuts.of("demo", "cut") == (Cut("shop-a", 12),)
    assert cuts.of("demo", "other") == ()
    assert counted("cut") == ["12.0"]
    told = cuts.of("demo", "cut")
    cuts.seen("demo", "cut", "uid-b", Cut("shop-b", 1))
    cuts.told("demo", "cut", told)
    assert cuts.of("demo", "cut") == (Cut("shop-b", 1),), "what came meanwhile is told the next time"
    cuts.told("demo", "cut", cuts.of("demo", "cut"))
    cuts.seen("demo", "cut", "uid-a", Cut("shop-a", 12))
    assert cuts.of("demo", "cut") == ()
    assert counted("cut") == ["13.0"]


def test_nobody_is_told_of_a_pool_that_is_gone() -> None:
    cuts = Cuts()
    cuts.seen("demo", "gone", "uid-c", Cut("shop-c", 1))
    cuts.forget("demo", "gone")
    assert cuts.of("demo", "gone") == ()


def test_only_so_many_pods_are_remembered() -> None:
    cuts = Cuts()
    for number in range(module.REMEMBERED + 1):
        cuts.seen("demo", "many", f"uid-{number}", Cut("p", 1))
    cuts.told("demo", "many", cuts.of("demo", "many"))
    cuts.seen("demo", "many", f"uid-{module.REMEMBERED}", Cut("p", 1))
    assert cuts.of("demo", "many") == ()
    cuts.seen("demo", "many", "uid-0", Cut("p", 1))
    assert cuts.of("demo", "many") == (Cut("p", 1),), "the oldest was forgotten"
