"""Which PgServers are one and the same PostgreSQL server: its budget must not be given out twice (design section 3).

Two are the same if they have the same host and port, or if both were seen to be the same run of the same server
(system_identifier and start time, both: a replica has the same identifier, and connections of its own). What is the
same as the same is the same. The oldest, by creationTimestamp and then by UID, keeps the budget; the others get none.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from poolfleet.plan.tenancy import full_host
from poolfleet.plan.times import seconds

Body = Mapping[str, Any]
"""A PgServer as JSON."""
Mark = tuple[str, ...]
"""Something by which a server is told from others; two PgServers with a common mark are the same server."""

DEFAULT_PORT: Final = 5432
_CLUSTER: Final = ".svc.cluster.local"


@dataclass(frozen=True, slots=True)
class Rivals:
    """The other PgServers that are the same server as one."""

    elder: Body | None  # the one that has the budget; None: this one has it
    youngers: tuple[
        Body, ...
    ]  # those that get nothing because of this one, oldest first; none unless it has the budget
    why: str = ""  # by what it is the same as `elder`, for people


def marks(server: Body) -> frozenset[Mark]:
    """What tells the server of this PgServer from others."""
    found: set[Mark] = set()
    spec, metadata = server.get("spec") or {}, server["metadata"]
    if spec.get("host"):
        host = normal_host(str(spec["host"]), metadata.get("namespace", ""))
        found.add(("same host and port", host, str(spec.get("port") or DEFAULT_PORT)))
    discovery = (server.get("status") or {}).get("discovery") or {}
    identifier, started = discovery.get("systemIdentifier"), discovery.get("startedAt")
    if identifier and started:
        found.add(("same system_identifier and start time", str(identifier), str(started)))
    return frozenset(found)


def normal_host(host: str, namespace: str) -> str:
    """`host` of a PgServer in `namespace` as one spelling of it: a name in lower case, without the final dot and the
    usual cluster domain, a single label as the Service that it is; an address in its shortest form."""
    plain = host.lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(plain))
    except ValueError:
        full = full_host(plain, namespace)
        return full.removesuffix(".cluster.local") if full.endswith(_CLUSTER) else full


def rivals(server: Body, others: Iterable[Body]) -> Rivals:
    """Who else among `others` (all PgServers, `server` itself may be one of them) is the same server as `server`."""
    rest = {_uid(other): other for other in others if _uid(other) != _uid(server)}
    group, seen = [server], set(marks(server))
    while found := [uid for uid, other in rest.items() if not seen.isdisjoint(marks(other))]:
        for uid in found:
            other = rest.pop(uid)
            group.append(other)
            seen |= marks(other)
    group.sort(key=_age)
    if group[0] is server:
        return Rivals(None, tuple(group[1:]))
    common = marks(server) & marks(group[0])
    return Rivals(group[0], (), " and ".join(sorted(mark[0] for mark in common)) or "by way of a third PgServer")


def refusal(found: Rivals) -> str:
    """What the younger PgServer says, with the remedy; "" if it has the budget itself."""
    if found.elder is None:
        return ""
    metadata = found.elder["metadata"]
    name = f"{metadata['namespace']}/{metadata['name']}"
    return (
        f"PgServer {name}, which is older, is the same server ({found.why}) and has its budget. "
        f"Delete one of the two; PgPools can use that one by serverRef, if its spec.allowedNamespaces allows it."
    )


def _uid(server: Body) -> str:
    return str(server["metadata"].get("uid", ""))


def _age(server: Body) -> tuple[float, str]:
    return seconds(server["metadata"].get("creationTimestamp")), _uid(server)
