"""Messages: what the API calls an event."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

import orjson
from pydantic import AfterValidator, AwareDatetime, Field

from webhookd.ids import new_id
from webhookd.metadata import members
from webhookd.policy.access import Right
from webhookd.policy.matching import OWN_TYPES
from webhookd.store import messages
from webhookd.store.messages import Message, NewMessage
from webhookd.store.tenants import Tenant
from webhookd.web import applications, body
from webhookd.web.applications import ApplicationIn
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import Invalid, Problem, Wrong, conflict, not_found, parsed
from webhookd.web.shapes import Given, Query, Shape, Text, Word

AROUND: Final = 64 << 10  # bytes of a body that are not the payload


def _foreign(name: str) -> str:
    if name.startswith(OWN_TYPES):
        raise ValueError("would be an event of webhookd's own; begin with another word")
    return name


Type = Annotated[Word, AfterValidator(_foreign)]
Channels = Annotated[list[Annotated[Word, Field(max_length=128)]], Field(min_length=1, max_length=5)]
Tags = Annotated[list[Annotated[Text, Field(min_length=1, max_length=128)]], Field(max_length=8)]


class MessageIn(Given):
    """An event. Its payload reaches receivers byte for byte as it stands in the body of the request."""

    event_type: Type
    """What has happened, such as order.created."""
    payload: dict[str, Any]
    """What there is to say of it: any object."""
    event_id: Word | None = None
    """The caller's own id for it: a second event of the same id is refused."""
    channels: Channels | None = None
    """Endpoints that have channels get it if they share one."""
    tags: Tags | None = None
    """Words to find it by."""
    deliver_at: AwareDatetime | None = Field(default=None, strict=False)
    """Not before this moment."""
    ordering_key: Annotated[Text, Field(min_length=1, max_length=512)] | None = None
    """What it is about, for endpoints that keep an order."""
    metadata: dict[str, Any] | None = None
    """Labels for filters and headers, beside channels and tags; byte for byte, as the payload."""
    payload_retention_period: Annotated[int, Field(ge=5, le=90)] | None = None
    """Taken and not used: [retention] says how long events are kept."""
    application: ApplicationIn | None = None
    """Makes the application of the path, if it is not there."""


class MessageOut(Shape):
    """An event."""

    id: str
    event_id: str | None
    event_type: str
    payload: dict[str, Any]
    channels: list[str] | None
    tags: list[str] | None
    timestamp: datetime
    deliver_at: datetime | None


class Content(Query):
    """How much of it to show."""

    with_content: bool = True
    """With its payload; else an empty object is in its place."""


async def create(call: Call) -> Answer:
    """Insert it: from then on it is delivered, whatever happens."""
    rest, texts = await body.cut(call.raw, "payload", "metadata")
    if len(rest) > AROUND:
        raise Problem(413, "too_large", f"Beside payload and metadata a message may have {AROUND:,} bytes at most.")
    given: MessageIn = parsed(MessageIn, rest)
    payload = _an_object(texts, "payload")
    if len(payload) > call.around.max_payload:
        raise Problem(
            413, "too_large", f"A payload may have {call.around.max_payload:,} bytes at most, as [delivery] has it."
        )
    tenant = await _tenant(call, given)
    new = NewMessage(
        new_id("msg_"),
        given.event_type,
        payload,
        tenant.key,
        _labels(given, _an_object(texts, "metadata") if "metadata" in texts and given.metadata is not None else b""),
        given.ordering_key,
        given.deliver_at,
        given.event_id,
    )
    at = await messages.add(call.connection, new, tenant.since)
    if at is None:
        raise conflict(f"There is a message with the eventId {given.event_id} already; it is not sent again.")
    made = Message(new.event_id, new.type, at, new.metadata, new.deliver_after, new.alias, payload)
    return Answer(202, shown(made, content=call.query.with_content), new.event_id)


async def _tenant(call: Call, given: MessageIn) -> Tenant:
    """Whose it is: of the path, or made on the way."""
    if call.tenant is not None:
        return call.tenant
    if given.application is None:
        raise not_found("application")
    if Right.TENANTS not in call.caller.rights:
        raise Problem(403, "forbidden", "This token may not create an application on the way.")
    return await applications.got_or_made(call, given.application)


def _an_object(texts: Mapping[str, bytes], key: str) -> bytes:
    text = texts.get(key, b"")
    if not text.startswith(b"{"):
        what = 'wants an object, such as {"id": 1}' if text else "is required"
        raise Invalid([Wrong(("body", key), what, "dict_type" if text else "missing")])
    return text


async def get(call: Call) -> Answer:
    """One."""
    content = call.query.with_content
    found = await messages.find(call.connection, call.of.key, call.of.since, call.path["msg_id"], with_payload=content)
    if found is None:
        raise not_found("message")
    return Answer(200, shown(found, content=content))


async def again(call: Call, made: str | None, status: int) -> Answer:
    """The one that was made."""
    if (tenant := call.tenant) is None:  # it is gone since
        raise not_found("application")
    content = call.query.with_content
    found = await messages.find(call.connection, tenant.key, tenant.since, made or "", with_payload=content)
    if found is None:
        raise not_found("message")
    return Answer(status, shown(found, content=content), made)


def shown(message: Message, *, content: bool) -> MessageOut:
    """As its tenant sees it."""
    labels = members(message.metadata) if message.metadata is not None else {}
    return MessageOut.model_construct(
        id=message.event_id,
        event_id=message.alias,
        event_type=message.type,
        payload=as_object(message.payload) if content and message.payload is not None else {},
        channels=_words(labels, "channels"),
        tags=_words(labels, "tags"),
        timestamp=message.created_at,
        deliver_at=message.deliver_after,
    )


def as_object(payload: bytes) -> orjson.Fragment:
    """The payload as it is; what is no object is under `data`, since client libraries want one."""
    return orjson.Fragment(payload if payload.lstrip().startswith(b"{") else b'{"data":%b}' % payload)


def _labels(given: MessageIn, metadata: bytes) -> bytes | None:
    """The metadata as it came, and channels and tags behind it: of equal keys the last one counts."""
    own = {key: words for key, words in (("channels", given.channels), ("tags", given.tags)) if words is not None}
    if not own:
        return metadata or None
    begun = metadata[:-1].rstrip() if metadata else b"{"
    return begun + (b"," if len(begun) > 1 else b"") + orjson.dumps(own)[1:]


def _words(labels: Mapping[str, bytes], key: str) -> list[str] | None:
    try:
        found = orjson.loads(labels.get(key, b"null"))
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else None
