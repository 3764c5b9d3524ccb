"""Slots for what is sent beside the queues, on somebody's word, and so whatever keeps its endpoint from being sent to.

Who wants one stands in line at the endpoint, and has the next that is free: meanwhile the queue leaves it one. So that
what is owed goes on, no more than half of an endpoint's slots are had in this way.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from webhookd.engine.dispatch.feeds import Feed
from webhookd.engine.dispatch.lanes import Lanes
from webhookd.engine.dispatch.queues import EndpointQueue, Host
from webhookd.engine.dispatch.scheduler import Scheduler
from webhookd.model import Endpoint

MOST: Final = 5  # slots of an endpoint
LOOK_SECONDS: Final = 0.01  # between two looks whether a slot is free


class Reservations:
    """Keeps what is beside the queues within the limits of endpoints and hosts. It takes no slot of the daemon."""

    def __init__(self, queues: Mapping[int, EndpointQueue], scheduler: Scheduler, lanes: Lanes) -> None:
        self._queues = queues
        self._scheduler = scheduler
        self._lanes = lanes
        self._lines: dict[int, list[object]] = {}  # by endpoint: who has a slot of it, and who waits for one

    @property
    def is_open(self) -> bool:
        """False while nothing at all may start."""
        return not self._lanes.takes_nothing

    def is_sender(self, endpoint_id: int) -> bool:
        """True when slots of this endpoint are ours, or when it has none as it is sent nothing."""
        queue = self._queues.get(endpoint_id)
        return queue is None or (queue.feed is not Feed.NONE and queue.most > 0)

    def left(self, endpoint: Endpoint) -> int:
        """How many more may ask for a slot of this endpoint."""
        queue = self._queues.get(endpoint.id)
        most = endpoint.max_in_flight if queue is None else queue.most
        return min(max(most // 2, 1), MOST) - len(self._lines.get(endpoint.id, ()))

    @asynccontextmanager
    async def slot(self, endpoint: Endpoint, seconds: float) -> AsyncIterator[bool]:
        """True once there is a slot, and the rate allows a start; False when that takes longer than so many seconds."""
        line = self._lines.setdefault(endpoint.id, [])
        line.append(place := object())
        self._reserve(endpoint.id, len(line))
        host: Host | None = None
        try:
            if await self._first(endpoint, line, place, time.monotonic() + seconds):
                queue = self._queues.get(endpoint.id)
                if queue is not None:
                    host = queue.host
                    host.flying += 1
                yield True
            else:
                yield False
        finally:
            line.remove(place)
            if not line:
                del self._lines[endpoint.id]
            self._reserve(endpoint.id, len(line))
            if host is not None:
                host.flying -= 1
            if (queue := self._queues.get(endpoint.id)) is not None:
                self._scheduler.vacated(queue)
                self._lanes.fill()

    def _reserve(self, endpoint_id: int, slots: int) -> None:
        if (queue := self._queues.get(endpoint_id)) is not None:
            queue.reserved = slots

    async def _first(self, endpoint: Endpoint, line: list[object], place: object, until: float) -> bool:
        at = time.monotonic()
        queue = self._queues.get(endpoint.id)
        if queue is not None and queue.pace is not None:
            at = max(at, queue.pace.until)
            if at > until:
                return False
            queue.pace.started(at)
        host, waits_for_it = None if queue is None else queue.host, False
        try:
            while True:
                is_next = time.monotonic() >= at and self._is_free(endpoint, line.index(place))
                if host is not None and is_next is not waits_for_it:
                    host.reserved += 1 if is_next else -1
                    waits_for_it = is_next
                if is_next and (host is None or host.flying < max(host.most, 1)):
                    return self.is_open
                if time.monotonic() >= until or not self.is_open:
                    return False
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            if host is not None and waits_for_it:
                host.reserved -= 1

    def _is_free(self, endpoint: Endpoint, before: int) -> bool:
        queue = self._queues.get(endpoint.id)
        if queue is None:
            return before < endpoint.max_in_flight
        return before + len(queue.flying) < max(queue.most, 1)
