"""What `webhookd listen` shows of a request: lines for people, or a document."""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from webhookd.cli.receiver import Received
from webhookd.cli.tables import inert, inert_json

MOST_LINES: Final = 40
MOST_CHARACTERS: Final = 4000  # of a body, before it is laid out
_INDENT = "  "
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


class Seen(NamedTuple):
    """A request, and when it came."""

    at: datetime
    received: Received


def described(seen: Seen) -> dict[str, Any]:
    """The request as JSON has it; the body is text, byte for byte where it is UTF-8."""
    at, received = seen
    return {
        "at": at.isoformat(),
        "method": received.method,
        "path": received.path,
        "type": _type(received),
        "id": received.headers.get("webhook-id"),
        "attempt": _attempt(received),
        "verified": received.problem is None,
        "problem": received.problem,
        "status": received.status,
        "headers": dict(received.headers),
        "body": received.body.decode(errors="replace"),
    }


def lines(seen: Seen) -> Iterator[str]:
    """The request for people: a headline, and the body laid out and cut."""
    at, received = seen
    answer = "hangs" if received.status is None else f"answered {received.status}"
    verified = "verified" if received.problem is None else f"NOT VERIFIED: {received.problem}"
    parts = [
        f"{at.astimezone():%H:%M:%S}",
        f"{received.method} {received.path}",
        _type(received) or "(no type)",
        received.headers.get("webhook-id") or "(no id)",
        f"attempt {_attempt(received) or '?'}",
        verified,
        answer,
    ]
    yield inert("  ".join(parts), None)
    for line in body_lines(received.body):
        yield f"{_INDENT}{line}"
    yield ""


def body_lines(body: bytes) -> Iterator[str]:
    """A body, laid out if it is JSON with every number as it was written; safe for a terminal, and cut."""
    text = body.decode(errors="replace")
    laid_out = list(_laid_out(text)) if len(text) <= MOST_CHARACTERS and _is_json(text) else []
    shown = laid_out or [inert(line, None) for line in text[:MOST_CHARACTERS].splitlines()]
    yield from shown[:MOST_LINES]
    if len(shown) > MOST_LINES or len(text) > MOST_CHARACTERS:
        yield f"… cut; {len(body)} bytes in all"


def _laid_out(text: str) -> Iterator[str]:
    """JSON on a line for each value; an empty object or list stays on one."""
    pieces = _PIECE.findall(text)
    depth, line = 0, ""
    for piece, following in zip(pieces, [*pieces[1:], ""], strict=True):
        if piece in "}]" and not line.endswith(("{", "[")):
            yield inert_json(line)
            depth -= 1
            line = _INDENT * depth + piece
            continue
        line += f"{piece} " if piece == ":" else piece
        if piece in "{[" and following not in ("}", "]"):
            yield inert_json(line)
            depth += 1
            line = _INDENT * depth
        elif piece == ",":
            yield inert_json(line)
            line = _INDENT * depth
    yield inert_json(line)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _type(received: Received) -> str | None:
    """The event's type: of the body in most formats, of a header in the binary one of CloudEvents."""
    try:
        body = json.loads(received.body)
    except (ValueError, RecursionError):
        body = None
    named = body.get("type") if isinstance(body, dict) else None
    return named if isinstance(named, str) else received.headers.get("ce-type")


def _attempt(received: Received) -> int | None:
    text = received.headers.get("webhook-attempt", "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
