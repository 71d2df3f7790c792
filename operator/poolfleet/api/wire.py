"""What the operator and an agent say to each other: the directive and the state, both with a MAC.

Standard library only: the agent imports this. JSON objects; the MAC is HMAC-SHA256 over the canonical JSON
(sorted keys, no spaces, UTF-8) of all other members, hex, in the member `mac` (design section 4).
"""

import hashlib
import hmac
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

PROTOCOL_VERSION: Final = 1
MAX_PEER: Final = 16383
"""PgBouncer's largest peer_id (facts/pgbouncer.md 5)."""


class WireError(ValueError):
    """A message that must not be believed: not JSON, not of this protocol, or with a wrong MAC."""


def _canonical(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sign(message: Mapping[str, Any], key: bytes) -> str:
    """Return `message` as JSON text with its MAC under `key`."""
    mac = hmac.new(key, _canonical(message), hashlib.sha256).hexdigest()
    return json.dumps({**message, "mac": mac}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def verify(text: str | bytes, key: bytes) -> dict[str, Any]:
    """Return the message in `text` without its MAC; raise WireError unless the MAC under `key` fits."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise WireError("not a JSON object")
    mac = message.pop("mac", None)
    if not isinstance(mac, str):
        raise WireError("no MAC")
    try:
        canonical, shown = _canonical(message), mac.encode()
    except (ValueError, RecursionError) as error:  # half a surrogate pair is JSON, but no text
        raise WireError(f"not of this protocol: {error}") from error
    if not hmac.compare_digest(shown, hmac.new(key, canonical, hashlib.sha256).hexdigest().encode()):
        raise WireError("wrong MAC")
    return message


def config_hash(files: Mapping[str, bytes]) -> str:
    """Hash of a Secret's data (file name to bytes), the same for operator and agent: 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(files):
        for part in (name.encode(), files[name]):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def drain_token(key: bytes) -> str:
    """The token that a preStop hook must show. Derived, so that the pod template does not hold the key itself."""
    return hmac.new(key, b"drain", hashlib.sha256).hexdigest()[:32]


def tombstone(key: bytes, username: str) -> str:
    """The password of a removed user: nobody knows it, and it stays the same, so that the file does."""
    return hmac.new(key, f"removed user {username}".encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class Move:
    """Which clients an agent shall close, so that they come back by the Service and get to other pods."""

    above: int  # only while the pod has more clients than this
    idle: int  # seconds since a client's last request, at least
    percent: int  # of the pod's clients, at most so many within ten seconds


@dataclass(frozen=True, slots=True)
class Directive:
    """One order to one agent: connections per database, and the configuration to load."""

    server: str  # PgServer UID
    pod: str  # pod UID
    rev: int  # ledger revision; an agent never goes back within one server
    config: str  # config_hash of the Secret x-config to load
    grant: Mapping[str, int]  # database -> connections; a database that is not here is not served
    share: Mapping[str, int] = field(default_factory=dict)  # what this pod shall reach; readiness wants half of it
    peer: int = 0  # PgBouncer's peer_id of this pod, 0: none
    peers: Mapping[str, str] = field(default_factory=dict)  # peer_id -> IP of all pods of the pool, this one included
    move: Move | None = None  # None: no client is closed to move it
    hold: tuple[str, ...] = ()  # databases whose queries wait: no server connection is opened or handed out
    stage: str = ""  # config_hash to have mounted, but not loaded, before the next directive; "": nothing
    v: int = PROTOCOL_VERSION

    def to_message(self) -> dict[str, Any]:
        """The directive as the JSON object of design section 4 (without the MAC)."""
        message: dict[str, Any] = {
            "v": self.v,
            "server": self.server,
            "pod": self.pod,
            "rev": self.rev,
            "config": self.config,
            "grant": dict(self.grant),
            "share": dict(self.share),
            "hold": list(self.hold),
        }
        if self.stage:
            message["stage"] = self.stage
        if self.peer:
            message |= {"peer": self.peer, "peers": dict(self.peers)}
        if self.move is not None:
            message["move"] = {"above": self.move.above, "idle": self.move.idle, "percent": self.move.percent}
        return message

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "Directive":
        """Read a verified message; raise WireError if a member is missing or wrong. Unknown members are ignored."""
        version = message.get("v")
        if not _is_count(version) or version not in (PROTOCOL_VERSION, PROTOCOL_VERSION - 1):
            raise WireError(f"protocol version {version!r} is not spoken here")
        for name in ("server", "pod", "config"):
            if not isinstance(message.get(name), str):
                raise WireError(f"member {name!r} is missing or no string")
        if not _is_count(message.get("rev")):
            raise WireError("member 'rev' is missing or no count")
        return cls(
            server=message["server"],
            pod=message["pod"],
            rev=message["rev"],
            config=message["config"],
            grant=_counts(message, "grant", least=1),
            share=_counts(message, "share", least=0) if "share" in message else {},
            peer=_peer(message.get("peer", 0)),
            peers=_peers(message.get("peers", {})),
            move=_move(message.get("move")),
            hold=_names(message.get("hold", [])),
            stage=str(message.get("stage", "")),
            v=message["v"],
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _counts(message: Mapping[str, Any], name: str, least: int) -> dict[str, int]:
    counts = message.get(name)
    if not isinstance(counts, dict) or not all(_is_count(n) and n >= least for n in counts.values()):
        raise WireError(f"member {name!r} is missing or holds no counts of at least {least}")
    return dict(counts)


def _peer(value: object) -> int:
    if not _is_count(value) or not isinstance(value, int) or value > MAX_PEER:
        raise WireError("member 'peer' is no peer_id")
    return value


def _peers(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(is_peer(peer, address) for peer, address in value.items()):
        raise WireError("member 'peers' holds something else than peer_ids and IP addresses")
    return dict(value)


def is_peer(peer: object, address: object) -> bool:
    """Whether this is a peer_id as PgBouncer writes it and an IP address that a pod can have."""
    if not isinstance(peer, str) or not isinstance(address, str) or "%" in address:  # a zone may be any text
        return False
    try:
        return 1 <= int(peer) <= MAX_PEER and str(int(peer)) == peer and bool(ipaddress.ip_address(address))
    except ValueError:
        return False


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise WireError("member 'hold' holds something else than names")
    return tuple(value)


def _move(value: object) -> Move | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(_is_count(value.get(name)) for name in ("above", "idle", "percent")):
        raise WireError("member 'move' holds no counts above, idle and percent")
    return Move(value["above"], value["idle"], value["percent"])


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """What one PgBouncer process says of one of its databases."""

    loaded: int  # pool_size loaded (SHOW DATABASES); max_db_connections is the same or the larger of both is here
    held: int  # server connections: largest of the last two samples since the last load, cancels under way left out
    samples: int  # samples taken since the last load; below 2 `held` proves nothing
    clients: int = 0  # clients linked, idle or waiting
    waiting: int = 0  # those of them that wait for a server connection
    peak: int = 0  # most busy server connections at a moment of the last 10 s
    demand: int = 0  # most busy server connections and waiting clients together at a moment of the last 10 s
    waited: bool = False  # clients waited for a server connection within the last 10 s, in more than one sample
    reachable: bool | None = None  # None: not tried since the last load
    error: str = ""  # why it is not reachable, in PostgreSQL's or PgBouncer's words
    hold: float | None = None  # seconds until the agent ends its hold by itself; None: not held (yet)


@dataclass(frozen=True, slots=True)
class AgentState:
    """One answer of GET /state."""

    server: str  # PgServer UID of the applied directive, "" before the first
    pod: str
    seq: int  # ask for the next with ?after=<seq>
    rev: int  # applied revision, 0 before the first
    config: str  # hash of the configuration in force, "" before the first
    config_error: str  # why a newer configuration is not in force, "" if none
    started: str  # identity of the PgBouncer process (changes with each start), "" while none runs
    databases: Mapping[str, DatabaseState]
    mounted: str = ""  # hash of the configuration that is mounted, loaded or not; "": an agent that cannot hold
    users: Mapping[str, int] = field(default_factory=dict)  # client user -> its connected clients, without those at 0
    max_wait: float = 0.0  # seconds that the first waiting client has waited
    pids: tuple[int, ...] = ()  # backend pids of the server connections (SHOW SERVERS.remote_pid)
    draining: bool = False
    cut: int = 0  # clients that were still there when the drain's time was over, and lost their connection
    moved: int = 0  # clients closed to move them to other pods, since this PgBouncer started
    cpu: float | None = None  # cores that PgBouncer used over the last seconds (it can use one); None: not known
    ready: bool = False
    version: str = ""  # of the agent
    pgbouncer: str = ""  # SHOW VERSION
    v: int = PROTOCOL_VERSION

    def to_message(self) -> dict[str, Any]:
        """The state as a JSON object (without the MAC)."""
        return {
            "v": self.v,
            "server": self.server,
            "pod": self.pod,
            "seq": self.seq,
            "rev": self.rev,
            "config": self.config,
            "configError": self.config_error,
            "started": self.started,
            "databases": {
                name: {
                    "loaded": d.loaded,
                    "held": d.held,
                    "samples": d.samples,
                    "clients": d.clients,
                    "waiting": d.waiting,
                    "peak": d.peak,
                    "demand": d.demand,
                    "waited": d.waited,
                    "reachable": d.reachable,
                    "error": d.error,
                    "hold": d.hold,
                }
                for name, d in self.databases.items()
            },
            "mounted": self.mounted,
            "users": dict(self.users),
            "maxWait": self.max_wait,
            "pids": list(self.pids),
            "draining": self.draining,
            "cut": self.cut,
            "moved": self.moved,
            "cpu": self.cpu,
            "ready": self.ready,
            "version": self.version,
            "pgbouncer": self.pgbouncer,
        }

    @classmethod
    def from_message(cls, m: Mapping[str, Any]) -> "AgentState":
        """Read a verified message; raise WireError if it is not of this shape."""
        try:
            return cls(
                server=str(m["server"]),
                pod=str(m["pod"]),
                seq=int(m["seq"]),
                rev=int(m["rev"]),
                config=str(m["config"]),
                config_error=str(m.get("configError", "")),
                started=str(m["started"]),
                databases={
                    str(name): DatabaseState(
                        loaded=int(d["loaded"]),
                        held=int(d["held"]),
                        samples=int(d["samples"]),
                        clients=int(d.get("clients", 0)),
                        waiting=int(d.get("waiting", 0)),
                        peak=int(d.get("peak", 0)),
                        demand=int(d.get("demand", 0)),
                        waited=bool(d.get("waited", False)),
                        reachable=d.get("reachable"),
                        error=str(d.get("error", "")),
                        hold=None if d.get("hold") is None else float(d["hold"]),
                    )
                    for name, d in m["databases"].items()
                },
                mounted=str(m.get("mounted", "")),
                users={str(user): int(clients) for user, clients in m.get("users", {}).items()},
                max_wait=float(m.get("maxWait", 0.0)),
                pids=tuple(int(p) for p in m.get("pids", ())),
                draining=bool(m.get("draining", False)),
                cut=int(m.get("cut", 0)),
                moved=int(m.get("moved", 0)),
                cpu=None if m.get("cpu") is None else float(m["cpu"]),
                ready=bool(m.get("ready", False)),
                version=str(m.get("version", "")),
                pgbouncer=str(m.get("pgbouncer", "")),
                v=int(m["v"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WireError(f"not a state: {error!r}") from error
