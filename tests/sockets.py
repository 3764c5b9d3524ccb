"""Receivers of raw sockets on loopback, and requests for them."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Any

from webhookd.exchange import Request
from webhookd.model import Egress, Network

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"),)
OPEN = Egress(allow_http=True, allow_networks=LOOPBACK)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 3\r\n\r\nbad"

Behaviour = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One connection, as the receiver sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number  # from 1, in the order of arrival

    async def request(self) -> bytes:
        """The next request, head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return head + await self.reader.readexactly(int(length.partition(b":")[2]))

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Return when the other side has closed."""
        while await self.reader.read(65536):
            pass


class Receiver:
    """A server whose connections all behave the same way. `peers` holds every connection that was ever made."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.peers: list[Peer] = []
        self.requests: list[bytes] = []
        self.port = 0
        self.tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def https(self) -> str:
        return f"https://127.0.0.1:{self.port}/hook"

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, len(self.peers) + 1)
        self.peers.append(peer)
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self.behaviour(peer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiver(
    behaviour: Behaviour, context: ssl.SSLContext | None = None, bound: socket.socket | None = None
) -> AsyncIterator[Receiver]:
    there = Receiver(behaviour)
    sock = bound or _bound()
    server = await asyncio.start_server(there.accept, sock=sock, ssl=context)
    there.port = server.sockets[0].getsockname()[1]
    try:
        yield there
    finally:
        server.close()
        for task in there.tasks:
            task.cancel()
        await asyncio.gather(*there.tasks, return_exceptions=True)
        await server.wait_closed()


def _bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def answering(*answers: bytes) -> Behaviour:
    """Each connection gives these answers in turn, the last one for ever."""

    async def behaviour(peer: Peer) -> None:
        left = list(answers)
        while True:
            await peer.request()
            await peer.say(left.pop(0) if len(left) > 1 else left[0])

    return behaviour


def post(
    url: str,
    timeout: float = 5.0,
    content: bytes = b'{"a":1}',
    headers: Mapping[str, str] = MappingProxyType({}),
    tls: ssl.SSLContext | None = None,
) -> Request:
    return Request(url, {"content-type": "application/json", **headers}, content, timeout, tls)


def quiet_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def resolving_to(*addresses: str) -> Callable[..., list[tuple[Any, ...]]]:
    def getaddrinfo(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        families = [socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6 for address in addresses]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, port))
            for family, address in zip(families, addresses, strict=True)
        ]

    return getaddrinfo
