"""poolfleet.agent.loader with a console that only remembers; tests/integration/test_agent.py has a real one."""

import json
from pathlib import Path
from typing import Any

import pytest

from poolfleet.agent.files import Config
from poolfleet.agent.loader import LIVE, Loader, Rejected
from poolfleet.api import names
from poolfleet.pgbouncer.admin import AdminError, ServerError


def config(mark: str, **more: bytes) -> Config:
    ini = f";@database {json.dumps('shop')}\n'shop' = host='{mark}'"
    return Config.of(
        {
            names.INI_FILE: f"[databases]\n{ini}\n[pgbouncer]\n;@fill\n".encode(),
            names.USERLIST_FILE: mark.encode(),
            **more,
        }
    )


class Console:
    """What PgBouncer would find on disk when it is told to RELOAD."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.found: list[str] = []
        self.error: Exception | None = None
        self.swallowed = False

    async def query(self, sql: str) -> None:
        assert sql == "RELOAD"
        ini, users = ((self.run / name).read_text() for name in (names.INI_FILE, names.USERLIST_FILE))
        self.found.append(f"{users}: {ini}")
        if self.error is not None:
            raise self.error

    async def marker(self) -> str:
        return "cold" if self.swallowed else self.found[-1].rsplit("syslog_ident = ", 1)[1].strip()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path


def made(run: Path) -> tuple[Loader, Console]:
    console: Any = Console(run)
    loader = Loader(run, console)
    loader.put_cold(config("old"), {"shop": 5})
    return loader, console


def on_disk(run: Path) -> tuple[str, str]:
    ini = (run / names.INI_FILE).read_text()
    assert "pool_size=1 max_db_connections=1\n" in ini
    assert ini.endswith("syslog_ident = cold\n")
    return ini.split("host='")[1].split("'")[0], (run / names.USERLIST_FILE).read_text()


def test_a_pgbouncer_that_starts_finds_the_cold_file(run: Path) -> None:
    made(run)
    assert on_disk(run) == ("old", "old")


async def test_reload_sees_the_grant_and_a_restart_would_see_the_cold_file(run: Path) -> None:
    loader, console = made(run)
    await loader.load(config("old"), {"shop": 7}, config("old"))
    assert "pool_size=7 max_db_connections=7\n" in console.found[0]
    assert on_disk(run) == ("old", "old")


async def test_each_load_has_a_marker_of_its_own(run: Path) -> None:
    loader, console = made(run)
    for _ in range(3):
        await loader.load(config("old"), {"shop": 7}, config("old"))
    assert len(set(console.found)) == 3


async def test_a_new_configuration_that_is_taken_is_what_a_restart_finds(run: Path) -> None:
    loader, console = made(run)
    await loader.load(config("new"), {"shop": 7}, config("old"))
    assert console.found[0].startswith("new: ")
    assert on_disk(run) == ("new", "new")


@pytest.mark.parametrize("error", [ServerError("ERROR: no"), AdminError("gone"), None])
async def test_one_that_is_not_taken_leaves_the_last_good_one_for_a_restart(run: Path, error: Exception | None) -> None:
    loader, console = made(run)
    console.error, console.swallowed = error, error is None
    with pytest.raises(
        AdminError if isinstance(error, AdminError) and not isinstance(error, ServerError) else Rejected
    ):
        await loader.load(config("new"), {"shop": 7}, config("old"))
    assert on_disk(run) == ("old", "old")


async def test_no_room_before_the_reload_leaves_everything(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, console = made(run)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("poolfleet.agent.loader.prepare", full)
    with pytest.raises(OSError, match="No space"):
        await loader.load(config("new"), {"shop": 7}, config("old"))
    assert console.found == []
    assert on_disk(run) == ("old", "old")


async def test_no_room_after_the_granted_file_still_puts_the_cold_one_back(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, console = made(run)
    real = console.query

    async def query(sql: str) -> None:
        await real(sql)

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("poolfleet.agent.loader.prepare", full)

    monkeypatch.setattr(console, "query", query)
    await loader.load(config("old"), {"shop": 7}, config("old"))
    assert on_disk(run) == ("old", "old")


async def test_a_template_that_is_not_ours_is_rejected_before_anything_is_written(run: Path) -> None:
    loader, console = made(run)
    with pytest.raises(Rejected):
        await loader.load(Config.of({names.INI_FILE: b"x"}), {"shop": 7}, config("old"))
    assert console.found == []
    assert on_disk(run) == ("old", "old")


@pytest.mark.parametrize("name", sorted({*LIVE} - {names.USERLIST_FILE}))
async def test_a_certificate_or_key_comes_and_goes_with_its_configuration(run: Path, name: str) -> None:
    loader, _ = made(run)
    more = config("old", **{name: b"pem"})
    await loader.load(more, {"shop": 7}, config("old"))
    assert (run / name).read_bytes() == b"pem"
    assert (run / name).stat().st_mode & 0o777 == 0o600
    await loader.load(config("old"), {"shop": 7}, more)
    assert not (run / name).exists()


def test_every_file_of_a_configuration_but_the_agent_s_own_reaches_pgbouncer() -> None:
    files = {value for name, value in vars(names).items() if name.endswith("_FILE")}
    assert {*LIVE} == files - {names.INI_FILE, names.KEY_FILE, names.LIMITS_FILE}
