"""What the API server has shown so far: the newest body of every object that the operator watches.

Filled by lists, watches and the answers to own writes, in any order: an older resourceVersion never replaces a newer
one, and what was deleted does not come back by a late word. Bodies are plain dicts without managedFields and belong to
the store: readers must not change them.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from poolfleet.api import names
from poolfleet.kube.kinds import POD, POOL, SECRET, SERVER
from poolfleet.plan.identity import marks
from poolfleet.plan.managed import read_about
from poolfleet.plan.tenancy import server_name

Body = dict[str, Any]
Bodies = list[Body]
Name = tuple[str, str]  # namespace, name

REMEMBER: Final = 600.0  # seconds for which deleted objects are remembered
SHARED: Final = 64  # longest string that is kept only once however many bodies have it


class Store:
    """See the module. `plural` is always the resource name, as in `kinds.POD.plural`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` in seconds, for forgetting."""
        self._clock = clock
        self._objects: dict[str, dict[Name, Body]] = {}
        self._index: dict[tuple[str, ...], set[tuple[str, Name]]] = {}  # what _index_keys says -> (plural, name)
        self._deleted: dict[str, tuple[float, str, Body]] = {}  # by UID: (when, plural, last body), oldest first
        self._configs: dict[Name, Body] = {}  # last bodies of deleted x-config Secrets whose pool is still there
        self._synced: set[str] = set()

    # Written by lists, watches and own writes

    def put(self, plural: str, body: Mapping[str, Any]) -> bool:
        """Take `body` as the newest of its object; return whether it is news (not if older, equal or deleted since)."""
        metadata = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
        uid = _uid(metadata)
        gone = self._deleted.get(uid) if uid else None
        if gone is not None and not _newer(metadata, gone[2]["metadata"]):
            return False
        objects = self._objects.setdefault(plural, {})
        name = _name(metadata)
        known = objects.get(name)
        if known is not None:
            if not _newer(metadata, known["metadata"]):
                return False
            if _uid(known["metadata"]) != uid:
                self.remove(plural, known)  # deleted and created again, and only the second was seen
            else:
                self._unindex(plural, name, known)
        if gone is not None:
            del self._deleted[uid]  # it had only left the label selector
        mine: Body = _compact({**body, "metadata": metadata})
        objects[name] = mine
        for key in _index_keys(plural, mine):
            self._index.setdefault(key, set()).add((plural, name))
        return True

    def remove(self, plural: str, body: Mapping[str, Any]) -> bool:
        """Forget the object; `body` is the last that was seen of it. Returns whether it was there (with this UID)."""
        name, uid = _name(body["metadata"]), _uid(body["metadata"])
        known = self._objects.get(plural, {}).get(name)
        if known is not None and _uid(known["metadata"]) != uid:
            known = None  # another object has the name by now
        last: Body = {**body, "metadata": {k: v for k, v in body["metadata"].items() if k != "managedFields"}}
        if known is not None:
            if _newer(known["metadata"], last["metadata"]):
                last = known
            del self._objects[plural][name]
            self._unindex(plural, name, known)
        self._forget_old()
        grave = uid or "/".join((plural, *name))
        self._deleted.pop(grave, None)
        self._deleted[grave] = (self._clock(), plural, last)
        if known is not None and plural == SECRET.plural and self._is_config(last):
            self._configs[name] = last
        if plural == POOL.plural:
            self._configs.pop((name[0], names.config_secret(name[1])), None)
        return known is not None

    def mark_synced(self, plural: str) -> None:
        """Say that everything that exists of `plural` has been put."""
        self._synced.add(plural)

    # Read by everybody

    def synced(self, plural: str) -> bool:
        """Whether what is not here does not exist."""
        return plural in self._synced

    def get(self, plural: str, namespace: str, name: str) -> Body | None:
        """The object, or None."""
        return self._objects.get(plural, {}).get((namespace, name))

    def list(self, plural: str, namespace: str | None = None) -> Bodies:
        """All objects of `plural`, or those of `namespace`, in no order."""
        objects = self._objects.get(plural, {})
        return [body for (ns, _), body in objects.items() if namespace is None or ns == namespace]

    def by_uid(self, plural: str, uid: str) -> Body | None:
        """The object with this UID, or None."""
        return next(self._at(("uid", uid), plural), None)

    def owned_by(self, uid: str, plural: str) -> Bodies:
        """The objects of `plural` with an ownerReference to `uid` (a pod's is its ReplicaSet: see of_pool)."""
        return [*self._at(("owner", uid), plural)]

    def of_pool(self, plural: str, namespace: str, pool: str) -> Bodies:
        """The objects of `plural` with label poolfleet.dev/pool=`pool` in `namespace`."""
        return [*self._at(("pool", namespace, pool), plural)]

    def naming(self, namespace: str, server: str) -> Bodies:
        """The PgPools, of whatever namespace, that name the PgServer `namespace`/`server` or have it inline."""
        return [*self._at(("server", namespace, server), POOL.plural)]

    def same_server(self, server: Body) -> Bodies:
        """The PgServers, `server` among them if it is here, that have a mark in common with it (plan/identity.py), or
        with one that has, and so on: those that may be one and the same PostgreSQL server."""
        found: dict[Name, Body] = {}
        todo = [server]
        while todo:
            for mark in marks(todo.pop()):
                for other in self._at(("mark", *mark), SERVER.plural):
                    name = _name(other["metadata"])
                    if name not in found:
                        found[name] = other
                        todo.append(other)
        return [*found.values()]

    def next_logins(self, server: str) -> Bodies:
        """The Secrets with the next login of a role of the PgServer "<namespace>/<name>", of whatever namespace."""
        return [*self._at(("next", server), SECRET.plural)]

    def referring(self, namespace: str, secret: str) -> Sequence[tuple[str, str]]:
        """(plural, name) of the PgPools and PgServers in `namespace` whose spec names the Secret `secret`."""
        return [(plural, name) for plural, (_, name) in sorted(self._index.get(("secret", namespace, secret), ()))]

    def get_deleted(self, plural: str, namespace: str, name: str) -> Body | None:
        """Last body of a deleted object: of a Secret `<pool>-config` while its pool exists, else for 10 minutes."""
        if plural == SECRET.plural and (namespace, name) in self._configs:
            return self._configs[namespace, name]
        self._forget_old()
        bodies = [b for _, p, b in self._deleted.values() if p == plural and _name(b["metadata"]) == (namespace, name)]
        return bodies[-1] if bodies else None

    def buried(self, uid: str) -> bool:
        """Whether the object with this UID is known to be deleted (within the last 10 minutes)."""
        return uid in self._deleted

    def last_seen(self, uid: str) -> Body | None:
        """Last body of the object with this UID if it was deleted within the last 10 minutes, else None."""
        self._forget_old()
        return self._deleted[uid][2] if uid in self._deleted else None

    def deleted_pods(self, namespace: str, pool: str | None = None) -> Bodies:
        """Last seen bodies of the pods (of `pool`) that were deleted within the last 10 minutes, oldest first."""
        self._forget_old()
        return [
            body
            for _, plural, body in self._deleted.values()
            if plural == POD.plural
            and body["metadata"].get("namespace") == namespace
            and (pool is None or _labels(body).get(names.LABEL_POOL) == pool)
        ]

    # Inside

    def _at(self, key: tuple[str, ...], plural: str) -> Iterator[Body]:
        return (self._objects[p][name] for p, name in self._index.get(key, ()) if p == plural)

    def _unindex(self, plural: str, name: Name, body: Body) -> None:
        for key in _index_keys(plural, body):
            entries = self._index.get(key, set())
            entries.discard((plural, name))
            if not entries:
                self._index.pop(key, None)

    def _is_config(self, secret: Body) -> bool:
        namespace, name = _name(secret["metadata"])
        pool = _labels(secret).get(names.LABEL_POOL)
        return (
            pool is not None
            and name == names.config_secret(pool)
            and self.get(POOL.plural, namespace, pool) is not None
        )

    def _forget_old(self) -> None:
        limit = self._clock() - REMEMBER
        while self._deleted:
            uid, (when, _, _) = next(iter(self._deleted.items()))
            if when > limit:
                break
            del self._deleted[uid]


def secret_names(spec: object) -> frozenset[str]:
    """Names of the Secrets that a PgPool's or PgServer's spec refers to, by fields called …secretRef or …SecretRef."""
    return frozenset(_secret_names(spec))


def _secret_names(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, member in value.items():
            if (
                key.lower().endswith("secretref")
                and isinstance(member, Mapping)
                and isinstance(member.get("name"), str)
            ):
                yield member["name"]
            else:
                yield from _secret_names(member)
    elif isinstance(value, list):
        for member in value:
            yield from _secret_names(member)


def _compact(value: Any) -> Any:
    """A copy whose keys and short strings are shared with all other bodies. The parser shares them within one object
    only, and bodies are much alike: half of the store's memory (measured with 100 PgPools: 7 instead of 13 MiB)."""
    if isinstance(value, dict):
        return {sys.intern(key): _compact(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_compact(member) for member in value]
    return sys.intern(value) if type(value) is str and len(value) <= SHARED else value


def _index_keys(plural: str, body: Body) -> Iterator[tuple[str, ...]]:
    metadata = body["metadata"]
    namespace = str(metadata.get("namespace", ""))
    if _uid(metadata):
        yield "uid", _uid(metadata)
    for owner in metadata.get("ownerReferences") or ():
        yield "owner", str(owner.get("uid", ""))
    if names.LABEL_POOL in _labels(body):
        yield "pool", namespace, _labels(body)[names.LABEL_POOL]
    if plural == POOL.plural:
        yield "server", *server_name(body)
    if plural == SERVER.plural:
        for mark in marks(body):
            yield "mark", *mark
    if plural == SECRET.plural and names.NEXT in (metadata.get("annotations") or {}):
        yield "next", str(read_about(body).get("server", ""))
    if plural in (POOL.plural, SERVER.plural):
        for secret in secret_names({k: v for k, v in (body.get("spec") or {}).items() if k != "template"}):
            yield "secret", namespace, secret


def _labels(body: Mapping[str, Any]) -> Mapping[str, str]:
    return body["metadata"].get("labels") or {}


def _uid(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("uid") or "")


def _name(metadata: Mapping[str, Any]) -> Name:
    return str(metadata.get("namespace", "")), str(metadata["name"])


def _newer(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether `one` has the larger resourceVersion (in every released API server a growing number), or one has none."""
    versions = [metadata.get("resourceVersion") for metadata in (one, other)]
    if not all(isinstance(version, str) and version.isdigit() for version in versions):
        return True
    return int(str(versions[0])) > int(str(versions[1]))
