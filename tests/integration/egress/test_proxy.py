"""Sending through the operator's proxy: a CONNECT proxy of raw sockets, and what it may do to us."""

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from itertools import pairwise
from typing import Any

import pytest

from tests.certificates import self_signed, serving
from tests.integration.conftest import Running, Sql, configuration, finished, insert_many, states
from tests.sockets import (
    FAILED,
    LOOPBACK,
    OK,
    Behaviour,
    Peer,
    Receiver,
    answering,
    post,
    quiet_port,
    receiver,
    resolving_to,
)
from tests.stopwatch import within
from tests.waiting import until
from webhookd.egress.connector import Connector
from webhookd.egress.sender import Sender
from webhookd.egress.tls import tls_context
from webhookd.exchange import NoResponse, Response
from webhookd.model import Egress, Proxy

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

CHALLENGE = b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"\r\n\r\n'
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def asked(peer: Peer) -> bytes:
    """The head of a CONNECT."""
    return await peer.reader.readuntil(b"\r\n\r\n")


def tunnelling(heads: list[bytes], *, to: Receiver | None = None, first: bytes = ESTABLISHED) -> Behaviour:
    """A proxy that notes what it is asked and opens the tunnel, always to `to` where that is given."""

    async def behaviour(peer: Peer) -> None:
        heads.append(await asked(peer))
        host, _, port = heads[-1].split()[1].decode().rpartition(":")
        reader, writer = await asyncio.open_connection("127.0.0.1" if to else host, to.port if to else int(port))
        try:
            await peer.say(first)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(peer.reader, writer))
                group.create_task(_pump(reader, peer.writer))
        finally:
            writer.transport.abort()

    return behaviour


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def sender_through(proxy: Receiver, authorization: str = "", *, anywhere: bool = False) -> AsyncIterator[Sender]:
    egress = Egress(True, LOOPBACK if anywhere else (), Proxy("127.0.0.1", proxy.port, authorization))
    async with Sender(egress, "webhookd/test") as sender:
        yield sender


async def test_a_tunnel_is_asked_for_and_used_again() -> None:
    heads: list[bytes] = []
    async with (
        receiver(answering(OK, FAILED)) as there,
        receiver(tunnelling(heads, to=there)) as proxy,
        sender_through(proxy, "Basic d2ViaG9va2Q6ZmFrZQ==") as sender,
    ):
        assert await sender.send(post("http://name.invalid:8080/hook")) == Response(200)
        assert await sender.send(post("http://name.invalid:8080/hook")) == Response(500, b"bad")
        assert [head.lower().split(b"\r\n") for head in heads] == [
            [
                b"connect name.invalid:8080 http/1.1",
                b"host: name.invalid:8080",
                b"proxy-authorization: basic d2viag9va2q6zmfrzq==",
                b"",
                b"",
            ]
        ]
        assert len(there.peers) == 1


async def test_the_receiver_sees_nothing_of_the_proxy() -> None:
    async def behaviour(peer: Peer) -> None:
        there.requests.append(await peer.request())
        await peer.say(OK)

    async with (
        receiver(behaviour) as there,
        receiver(tunnelling([], to=there)) as proxy,
        sender_through(proxy, "Basic ZmFrZTpmYWtl") as sender,
    ):
        assert await sender.send(post("http://name.invalid/hook")) == Response(200)
        assert b"proxy" not in there.requests[0].lower()
        assert there.requests[0].startswith(b"POST /hook HTTP/1.1\r\nhost: name.invalid\r\n")


async def test_tls_is_between_us_and_the_receiver() -> None:
    certificate, key = self_signed()
    heads: list[bytes] = []
    async with (
        receiver(answering(OK), serving(certificate, key)) as there,
        receiver(tunnelling(heads)) as proxy,
        sender_through(proxy, anywhere=True) as sender,
    ):
        assert await sender.send(post(there.https)) == NoResponse("tls_certificate")
        assert await sender.send(post(there.https, tls=tls_context(certificate))) == Response(200)
        assert [head.split()[1] for head in heads] == [f"127.0.0.1:{there.port}".encode()] * 2


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "0x7f.1", "2130706433", "127.1", "localhost", "a.localhost.", "[::1]", "[fd00::1]", "10.1.2.3"],
)
async def test_addresses_are_judged_before_the_proxy_is_asked(host: str) -> None:
    async with receiver(tunnelling([])) as proxy, sender_through(proxy) as sender:
        assert await sender.send(post(f"http://{host}/")) == NoResponse("egress_denied")
        assert proxy.peers == []


async def test_a_proxy_that_is_away_is_no_receivers_fault() -> None:
    egress = Egress(True, (), Proxy("127.0.0.1", quiet_port()))
    async with Sender(egress, "x") as sender:
        assert await sender.send(post("http://name.invalid/")) == NoResponse("proxy_error", ours=True)


