"""What signing and sending alone costs: a loop of plain aiohttp POSTs.

`python -m tests.bench.bare URL COUNT` prints the CPU time of one request in microseconds.
"""

import asyncio
import base64
import hashlib
import hmac
import os
import sys
import time

import aiohttp
import uvloop

CONCURRENT = 10
BODY = b'{"type":"order.created","timestamp":"2026-01-01T00:00:00.000000Z","data":' + b'"' + b"x" * 1000 + b'"}'
KEY = b"this-is-a-fake-secret-for-benchmarks"


async def main(url: str, count: int) -> None:
    """Send `count` signed requests over kept-alive connections, and print the CPU time of one in microseconds."""
    numbers = iter(range(count))

    async def work(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            id_, timestamp = f"msg-{number}", str(int(time.time()))
            digest = hmac.digest(KEY, f"{id_}.{timestamp}.".encode() + BODY, hashlib.sha256)
            headers = {
                "content-type": "application/json",
                "webhook-id": id_,
                "webhook-timestamp": timestamp,
                "webhook-signature": "v1," + base64.b64encode(digest).decode(),
            }
            async with session.post(url, data=BODY, headers=headers) as response:
                await response.read()
                assert response.status == 200

    async with aiohttp.ClientSession() as session:
        before = os.times()
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT):
                group.create_task(work(session))
        after = os.times()
    print((after.user + after.system - before.user - before.system) / count * 1e6)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2])))
