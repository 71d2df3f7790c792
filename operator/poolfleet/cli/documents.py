"""PgServer and PgPool documents from files, checked as the operator checks them, for `kubectl pgpool simulate`."""

import copy
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from poolfleet.api import names
from poolfleet.api.base import explain
from poolfleet.api.pgpool import PgPool
from poolfleet.api.pgserver import PgServer, PgServerSpec
from poolfleet.plan.pool import wishes
from poolfleet.plan.replicas import autoscaling, desired
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.tenancy import Standing, refusal, server_name, standing

Body = dict[str, Any]
DEFAULT_NAMESPACE: Final = "default"
NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"  # Kubernetes sets it on every Namespace
MODELS: Final[dict[str, type[PgPool] | type[PgServer]]] = {names.POOL_KIND: PgPool, names.SERVER_KIND: PgServer}


class Unusable(Exception):
    """Documents that cannot be simulated; one line per document."""

    def __init__(self, findings: Iterable[str]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(self.findings))


@dataclass(frozen=True, slots=True)
class Changes:
    """What the flags change of the documents; None: nothing."""

    max_connections: int | None = None
    replicas: int | None = None
    pools: int = 1  # how many of each pool there are


@dataclass(frozen=True, slots=True)
class Case:
    """One server and the pools that use it, oldest first."""

    server: str  # "<namespace>/<name>"
    spec: PgServerSpec
    wishes: tuple[PoolWish, ...]
    notes: tuple[str, ...] = field(default=())


def read(files: Sequence[str], namespace: str | None, stdin: Any = None) -> list[Body]:
    """The objects in `files` ("-": standard input), lists taken apart, with a namespace each. Raises Unusable."""
    found: list[Body] = []
    findings = []
    for file in files:
        try:
            text = (stdin or sys.stdin).read() if file == "-" else Path(file).read_text()
            for document in yaml.safe_load_all(text):
                found += _objects(file, document)
        except OSError as error:
            findings.append(f"{file}: {error.strerror or error}")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            findings.append(f"{file}: not YAML: {' '.join(str(error).split())}")
        except Unusable as error:
            findings += error.findings
    if findings:
        raise Unusable(findings)
    for each in found:
        each["metadata"].setdefault("namespace", namespace or DEFAULT_NAMESPACE)
    return found


def _objects(file: str, document: Any) -> Iterator[Body]:
    """The objects in one document; raises Unusable if it is none."""
    if document is None:
        return
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str):
        raise Unusable([f"{file}: a document is no Kubernetes object (it has no kind)"])
    if isinstance(document.get("items"), list) and kind.endswith("List"):
        for item in document["items"]:
            yield from _objects(file, item)
        return
    metadata = document.get("metadata")
    if kind in MODELS or kind == "Namespace":
        if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
            raise Unusable([f"{file}: {kind}: metadata.name: Field required"])
        yield {**document, "metadata": {k: v for k, v in metadata.items() if v is not None}}


