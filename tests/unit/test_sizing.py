"""Division: exact, fair, within bounds."""

import hypothesis.strategies as st
from hypothesis import given

from poolfleet.plan.sizing import Claim, PoolWish, divide, water_fill


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
