"""What is said of a message, and what is shown of it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, AwareDatetime, Field, WithJsonSchema

from webhookd.metadata import members
from webhookd.policy.matching import OWN_TYPES
from webhookd.store.messages import Message
from webhookd.web.applications import ApplicationIn
from webhookd.web.shapes import Given, Page, Query, Shape, Text, Word


def _foreign(name: str) -> str:
    if name.startswith(OWN_TYPES):
        raise ValueError("would be an event of webhookd's own; begin with another word")
    return name


Type = Annotated[Word, AfterValidator(_foreign)]
Channel = Annotated[Word, Field(max_length=128)]
Tag = Annotated[Text, Field(min_length=1, max_length=128)]
Channels = Annotated[list[Channel], Field(min_length=1, max_length=5)]
Tags = Annotated[list[Tag], Field(max_length=8)]


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


# JSON as it is kept, which nobody parses on its way out.
Kept = Annotated[Any, WithJsonSchema({"type": "object", "additionalProperties": True})]


class MessageOut(Shape):
    """An event."""

    id: str
    event_id: str | None
    event_type: str
    payload: Kept
    channels: list[str] | None
    tags: list[str] | None
    timestamp: datetime
    deliver_at: datetime | None


class Content(Query):
    """How much of it to show."""

    with_content: bool = True
    """With its payload; else an empty object is in its place."""


class MessagePage(Page[MessageOut]):
    """A page of messages."""


def shown(message: Message, *, content: bool) -> MessageOut:
    """As its tenant sees it."""
    channels, tags = labelled(message.metadata)
    return MessageOut(
        id=message.event_id,
        event_id=message.alias,
        event_type=message.type,
        payload=as_object(message.payload) if content and message.payload is not None else {},
        channels=channels,
        tags=tags,
        timestamp=message.created_at,
        deliver_at=message.deliver_after,
    )


def labelled(metadata: bytes | None) -> tuple[list[str] | None, list[str] | None]:
    """Its channels and its tags."""
    labels = members(metadata) if metadata is not None else {}
    return _words(labels, "channels"), _words(labels, "tags")


def as_object(payload: bytes) -> orjson.Fragment:
    """The payload as it is; what is no object is under `data`, since client libraries want one."""
    return orjson.Fragment(payload if payload.lstrip().startswith(b"{") else b'{"data":%b}' % payload)


def _words(labels: Mapping[str, bytes], key: str) -> list[str] | None:
    try:
        found = orjson.loads(labels.get(key, b"null"))
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else None
