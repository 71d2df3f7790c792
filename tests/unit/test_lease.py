"""The elector against a Lease in memory, with a clock that moves when told to."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from poolfleet.kube.errors import Conflict, NotFound, Unavailable
from poolfleet.kube.kinds import Kind
from poolfleet.kube.lease import Elector


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Api:
    """One Lease; fails on demand, before or after the write has happened."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self.requests: list[str] = []

    async def get(self, kind: Kind, namespace: str, name: str, *, timeout: float) -> dict[str, Any]:
        self.requests.append("get")
        self.before()
        if self.lease is None:
            raise NotFound("no Lease", 404)
        return copy.deepcopy(self.lease)

    async def create(self, obj: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        self.requests.append("create")
        self.before()
        if self.lease is not None:
            raise Conflict("exists", 409)
        return self._store(obj)

    async def replace(self, obj: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        self.requests.append("replace")
        self.before()
        if self.lease is None:
            raise NotFound("no Lease", 404)
        if obj["metadata"].get("resourceVersion") != self.lease["metadata"]["resourceVersion"]:
            raise Conflict("moved on", 409)
        return self._store(obj)

    def _store(self, obj: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.lease = copy.deepcopy(obj)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        self.after()
        return copy.deepcopy(self.lease)

    @property
    def spec(self) -> dict[str, Any]:
        assert self.lease is not None
        spec: dict[str, Any] = self.lease["spec"]
        return spec


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def api(clock: Clock) -> Api:
    return Api(clock)


def elector(api: Api, clock: Clock, identity: str, skew: float = 0.0) -> Elector:
    """With the real times: 15 s, 10 s, 2 s. `skew`: by how much this process's wall clock is wrong."""
    return Elector(api, "ns", "poolfleet", identity, clock=clock, wall=lambda: clock.now + skew)  # type: ignore[arg-type]


async def test_the_first_one_gets_it_and_the_second_waits(api: Api, clock: Clock) -> None:
    one, two = elector(api, clock, "one"), elector(api, clock, "two")
    assert await one._attempt()
    assert not await two._attempt()
    assert one.is_leader() and not two.is_leader()
    assert two.holder == "one"
    assert api.spec["leaseDurationSeconds"] == 15


async def test_a_renewal_is_one_request(api: Api, clock: Clock) -> None:
    one = elector(api, clock, "one")
    await one._attempt()
    acquired = api.spec["acquireTime"]
    api.requests.clear()
    clock.now += 2
    assert await one._attempt()
    assert api.requests == ["replace"]
    assert api.spec["acquireTime"] == acquired != api.spec["renewTime"]
    assert one.remaining() == 10


async def test_leading_ends_ten_seconds_after_the_last_renewal_was_sent(api: Api, clock: Clock) -> None:
    one = elector(api, clock, "one")

    def slow() -> None:
        clock.now += 4

    api.after = slow
    assert await one._attempt()
    assert one.remaining() == pytest.approx(6)
    clock.now += 6
    assert not one.is_leader()


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
async def test_only_a_lease_that_was_seen_unchanged_for_its_duration_is_taken(
    api: Api, clock: Clock, skew: float
) -> None:
    one, two = elector(api, clock, "one"), elector(api, clock, "two", skew)
    await one._attempt()
    clock.now += 5
    assert not await two._attempt()  # seen for the first time, five seconds after it was written
    clock.now += 14.9
    assert not await two._attempt()
    assert not one.is_leader()
    clock.now += 0.2
    assert await two._attempt()
    assert api.spec["leaseTransitions"] == 1


async def test_a_renewal_starts_the_waiting_anew(api: Api, clock: Clock) -> None:
    one, two = elector(api, clock, "one"), elector(api, clock, "two")
    for _ in range(20):
        assert await one._attempt()
        assert not await two._attempt()
        clock.now += 2
    assert one.is_leader()


async def test_a_released_lease_is_free_at_once(api: Api, clock: Clock) -> None:
    one, two = elector(api, clock, "one"), elector(api, clock, "two")
    await one._attempt()
    await two._attempt()
    await one.release()
    assert not one.is_leader()
    assert api.spec["holderIdentity"] == ""
    assert await two._attempt()


async def test_a_lease_whose_renewal_was_cut_off_is_released_too(api: Api, clock: Clock) -> None:
    """The process ends while a renewal is under way: the API server took it, and nobody heard the answer."""
    one = elector(api, clock, "one")
    await one._attempt()
    api._store({"metadata": {}, "spec": {**api.spec, "renewTime": "later"}})
    await one.release()
    assert api.spec["holderIdentity"] == ""


async def test_a_lease_that_is_anothers_by_now_is_left_alone(api: Api, clock: Clock) -> None:
    one = elector(api, clock, "one")
    await one._attempt()
    api._store({"metadata": {}, "spec": {**api.spec, "holderIdentity": "two"}})
    await one.release()
    assert api.spec["holderIdentity"] == "two"


async def test_of_two_that_race_for_a_free_lease_one_wins(api: Api, clock: Clock) -> None:
    one, two = elector(api, clock, "one"), elector(api, clock, "two")
    lost: list[bool] = []

    def another_is_faster() -> None:
        if api.requests[-1] == "create":
            api.before = lambda: None
            api._store({"metadata": {}, "spec": {"holderIdentity": "two", "leaseDurationSeconds": 15}})
            lost.append(True)

    api.before = another_is_faster
    assert not await one._attempt()
    assert lost and one.holder == "two"
    assert not one.is_leader() and not two.is_leader()


async def test_a_write_whose_answer_was_lost_does_not_make_a_leader_by_itself(api: Api, clock: Clock) -> None:
    one = elector(api, clock, "one")

    def lose() -> None:
        raise Unavailable("no answer")

    api.after = lose
    assert not await one._attempt()
    assert not one.is_leader()
    api.after = lambda: None
    assert await one._attempt()  # it holds it already: no need to wait for it to run out


async def test_requests_of_a_leader_end_within_its_time(api: Api, clock: Clock) -> None:
    one = elector(api, clock, "one")
    await one._attempt()
    clock.now += 8
    timeouts: list[float] = []

    async def replace(obj: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        timeouts.append(timeout)
        raise Unavailable("no answer")

    api.replace = replace  # type: ignore[method-assign]
    assert not await one._attempt()
    assert timeouts == [pytest.approx(2)]


async def test_a_release_that_fails_is_only_logged(api: Api, clock: Clock) -> None:
    one = elector(api, clock, "one")
    await one._attempt()

    def fail() -> None:
        raise Unavailable("no answer")

    api.before = fail
    await one.release()
    assert not one.is_leader()


async def test_who_never_led_releases_nothing(api: Api, clock: Clock) -> None:
    await elector(api, clock, "one").release()
    assert api.requests == []


def test_times_that_allow_two_leaders_are_refused(api: Api) -> None:
    with pytest.raises(ValueError, match="duration > renew_deadline"):
        Elector(api, "ns", "poolfleet", "one", duration=10, renew_deadline=10)  # type: ignore[arg-type]
