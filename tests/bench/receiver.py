"""A receiver that costs as little as possible: it answers every request with 200, and counts and stamps them.

Run as `python -m tests.bench.receiver`; prints its port. `GET /moments` gives {webhook-id: monotonic seconds} and
forgets them. A first attempt at /flaky gets a 503, /slow answers after 50 ms, and /hung never. Once `GET /switch` was
asked for, /mute answers no longer, and /dead, which gives 503 before, answers up to LIMIT requests in a second, and
more with 429.
"""

import asyncio
import json
import time
from collections import deque
from typing import cast

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
FAILURE = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n"
LIMIT = 1_650
SLOW = 0.05  # seconds


class Receiver(asyncio.Protocol):
    """One connection; requests come one after the other, since webhookd never pipelines."""

    moments: dict[str, float] = {}  # noqa: RUF012  # shared by all connections on purpose
    count = 0
    refused = 0
    switched = False
    last: deque[float] = deque()  # noqa: RUF012  # the moments of the last answers of /dead

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        headers = dict(
            (name.lower(), value.strip())
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        )
        if len(body) < int(headers.get(b"content-length", b"0")):
            return
        self._buffer = b""
        if head.startswith(b"GET /switch"):
            Receiver.switched = True
            self._transport.write(ANSWER)
            return
        if head.startswith(b"GET"):
            figures = {"count": Receiver.count, "refused": Receiver.refused, "moments": Receiver.moments}
            content = json.dumps(figures).encode()
            Receiver.moments.clear()
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content))
            return
        if head.startswith(b"POST /hung") or (head.startswith(b"POST /mute") and Receiver.switched):
            return
        if head.startswith(b"POST /dead") and (trouble := self._trouble()):
            self._transport.write(trouble)
            return
        Receiver.count += 1
        if len(Receiver.moments) < 50_000:  # enough to measure; more would be memory
            Receiver.moments[headers.get(b"webhook-id", b"").decode()] = time.monotonic()
        if head.startswith(b"POST /slow"):
            asyncio.get_running_loop().call_later(SLOW, self._answer)
            return
        failing = head.startswith(b"POST /flaky") and headers.get(b"webhook-attempt") == b"1"
        self._transport.write(FAILURE if failing else ANSWER)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)

    def _trouble(self) -> bytes:
        if not Receiver.switched:
            return FAILURE
        last, now = Receiver.last, time.monotonic()
        while last and last[0] < now - 1.0:
            last.popleft()
        if len(last) >= LIMIT:
            Receiver.refused += 1
            return REFUSAL
        last.append(now)
        return b""


async def serve() -> None:
    """Listen on a free port until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
