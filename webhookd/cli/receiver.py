"""A local receiver, for the demo and for developing: it verifies what comes in, reports it, and behaves as it is told.

It answers 401 to a request whose signature does not match, as a receiver of one's own should, and 500 when it is flaky.
What it would accept it can pass on to another receiver, whose answer it then gives.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from aiohttp import web

from webhookd.message.signing import verify
from webhookd.model import Key

_MAX_BODY = 64 * 1024 * 1024  # twice the largest payload
_SHUTDOWN_SECONDS = 0.2  # for answers under way; one that hangs would never end by itself


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a path answers what is signed well: after `delay` seconds, a share of `failing` with `failure`, or never."""

    failing: float = 0.0
    delay: float = 0.0
    hangs: bool = False
    failure: int = 500


HEALTHY = Behaviour()


class Received(NamedTuple):
    """A request as it came in; the path has the query.

    `problem`: what is wrong with its signature. `status`: the answer to come, if any.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes
    problem: str | None
    status: int | None
    method: str = "POST"


class Answer(NamedTuple):
    """What another receiver said."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})


@asynccontextmanager
async def local_receiver(
    keys: tuple[Key, ...],
    on_request: Callable[[Received], None],
    behaviours: Mapping[str, Behaviour] = MappingProxyType({}),
    *,
    random: Callable[[], float],
    port: int = 0,
    otherwise: Behaviour = HEALTHY,
    forward: Callable[[Received], Awaitable[Answer]] | None = None,
) -> AsyncIterator[str]:
    """Receive on 127.0.0.1 and give the URL, without a slash at its end; 0 is any free port.

    Without keys nothing is verified. A path that `behaviours` does not name behaves as `otherwise`. `random` is uniform
    in [0, 1). `forward` is asked for the answer where it would be 200, and must not raise.
    """

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name.lower(): text for name, text in request.headers.items()}
        problem = verify(keys, headers, body, time.time()) if keys else None
        behaviour = behaviours.get(request.path, otherwise)
        status: int | None = 200
        if problem:
            status = 401
        elif behaviour.hangs:
            status = None
        elif random() < behaviour.failing:
            status = behaviour.failure
        received = Received(request.raw_path, headers, body, problem, status, request.method)
        if status == 200 and forward:
            answer = await forward(received)
            on_request(received._replace(status=answer.status))
            await asyncio.sleep(behaviour.delay)
            return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
        on_request(received)
        if status is None:
            await asyncio.Event().wait()
        await asyncio.sleep(behaviour.delay)
        return web.Response(status=status or 200, text=problem or ("" if status == 200 else "having a bad moment"))

    application = web.Application(client_max_size=_MAX_BODY)
    application.router.add_route("*", "/{path:.*}", receive)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        host, bound, *_ = runner.addresses[0]
        yield f"http://{host}:{bound}"
    finally:
        await runner.cleanup()
