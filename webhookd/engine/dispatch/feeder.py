"""Brings payloads to the deliveries that start next: late, many in one query, and within a byte budget."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog

from webhookd.engine.dispatch.payloads import Payload, Payloads
from webhookd.engine.dispatch.queues import EndpointQueue
from webhookd.model import UNWANTED, Delivery, Ended, Event, Unwanted
from webhookd.policy.rotation import Rotation
from webhookd.tasks import Setbacks

AHEAD = 200  # deliveries of an endpoint whose payloads are at hand
EVENTS_PER_FETCH = 500
AWAY_SECONDS = 1.0
LOOKING_SECONDS = 0.005  # into payloads, until others have their turn

Chosen = list[tuple[EndpointQueue, Delivery]]

log = structlog.get_logger("webhookd.feeder")


class Store(Protocol):
    """What the feeder needs of the log."""

    async def payloads(self, events: Sequence[Event], most_bytes: int) -> dict[int, bytes | str]:
        """Payload texts by event id, or the reason why there is none; nothing for an event that is gone."""

    async def metadata(self, events: Sequence[Event]) -> dict[int, bytes]:
        """Metadata texts by event id; nothing for an event that is gone."""


class Feeder:
    """Moves deliveries from `waiting` to `ready`, queues in turns. `run` ends when it is cancelled.

    `on_ready(queue)` is called when a queue has something ready, `on_ended(delivery, outcome)` when a payload cannot be
    had, or says that nobody wants it, and `on_fed()` after each round. `paths` are those that filters look for.
    """

    def __init__(
        self,
        store: Store,
        queues: Iterable[EndpointQueue],
        max_payload: int,
        *,
        on_ready: Callable[[EndpointQueue], None],
        on_ended: Callable[[Delivery, Ended | Unwanted], None],
        on_fed: Callable[[], None],
    ) -> None:
        self._store = store
        self._queues = queues
        self.max_payload = max_payload
        self._on_ready = on_ready
        self._on_ended = on_ended
        self._on_fed = on_fed
        self._payloads = Payloads()
        self._hungry: Rotation[EndpointQueue] = Rotation()
        self._wake = asyncio.Event()
        self.setbacks = Setbacks("feeder", AWAY_SECONDS)
        self._starved = False  # a payload had to wait for the budget
        self.paths: set[str] = set()
        self._looking_until = 0.0  # monotonic: until then payloads are looked into, and then others have their turn
        self._has_more = False

    def ask(self, queue: EndpointQueue) -> None:
        """Feed this queue when it runs low."""
        if queue.waiting and len(queue.ready) <= AHEAD // 2:
            self._hungry.add(queue.endpoint.tenant, queue)
            self._wake.set()

    def drop(self, event: Event) -> None:
        """One delivery less needs the payload of this event."""
        if self._payloads.drop(event):
            self._ask_the_starved()

    def _ask_the_starved(self) -> None:
        if self._starved:
            self._starved = False
            for queue in self._queues:
                self.ask(queue)

    async def run(self) -> None:
        """Feed until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while (chosen := self._choose()) or self._has_more:
                    await self._fetch(chosen)
                    self.setbacks.over()
                    self._on_fed()
            except Exception as error:
                pause = self.setbacks.met(error)
                if self.setbacks.is_worth_a_line:
                    log.warning("payloads_wait", seconds=round(pause, 1), reason=self.setbacks.problem)
                self._wake.set()
                await asyncio.sleep(pause)

    def _choose(self) -> Chosen:
        """The next deliveries that need a fetch; those whose payload is at hand are ready at once."""
        chosen: Chosen = []
        new: set[int] = set()
        whole = self._has_more = False
        self._looking_until = time.monotonic() + LOOKING_SECONDS
        try:
            while len(new) < EVENTS_PER_FETCH and not self._has_more and (queue := self._hungry.take()) is not None:
                self._feed(queue, chosen, new)
            self._on_fed()
            whole = True
        finally:
            if not whole:
                self._put_back(chosen, {delivery.event.id: delivery.event for _, delivery in chosen}.values())
        return chosen

    def _feed(self, queue: EndpointQueue, chosen: Chosen, new: set[int]) -> None:
        room = AHEAD - len(queue.ready)
        skipped: list[Delivery] = []  # too large for now; what is behind them passes
        while room > 0 and queue.waiting and len(new) < EVENTS_PER_FETCH and len(skipped) < AHEAD:
            if queue.endpoint.data_filter and time.monotonic() > self._looking_until:
                self._has_more = True
                break
            delivery = queue.waiting.popleft()
            event = delivery.event
            if delivery.gone:
                continue
            if event.id in new:
                chosen.append((queue, delivery))
            elif (payload := self._payloads.use(event)) is not None:
                self._put(queue, delivery, payload)
            elif self._payloads.reserve(event):
                new.add(event.id)
                chosen.append((queue, delivery))
            else:
                skipped.append(delivery)
                continue
            room -= 1
        if skipped:
            queue.waiting.extendleft(reversed(skipped))
            self._starved = True
        if self._has_more:
            self.ask(queue)
        if queue.ready:
            self._on_ready(queue)

    def _put(self, queue: EndpointQueue, delivery: Delivery, payload: Payload) -> None:
        conditions = queue.endpoint.data_filter
        if delivery.gone:
            self.drop(delivery.event)
        elif conditions and not payload.passes(conditions, self.paths) and queue.order is None:  # else in its turn
            self.drop(delivery.event)
            self._on_ended(delivery, UNWANTED)
        else:
            queue.has_fed(delivery, payload)

    async def _fetch(self, chosen: Chosen) -> None:
        """Fetch the payloads of these deliveries. What has not come to its place when anything fails waits again."""
        if not chosen:
            return await asyncio.sleep(0)
        reserved = {delivery.event.id: delivery.event for _, delivery in chosen}
        left, here = deque(chosen), list[Event]()
        try:
            gone = await self._bring(reserved, here)
            while left:
                queue, delivery = left[0]
                payload = self._payloads.use(delivery.event)
                if payload is not None:
                    self._put(queue, delivery, payload)
                elif not delivery.gone:
                    self._on_ended(delivery, Ended("rejected", gone[delivery.event.id]))
                left.popleft()
                self._on_ready(queue)
                self.ask(queue)
                if queue.endpoint.data_filter and time.monotonic() > self._looking_until:
                    await asyncio.sleep(0)
                    self._looking_until = time.monotonic() + LOOKING_SECONDS
        finally:
            for event in here:
                self.drop(event)
            if left:
                self._put_back(left, reserved.values())

    async def _bring(self, reserved: dict[int, Event], here: list[Event]) -> dict[int, str]:
        """Have what is reserved at hand, and `here` which; of the others, why not."""
        large = [event for event in reserved.values() if event.unread]
        metadata = await self._store.metadata(large) if large else {}
        found = await self._store.payloads(list(reserved.values()), self.max_payload)
        gone: dict[int, str] = {}
        for event in list(reserved.values()):
            content = found.get(event.id, "event_missing")
            if event.unread and event.id not in metadata and not isinstance(content, str):
                content = "event_unreadable"
            del reserved[event.id]
            if isinstance(content, str):
                gone[event.id] = content
                self._payloads.release(event)
                self._ask_the_starved()
            else:
                self._payloads.keep(event, content, metadata.get(event.id))
                here.append(event)
        return gone

    def _put_back(self, chosen: Sequence[tuple[EndpointQueue, Delivery]], events: Iterable[Event]) -> None:
        for event in events:
            self._payloads.release(event)
        for queue, delivery in reversed(chosen):
            if not delivery.gone:
                queue.waiting.appendleft(delivery)
            self.ask(queue)
        for queue in {queue for queue, _ in chosen}:
            self._on_ready(queue)  # nothing is, but one whose endpoint went meanwhile is asked by nobody again
