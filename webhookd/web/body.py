"""Bodies: read within bounds of size, time and depth, and taken apart where a part has to stay as it was written."""

import asyncio
from collections.abc import Iterator, Set
from contextlib import nullcontext
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from webhookd.metadata import TOKEN
from webhookd.web.problem import Problem

SECONDS: Final = 5.0  # for a body to come
DEEPEST: Final = 100
CLOSE: Final = {"connection": "close"}
AT_A_TIME: Final = 5_000  # tokens, after which others have their turn on the loop


async def read(request: web.BaseRequest, upto: int) -> bytes:
    """The body. Problem 408 when it does not come, 413 when it is larger than that many bytes."""
    if request.content_length is not None and request.content_length > upto:
        raise _too_large(upto)
    content = bytearray()
    if request.headers.get("expect", "").lower() == "100-continue":  # curl waits for it before it sends what is large
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    try:
        # What has come with its head, as small ones do, waits for nothing.
        async with nullcontext() if request.content.is_eof() else asyncio.timeout(SECONDS):
            while chunk := await request.content.readany():
                content += chunk
                if len(content) > upto:
                    raise _too_large(upto)
    except TimeoutError:
        raise Problem(408, "timeout", f"The body has not come within {SECONDS:.0f} seconds.", CLOSE) from None
    except (web.HTTPException, RequestPayloadError):  # such as what says that it is gzip, and is not
        raise Problem(400, "bad_request", "The body cannot be read as its headers say.", CLOSE) from None
    return bytes(content)


async def expect_shallow(content: bytes) -> None:
    """Raise Problem 400 for JSON that is nested deeper than anybody needs."""
    if content.count(b"[") + content.count(b"{") > DEEPEST:
        for number, _ in enumerate(_tokens(content), 1):
            if number % AT_A_TIME == 0:
                await asyncio.sleep(0)


async def cut(content: bytes, *keys: str) -> tuple[bytes, dict[str, bytes]]:
    """An object of JSON with `{}` under these keys, and the texts that are there: byte for byte, never parsed.

    Of equal keys the last one counts, and what is not there is left out. What is no object, or no JSON, comes back as
    it is: whoever parses the rest says what is wrong with it. Problem 400 for what is nested too deep.
    """
    names = {b'"%b"' % key.encode(): key for key in keys}
    found, rest, end = dict[str, bytes](), list[bytes](), 0
    for name, start, stop in await _cut(content, names.keys()):
        found[names[name]] = content[start:stop]
        rest += [content[end:start], b"{}"]
        end = stop
    return b"".join([*rest, content[end:]]), found


async def _cut(content: bytes, wanted: Set[bytes]) -> list[tuple[bytes, int, int]]:
    """Where the values of these keys are, of the outermost object."""
    found, name, start, last = list[tuple[bytes, int, int]](), b"", -1, 0
    for number, (mark, depth, end) in enumerate(_tokens(content), 1):
        if depth == 1:
            if mark == b":" and name in wanted and start < 0:
                start = end
            elif mark in (b",", b"}"):
                if start >= 0:
                    found.append((name, *_stripped(content, start, last)))
                name, start = b"", -1
            elif start < 0:
                name = mark
        last = end
        if number % AT_A_TIME == 0:
            await asyncio.sleep(0)
    return found


def _tokens(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each token, how deep it stands, a bracket beside what it is around, and where it ends."""
    depth = 0
    for token in TOKEN.finditer(content):
        mark = token[0]
        yield mark, depth, token.end()
        depth += (mark in (b"{", b"[")) - (mark in (b"}", b"]"))
        if depth > DEEPEST:
            raise Problem(400, "too_deep", f"The JSON is nested more than {DEEPEST} deep.")


def _stripped(content: bytes, start: int, stop: int) -> tuple[int, int]:
    while start < stop and content[start : start + 1].isspace():
        start += 1
    return start, stop


def _too_large(upto: int) -> Problem:
    return Problem(413, "too_large", f"The body may have {upto:,} bytes at most.", CLOSE)
