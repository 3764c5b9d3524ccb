"""What leaves memory without an attempt: to the backlog, since its endpoint cannot keep up, or to its end."""

import time
from collections.abc import Callable
from typing import Protocol

from webhookd.engine.dispatch.answers import Answers
from webhookd.engine.dispatch.feeds import Feed
from webhookd.engine.dispatch.ordering import Ordering
from webhookd.engine.dispatch.payloads import Payload
from webhookd.engine.dispatch.queues import SPILLED_MOST, EndpointQueue, Standing
from webhookd.model import Delivery, Ended, Postponed, Result, Unwanted


class Recorder(Protocol):
    """Where it is written what becomes of it."""

    def put(self, result: Result) -> None:
        """Record a result."""


class Spills:
    """`let_go(delivery, payload)` frees what one takes of the memory."""

    def __init__(
        self,
        recorder: Recorder,
        answers: Answers,
        ordering: Ordering,
        let_go: Callable[[Delivery, Payload | None], None],
        patience: float,
    ) -> None:
        self._recorder = recorder
        self._answers = answers
        self._ordering = ordering
        self._let_go = let_go
        self._patience = patience

    def spill(self, queue: EndpointQueue, delivery: Delivery) -> None:
        """This one, which is not in the queue, is owed later."""
        if delivery.batch is not None:
            queue.spilled += 1
            if queue.spilled >= SPILLED_MOST and queue.feed is Feed.MEMORY:
                self._answers.on_trouble(queue.endpoint.id, "saturated")
        delay = max(queue.blocked_until - time.monotonic(), 0.0)
        self._recorder.put(Result(delivery, None, Postponed(delay)))

    def spill_all(self, queue: EndpointQueue, *, for_good: bool = False) -> None:
        """Nothing of it waits in memory any longer; `for_good`: it keeps no order any longer."""
        self._ordering.put_back(queue, for_good=for_good)
        for delivery, payload in queue.take_all():
            if delivery.gone:
                continue
            if queue.order is not None:
                queue.order.over(delivery)
            self._let_go(delivery, payload)
            self.spill(queue, delivery)

    def spill_overdue(self, queue: EndpointQueue, now: float) -> bool:
        """What has waited for too long for its endpoint waits elsewhere; True when there may have been such."""
        if queue.is_shut(now):
            self.spill_all(queue)
            return True
        if queue.order is not None:
            return False  # those behind wait at nobody's cost: of each key a few are in memory
        stuck = queue.standing is Standing.STUCK
        for delivery, payload in queue.take_overdue(now if stuck else now - self._patience):
            self._let_go(delivery, payload)
            self.spill(queue, delivery)
        return True

    def put_off(self, queue: EndpointQueue | None, delivery: Delivery) -> None:
        """This one, which is not in the queue, is left to the backlog, whatever there is room for."""
        if queue is None or not self._ordering.hold(queue, delivery):
            self._recorder.put(Result(delivery, None, Postponed(0.0)))

    def end(self, queue: EndpointQueue | None, delivery: Delivery, outcome: Ended | Unwanted) -> None:
        """Its payload cannot be had, or nobody wants that, so it ends."""
        self._let_go(delivery, None)
        self._recorder.put(Result(delivery, None, outcome))
        if queue is not None:
            self._ordering.ended(queue, delivery, over=True)

    def discard(self, queue: EndpointQueue, which: Callable[[Delivery], bool]) -> None:
        """Nobody wants these any longer."""
        self._ordering.discard(queue, which, self._answers.discard)
        for delivery, payload in queue.take(lambda delivery: delivery.key is None and which(delivery)):
            self._let_go(delivery, payload)
            self._answers.discard(delivery)
            self._ordering.ended(queue, delivery, over=True)

    def release(self, queue: EndpointQueue) -> None:
        """Let the next daemon start at once what we claimed and did not send."""
        waiting = [] if queue.order is None else queue.order.waiting(())
        for delivery in dict.fromkeys([*waiting, *(delivery for delivery, _ in queue.take_all())]):
            if delivery.batch is None and not delivery.lent and not delivery.gone:
                self._recorder.put(Result(delivery, None, Postponed(0.0)))
