"""The sender against receivers that are hostile, broken or merely odd, each a few lines of raw bytes on loopback."""

import asyncio
import datetime
import errno
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import self_signed, serving
from tests.sockets import (
    FAILED,
    LOOPBACK,
    OK,
    OPEN,
    Peer,
    answering,
    post,
    quiet_port,
    receiver,
    resolving_to,
)
from tests.stopwatch import Stopwatch, within
from tests.waiting import until
from webhookd.egress.connector import Connector, protocol_of
from webhookd.egress.sender import CODES, Sender
from webhookd.egress.tls import tls_context
from webhookd.exchange import NoResponse, Response
from webhookd.model import Egress

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with Sender(OPEN, "webhookd/test") as sender:
        yield sender


# What is sent


async def test_the_request_on_the_wire(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        there.requests.append(await peer.request())
        await peer.say(OK)

    async with receiver(behaviour) as there:
        url = there.url + "/a%2Fb?sig=a%2Fb&x=%7e"
        assert await sender.send(post(url, content=b"\x00body", headers={"webhook-id": "evt_1"})) == Response(200)
    line, *headers = there.requests[0].partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert line == "POST /hook/a%2Fb?sig=a%2Fb&x=%7e HTTP/1.1"
    assert sorted(header.lower() for header in headers) == [
        "accept-encoding: identity",
        "accept: */*",
        "content-length: 5",
        "content-type: application/json",
        f"host: 127.0.0.1:{there.port}",
        "user-agent: webhookd/test",
        "webhook-id: evt_1",
    ]
    assert there.requests[0].endswith(b"\r\n\r\n\x00body")


async def test_a_custom_header_replaces_the_default_one(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        there.requests.append(await peer.request())
        await peer.say(OK)

    async with receiver(behaviour) as there:
        await sender.send(post(there.url, headers={"User-Agent": "Mine/1"}))
    assert there.requests[0].lower().count(b"user-agent") == 1
    assert b"Mine/1" in there.requests[0]


async def test_a_control_character_in_a_header_never_reaches_the_wire(sender: Sender) -> None:
    async with receiver(answering(OK)) as there:
        assert await sender.send(post(there.url, headers={"x": "a\r\ny: b"})) == NoResponse("internal")


async def test_a_large_body_arrives_whole(sender: Sender) -> None:
    content = bytes(range(256)) * 4096

    async def behaviour(peer: Peer) -> None:
        while True:
            there.requests.append(await peer.request())
            await peer.say(OK)

    async with receiver(behaviour) as there:
        for _ in range(2):
            assert await sender.send(post(there.url, content=content)) == Response(200)
        assert [request.partition(b"\r\n\r\n")[2] == content for request in there.requests] == [True, True]
        assert len(there.peers) == 1


async def test_a_large_body_to_a_receiver_that_does_not_read_ends_at_the_deadline(sender: Sender) -> None:
    read = 0

    async def behaviour(peer: Peer) -> None:
        nonlocal read
        await over.wait()
        with suppress(ConnectionError):
            while data := await peer.reader.read(2**20):
                read += len(data)
        left.set()

    over, left = asyncio.Event(), asyncio.Event()
    async with receiver(behaviour) as there:
        before = len(os.listdir("/proc/self/fd"))
        watch = Stopwatch()
        assert await sender.send(post(there.url, 0.3, b"x" * 16 * 2**20)) == NoResponse("timeout")
        assert watch.seconds < 0.6
        await asyncio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) == before + 1  # the receiver's end; ours does not wait to be read
        over.set()
        await within(2, left.wait())
        assert read < 16 * 2**20  # what was not sent by then never is


async def test_a_medium_body_that_was_not_sent_by_the_deadline_is_dropped(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.gone()
        left.set()

    left = asyncio.Event()
    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url, 0.2, b"x" * 32 * 1024)) == NoResponse("timeout")
        await within(2, left.wait())


async def test_an_answer_before_the_body_was_read(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(30)

    async with receiver(behaviour) as there:
        for _ in range(2):
            assert await sender.send(post(there.url, content=b"x" * 16 * 2**20)) == Response(413)
        assert len(there.peers) == 2


# No answer


async def test_no_answer(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.gone()

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url, 0.2)) == NoResponse("timeout")


