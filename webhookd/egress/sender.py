"""The only HTTP client: `Request` in, `Response` or `NoResponse` out. SECURITY.md has the attacks.

    send ── target (URL vetted, cached) ── connect (pool, or resolve, vet, dial, TLS) ── ask ── answer
                                              ▲                                          │
                                              └── once, on a fresh connection, when a reused one died without a byte

It drives aiohttp's connector, writer and parser itself. What `ClientSession` would add is what a daemon must not have:
cookies, redirects, proxies from the environment, a task and a second timer per request, and half of its CPU time.
"""

import asyncio
import functools
import ssl
from contextlib import suppress
from typing import NamedTuple, Self

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage, StreamWriter
from aiohttp.http_writer import _serialize_headers
from multidict import CIMultiDict
from yarl import URL

from webhookd.egress.connector import SCARCE, Connector, abandon, protocol_of
from webhookd.egress.guard import url_mistake
from webhookd.egress.protocol import READ_BUFFER, Protocol, is_final
from webhookd.egress.resolver import Resolver, Verdict
from webhookd.egress.threads import ThreadPool
from webhookd.egress.tls import tls_context
from webhookd.exchange import NoResponse, Request, Response
from webhookd.model import Egress
from webhookd.tally import Tally

_BODY_SECONDS = 1.0
_BODY_KEPT = 1024
_INFORMATIONAL = 8
_RETRY_AFTER = 64  # characters kept; a longer one is a number of seconds beyond any bound, or makes no sense
_PIECE = 32 * 1024  # a body up to this goes out in one write; it cannot fill a transport's buffer

_CODE_OF: tuple[tuple[type[Exception], str], ...] = (  # the first that fits
    (aiohttp.ClientConnectorDNSError, "dns_error"),
    (aiohttp.ClientConnectorCertificateError, "tls_certificate"),
    (ssl.SSLError, "tls_error"),
    (aiohttp.InvalidURL, "invalid_url"),
    (HttpProcessingError, "malformed_response"),
    (ConnectionResetError, "connection_reset"),
    (TimeoutError, "connect_timeout"),  # the kernel's own, after its last SYN
    (aiohttp.ClientConnectorError, "connection_refused"),  # no route is no connection either
    (aiohttp.ClientConnectionError, "connection_reset"),
    (OSError, "connection_reset"),
)
# All that a NoResponse can say. `payload_too_large` and `auth_error` are for others; a status becomes `http_NNN`.
CODES = frozenset(code for _, code in _CODE_OF) | frozenset(
    ("timeout", "dns_timeout", "egress_denied", "proxy_error", "auth_error", "payload_too_large", "internal")
)


_Answer = tuple[RawResponseMessage, aiohttp.StreamReader]  # a final head, and its body


class _Target(NamedTuple):
    request: aiohttp.ClientRequest  # what aiohttp dials by; never sent itself
    key: ConnectionKey
    line: str
    headers: CIMultiDict[str]


