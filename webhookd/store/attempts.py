"""Attempts of a tenant, and its deliveries: what was tried, and what became of it, as the HTTP API shows them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from webhookd.store.endpoints import Made
from webhookd.store.statements import QUERIES
from webhookd.store.tenants import Asking, Tenant

EARLIER = timedelta(minutes=1)  # that the clock of a daemon may be behind that of the database


class Place(NamedTuple):
    """Where an attempt stands among all: nothing else is where it is."""

    at: datetime
    event: int
    endpoint: int
    number: int


class Tried(NamedTuple):
    """An attempt."""

    place: Place
    event_id: str
    endpoint: str
    url: str
    ok: bool
    code: int | None
    ms: int | None
    error: str | None
    response: bytes | None
    trigger: str | None


class Called(NamedTuple):
    """An event that was found by what it is called."""

    id: int
    created_at: datetime
    event_id: str


class Which(NamedTuple):
    """Attempts of an endpoint, or of events, or of both; begun not before a moment, and before another."""

    endpoint: int | None = None
    events: Sequence[int] | None = None
    since: datetime | None = None
    until: datetime | None = None
    ok: bool | None = None
    code_class: int | None = None  # 400 for 400 to 499, 0 for no answer
    types: Sequence[str] | None = None
    channel: str | None = None
    tag: str | None = None


class Events(NamedTuple):
    """Events inserted not before a moment, and before another, of these types, with this channel and tag."""

    since: datetime | None = None
    until: datetime | None = None
    types: Sequence[str] | None = None
    channel: str | None = None
    tag: str | None = None


class Delivery(NamedTuple):
    """An event for an endpoint, and what became of it there. `due`: the next attempt."""

    id: int
    created_at: datetime
    size: int
    event_id: str
    type: str
    metadata: bytes | None
    deliver_after: datetime | None
    alias: str | None
    state: str  # delivered | waiting | retrying | held | parked | exhausted | rejected | missed | discarded
    reason: str | None
    due: datetime | None


class Destination(NamedTuple):
    """An endpoint that an event was owed, and what became of it there."""

    endpoint: Made
    state: str
    reason: str | None
    due: datetime | None


async def called(asking: Asking, tenant: Tenant, id_or_alias: str) -> list[Called]:
    """The tenant's events with this id or alias, the newest first; nearly always one."""
    rows = await asking.fetch(QUERIES["events_called"], tenant.key, id_or_alias, tenant.since)
    return [Called._make(row) for row in rows]


async def page(
    asking: Asking,
    tenant: Tenant,
    which: Which,
    limit: int,
    after: Place | None,
    *,
    back: bool = False,
    shared: bool = False,
    content: bool = False,
) -> tuple[list[Tried], Place | None]:
    """A page of attempts behind a place, the newest first, or the oldest with `back`; behind what the next begins.

    With `shared` also those of endpoints that are for all tenants. Of 5,000 that were looked at perhaps none fits.
    """
    place = after or (None, None, None, None)
    rows = await asking.fetch(
        QUERIES["attempts"], tenant.key, tenant.since, shared, *which, limit, *place, back, content
    )
    found = [_tried(row) for row in rows if row[4] is not None]
    if len(found) > limit:
        return found[:limit], found[limit - 1].place
    edge = rows[-1] if rows and rows[-1][4] is None else None
    return found, None if edge is None else Place(*tuple(edge)[:4])


async def get(asking: Asking, tenant: Tenant, events: Sequence[int], place: Place, *, shared: bool) -> Tried | None:
    """The attempt at this place, if it is of one of these events."""
    rows = await asking.fetch(QUERIES["attempt"], tenant.key, list(events), shared, *place)
    return _tried(rows[0]) if rows else None


async def expunge(asking: Asking, tenant: Tenant, event_id: str, place: Place) -> bool:
    """Forget what was answered to it; False when there is none of this event there."""
    rows = await asking.fetch(QUERIES["attempt_expunge"], tenant.key, tenant.since, event_id, *place)
    return bool(rows[0][0])


async def of_endpoint(
    asking: Asking,
    tenant: Tenant,
    which: Events,
    endpoint: int,
    states: Sequence[str] | None,
    limit: int,
    after: int | None,
    *,
    back: bool = False,
) -> tuple[list[Delivery], int | None]:
    """A page of what an endpoint was owed, by the numbers of events, and behind which number the next begins.

    Of 2,000 events that were looked at perhaps none fits.
    """
    since, *others = which
    since = max(since, tenant.since) if since and tenant.since else since or tenant.since
    rows = await asking.fetch(
        QUERIES["deliveries_of_endpoint"], tenant.key, since, *others, endpoint, states, limit, after, back
    )
    found = [Delivery._make(row) for row in rows if row[3] is not None]
    if len(found) > limit:
        return found[:limit], found[limit - 1].id
    return found, rows[-1][0] if rows and rows[-1][3] is None else None


async def payloads(asking: Asking, deliveries: Sequence[Delivery]) -> dict[int, bytes]:
    """What these events say, by their numbers."""
    ids, moments = [each.id for each in deliveries], [each.created_at for each in deliveries]
    return {row[0]: row[1] for row in await asking.fetch(QUERIES["payloads_of"], ids, moments)}


async def of_event(
    asking: Asking,
    tenant: Tenant,
    event: Called,
    limit: int,
    after: str | None,
    *,
    back: bool = False,
    shared: bool = False,
) -> list[Destination]:
    """Endpoints that an event was owed, by their names, one more than are asked for where there are more."""
    rows = await asking.fetch(
        QUERIES["deliveries_of_event"], tenant.key, [event.id], event.created_at, event.created_at, shared, after,
        limit + 1, back,
    )  # fmt: skip
    return [Destination(Made._make(tuple(row)[:12]), *tuple(row)[12:]) for row in rows]


def _tried(row: Any) -> Tried:
    return Tried(Place(*tuple(row)[:4]), *tuple(row)[4:])
