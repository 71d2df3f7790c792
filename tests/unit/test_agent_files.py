"""poolfleet.agent.files"""

import dataclasses
import json
from pathlib import Path

import pytest

from poolfleet.agent import files
from poolfleet.agent.files import Applied, Config, Mount, Paths, Staged
from poolfleet.api import names, wire
from poolfleet.api.wire import Move

APPLIED = Applied("srv", 5, {"shop": 3, "ü": 1}, {"shop": 6}, "hash", 123.5)


def swap(folder: Path, version: str, content: dict[str, bytes]) -> None:
    """What the kubelet does."""
    folder.mkdir(exist_ok=True)
    data = folder / f"..{version}"
    data.mkdir()
    for name, text in content.items():
        (data / name).write_bytes(text)
    (folder / "..data_tmp").symlink_to(data.name)
    (folder / "..data_tmp").rename(folder / "..data")


def test_applied_survives(tmp_path: Path) -> None:
    assert Applied.load(tmp_path) is None
    APPLIED.save(tmp_path)
    assert Applied.load(tmp_path) == APPLIED
    assert [path.name for path in tmp_path.iterdir()] == [files.APPLIED_FILE]
    assert (tmp_path / files.APPLIED_FILE).stat().st_mode & 0o077 == 0


def test_peers_and_moves_survive(tmp_path: Path) -> None:
    full = dataclasses.replace(APPLIED, peer=2, peers={"1": "10.0.0.7", "2": "fd00::1"}, move=Move(10, 60, 5))
    full.save(tmp_path)
    assert Applied.load(tmp_path) == full


def test_what_an_older_build_wrote_has_no_peers(tmp_path: Path) -> None:
    APPLIED.save(tmp_path)
    path = tmp_path / files.APPLIED_FILE
    message = json.loads(path.read_text())
    path.write_text(json.dumps({n: v for n, v in message.items() if n not in ("peer", "peers", "move")}))
    assert Applied.load(tmp_path) == APPLIED


def test_staged_survives(tmp_path: Path) -> None:
    staged = Staged(Config.of({"pgbouncer.ini": b"\xff\0", "key": b"00"}), proved=True)
    staged.save(tmp_path)
    assert Staged.load(tmp_path) == staged


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"server": "s"}', '{"server":"s","rev":"x"}', '{"files": 3}'])
def test_damaged_files_are_value_errors(tmp_path: Path, text: str) -> None:
    (tmp_path / files.APPLIED_FILE).write_text(text)
    (tmp_path / files.STAGED_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"."):
        Applied.load(tmp_path)
    with pytest.raises(ValueError, match=r"."):
        Staged.load(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    APPLIED.save(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_durably(tmp_path / files.APPLIED_FILE, b"{}")
    assert Applied.load(tmp_path) == APPLIED
    assert len(list(tmp_path.iterdir())) == 1


def test_a_mount_is_read_when_the_kubelet_swaps_it(tmp_path: Path) -> None:
    mount = Mount(tmp_path / "m")
    assert not mount.poll()
    swap(tmp_path / "m", "1", {"a": b"1", "b": b"2"})
    assert mount.poll()
    assert mount.files == {"a": b"1", "b": b"2"}
    assert not mount.poll()
    swap(tmp_path / "m", "2", {"a": b"\xff"})
    assert mount.poll()
    assert mount.files == {"a": b"\xff"}
    assert (mount.text("a"), mount.text("b")) == ("", "")


def test_the_mounted_hash_is_the_operator_s(tmp_path: Path) -> None:
    content = {names.KEY_FILE: b"00ff\n", names.LIMITS_FILE: b'{"maxGrant": 7}'}
    swap(tmp_path / "m", "1", content)
    mount = Mount(tmp_path / "m")
    mount.poll()
    config = Config.of(mount.files)
    assert config.hash == wire.config_hash(content)
    assert (config.key, config.max_grant) == (b"\0\xff", 7)


@pytest.mark.parametrize("limits", [b"", b"x", b"[]", b"{}", b'{"maxGrant": "7"}', b'{"maxGrant": true}'])
def test_an_unreadable_maximum_is_none(limits: bytes) -> None:
    assert Config.of({names.LIMITS_FILE: limits}).max_grant is None


@pytest.mark.parametrize("key", [b"", b"xyz", b"\xff", b"0"])
def test_an_unreadable_key_is_none(key: bytes) -> None:
    assert Config.of({names.KEY_FILE: key}).key is None


def test_a_missing_or_undecodable_template_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=names.INI_FILE):
        _ = Config.of({}).template
    with pytest.raises(ValueError, match="utf-8"):
        _ = Config.of({names.INI_FILE: b"\xff"}).template


def test_no_secret_shows_in_a_repr() -> None:
    assert "geheim" not in repr(Staged(Config.of({"userlist.txt": b"geheim"}), False))


def test_paths_come_from_the_environment() -> None:
    assert Paths.from_environment({}) == Paths()
    assert Paths.from_environment({"POOLFLEET_RUN_DIR": "/x"}).run == Path("/x")
    assert json.dumps(str(Paths().config)) == f'"{names.CONFIG_DIR}"'
