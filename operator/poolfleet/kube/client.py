"""The one door to the API server: plain dicts in and out, errors from kube/errors.py.

Built on `ApiClient.param_serialize/call_api` of kubernetes.aio, not on its typed classes: a third of the CPU per call,
and no model that could drop a field (facts/kopf.md C).
"""

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException

from poolfleet import __version__
from poolfleet.kube.errors import ApiError, NotLeader, Unavailable, from_response
from poolfleet.kube.kinds import Kind, kind_of

Body = dict[str, Any]
Bodies = list[Body]

TIMEOUT: Final = 10.0  # seconds, of one request
PAGE: Final = 500  # objects of one page of a list
JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
JSON_PATCH: Final = "application/json-patch+json"
METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """One finished request, for the metrics and for the test that compares verbs with RBAC."""

    verb: str  # as RBAC says it: get, list, create, update, patch, delete
    kind: Kind
    subresource: str  # "" for the object itself
    code: int  # HTTP status; 0: no answer
    seconds: float


@dataclass(frozen=True)
class Kube:
    """See the module. Immutable; `guarded()` and `watched()` give further doors over the same connections."""

    api: ApiClient
    leadership: Callable[[], float] | None = None
    """Seconds for which a write may still be sent; none when <= 0. None: anybody may write."""
    on_call: Callable[[Call], None] | None = None
    on_write: Callable[[Kind, Body], None] | None = None
    """Told every object that a write brought back, so that nobody decides on what he has just changed."""

    @classmethod
    @asynccontextmanager
    async def connect(cls, kubeconfig: str | None = None) -> AsyncIterator["Kube"]:
        """Connect with the kubeconfig file of this path, or (None) with the pod's ServiceAccount, its token re-read
        every minute. Raises kubernetes.aio.config.ConfigException if neither is there."""
        configuration = Configuration(client_session_kwargs={"trust_env": False}, connection_pool_maxsize=32)
        if kubeconfig is None:
            kube_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            await kube_config.load_kube_config(kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
        # Python 3.13 refuses certificate authorities without an authority key identifier; managed clusters have such.
        configuration.disable_strict_ssl_verification = True
        async with ApiClient(configuration) as api:
            api.user_agent = f"poolfleet/{__version__}"
            yield cls(api)

    def guarded(self, leadership: Callable[[], float]) -> "Kube":
        """The same door, through which writes go only while `leadership()` > 0 seconds; else they raise NotLeader."""
        return replace(self, leadership=leadership)

    def watched(
        self, on_call: Callable[[Call], None] | None = None, on_write: Callable[[Kind, Body], None] | None = None
    ) -> "Kube":
        """The same door, with somebody told of every call and of every object written."""
        return replace(self, on_call=on_call or self.on_call, on_write=on_write or self.on_write)

    # Reads

    async def get(self, kind: Kind, namespace: str, name: str, *, timeout: float = TIMEOUT) -> Body:
        """Return the object; raise NotFound if there is none."""
        return await self._call("get", "GET", kind, kind.path(namespace, name), timeout=timeout)

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        label_selector: str | None = None,
        *,
        metadata_only: bool = False,
        limit: int | None = None,
    ) -> Bodies:
        """Return the objects of `kind` in `namespace` (None: in all), read in pages of 500; the first `limit` if given.

        With `metadata_only` each has `metadata` and nothing else: a fraction of the work on both sides.
        """
        items: Bodies = []
        token = ""
        while True:
            query = [("limit", str(limit or PAGE))]
            query += [("labelSelector", label_selector)] if label_selector else []
            query += [("continue", token)] if token else []
            accept = f"{METADATA_LIST},{JSON}" if metadata_only else JSON
            page = await self._call("list", "GET", kind, kind.path(namespace), query=query, accept=accept)
            for item in page.get("items") or ():
                item["apiVersion"], item["kind"] = kind.api_version, kind.kind  # lists of built-in kinds leave them out
                items.append(item)
            token = page.get("metadata", {}).get("continue", "")
            if not token or limit is not None:
                return items

    async def version(self) -> str:
        """Return the version of the API server."""
        status, _, body = await self._send("GET", "/version", [], JSON, JSON, None, TIMEOUT)
        if status >= 400:
            raise from_response(status, body)
        return str(body.get("gitVersion", ""))

    # Writes

    async def apply(self, obj: Body, *, manager: str, subresource: str | None = None, force: bool = True) -> Body:
        """Server-side apply `obj` as field manager `manager`, unknown fields refused; return the object as it is now.

        With `metadata.resourceVersion` in `obj` it is a compare-and-set: Conflict if the object has moved on. An object
        that has vanished is created anew all the same, unless `metadata.uid` is there too (Conflict). The status of a
        vanished PgPool or PgServer: NotFound.
        Without `force`, Conflict as well if another manager owns one of the fields.
        """
        kind, namespace, name = _identity(obj)
        return await self._call(
            "patch",
            "PATCH",
            kind,
            kind.path(namespace, name, subresource),
            query=[("fieldManager", manager), ("force", "true" if force else "false"), ("fieldValidation", "Strict")],
            content=APPLY,
            body=obj,
            subresource=subresource or "",
        )

    async def json_patch(
        self, kind: Kind, namespace: str, name: str, operations: Sequence[Body], *, manager: str = "poolfleet"
    ) -> Body:
        """Apply the JSON patch (RFC 6902); raise Conflict if a `test` in it fails. Return the object as it is now."""
        query = [("fieldManager", manager), ("fieldValidation", "Strict")]
        path = kind.path(namespace, name)
        return await self._call("patch", "PATCH", kind, path, query=query, content=JSON_PATCH, body=[*operations])

    async def create(self, obj: Body, *, manager: str = "poolfleet", timeout: float = TIMEOUT) -> Body:
        """Create `obj`; raise Conflict if an object of that name exists."""
        kind, namespace, _ = _identity(obj)
        query = [("fieldManager", manager), ("fieldValidation", "Strict")]
        return await self._call("create", "POST", kind, kind.path(namespace), query=query, body=obj, timeout=timeout)

    async def replace(self, obj: Body, *, manager: str = "poolfleet", timeout: float = TIMEOUT) -> Body:
        """Replace the object by `obj`; with `metadata.resourceVersion`, Conflict if it has moved on."""
        kind, namespace, name = _identity(obj)
        query = [("fieldManager", manager), ("fieldValidation", "Strict")]
        return await self._call(
            "update", "PUT", kind, kind.path(namespace, name), query=query, body=obj, timeout=timeout
        )

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> None:
        """Delete the object, its children in the background; Conflict if `uid` is given and is not the object's."""
        options: Body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        await self._call("delete", "DELETE", kind, kind.path(namespace, name), body=options)

    # The wire

    async def _call(
        self,
        verb: str,
        method: str,
        kind: Kind,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        accept: str = JSON,
        content: str = JSON,
        body: Any = None,
        subresource: str = "",
        timeout: float = TIMEOUT,
    ) -> Body:
        if method != "GET" and self.leadership is not None:
            left = self.leadership()
            if left <= 0:
                raise NotLeader(f"not the leader: {verb} {kind.plural} was not sent")
            timeout = min(timeout, left)  # no write of ours may arrive when another process leads
        started = time.monotonic()
        status = 0
        try:
            status, headers, answer = await self._send(method, path, query, accept, content, body, timeout)
        finally:
            if self.on_call is not None:
                self.on_call(Call(verb, kind, subresource, status, time.monotonic() - started))
        if status >= 400:
            raise from_response(status, answer, headers.get("Retry-After"), patch=content == JSON_PATCH)
        if method != "GET" and self.on_write is not None and answer.get("kind") == kind.kind and verb != "delete":
            self.on_write(kind, answer)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        accept: str,
        content: str,
        body: Any,
        timeout: float,
    ) -> tuple[int, Any, Body]:
        request = await self.api.param_serialize(
            method,
            path,
            query_params=[*query],
            header_params={"Accept": accept, "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = await self.api.call_api(*request, _request_timeout=float(timeout))
            text: bytes = await response.read()  # type: ignore[no-untyped-call]
        except TimeoutError as error:
            raise Unavailable(f"no answer from the API server within {timeout:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"the API server cannot be reached: {error}") from error
        _warn(response.headers.getall("Warning", []))
        try:
            answer = json.loads(text) if text else {}
        except ValueError:
            answer = {"message": text[:200].decode(errors="replace")}
        if response.status < 400 and not isinstance(answer, dict):
            raise ApiError("the API server's answer is no JSON object", response.status)
        return response.status, response.headers, answer if isinstance(answer, dict) else {}

    # For kopf

    @property
    def host(self) -> str:
        """URL of the API server."""
        return str(self.api.configuration.host)

    def session(self) -> aiohttp.ClientSession:
        """A further session to the same API server with the same credentials (a fresh token per request), for watches.

        The caller closes it. Proxies of the environment are not used.
        """
        configuration = self.api.configuration

        async def authorize(
            request: aiohttp.ClientRequest,
            handler: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]],
        ) -> aiohttp.ClientResponse:
            setting = (await configuration.auth_settings()).get("BearerToken")  # re-reads the token file when it is due
            if setting is not None:
                request.headers["Authorization"] = setting["value"]
            return await handler(request)

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self.api.rest_client.ssl_context),
            headers={"User-Agent": self.api.user_agent},
            middlewares=(authorize,),
            read_bufsize=2**21,  # one watch event is one line
            trust_env=False,
        )


def _identity(obj: Body) -> tuple[Kind, str, str]:
    metadata = obj["metadata"]
    return kind_of(obj), metadata["namespace"], metadata.get("name", "")


_warned: set[str] = set()


def _warn(headers: Sequence[str]) -> None:
    for header in headers:
        if header not in _warned and len(_warned) < 1000:
            _warned.add(header)
            logger.warning("API server: %s", header)


__all__ = ["Body", "Call", "ConfigException", "Kube"]
