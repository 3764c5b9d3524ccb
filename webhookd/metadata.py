"""The members of a JSON object that Postgres has accepted: neither depth nor long numbers keep anybody from them."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

# Never back over what it has passed, and a text that has no end is one token: nothing costs more than its length.
TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}:,]|[^][{}:,"\s]++', re.DOTALL)
_LONG_NUMBER: Final = 4000  # characters, from which on Python makes no number


@lru_cache(maxsize=64)  # one event goes to several endpoints, and a template may ask for several keys
def members(text: bytes) -> Mapping[str, bytes]:
    """The JSON text of each member of an object; the last one of equal keys, and none if it is not an object.

    It cuts rather than parses: numbers keep their digits, and depth costs no stack. Postgres has checked the syntax.
    """
    found: dict[str, bytes] = {}
    depth, key, start = 0, None, 0
    for token in TOKEN.finditer(text):
        mark = token[0]
        if depth == 0 and mark != b"{":
            break
        if depth == 1:
            if key is None and mark.startswith(b'"'):
                key = json.loads(mark)
            elif mark == b":":
                start = token.end()
            elif mark in (b",", b"}") and key is not None:
                found[key], key = text[start : token.start()].strip(), None
        depth += (mark in (b"{", b"[")) - (mark in (b"}", b"]"))
    return found


def member(text: bytes, path: str) -> bytes | None:
    """The JSON text of the member with that name; without one, of what its parts lead to: `a.b` is `b` in `a`."""
    found = members(text)
    if path in found:
        return found[path]
    inner: bytes | None = text
    for name in path.split("."):
        inner = None if inner is None else members(inner).get(name)
    return inner


def parsed(metadata: bytes | None) -> Mapping[str, object] | None:
    """The metadata as an object of Python, or None if it is none. What Python cannot make of a member is its text."""
    if metadata is None:
        return None
    try:
        found = json.loads(metadata)
    except (ValueError, RecursionError):  # a number of thousands of digits; or thousands of levels
        if not metadata.lstrip().startswith(b"{"):
            return None
        return {key: _value(text) for key, text in members(metadata).items()}
    return found if isinstance(found, dict) else None


def _value(text: bytes) -> object:
    try:
        return json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError):
        return text.decode(errors="replace")


def _whole(digits: str) -> int | str:
    return int(digits) if len(digits) < _LONG_NUMBER else digits
