"""Hands out what parked endpoints are owed: of each as much as it has room for, where its cursor stands.

cursors, in turns ──▶ pages of the log ──▶ without what is settled ──▶ windows ──▶ dispatcher
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, Protocol

from webhookd.engine.parked.cursors import Cursors, first
from webhookd.engine.parked.log_pages import LogPages, Taken
from webhookd.engine.state import Subscriptions
from webhookd.model import Delivery, Window
from webhookd.policy.limiter import share
from webhookd.policy.parking import Cursor, in_turns
from webhookd.tasks import decided, in_slices

PASSED_ON = 200  # deliveries at a time of the end of a cursor that go to the backlog, since others have the slots
DEATHS_MOST = 3  # of senders, beyond which a cursor passes on what they may have died of, to be counted one by one
AT_ONCE = 500  # deliveries that are offered together
HAND_OUT_SECONDS = 0.25  # after which the follower looks what has changed
AT_A_TIME: Final = 100  # cursors that are looked at before others have their turn on the loop
FOREVER = float("inf")


class Store(Protocol):
    """What is asked of the log."""

    async def newest(self) -> int: ...
    async def settled(self, pairs: Sequence[tuple[int, int]], lo: datetime) -> set[tuple[int, int]]: ...


class Ordered(Protocol):
    """The endpoints that keep an order."""

    def reads_on(self, endpoint_id: int) -> bool: ...


class Dispatcher(Protocol):
    """Where deliveries go."""

    def room_for(self, tenant: str) -> int: ...
    def claimable(self, endpoint_id: int) -> tuple[int, float]: ...
    def breaker(self, endpoint_id: int) -> tuple[int, float]: ...
    @property
    def ordering(self) -> Ordered: ...
    def offer(self, delivery: Delivery) -> None: ...
    def put_off(self, delivery: Delivery) -> None: ...


class Recorder(Protocol):
    """Where windows end."""

    def settle(self, batch: Window) -> None: ...


class Windows:
    """What cursors hand out. `owes(endpoint id)` says whether its backlog has something that is due."""

    def __init__(
        self,
        store: Store,
        pages: LogPages,
        dispatcher: Dispatcher,
        recorder: Recorder,
        cursors: Cursors,
        subscriptions: Subscriptions,
        owes: Callable[[int], bool],
        stopped: asyncio.Event,
    ) -> None:
        self._store = store
        self._pages = pages
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._cursors = cursors
        self._subscriptions = subscriptions
        self._owes = owes
        self._turn = 0  # of handing out
        self._stopped = stopped

    async def hand_out(self) -> bool:
        """Offer what has room; True when something was."""
        if not await self._any_room():
            return False
        until = time.monotonic() + HAND_OUT_SECONDS
        some: list[Taken] = []
        count, handed_out = 0, False
        upcoming = list(first(self._cursors, await self._store.newest()).values())
        self._turn += 1
        async for cursor in in_slices(await decided(upcoming, in_turns, self._tenant), AT_A_TIME):
            if (room := self._room(cursor, count)) > 0:
                cursor.turn = self._turn
                some.append(await self._read(cursor, room))
                count += len(some[-1].deliveries)
                handed_out = handed_out or some[-1].place > cursor.place
            if count >= AT_ONCE:
                await self._offer_all(some)
                some, count = [], 0
            if time.monotonic() >= until or self._stopped.is_set():
                break
        await self._offer_all(some)
        return handed_out

    async def _any_room(self) -> bool:
        async for cursor in in_slices(self._cursors, AT_A_TIME):
            if self._room(cursor) > 0:
                return True
        return False

    async def _read(self, cursor: Cursor, room: int) -> Taken:
        endpoint = self._subscriptions.endpoint(cursor.endpoint_id)
        if endpoint is None or not endpoint.ordered:
            return await self._pages.read(cursor, room)
        return await self._pages.read_in_order(cursor, room, endpoint.tenant)

    async def _offer_all(self, some: Sequence[Taken]) -> None:
        pairs = [(event.id, each.cursor.endpoint_id) for each in some for event, _ in each.deliveries]
        settled: set[tuple[int, int]] = set()
        if pairs:
            oldest = min(event.created_at for each in some for event, _ in each.deliveries)
            settled = await self._store.settled(pairs, oldest)
        for each in some:
            self._offer(each, settled)
        await asyncio.sleep(0)

    def _tenant(self, endpoint_id: int) -> str:
        endpoint = self._subscriptions.endpoint(endpoint_id)
        return endpoint.tenant if endpoint is not None else ""

    def _room(self, cursor: Cursor, taken: int = 0) -> int:
        """What its endpoint can take, and memory, when so much of that is about to be offered."""
        id_ = cursor.endpoint_id
        endpoint = self._subscriptions.endpoint(id_)
        if endpoint is None:
            return 0
        if id_ not in self._cursors.fed:  # it is live again, and this is the end of its cursor
            shares = self._subscriptions.shares
            if not share(endpoint.max_in_flight, *shares.place(shares.of(id_)), id_):
                return max(min(PASSED_ON, self._dispatcher.room_for(endpoint.tenant) - taken), 0)
        if endpoint.ordered and id_ in self._cursors.leaving:
            return 0  # what it had handed out is not settled, and comes before what is behind it
        if not self._dispatcher.ordering.reads_on(id_) or (self._dispatcher.breaker(id_)[0] and self._owes(id_)):
            return 0  # a probe is what has failed before, if there is such
        claimable = self._dispatcher.claimable(id_)[0]
        if claimable and cursor.deaths > DEATHS_MOST:
            claimable = PASSED_ON  # at least what they had in hand
        return claimable and min(claimable, self._dispatcher.room_for(endpoint.tenant) - taken)

    def _offer(self, taken: Taken, settled: set[tuple[int, int]]) -> None:
        cursor = taken.cursor
        endpoint = self._subscriptions.endpoint(cursor.endpoint_id)
        is_ours = self._cursors.has(cursor)
        if endpoint is None or not is_ours or taken.place <= cursor.place:
            return  # it has gone meanwhile, or nothing was there
        window = cursor.move(*taken.place)
        for event, clock_from in taken.deliveries:
            if (event.id, cursor.endpoint_id) not in settled:
                window.open += 1
                delivery = Delivery(event, endpoint, window, 0, clock_from, time.monotonic(), FOREVER)
                if cursor.deaths > DEATHS_MOST:
                    self._dispatcher.put_off(delivery)
                else:
                    self._dispatcher.offer(delivery)
        cursor.deaths = 0
        self._recorder.settle(window)
