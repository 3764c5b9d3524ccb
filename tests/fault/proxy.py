"""Stands between a daemon and Postgres, and is what a bad network is: cut, silent, or eating one certain message."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self
from urllib.parse import parse_qs, urlsplit

Part = Literal["request", "reply"]
READY_FOR_QUERY = b"Z\x00\x00\x00\x05"  # and one byte more: the server has done all it was asked
CHUNK = 65536


class Proxy:
    """`async with Proxy(dsn) as proxy`: daemons connect to `proxy.dsn(role)`; `dsn` must name a UNIX socket."""

    def __init__(self, dsn: str) -> None:
        self.target = dsn  # may change while the proxy runs
        self.lost = 0  # messages eaten
        self.asked = 0  # connections that somebody wanted
        self._part: Part = "reply"
        self._fragment = b""
        self._away = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        self._flowing.set()
        while self._writers:  # noqa: ASYNC110 - the handlers belong to asyncio's server, which gives no handle on them
            await asyncio.sleep(0.01)

    def dsn(self, role: str) -> str:
        """The way through the proxy."""
        name = urlsplit(self.target).path
        return f"postgresql://{role}@127.0.0.1:{self._port}{name}?sslmode=disable"

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        self._away = True
        for writer in self._writers:
            writer.transport.abort()

    def freeze(self) -> None:
        """Let nothing through, and say nothing."""
        self._flowing.clear()

    def heal(self) -> None:
        """All is well again; what was frozen arrives now."""
        self._away = False
        self._flowing.set()

    def lose(self, part: Part, fragment: str) -> None:
        """Of the next statement that contains `fragment`, lose the request or the reply, and the connection with it."""
        self._part, self._fragment = part, fragment.encode()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            if self._away:
                return
            host = parse_qs(urlsplit(self.target).query)["host"][0]
            replies, upstream = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.5432")
            link = _Link(self, reader, upstream, replies, writer)
            pumps = [asyncio.ensure_future(link.requests()), asyncio.ensure_future(link.replies())]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the server is away: so are we
        finally:
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()
            self._writers.discard(writer)

    async def flowing(self) -> None:
        """Wait while frozen."""
        await self._flowing.wait()

    def eats(self, statement: bytes) -> Part | None:
        """Whether this is the statement to lose, and what of it; once."""
        if self._fragment and self._fragment in statement:
            self._fragment = b""
            self.lost += 1
            return self._part
        return None


class _Link:
    """One connection: reads along with the client, because asyncpg sends the text of a statement only once."""

    def __init__(
        self,
        proxy: Proxy,
        client: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._to_server = to_server
        self._server = server
        self._to_client = to_client
        self._unread = b""
        self._started = False
        self._statements: dict[bytes, bytes] = {}
        self._mute = False

    async def requests(self) -> None:
        """Client to server."""
        with suppress(OSError):
            while data := await self._client.read(CHUNK):
                await self._proxy.flowing()
                parts = [part for statement in self._executed(data) if (part := self._proxy.eats(statement))]
                if "request" in parts:
                    return
                self._mute = self._mute or bool(parts)
                self._to_server.write(data)
                await self._to_server.drain()

    async def replies(self) -> None:
        """Server to client."""
        with suppress(OSError):
            while data := await self._server.read(CHUNK):
                await self._proxy.flowing()
                if not self._mute:
                    self._to_client.write(data)
                    await self._to_client.drain()
                elif data[-6:-1] == READY_FOR_QUERY:
                    return  # what it was asked is done, and nobody will know

    def _executed(self, data: bytes) -> Iterator[bytes]:
        """Texts of the statements that these bytes ask the server to run."""
        self._unread += data
        if not self._started:  # the first message has no type
            size = int.from_bytes(self._unread[:4])
            if len(self._unread) < max(size, 4):
                return
            self._unread, self._started = self._unread[size:], True
        while len(self._unread) >= 5:
            kind, size = self._unread[:1], int.from_bytes(self._unread[1:5]) + 1
            if len(self._unread) < size:
                return
            body, self._unread = self._unread[5:size], self._unread[size:]
            if kind == b"P":
                name, text, _ = body.split(b"\0", 2)
                self._statements[name] = text
            elif kind == b"B":
                yield self._statements.get(body.split(b"\0", 2)[1], b"")
            elif kind == b"Q":
                yield body
