"""poolfleet.agent.http and the pure parts of poolfleet.agent.service"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from poolfleet.agent import http, service
from poolfleet.agent.http import Request, Response, Server, parse
from tests.integration.pgbouncer_fixtures import free_port


async def handler(request: Request) -> Response:
    if request.path == "/boom":
        raise RuntimeError("boom")
    if request.method == "POST":
        return Response(200, str(len(request.body)))
    return Response(200, f"{request.path} {dict(request.query)} {request.headers.get('x-a', '')}ü")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    number = free_port()
    server = await Server(handler).start(number)
    yield number
    server.close()


async def ask(port: int, request: bytes, host: str = "127.0.0.1") -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:  # closed before it read what was sent
        return b""
    finally:
        writer.close()


async def test_an_answer(port: int) -> None:
    for host in ("127.0.0.1", "::1"):
        answer = await ask(port, b"GET /x?a=1&b HTTP/1.1\r\nHost: y\r\nX-A:  z \r\n\r\n", host)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert body.decode() == "/x {'a': '1', 'b': ''} zü"


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"POST /x HTTP/1.1\r\n\r\n", b"411"),
        (b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\nx", b"411"),
        (b"POST /x HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", b"413"),
        (b"POST /x HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"413"),
        (b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /x HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", b"400"),
        (b"GET /boom HTTP/1.1\r\n\r\n", b"500"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / SMTP\r\n\r\n", b"400"),
        (b"GET x HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000, b"400"),
    ],
)
async def test_other_requests(port: int, request_head: bytes, status: bytes) -> None:
    assert (await ask(port, request_head))[9:12] == status


async def test_a_slow_request_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "READ_SECONDS", 0.1)
    assert await ask(port, b"GET / HTT") == b""
    assert await ask(port, b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nx") == b""


@pytest.mark.parametrize("size", [0, 1, http.MAX_BODY_BYTES])
async def test_a_body_is_read_whole(port: int, size: int) -> None:
    answer = await ask(port, b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    assert answer.endswith(b"\r\n\r\n%d" % size)


async def test_connections_are_limited(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 1)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(0.05)
    assert await ask(port, b"GET / HTTP/1.1\r\n\r\n") == b""
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.05)
    assert (await ask(port, b"GET / HTTP/1.1\r\n\r\n"))[9:12] == b"200"


def test_parse() -> None:
    request = parse(b"GET /state?after=3&wait=25s HTTP/1.0\r\nX-Poolfleet-Token: a:b\r\n\r\n")
    assert (request.method, request.path) == ("GET", "/state")
    assert request.query == {"after": "3", "wait": "25s"}
    assert request.headers == {"x-poolfleet-token": "a:b"}


def test_seconds() -> None:
    assert service.seconds("25s") == service.seconds("25") == 25.0
    for text in ("", "x", "-1", "nan", "inf", "1m"):
        with pytest.raises(ValueError, match=r"."):
            service.seconds(text)