async def test_a_head_byte_by_byte(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        for at in range(len(OK)):
            await peer.say(OK[at : at + 1])
            await asyncio.sleep(0.05)

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url, 0.3)) == NoResponse("timeout")


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_the_deadline_is_not_rounded_up(sender: Sender) -> None:
    """aiohttp's own timers turn 5.2 s into 6 s."""

    async def behaviour(peer: Peer) -> None:
        await peer.gone()

    async with receiver(behaviour) as there:
        began, watch = time.monotonic(), Stopwatch()
        assert await sender.send(post(there.url, 5.2)) == NoResponse("timeout")
        assert time.monotonic() - began > 5.15
        assert watch.seconds < 5.6


async def test_nobody_listens(sender: Sender) -> None:
    url = f"http://127.0.0.1:{quiet_port()}/"
    assert await sender.send(post(url)) == NoResponse("connection_refused")


async def test_nobody_accepts(sender: Sender) -> None:
    full = socket.socket()
    waiting = []
    with full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        try:
            for _ in range(4):
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex(full.getsockname())
                waiting.append(client)
            await asyncio.sleep(0.05)
            url = f"http://127.0.0.1:{full.getsockname()[1]}/"
            assert await sender.send(post(url, 0.3)) == NoResponse("connect_timeout")
        finally:
            for client in waiting:
                client.close()


@pytest.mark.parametrize("heard", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_reset_before_the_head_is_whole(sender: Sender, heard: bytes) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(heard)
        await asyncio.sleep(0.05)
        peer.reset()

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url)) == NoResponse("connection_reset")
        assert len(there.peers) == 1


async def test_closed_without_an_answer(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url)) == NoResponse("connection_reset")
        assert len(there.peers) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", id="ssh"),
        pytest.param(b"\x00\xff\xfe\r\n\r\n", id="binary"),
        pytest.param(b"HTTP/1.1 2000 OK\r\n\r\n", id="status"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk", id="two lengths"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="length, chunked"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1001 + b"\r\n", id="1,001 headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n", id="NUL in a header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: y\r\nno colon\r\n\r\nbody", id="no colon"),
    ],
)
async def test_an_answer_that_is_not_http(sender: Sender, answer: bytes) -> None:
    async with receiver(answering(answer)) as there:
        assert await sender.send(post(there.url, 1.0)) == NoResponse("malformed_response")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"200 OK\r\nX: " + b"x" * 9000, id="9 kB header"),
        pytest.param(b"200 OK\r\nX: " + b"x" * 65000, id="65 kB header"),
        pytest.param(b"200 OK\r\n" + b"x" * 9000 + b": x", id="9 kB name"),
        pytest.param(b"200 " + b"x" * 9000, id="9 kB reason"),
        pytest.param(b"200 OK" + b"\r\nX: y" * 140, id="140 headers"),
        pytest.param(b"200 OK" + (b"\r\nX: " + b"y" * 60) * 990, id="990 headers in 63 kB"),
    ],
)
async def test_a_head_of_64_kib_is_an_answer(sender: Sender, head: bytes) -> None:
    async with receiver(answering(b"HTTP/1.1 " + head + b"\r\nContent-Length: 2\r\n\r\nok")) as there:
        for _ in range(2):
            assert await sender.send(post(there.url)) == Response(200)
        assert len(there.peers) == 1


async def test_a_few_informational_answers(sender: Sender) -> None:
    async with receiver(answering(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 8 + OK, FAILED)) as there:
        assert await sender.send(post(there.url)) == Response(200)
        assert (await sender.send(post(there.url))) == Response(500, b"bad")


