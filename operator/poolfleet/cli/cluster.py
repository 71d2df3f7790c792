"""Reading the API objects around one PgPool, with the rights that a kubeconfig gives. Nothing is written."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration

from poolfleet import __version__
from poolfleet.api import names
from poolfleet.api.conditions import BUDGET_SATISFIED, READY, STALLED
from poolfleet.kube.client import Body, ConfigException, Kube
from poolfleet.kube.errors import ApiError, Forbidden, NotFound
from poolfleet.kube.kinds import POD, POOL, SERVER, Kind
from poolfleet.plan.explain import explain, from_pool
from poolfleet.plan.explanation import Explanation, FleetLine
from poolfleet.plan.facts import Seen, facts
from poolfleet.plan.tenancy import server_name

IN_CLUSTER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
READS_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Target:
    """Which cluster, as kubectl's flags of the same names say it; None: as the kubeconfig says."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None


@asynccontextmanager
async def connect(target: Target) -> AsyncIterator[tuple[Kube, str]]:
    """The API server, and the namespace to look into. Raises ConfigException.

    The kubeconfig is --kubeconfig, else the files of KUBECONFIG, else ~/.kube/config; where there is none, the
    ServiceAccount of the pod that this runs in.
    """
    paths = _kubeconfig(target)
    if paths is None:
        async with Kube.connect() as kube:
            yield kube, target.namespace or _own_namespace()
        return
    configuration = Configuration(client_session_kwargs={"trust_env": True})  # proxies, as kubectl does
    loader = await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
        paths, context=target.context, client_configuration=configuration, persist_config=False
    )
    # Python 3.13 refuses certificate authorities without an authority key identifier; managed clusters have such.
    configuration.disable_strict_ssl_verification = True
    async with ApiClient(configuration) as api:
        api.user_agent = f"kubectl-pgpool/{__version__}"
        context: dict[str, Any] = loader.current_context.get("context") or {}
        yield Kube(api), target.namespace or str(context.get("namespace") or "default")


def _kubeconfig(target: Target) -> str | None:
    """The kubeconfig files to read; None: there are none, and this runs in a pod. Raises ConfigException."""
    paths = target.kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if any(Path(path).expanduser().is_file() for path in paths.split(os.pathsep) if path):
        return paths
    if target.kubeconfig is None and target.context is None and IN_CLUSTER.is_dir():
        return None
    raise ConfigException(f"there is no kubeconfig at {paths}; set KUBECONFIG or --kubeconfig")


def _own_namespace() -> str:
    return (IN_CLUSTER / "namespace").read_text().strip()


async def explain_pool(kube: Kube, namespace: str, name: str) -> Explanation:
    """Explain the PgPool `namespace`/`name`, as far as may be read. Raises ApiError if not even the PgPool may."""
    pool = await kube.get(POOL, namespace, name)
    where, server_of = server_name(pool)
    try:
        server = await kube.get(SERVER, where, server_of)
    except (Forbidden, NotFound) as error:
        pods, _ = await _pods(kube, [namespace])
        remedy = "Ask its administrator for get on pgservers there to see the whole. " if error.status == 403 else ""
        why = f'PgServer "{server_of}" of namespace "{where}" cannot be read: {error}. {remedy}'
        return from_pool(pool, [pod for pod in pods if _pool_of(pod) == name], [why.strip(), *_complaints(pool)])
    seen = await _around(kube, server, pool)
    return explain(facts(seen, time.time()), [f"{namespace}/{name}"], _complaints(pool), [FleetLine.of(pool)])


async def _around(kube: Kube, server: Body, pool: Body) -> Seen:
    """Everything around `server` that can be read; `pool` is one of its pools."""
    status = server.get("status") or {}
    listed = [(line["namespace"], line["name"]) for line in status.get("pools") or ()]
    own = (pool["metadata"]["namespace"], pool["metadata"]["name"])
    entries = (status.get("ledger") or {}).get("entries") or ()
    namespaces = {own[0]} | {ns for ns, _ in listed} | {str(e.get("pool", "")).partition("/")[0] for e in entries}
    limit = asyncio.Semaphore(READS_AT_ONCE)

    async def read(namespace: str, name: str) -> Body | None:
        async with limit:
            return await _or_none(kube, POOL, namespace, name)

    others, (pods, blind), servers = await asyncio.gather(
        asyncio.gather(*(read(*each) for each in listed if each != own)),
        _pods(kube, sorted(namespaces - {""})),
        _servers(kube),
    )
    return Seen(server, [pool, *(other for other in others if other is not None)], pods, blind, servers)


async def _or_none(kube: Kube, kind: Kind, namespace: str, name: str) -> Body | None:
    """The object; None if there is none, or it may not be read."""
    try:
        return await kube.get(kind, namespace, name)
    except (Forbidden, NotFound):
        return None


async def _pods(kube: Kube, namespaces: Iterable[str]) -> tuple[list[Body], list[str]]:
    """The pods of pools in `namespaces`, and the namespaces whose pods may not be read."""
    found: list[Body] = []
    blind = []
    for namespace in namespaces:
        try:
            found += await kube.list(POD, namespace, names.LABEL_POOL)
        except Forbidden:
            blind.append(namespace)
    return found, blind


async def _servers(kube: Kube) -> list[Body] | None:
    """Every PgServer, to find those that are the same server; None if they may not be read."""
    try:
        return await kube.list(SERVER)
    except Forbidden:
        return None


def _pool_of(pod: Body) -> str:
    return str((pod["metadata"].get("labels") or {}).get(names.LABEL_POOL, ""))


def _complaints(pool: Body) -> list[str]:
    """What the PgPool's own conditions have to complain of, each message once."""
    found: dict[str, str] = {}
    for condition in (pool.get("status") or {}).get("conditions") or ():
        bad = "True" if condition.get("type") == STALLED else "False"
        if condition.get("type") in (STALLED, READY, BUDGET_SATISFIED) and condition.get("status") == bad:
            found.setdefault(condition.get("message") or "", condition.get("reason", ""))
    return [f"PgPool: {reason}: {message}" if message else f"PgPool: {reason}" for message, reason in found.items()]


__all__ = ["ApiError", "ConfigException", "Target", "connect", "explain_pool"]
