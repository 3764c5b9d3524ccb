"""Events, deliveries, attempts and endpoints, as people list them.

A page is looked for in windows, from the newest row down, each eight times as wide as the one before, until it is full:
what is asked for is mostly new, and what is old or rare costs no more than the rows that are looked at. A cursor is the
place of the last row that was shown, in the order of the listing; so a page never repeats or leaves out a row, whatever
was added meanwhile.
"""

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, NamedTuple, TypeVar

from webhookd.errors import WebhookdError
from webhookd.model import label
from webhookd.store.database import Database
from webhookd.store.reports import LOOKED_AT
from webhookd.store.statements import QUERIES
from webhookd.units import quoted

Row = TypeVar("Row")
Cursor = tuple[int, ...]
Connection = Any
Names = Mapping[int, tuple[str, str]]  # number of an endpoint -> (tenant, name)

STATES: Final = ("delivered", "retrying", "held", "parked", "exhausted", "rejected", "missed")  # of deliveries
ASIDE: Final = ("parked", "missed")  # of those without a row: the log has them
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
DAY: Final = 86_400_000_000
GROWTH, GROWN = 8, 6  # of the windows; after so many, all the rest
FIRST_IDS, FIRST_MICROSECONDS = 1_000, 1_000_000
PATIENCE = 2.0  # seconds: then a page says how far it looked
NOTHING: Final = "3:3:"  # a snapshot that saw no transaction
WIDE = 3600 * 1_000_000  # a window of failed attempts that is read as it lies, not through the index of each endpoint
# A plan that serves any window would expect wide ones.
_SETTINGS = "SET LOCAL plan_cache_mode = force_custom_plan"


class Page(NamedTuple, Generic[Row]):
    """Rows, newest first, and the cursor of what follows; None at the end."""

    rows: list[Row]
    more: Cursor | None


class Asked(NamedTuple):
    """Which part of a listing; `since` is in seconds."""

    limit: int
    before: Cursor | None = None
    since: float | None = None


class EventLine(NamedTuple):
    """An event and the number of its deliveries by state; `state` when it has none."""

    id: int
    event_id: str
    created_at: datetime
    type: str
    tenant: str
    size: int
    delivered: int
    retrying: int
    held: int
    parked: int
    exhausted: int
    rejected: int
    missed: int
    state: str | None  # scheduled | waiting | sending | unmatched | missed | unreadable
    ordering_key: str | None


class Head(NamedTuple):
    """The event that a row is about; what is past retention has only its number."""

    id: int
    event_id: str | None = None
    type: str | None = None
    created_at: datetime | None = None


class DeliveryLine(NamedTuple):
    """One event for one endpoint; code and error are those of the last attempt, or why it is parked or was missed."""

    event: Head
    endpoint_id: int
    state: str
    attempts: int
    code: int | None
    error: str | None
    due: datetime | None
    at: datetime | None  # of the last attempt


class AttemptLine(NamedTuple):
    """One request of a delivery."""

    event: Head
    at: datetime
    endpoint_id: int
    attempt: int
    ok: bool
    code: int | None
    ms: int | None
    error: str | None
    response: bytes | None  # only when it was asked for
    trigger: str | None  # what it was made for, where that is not the schedule: resend


class Recorded(NamedTuple):
    """The newest of some attempts, oldest first, how many more there are, and the snapshot to ask with next time."""

    rows: list[AttemptLine]
    left_out: int
    upto: str


class EndpointLine(NamedTuple):
    """An endpoint, its part of the backlog, and its last attempt."""

    id: int
    tenant: str
    name: str
    spec: bytes  # JSON
    removed_at: datetime | None
    paused_at: datetime | None
    disabled_at: datetime | None
    disabled_why: str | None
    why_parked: str | None  # why it reads the log with a cursor; None when it is live
    parked_at: datetime | None
    owner: int | None  # the daemon that sends to it
    fails: int  # probes, the opening of its breaker included; 0 when that is closed
    probe_at: datetime | None
    behind: datetime | None  # the moment of the log that its cursor has come to; None at the end of the log
    waiting: int  # deliveries, for a first attempt
    retrying: int
    held: int
    exhausted: int
    rejected: int
    parked: int  # events of the log before its cursors; of `parked_more` the first
    parked_more: bool
    missed: int  # of its ranges that were missed
    missed_more: bool
    why_missed: Sequence[str] | None
    oldest: datetime | None  # event of those that wait, are retrying or held
    at: datetime | None
    ok: bool | None
    code: int | None
    error: str | None
    ms: int | None

    @property
    def label(self) -> str:
        """As that of an Endpoint."""
        return label(self.tenant, self.name)


