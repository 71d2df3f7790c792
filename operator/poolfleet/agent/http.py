"""A small HTTP/1.1 server: requests from the kubelet, the operator and Prometheus, one per connection.

Own code for the agent's memory. Bounded: size of a request's head and body, time to send them, number of connections.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from poolfleet.agent.logs import log

MAX_HEAD_BYTES: Final = 8192
MAX_BODY_BYTES: Final = 64 * 1024
READ_SECONDS: Final = 5.0  # head and body together
WRITE_SECONDS: Final = 10.0
MAX_CONNECTIONS: Final = 100

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request; header names in lower case, query values as they are (no escapes are decoded)."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer."""

    status: int
    body: str = ""
    content_type: str = "text/plain; charset=utf-8"

    def encode(self) -> bytes:
        body = self.body.encode()
        head = (
            f"HTTP/1.1 {self.status} {_REASONS.get(self.status, '')}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body


Handler = Callable[[Request], Awaitable[Response]]


class Server:
    """Serves `handler` on all addresses of `port`, IPv6 and IPv4."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._open = 0

    async def start(self, port: int) -> asyncio.Server:
        """Listen. Raises OSError."""
        return await asyncio.start_server(self._serve, sock=_listen(port), limit=MAX_HEAD_BYTES, backlog=128)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                response = await self._answer(reader)
                if response is not None:
                    writer.write(response.encode())
                    async with asyncio.timeout(WRITE_SECONDS):
                        await writer.drain()
        except (OSError, TimeoutError):
            pass  # the other side went away: nobody is left to tell
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> Response | None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                request = parse(await reader.readuntil(b"\r\n\r\n"))
                if request.method == "POST":
                    length = body_length(request)
                    if isinstance(length, Response):
                        return length
                    request = replace(request, body=await reader.readexactly(length))
        except (asyncio.LimitOverrunError, ValueError):
            return Response(400, "bad request\n")
        except EOFError:
            return None
        try:
            return await self._handler(request)
        except Exception:  # noqa: BLE001 - one request's failure must not end the server; it is logged whole
            log.exception("a request failed", extra={"path": request.path})
            return Response(500, "the agent failed; its log says why\n")


def parse(head: bytes) -> Request:
    """Read a request's head. Raises ValueError."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
        raise ValueError("not a request line")
    path, _, query = words[1].partition("?")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        if line:
            name, colon, value = line.partition(":")
            if not colon:
                raise ValueError("not a header")
            headers[name.lower()] = value.strip()
    pairs = (part.partition("=") for part in query.split("&") if part)
    return Request(words[0], path, {name: value for name, _, value in pairs}, headers)


def body_length(request: Request) -> int | Response:
    """How many bytes of a body follow, or the answer to a request whose body will not be read. Raises ValueError."""
    if "transfer-encoding" in request.headers or "content-length" not in request.headers:
        return Response(411, "a body needs a Content-Length\n")
    text = request.headers["content-length"]
    if not (text.isascii() and text.isdigit()):
        raise ValueError("not a length")
    if len(text) > 9 or int(text) > MAX_BODY_BYTES:
        return Response(413, f"at most {MAX_BODY_BYTES} bytes\n")
    return int(text)


def _listen(port: int) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::", port))
        except OSError:
            sock.close()
            raise
        return sock
    except OSError:  # a node without IPv6
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))  # noqa: S104 - the kubelet and the operator come from outside the pod
        except OSError:
            sock.close()
            raise
        return sock
