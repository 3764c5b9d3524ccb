"""Where the API listens, and for how long it is patient with whom."""

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from webhookd.errors import ConfigError
from webhookd.web.problem import Problem

IDLE_SECONDS: Final = 75.0  # that a connection may be without a request, the first included
UNREAD_SECONDS: Final = 30.0  # that an answer may wait for who does not read it
SMALL: Final = 16 << 10  # bytes of an answer
CONNECTIONS_MOST: Final = 4_000  # of which a poller that waits has one for long
STOP_SECONDS: Final = 5.0  # for requests that are under way
Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
FIRST_FD: Final = 3  # of the sockets that systemd hands over (sd_listen_fds(3))

_SILENT: Final = logging.getLogger("webhookd.http")  # aiohttp's own lines say nothing that an answer does not
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


class _Handler(RequestHandler):
    """A connection; what is no HTTP is answered as all mistakes are."""

    __slots__ = ()

    async def finish_response(self, *arguments: Any) -> tuple[web.StreamResponse, bool]:
        """Send it, within a time: who does not read has no answer, and no connection."""
        if self.transport is not None and self.transport.get_write_buffer_size() == 0 and _is_small(arguments[1]):
            return await super().finish_response(*arguments)  # which waits for nobody
        try:
            async with asyncio.timeout(UNREAD_SECONDS):
                return await super().finish_response(*arguments)
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            raise ConnectionResetError("the answer was not read") from None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A problem document, and the end of the connection."""
        if request.writer.output_size > 0:
            raise ConnectionError("half an answer is sent already")
        problem = Problem(status, "bad_request", f"{HTTPStatus(status).phrase}: this is no request that can be read.")
        response = web.Response(status=status, body=problem.body, headers=problem.headers)
        response.force_close()
        return response


def _is_small(response: Any) -> bool:
    """True for what the transport takes at once, when it has nothing else: less than its high-water mark."""
    return (
        isinstance(response, web.Response)
        and isinstance(response.body, bytes | None)
        and len(response.body or b"") < SMALL
    )


class _Server(web.Server):
    """All connections, up to a bound."""

    def __call__(self) -> RequestHandler:
        """The handler of another connection."""
        return _Handler(self, loop=asyncio.get_running_loop(), **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """One more; what is too many is closed at once."""
        super().connection_made(handler, transport)
        if len(self._connections) > CONNECTIONS_MOST:
            transport.abort()


@asynccontextmanager
async def serve(answer: Answer, listen: str, environ: Mapping[str, str], section: str) -> AsyncIterator[str]:
    """Answer at that address while the block runs: HOST:PORT, unix:PATH, or systemd for what it hands over.

    Gives where that is, as a URL where it is one. ConfigError, of this section, when it cannot be had.
    """
    server = _Server(
        answer,
        handler_cancellation=True,
        keepalive_timeout=IDLE_SECONDS,
        access_log=None,
        logger=_SILENT,
        lingering_time=1.0,
    )
    try:
        listening, where = await _listen(server, listen, environ)
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError([f"{section} listen: {listen} cannot be listened on: {why}"]) from None
    try:
        yield where
    finally:
        listening.close()
        server.pre_shutdown()
        await server.shutdown(STOP_SECONDS)
        if listen.startswith("unix:"):
            with suppress(OSError):
                os.unlink(listen.removeprefix("unix:"))


async def _listen(
    protocols: Callable[[], asyncio.BaseProtocol], listen: str, environ: Mapping[str, str]
) -> tuple[asyncio.Server, str]:
    loop = asyncio.get_running_loop()
    if listen == "systemd":
        return await loop.create_server(protocols, sock=_handed_over(environ)), "the socket of systemd"
    if listen.startswith("unix:"):
        path = listen.removeprefix("unix:")
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(path).st_mode):
                if await _is_answered(path):
                    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
                os.unlink(path)  # a daemon left it behind that was killed
        server = await loop.create_unix_server(protocols, path)
        os.chmod(path, 0o660)
        return server, listen
    host, _, port = listen.rpartition(":")
    server = await loop.create_server(protocols, host.strip("[]") or None, int(port))
    return server, f"http://{host}:{server.sockets[0].getsockname()[1]}"


async def _is_answered(path: str) -> bool:
    """True when somebody listens there."""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


def _handed_over(environ: Mapping[str, str]) -> socket.socket:
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS") != "1":
        raise ConfigError(['[api] listen = "systemd" wants a webhookd.socket unit that hands over one socket'])
    return socket.socket(fileno=FIRST_FD)
