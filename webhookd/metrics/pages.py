"""`/metrics`, `/healthz` and `/readyz`, on a listener of their own."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import web

from webhookd.metrics.exposition import CONTENT_TYPE, pieces
from webhookd.metrics.families import Reading, families, of_endpoints
from webhookd.metrics.looks import Look
from webhookd.store.overview import Health, Overview
from webhookd.tally import Tally

UNREAD_SECONDS: Final = 30.0  # that an answer may wait for who does not read it
FRESH_SECONDS: Final = 0.5  # for which who asks gets what another got: ten thousand endpoints take a tenth of a second
PLAIN: Final = {"content-type": "text/plain; charset=utf-8"}
PATHS: Final = "webhookd has /metrics, /healthz and /readyz here.\n"

log = structlog.get_logger("webhookd.metrics")


class Pages:
    """Answers who watches. `read()` is what the daemon is at, `unready()` why it cannot deliver, or nothing."""

    def __init__(
        self,
        tally: Tally,
        health: Look[Health],
        rest: Look[Overview],
        read: Callable[[], Reading],
        unready: Callable[[], str],
    ) -> None:
        self._tally = tally
        self._health = health
        self._rest = rest
        self._read = read
        self._unready = unready
        self.with_endpoints = True
        self._writing: asyncio.Task[None] | None = None
        self._written: list[bytes] = []
        self._written_at = float("-inf")

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer, whatever the request is."""
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="Ask with GET.\n", headers={**PLAIN, "allow": "GET, HEAD"})
        try:
            return await self._answer(request)
        except ConnectionError:
            raise  # who asked has gone
        except Exception:
            log.exception("metrics_broke", path=request.path.encode("ascii", "backslashreplace").decode())
            return web.Response(status=500, text="A bug of webhookd; its log has more.\n", headers=PLAIN)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.rel_url.raw_path:
            case "/metrics":
                return await _sent(request, await self._metrics())
            case "/healthz":  # whoever answers has a loop that turns
                return web.Response(text="The event loop turns.\n", headers=PLAIN)
            case "/readyz":
                why = self._unready()
                return web.Response(status=503 if why else 200, text=f"{why or 'It delivers.'}\n", headers=PLAIN)
            case "/":
                return web.Response(text=PATHS, headers=PLAIN)
        return web.Response(status=404, text=PATHS, headers=PLAIN)

    async def _metrics(self) -> list[bytes]:
        if self._writing is None and time.monotonic() > self._written_at + FRESH_SECONDS:
            self._writing = asyncio.create_task(self._write())
        if self._writing is not None:
            await asyncio.shield(self._writing)  # who hangs up has had it made for others
        return self._written

    async def _write(self) -> None:
        try:
            self._written = await self._pieces()
            self._written_at = time.monotonic()
        finally:
            self._writing = None

    async def _pieces(self) -> list[bytes]:
        rest, tally = self._rest, self._tally
        seen, last = rest.found, rest.last
        ages = {"view": self._health.age, "rest": rest.age}
        written = await pieces(families(tally, self._read(), self._health.found, seen, ages))
        if not self.with_endpoints or last is None:
            return written
        return written + await pieces(of_endpoints(tally, last, is_old=seen is None))


async def _sent(request: web.BaseRequest, content: list[bytes]) -> web.StreamResponse:
    """The answer, a piece at a time: to hand over all of it at once would hold up the loop."""
    response = web.StreamResponse(headers={"content-type": CONTENT_TYPE})
    response.content_length = sum(map(len, content))
    await response.prepare(request)
    try:
        async with asyncio.timeout(UNREAD_SECONDS):
            for piece in content if request.method == "GET" else ():
                await response.write(piece)
                await asyncio.sleep(0)
            await response.write_eof()
    except TimeoutError:
        raise ConnectionResetError("the answer was not read") from None
    return response
