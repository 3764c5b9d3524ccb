"""What there is for a polled endpoint from a place in the log on.

pages of the log ──▶ what it is owed ──▶ what the events say ──▶ filters of payloads ──▶ items
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple, Protocol

import structlog

from webhookd.engine.parked.log_pages import Heads, LogPages, Opened
from webhookd.engine.polled.tail import Tail
from webhookd.message import request
from webhookd.metadata import parsed
from webhookd.model import Delivery, Endpoint, Event
from webhookd.policy.payload_filter import look_up, passes
from webhookd.policy.polling import WHOLE, Place

READERS: Final = 4  # that read the log at once, as there are connections for
PAGES: Final = 100  # of the log in one go, after which another reader has its turn
AT_ONCE: Final = 250  # events whose payloads are fetched together
BYTES: Final = 4 << 20  # of payloads, with which a page is full
FETCHED_SECONDS: Final = 1.0  # for which what events say is there for others who wake with one
FETCHED_BYTES: Final = 4 << 20  # of these
OF_EACH: Final = 500  # bytes besides
MAKING: Final = 0.005  # seconds of making items, until others have their turn on the loop
FEW: Final = 100  # items
COURTESY: Final = 0.03  # seconds that who is behind leaves to deliveries, after each page of more
FOREVER: Final = float("inf")
UNSENT: Final = frozenset(("user-agent", "accept-encoding", "webhook-attempt"))  # headers about sending alone

log = structlog.get_logger("webhookd.polls")


class Content(Protocol):
    """What an event says."""

    @property
    def payload(self) -> bytes: ...
    @property
    def metadata(self) -> bytes | None: ...
    @property
    def deliver_after(self) -> datetime | None: ...
    @property
    def alias(self) -> str | None: ...


class Contents(Heads, Protocol):
    """The events."""

    async def contents(self, events: Sequence[Event], most_bytes: int) -> Mapping[int, Content]:
        """What these say, by event id; nothing for one that is gone or cannot be read."""


class Item(NamedTuple):
    """An event as it is fetched: the body and the headers that a request would have."""

    event: Event
    content: Content
    headers: Mapping[str, str]
    body: bytes


class Wanted(NamedTuple):
    """How many events, and which of those that the endpoint is owed: of one type, with one channel."""

    most: int
    type: str | None = None
    channel: str | None = None


class Read(NamedTuple):
    """What there is from a place on, and the place behind it; `at_end` when that is the end of the log."""

    items: Sequence[Item]
    place: Place
    at_end: bool


class Reading:
    """Reads for who polls; `source` and `max_payload` are those of the configuration."""

    def __init__(self, pages: LogPages, tail: Tail, contents: Contents, user_agent: str) -> None:
        self._pages = pages
        self._tail = tail
        self._store = contents
        self._user_agent = user_agent
        self.source = ""
        self.max_payload = 0  # bytes
        self._reading = asyncio.Semaphore(READERS)
        self._coming: dict[int, asyncio.Future[None]] = {}  # what is being fetched
        self._fetched: OrderedDict[int, tuple[float, Content]] = OrderedDict()
        self._fetched_bytes = 0

    async def read(self, endpoint: Endpoint, place: Place, wanted: Wanted) -> Read:
        """What there is now."""
        async with self._reading:
            found = await self._read(endpoint, place, wanted)
        if len(found.items) > FEW and not found.at_end:
            await asyncio.sleep(COURTESY)
        return found

    async def _read(self, endpoint: Endpoint, place: Place, wanted: Wanted) -> Read:
        items: list[Item] = []
        size = 0
        for _ in range(PAGES):
            place = self._tail.passed(place, endpoint.id)
            page = await self._pages.page(place.next_batch)
            if page is None:
                return Read(items, place, at_end=True)
            owed = _owed(page, endpoint, place, wanted)
            while owed:
                room = min(wanted.most - len(items), AT_ONCE)
                if room <= 0 or size >= BYTES:
                    return Read(items, Place(page.id, owed[0][0], page.nonce), at_end=False)
                some = _up_to(BYTES - size, owed[:room])
                owed = owed[len(some) :]
                items += await self._items(endpoint, some, wanted.channel)
                size += sum(event.size for event in some)
            place = Place(page.id, WHOLE, page.nonce)
            if items and self._tail.ends_with(place):
                break  # all who are woken would ask whether there is more, and he will ask himself
        return Read(items, place, at_end=False)

    async def _items(self, endpoint: Endpoint, events: Sequence[Event], channel: str | None) -> list[Item]:
        contents = await self._contents(events)
        timestamp, items, began = int(time.time()), list[Item](), time.monotonic()
        for event in events:
            content = contents.get(event.id)
            if content is None and event.size > self.max_payload:
                log.warning("item_too_large", endpoint=endpoint.label, event_id=event.event_id, bytes=event.size)
            if content is not None and _fits(endpoint, content, channel):
                whole = event._replace(metadata=content.metadata, unread=0, payload=None)
                delivery = Delivery(whole, endpoint, None, 0, 0.0, 0.0, FOREVER)
                try:
                    made = request.build(delivery, content.payload, timestamp, self.source, self._user_agent)
                except Exception:  # which must cost nobody the other events
                    log.exception("item_broke", endpoint=endpoint.label, event_id=event.event_id)
                    continue
                headers = {name: value for name, value in made.headers.items() if name not in UNSENT}
                items.append(Item(whole, content, headers, made.content))
            if time.monotonic() > began + MAKING:
                await asyncio.sleep(0)
                began = time.monotonic()
        return items

    async def _contents(self, events: Sequence[Event]) -> dict[int, Content]:
        """What these say. What one fetches who was woken, the others find who were woken with him."""
        now = time.monotonic()
        known: dict[int, Content] = {}
        mine, others = list[Event](), list[Event]()
        for event in events:
            kept = self._fetched.get(event.id)
            if kept is not None and kept[0] > now:
                known[event.id] = kept[1]
            else:
                (others if event.id in self._coming else mine).append(event)
        if mine:
            known |= await self._fetch(mine)
        if coming := {self._coming[event.id] for event in others if event.id in self._coming}:
            await asyncio.wait(coming)
        return known | await self._contents(others) if others else known

    async def _fetch(self, events: Sequence[Event]) -> Mapping[int, Content]:
        coming = asyncio.get_running_loop().create_future()
        self._coming |= dict.fromkeys((event.id for event in events), coming)
        try:
            found = await self._store.contents(events, self.max_payload)
            self._keep(found)
        finally:
            for event in events:
                del self._coming[event.id]
            coming.set_result(None)  # who waits for it looks whether it is there, and else fetches it himself
        return found

    def _keep(self, found: Mapping[int, Content]) -> None:
        now = time.monotonic()
        for id_, content in found.items():
            if (old := self._fetched.pop(id_, None)) is not None:
                self._fetched_bytes -= _size(old[1])
            self._fetched[id_] = now + FETCHED_SECONDS, content
            self._fetched_bytes += _size(content)
        while self._fetched:
            id_, (until, content) = next(iter(self._fetched.items()))
            if until > now and self._fetched_bytes <= FETCHED_BYTES:
                break
            del self._fetched[id_]
            self._fetched_bytes -= _size(content)


def _owed(page: Opened, endpoint: Endpoint, place: Place, wanted: Wanted) -> list[tuple[int, Event]]:
    """What of a page the endpoint is owed and has not got, and where it stands."""
    since = place.skips(page.id)
    return [
        (at, event)
        for at, event in page.owed(endpoint.id)
        if at >= since and (wanted.type is None or event.type == wanted.type)
    ]


def _up_to(most: int, owed: Sequence[tuple[int, Event]]) -> list[Event]:
    """The first of these events, so many that their payloads have no more bytes than that; one at least."""
    some, size = [owed[0][1]], owed[0][1].size
    for _, event in owed[1:]:
        size += event.size
        if size > most:
            break
        some.append(event)
    return some


def _fits(endpoint: Endpoint, content: Content, channel: str | None) -> bool:
    """True when what it says is what is wanted."""
    if channel is not None:
        labels = parsed(content.metadata)
        channels = labels.get("channels") if labels is not None else None
        if not isinstance(channels, list) or channel not in channels:
            return False
    conditions = endpoint.data_filter
    return not conditions or passes(conditions, look_up(content.payload, {each.path for each in conditions}))


def _size(content: Content) -> int:
    return len(content.payload) + len(content.metadata or b"") + OF_EACH