async def test_endless_informational_answers_do_not_stall_the_loop(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        for _ in range(400):
            await peer.say(b"HTTP/1.1 100 Continue\r\n\r\n" * 4000)
            there.requests.append(b"")

    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            watch = Stopwatch()
            await asyncio.sleep(0.001)
            longest = max(longest, watch.seconds)

    async with receiver(behaviour) as there:
        watching = asyncio.create_task(watch())
        assert await sender.send(post(there.url)) == NoResponse("malformed_response")
        watching.cancel()
        assert len(there.requests) < 100
        assert longest < 0.25  # generous: the receiver shares this loop


# Answers


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_success_in_every_form_keeps_the_connection(sender: Sender, status: int) -> None:
    answer = b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status
    async with receiver(answering(answer)) as there:
        for _ in range(3):
            assert await sender.send(post(there.url)) == Response(status)
        assert len(there.peers) == 1


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"ab", b"cd"], id="length"),
        pytest.param([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nab\r\n0\r\n\r\n"], id="chunked"),
    ],
)
async def test_a_body_that_follows_the_head_keeps_the_connection(sender: Sender, parts: list[bytes]) -> None:
    async def behaviour(peer: Peer) -> None:
        while True:
            await peer.request()
            for part in parts:
                await peer.say(part)
                await asyncio.sleep(0.02)

    async with receiver(behaviour) as there:
        for _ in range(3):
            assert await sender.send(post(there.url)) == Response(200)
        assert len(there.peers) == 1


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        pytest.param(b"Content-Length: 1000000000\r\n\r\n", b"x" * 65536, id="length, fast"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n", b"ffff\r\n" + b"x" * 65535 + b"\r\n", id="chunked, fast"),
        pytest.param(b"\r\n", b"x" * 65536, id="until close, fast"),
        pytest.param(b"Content-Length: 1000\r\n\r\n", b"x", id="length, slow"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", id="chunked, slow"),
        pytest.param(b"\r\n", b"x", id="until close, slow"),
    ],
)
async def test_the_status_line_decides_whatever_becomes_of_the_body(sender: Sender, head: bytes, piece: bytes) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n" + head)
        try:
            for _ in range(600):
                await peer.say(piece)
                await asyncio.sleep(0.01)
        finally:
            left.set()

    left = asyncio.Event()
    async with receiver(behaviour) as there:
        watch = Stopwatch()
        assert await sender.send(post(there.url, 0.9)) == Response(200)
        assert watch.seconds < (0.5 if len(piece) > 1000 else 1.2)
        await within(1, left.wait())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"Content-Length: 100\r\n\r\nhalf", id="cut length"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n64\r\nhalf", id="cut chunk"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", id="bad chunk"),
        pytest.param(b"Content-Length: 2\r\n\r\nok, and some more", id="longer than it says"),
        pytest.param(b"\r\nall", id="until close"),
        pytest.param(b"Connection: close\r\nContent-Length: 2\r\n\r\nok", id="close"),
        pytest.param(b"Content-Encoding: br\r\nContent-Length: 4\r\n\r\nnope", id="br"),
        pytest.param(b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00", id="gzip"),
        pytest.param(b"Content-Type: \xff\xfe; charset=nope\r\nContent-Length: 2\r\n\r\n\xff\xfe", id="charset"),
    ],
)
async def test_a_success_with_a_broken_body(sender: Sender, answer: bytes) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n" + answer)

    async with receiver(behaviour) as there:
        for _ in range(3):
            assert await sender.send(post(there.url)) == Response(200)


async def test_the_first_kibibyte_of_a_failure(sender: Sender) -> None:
    body = bytes(range(256)) * 40
    async with receiver(answering(b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)) as there:
        for _ in range(3):
            assert await sender.send(post(there.url)) == Response(500, body[:1024])
        assert len(there.peers) == 1