def cases(objects: Sequence[Body], changes: Changes) -> list[Case]:
    """The servers in `objects` with their pools. Raises Unusable with everything that is wrong, as the operator would
    say it: `<kind> <name>: <field>: <message>`."""
    if findings := list(_invalid(objects)):
        raise Unusable(findings)
    servers = {_title(body): body for body in objects if body["kind"] == names.SERVER_KIND}
    pools = [body for body in objects if body["kind"] == names.POOL_KIND]
    if not pools:
        raise Unusable(["there is no PgPool in the files"])
    notes: dict[str, list[str]] = {}
    using: dict[str, list[Body]] = {}
    for pool in pools:
        title = "/".join(server_name(pool))
        if (inline := pool["spec"].get("server")) is not None:
            namespace, name = server_name(pool)
            metadata = {"namespace": namespace, "name": name}
            servers[title] = {"kind": names.SERVER_KIND, "metadata": metadata, "spec": inline}
            if changes.pools > 1:
                words = "the copies of the pool share it, as with a PgServer and serverRef."
                notes.setdefault(title, []).append(f"The server of PgPool {_title(pool)} is inline; {words}")
        elif title not in servers:
            if changes.max_connections is None:
                words = "is not in the files. Add it, or give --max-connections"
                raise Unusable([f"PgPool {_title(pool)}: spec.serverRef: PgServer {title} {words}"])
            namespace, name = server_name(pool)
            spec = {"host": name, "maxConnections": changes.max_connections, "allowedNamespaces": {"from": "All"}}
            servers[title] = {"metadata": {"namespace": namespace, "name": name}, "spec": spec}
            words = "is not in the files: taken for one of defaults, without adminSecretRef."
            notes.setdefault(title, []).append(f"PgServer {title} {words}")
        labels = {NAMESPACE_LABEL: pool["metadata"]["namespace"], **_labels(objects, pool["metadata"]["namespace"])}
        _identify(pool)
        if standing(pool, servers[title], labels) is Standing.ALLOWED:
            using.setdefault(title, []).append(pool)
        else:
            notes.setdefault(title, []).append(f"PgPool {_title(pool)}: {refusal(pool, servers[title], labels)}")
            using.setdefault(title, [])
    return [_case(title, servers[title], using[title], notes.get(title, ()), changes) for title in sorted(using)]


def _invalid(objects: Iterable[Body]) -> Iterator[str]:
    seen = set()
    for body in objects:
        identity = (body["kind"], _title(body))
        if identity in seen:
            yield f"{body['kind']} {_title(body)}: is there twice"
        seen.add(identity)
        model = MODELS.get(body["kind"])
        if model is None:
            continue
        try:
            model.model_validate({key: value for key, value in body.items() if key != "status"})
        except ValidationError as error:
            yield f"{body['kind']} {_title(body)}: {explain(error)}"


def _case(title: str, server: Body, pools: Sequence[Body], notes: Iterable[str], changes: Changes) -> Case:
    spec = PgServerSpec.model_validate(server["spec"])
    if changes.max_connections is not None:
        spec = spec.model_copy(update={"max_connections": changes.max_connections})
    if spec.max_connections is None:
        words = "is not set, and only in a cluster can it be read from the server. Give --max-connections"
        raise Unusable([f"PgServer {title}: spec.maxConnections: {words}"])
    asked: list[PoolWish] = []
    # Documents of a cluster say how old a pool is; others are as old as they stand in the files.
    for pool in sorted(pools, key=lambda body: str(body["metadata"].get("creationTimestamp") or "~")):
        for body in _copies(pool, changes):
            wish = wishes(body, None)
            assert wish is not None
            asked.append(replace(wish, created=float(len(asked))))
    return Case(title, spec, tuple(asked), (*notes, *_scaled(pools, changes)))


def _scaled(pools: Iterable[Body], changes: Changes) -> Iterator[str]:
    """What to know of pools whose number of pods is not fixed."""
    for pool in pools:
        wish = autoscaling(pool) if changes.replicas is None else None
        if wish is not None:
            words = f"autoscaling between {wish.min_replicas} and {wish.max_replicas} pods, never more than fit"
            yield f"PgPool {_title(pool)}: {words}; shown with {desired(pool)}, another number with --replicas."


def _copies(pool: Body, changes: Changes) -> Iterator[Body]:
    for number in range(1, changes.pools + 1):
        body = copy.deepcopy(pool)
        body["metadata"].pop("creationTimestamp", None)  # sorted by it already
        if number > 1:
            body["metadata"]["name"] += f"-copy-{number}"
        if changes.replicas is not None:
            body["spec"]["replicas"] = changes.replicas
            body["spec"].pop("autoscaling", None)
        _identify(body)
        yield body


def _identify(body: Body) -> None:
    """Give an object that never was in a cluster what every object there has."""
    body["metadata"]["uid"] = _title(body)


def _labels(objects: Iterable[Body], namespace: str) -> dict[str, str]:
    """The labels of a Namespace, as far as the files have it."""
    for body in objects:
        if body["kind"] == "Namespace" and body["metadata"]["name"] == namespace:
            return dict(body["metadata"].get("labels") or {})
    return {}


def _title(body: Body) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"
