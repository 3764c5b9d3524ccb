"""A client of the HTTP API that asks at a rate: `python -m tests.bench.asker HOST:PORT TOKEN RATE`, until SIGTERM.

Each line on its standard input is how many seconds it asks for; it answers with how many requests were answered well.
"""

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Iterator

import uvloop

CONNECTIONS = 8
MESSAGE = b'{"eventType": "nobody.wants", "payload": {"order": 42, "text": "' + b"x" * 200 + b'"}}'


def _request(method: str, path: str, host: str, token: str, body: bytes = b"") -> bytes:
    head = f"{method} /api/v1{path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def _answered(reader: asyncio.StreamReader) -> bool:
    head = await reader.readuntil(b"\r\n\r\n")
    status, length = int(head.split(b" ", 2)[1]), 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    await reader.readexactly(length)
    return status < 300


async def main(where: str, token: str, rate: float) -> None:
    """Ask, of each ten requests four for a page, three for one thing, and three for a message to be made."""
    host, _, port = where.rpartition(":")
    kinds = (
        [_request("GET", "/app/shop/endpoint", where, token)] * 4
        + [_request("GET", "/app/shop", where, token)] * 3
        + [_request("POST", "/app/shop/msg", where, token, MESSAGE)] * 3
    )
    streams = [await asyncio.open_connection(host, int(port)) for _ in range(CONNECTIONS)]
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        turns = zip(itertools.count(), itertools.cycle(kinds), strict=False)
        counts = await asyncio.gather(*(_ask(*stream, turns, rate, float(line)) for stream in streams))
        print(sum(counts), flush=True)


async def _ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    turns: Iterator[tuple[int, bytes]],
    rate: float,
    seconds: float,
) -> int:
    """Ask what has its turn, when it has, on one of several connections; how many were answered well."""
    well, start = 0, time.monotonic()
    for number, request in turns:
        if number / rate >= seconds:
            break
        await asyncio.sleep(max(start + number / rate - time.monotonic(), 0))
        writer.write(request)
        well += await _answered(reader)
    return well


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("where")
    parser.add_argument("token")
    parser.add_argument("rate", type=float)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(arguments.where, arguments.token, arguments.rate))
