"""Making a message: one INSERT, with its payload as it stands in the body of the request."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import orjson

from webhookd.ids import new_id
from webhookd.store import messages
from webhookd.store.messages import Message, NewMessage
from webhookd.web import applications, body
from webhookd.web.messages.shapes import MessageIn, shown
from webhookd.web.operation import TENANT, Answer, Call
from webhookd.web.problem import Invalid, Problem, Wrong, conflict, not_found, parsed

AROUND: Final = 64 << 10  # bytes of a body that are not the payload


async def create(call: Call) -> Answer:
    """Insert it: from then on it is delivered, whatever happens."""
    given, new = await _read(call)
    tenant = await applications.of_path_or_made(call, given.application)
    at = await messages.add(call.connection, tenant.key, new, tenant.since)
    if at is None:
        raise conflict(f"There is a message with the eventId {given.event_id} already; it is not sent again.")
    return _made(call, new, at)


async def create_at_once(call: Call, key: bytes | None) -> Answer | None:
    """The same with one statement, where its application is there and all is new."""
    _, new = await _read(call)
    named, of = call.path[TENANT], call.caller.tenant
    at = await messages.add_at_once(call.connection, named, of, key, b"" if key is None else call.digest, new)
    return None if at is None else _made(call, new, at)


def _made(call: Call, new: NewMessage, at: datetime) -> Answer:
    made = Message(new.event_id, new.type, at, new.metadata, new.deliver_after, new.alias, new.payload)
    return Answer(202, shown(made, content=call.query.with_content), new.event_id)


async def _read(call: Call) -> tuple[MessageIn, NewMessage]:
    """What the body says, and what is to be inserted."""
    rest, texts = await body.cut(call.raw, "payload", "metadata")
    if len(rest) > AROUND:
        raise Problem(413, "too_large", f"Beside payload and metadata a message may have {AROUND:,} bytes at most.")
    given: MessageIn = parsed(MessageIn, rest)
    payload = _an_object(texts, "payload")
    if len(payload) > call.around.max_payload:
        raise Problem(
            413, "too_large", f"A payload may have {call.around.max_payload:,} bytes at most, as [delivery] has it."
        )
    metadata = _an_object(texts, "metadata") if "metadata" in texts and given.metadata is not None else b""
    return given, NewMessage(
        new_id("msg_"),
        given.event_type,
        payload,
        _labels(given, metadata),
        given.ordering_key,
        given.deliver_at,
        given.event_id,
    )


def _an_object(texts: Mapping[str, bytes], key: str) -> bytes:
    text = texts.get(key, b"")
    if not text.startswith(b"{"):
        what = 'wants an object, such as {"id": 1}' if text else "is required"
        raise Invalid([Wrong(("body", key), what, "dict_type" if text else "missing")])
    return text


async def again(call: Call, made: str | None, status: int) -> Answer:
    """The one that was made."""
    if (tenant := call.tenant) is None:  # it is gone since
        raise not_found("application")
    content = call.query.with_content
    found = await messages.find(call.connection, tenant.key, tenant.since, made or "", with_payload=content)
    if found is None:
        raise not_found("message")
    return Answer(status, shown(found, content=content), made)


def _labels(given: MessageIn, metadata: bytes) -> bytes | None:
    """The metadata as it came, and channels and tags behind it: of equal keys the last one counts."""
    own = {key: words for key, words in (("channels", given.channels), ("tags", given.tags)) if words is not None}
    if not own:
        return metadata or None
    begun = metadata[:-1].rstrip() if metadata else b"{"
    return begun + (b"," if len(begun) > 1 else b"") + orjson.dumps(own)[1:]