async def test_no_descriptor_for_a_tunnel_is_no_fault_of_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_descriptor(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with receiver(tunnelling([])) as proxy, sender_through(proxy) as sender:
        with monkeypatch.context() as patch:
            patch.setattr(sender._connector, "_connected", no_descriptor)
            assert await sender.send(post("http://name.invalid/")) == NoResponse("internal", ours=True)


async def test_a_proxy_that_hears_nothing_is_no_receivers_fault() -> None:
    """Its queue of connections that nobody accepts is full: those that are in it count as connected."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        async with Sender(Egress(True, (), Proxy("127.0.0.1", port)), "x") as sender:
            said = await asyncio.gather(*(sender.send(post("http://name.invalid/", 1.0)) for _ in range(8)))
    assert NoResponse("proxy_error", ours=True) in said
    assert {answer.code for answer in said if isinstance(answer, NoResponse)} == {"proxy_error", "connect_timeout"}


@pytest.mark.parametrize(
    ("answer", "ours"),
    [  # before any tunnel was opened
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", False),
        (b"HTTP/1.1 407 Request rejected by proxy\r\n\r\n", False),
        (CHALLENGE, True),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", False),
        (b"", True),
    ],
)
async def test_a_proxy_that_opens_no_tunnel(answer: bytes, ours: bool) -> None:
    async def behaviour(peer: Peer) -> None:
        await asked(peer)
        await peer.say(answer)

    async with receiver(behaviour) as proxy, sender_through(proxy) as sender:
        assert await sender.send(post("https://name.invalid/")) == NoResponse("proxy_error", ours)


@pytest.mark.parametrize("answer", [CHALLENGE, b""])
async def test_a_proxy_that_has_opened_a_tunnel_and_no_other_judges_a_receiver(answer: bytes) -> None:
    """Or one receiver could hold up all others."""

    async def behaviour(peer: Peer) -> None:
        if peer.number == 1:
            await tunnelling([], to=there)(peer)
        else:
            await asked(peer)
            await peer.say(answer)

    async with receiver(answering(OK)) as there, receiver(behaviour) as proxy, sender_through(proxy) as sender:
        assert await sender.send(post("http://name.invalid/")) == Response(200)
        assert await sender.send(post("http://other.invalid/")) == NoResponse("proxy_error")


async def test_the_name_of_a_proxy_is_looked_up_as_all_names_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all who want it; of its addresses the first that takes a connection counts."""
    asked_for: list[str] = []

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked_for.append(host)
        return resolving_to("127.0.0.2", "127.0.0.1")(host, port)

    async with receiver(answering(OK)) as there, receiver(tunnelling([], to=there)) as proxy:
        async with Sender(Egress(True, (), Proxy("proxy.internal", proxy.port)), "x") as sender:
            with monkeypatch.context() as patch:
                patch.setattr("webhookd.egress.resolver.socket.getaddrinfo", getaddrinfo)
                said = await asyncio.gather(*(sender.send(post(f"http://{n}.invalid/")) for n in range(50)))
        assert said == [Response(200)] * 50
        assert set(asked_for) == {"proxy.internal"}
        assert len(asked_for) < 10


async def test_a_receiver_that_the_proxy_cannot_reach_in_time() -> None:
    async def behaviour(peer: Peer) -> None:
        await asked(peer)
        await peer.gone()
        left.set()

    left = asyncio.Event()
    async with receiver(behaviour) as proxy, sender_through(proxy) as sender:
        assert await sender.send(post("http://name.invalid/", 0.3)) == NoResponse("connect_timeout")
        await within(2, left.wait())  # nothing of it stays open


async def test_what_comes_before_the_tunnel_is_used_answers_nothing() -> None:
    forged = ESTABLISHED + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    async with (
        receiver(answering(FAILED)) as there,
        receiver(tunnelling([], to=there, first=forged)) as proxy,
        sender_through(proxy) as sender,
    ):
        assert await sender.send(post("http://name.invalid/")) == Response(500, b"bad")


async def test_while_the_proxy_is_away_nothing_is_burnt_and_little_is_written(
    sql: Sql, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand deliveries wait; one attempt a second looks whether the proxy is back."""
    dials: list[float] = []
    dial = Connector._dial

    async def noted(self: Connector, *arguments: Any) -> Any:
        dials.append(time.monotonic())
        return await dial(self, *arguments)

    monkeypatch.setattr(Connector, "_dial", noted)
    bound = socket.socket()  # nobody listens there yet, and nobody else can
    bound.bind(("127.0.0.1", 0))
    egress = {"allow_http": True, "proxy": f"http://127.0.0.1:{bound.getsockname()[1]}"}
    endpoints = {f"hook-{n}": {"url": f"http://name-{n}.invalid/", "max_in_flight": 1} for n in range(20)}
    async with receiver(answering(OK)) as there, daemon(configuration(endpoints, egress=egress)):
        events = await insert_many(sql, 50)
        await until(lambda: len(dials) >= 24, "a few looks at the proxy")
        after_the_first = [moment - before for before, moment in pairwise(dials) if moment > dials[0] + 0.5]
        assert len(after_the_first) >= 3
        assert min(after_the_first) > 0.9
        assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") <= len(dials)
        async with receiver(tunnelling([], to=there), bound=bound):
            await finished(sql)
    assert set((await states(sql, events[-1])).values()) == {"delivered"}
    assert await sql.fetchval("SELECT count(*) FROM webhookd.attempt") == 50 * 20
    assert await sql.fetchval("SELECT bool_and(ok AND attempt = 1) FROM webhookd.attempt")


async def test_another_proxy_takes_over_with_a_reload() -> None:
    async with (
        receiver(answering(OK)) as there,
        receiver(tunnelling([], to=there)) as old,
        receiver(tunnelling([], to=there)) as new,
        sender_through(old) as sender,
    ):
        assert await sender.send(post("http://name.invalid/")) == Response(200)
        sender.configure(Egress(True, (), Proxy("127.0.0.1", new.port)))
        assert await sender.send(post("http://name.invalid/")) == Response(200)
        assert (len(old.peers), len(new.peers)) == (1, 1)
        sender.configure(Egress(True, (ip_network("127.0.0.0/8"),)))
        assert await sender.send(post(there.url)) == Response(200)
        assert (len(old.peers), len(new.peers), len(there.peers)) == (1, 1, 3)
