"""Names as the C library looks them up: `unshare -Urmn python -m tests.fault.names LOOP` asks a name server of its own.

It needs namespaces of its own, since the C library takes its name server from /etc/resolv.conf and asks port 53. One
line of JSON tells what became of a request to each name.
"""

import asyncio
import fcntl
import json
import socket
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from tests.conftest import LOOPS
from tests.sockets import OPEN, Peer, post, receiver
from webhookd.egress.sender import Sender
from webhookd.exchange import NoResponse, Response

A, AAAA, NO_SUCH_NAME, SERVER_FAILED = 1, 28, 3, 2
SET_FLAGS, UP = 0x8914, 0x41  # of an interface: up and running
# What each name leads to, the first time and from then on; a number is an error, and None no answer at all.
ZONE: dict[str, tuple[list[str] | int | None, ...]] = {
    "good.test": (["127.0.0.1"],),
    "mixed.test": (["127.0.0.1", "fd00::1"],),
    "metadata.test": (["169.254.169.254"],),
    "mapped.test": (["::ffff:10.0.0.1"],),
    "flips.test": (["127.0.0.1"], ["10.0.0.1"]),
    "unknown.test": (NO_SUCH_NAME,),
    "failing.test": (SERVER_FAILED,),
    "silent.test": (None,),
}


class NameServer(asyncio.DatagramProtocol):
    """Answers from ZONE (RFC 1035), each name and type for itself."""

    def __init__(self) -> None:
        self._asked: Counter[tuple[str, int]] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: Any) -> None:
        end = data.index(b"\0", 12) + 5
        labels, at = [], 12
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode().lower())
            at += 1 + length
        name, (kind,) = ".".join(labels), struct.unpack("!H", data[end - 4 : end - 2])
        answers = ZONE.get(name, (NO_SUCH_NAME,))
        answer = answers[min(self._asked[name, kind], len(answers) - 1)]
        self._asked[name, kind] += 1
        if answer is None:
            return
        error, found = (answer, []) if isinstance(answer, int) else (0, [ip_address(each) for each in answer])
        found = [each for each in found if each.version == (4 if kind == A else 6) and kind in (A, AAAA)]
        head = data[:2] + struct.pack("!HHHHH", 0x8180 | error, 1, len(found), 0, 0)
        records = [struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(each.packed)) + each.packed for each in found]
        self._transport.sendto(head + data[12:end] + b"".join(records), address)


def settle() -> None:
    """Make these namespaces a machine whose name server is on its loopback."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH14x", b"lo", UP))
    for file, text in (("resolv.conf", "nameserver 127.0.0.1\n"), ("nsswitch.conf", "hosts: dns\n")):
        with tempfile.NamedTemporaryFile("w", delete=False) as made:
            made.write(text)
        subprocess.run(["mount", "--bind", made.name, f"/etc/{file}"], check=True)
        Path(made.name).unlink()


async def closing(peer: Peer) -> None:
    """Answer, and close, so that each request has to look its name up."""
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


async def main() -> dict[str, list[str]]:
    """What two requests to each name came to; those to a good one while another hangs come with their seconds."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(NameServer, ("127.0.0.1", 53))
    found: dict[str, list[str]] = {}
    async with receiver(closing) as there, Sender(OPEN, "x") as sender:

        async def ask(name: str) -> str:
            answer: Response | NoResponse = await sender.send(post(f"http://{name}:{there.port}/", 8.0))
            return str(answer.status) if isinstance(answer, Response) else answer.code

        silent = asyncio.create_task(ask("silent.test"))
        for name in ZONE:
            if name != "silent.test":
                found[name] = [await ask(name), await ask(name)]
        assert not silent.done(), "all others were asked while it hung"
        found["silent.test"] = [await silent]
        found["connections"] = [str(len(there.peers))]
    transport.close()
    return found


if __name__ == "__main__":
    settle()
    with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
        print(json.dumps(runner.run(main())))  # noqa: T201 - for the test
