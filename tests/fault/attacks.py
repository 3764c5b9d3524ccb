"""What the hostile server does, one small behaviour each; ATTACKS has them all by the name of their port.

What a receiver says holds LOOT wherever there is room for it, so that a test finds out where it comes to.
"""

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from email.utils import formatdate

from tests.fault.peer import Peer
from tests.tls13 import FFDHE8192, HANDSHAKE, record, retry

LOOT = b"planted-by-the-receiver"
BANNER = b"SSH-2.0-OpenSSH_9.9p7-planted-banner\r\n"
TEXT = LOOT + b"\x00\xe9\xff\xfe\xed\xa0\x80" + bytes(range(256)) * 16  # NUL, no UTF-8 at all, and more than is kept
GZIP = 16 + zlib.MAX_WBITS  # how zlib is told to write it
PACKED = zlib.compress(LOOT * 1000, 9, GZIP)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FAILED = b"HTTP/1.1 500 Failed\r\nContent-Length: 3\r\n\r\nbad"
MOMENT = 0.03  # seconds, in which the other side has read what was sent, and put back a connection
LARGE = 64 * 1024
AFTER = {
    "seconds": "5",
    "zero": "0",
    "negative": "-1",
    "nan": "NaN",
    "infinite": "1e309",
    "long": "1000000000000",
    "hours": "9999999999",
    "past": "Wed, 21 Oct 2015 07:28:00 GMT",
    "year_9999": "Fri, 31 Dec 9999 23:59:59 GMT",
    "no_date": "Wed, 99 Foo 99999999999999999999 99:99:99 GMT",
}

Behaviour = Callable[[Peer], Awaitable[None]]


def head(status: str, *headers: bytes) -> bytes:
    """The head of an answer."""
    lines = (b"HTTP/1.1 " + status.encode("latin-1"), *headers, b"", b"")
    return b"\r\n".join(lines)


