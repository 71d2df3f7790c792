"""Secrets that users own: from the store if they are watched, else by name, and again when they are due."""

import asyncio
from typing import Any

import pytest

from poolfleet.controller.secrets import REREAD, REREAD_MISSING, Secrets
from poolfleet.controller.store import Store
from poolfleet.kube.errors import NotFound, Unavailable
from poolfleet.kube.kinds import Kind


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Api:
    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, Any]] = {}
        self.reads = 0
        self.down = False

    def put(self, name: str, version: int) -> None:
        metadata = {"namespace": "demo", "name": name, "uid": name, "resourceVersion": str(version)}
        self.secrets[name] = {"metadata": metadata | {"managedFields": []}, "data": {"password": f"v{version}"}}

    async def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable("down")
        if name not in self.secrets:
            raise NotFound("no Secret", 404)
        return {**self.secrets[name], "metadata": dict(self.secrets[name]["metadata"])}


class House:
    """All that a test needs, with one pool that names the Secret `app`."""

    def __init__(self) -> None:
        self.clock, self.api, self.store = Clock(), Api(), Store()
        self.changed: list[tuple[str, str]] = []
        self.secrets = Secrets(self.api, self.store, lambda *name: self.changed.append(name), self.clock)  # type: ignore[arg-type]
        metadata = {"namespace": "demo", "name": "shop", "uid": "shop", "resourceVersion": "1"}
        self.pool = {"metadata": metadata, "spec": {"users": [{"secretRef": {"name": "app"}}]}}
        self.store.put("pgpools", self.pool)

    async def password(self) -> str | None:
        secret = await self.secrets.get("demo", "app")
        return None if secret is None else secret["data"]["password"]


@pytest.fixture
def house() -> House:
    return House()


async def test_a_watched_secret_is_not_read(house: House) -> None:
    house.api.put("app", 1)
    house.store.put("secrets", house.api.secrets["app"])
    assert await house.password() == "v1"
    assert house.api.reads == 0


async def test_another_one_is_read_once_for_many(house: House) -> None:
    house.api.put("app", 1)
    assert await asyncio.gather(*(house.password() for _ in range(5))) == ["v1"] * 5
    assert house.api.reads == 1
    secret = await house.secrets.get("demo", "app")
    assert secret is not None and "managedFields" not in secret["metadata"]


async def test_a_change_is_found_within_a_minute_and_told(house: House) -> None:
    house.api.put("app", 1)
    await house.password()
    house.api.put("app", 2)
    house.clock.now += REREAD - 1
    await house.secrets.refresh()
    assert (await house.password(), house.changed) == ("v1", [])
    house.clock.now += 1
    await house.secrets.refresh()
    assert (await house.password(), house.changed) == ("v2", [("demo", "app")])
    house.clock.now += REREAD
    await house.secrets.refresh()
    assert house.changed == [("demo", "app")]


async def test_a_missing_one_is_looked_for_every_five_seconds(house: House) -> None:
    assert await house.password() is None
    assert await house.password() is None
    assert house.api.reads == 1
    house.api.put("app", 1)
    house.clock.now += REREAD_MISSING
    await house.secrets.refresh()
    assert house.changed == [("demo", "app")]
    assert await house.password() == "v1"


async def test_a_deleted_one_is_told(house: House) -> None:
    house.api.put("app", 1)
    await house.password()
    del house.api.secrets["app"]
    house.clock.now += REREAD
    await house.secrets.refresh()
    assert (await house.password(), house.changed) == (None, [("demo", "app")])


async def test_what_nobody_names_any_more_is_forgotten(house: House) -> None:
    house.api.put("app", 1)
    await house.password()
    house.store.remove("pgpools", house.pool)
    house.clock.now += REREAD
    await house.secrets.refresh()
    assert house.api.reads == 1
    assert house.secrets._cache == {}


async def test_a_label_moves_it_into_the_watch(house: House) -> None:
    house.api.put("app", 1)
    await house.password()
    house.api.put("app", 2)
    house.store.put("secrets", house.api.secrets["app"])
    assert await house.password() == "v2"
    house.clock.now += REREAD
    await house.secrets.refresh()
    assert house.api.reads == 1


async def test_without_an_answer_the_old_content_stays_for_the_refresh_and_an_error_is_told(house: House) -> None:
    house.api.put("app", 1)
    await house.password()
    house.api.down = True
    house.clock.now += REREAD
    await house.secrets.refresh()
    assert (await house.password(), house.changed) == ("v1", [])
    house.clock.now += REREAD
    with pytest.raises(Unavailable):
        await house.password()


async def test_an_own_write_counts_at_once_and_is_told(house: House) -> None:
    house.api.put("app", 1)
    await house.password()
    house.api.put("app", 2)
    house.secrets.written(house.api.secrets["app"])
    assert (await house.password(), house.api.reads, house.changed) == ("v2", 1, [("demo", "app")])
    house.clock.now += REREAD
    await house.secrets.refresh()
    assert house.changed == [("demo", "app")]  # it is what was written


async def test_an_own_write_of_what_nobody_reads_is_not_kept(house: House) -> None:
    house.api.put("app", 1)
    house.secrets.written(house.api.secrets["app"])
    assert (house.changed, house.secrets._cache) == ([], {})


async def test_what_was_deleted_is_read_anew(house: House) -> None:
    house.api.put("app", 1)
    await house.password()
    del house.api.secrets["app"]
    house.secrets.forget("demo", "app")
    assert await house.password() is None
    house.secrets.forget("demo", "never-read")
