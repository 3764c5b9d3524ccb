"""Clients that poll: `python -m tests.bench.pollers HOST:PORT TOKEN COUNT`, until SIGTERM.

Each has a connection and an endpoint `poll-N`, and waits. A line on their standard input is answered with what they
have got since the last: a JSON object of event ids, and the moments, monotonic, of their arrivals.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import defaultdict

import uvloop

CONNECTING = 50  # at once

Got = dict[str, list[float]]


async def main(where: str, token: str, count: int) -> None:
    """Poll."""
    got: Got = defaultdict(list)
    connecting = asyncio.Semaphore(CONNECTING)
    async with asyncio.TaskGroup() as group:
        ready = [asyncio.Event() for _ in range(count)]
        for number in range(count):
            group.create_task(_poll(where, token, number, got, connecting, ready[number]))
        for each in ready:
            await each.wait()
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(got), flush=True)
            got.clear()


async def _poll(
    where: str, token: str, number: int, got: Got, connecting: asyncio.Semaphore, ready: asyncio.Event
) -> None:
    host, _, port = where.rpartition(":")
    async with connecting:
        reader, writer = await asyncio.open_connection(host, int(port))
        answer = await _ask(reader, writer, where, token, f"poll-{number}?wait=0")
    ready.set()
    while True:
        answer = await _ask(reader, writer, where, token, f"poll-{number}?wait=60&iterator={answer['iterator']}")
        now = time.monotonic()
        for each in answer["data"]:
            got[each["id"]].append(now)


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str, token: str, path: str
) -> dict[str, list[dict[str, str]]]:
    head = f"GET /api/v1/app/default/poller/{path} HTTP/1.1\r\nhost: {where}\r\nauthorization: Bearer {token}\r\n\r\n"
    writer.write(head.encode())
    answered = await reader.readuntil(b"\r\n\r\n")
    length = next(int(each[15:]) for each in answered.lower().split(b"\r\n") if each.startswith(b"content-length:"))
    body = await reader.readexactly(length)
    if b" 200 " not in answered.partition(b"\r\n")[0]:
        raise RuntimeError(body.decode())
    found: dict[str, list[dict[str, str]]] = json.loads(body)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("where")
    parser.add_argument("token")
    parser.add_argument("count", type=int)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(arguments.where, arguments.token, arguments.count))