def answering(answer: bytes) -> Behaviour:
    """Give the same answer to every request, and keep the connection."""

    async def behaviour(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(answer)

    return behaviour


def flooding(piece: bytes, start: bytes) -> Behaviour:
    """Answer with what has no end, as fast as it is read."""

    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.flood(piece, start)

    return behaviour


def dripping(piece: bytes, start: bytes = b"") -> Behaviour:
    """Answer with what has no end, byte by byte."""

    async def behaviour(peer: Peer) -> None:
        await peer.request()
        await peer.drip(piece, start)

    return behaviour


def bomb() -> Behaviour:
    """Answer with a megabyte of zeros in a kilobyte, again and again, in one stream that never ends."""
    packer = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    start = packer.compress(b"\0" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(b"\0" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    return flooding(again, head("200 OK", b"Content-Encoding: gzip", b"Content-Length: 1000000000") + start)


# Nothing comes


async def mute(peer: Peer) -> None:
    """Take the request and never answer."""
    await peer.request()
    await peer.gone()


async def reset(peer: Peer) -> None:
    """Take the request and break off."""
    await peer.request()
    peer.reset()


async def broken_off(peer: Peer) -> None:
    """Break off in the middle of a head that began well."""
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\nX-Loot: " + LOOT)
    await asyncio.sleep(MOMENT)
    peer.reset()


async def hung_up(peer: Peer) -> None:
    """Take the request and close."""
    await peer.request()


# TLS is expected


async def tls_stall(peer: Peer) -> None:
    """Take the first message of a handshake and never answer."""
    await peer.gone()


async def tls_reset(peer: Peer) -> None:
    """Take the first message of a handshake and break off."""
    await peer.heard()
    peer.reset()


async def tls_plain(peer: Peer) -> None:
    """Answer a handshake in plain HTTP, as a port does that never knew of TLS."""
    await peer.heard()
    await peer.say(head("400 " + LOOT.decode(), b"Content-Length: 0"))
    await peer.gone()


async def tls_finite_field(peer: Peer) -> None:
    """Want a group of TLS 1.3 that costs 190 ms; a loop that computes it stands still."""
    hello = await peer.heard()
    await peer.say(record(HANDSHAKE, retry(hello, FFDHE8192)))
    await peer.gone()


# Connections that are kept, or not


async def closing(peer: Peer) -> None:
    """Close after each answer without saying so."""
    await peer.request()
    await peer.say(OK)


async def dropping(peer: Peer) -> None:
    """Answer one request, and break off when the connection is used again, each other time with RST."""
    await peer.request()
    await peer.say(OK)
    await peer.request()
    if peer.number % 2:
        peer.reset()


def truth(body: str) -> bytes:
    """The answer that an event asks for by what it says."""
    return FAILED if "fail" in body else OK


async def forged_at_once(peer: Peer) -> None:
    """Send a second answer, a success, along with each."""
    while True:
        await peer.say(truth(await peer.request()) + OK)
        peer.note("forged")


async def forged_later(peer: Peer) -> None:
    """Send a success nobody asked for when the connection has come to rest."""
    while True:
        await peer.say(truth(await peer.request()))
        await asyncio.sleep(MOMENT)
        await peer.say(OK)
        peer.note("forged")


async def cookie(peer: Peer) -> None:
    """Set a cookie with each answer."""
    while True:
        await peer.request()
        await peer.say(head("200 OK", b"Set-Cookie: tenant=1; Path=/", b"Content-Length: 0"))


async def redirect(peer: Peer) -> None:
    """Send whoever comes to another path of this port, where all would be well."""
    while True:
        await peer.request()
        elsewhere = peer.path.encode() + b"/elsewhere"
        moved = head("307 Away", b"Location: " + elsewhere, b"Content-Length: 0")
        await peer.say(OK if peer.path.endswith("/elsewhere") else moved)


# Another protocol


async def ssh(peer: Peer) -> None:
    """Greet whoever connects, as a server of SSH does, and hang up on what it does not understand."""
    await peer.say(BANNER)
    await peer.heard()
    await peer.say(b"Invalid SSH identification string, " + BANNER)


async def ssh_second(peer: Peer) -> None:
    """Let the other side speak first, and greet it then."""
    await peer.heard()
    await peer.say(BANNER)
    await peer.gone()


# Asking for less


def until_a_date(status: int) -> Behaviour:
    """Ask for a pause until a moment, which is six seconds away by our clock, or a little less."""

    async def behaviour(peer: Peer) -> None:
        while True:
            await peer.request()
            date = formatdate(time.time() + 6, usegmt=True).encode()
            await peer.say(head(f"{status} Later", b"Retry-After: " + date, b"Content-Length: 0"))

    return behaviour


def paces() -> Iterator[tuple[str, Behaviour]]:
    """Each way to ask for less, with both answers that may."""
    for status in (429, 503):
        yield f"after_{status}_date", until_a_date(status)
        for name, value in AFTER.items():
            asking = head(f"{status} Later", b"Retry-After: " + value.encode(), b"Content-Length: 0")
            yield f"after_{status}_{name}", answering(asking)


CHUNKED = b"Transfer-Encoding: chunked"
CHUNK = b"%x\r\n%b\r\n" % (LARGE, b"x" * LARGE)
EMPTY = b"Content-Length: 0"
LONG = LOOT * 400  # 9 kB and a bit

ATTACKS: dict[str, Behaviour] = {
    # Nothing comes
    "mute": mute,
    "head_dripping": dripping(b"x" * 1000, b"HTTP/1.1 200 OK\r\nX-Loot: "),
    "reset": reset,
    "broken_off": broken_off,
    "hung_up": hung_up,
    # TLS; those whose handshake begins well are `certified` in hostile.py
    "tls_stall": tls_stall,
    "tls_reset": tls_reset,
    "tls_plain": tls_plain,
    "tls_finite_field": tls_finite_field,
    "tls_long_chain": answering(OK),
    "tls_expired": answering(OK),
    "tls_self_signed": answering(OK),
    "tls_wrong_host": answering(OK),
    "tls_mute": mute,
    "tls_good": answering(OK),
    # A success with a body that is none
    "length": flooding(b"x" * LARGE, head("200 OK", b"Content-Length: 1000000000")),
    "chunked": flooding(CHUNK, head("200 OK", CHUNKED)),
    "until_close": flooding(b"x" * LARGE, head("200 OK")),
    "length_dripping": dripping(b"x", head("200 OK", b"Content-Length: 1000000000")),
    "chunked_dripping": dripping(b"1\r\nx\r\n", head("200 OK", CHUNKED)),
    "until_close_dripping": dripping(b"x", head("200 OK")),
    "chunk_extension": flooding(b"x" * LARGE, head("200 OK", CHUNKED) + b"1;"),
    "trailers": flooding(b"X-Loot: " + LOOT + b"\r\n", head("200 OK", CHUNKED) + b"0\r\n"),
    "bad_chunks": answering(head("200 OK", CHUNKED) + b"nonsense " + LOOT + b"\r\n"),
    "gzip_bomb": bomb(),
    "brotli": answering(head("200 OK", b"Content-Encoding: br", b"Content-Length: 23") + LOOT),
    "no_content_with_body": answering(head("204 No Content") + LOOT + FAILED),
    # No HTTP
    "informational": flooding(b"HTTP/1.1 100 \r\n\r\n" * 15_000, b""),
    "early_hints": flooding((b"HTTP/1.1 103 Early Hints\r\nX-Loot: " + LOOT + b"\r\n\r\n") * 1000, b""),
    "status_line": flooding(LOOT * 2000, b"HTTP/1.1 200 "),
    "header": flooding(LOOT * 2000, b"HTTP/1.1 200 OK\r\nX-Loot: "),
    "headers": flooding((b"X-Loot: " + LOOT + b"\r\n") * 1000, b"HTTP/1.1 200 OK\r\n"),
    "nine_kilobytes": answering(head("200 OK", b"X-Loot: " + LONG, EMPTY)),
    "wide_head": answering(head("200 OK", *[b"X-Loot: " + LOOT * 340] * 120, b"Content-Length: 9999")),
    "two_hundred_headers": answering(head("200 OK", *(b"X-Loot: " + LOOT for _ in range(200)), EMPTY)),
    "length_and_chunks": answering(head("200 OK", b"Content-Length: 5", CHUNKED) + b"0\r\n\r\n"),
    "two_lengths": answering(head("200 OK", b"Content-Length: 2", b"Content-Length: 3") + b"okk"),
    "negative_length": answering(head("200 OK", b"Content-Length: -1")),
    "nul_in_a_header": answering(head("200 OK", b"X-Loot: a\x00" + LOOT, EMPTY)),
    "nul_in_the_reason": answering(head("503 a\x00" + LOOT.decode(), EMPTY)),
    "binary": answering(b"\x00\xff\xfe" + LOOT + b"\r\n\r\n"),
    "ssh": ssh,
    "ssh_second": ssh_second,
    # A status that is not 2xx, or none at all
    "switching": answering(head("101 Upgrade", b"Connection: upgrade", b"Upgrade: x") + OK),
    "not_modified": answering(head("304 Not Modified")),
    "zero": answering(head("000 Zero", EMPTY)),
    "nines": answering(head("999 Nines", EMPTY)),
    "four_digits": answering(head("2000 OK", EMPTY)),
    "redirect": redirect,
    # Texts that no database takes as text
    "reason": answering(head("500 \xe9\xff" + LOOT.decode(), EMPTY)),
    "header_values": answering(head("500 No", b"X-Loot: \xe9\xff" + LOOT, b"Content-Type: \xff; charset=\xfe", EMPTY)),
    "text": answering(head("500 No", b"Content-Length: %d" % len(TEXT)) + TEXT),
    "text_until_close": flooding(TEXT, head("500 No")),
    "text_packed": answering(head("500 No", b"Content-Encoding: gzip", b"Content-Length: %d" % len(PACKED)) + PACKED),
    "text_in_bad_chunks": answering(head("500 No", CHUNKED) + b"17\r\n" + LOOT + b"\r\nnonsense\r\n"),
    # Connections that are kept, or not
    "closing": closing,
    "dropping": dropping,
    "forged_at_once": forged_at_once,
    "forged_later": forged_later,
    "cookie": cookie,
    **dict(paces()),
}
