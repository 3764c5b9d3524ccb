"""Sends what is owed: one queue per endpoint, a slot in the endpoint and a slot in the daemon for each attempt.

    offer ──▶ queue.waiting ──payloads, within a byte budget──▶ queue.ready ──turn──▶ lane ──▶ recorder
                   │                                                 │
                   └── 3 s or 200 behind a slow endpoint: spilled to the backlog

A lane is a slot of the daemon: a task that attempts one delivery after the other, whose ever turn it is. What waits
for its endpoint leaves memory; what waits for a lane stays, and fills the memory until the reader stops reading.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog

from webhookd import outcome, request
from webhookd.backoff import horizon
from webhookd.clock import Clock
from webhookd.feeder import AHEAD, Feeder, Store
from webhookd.model import (
    Delivered,
    Delivery,
    Ended,
    Endpoint,
    NoResponse,
    Outcome,
    Postponed,
    Request,
    Response,
    Result,
    Retry,
)
from webhookd.payloads import Payload
from webhookd.queues import EndpointQueue
from webhookd.rotation import Rotation
from webhookd.tasks import wait_for

MOST_DELIVERIES = 20_000  # in memory, results that are not yet recorded included
LEAST_DELIVERIES = 4_000  # in memory, however slow things go
QUEUED = 200  # deliveries that may wait for an endpoint whatever its pace
PATIENCE = 3.0  # seconds a delivery may wait for its endpoint, or be in flight, before the backlog holds it
LEASE_MARGIN = 25.0  # seconds of a lease beyond the timeout of the attempt
SWEEP_SECONDS = 0.25

_DELIVERED = Delivered()

log = structlog.get_logger("webhookd.dispatcher")


class Sender(Protocol):
    """What the dispatcher needs of the network."""

    async def send(self, request: Request) -> Response | NoResponse:
        """The answer, whatever the receiver does."""


class Settings(Protocol):
    """What can be told to the dispatcher, also while it runs: `[delivery]` of the configuration."""

    @property
    def max_in_flight(self) -> int: ...
    @property
    def max_payload(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def response_body(self) -> str: ...


class Recorder(Protocol):
    """What the dispatcher needs of the recorder."""

    stuck: bool  # the database does not take results

    @property
    def pending(self) -> int:
        """Results that are not in the database yet."""

    def put(self, result: Result) -> None:
        """Record a result."""

    def lease(self, delivery: Delivery, seconds: float) -> None:
        """Give a delivery in flight a row of the backlog."""


class Dispatcher:
    """Attempts what is offered, as fast as endpoints and limits allow."""

    def __init__(
        self,
        store: Store,
        sender: Sender,
        recorder: Recorder,
        clock: Clock,
        delivery: Settings,
        *,
        random: Callable[[], float],
        user_agent: str,
        most_deliveries: int = MOST_DELIVERIES,
        patience: float = PATIENCE,
    ) -> None:
        self._sender = sender
        self._recorder = recorder
        self._clock = clock
        self._random = random
        self._user_agent = user_agent
        self._most_deliveries = most_deliveries
        self._patience = patience
        self._queues: dict[int, EndpointQueue] = {}
        self._turns: Rotation[EndpointQueue] = Rotation()  # queues that could start an attempt
        self._feeder = Feeder(
            store,
            self._queues.values(),
            delivery.max_payload,
            on_ready=self._ready,
            on_gone=self._reject,
            on_fed=self._fill_lanes,
        )
        self._held = 0  # deliveries in memory
        self._landed = 0  # attempts answered since the last sweep
        self._rate = 0.0  # of answered attempts, per second
        self._lanes = 0
        self._lane_group: asyncio.TaskGroup | None = None
        self._stopped = asyncio.Event()
        self._on_hold = False
        self.room_freed = asyncio.Event()  # set when a delivery leaves; whoever waits clears it
        self.downtimes: Sequence[tuple[float, float]] = ()
        self.configure((), delivery)

    # What the other parts ask.

    @property
    def room(self) -> int:
        """Deliveries that may still be offered; none while results cannot be written.

        No more than a second's work is taken into memory: what a fast endpoint cannot start within its patience would
        be spilled, at six times the cost of leaving it in the log a little longer.
        """
        if self._recorder.stuck:
            return 0
        most = min(max(int(self._rate), LEAST_DELIVERIES), self._most_deliveries)
        return most - self._held - self._recorder.pending

    @property
    def in_flight(self) -> int:
        """Attempts under way."""
        return sum(len(queue.flying) for queue in self._queues.values())

    def claimable(self, endpoint_id: int) -> tuple[int, float]:
        """How many deliveries of the backlog this endpoint could start soon, and the lease they need, in seconds."""
        queue = self._queues.get(endpoint_id)
        if queue is None or self._on_hold or self._stopped.is_set() or queue.blocked_until > time.monotonic():
            return 0, 0.0
        # As many again as it has slots keep an endpoint that answers at once busy until the next claim.
        slots = queue.endpoint.max_in_flight
        wanted = min(2 * slots, AHEAD) if queue.latency == 0 else min(max(slots, int(slots / queue.latency)), AHEAD)
        return max(wanted - len(queue) - len(queue.flying), 0), queue.endpoint.timeout + LEASE_MARGIN

    def last_start(self, delivery: Delivery) -> float:
        """The horizon of a delivery, on the database's clock."""
        return horizon(delivery.endpoint.retry, delivery.clock_from, self.downtimes)

    def offer(self, delivery: Delivery) -> None:
        """Attempt this delivery when its turn comes, or spill it when its endpoint cannot keep up."""
        queue = self._queues.get(delivery.endpoint.id)
        if queue is None:  # of another daemon's files, or gone from ours a moment ago: whoever has it finds it owed
            self._recorder.put(Result(delivery, None, Postponed(0.0)))
            return
        if delivery.event.size > self._max_payload:
            self._recorder.put(Result(delivery, None, Ended("rejected", "payload_too_large")))
            return
        if delivery.batch is not None and len(queue) >= QUEUED:
            wait = queue.expected_wait(time.monotonic())
            if wait > self._patience:
                self._spill(queue, delivery)
                return
        self._held += 1
        queue.waiting.append(delivery)
        self._feeder.ask(queue)

    def _ready(self, queue: EndpointQueue) -> None:
        if self._queues.get(queue.endpoint.id) is queue:
            self._turns.add(queue.endpoint.tenant, queue)
        else:
            self._spill_all(queue)  # its endpoint went while its payloads came

    def configure(self, endpoints: Iterable[Endpoint], delivery: Settings) -> None:
        """Go on with these endpoints and settings; what an endpoint that is gone was owed goes to the backlog."""
        self._max_in_flight = delivery.max_in_flight
        self._feeder.max_payload = self._max_payload = delivery.max_payload
        self._source = delivery.source
        self._keep_response = delivery.response_body == "failures"
        gone = set(self._queues)
        for endpoint in endpoints:
            gone.discard(endpoint.id)
            if (queue := self._queues.get(endpoint.id)) is not None:
                queue.change(endpoint)
            else:
                self._queues[endpoint.id] = EndpointQueue(endpoint)
        for endpoint_id in gone:
            self._spill_all(self._queues.pop(endpoint_id))
        self._fill_lanes()

    def hold(self, on_hold: bool) -> None:
        """Start no attempts while nobody can know whether we are alive."""
        if self._on_hold and not on_hold:
            self._on_hold = False
            self._fill_lanes()
        self._on_hold = on_hold

    def stop(self) -> None:
        """Start nothing more; run returns when every attempt in flight is answered."""
        self._stopped.set()

    async def run(self) -> None:
        """Attempt what is offered until stopped."""
        async with asyncio.TaskGroup() as group:
            self._lane_group = group
            feeding = group.create_task(self._feeder.run())
            group.create_task(self._sweep())
            await self._stopped.wait()
            feeding.cancel()  # it may hang in the database
        for queue in self._queues.values():
            self._release_claims(queue)

    # Lanes.

    def _fill_lanes(self) -> None:
        if self._lane_group is None:
            return
        while self._lanes < self._max_in_flight and (first := self._take()) is not None:
            self._lanes += 1
            self._lane_group.create_task(self._lane(*first))

    def _take(self) -> tuple[EndpointQueue, Delivery, Payload] | None:
        """The delivery whose turn it is, its slots taken."""
        if self._stopped.is_set() or self._on_hold:
            return None
        now = time.monotonic()
        while (queue := self._turns.take()) is not None:
            if not queue.startable(now):
                continue
            delivery, payload = queue.ready.popleft()
            self._feeder.ask(queue)
            if delivery.start_by < now:  # too late for its lease: whoever claims it next sends it
                self._held -= 1
                self._feeder.drop(delivery.event)
                self._turns.add(queue.endpoint.tenant, queue)
                continue
            queue.flying[delivery] = now
            if queue.startable(now):
                self._turns.add(queue.endpoint.tenant, queue)
            return queue, delivery, payload
        return None

    async def _lane(self, queue: EndpointQueue, delivery: Delivery, payload: Payload) -> None:
        try:
            while True:
                await self._attempt(queue, delivery, payload)
                # A reload may have left more lanes than there are slots.
                following = self._take() if self._lanes <= self._max_in_flight else None
                if following is None:
                    return
                queue, delivery, payload = following
        finally:
            self._lanes -= 1

    async def _attempt(self, queue: EndpointQueue, delivery: Delivery, payload: Payload) -> None:
        at = self._clock.now()
        answer: Response | NoResponse
        try:
            post = request.build(delivery, payload.content, int(time.time()), self._source, self._user_agent)
            answer = await self._sender.send(post)
        except Exception:
            # A bug in one delivery is an attempt of this delivery, and nothing else.
            log.exception("attempt_broke", endpoint=delivery.endpoint.label, event_id=delivery.event.event_id)
            answer = NoResponse("internal")
        finally:
            now = time.monotonic()
            seconds = queue.landed(delivery, now)
            self._landed += 1
            self._held -= 1
            self._feeder.drop(delivery.event)
        self._settle(queue, delivery, answer, at, seconds)
        if queue.ready and queue.startable(now):
            self._turns.add(queue.endpoint.tenant, queue)
        self.room_freed.set()

    def _settle(
        self, queue: EndpointQueue, delivery: Delivery, answer: Response | NoResponse, at: float, seconds: float
    ) -> None:
        """Decide what the answer means, and have it recorded."""
        attempt = outcome.attempt_of(answer, delivery.attempt, at, round(seconds * 1000))
        if attempt.ok:
            self._recorder.put(Result(delivery, attempt, _DELIVERED))
            return
        wait = outcome.retry_after(answer.retry_after, time.time()) if isinstance(answer, Response) else 0.0
        decided = outcome.decide(delivery, answer, at + seconds, self.last_start(delivery), wait, self._random)
        self._log_failure(delivery, attempt.error, decided)
        if isinstance(decided, Postponed):
            self._recorder.put(Result(delivery, None, decided))
            return
        if not self._keep_response:
            attempt = attempt._replace(response=None)
        if wait > 0:
            pause = max(wait, decided.delay) if isinstance(decided, Retry) else wait
            queue.blocked_until = time.monotonic() + min(pause, outcome.MAX_RETRY_AFTER)
        self._recorder.put(Result(delivery, attempt, decided))

    def _log_failure(self, delivery: Delivery, error: str | None, decided: Outcome) -> None:
        log.info(
            "attempt_postponed" if isinstance(decided, Postponed) else "attempt_failed",
            endpoint=delivery.endpoint.label,
            event_id=delivery.event.event_id,
            attempt=delivery.attempt,
            code=error,
            next_in=None if isinstance(decided, (Delivered, Ended)) else round(decided.delay, 1),
        )

    # What leaves memory without an attempt.

    def _reject(self, delivery: Delivery, reason: str) -> None:
        self._held -= 1
        self._recorder.put(Result(delivery, None, Ended("rejected", reason)))

    def _leave(self, delivery: Delivery, payload: Payload | None) -> None:
        self._held -= 1
        if payload is not None:
            self._feeder.drop(delivery.event)

    def _spill_all(self, queue: EndpointQueue) -> None:
        for delivery, payload in queue.take_all():
            self._leave(delivery, payload)
            self._spill(queue, delivery)

    def _spill(self, queue: EndpointQueue, delivery: Delivery) -> None:
        delay = max(queue.blocked_until - time.monotonic(), 0.0)
        self._recorder.put(Result(delivery, None, Postponed(delay)))

    async def _sweep(self) -> None:
        while not await wait_for(self._stopped, SWEEP_SECONDS):
            now = time.monotonic()
            self._rate += (self._landed / SWEEP_SECONDS - self._rate) / 2
            self._landed = 0
            for queue in self._queues.values():
                for delivery in queue.stragglers(now - self._patience):
                    self._recorder.lease(delivery, queue.endpoint.timeout + LEASE_MARGIN)
                if len(queue) and queue.is_held_up(now):
                    self._spill_overdue(queue, now)
                elif queue.ready:
                    self._turns.add(queue.endpoint.tenant, queue)  # a block that is over rings no bell
            self._fill_lanes()

    def _spill_overdue(self, queue: EndpointQueue, now: float) -> None:
        for delivery, payload in queue.take_overdue(now - self._patience):
            self._leave(delivery, payload)
            self._spill(queue, delivery)
        self._feeder.ask(queue)
        self.room_freed.set()

    def _release_claims(self, queue: EndpointQueue) -> None:
        """Let the next daemon start at once what we claimed and did not send."""
        for delivery in (*(delivery for delivery, _ in queue.ready), *queue.waiting):
            if delivery.batch is None:
                self._recorder.put(Result(delivery, None, Postponed(0.0)))
        queue.ready.clear()
        queue.waiting.clear()