async def test_the_slow_body_of_a_failure_is_kept_as_far_as_it_came(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\npart")
        await peer.gone()

    async with receiver(behaviour) as there:
        watch = Stopwatch()
        assert await sender.send(post(there.url, 0.9)) == Response(500, b"part")
        assert watch.seconds < 1.2


@pytest.mark.parametrize("pause", [0.0, 0.02])
async def test_a_failure_with_a_broken_body_is_kept_as_far_as_it_came(sender: Sender, pause: float) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")
        await asyncio.sleep(pause)
        await peer.say(b"nonsense\r\n")
        await peer.gone()

    async with receiver(behaviour) as there:
        for number in range(1, 4):
            watch = Stopwatch()
            assert await sender.send(post(there.url)) == Response(500, b"part")
            assert watch.seconds < 0.5
            assert len(there.peers) == number


async def test_a_compressed_failure_is_not_unpacked(sender: Sender) -> None:
    answer = b"HTTP/1.1 500 No\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00"
    async with receiver(answering(answer)) as there:
        assert await sender.send(post(there.url)) == Response(500, b"\x1f\x8b\x08\x00")


@pytest.mark.parametrize("reason", [b"", b"\xe9\xff", b"a\tb"])
async def test_any_reason_will_do(sender: Sender, reason: bytes) -> None:
    async with receiver(answering(b"HTTP/1.1 503 " + reason + b"\r\nContent-Length: 0\r\n\r\n")) as there:
        assert await sender.send(post(there.url)) == Response(503)


async def test_a_nul_in_the_reason_is_malformed_or_ignored(sender: Sender) -> None:
    async with receiver(answering(b"HTTP/1.1 503 a\x00b\r\nContent-Length: 0\r\n\r\n")) as there:
        assert await sender.send(post(there.url, 1.0)) in (Response(503), NoResponse("malformed_response"))


@pytest.mark.parametrize(
    ("status", "header", "kept"),
    [
        (503, b"120", "120"),
        (429, b"Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT"),
        (500, b"120", None),
        (200, b"120", None),
        (503, b"1" * 65, "1" * 64),
        (503, b"\xff\xfe", None),
        (503, b"", None),
    ],
)
async def test_retry_after(sender: Sender, status: int, header: bytes, kept: str | None) -> None:
    answer = b"HTTP/1.1 %d X\r\nRetry-After: %b\r\nContent-Length: 0\r\n\r\n" % (status, header)
    async with receiver(answering(answer)) as there:
        assert await sender.send(post(there.url)) == Response(status, b"", kept)


async def test_a_redirect_is_an_answer(sender: Sender) -> None:
    async with receiver(answering(OK)) as target:
        answer = b"HTTP/1.1 307 Away\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % target.url.encode()
        async with receiver(answering(answer)) as there:
            assert await sender.send(post(there.url)) == Response(307)
        assert target.peers == []


async def test_cookies_are_not_sent_back(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        while True:
            there.requests.append(await peer.request())
            await peer.say(b"HTTP/1.1 200 OK\r\nSet-Cookie: tenant=1; Path=/\r\nContent-Length: 0\r\n\r\n")

    async with receiver(behaviour) as there:
        for _ in range(2):
            assert await sender.send(post(there.url)) == Response(200)
    assert len(there.requests) == 2
    assert b"cookie" not in there.requests[1].lower()


async def test_switching_protocols_is_a_failure(sender: Sender) -> None:
    async with receiver(answering(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello")) as there:
        for _ in range(2):
            said = await sender.send(post(there.url, 0.5))
            assert isinstance(said, Response)
            assert said.status == 101
        assert len(there.peers) == 2


# Connections


@pytest.mark.parametrize("forged", [OK, OK[:20], b"\r\n"], ids=["whole", "part", "empty line"])
@pytest.mark.parametrize("pause", [0.0, 0.02], ids=["with the answer", "while idle"])
async def test_a_forged_answer_is_never_taken_for_the_next_one(sender: Sender, forged: bytes, pause: float) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        if peer.number > 1:
            await peer.say(FAILED)
        elif pause:
            await peer.say(OK)
            await asyncio.sleep(pause)
            await peer.say(forged)
        else:
            await peer.say(OK + forged)
        await peer.gone()

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url)) == Response(200)
        await asyncio.sleep(0.05)
        said = await sender.send(post(there.url, 0.3))
        # Part of an answer that came along with the last one cannot be seen in time: the answer is lost, not forged.
        assert said == Response(500, b"bad") or (pause == 0.0 and forged != OK and isinstance(said, NoResponse))


async def test_a_forged_answer_that_is_still_in_the_kernel_is_seen(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK if peer.number == 1 else FAILED)
        await peer.gone()

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url)) == Response(200)
        there.peers[0].writer.write(OK)  # and our loop does not run before the next request
        assert await sender.send(post(there.url)) == Response(500, b"bad")


async def test_a_receiver_that_closes_after_each_answer_without_saying_so(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)

    async with receiver(behaviour) as there:
        said = [await sender.send(post(there.url)) for _ in range(200)]
        assert said == [Response(200)] * 200


