"""The log as cursors read it: a batch is read once for all cursors near it, and matched once for all endpoints."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

import structlog

from webhookd.engine.state import Subscriptions
from webhookd.model import Endpoint, Event
from webhookd.policy.parking import Cursor, Place

AT_ONCE = 10  # batches in one query
PER_STEP = 40  # batches that a cursor may pass before others have their turn
KEPT = 40  # that several cursors may read
KEPT_SIZE = 1_000_000  # events of these, and endpoints that they are owed to
NUMBERED = 1_000  # events that are read by number at a time
MATCHING = 0.003  # seconds of looking for endpoints, before others have their turn on the loop

log = structlog.get_logger("webhookd.log_pages")


class Page(Protocol):
    """A batch."""

    @property
    def id(self) -> int: ...
    @property
    def cut_at(self) -> float: ...
    @property
    def event_ids(self) -> Sequence[int]: ...
    @property
    def lo(self) -> datetime: ...
    @property
    def hi(self) -> datetime: ...
    @property
    def late(self) -> bool: ...
    @property
    def config(self) -> int: ...
    @property
    def nonce(self) -> int: ...


class Store(Protocol):
    """Where pages come from."""

    async def pages(self, first: int, most: int) -> Sequence[Page]:
        """Batches from `first` on, in order."""

    async def unread(self, tenant: str) -> tuple[int, int | None]:
        """The last batch, and the lowest number that events of the tenant may have which are known and in none."""

    async def punctual(self, batch: int) -> int | None:
        """The first batch behind this one that was cut when nothing older was in none."""

    async def by_number(
        self, first: int, last: int, place: int, after: int, below: int | None, most: int
    ) -> Page | None:
        """What these batches hold behind a number, and behind a place in the first, as if it were one batch."""

    async def lower(self, first: int, last: int, number: int) -> Page | None:
        """Of the first of these batches that has events up to a number, these."""


class Heads(Protocol):
    """The events of the pages."""

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime) -> list[Event]:
        """Events without payloads, but for those that cannot be read."""

    async def set_aside(self, unreadable: Mapping[int, str]) -> None:
        """Show that these events, by their numbers, cannot be seen through, and why."""

    async def whole(self, event: Event) -> Event:
        """The event with what `heads` has left out of it."""


class Opened:
    """A page: its events by those that they are owed to, as most have that in common; and what that takes of memory."""

    def __init__(self, page: Page) -> None:
        self.id = page.id
        self.nonce = page.nonce
        self.cut_at = page.cut_at
        self.late = page.late
        self.size = len(page.event_ids)  # events, and endpoints of each of their sets
        self._owed: dict[int, tuple[tuple[Endpoint, ...], frozenset[int], list[tuple[int, Event]]]] = {}

    def add(self, at: int, event: Event, endpoints: tuple[Endpoint, ...]) -> None:
        """The event stands there, and is owed to these."""
        key = id(endpoints)  # the same for events of a type that nobody filters; to compare them would cost more
        if key not in self._owed:
            self._owed[key] = endpoints, frozenset(endpoint.id for endpoint in endpoints), []
            self.size += len(endpoints)
        self._owed[key][2].append((at, event))

    @property
    def endpoints(self) -> set[int]:
        """All that are owed something of it."""
        return set().union(*(ids for _, ids, _ in self._owed.values()))

    def owed(self, endpoint_id: int) -> list[tuple[int, Event]]:
        """What this endpoint is owed, and where it stands, in order."""
        return sorted(pair for _, ids, pairs in self._owed.values() if endpoint_id in ids for pair in pairs)


class Taken(NamedTuple):
    """What a cursor hands out next, and the place it comes to."""

    cursor: Cursor
    deliveries: Sequence[tuple[Event, float]]  # with the moment from which the three days count
    batch: int
    pos: int
    after: int = 0
    seen: int = 0

    @property
    def place(self) -> Place:
        """The place it comes to."""
        return self.batch, self.pos, self.after, self.seen


class LogPages:
    """Reads for cursors."""

    def __init__(self, store: Store, heads: Heads, subscriptions: Subscriptions) -> None:
        self._store = store
        self._heads = heads
        self._pages: OrderedDict[int, Opened] = OrderedDict()
        self._subscriptions = subscriptions

    def forget(self) -> None:
        """Match all anew, since others subscribe now."""
        self._pages = OrderedDict()

    async def read(self, cursor: Cursor, room: int, *, in_order: bool = False) -> Taken:
        """So many deliveries from where the cursor is, if there are so many within some batches.

        `in_order`: it ends before batches that were cut while something older was in none.
        """
        deliveries: list[tuple[Event, float]] = []
        batch, pos = cursor.batch, cursor.pos
        for _ in range(PER_STEP):
            page = await self.page(batch)
            if page is None or (in_order and page.late):
                break
            if cursor.to_batch is not None and page.id >= cursor.to_batch:
                batch, pos = cursor.to_batch, 0
                break
            since = pos if page.id == batch else 0
            for at, event in page.owed(cursor.endpoint_id):
                if at < since:
                    continue
                if len(deliveries) == room:
                    return Taken(cursor, deliveries, page.id, at)
                deliveries.append((event, max(page.cut_at, cursor.resumed_at)))
            batch, pos = page.id + 1, 0
        return Taken(cursor, deliveries, batch, pos)

    async def read_in_order(self, cursor: Cursor, room: int, tenant: str) -> Taken:
        """The same, so that what was committed before another began comes before it.

        A large transaction enters several batches, and one that began after its commit may be cut between them. Where
        that may be, all of these batches are read at once, by number, as far as nothing lower may still come.
        """
        page = await self.page(cursor.batch)
        if page is None or not page.late:
            return await self.read(cursor, room, in_order=True)
        first, pos, after, seen = cursor.place
        newest, below = await self._store.unread(tenant)
        if (punctual := await self._store.punctual(page.id)) is not None:
            last, below = punctual - 1, None
        else:
            last = newest
        if cursor.to_batch is not None:
            last = min(last, cursor.to_batch - 1)
        # What has come meanwhile may have lower numbers, as it was due only then, or committed.
        low = await self._store.lower(max(seen + 1, first), last, after) if after and seen < last else None
        if low is not None:
            owed = (await self._opened(low)).owed(cursor.endpoint_id)
            return Taken(cursor, [(event, self._since(cursor, low)) for _, event in owed], first, pos, after, low.id)
        found = await self._store.by_number(first, last, pos, after, below, NUMBERED)
        if found is None:
            return Taken(cursor, (), *((last + 1, 0) if below is None else (first, pos, after, last)))
        deliveries: list[tuple[Event, float]] = []
        for at, event in (await self._opened(found)).owed(cursor.endpoint_id):
            if len(deliveries) == room:
                return Taken(cursor, deliveries, first, pos, found.event_ids[at] - 1, last)
            deliveries.append((event, self._since(cursor, found)))
        if below is None and len(found.event_ids) < NUMBERED:
            return Taken(cursor, deliveries, last + 1, 0)
        return Taken(cursor, deliveries, first, pos, found.event_ids[-1], last)

    @staticmethod
    def _since(cursor: Cursor, page: Page) -> float:
        return max(page.cut_at, cursor.resumed_at)

    async def page(self, batch: int) -> Opened | None:
        """The first batch from there on; None at the end of the log."""
        pages = self._pages
        if batch in pages:
            pages.move_to_end(batch)
            return pages[batch]
        opened = [await self._opened(page) for page in await self._store.pages(batch, AT_ONCE)]
        pages |= {page.id: page for page in opened}  # `forget` may have put others in their place meanwhile
        while len(pages) > KEPT or (len(pages) > 1 and sum(page.size for page in pages.values()) > KEPT_SIZE):
            pages.popitem(last=False)
        return opened[0] if opened else None  # not `batch` itself where ids have a gap, since a copy was taken over

    async def _opened(self, page: Page) -> Opened:
        opened = Opened(page)
        await self._subscriptions.catch_up(page.config)
        if page.event_ids:
            events = {event.id: event for event in await self._heads.heads(page.event_ids, page.lo, page.hi)}
            began = time.monotonic()
            for at, id_ in enumerate(page.event_ids):
                if (event := events.pop(id_, None)) is not None:
                    whole = await self._heads.whole(event) if event.unread else event
                    try:
                        endpoints = self._subscriptions.endpoints_for(whole)
                    except Exception as error:  # which must hold up no cursor
                        log.exception("matching_broke", event_id=event.event_id)
                        await self._heads.set_aside({id_: f"a bug of webhookd in matching: {type(error).__name__}"})
                        continue
                    if endpoints:
                        opened.add(at, event.lean(), endpoints)
                    if time.monotonic() > began + MATCHING:
                        await asyncio.sleep(0)
                        began = time.monotonic()
            await asyncio.sleep(0)
        return opened
