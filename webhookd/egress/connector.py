"""Connections to receivers: dialled to addresses that the guard allows, directly or through the operator's proxy."""

import asyncio
import errno
import functools
import socket
import ssl
from collections import deque
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, StreamWriter
from aiohttp.tracing import Trace
from multidict import CIMultiDict

from webhookd.egress.guard import address_mistake, host_mistake
from webhookd.egress.handshake import OFFLOAD, Offload
from webhookd.egress.protocol import READ_BUFFER, Protocol
from webhookd.egress.resolver import Resolver, Verdict
from webhookd.egress.threads import ThreadPool
from webhookd.model import Network, Proxy

PROXY_SECONDS = 3.0  # at most, for a connection to the proxy, which is near: a longer wait is no receiver's fault
# Out of descriptors, buffers or memory: no receiver had a part in it. EADDRNOTAVAIL is none of them, as a machine
# without IPv6 says it of a receiver that has nothing else.
SCARCE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_RECEIVE_BUFFER = 32 * 1024  # bounds how many 1xx answers one wake-up of the loop can meet
_NO_TIMEOUT = aiohttp.ClientTimeout()  # whoever sends has one deadline for everything
_IDLE_SECONDS = 15.0  # for which a connection is kept that nobody uses


class Connector(aiohttp.TCPConnector):
    """Dials for one set of allowed networks and one proxy, and keeps idle connections; make another when these change.

    aiohttp dials; its own pool makes anew, for each request, an object, a key of eight parts and a queue.
    """

    def __init__(
        self, resolver: Resolver, threads: ThreadPool, allow_networks: tuple[Network, ...], proxy: Proxy | None
    ) -> None:
        super().__init__(
            limit=0,  # waiting for a slot would eat the deadline; the dispatcher bounds concurrency
            force_close=True,  # what is given back to aiohttp is not for further use
            resolver=resolver,
            use_dns_cache=False,
            socket_factory=self._socket,
        )
        self._factory = functools.partial(Protocol, self._loop)  # type: ignore[assignment]  # there is no public way
        self._allow_networks = allow_networks
        self._names = resolver
        self._threads = threads
        self._proxy = proxy
        self._has_tunnelled = False
        self._retired = False
        self._idle: dict[ConnectionKey, deque[tuple[Connection, float]]] = {}  # oldest first, with their moments
        self._sweeping: asyncio.TimerHandle | None = None

    async def open(self, request: aiohttp.ClientRequest, deadline: float, seconds: float) -> Connection:
        """A new connection; Verdict at that moment of the loop's clock, or what aiohttp and the system say.

        `seconds` are those that the caller has for everything.
        """
        patience = aiohttp.ClientTimeout(sock_connect=min(PROXY_SECONDS, seconds / 2)) if self._proxy else _NO_TIMEOUT
        limit = asyncio.timeout_at(deadline)
        try:
            async with limit:
                return await self.connect(request, [], patience)
        except Exception:
            if limit.expired():
                raise Verdict("connect_timeout") from None
            raise

    def take(self, key: ConnectionKey) -> Connection | None:
        """An idle connection that can be asked."""
        idle = self._idle.get(key)
        while idle:
            connection, since = idle.popleft()
            protocol = protocol_of(connection)
            # Bytes that nobody asked for would answer the next request (aio-libs/aiohttp#13656), also those that the
            # kernel has and the loop has not read yet.
            if not (protocol.heard or protocol.should_close or self._is_old(since) or protocol.has_unread()):
                return connection
            abandon(connection)
        return None

    def keep(self, key: ConnectionKey, connection: Connection) -> None:
        """Take back a connection whose answer is whole, for the next request if it can have one."""
        protocol = protocol_of(connection)
        if self._retired or protocol.should_close or protocol.writing_paused:  # answered, but did not read
            connection.release()
            return
        protocol.answer_by()
        protocol.used, protocol.heard = True, False
        self._idle.setdefault(key, deque()).append((connection, self._loop.time()))
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_IDLE_SECONDS, self._sweep)

    def _is_old(self, since: float) -> bool:
        return since + _IDLE_SECONDS <= self._loop.time()

    def _sweep(self) -> None:
        self._sweeping = None
        for key, idle in list(self._idle.items()):
            while idle and self._is_old(idle[0][1]):
                idle.popleft()[0].close()
            if not idle:
                del self._idle[key]
        if self._idle:
            self._sweeping = self._loop.call_later(_IDLE_SECONDS, self._sweep)

    @property
    def is_idle(self) -> bool:
        """True when no connection of it is open."""
        return not self._acquired

    def retire(self) -> None:
        """Keep no connection; those in use end their request."""
        self._retired = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for idle in self._idle.values():
            for connection, _ in idle:
                connection.close()
        self._idle.clear()

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close all connections, and wait for that."""
        await super().close(abort_ssl=abort_ssl)
        self.retire()

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for the very address that is dialled next, so a name that changes its mind gains nothing."""
        family, kind, protocol, _, (host, port, *_) = address
        if address_mistake(str(host), int(port), self._allow_networks):
            raise Verdict("egress_denied")
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        return sock

    async def _wrap_create_connection(
        self, *arguments: Any, req: aiohttp.ClientRequest, ssl: Any = None, server_hostname: Any = None, **named: Any
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        if ssl is None:
            return await super()._wrap_create_connection(*arguments, req=req, **named)
        offload = self._begin_offload()
        transport, _ = await super()._wrap_create_connection(_Unread, req=req, **named)
        return await self._secured(transport, req, offload)

    def _begin_offload(self) -> Offload:
        """What computes for the next connection of this task: uvloop takes its context when it is made."""
        offload = Offload(self._threads.compute)
        OFFLOAD.set(offload)
        return offload

    async def _secured(
        self, transport: asyncio.Transport, req: aiohttp.ClientRequest, offload: Offload
    ) -> tuple[asyncio.Transport, Protocol]:
        """TLS on this connection, whose handshake is computed in a thread."""
        protocol = Protocol(self._loop)
        name = (req.url.raw_host or "").rstrip(".")  # no certificate has the dot at its end
        offload.wake = functools.partial(_wake, transport)
        context = self._get_ssl_context(req)
        assert context is not None  # noqa: S101 - says so to mypy
        try:
            secured = await self._loop.start_tls(transport, protocol, context, server_hostname=name)
            if secured is None:
                raise ConnectionResetError
        except BaseException as error:
            offload.wake = None
            transport.abort()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise aiohttp.ClientConnectorCertificateError(req.connection_key, error) from error
            if isinstance(error, OSError):
                raise aiohttp.ClientConnectorError(req.connection_key, error) from error
            raise
        protocol.connection_made(secured)
        return secured, protocol

    # Through the proxy.

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        if self._proxy is None:
            return await super()._create_connection(req, traces, timeout)
        if host_mistake(req.url.raw_host or "", req.url.port or 0, self._allow_networks):
            raise Verdict("egress_denied")
        offload = self._begin_offload()
        transport, protocol = await self._dial(self._proxy, timeout.sock_connect or PROXY_SECONDS)
        try:
            await self._ask_for_tunnel(protocol, self._proxy, f"{req.url.host_subcomponent}:{req.url.port}")
            if req.is_ssl():
                _, protocol = await self._secured(transport, req, offload)
            else:
                protocol = Protocol(self._loop)
                transport.set_protocol(protocol)
                protocol.connection_made(transport)
        except BaseException:
            transport.abort()
            raise
        return protocol

    async def _dial(self, proxy: Proxy, seconds: float) -> tuple[asyncio.Transport, Protocol]:
        """A connection to the proxy, to the first of its addresses that takes one.

        The guard does not ask where that is: the operator chose it.
        """
        end, why = self._loop.time() + seconds, OSError()
        try:
            async with asyncio.timeout(seconds):
                addresses = await self._names.addresses(proxy.host, proxy.port)
            for number, address in enumerate(addresses):
                try:
                    async with asyncio.timeout((end - self._loop.time()) / (len(addresses) - number)):
                        return await self._connected(address, proxy.port)
                except OSError as error:  # TimeoutError too
                    why = error
        except OSError as error:
            why = error
        if why.errno in SCARCE or (isinstance(why, Verdict) and why.ours):
            raise why
        raise Verdict("proxy_error", ours=True) from why

    async def _connected(self, address: str, port: int) -> tuple[asyncio.Transport, Protocol]:
        made = functools.partial(Protocol, self._loop)
        transport, protocol = await self._loop.create_connection(made, address, port)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        return transport, protocol

    async def _ask_for_tunnel(self, protocol: Protocol, proxy: Proxy, authority: str) -> None:
        """CONNECT (RFC 9110 9.3.6). Raises Verdict: a proxy that does not reach this receiver may reach others.

        When it says nothing at all, or wants to know who we are, that may be so of this receiver, or of all. It is of
        all until a tunnel has been opened.
        """
        protocol.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=READ_BUFFER)
        headers = CIMultiDict({"host": authority})
        if proxy.authorization:
            headers["proxy-authorization"] = proxy.authorization
        try:
            writer = StreamWriter(protocol, self._loop)
            await writer.write_headers(f"CONNECT {authority} HTTP/1.1", headers)
            await writer.write_eof()
            message, _ = await protocol.read()
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            raise Verdict("proxy_error", ours=not (protocol.heard or self._has_tunnelled)) from error
        if not 200 <= message.code < 300:
            # Some answer 407 to say that they refuse this receiver, but without the challenge of RFC 9110 15.5.8.
            is_challenge = message.code == 407 and "proxy-authenticate" in message.headers
            raise Verdict("proxy_error", ours=is_challenge and not self._has_tunnelled)
        self._has_tunnelled = True


class _Unread(asyncio.Protocol):
    """Of a connection that will speak TLS: what comes before that has begun waits in the kernel."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).pause_reading()


def _wake(transport: asyncio.Transport) -> None:
    """Let the protocol that shakes hands on this transport go on, as it does when bytes come."""
    if not transport.is_closing():
        protocol = cast(asyncio.BufferedProtocol, transport.get_protocol())
        protocol.get_buffer(1)
        protocol.buffer_updated(0)


def protocol_of(connection: Connection) -> Protocol:
    """What aiohttp made of our factory."""
    return cast(Protocol, connection.protocol)


def abandon(connection: Connection) -> None:
    """Close a connection that was not given back; what it still had to send is dropped."""
    if connection.transport is not None:
        connection.transport.abort()  # close() would first wait for a receiver that does not read
    connection.close()