async def test_a_reused_connection_that_dies_without_a_byte_is_replaced_once(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()  # and close, or reset: the next request is lost with the connection
        if peer.number % 2:
            peer.reset()

    async with receiver(behaviour) as there:
        said = [await sender.send(post(there.url)) for _ in range(40)]
        assert said == [Response(200)] * 40
        assert len(there.peers) == 40


async def test_the_replacement_is_not_another_dead_connection(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        if peer.number == 3:
            together.set()
        await within(2, together.wait())
        await peer.say(OK)
        await peer.request()

    together = asyncio.Event()
    async with receiver(behaviour) as there:
        said = await asyncio.gather(*(sender.send(post(there.url)) for _ in range(3)))
        assert said == [Response(200)] * 3
        assert await sender.send(post(there.url)) == Response(200)
        assert len(there.peers) == 4


async def test_a_greeting_that_comes_before_the_request_is_malformed(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ = Connector.open

    async def slowly(self: Connector, *arguments: Any, **keys: Any) -> Any:
        connection = await open_(self, *arguments, **keys)
        await until(lambda: protocol_of(connection).heard, "the greeting is read before the request is written")
        return connection

    async def behaviour(peer: Peer) -> None:
        await peer.say(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
        await peer.gone()

    monkeypatch.setattr(Connector, "open", slowly)
    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url)) == NoResponse("malformed_response")


async def test_the_receive_buffer_is_small(sender: Sender) -> None:
    with sender._connector._socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 80))) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 32 * 1024  # Linux doubles it


async def test_a_reused_connection_that_dies_after_a_byte_is_not_replaced(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        await peer.say(b"H")
        await asyncio.sleep(0.02)

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url)) == Response(200)
        assert await sender.send(post(there.url)) == NoResponse("connection_reset")
        assert len(there.peers) == 1


async def test_the_replacement_has_the_same_deadline(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            await peer.say(OK)
            await peer.request()
            await asyncio.sleep(0.2)
        else:
            await peer.gone()

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url)) == Response(200)
        watch = Stopwatch()
        assert await sender.send(post(there.url, 0.4)) == NoResponse("timeout")
        assert watch.seconds < 0.55
        assert len(there.peers) == 2


@pytest.mark.parametrize("before", [1.0, 30.0], ids=["a shorter one", "a longer one"])
async def test_a_reused_connection_has_the_deadline_of_its_own_request(sender: Sender, before: float) -> None:
    """Also when the timer of the request before has still to ring, or would ring too late."""

    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        await asyncio.sleep(1.1)
        await peer.say(FAILED)
        await peer.request()
        await peer.gone()

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url, before)) == Response(200)
        assert await sender.send(post(there.url, 5.0)) == Response(500, b"bad")
        began = time.monotonic()
        assert await sender.send(post(there.url, 0.3)) == NoResponse("timeout")
        assert time.monotonic() - began < 2.0
        assert len(there.peers) == 1


async def test_a_deadline_holds_that_is_later_than_the_timer_of_the_request_before(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.gone()

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url, 1.0)) == Response(200)
        assert await asyncio.wait_for(sender.send(post(there.url, 1.5)), 10) == NoResponse("timeout")
        assert len(there.peers) == 1


async def test_a_deadline_that_passes_after_the_answer_harms_no_idle_connection(sender: Sender) -> None:
    async with receiver(answering(OK)) as there:
        assert await sender.send(post(there.url, 1.0)) == Response(200)
        await asyncio.sleep(1.1)
        assert await sender.send(post(there.url, 1.0)) == Response(200)
        assert len(there.peers) == 1


async def test_a_connection_whose_receiver_answers_without_reading_is_not_used_again(sender: Sender) -> None:
    """What was written and not sent would grow with each request."""
    async with receiver(answering(OK)) as there:
        assert await sender.send(post(there.url)) == Response(200)
        connector, key = sender._connector, next(iter(sender._connector._idle))
        connection = connector.take(key)
        assert connection is not None
        protocol_of(connection).pause_writing()  # as a transport does whose buffer is full
        connector.keep(key, connection)
        assert connector.take(key) is None
        assert await sender.send(post(there.url)) == Response(200)
        assert len(there.peers) == 2


async def test_an_idle_connection_is_closed_in_time(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhookd.egress.connector._IDLE_SECONDS", 0.1)
    left = asyncio.Event()

    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.gone()
        left.set()

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.url)) == Response(200)
        await within(5, left.wait())
        await until(lambda: sender._connector.is_idle, "nothing is open")


