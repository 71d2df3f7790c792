"""The agent's files: what the kubelet mounts, what PgBouncer reads, and what must outlive the agent.

In the shared folder (emptyDir, memory): the live files, `applied.json` (the newest directive that was accepted: written
durably before anything acts on it, so that a restarted agent never goes back) and `config.json` (the newest
configuration that PgBouncer is known to take).
"""

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from poolfleet.api import names
from poolfleet.api.wire import Move, config_hash

APPLIED_FILE: Final = "applied.json"
STAGED_FILE: Final = "config.json"


@dataclass(frozen=True, slots=True)
class Paths:
    """Where everything is."""

    run: Path = Path(names.RUN_DIR)
    config: Path = Path(names.CONFIG_DIR)
    pod: Path = Path(names.POD_DIR)

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "Paths":
        """The paths of names.py, or what POOLFLEET_{RUN,CONFIG,POD}_DIR say."""
        return cls(
            Path(env.get("POOLFLEET_RUN_DIR", names.RUN_DIR)),
            Path(env.get("POOLFLEET_CONFIG_DIR", names.CONFIG_DIR)),
            Path(env.get("POOLFLEET_POD_DIR", names.POD_DIR)),
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """The newest accepted directive, as it is kept."""

    server: str
    rev: int
    grant: Mapping[str, int]
    share: Mapping[str, int]
    config: str  # the configuration that the directive wants; it may not be in force yet
    first: float  # when this pod got its first grant, seconds since the epoch
    peer: int = 0
    peers: Mapping[str, str] = field(default_factory=dict)
    move: Move | None = None
    hold: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write durably. Raises OSError."""
        message = {name: getattr(self, name) for name in ("server", "rev", "config", "first", "peer")}
        message |= {"grant": dict(self.grant), "share": dict(self.share), "peers": dict(self.peers)}
        message["hold"] = list(self.hold)
        message["move"] = None if self.move is None else asdict(self.move)
        write_durably(folder / APPLIED_FILE, json.dumps(message).encode())

    @classmethod
    def load(cls, folder: Path) -> "Applied | None":
        """What `save` wrote, an older build's too; None if nothing. Raises ValueError if it is not readable."""
        message = _load(folder / APPLIED_FILE)
        if message is None:
            return None
        try:
            move = message.get("move")
            return cls(
                server=str(message["server"]),
                rev=int(message["rev"]),
                grant={str(name): int(n) for name, n in message["grant"].items()},
                share={str(name): int(n) for name, n in message["share"].items()},
                config=str(message["config"]),
                first=float(message["first"]),
                peer=int(message.get("peer", 0)),
                peers={str(peer): str(address) for peer, address in message.get("peers", {}).items()},
                move=None if move is None else Move(int(move["above"]), int(move["idle"]), int(move["percent"])),
                hold=tuple(str(name) for name in message.get("hold", ())),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{APPLIED_FILE} is not readable: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Config:
    """One version of the Secret x-config: file name to content."""

    files: Mapping[str, bytes] = field(repr=False)
    hash: str

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> "Config":
        return cls(files, config_hash(files))

    @property
    def template(self) -> str:
        """The ini template. Raises ValueError if there is none or it is no UTF-8."""
        if names.INI_FILE not in self.files:
            raise ValueError(f"the configuration holds no {names.INI_FILE}")
        return self.files[names.INI_FILE].decode()

    @property
    def key(self) -> bytes | None:
        """The pool's HMAC key, None if there is none to be read."""
        try:
            return bytes.fromhex(self.files.get(names.KEY_FILE, b"").decode().strip()) or None
        except ValueError:
            return None

    @property
    def max_grant(self) -> int | None:
        """The most that one database may be granted, None if it is not to be read."""
        try:
            most = json.loads(self.files.get(names.LIMITS_FILE, b""))["maxGrant"]
        except (ValueError, KeyError, TypeError):
            return None
        return most if type(most) is int else None


@dataclass(frozen=True, slots=True)
class Staged:
    """The last good configuration. `proved`: a PgBouncer has run with it."""

    config: Config
    proved: bool

    def save(self, folder: Path) -> None:
        """Write durably. Raises OSError."""
        files = {name: base64.b64encode(content).decode() for name, content in self.config.files.items()}
        write_durably(folder / STAGED_FILE, json.dumps({"files": files, "proved": self.proved}).encode())

    @classmethod
    def load(cls, folder: Path) -> "Staged | None":
        """What `save` wrote, None if nothing. Raises ValueError if it is not readable."""
        message = _load(folder / STAGED_FILE)
        if message is None:
            return None
        try:
            files = {str(name): base64.b64decode(text) for name, text in message["files"].items()}
            return cls(Config.of(files), bool(message["proved"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{STAGED_FILE} is not readable: {error!r}") from error


class Mount:
    """A folder that the kubelet fills and later replaces as a whole, by swapping the symlink `..data`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: object = None
        self.files: Mapping[str, bytes] = {}

    def poll(self) -> bool:
        """Look whether the content is another one (one stat); read it if so. True if it was read anew."""
        data = self._folder / "..data"
        try:
            status = data.stat()
            seen = (status.st_ino, status.st_ctime_ns)
            if seen == self._seen:
                return False
            files = {
                entry.name: Path(entry.path).read_bytes()
                for entry in os.scandir(os.path.realpath(data))
                if entry.is_file()
            }
        except OSError:  # not there yet, or swapped while it was read: the next poll sees the whole of it
            return False
        self._seen, self.files = seen, files
        return True

    def text(self, name: str) -> str:
        """Content of one file, "" if it is missing or no UTF-8."""
        try:
            return self.files.get(name, b"").decode()
        except UnicodeDecodeError:
            return ""


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` in one step, on stable storage when this returns. Raises OSError; the old file stays then."""
    prepare(path, content, sync=True)
    commit(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def prepare(path: Path, content: bytes, *, suffix: str = ".new", sync: bool = False) -> None:
    """Write `content` beside `path`, readable to this user only. Raises OSError, e.g. for a full disk."""
    new = path.with_name(path.name + suffix)
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except OSError:
        new.unlink(missing_ok=True)
        raise


def commit(path: Path, *, suffix: str = ".new") -> None:
    """Put what `prepare` wrote in the place of `path`; needs no room on the disk."""
    path.with_name(path.name + suffix).replace(path)


def _load(path: Path) -> dict[str, Any] | None:
    try:
        message = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(message, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return message
