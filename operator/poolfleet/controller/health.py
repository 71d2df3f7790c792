"""/healthz, /readyz and /metrics over HTTP, answered by the leader and by the standby."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from poolfleet.controller import metrics

OLDEST: Final = 120.0  # seconds that a key may be due and not be worked on

Check = Callable[[], str]
"""Returns what is wrong, "" if nothing is."""


def routes(alive: Mapping[str, Check], ready: Mapping[str, Check], refresh: Callable[[], None]) -> web.Application:
    """The application. `alive` fails: restart this process; `ready` fails: it cannot work. `refresh` sets gauges."""

    async def healthz(_: web.Request) -> web.Response:
        return _answer(alive)

    async def readyz(_: web.Request) -> web.Response:
        return _answer(ready)

    async def show_metrics(_: web.Request) -> web.Response:
        refresh()
        return web.Response(body=metrics.render(), content_type="text/plain", charset="utf-8")

    application = web.Application()
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/metrics", show_metrics)
    return application


def _answer(checks: Mapping[str, Check]) -> web.Response:
    wrong = [f"{name}: {said}" for name, check in checks.items() if (said := check())]
    return web.Response(text="\n".join(wrong) + "\n", status=503) if wrong else web.Response(text="ok\n")


@asynccontextmanager
async def serve(application: web.Application, port: int, host: str | None = None) -> AsyncIterator[int]:
    """Serve on `host` (None: all addresses) while the block runs; gives the port.

    Port 0 is a free one; only with a `host`, for without one each address family gets its own.
    """
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