async def test_a_connection_that_was_idle_for_too_long_is_not_used_again(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be closing, or a firewall between may have forgotten it."""
    async with receiver(answering(OK)) as there:
        assert await sender.send(post(there.url)) == Response(200)
        monkeypatch.setattr("webhookd.egress.connector._IDLE_SECONDS", 0.0)
        assert await sender.send(post(there.url)) == Response(200)
        assert len(there.peers) == 2


async def test_cancelling_drops_the_connection(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            arrived.set()
            await peer.gone()
            left.set()
        await peer.say(FAILED)

    arrived, left = asyncio.Event(), asyncio.Event()
    async with receiver(behaviour) as there:
        sending = asyncio.create_task(sender.send(post(there.url)))
        await within(2, arrived.wait())
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await within(2, left.wait())
        assert await sender.send(post(there.url)) == Response(500, b"bad")
        assert len(there.peers) == 2


# Addresses


async def test_loopback_is_denied_by_default() -> None:
    async with receiver(answering(OK)) as there, Sender(Egress(allow_http=True), "x") as sender:
        for host in ("127.0.0.1", "localhost", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]", "[fe80::1%25lo]"):
            url = f"http://{host}:{there.port}/"
            assert await sender.send(post(url)) == NoResponse("egress_denied"), host
        assert there.peers == []


async def test_http_is_refused_where_it_is_not_allowed() -> None:
    async with (
        receiver(answering(OK)) as there,
        Sender(Egress(allow_networks=LOOPBACK), "x") as sender,
    ):
        assert await sender.send(post(there.url)) == NoResponse("invalid_url")
        assert there.peers == []


@pytest.mark.parametrize("url", ["", "ftp://x/", "http://u:p@127.0.0.1/", "http://127.0.0.1:0/", "http://[::1/"])
async def test_a_url_that_should_never_have_been_written(sender: Sender, url: str) -> None:
    assert await sender.send(post(url)) == NoResponse("invalid_url")


async def test_one_denied_address_refuses_the_whole_name(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver(answering(OK)) as there:
        monkeypatch.setattr(socket, "getaddrinfo", resolving_to("127.0.0.1", "fd00::1"))
        url = f"http://name.invalid:{there.port}/"
        assert await sender.send(post(url)) == NoResponse("egress_denied")
        assert there.peers == []
        monkeypatch.setattr(socket, "getaddrinfo", resolving_to("127.0.0.1"))
        assert await sender.send(post(url)) == Response(200)


async def test_only_four_addresses_of_a_name_are_dialled(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: set[str] = set()
    real = Connector._socket

    def note(self: Connector, address: Any) -> socket.socket:
        dialled.add(address[4][0])
        return real(self, address)

    port = quiet_port()
    monkeypatch.setattr(Connector, "_socket", note)
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to(*(f"127.0.0.{n}" for n in range(1, 51))))
    async with Sender(OPEN, "x") as another:
        assert await another.send(post(f"http://name.invalid:{port}/")) == NoResponse("connection_refused")
    assert len(dialled) == 4


async def test_a_name_that_does_not_exist(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert await sender.send(post("http://name.invalid/")) == NoResponse("dns_error")


async def test_a_resolver_that_hangs(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhookd.egress.resolver.SECONDS", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(0.5))
    assert await sender.send(post("http://name.invalid/")) == NoResponse("dns_timeout")


async def test_out_of_descriptors_is_our_own_fault(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with receiver(answering(OK)) as there:
        monkeypatch.setattr("webhookd.egress.connector.socket.socket", no_socket)
        assert await sender.send(post(there.url)) == NoResponse("internal", ours=True)
        monkeypatch.undo()
        assert await sender.send(post(there.url)) == Response(200)


async def test_what_is_no_longer_allowed_is_not_connected_to_any_longer(sender: Sender) -> None:
    """An idle connection is closed at once, one in use after its answer."""
    go_on = asyncio.Event()
    closed: list[int] = []

    async def behaviour(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            await go_on.wait()
        await peer.say(OK)
        await peer.gone()
        closed.append(peer.number)

    async with receiver(behaviour) as there, asyncio.TaskGroup() as group:
        busy = group.create_task(sender.send(post(there.url)))
        await until(lambda: len(there.peers) == 1, "a connection in use")
        assert await sender.send(post(there.url)) == Response(200)
        sender.configure(Egress(allow_http=True))
        await until(lambda: closed == [2], "the idle one to be closed")
        assert await sender.send(post(there.url)) == NoResponse("egress_denied")
        go_on.set()
        assert await busy == Response(200)
        await until(lambda: closed == [2, 1], "the other one to be closed")


# TLS


@pytest.fixture(scope="module")
def certificate() -> tuple[str, str]:
    """Of a receiver that nobody trusts yet, and its key."""
    return self_signed()


async def test_an_untrusted_certificate(sender: Sender, certificate: tuple[str, str]) -> None:
    async with receiver(answering(OK), serving(*certificate)) as there:
        assert await sender.send(post(there.https)) == NoResponse("tls_certificate")


@pytest.mark.parametrize(
    "wrong",
    [self_signed(address="127.0.0.2"), self_signed(until=datetime.timedelta(hours=-1))],
    ids=["another name", "expired"],
)
async def test_a_certificate_that_is_wrong_though_its_authority_is_trusted(
    sender: Sender, wrong: tuple[str, str]
) -> None:
    async with receiver(answering(OK), serving(*wrong)) as there:
        assert await sender.send(post(there.https, tls=tls_context(wrong[0]))) == NoResponse("tls_certificate")


async def test_an_authority_of_ones_own_is_trusted_by_its_endpoint_alone(
    sender: Sender, certificate: tuple[str, str]
) -> None:
    async with receiver(answering(OK), serving(*certificate)) as there:
        for _ in range(3):
            assert await sender.send(post(there.https, tls=tls_context(certificate[0]))) == Response(200)
            assert await sender.send(post(there.https)) == NoResponse("tls_certificate")  # though one is connected
        assert len(there.peers) == 1


async def test_a_client_certificate_is_shown_by_its_endpoint_alone(
    sender: Sender, certificate: tuple[str, str]
) -> None:
    client = self_signed("client")
    async with receiver(answering(OK), serving(*certificate, clients=client[0])) as there:
        trusting = tls_context(certificate[0])
        for _ in range(2):
            assert await sender.send(post(there.https, tls=tls_context(certificate[0], *client))) == Response(200)
            refused = await sender.send(post(there.https, tls=trusting))
            assert refused in (NoResponse("tls_error"), NoResponse("connection_reset"))
        assert len(there.peers) == 1


async def test_the_environment_does_not_say_whom_to_trust(
    sender: Sender, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(certificate[0])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    tls_context.cache_clear()
    async with receiver(answering(OK), serving(*certificate)) as there:
        assert await sender.send(post(there.https)) == NoResponse("tls_certificate")
        assert await sender.send(post(there.https, tls=tls_context(certificate[0]))) == Response(200)
    assert not (tmp_path / "keys").exists()
    tls_context.cache_clear()


async def test_no_tls_where_tls_is_expected(sender: Sender) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.reader.read(10)
        await peer.say(b"HTTP/1.1 400 This is not TLS\r\n\r\n")

    async with receiver(behaviour) as there:
        assert await sender.send(post(there.https)) == NoResponse("tls_error")


async def test_the_codes_are_a_closed_list() -> None:
    assert sorted(CODES) == [
        "auth_error",
        "connect_timeout",
        "connection_refused",
        "connection_reset",
        "dns_error",
        "dns_timeout",
        "egress_denied",
        "internal",
        "invalid_url",
        "malformed_response",
        "payload_too_large",
        "proxy_error",
        "timeout",
        "tls_certificate",
        "tls_error",
    ]


LINE = b"x: " + b"y" * 1000 + b"\r\n"


@pytest.mark.parametrize(
    ("lines", "interim", "expected"),
    [
        (60, 0, Response(200)),
        (66, 0, NoResponse("malformed_response")),
        (120, 0, NoResponse("malformed_response")),
        (5, 5, Response(200)),
        (5, 7, NoResponse("malformed_response")),
    ],
)
@pytest.mark.parametrize("rest", [OK[OK.index(b"C") :], b"Content-Length: 9999\r\n\r\n" + b"x" * 9999])
async def test_a_head_has_a_bound_with_all_that_comes_before_it(
    sender: Sender, lines: int, interim: int, expected: Response | NoResponse, rest: bytes
) -> None:
    """Each line is one that may be; together they would be a megabyte, which hundreds of answers would keep."""
    early = b"HTTP/1.1 103 Early Hints\r\n" + LINE * 10 + b"\r\n"

    async def behaviour(peer: Peer) -> None:
        while True:
            await peer.request()
            for _ in range(interim):
                await peer.say(early)
                await asyncio.sleep(0.01)  # several that come at one time may have a read more
            await peer.say(b"HTTP/1.1 200 OK\r\n" + LINE * lines + rest)

    async with receiver(behaviour) as there:
        for _ in range(2):
            assert await sender.send(post(there.url)) == expected
