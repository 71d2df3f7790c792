"""Division: exact, fair, within bounds."""

import hypothesis.strategies as st
from hypothesis import given

from poolfleet.plan.sizing import Claim, Demand, PoolWish, divide, floors, follow, water_fill


def wish(weights: dict[str, int], caps: dict[str, int] | None = None) -> PoolWish:
    return PoolWish("ns/p", "u", 0.0, weights, "", caps=caps or {})


def test_weights_share_in_proportion() -> None:
    assert water_fill(30, [Claim(1), Claim(2)]) == [10, 20]


def test_what_a_full_claim_leaves_goes_to_the_others() -> None:
    assert water_fill(30, [Claim(1, most=4), Claim(1), Claim(1)]) == [4, 13, 13]


def test_least_comes_first() -> None:
    assert water_fill(10, [Claim(1, least=8), Claim(1)]) == [8, 2]
    assert water_fill(3, [Claim(1, least=2), Claim(1, least=2)]) == [2, 1]


def test_a_pool_is_divided_by_weight_then_evenly() -> None:
    shares = divide(59, ["p1", "p2"], wish({"shop": 2, "audit": 1}))
    assert sum(shares.values()) == 59
    assert {shares["p1", "shop"], shares["p2", "shop"]} <= {19, 20}
    assert abs(sum(shares["p1", n] for n in ("shop", "audit")) - sum(shares["p2", n] for n in ("shop", "audit"))) <= 1


def test_a_cap_of_postgresql_holds_a_database_back() -> None:
    shares = divide(60, ["p1", "p2"], wish({"shop": 1, "audit": 1}, {"audit": 4}))
    assert shares == {("p1", "shop"): 28, ("p2", "shop"): 28, ("p1", "audit"): 2, ("p2", "audit"): 2}


def test_nobody_goes_without() -> None:
    assert divide(0, ["p1", "p2"], wish({"a": 1})) == {("p1", "a"): 1, ("p2", "a"): 1}
    assert divide(10, [], wish({"a": 1})) == {}


claims = st.lists(
    st.builds(Claim, weight=st.integers(1, 9), least=st.integers(0, 5), most=st.none() | st.integers(5, 40)), max_size=6
)


@given(total=st.integers(0, 120), claims=claims)
def test_never_more_than_the_total_and_all_of_it_if_wanted(total: int, claims: list[Claim]) -> None:
    shares = water_fill(total, claims)
    assert sum(shares) <= total
    assert all(s <= (c.most if c.most is not None else total) for s, c in zip(shares, claims, strict=True))
    if sum(shares) < total:
        assert all(c.most is not None and s == c.most for s, c in zip(shares, claims, strict=True))


@given(total=st.integers(0, 200), pods=st.integers(1, 9), weights=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_pods_of_a_pool_are_equal_but_for_one(total: int, pods: int, weights: list[int]) -> None:
    databases = {f"d{i}": weight for i, weight in enumerate(weights)}
    uids = [f"p{i}" for i in range(pods)]
    shares = divide(total, uids, wish(databases))
    assert min(shares.values()) >= 1
    if total >= pods * len(databases):
        assert sum(shares.values()) == total
    for name in databases:
        column = [shares[uid, name] for uid in uids]
        assert max(column) - min(column) <= 1


@given(total=st.integers(0, 3000), claims=claims)
def test_filling_at_once_is_filling_one_by_one(total: int, claims: list[Claim]) -> None:
    """The level of large totals is searched for; the result is that of pouring one connection after the other."""
    slow = water_fill(0, claims)
    rest = total
    for i, claim in enumerate(claims):
        slow[i] = min(claim.least, rest) if claim.most is None else min(claim.least, claim.most, rest)
        rest -= slow[i]
    while rest and (open_ := [i for i, c in enumerate(claims) if c.most is None or slow[i] < c.most]):
        slow[min(open_, key=lambda i: ((slow[i] + 1) / claims[i].weight, i))] += 1
        rest -= 1
    assert water_fill(total, claims) == slow


# Who is admitted


def pool(name: str, created: float, replicas: int = 2, least: int = 0) -> PoolWish:
    return PoolWish(f"ns/{name}", name, created, {"a": 1}, "", replicas=replicas, least=least)


def test_the_older_pool_is_served_first_and_a_younger_one_that_fits_is_served_too() -> None:
    wishes = [pool("new", 3.0), pool("big", 2.0, least=50), pool("old", 1.0, least=20)]
    assert floors(40, wishes, {}) == {"ns/old": 20, "ns/big": 0, "ns/new": 3}


def test_a_running_pool_that_asks_for_too_much_keeps_what_its_pods_need() -> None:
    wishes = [pool("old", 1.0, replicas=100), pool("new", 2.0)]
    assert floors(40, wishes, {"ns/old": 4}) == {"ns/old": 5, "ns/new": 3}
    assert floors(40, wishes, {}) == {"ns/old": 0, "ns/new": 3}


# Connections follow demand


def test_what_one_does_not_need_serves_who_needs_more() -> None:
    assert follow(30, [Demand(10, 2, 1), Demand(10, 30, 1), Demand(10, 10, 1)]) == [2, 18, 10]


def test_what_nobody_needs_goes_back_to_the_shares() -> None:
    assert follow(30, [Demand(10, 2, 1), Demand(10, 13, 1), Demand(10, 5, 1)]) == [9, 13, 8]
    assert follow(30, [Demand(10, 0), Demand(10, 0), Demand(10, 0)]) == [10, 10, 10]


def test_whoever_needs_its_share_has_it_however_hungry_the_others_are() -> None:
    assert follow(20, [Demand(10, 10), Demand(10, 500)]) == [10, 10]


def test_two_that_are_hungry_share_what_is_left_by_weight() -> None:
    assert follow(60, [Demand(20, 0, 2), Demand(20, 99, weight=1), Demand(20, 99, weight=2)]) == [2, 20, 38]


def test_nobody_has_more_than_its_most_and_nobody_less_than_its_floor() -> None:
    assert follow(30, [Demand(15, 0, 5), Demand(15, 99, most=18)]) == [12, 18]


demands = st.lists(
    st.builds(
        lambda floor, more, need, weight, room: Demand(floor + more, need, floor, room and floor + more + room, weight),
        floor=st.integers(0, 5),
        more=st.integers(0, 20),
        need=st.integers(0, 60),
        weight=st.integers(1, 5),
        room=st.none() | st.integers(1, 20),
    ),
    max_size=6,
)


@given(demands=demands, spare=st.integers(0, 30))
def test_following_demand_divides_no_more_than_there_is(demands: list[Demand], spare: int) -> None:
    total = sum(d.share for d in demands) + spare
    given_ = follow(total, demands)
    assert sum(given_) <= total
    for has, d in zip(given_, demands, strict=True):
        assert has >= max(d.floor, min(d.share, d.need))
        assert d.most is None or has <= d.most
    if any(has < d.need and (d.most is None or has < d.most) for has, d in zip(given_, demands, strict=True)):
        # somebody would need more: then nobody is left with what it does not need
        assert sum(given_) == total
        assert all(has <= max(d.floor, d.need) for has, d in zip(given_, demands, strict=True))


def test_a_pools_connections_go_to_the_pod_and_the_database_where_clients_wait() -> None:
    needs = {("p1", "a"): 20, ("p2", "a"): 1, ("p1", "b"): 0, ("p2", "b"): 0}
    assert divide(20, ["p1", "p2"], wish({"a": 1, "b": 1}), needs) == {
        ("p1", "a"): 17,
        ("p2", "a"): 1,
        ("p1", "b"): 1,
        ("p2", "b"): 1,
    }
