"""What signing and sending alone costs: a loop of plain aiohttp POSTs.

`python -m tests.bench.bare URL` sends as many requests as each line of its input says, and prints a line when they are
answered. Whoever asks measures its CPU time.
"""

import asyncio
import base64
import hashlib
import hmac
import sys
import time
from collections.abc import Iterator

import aiohttp
import uvloop

CONCURRENT = 10
BODY = b'{"type":"order.created","timestamp":"2026-01-01T00:00:00.000000Z","data":' + b'"' + b"x" * 1000 + b'"}'
KEY = b"this-is-a-fake-secret-for-benchmarks"


async def main(url: str) -> None:
    """Send signed requests over connections that are kept alive."""
    async with aiohttp.ClientSession() as session:
        while line := await asyncio.to_thread(sys.stdin.readline):
            numbers = iter(range(int(line)))
            async with asyncio.TaskGroup() as group:
                for _ in range(CONCURRENT):
                    group.create_task(_work(session, url, numbers))
            print("done", flush=True)


async def _work(session: aiohttp.ClientSession, url: str, numbers: Iterator[int]) -> None:
    for number in numbers:
        async with session.post(url, data=BODY, headers=signed(f"msg-{number}", BODY)) as response:
            await response.read()
            assert response.status == 200


def signed(id_: str, body: bytes) -> dict[str, str]:
    """The headers of a request."""
    timestamp = str(int(time.time()))
    digest = hmac.digest(KEY, f"{id_}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "content-type": "application/json",
        "webhook-id": id_,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
