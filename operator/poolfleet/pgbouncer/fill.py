"""The agent's part of pgbouncer.ini: the template of the Secret `x-config` plus what this one pod was granted.

The template (render.py writes it) carries two kinds of marker line. `;@database "<name>"` names the database of the
next line, which gets ` pool_size=N max_db_connections=N` appended, or is dropped together with the marker if the
database has no grant: 0 would mean "unlimited" to PgBouncer (design section 3). `;@fill`, the last line, becomes
`default_pool_size`, what else this pod says (`Own`) and, as the very last line, the marker by which a complete load is
recognised (facts/pgbouncer.md 6). No value can forge such a line, for none may hold a line feed (quoting.py). The
section [peers] needs no marker in the template, so that templates of older builds get it as well.

Standard library only.
"""

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from poolfleet.api import names

DATABASE: Final = ";@database "
FILL: Final = ";@fill"
COLD: Final = "cold"
"""Marker of the file that a restarted PgBouncer finds: one connection per database."""

PEER_POOL_SIZE: Final = 50
"""Connections to one peer at once. Each carries one cancel request, and none counts against the database's limits."""


_VALUE: Final = re.compile(r"(?P<key>\w+)=(?:'(?P<quoted>(?:[^']|'')*)'|\S*)")


class Malformed(ValueError):
    """The template is not one that render.py wrote."""


@dataclass(frozen=True, slots=True)
class Own:
    """What the file of one pod says besides its grant."""

    peer: int = 0  # peer_id, 0: none
    peers: Mapping[str, str] = field(default_factory=dict)  # peer_id -> IP; PgBouncer takes its own entry, too
    port: int = names.PGBOUNCER_PORT  # of all peers
    client_idle_timeout: float | None = None  # seconds; a shorter one of the template stays


NOTHING: Final = Own()


def databases(template: str) -> list[str]:
    """Names of the template's databases, in its order. Raises Malformed."""
    return [name for name, _ in _lines(template) if name is not None]


def users(template: str) -> dict[str, str | None]:
    """Database -> the one role that its server connections log in as; None: each client's own. Raises Malformed."""
    found: dict[str, str | None] = {}
    for name, line in _lines(template):
        if name is not None:
            values = {m["key"]: m["quoted"] for m in _VALUE.finditer(line.partition("' = ")[2])}
            user = values.get("user")
            found[name] = None if user is None else user.replace("''", "'")
    return found


def fill(template: str, grant: Mapping[str, int], marker: str, own: Own = NOTHING) -> str:
    """The ini file for `grant` (database -> connections, each at least 1), with `marker` as syslog_ident.

    A database without a grant is left out, a grant without a database is ignored. Raises Malformed for a template that
    is not ours, ValueError for a grant below 1, a peer without an IP address, or a marker that is no plain word.
    """
    for name, connections in grant.items():
        if type(connections) is not int or connections < 1:
            raise ValueError(f"grant of database {name!r} is {connections!r}; at least 1 is needed, 0 means unlimited")
    if not marker or not all(c.isascii() and (c.isalnum() or c == "-") for c in marker):
        raise ValueError(f"marker {marker!r} is no plain word")
    out: list[str] = []
    rendered: list[int] = []
    for database, line in _lines(template):
        if database is None:
            out.append(line)
        elif database in grant:
            out.append(f"{line} pool_size={grant[database]} max_db_connections={grant[database]}")
            rendered.append(grant[database])
    out.append(f"default_pool_size = {min(rendered, default=1)}")
    if own.peer:
        out.append(f"peer_id = {own.peer}")
        settings = len(out) - 1 - out[::-1].index("[pgbouncer]")
        out[settings:settings] = ["[peers]", *_peers(own), ""]
    idle = own.client_idle_timeout
    if idle is not None and not 0 < _client_idle_timeout(out) <= idle:
        out.append(f"client_idle_timeout = {idle:g}")
    out.append(f"syslog_ident = {marker}")
    return "\n".join(out) + "\n"


def cold(template: str, grant: Mapping[str, int], own: Own = NOTHING) -> str:
    """The ini file that a restarted PgBouncer finds: the granted databases with one connection each, and its peers."""
    return fill(template, dict.fromkeys(grant, 1), COLD, replace(own, client_idle_timeout=None))


def _peers(own: Own) -> Iterator[str]:
    for peer, address in sorted(own.peers.items(), key=lambda item: int(item[0])):
        if "%" in address:
            raise ValueError(f"peer {peer} has an address with a zone")
        host = ipaddress.ip_address(address)
        yield f"{int(peer)} = host={host} port={own.port} pool_size={PEER_POOL_SIZE}"


def _client_idle_timeout(lines: list[str]) -> float:
    """What the lines set client_idle_timeout to, in seconds; 0: not at all, as for PgBouncer."""
    values = [line.partition("=")[2] for line in lines if line.partition("=")[0].strip() == "client_idle_timeout"]
    return float(values[-1]) if values else 0.0


def _lines(template: str) -> Iterator[tuple[str | None, str]]:
    """Yield (database, its line) for databases and (None, line) for all else, without the marker lines."""
    lines = template.rstrip("\n").split("\n")
    if lines.pop() != FILL:
        raise Malformed(f"the template's last line is not {FILL}")
    if any("\r" in line or "\0" in line for line in lines):
        raise Malformed("the template holds a carriage return or a NUL")
    section = ""
    seen: set[str] = set()
    rest = iter(lines)
    for line in rest:
        if line.startswith(DATABASE):
            name, line = _database(line), next(rest, "")
            if section != "[databases]" or not line.startswith("'") or name in seen:
                raise Malformed(f"{DATABASE.strip()} {name!r} is out of place")
            seen.add(name)
            yield name, line
            continue
        if line.startswith("["):
            section = line
        if line == FILL or line.lstrip().startswith("%include"):
            raise Malformed(f"a line {line[:20]!r} is out of place")
        if section == "[databases]" and line and line != section and not line.startswith(";"):
            raise Malformed("a database line without its marker")
        yield None, line
    if section != "[pgbouncer]":
        raise Malformed("the template's last section is not [pgbouncer]")


def _database(line: str) -> str:
    try:
        name = json.loads(line.removeprefix(DATABASE))
    except ValueError:
        raise Malformed(f"{DATABASE.strip()} without a name") from None
    if not isinstance(name, str):
        raise Malformed(f"{DATABASE.strip()} without a name")
    return name
