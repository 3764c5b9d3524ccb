"""A signature of one's own: an HMAC of what the receiver wants to have signed, in a header of its choice."""

import hmac
import re
from binascii import b2a_base64
from collections.abc import Callable, Iterator, Mapping, Set
from datetime import UTC, datetime
from email.utils import formatdate
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from webhookd.message.signing import current
from webhookd.model import Key, Scheme

Written: TypeAlias = Literal["seconds", "iso", "http"]

# Of headers, timestamp (as it is written) and content.
_Part: TypeAlias = Callable[[Mapping[str, str], str, bytes], bytes]

SENT: Final = frozenset(("content-type", "user-agent", "webhook-id", "webhook-timestamp", "webhook-attempt"))
KNOWN: Final = "$body, $id, $timestamp and $header.NAME; $$ is a dollar sign"

_PLACEHOLDER: Final = re.compile(r"\$(\$|\{[^{}]*\}|header\.[A-Za-z0-9_-]+|[a-z]+)")
_MOMENTS: Final[Mapping[str, Callable[[int], str]]] = MappingProxyType(
    {
        "seconds": str,
        "iso": lambda timestamp: f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%dT%H:%M:%SZ}",  # RFC 3339
        "http": lambda timestamp: formatdate(timestamp, usegmt=True),  # RFC 9110 5.6.7
    }
)


def own_hmac(
    *, header: str, hash: str, encoding: str, prefix: str, signed: str, timestamp_header: str, timestamp: Written
) -> Scheme:
    """The scheme of a header that has an HMAC, `hex` or `base64`, behind a prefix, of what `signed` says.

    `signed` is a text with placeholders; what is signed is its UTF-8. With a `timestamp_header` the moment of the
    attempt is sent there too, written as `timestamp` says, and $timestamp is that text. Raises ValueError, one
    sentence, for a placeholder that nobody knows.
    """
    encode: Callable[[bytes], str] = bytes.hex if encoding == "hex" else _base64
    parts, written = [_part(each) for each in _parse(signed)], _MOMENTS[timestamp]
    name, timed = header.lower(), timestamp_header.lower()

    def sign(
        keys: tuple[Key, ...], headers: Mapping[str, str], timestamp: int, content: bytes
    ) -> tuple[tuple[str, str], ...]:
        moment = written(timestamp)
        told = ((timed, moment),) if timed else ()
        sent = {**headers, **dict(told)}
        text = b"".join([part(sent, moment, content) for part in parts])
        return (*told, (name, prefix + encode(hmac.digest(current(keys, timestamp), text, hash))))

    return sign


def conflicts(
    header: str, timestamp_header: str, timestamp: str, signed: str, own: Set[str], taken: Set[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """What the keys of such a signature say against each other, and against the endpoint's own headers, in lower case.

    Gives keys, and what is wrong with each.
    """
    timed = timestamp_header.lower()
    for key, name in (("header", header.lower()), ("timestamp_header", timed)):
        if name in own:
            yield key, "stands in headers, too; remove it there"
        if name in SENT | taken:
            yield key, "has something else in it; name another"
    if timed == header.lower():
        yield "timestamp_header", "is the header of the signature; name another"
    if not timed and timestamp != "seconds":
        yield "timestamp", "goes with timestamp_header, so that its receiver knows it"
    for name in sorted(headers_in(signed) - own - SENT - {timed}):
        yield "signed", f"has $header.{name}, which is not sent; add it to headers"


def headers_in(signed: str) -> frozenset[str]:
    """The headers, in lower case, that have to be there for it to be signed. Raises as `own_hmac`."""
    names = [each.removeprefix("$header.") for each in _parse(signed) if each.startswith("$header.")]
    return frozenset(map(str.lower, names))


def _parse(signed: str) -> list[str]:
    """Literal texts, and placeholders as `$name`; a literal that begins with a dollar sign has it twice."""
    parts = []
    for index, piece in enumerate(_PLACEHOLDER.split(signed)):
        if index % 2 == 0:
            if "$" in piece:
                raise ValueError(f"a $ starts no placeholder there; known are {KNOWN}")
            parts.append(piece)
        elif piece == "$":
            parts.append("$$")
        else:
            name = piece.strip("{}")
            if name not in ("body", "id", "timestamp") and not re.fullmatch(r"header\.[A-Za-z0-9_-]+", name):
                raise ValueError(f"${name} is no placeholder there; known are {KNOWN}")
            parts.append(f"${name}")
    return [part for part in parts if part]


def _part(text: str) -> _Part:
    if text == "$body":
        return lambda headers, moment, content: content
    if text == "$timestamp":
        return lambda headers, moment, content: moment.encode()
    if text.startswith("$$"):
        return lambda headers, moment, content: b"$"
    if text.startswith("$"):
        name = "webhook-id" if text == "$id" else text.removeprefix("$header.").lower()
        return lambda headers, moment, content: headers[name].encode()
    literal = text.encode()
    return lambda headers, moment, content: literal


def _base64(raw: bytes) -> str:
    return b2a_base64(raw, newline=False).decode("ascii")
