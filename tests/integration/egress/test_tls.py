"""What a receiver may make the loop compute for TLS, on loopback."""

import asyncio
import base64
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.certificates import chained, of_rsa, self_signed, serving
from tests.sockets import OK, OPEN, Behaviour, Peer, answering, post, receiver
from tests.tls13 import ALERT, FFDHE8192, HANDSHAKE, P256, UNRECOGNIZED_NAME, agreed, next_record, record, retry
from tests.waiting import until
from webhookd.egress import handshake
from webhookd.egress.sender import Sender
from webhookd.egress.tls import tls_context
from webhookd.exchange import NoResponse, Response

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with Sender(OPEN, "webhookd/test") as sender:
        yield sender


@pytest.fixture
def certificate() -> tuple[str, str]:
    """Of a receiver that nobody trusts yet, and its key: another one each time, so that no test pays for another."""
    return self_signed()


MODULUS = b"\x02\x82\x04\xe3\x00" + b"\xff" * 1250  # no prime, but who knows that?
DH = base64.encodebytes(b"\x30\x82\x04\xea" + MODULUS + b"\x02\x01\x02").decode()
DH_10000 = f"-----BEGIN DH PARAMETERS-----\n{DH}-----END DH PARAMETERS-----\n"


async def test_a_group_of_any_size_is_not_offered_in_tls_1_2(sender: Sender, tmp_path: Path) -> None:
    certificate, key = of_rsa()
    context = serving(certificate, key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("DHE-RSA-AES256-GCM-SHA384")
    (tmp_path / "dh.pem").write_text(DH_10000)
    context.load_dh_params(str(tmp_path / "dh.pem"))
    async with receiver(answering(OK), context) as there:
        began = time.thread_time()
        refused = await sender.send(post(there.https, 60, tls=tls_context(certificate)))
        assert refused in (
            NoResponse("tls_error"),
            NoResponse("connection_reset"),
        )  # as soon as it hears what is offered
        assert time.thread_time() - began < 0.5, "a handshake would cost a second, and another one there"
        context.set_ciphers("ECDHE-RSA-AES256-SHA384")
        assert await sender.send(post(there.https, 60, tls=tls_context(certificate))) == Response(200)


def asked_to_begin_again(group: int, seen: list[bytes], *, pieces: int = 1, first: bytes = b"") -> Behaviour:
    """Want another group, and take down what follows. The message comes in so many records, `first` before them."""

    async def behaviour(peer: Peer) -> None:
        message = retry(await peer.reader.read(4096), group)
        at = len(message) // pieces
        parts = (message[:at], message[at:]) if pieces > 1 else (message,)
        for part in (first, *(record(HANDSHAKE, part) for part in parts)):
            for byte in part:
                await peer.say(bytes([byte]))
        seen.append(await peer.reader.read(4096))

    return behaviour


@pytest.mark.parametrize("first", [b"", record(ALERT, UNRECOGNIZED_NAME)], ids=["at once", "behind a warning"])
@pytest.mark.parametrize(("pieces", "group"), [(1, FFDHE8192), (1, 0x100), (2, FFDHE8192), (2, P256)])
async def test_a_server_that_asks_for_a_finite_field_gets_none_of_it(
    sender: Sender, first: bytes, pieces: int, group: int
) -> None:
    """The message in two records could hide the group, and no server sends it so."""
    seen: list[bytes] = []
    async with receiver(asked_to_begin_again(group, seen, pieces=pieces, first=first)) as there:
        assert await sender.send(post(there.https, 60)) == NoResponse("tls_error")
        await until(lambda: bool(seen), "the connection to end")
    assert len(seen[0]) < 200, "no second hello, with a number of a kilobyte"


async def test_a_server_may_ask_for_a_curve(sender: Sender, certificate: tuple[str, str]) -> None:
    context = serving(*certificate)
    context.set_ecdh_curve("secp384r1")
    async with receiver(answering(OK), context) as there:
        assert await sender.send(post(there.https, 60, tls=tls_context(certificate[0]))) == Response(200)


REFUSALS = 20  # there are several orders in which a refusal, the end and what we write meet


@pytest.mark.parametrize("content", [b"{}", b"x" * 100_000], ids=["small", "large"])
async def test_who_wants_a_certificate_and_gets_none_ends_it_with_an_error_of_tls(
    sender: Sender, certificate: tuple[str, str], content: bytes
) -> None:
    """In TLS 1.3 that is said when the handshake is whole for us, and the request on its way. asyncio says nothing."""
    context = serving(*certificate, clients=self_signed("client")[0])
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            for _ in range(REFUSALS):
                peer, _ = server.accept()
                with context.wrap_socket(peer, server_side=True, do_handshake_on_connect=False) as secured:
                    with suppress(ssl.SSLError):
                        secured.do_handshake()
                    secured.shutdown(socket.SHUT_WR)
                    with suppress(ConnectionError):  # to the end, or the kernel would reset it, and that comes first
                        while socket.socket.recv(secured, 65536):
                            pass

        server.settimeout(60)
        refusing = asyncio.create_task(asyncio.to_thread(refuse))
        url, tls = f"https://127.0.0.1:{server.getsockname()[1]}/", tls_context(certificate[0])
        said = [await sender.send(post(url, 60, content, tls=tls)) for _ in range(REFUSALS)]
        await refusing
    assert set(said) == {NoResponse("tls_error")}


async def test_a_chain_has_a_bound(sender: Sender) -> None:
    for count, expected in ((20, Response(200)), (120, NoResponse("tls_error"))):
        certificates, key = chained(count)
        authority = certificates[certificates.rindex("-----BEGIN") :]
        async with receiver(answering(OK), serving(certificates, key)) as there:
            assert await sender.send(post(there.https, 60, tls=tls_context(authority))) == expected


@pytest.mark.parametrize("at_once", [1, 5, 3000], ids=["one", "five", "many"])
async def test_key_updates_without_end_end_the_connection(
    sender: Sender, certificate: tuple[str, str], tmp_path: Path, at_once: int
) -> None:
    """Each costs 26 µs, 30 ms a time the loop reads; between them comes an answer, byte by byte."""
    context = serving(*certificate)

    async def behaviour(peer: Peer) -> None:
        spoken = await agreed(peer.reader, peer.writer, context, tmp_path / "keys")
        await peer.say(spoken.says(b"HTTP/1.1 200 OK\r\nX: ", 23))
        for _ in range(10_000 // at_once):
            await peer.say(b"".join(spoken.key_update() for _ in range(at_once)) + spoken.says(b"x", 23))

    async with receiver(behaviour) as there:
        answer = await sender.send(post(there.https, 60, tls=tls_context(certificate[0])))
        assert answer == NoResponse("tls_error")


async def test_a_few_key_updates_are_none_of_our_business(
    sender: Sender, certificate: tuple[str, str], tmp_path: Path
) -> None:
    context = serving(*certificate)

    async def behaviour(peer: Peer) -> None:
        spoken = await agreed(peer.reader, peer.writer, context, tmp_path / "keys")
        while True:
            while len(await next_record(peer.reader)) < 100:  # an answer to an update; a request is longer
                pass
            await peer.say(b"".join(spoken.key_update() for _ in range(9)))
            await peer.say(spoken.says(OK, 23))

    async with receiver(behaviour) as there:
        for _ in range(3):
            assert await sender.send(post(there.https, 60, tls=tls_context(certificate[0]))) == Response(200)
        assert len(there.peers) == 1


async def test_a_host_whose_handshake_cost_much_has_to_rest(
    sender: Sender, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(handshake, "time", clock)
    tls_context.cache_clear()
    async with receiver(answering(OK), serving(*certificate)) as there:
        request = post(there.https, 60, tls=tls_context(certificate[0]))
        assert await sender.send(request) == Response(200)
        for number in range(2):
            clock.cost = 0.04  # of each of two steps
            async with Sender(OPEN, "webhookd/test") as another:
                assert await another.send(request) == NoResponse("tls_error"), number
                clock.cost = 0.0
                assert await another.send(request) == NoResponse("tls_error"), "it rests"
                assert await sender.send(request) == Response(200), "on a connection that is there already"
                clock.now += 300
                assert await another.send(request) == Response(200)
    tls_context.cache_clear()


MANY = 30


async def test_many_hosts_at_one_time_hold_up_no_loop(sender: Sender) -> None:
    """Each costs 40 ms or so, with a chain that leads nowhere: together they would be a second, in one turn."""
    certificates, key = chained(90)
    context, together = serving(certificates, key), asyncio.Barrier(MANY)

    async def behaviour(peer: Peer) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = context.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(await next_record(peer.reader))
        with suppress(ssl.SSLWantReadError):
            ours.do_handshake()
        await together.wait()
        await peer.say(outgoing.read())
        await peer.gone()

    sock = socket.socket()
    sock.bind(("0.0.0.0", 0))  # noqa: S104 - all of loopback is as many hosts
    async with receiver(behaviour, bound=sock) as there:
        longest, over = 0.0, asyncio.Event()

        async def watch() -> None:
            nonlocal longest
            while not over.is_set():
                began = time.thread_time()
                await asyncio.sleep(0)
                longest = max(longest, time.thread_time() - began)
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            urls = [f"https://127.0.0.{number + 1}:{there.port}/" for number in range(MANY)]
            sent = [group.create_task(sender.send(post(url, 60))) for url in urls]
            await asyncio.wait(sent)
            over.set()
    assert {task.result() for task in sent} == {NoResponse("tls_certificate")}
    assert longest < 0.2, "the receiver's own side of it is computed here, too"


async def test_what_comes_while_a_thread_computes_is_bounded(certificate: tuple[str, str]) -> None:
    works: list[tuple[float, Callable[[], None], Callable[[], None]]] = []
    woken: list[bool] = []
    offload = handshake.Offload(lambda rank, work, over: works.append((rank, work, over)))
    offload.wake = lambda: woken.append(True)
    token = handshake.OFFLOAD.set(offload)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = tls_context(certificate[0]).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    handshake.OFFLOAD.reset(token)
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = serving(*certificate).wrap_bio(heard, said, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        ours.do_handshake()
    assert not works, "our own first message is cheap"
    heard.write(outgoing.read())
    with pytest.raises(ssl.SSLWantReadError):
        theirs.do_handshake()
    incoming.write(said.read())
    with pytest.raises(ssl.SSLWantReadError):
        ours.do_handshake()
    ((rank, work, over),) = works
    assert rank == 0.0
    incoming.write(b"x" * 1000)
    with pytest.raises(ssl.SSLWantReadError):
        ours.do_handshake()
    assert incoming.pending == 1000, "it is left alone meanwhile"
    incoming.write(b"x" * handshake.MOST_BYTES)
    with pytest.raises(ssl.SSLError, match="too much"):
        ours.do_handshake()
    incoming.read()
    work()
    assert not woken
    over()
    assert woken
    ours.do_handshake()
    assert ours.version() == "TLSv1.3"


async def test_who_has_gone_is_not_computed_for(certificate: tuple[str, str]) -> None:
    offload = handshake.Offload(lambda rank, work, over: works.append(work))
    works: list[Callable[[], None]] = []
    offload.wake = lambda: None
    token = handshake.OFFLOAD.set(offload)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = tls_context(certificate[0]).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    assert isinstance(ours, handshake.Bounded)
    handshake.OFFLOAD.reset(token)
    with pytest.raises(ssl.SSLWantReadError):
        ours.do_handshake()
    incoming.write(record(HANDSHAKE, b"\x02\x00\x00\x26" + b"\x03\x03" + bytes(36)))
    with pytest.raises(ssl.SSLWantReadError):
        ours.do_handshake()
    offload.wake = None
    there = ours._inner.pending
    works[0]()
    assert ours._inner.pending == there > 0


class Clock:
    """A clock that goes when it is told to, with which each step costs CPU time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.cost = 0.0
        self._spent = 0.0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        self._spent += self.cost
        return self._spent
