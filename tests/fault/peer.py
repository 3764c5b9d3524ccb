"""One connection to the hostile server, and what it can do to whoever made it."""

import asyncio
import socket
import struct
from collections import defaultdict
from contextlib import suppress

MOST_PIECES = 20_000  # of a flood, which is bounded by the time of its connection, too
LONGEST_HEAD = 64 * 1024


class Ledger:
    """What was asked of each path, and what was done there that a test wants to know; in the order it happened."""

    def __init__(self) -> None:
        self.requests: defaultdict[str, list[str]] = defaultdict(list)
        self.notes: defaultdict[str, list[str]] = defaultdict(list)


class Peer:
    """A connection; `path` is that of its newest request, and `number` how many its path has had by then."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ledger: Ledger) -> None:
        self._reader = reader
        self._writer = writer
        self._ledger = ledger
        self.path = ""

    @property
    def number(self) -> int:
        """Which request to its path this is, from 1."""
        return len(self._ledger.requests[self.path])

    async def request(self) -> str:
        """Wait for the next request, and write it down; its body."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *headers = head.lower().split("\r\n")
        length = next((each.split(":")[1] for each in headers if each.startswith("content-length:")), "0")
        body = (await self._reader.readexactly(int(length))).decode("latin-1")
        self.path = line.split(" ")[1]
        self._ledger.requests[self.path].append(head + body)
        return body

    def note(self, what: str) -> None:
        """Write down what was done to the newest request."""
        self._ledger.notes[self.path].append(what)

    async def heard(self) -> bytes:
        """The next bytes that come, whatever they are."""
        return await self._reader.read(64 * 1024)

    async def say(self, data: bytes) -> None:
        """Send, and wait while the other side does not read."""
        self._writer.write(data)
        await self._writer.drain()

    async def flood(self, piece: bytes, start: bytes = b"") -> None:
        """Say the same as fast as it is read."""
        await self.say(start)
        for _ in range(MOST_PIECES):
            await self.say(piece)

    async def drip(self, piece: bytes, start: bytes = b"", pause: float = 0.02) -> None:
        """Say the same byte by byte, each before anybody can lose patience with it alone."""
        await self.say(start)
        for _ in range(MOST_PIECES):
            for at in range(len(piece)):
                await self.say(piece[at : at + 1])
                await asyncio.sleep(pause)

    async def gone(self) -> None:
        """Say nothing more; return when the other side has closed."""
        while await self.heard():
            pass

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close in order, as far as the other side lets us."""
        self._writer.close()
        with suppress(OSError, asyncio.TimeoutError):
            async with asyncio.timeout(1):
                await self._writer.wait_closed()
