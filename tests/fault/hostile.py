"""A server that is hostile in every way of ATTACKS: `python -m tests.fault.hostile`, until its stdin ends.

It is a process of its own, so that its work does not hold up the loop of the daemon it attacks. Each attack has a port.
One line of JSON on stdout tells them, and the authorities of those that speak TLS. On the port `ledger`, a line with a
path is answered by a line with what came to that path.
"""

import asyncio
import datetime
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

import uvloop

from tests.certificates import chained, self_signed, serving
from tests.fault.attacks import ATTACKS, Behaviour
from tests.fault.peer import LONGEST_HEAD, Ledger, Peer

LONGEST = 15.0  # seconds for one connection
BACKLOG = 1024


def certified() -> dict[str, tuple[str, str]]:
    """The certificates, and their keys, of the attacks that have one."""
    return {
        "tls_expired": self_signed(until=datetime.timedelta(hours=-1)),
        "tls_self_signed": self_signed(),
        "tls_wrong_host": self_signed(address="127.0.0.2"),
        "tls_mute": self_signed(),
        "tls_long_chain": chained(200),
        "tls_good": self_signed(),
    }


@asynccontextmanager
async def served(behaviour: Behaviour, ledger: Ledger, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Behave so towards whoever connects to the port."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, ledger)
        try:
            with suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):  # the daemon may leave any time
                async with asyncio.timeout(LONGEST):
                    await behaviour(peer)
        finally:
            await peer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls, limit=LONGEST_HEAD, backlog=BACKLOG)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()  # the connections end with the process


@contextmanager
def unaccepted() -> Iterator[int]:
    """A port whose queue is full, and which nobody accepts from: a SYN gets no answer."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for client in waiting:
                client.setblocking(False)
                client.connect_ex(full.getsockname())
            yield full.getsockname()[1]
        finally:
            for client in waiting:
                client.close()


@contextmanager
def refusing() -> Iterator[int]:
    """A port that is bound and does not listen."""
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        yield dead.getsockname()[1]


def told(ledger: Ledger) -> Behaviour:
    """Tell what came to a path, one after the other."""

    async def behaviour(peer: Peer) -> None:
        while path := (await peer.heard()).decode().strip():
            found = {"requests": ledger.requests[path], "notes": ledger.notes[path]}
            await peer.say(json.dumps(found).encode() + b"\n")

    return behaviour


async def serve() -> None:
    """Attack whoever connects, until stdin ends."""
    ledger, certificates = Ledger(), certified()
    async with AsyncExitStack() as stack:
        ports = {"unaccepted": stack.enter_context(unaccepted()), "refusing": stack.enter_context(refusing())}
        for name, behaviour in {**ATTACKS, "ledger": told(ledger)}.items():
            tls = serving(*certificates[name]) if name in certificates else None
            ports[name] = await stack.enter_async_context(served(behaviour, ledger, tls))
        authorities = {name: certificate for name, (certificate, _) in certificates.items()}
        sys.stdout.write(json.dumps({"ports": ports, "authorities": authorities}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as at:
        at.run(serve())
