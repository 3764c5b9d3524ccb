"""Keeps the order of endpoints that have one: what follows for those behind when one ends, fails, or must wait."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from webhookd.engine.dispatch.feeds import Feed, FeedState
from webhookd.engine.dispatch.order import Order
from webhookd.engine.dispatch.payloads import Payload
from webhookd.engine.dispatch.queues import EndpointQueue, Flight
from webhookd.model import Delivery, Held, Outcome, Postponed, Result


class Recorder(Protocol):
    """Where what is held is written."""

    put_so_far: int
    written: int

    def put(self, result: Result) -> None:
        """Record a result."""


class Ordering:
    """`let_go(delivery, payload)` frees what one takes of the memory; `woken` is set when something may go on."""

    def __init__(self, recorder: Recorder, let_go: Callable[[Delivery, Payload | None], None]) -> None:
        self._recorder = recorder
        self._let_go = let_go
        self._queues: dict[int, EndpointQueue] = {}
        self._gone: dict[int, list[Flight]] = {}  # of what keeps an order no longer, or is ours no longer
        self._gone_at: dict[int, int] = {}  # number of the result of the last of these
        self.woken = asyncio.Event()

    @property
    def queues(self) -> Mapping[int, EndpointQueue]:
        """Those that keep an order, by the number of their endpoint."""
        return self._queues

    def ours(self) -> list[tuple[EndpointQueue, Order]]:
        """Those of them that we send to."""
        found = [(queue, queue.order) for queue in self._queues.values() if queue.feed is Feed.CURSOR]
        return [(queue, order) for queue, order in found if order is not None]

    def reads_on(self, endpoint_id: int) -> bool:
        """True when something that is read of the log now could be sent to this endpoint."""
        queue = self._queues.get(endpoint_id)
        return queue is None or queue.order is None or queue.order.reads_on

    def unparked(self) -> list[int]:
        """Those of them that nobody may send to, as they are not parked."""
        return [id_ for id_, queue in self._queues.items() if queue.feed is Feed.MEMORY]

    def still_flies(self, endpoint_id: int) -> bool:
        """True until it is written what became of what was in flight when its endpoint left us, or became another."""
        if (flights := self._gone.get(endpoint_id)) is not None:
            if any(each.delivery in each.queue.flying for each in flights):
                return True
            del self._gone[endpoint_id]
            self._gone_at[endpoint_id] = self._recorder.put_so_far
        if self._gone_at.get(endpoint_id, 0) > self._recorder.written:
            return True
        self._gone_at.pop(endpoint_id, None)
        return False

    # Which endpoints keep one.

    def keep(self, queue: EndpointQueue) -> None:
        """Know this endpoint as it is now; nothing of it waits in memory."""
        if queue.endpoint.ordered:
            for delivery in queue.flying:
                delivery.follow(queue.endpoint)  # it has the key that it has now
            queue.order = Order(queue.endpoint.ordered == "key", list(queue.flying))
            self._queues[queue.endpoint.id] = queue
            # What left memory a moment ago was noted by the order before; the backlog is looked at once it has that.
            self._gone_at[queue.endpoint.id] = self._recorder.put_so_far
            self.woken.set()
        elif self._queues.pop(queue.endpoint.id, None) is not None:
            queue.order = None
            self._left(queue)

    def forget(self, queue: EndpointQueue) -> None:
        """It is gone."""
        if self._queues.pop(queue.endpoint.id, None) is not None:
            self._left(queue)

    def _left(self, queue: EndpointQueue) -> None:
        if queue.flying:
            self._gone.setdefault(queue.endpoint.id, []).extend(queue.flying.values())
        self._gone_at[queue.endpoint.id] = self._recorder.put_so_far

    def follow(self, queue: EndpointQueue, fed: FeedState) -> None:
        """It is fed from there from now on. Whoever sent to it before us may have changed what the backlog has."""
        order = queue.order
        if order is not None and (order.epoch != fed.epoch or queue.feed is not fed.feed):
            self.put_back(queue)
            order.forget(fed.epoch)
            self.woken.set()

    # What becomes of deliveries.

    def admits(self, queue: EndpointQueue, delivery: Delivery) -> bool:
        """Give it its place; False when it is held, which is written."""
        if queue.order is None or queue.order.admits(delivery):
            return True
        if not delivery.lent:
            self._put(queue.order, delivery, Held())
        return False

    def hold(self, queue: EndpointQueue, delivery: Delivery) -> bool:
        """Have it held without a look at its turn; False when it has none."""
        if (order := queue.order) is None or delivery.key is None:
            return False
        order.block(delivery.key)
        self._put(order, delivery, Held())
        return True

    def ended(self, queue: EndpointQueue, delivery: Delivery, *, over: bool) -> None:
        """What became of it is put; `over`: those behind it go on, else they wait for it."""
        if (order := queue.order) is None:
            return
        if not over or delivery.batch is None or order.is_blocked(delivery):  # else the backlog never hears of it
            order.note(delivery, self._recorder.put_so_far, was_first=True)
        if over:
            ready, wanted = order.over(delivery)
            if ready is not None:
                queue.ready.append(ready)
            if wanted is not None:
                queue.waiting.append(wanted)
            if order.has_ended:
                self.woken.set()
            return
        for each, payload in order.stop(delivery, queue.flying):
            self._leave(each, payload or queue.take_ready(each))
            if not each.lent:
                self._put(order, each, Held())

    def discard(self, queue: EndpointQueue, which: Callable[[Delivery], bool], end: Callable[[Delivery], None]) -> None:
        """Let go of what of it has a key and waits in memory; `end` puts what becomes of it."""
        if (order := queue.order) is None:
            return
        for delivery in filter(which, order.waiting(queue.flying)):
            payload = order.fed.get(delivery) or queue.take_ready(delivery)
            self._leave(delivery, payload)
            end(delivery)
            self.ended(queue, delivery, over=True)

    def put_back(self, queue: EndpointQueue, *, for_good: bool = False) -> None:
        """What has a key leaves memory: of each the first is owed at once, the others are held behind it.

        `for_good`: its order ends, so all of it is owed at once.
        """
        if (order := queue.order) is None:
            return
        ready = dict(queue.ready)
        for delivery, payload, is_first in order.take_all(queue.flying):
            self._leave(delivery, payload or ready.get(delivery))
            if delivery.lent:
                continue  # its row is held, as it was
            if is_first or for_good:
                self._put(order, delivery, Postponed(0.0))
            else:
                self._put(order, delivery, Held())
        queue.ready = deque(pair for pair in queue.ready if not pair[0].gone)

    def _leave(self, delivery: Delivery, payload: Payload | None) -> None:
        delivery.gone = True
        self._let_go(delivery, payload)

    def _put(self, order: Order, delivery: Delivery, outcome: Outcome) -> None:
        self._recorder.put(Result(delivery, None, outcome))
        order.note(delivery, self._recorder.put_so_far, was_first=not isinstance(outcome, Held))
