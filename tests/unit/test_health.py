"""Health over HTTP."""

import aiohttp

from poolfleet.controller import health


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


async def test_what_is_wrong_is_said() -> None:
    wrong = {"queue": ""}
    refreshed: list[bool] = []
    application = health.routes(
        alive={"queue": lambda: wrong["queue"]},
        ready={"API server": lambda: "has not answered yet"},
        refresh=lambda: refreshed.append(True),
    )
    async with health.serve(application, 0, "127.0.0.1") as port:
        assert await get(port, "/healthz") == (200, "ok\n")
        assert await get(port, "/readyz") == (503, "API server: has not answered yet\n")
        wrong["queue"] = "a key has waited for 121 s"
        assert await get(port, "/healthz") == (503, "queue: a key has waited for 121 s\n")
        assert not refreshed
        status, text = await get(port, "/metrics")
        assert status == 200 and "poolfleet_queue_depth" in text
        assert refreshed
