"""Event types: what there is to subscribe to, described for people."""

import json
from datetime import datetime
from typing import Annotated, Any, Final, Self

import orjson
from pydantic import AfterValidator, Field, model_validator

from webhookd.store import event_types
from webhookd.store.event_types import EventType, Said, Wanted
from webhookd.web import lists
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import conflict, not_found
from webhookd.web.shapes import Given, Ordered, Page, Query, Shape, Text, Word, nulls

_SCHEMAS: Final = 262_144  # bytes of the schemas of one type
LARGEST: Final = _SCHEMAS + (64 << 10)  # of a body
_FEW: Final = 20  # types on a page with their schemas


def _small(schemas: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    if len(_written(schemas) or b"") > _SCHEMAS:  # which raises ValueError for NaN and infinities
        raise ValueError(f"may have {_SCHEMAS:,} bytes at most")
    return schemas


Description = Annotated[Text, Field(max_length=10_000)]
Schemas = Annotated[dict[str, dict[str, Any]], AfterValidator(_small)]  # their numbers as long as they are
Flags = Annotated[list[Word], Field(max_length=50)]


class _Said(Given):
    """What there is to say of a type."""

    schemas: Schemas | None = None
    """Version -> JSON Schema of the payload."""
    archived: bool = False
    """Left out of lists, and no longer to be subscribed to."""
    deprecated: bool = False
    """Shown as such."""
    feature_flags: Flags | None = None
    """Who does not have one of these does not see it in a portal."""
    feature_flag: Word | None = None
    """The older form of featureFlags."""

    @property
    def flags(self) -> list[str] | None:
        """Under whichever name."""
        if self.feature_flags is not None:
            return self.feature_flags
        return [self.feature_flag] if self.feature_flag is not None else None


class EventTypeUpdate(_Said):
    """What a type is to be like."""

    description: Description
    """What has happened when it comes."""


class EventTypeIn(EventTypeUpdate):
    """A type of event."""

    name: Word
    """Such as order.created."""


class EventTypePatch(Given):
    """What is to be different; null clears."""

    description: Description | None = None
    schemas: Schemas | None = None
    archived: bool | None = None
    deprecated: bool | None = None
    feature_flags: Flags | None = None
    feature_flag: Word | None = None

    @model_validator(mode="after")
    def _something_where_something_must_be(self) -> Self:
        nulls(self, "description", "archived", "deprecated")
        return self


class EventTypeOut(Shape):
    """A type of event."""

    name: str
    description: str
    schemas: dict[str, dict[str, Any]] | None
    archived: bool
    deprecated: bool
    feature_flags: list[str] | None
    feature_flag: str | None
    created_at: datetime
    updated_at: datetime
    read_only: bool


class EventTypePage(Page[EventTypeOut]):
    """A page of event types."""


class Listing(Ordered):
    """Which page, and what is on it."""

    include_archived: bool = False
    """Archived ones, too."""
    with_content: bool = False
    """With their schemas, and then up to 20 on a page."""


class Deletion(Query):
    """How much of it goes."""

    expunge: bool = False
    """Forget it altogether, instead of archiving it."""


def shown(found: EventType, *, content: bool = True, of_file: bool = False) -> EventTypeOut:
    """As people see it."""
    flags = None if found.feature_flags is None else list(found.feature_flags)
    return EventTypeOut.model_construct(
        name=found.name,
        description=found.description,
        schemas=orjson.Fragment(found.schemas) if content and found.schemas is not None else None,
        archived=found.archived,
        deprecated=found.deprecated,
        feature_flags=flags,
        feature_flag=flags[0] if flags else None,
        created_at=found.created_at,
        updated_at=found.updated_at,
        read_only=of_file,
    )


async def all_of(call: Call) -> Answer:
    """A page of them."""
    query: Listing = call.query
    at, limit = lists.place(query), min(query.limit, _FEW) if query.with_content else query.limit
    falling = (query.order == "descending") is not at.back
    wanted = Wanted(limit, at.after, falling, query.include_archived, call.caller.flags)
    files = {
        name: of_file(call, name)
        for name in call.around.event_types
        if at.after is None or (name < at.after if falling else name > at.after)
    }
    there = {each.name: each for each in await event_types.page(call.connection, wanted)} | files
    rows, more = lists.page([there[name] for name in sorted(there, reverse=falling)][: limit + 1], limit, at)
    iterator, before, done = lists.iterators([each.name for each in rows], more, at)
    data = [shown(each, content=query.with_content, of_file=each.name in files) for each in rows]
    return Answer(200, EventTypePage(data=data, iterator=iterator, prev_iterator=before, done=done))


def of_file(call: Call, name: str) -> EventType:
    """One of the operator's files."""
    since = call.around.since
    return EventType(name, call.around.event_types[name], None, False, False, None, since, since)


async def create(call: Call) -> Answer:
    """Register one."""
    given: EventTypeIn = call.body
    _expect_no_file(call, given.name)
    made = await event_types.add(call.connection, _said(given.name, given))
    if made is None:
        raise conflict(f"The event type {given.name} is there already; change it with PUT or PATCH.")
    return Answer(201, shown(made), made.name)


async def get(call: Call) -> Answer:
    """One."""
    name = call.path["event_type_name"]
    if name in call.around.event_types:
        return Answer(200, shown(of_file(call, name), of_file=True))
    found, flags = await _found(call), call.caller.flags
    if flags is not None and found.feature_flags and not set(flags).intersection(found.feature_flags):
        raise not_found("event type")
    return Answer(200, shown(found))


async def upsert(call: Call) -> Answer:
    """Have it be like this, whether it is there or not."""
    given: EventTypeUpdate = call.body
    said = _said(_name(call), given)
    _expect_no_file(call, said.name)
    if changed := await event_types.change(call.connection, said):
        return Answer(200, shown(changed), changed.name)
    if made := await event_types.add(call.connection, said):
        return Answer(201, shown(made), made.name)
    if changed := await event_types.change(call.connection, said):  # somebody has made it at this very moment
        return Answer(200, shown(changed), changed.name)
    raise not_found("event type")


async def patch(call: Call) -> Answer:
    """Change what is said, and nothing else."""
    given: EventTypePatch = call.body
    _expect_no_file(call, call.path["event_type_name"])
    before, said = await _found(call, lock=True), given.model_fields_set
    flags = before.feature_flags
    if "feature_flags" in said:
        flags = given.feature_flags
    elif "feature_flag" in said:
        flags = None if given.feature_flag is None else [given.feature_flag]
    after = Said(
        before.name,
        before.description if given.description is None else given.description,
        _written(given.schemas) if "schemas" in said else before.schemas,
        before.archived if given.archived is None else given.archived,
        before.deprecated if given.deprecated is None else given.deprecated,
        flags,
    )
    changed = await event_types.change(call.connection, after)
    if changed is None:
        raise not_found("event type")
    return Answer(200, shown(changed), changed.name)


async def delete(call: Call) -> Answer:
    """Archive it, or forget it."""
    _expect_no_file(call, call.path["event_type_name"])
    before = await _found(call, lock=True)
    if call.query.expunge:
        await event_types.end(call.connection, before.name)
    else:
        await event_types.change(call.connection, Said(*before[:6])._replace(archived=True))
    return Answer(204, None, before.name)


async def again(call: Call, made: str | None, status: int) -> Answer:
    """The one that was made."""
    found = await event_types.find(call.connection, made or "")
    if found is None:
        raise not_found("event type")
    return Answer(status, shown(found), made)


async def _found(call: Call, *, lock: bool = False) -> EventType:
    found = await event_types.find(call.connection, call.path["event_type_name"], lock=lock)
    if found is None:
        raise not_found("event type")
    return found


def _expect_no_file(call: Call, name: str) -> None:
    if name in call.around.event_types:
        raise conflict(
            f"The event type {name} is defined in a file of the operator's, and is changed there.", "read_only"
        )


def _name(call: Call) -> str:
    try:
        return EventTypeIn.model_validate({"name": call.path["event_type_name"], "description": ""}).name
    except ValueError:
        raise not_found("event type") from None


def _said(name: str, given: EventTypeUpdate) -> Said:
    return Said(name, given.description, _written(given.schemas), given.archived, given.deprecated, given.flags)


def _written(schemas: dict[str, dict[str, Any]] | None) -> bytes | None:
    """As JSON, with integers of any length. ValueError for what is no number of JSON."""
    if schemas is None:
        return None
    return json.dumps(schemas, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