class Sender:
    """Sends requests to addresses that the guard allows, over pooled connections. Use it with `async with`."""

    def __init__(self, egress: Egress, user_agent: str, tally: Tally | None = None) -> None:
        self._tally = tally or Tally()
        self._egress = egress
        self._user_agent = user_agent
        self._target = functools.lru_cache(maxsize=4096)(self._new_target)
        self._retired: list[Connector] = []

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver(self._egress.allow_networks)
        self._threads = ThreadPool()
        self._connector = self._new_connector()
        return self

    async def __aexit__(self, *error: object) -> None:
        for connector in (*self._retired, self._connector):
            await connector.close()
        await self._resolver.close()
        self._threads.close()

    def configure(self, egress: Egress) -> None:
        """Allow this from now on. Idle connections are closed; one in use ends its request and is closed then."""
        if egress == self._egress:
            return
        self._egress = egress
        self._target.cache_clear()
        self._resolver.allow_networks = egress.allow_networks
        self._retired = [connector for connector in self._retired if not connector.is_idle]
        self._retired.append(self._connector)
        self._connector.retire()
        self._connector = self._new_connector()

    def _new_connector(self) -> Connector:
        return Connector(self._resolver, self._threads, self._egress.allow_networks, self._egress.proxy)

    async def send(self, request: Request) -> Response | NoResponse:
        """What the receiver said, or why nothing was heard within `request.timeout` seconds; neither is ever raised.

        The timeout ends with the status line; the body of the answer gets one second more. A URL that the guard
        refuses, http where it is not allowed included, is `invalid_url`; an address is `egress_denied`.
        """
        target = self._target(request.url, request.tls)
        if target is None:
            return NoResponse("invalid_url")
        connector, deadline = self._connector, self._loop.time() + request.timeout
        connection = connector.take(target.key)
        try:
            if connection is None:
                connection = await self._open(connector, target, request, deadline)
            else:
                self._tally.connections_kept += 1
            try:
                message, body = await self._ask(connection, target, request, deadline)
            except (aiohttp.ServerDisconnectedError, OSError) as error:
                protocol = protocol_of(connection)
                if protocol.heard or not protocol.used or isinstance(error, Verdict):
                    raise
                abandon(connection)
                connection = None
                connection = await self._open(connector, target, request, deadline)
                message, body = await self._ask(connection, target, request, deadline)
            good = 200 <= message.code < 300
            start = b"" if good and body.is_eof() and not request.whole else await _start(body)
            if body.is_eof() and body.exception() is None:
                connector.keep(target.key, connection)
                connection = None
            return _response(message, start, request.whole)
        except Exception as error:  # a hostile answer can raise anything: UnicodeError, ValueError, AssertionError, ...
            return _verdict(error)
        finally:
            if connection is not None:
                abandon(connection)

    async def _open(self, connector: Connector, target: _Target, request: Request, deadline: float) -> Connection:
        connection = await connector.open(target.request, deadline, request.timeout)
        self._tally.connections_opened += 1
        return connection

    def _new_target(self, url: str, tls: ssl.SSLContext | None) -> _Target | None:
        if url_mistake(url, self._egress.allow_http):
            return None
        try:
            parsed = URL(url, encoded=True)  # requoting would turn sig=a%2Fb into sig=a/b
            request = aiohttp.ClientRequest("POST", parsed, loop=self._loop, ssl=tls or tls_context())
        except (ValueError, aiohttp.InvalidURL):
            return None
        headers = CIMultiDict({"host": request.headers["host"], "user-agent": self._user_agent, "accept": "*/*"})
        return _Target(request, request.connection_key, f"POST {parsed.raw_path_qs} HTTP/1.1", headers)

    async def _ask(self, connection: Connection, target: _Target, request: Request, deadline: float) -> _Answer:
        """Send the request; of the body of the answer only what came along with the head is there yet."""
        protocol = protocol_of(connection)
        protocol.answer_by(deadline)
        # A new parser for each answer, as aiohttp does: what came behind the last one dies with the old parser.
        protocol.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=READ_BUFFER)
        content = request.content
        headers = CIMultiDict(target.headers)
        headers.update(request.headers)
        headers["accept-encoding"] = "identity"
        headers["content-length"] = str(len(content))
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise await _ending(protocol, deadline)
        if len(content) > _PIECE:
            return await self._ask_at_length(protocol, target.line, headers, content)
        # What StreamWriter does, but for two coroutines and a buffer; it refuses control characters.
        transport.write(_serialize_headers(target.line, headers) + content)
        first = await protocol.read()
        return first if is_final(first[0]) else await _head(protocol, _INFORMATIONAL)

    async def _ask_at_length(self, protocol: Protocol, line: str, headers: CIMultiDict[str], content: bytes) -> _Answer:
        writer = StreamWriter(protocol, self._loop)
        await writer.write_headers(line, headers)
        # Beside the reading, because a receiver may answer without reading all. It needs no TaskGroup: it raises
        # nothing, does not outlive the connection, and the reader below is told when that is lost.
        upload = self._loop.create_task(_upload(writer, content))
        try:
            return await _head(protocol)
        finally:
            if not upload.done():
                upload.cancel()
                protocol.force_close()


def _response(message: RawResponseMessage, start: bytes, whole: bool) -> Response:
    """What the status line said, whatever became of the body."""
    status = message.code
    retry_after = message.headers.get("Retry-After") if status in (429, 503) else None
    kept = READ_BUFFER if whole else 0 if 200 <= status < 300 else _BODY_KEPT
    return Response(status, start[:kept], _plain(retry_after), message.headers.get("webhook-delivery") == "disable")


def _plain(value: str | None) -> str | None:
    return value[:_RETRY_AFTER] if value and value.isascii() and value.isprintable() else None


async def _ending(protocol: Protocol, deadline: float) -> Exception:
    """Why nothing can be written any more.

    It may have been said by now: who speaks first, as SSH does, or misses a certificate of ours in TLS 1.3, where that
    comes behind a handshake which is whole for us.
    """
    with suppress(Exception):
        async with asyncio.timeout_at(deadline):
            if (closed := protocol.closed) is not None:
                await closed
    said = protocol.exception()
    return said if isinstance(said, Exception) else ConnectionResetError()


async def _upload(writer: StreamWriter, content: bytes) -> None:
    view = memoryview(content)
    with suppress(aiohttp.ClientError, OSError):
        for at in range(0, len(view), _PIECE):
            await writer.write(view[at : at + _PIECE])  # waits while the transport's buffer is full
        await writer.write_eof()


async def _head(protocol: Protocol, most: int = _INFORMATIONAL + 1) -> _Answer:
    for _ in range(most):
        answer: _Answer = await protocol.read()
        if is_final(answer[0]):
            return answer
    raise HttpProcessingError(message="more informational answers than anyone needs")


async def _start(body: aiohttp.StreamReader) -> bytes:
    """The first bytes of a body: what comes within a second, up to the limit and one read."""
    start = b""
    with suppress(Exception):  # cut, undecodable, too slow: the status line has spoken
        async with asyncio.timeout(_BODY_SECONDS):
            while len(start) < READ_BUFFER and not body.at_eof():
                start += await body.readany()
    return start


def _verdict(error: Exception) -> NoResponse:
    """The code of an error that is not the deadline's."""
    cause: BaseException = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(error.__cause__, ssl.SSLError):  # what ended a connection that was there
        cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in SCARCE:
        return NoResponse("internal", ours=True)
    if isinstance(cause, Verdict):
        return NoResponse(str(cause), cause.ours)
    codes = (code for kind, code in _CODE_OF if isinstance(error, kind) or isinstance(cause, kind))
    return NoResponse(next(codes, "internal"))