def label_of(names: Names, number: int) -> str:
    """How people see an endpoint, of which there may be no row any longer."""
    return label(*names.get(number, ("", f"#{number}")))


class Listings:
    """Questions with many answers, a page at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[Connection]:
        async with self._database.snapshot() as connection:
            await connection.execute(_SETTINGS)
            yield connection

    async def polled(self, ids: Sequence[int]) -> set[int]:
        """Those of these endpoints that are polled."""
        return {row[0] for row in await self._database.fetch(QUERIES["endpoints_polled"], list(ids))}

    async def names(self) -> Names:
        """Of each endpoint there was."""
        async with self._snapshot() as connection:
            return {row[0]: (row[1], row[2]) for row in await connection.fetch(QUERIES["list_names"])}

    async def endpoints(self, endpoint_id: int | None = None) -> list[EndpointLine]:
        """All endpoints by name, or the one of this number."""
        async with self._snapshot() as connection:
            return list(
                map(EndpointLine._make, await connection.fetch(QUERIES["list_endpoints"], endpoint_id, LOOKED_AT))
            )

    async def events(
        self, asked: Asked, regex: str | None, tenant: str | None, ordering_key: str | None = None
    ) -> Page[EventLine]:
        """Events whose type matches, of this tenant and with this key."""
        async with self._snapshot() as connection:
            since, newest, floor = await _bounds(connection, asked)

            async def look(lo: int, top: Cursor, limit: int) -> list[EventLine]:
                window = lo, top[0], since, regex, tenant, ordering_key, limit
                return list(map(EventLine._make, await connection.fetch(QUERIES["list_events"], *window)))

            top = asked.before or (newest + 1,)
            return await _page(look, lambda row: (row.id,), top, floor, (newest, FIRST_IDS), asked.limit)

    async def deliveries(
        self, asked: Asked, endpoint_id: int | None, states: Collection[str], event_id: str | None
    ) -> Page[DeliveryLine]:
        """Deliveries in one of these states, by event and endpoint."""
        async with self._snapshot() as connection:
            since, newest, floor = await _bounds(connection, asked)
            ids = await _ids(connection, event_id)
            owed = ["retry" if state == "retrying" else state for state in states if state not in ("delivered", *ASIDE)]
            aside = [state for state in states if state in (*ASIDE, "rejected")]  # what was discarded may have no row
            delivered = "delivered" in states

            async def look(lo: int, top: Cursor, limit: int) -> list[DeliveryLine]:
                found: dict[tuple[int, int], Any] = {}
                window = (lo, *top, since, endpoint_id, ids, limit)
                if delivered:
                    only_delivered = len(states) < len(STATES)
                    for row in await connection.fetch(QUERIES["list_tried"], *window, only_delivered):
                        found[row[0], row[1]] = row
                for name, wanted in (("list_owed", owed), ("list_aside", aside)):
                    for row in await connection.fetch(QUERIES[name], *window, wanted) if wanted else ():
                        found[row[0], row[1]] = row
                keys = sorted(found, reverse=True)[:limit]
                return [DeliveryLine(Head(key[0]), *tuple(found[key])[1:]) for key in keys]

            width = FIRST_IDS
            if ids is not None:  # one window holds them
                newest, floor, width = max(ids), min(ids), max(ids)
            top = asked.before or (newest + 1, 0)
            page = await _page(
                look, lambda row: (row.event.id, row.endpoint_id), top, floor, (newest, width), asked.limit
            )
            heads = await _heads(connection, {row.event.id for row in page.rows})
            return Page([row._replace(event=heads.get(row.event.id, row.event)) for row in page.rows], page.more)

    async def attempts(
        self, asked: Asked, endpoint_ids: Sequence[int], event_id: str | None, *, failed: bool, responses: bool
    ) -> Page[AttemptLine]:
        """Attempts at these endpoints, only those that failed when `failed`."""
        async with self._snapshot() as connection:
            now = microseconds(await connection.fetchval(QUERIES["list_now"]))
            ids = await _ids(connection, event_id)

            async def look(lo: int, top: Cursor, limit: int) -> list[AttemptLine]:
                window = (moment(lo), moment(top[0]), *top[1:], failed, limit, responses, endpoint_ids)
                if ids is None and not (failed and min(top[0], now) - lo > WIDE):
                    rows = await connection.fetch(QUERIES["list_attempts"], *window)
                else:
                    rows = await connection.fetch(QUERIES["list_attempts_rare"], *window, ids)
                return [AttemptLine(Head(row[1]), row[0], *tuple(row)[2:]) for row in rows]

            floor = 0 if asked.since is None else now - int(asked.since * 1_000_000)
            top = asked.before or (now + DAY, 0, 0, 0)  # a clock of another daemon may be ahead
            page = await _page(
                look,
                lambda row: (microseconds(row.at), row.event.id, row.endpoint_id, row.attempt),
                top,
                floor,
                (now, FIRST_MICROSECONDS if ids is None else now),
                asked.limit,
            )
            heads = await _heads(connection, {row.event.id for row in page.rows})
            return Page([row._replace(event=heads.get(row.event.id, row.event)) for row in page.rows], page.more)

    async def recorded(
        self, since: str, endpoint_id: int | None, most: int, within: float, *, failed: bool, responses: bool
    ) -> Recorded:
        """Attempts that were recorded since a snapshot, those of them that began within so many seconds."""
        async with self._snapshot() as connection:
            query = QUERIES["list_recorded_failed" if failed else "list_recorded"]
            rows = await connection.fetch(query, since, endpoint_id, responses, within, most)
            upto: str = await connection.fetchval(QUERIES["list_snapshot"])
            heads = await _heads(connection, {row[1] for row in rows})
            found = [AttemptLine(heads.get(row[1], Head(row[1])), row[0], *tuple(row)[2:10]) for row in reversed(rows)]
            return Recorded(found, rows[0][10] - len(rows) if rows else 0, upto)


async def _page(
    look: Callable[[int, Cursor, int], Awaitable[list[Row]]],
    key: Callable[[Row], Cursor],
    top: Cursor,
    floor: int,
    first: tuple[int, int],
    limit: int,
) -> Page[Row]:
    """The newest rows before `top` and not below `floor`.

    `look(lo, top, limit)` gives those of a window; the first window is `first[1]` wide below `first[0]` or `top`.
    """
    rows: list[Row] = []
    newest, width = first
    began = time.monotonic()
    give_up = began + PATIENCE
    lo = max(min(top[0], newest) - width, floor)
    for n in itertools.count():
        rows += await look(lo, top, limit + 1 - len(rows))
        if len(rows) > limit:
            return Page(rows[:limit], key(rows[limit - 1]))
        if lo <= floor:
            return Page(rows, None)
        top = (lo, *[0] * (len(top) - 1))  # numbers begin at 1, so this is above all that lies below `lo`
        now = time.monotonic()
        if now > give_up:
            return Page(rows, top)
        growth = min(GROWTH, (give_up - now) / (now - began))  # the next one must end in time, too
        began = now
        width = int(width * growth)
        lo = floor if n > GROWN and growth == GROWTH else max(lo - width, floor)
    raise AssertionError("unreachable")


async def _bounds(connection: Connection, asked: Asked) -> tuple[datetime | None, int, int]:
    """Since when, the newest event, and the number below which none is of interest."""
    since = None
    if asked.since is not None:
        since = await connection.fetchval(QUERIES["list_now"]) - timedelta(seconds=asked.since)
    newest, floor = await connection.fetchrow(QUERIES["list_ids"], since or EPOCH)
    return since, newest, 0 if since is None else floor


async def _ids(connection: Connection, event_id: str | None) -> list[int] | None:
    if event_id is None:
        return None
    ids = [row[0] for row in await connection.fetch(QUERIES["list_event_ids"], event_id)]
    if not ids:
        raise WebhookdError(f"no event has the id {quoted(event_id)}: `webhookd events` lists them")
    return ids


async def _heads(connection: Connection, ids: set[int]) -> Mapping[int, Head]:
    return {row[0]: Head._make(row) for row in await connection.fetch(QUERIES["list_heads"], list(ids))}


def microseconds(at: datetime) -> int:
    """Since the epoch, exactly."""
    return (at - EPOCH) // timedelta(microseconds=1)


def moment(number: int) -> datetime:
    """The moment of so many microseconds since the epoch; OverflowError when no calendar has it."""
    return EPOCH + timedelta(microseconds=number)
