"""Types of events that were registered by the HTTP API; those of files are the configuration's."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from webhookd.store.statements import QUERIES
from webhookd.store.tenants import Asking


class EventType(NamedTuple):
    """A row of `webhookd.event_type`; `schemas` is JSON: version -> JSON Schema."""

    name: str
    description: str
    schemas: bytes | None
    archived: bool
    deprecated: bool
    feature_flags: Sequence[str] | None
    created_at: datetime
    updated_at: datetime


class Wanted(NamedTuple):
    """Which page: rows on it, the name that it begins behind, whether names fall, and whether archived ones count.

    With `flags`, of those that have flags only such as have one of these.
    """

    limit: int
    after: str | None = None
    descending: bool = False
    archived: bool = False
    flags: Sequence[str] | None = None


class Said(NamedTuple):
    """What there is to say of a type."""

    name: str
    description: str
    schemas: bytes | None
    archived: bool
    deprecated: bool
    feature_flags: Sequence[str] | None


async def find(asking: Asking, name: str, *, lock: bool = False) -> EventType | None:
    """The one with this name; with `lock` nobody else changes it until the transaction ends."""
    return _one(await asking.fetch(QUERIES["event_type_locked" if lock else "event_type"], name))


async def page(asking: Asking, wanted: Wanted) -> list[EventType]:
    """Types by name, one more than are asked for where there are more."""
    query = QUERIES["event_types_falling" if wanted.descending else "event_types_rising"]
    rows = await asking.fetch(query, wanted.after, wanted.archived, wanted.limit + 1, wanted.flags)
    return [EventType._make(row) for row in rows]


async def fitting(asking: Asking, patterns: Sequence[str], flags: Sequence[str] | None, most: int) -> list[EventType]:
    """Those that one of these patterns fits, by name, so many at most; with `flags` as in a page."""
    rows = await asking.fetch(QUERIES["event_types_fitting"], patterns, flags, most)
    return [EventType._make(row) for row in rows]


async def unknown(asking: Asking, patterns: Sequence[str]) -> list[str]:
    """Those of these patterns that no type fits which is registered and not archived."""
    return [row[0] for row in await asking.fetch(QUERIES["event_types_unknown"], patterns)]


async def add(asking: Asking, said: Said) -> EventType | None:
    """Register it; an archived one comes back. None when there is one of that name."""
    return _one(await asking.fetch(QUERIES["event_type_add"], *said))


async def change(asking: Asking, said: Said) -> EventType | None:
    """Have it be like this; None when it is gone."""
    return _one(await asking.fetch(QUERIES["event_type_change"], *said))


async def end(asking: Asking, name: str) -> None:
    """Forget it."""
    await asking.fetch(QUERIES["event_type_end"], name)


def _one(rows: Sequence[Any]) -> EventType | None:
    return EventType._make(rows[0]) if rows else None
