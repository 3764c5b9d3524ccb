"""Bodies: read within bounds of size, time and depth, and taken apart where a part has to stay as it was written."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from webhookd.web.problem import Problem

SECONDS: Final = 5.0  # for a body to come
DEEPEST: Final = 100
AT_A_TIME: Final = 5_000  # tokens, after which others have their turn on the loop
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^][{}:,"\s]+', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[{]")


async def read(request: web.BaseRequest, upto: int) -> bytes:
    """The body. Problem 408 when it does not come, 413 when it is larger than that many bytes."""
    if request.content_length is not None and request.content_length > upto:
        raise _too_large(upto)
    content = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            while chunk := await request.content.readany():
                content += chunk
                if len(content) > upto:
                    raise _too_large(upto)
    except TimeoutError:
        raise Problem(408, "timeout", f"The body has not come within {SECONDS:.0f} seconds.") from None
    except web.HTTPException as error:
        raise Problem(error.status, "bad_request", "The body cannot be read.") from None
    return bytes(content)


async def expect_shallow(content: bytes) -> None:
    """Raise Problem 400 for JSON that is nested deeper than anybody needs."""
    if len(_BRACKET.findall(content)) > DEEPEST:
        async for _ in _tokens(content):
            pass


async def cut(content: bytes, key: str) -> tuple[bytes, bytes | None]:
    """An object of JSON with null under that key, and the text that is there: byte for byte, never parsed.

    None when it has no such key, and the last of several. What is no object, or no JSON, comes back as it is: whoever
    parses the rest says what is wrong with it. Problem 400 for what is nested too deep.
    """
    spans = await _cut(content, b'"%b"' % key.encode())
    if not spans:
        return content, None
    rest, end = [], 0
    for start, stop in spans:
        rest += [content[end:start], b"null"]
        end = stop
    start, stop = spans[-1]
    return b"".join([*rest, content[end:]]), content[start:stop]


async def _cut(content: bytes, wanted: bytes) -> list[tuple[int, int]]:
    """Where the values of that key are, of the outermost object."""
    found, name, start, last = list[tuple[int, int]](), b"", -1, 0
    async for mark, depth, end in _tokens(content):
        if depth == 1:
            if mark == b":" and name == wanted and start < 0:
                start = end
            elif mark in (b",", b"}"):
                if start >= 0:
                    found.append(_stripped(content, start, last))
                name, start = b"", -1
            elif start < 0:
                name = mark
        last = end
    return found


async def _tokens(content: bytes) -> AsyncIterator[tuple[bytes, int, int]]:
    """Each token, how deep it stands, a bracket beside what it is around, and where it ends."""
    depth = 0
    for number, token in enumerate(_TOKEN.finditer(content), 1):
        mark = token[0]
        yield mark, depth, token.end()
        depth += (mark in (b"{", b"[")) - (mark in (b"}", b"]"))
        if depth > DEEPEST:
            raise Problem(400, "too_deep", f"The JSON is nested more than {DEEPEST} deep.")
        if number % AT_A_TIME == 0:
            await asyncio.sleep(0)


def _stripped(content: bytes, start: int, stop: int) -> tuple[int, int]:
    while start < stop and content[start : start + 1].isspace():
        start += 1
    return start, stop


def _too_large(upto: int) -> Problem:
    return Problem(413, "too_large", f"The body may have {upto:,} bytes at most.", {"connection": "close"})
