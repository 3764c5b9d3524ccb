"""A receiver in a process of its own, with a ledger of its own: `python -m tests.fault.receiver LEDGER SEED`.

The first part of a path says how it behaves: `healthy` answers 200, `flaky` one time in three 500, `failing` always
500, `slow` takes a tenth of a second, `hung` never answers, `hold` when SIGUSR2 came. SIGUSR1 heals all of them, and
makes the second port, which refuses until then, answer. Both ports are told on stdout. A line of the ledger is written
before the answer goes out; status 0 is a request that has come and has no answer yet.
"""

import asyncio
import hashlib
import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import uvloop
from aiohttp import web

BACKLOG = 1024


class Receiver:
    """What the requests meet."""

    def __init__(self, ledger: int, seed: int) -> None:
        self._ledger = ledger
        self._random = random.Random(seed)
        self.healed = asyncio.Event()
        self.released = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        """Behave as the path says, and write it down."""
        body = await request.read()
        kind = request.path.split("/")[1]
        if kind == "hold" and not self.released.is_set():
            self._write(request, body, 0)
            await self.released.wait()
        elif kind == "hung" and not self.healed.is_set():
            self._write(request, body, 0)
            await asyncio.Event().wait()
        elif kind == "slow":
            await asyncio.sleep(0.1)
        bad = kind == "failing" or (kind == "flaky" and self._random.random() < 1 / 3)
        status = 500 if bad and not self.healed.is_set() else 200
        self._write(request, body, status)
        return web.Response(status=status)

    def _write(self, request: web.Request, body: bytes, status: int) -> None:
        start = body.find(b',"data":') + len(b',"data":')
        line = {
            "path": request.path,
            "id": request.headers["webhook-id"],
            "attempt": int(request.headers["webhook-attempt"]),
            "body": hashlib.sha256(body).hexdigest(),
            "data": hashlib.sha256(body[start:-1]).hexdigest(),
            "status": status,
            "at": time.time(),
        }
        os.write(self._ledger, json.dumps(line).encode() + b"\n")


async def serve(ledger: Path, seed: int) -> None:
    """Receive until killed."""
    receiver = Receiver(os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), seed)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, receiver.healed.set)
    loop.add_signal_handler(signal.SIGUSR2, receiver.released.set)
    application = web.Application(client_max_size=16 * 1024 * 1024)
    application.router.add_post("/{path:.*}", receiver.answer)
    # Who waits for an answer that will never come is let go with the connection.
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
    await runner.setup()
    with socket.socket() as live, socket.socket() as dead:
        live.bind(("127.0.0.1", 0))
        dead.bind(("127.0.0.1", 0))  # bound but not listening: refused, and nobody else gets the port
        await web.SockSite(runner, live, backlog=BACKLOG).start()
        sys.stdout.write(f"ready {live.getsockname()[1]} {dead.getsockname()[1]}\n")
        sys.stdout.flush()
        await receiver.healed.wait()
        await web.SockSite(runner, dead, backlog=BACKLOG).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as at:
        at.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
