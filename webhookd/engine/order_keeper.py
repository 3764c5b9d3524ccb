"""Brings back what is held behind others, in its order, as those before it end.

    head of a key ends ──▶ written ──▶ the next of what is held ──▶ dispatcher; when there is none, the log goes on

What others change of the backlog (a resend, a discard, a replay, a sender before us) is seen by looking now and then.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, Protocol

from webhookd.engine.dispatch.feeds import Feed
from webhookd.engine.dispatch.order import Order
from webhookd.engine.dispatch.ordering import Ordering
from webhookd.engine.dispatch.queues import EndpointQueue
from webhookd.engine.retrier import Claimed, gone
from webhookd.model import Delivery, Ended, Event, Result
from webhookd.tasks import Setbacks, wait_for

LOOK_SECONDS: Final = 0.5
LOOKS: Final = 4  # after which is seen what others have changed
RESTRAINT, RESTRAINT_MOST = 10.0, 30.0  # times what that took, until it is done again; seconds
WRITTEN_WITHIN: Final = 0.01  # seconds, after which we look again whether what ended is in the database
KEYS: Final = 50  # that go on at a time
OF_A_KEY, OF_ALL = 20, 200  # rows that are brought back at a time, of each key, and where one order is for all
FOREVER = float("inf")


class Found(Protocol):
    """What the backlog has."""

    @property
    def keys(self) -> Sequence[str]: ...
    @property
    def headless(self) -> Sequence[str]: ...
    @property
    def at(self) -> tuple[int, int]: ...
    @property
    def last(self) -> tuple[int, int]: ...


class Store(Protocol):
    """The rows."""

    async def holding(self) -> set[int]: ...
    async def look(self, endpoint_id: int, *, by_key: bool, holds: bool) -> Found | None: ...
    async def promote(self, endpoint_id: int, keys: Sequence[str], *, by_key: bool) -> None: ...
    async def release(self, endpoint_id: int) -> None: ...
    async def held(
        self, endpoint_id: int, keys: Sequence[str], most: int, *, by_key: bool
    ) -> Sequence[tuple[str, Claimed]]: ...
    async def owed(self, endpoint_id: int, keys: Sequence[str], *, by_key: bool) -> set[str]: ...


class Heads(Protocol):
    """The events behind the rows."""

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime) -> list[Event]: ...


class Dispatcher(Protocol):
    """Where they go."""

    ordering: Ordering

    def is_ours(self, endpoint_id: int) -> bool: ...
    def room_for(self, tenant: str) -> int: ...
    def claimable(self, endpoint_id: int) -> tuple[int, float]: ...
    def offer(self, delivery: Delivery) -> None: ...


class Recorder(Protocol):
    """Where it is known what is written."""

    put_so_far: int
    written: int

    def put(self, result: Result) -> None: ...


class OrderKeeper:
    """Keeps the rows of the endpoints that we send to in order."""

    def __init__(
        self,
        store: Store,
        heads: Heads,
        dispatcher: Dispatcher,
        recorder: Recorder,
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._store = store
        self._heads = heads
        self._dispatcher = dispatcher
        self._ordering = dispatcher.ordering
        self._recorder = recorder
        self._look_seconds = look_seconds
        self._next_look = 0.0
        self._stopped = asyncio.Event()
        self.setbacks = Setbacks("order keeper")

    def stop(self) -> None:
        """Bring back nothing more."""
        self._stopped.set()
        self._ordering.woken.set()

    async def run(self) -> None:
        """Keep order until stopped."""
        pause = 0.0
        while not self._stopped.is_set():
            await wait_for(self._ordering.woken, pause)
            self._ordering.woken.clear()
            if self._stopped.is_set():
                return
            try:
                pause = await self._look()
            except Exception as error:
                pause = self.setbacks.met(error)
                await wait_for(self._stopped, pause)
            else:
                self.setbacks.over()

    async def _look(self) -> float:
        """Do what there is to do; the seconds until there may be more, if nothing wakes us."""
        ours = self._ordering.ours()
        now = time.monotonic()
        is_due = now >= self._next_look
        if is_due:
            holding = await self._store.holding()
            await self._release(holding - self._ordering.queues.keys())
        for queue, order in ours:
            if self._ordering.still_flies(queue.endpoint.id):
                continue
            if not order.is_known or (is_due and (order.has_rows or queue.endpoint.id in holding)):
                await self._see(queue, order)
        if is_due:
            took = time.monotonic() - now
            self._next_look = now + max(LOOKS * self._look_seconds, min(took * RESTRAINT, RESTRAINT_MOST))
        waits = False
        for queue, order in ours:
            if order.has_ended and order.is_level:
                waits = await self._go_on(queue, order) or waits
        return WRITTEN_WITHIN if waits else self._look_seconds

    async def _see(self, queue: EndpointQueue, order: Order) -> None:
        """Know which keys have rows, and have a head for each of which nothing is in hand."""
        id_, written, epoch = queue.endpoint.id, self._recorder.written, order.epoch
        found = await self._store.look(id_, by_key=order.by_key, holds=queue.endpoint.holds)
        if found is None or not _is_as_before(queue, order, epoch):
            return
        if order.level_at is None:  # from here on what is held is behind that
            order.level_at = found.last
        order.know(found.keys, written)  # from here on nothing of them comes into memory, but for what is ours to bring
        order.is_level = order.is_level or found.at >= order.level_at
        if order.is_level and (headless := order.headless(found.headless, written)):
            await self._store.promote(id_, headless, by_key=order.by_key)

    async def _release(self, endpoint_ids: Iterable[int]) -> None:
        """Let go on what is held for those that keep no order any longer, once nothing of it is in our hands."""
        for id_ in endpoint_ids:
            if self._dispatcher.is_ours(id_) and not self._ordering.still_flies(id_):
                await self._store.release(id_)

    async def _go_on(self, queue: EndpointQueue, order: Order) -> bool:
        """Bring back what comes next of the keys whose first is through; True when some wait for what is written."""
        id_, epoch, written = queue.endpoint.id, order.epoch, self._recorder.written
        if not self._dispatcher.claimable(id_)[0] or self._dispatcher.room_for(queue.endpoint.tenant) <= 0:
            return False  # what lands there wakes us
        keys = order.wanted(written, KEYS)
        if not keys:
            return order.has_ended
        most = OF_A_KEY if order.by_key else OF_ALL
        rows = await self._store.held(id_, keys, most, by_key=order.by_key)
        none = set(keys) - {key for key, _ in rows}
        if none:
            none -= await self._store.owed(id_, list(none), by_key=order.by_key)
        events = await self._events([row for _, row in rows])
        if not _is_as_before(queue, order, epoch):
            return False
        for key in none:
            order.has_none(key, written)
        for key in set(keys) - none - {key for key, _ in rows}:
            order.has_head(key, written)
        free = {key for key in keys if order.is_free(key)}
        for key, row in rows:
            if key in free:
                self._offer(queue, order, row, events.get(row.event_id))
        return order.has_ended

    async def _events(self, rows: Sequence[Claimed]) -> dict[int, Event]:
        if not rows:
            return {}
        moments = [row.event_at for row in rows]
        found = await self._heads.heads([row.event_id for row in rows], min(moments), max(moments))
        return {event.id: event.lean() for event in found}

    def _offer(self, queue: EndpointQueue, order: Order, row: Claimed, event: Event | None) -> None:
        past = row.attempts, row.clock_from, time.monotonic(), FOREVER, row.asked, row.deaths
        replay = ("replay" if row.replay else None), row.replay
        delivery = Delivery(event or gone(row), queue.endpoint, None, *past, *replay, lent=True)
        if event is None:
            self._recorder.put(Result(delivery, None, Ended("rejected", "event_missing")))
            order.note(delivery, self._recorder.put_so_far, was_first=True)
        else:
            self._dispatcher.offer(delivery)


def _is_as_before(queue: EndpointQueue, order: Order, epoch: int) -> bool:
    return queue.order is order and queue.feed is Feed.CURSOR and order.epoch == epoch
