"""Sends what is owed: one queue per endpoint, a slot in the endpoint and a slot in the daemon for each attempt.

    offer ──▶ queue.waiting ──payloads, within a byte budget──▶ queue.ready ──turn──▶ lane ──▶ recorder
                   │                                                 │
                   └── 3 s or 200 behind a slow endpoint: spilled to the backlog

What waits for its endpoint leaves memory; what waits for a slot of the daemon stays, and fills the memory until the
reader stops reading.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Protocol

from webhookd.engine.clock import Clock
from webhookd.engine.dispatch import ordering
from webhookd.engine.dispatch.answers import Answers, Trouble
from webhookd.engine.dispatch.feeder import AHEAD, Feeder, Store
from webhookd.engine.dispatch.feeds import LIVE, Feed, FeedState
from webhookd.engine.dispatch.lanes import Lanes, Sender
from webhookd.engine.dispatch.limits import AT_A_TIME, Limits
from webhookd.engine.dispatch.queues import EndpointQueue
from webhookd.engine.dispatch.reservations import Reservations
from webhookd.engine.dispatch.room import MOST_DELIVERIES, Room
from webhookd.engine.dispatch.scheduler import ASIDE_AFTER, EGRESS_DOWN_SECONDS, Scheduler
from webhookd.engine.dispatch.settings import Settings
from webhookd.engine.dispatch.spills import Spills
from webhookd.engine.state import Heartbeat
from webhookd.model import Delivery, Ended, Endpoint, Postponed, Result, Unwanted
from webhookd.policy.members import Shares
from webhookd.tasks import in_slices, wait_for

PATIENCE = 3.0  # seconds a delivery may wait for its endpoint, or be in flight, before the backlog holds it
LEASE_MARGIN = 25.0  # seconds of a lease beyond the timeout of the attempt
DEATHS_MOST = 6  # of daemons that had a delivery in hand, from which on it is not tried, but waits for its next step
SWEEP_SECONDS = 0.25
ALL_EVERY = 4  # sweeps, of which one looks at all queues, and the others at those that had something of late
UNSEEN_SECONDS = 5.0  # without a look at our way out, from which on more is taken into memory that can have one


class Recorder(ordering.Recorder, Protocol):
    """What the dispatcher needs of the recorder."""

    stuck: bool  # the database does not take results

    @property
    def pending(self) -> int:
        """Results that are not in the database yet."""

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
        heartbeat: Heartbeat,
        delivery: Settings,
        *,
        on_trouble: Callable[[int, Trouble], None],
        random: Callable[[], float],
        user_agent: str,
        is_discarded: Callable[[Delivery], bool] = lambda _: False,
        most_deliveries: int = MOST_DELIVERIES,
        patience: float = PATIENCE,
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self.answers = Answers(recorder, heartbeat, on_trouble, random)
        self._patience = patience
        self._is_discarded = is_discarded
        self._queues: dict[int, EndpointQueue] = {}
        self._stirred: dict[EndpointQueue, None] = {}  # that had something of late
        self.scheduler = Scheduler(aside_after=min(ASIDE_AFTER, patience))
        self._limits = Limits(self.scheduler)
        self.feeder = Feeder(
            store,
            self._queues.values(),
            delivery.max_payload,
            on_ready=self._ready,
            on_ended=self._end,
            on_fed=lambda: self._lanes.fill(),
        )
        self._room = Room(most_deliveries)
        self._lanes = Lanes(
            self.scheduler,
            self.feeder,
            self._room,
            sender,
            self.answers,
            clock,
            user_agent=user_agent,
            is_discarded=is_discarded,
            on_left=self._left,
        )
        self.ordering = ordering.Ordering(recorder, self._lanes.let_go)
        self._spills = Spills(recorder, self.answers, self.ordering, self._lanes.let_go, patience)
        self.reservations = Reservations(self._queues, self.scheduler, self._lanes)
        self._stopped = asyncio.Event()
        self._fed: dict[int, FeedState] = {}  # those that are not live
        self.room_freed = asyncio.Event()  # set when a delivery leaves; whoever waits clears it
        self.configure((), delivery)

    @property
    def room(self) -> int:
        """Deliveries that may still be offered; none while results cannot be written."""
        if self._recorder.stuck or self._is_waiting_for_a_way_out(time.monotonic()):
            return 0
        return self._room.left(self._recorder.pending, lambda: self.scheduler.behind_silence(time.monotonic()))

    def room_for(self, tenant: str) -> int:
        """Deliveries of this tenant's events that may still be offered."""
        return self._room.left_for(tenant, self.room)

    def _is_waiting_for_a_way_out(self, now: float) -> bool:
        # What is held can look whether it is open again, unless it all waits for its endpoints.
        return self.scheduler.is_egress_down(now, UNSEEN_SECONDS if self._room.held else EGRESS_DOWN_SECONDS)

    @property
    def in_flight(self) -> int:
        """Attempts under way."""
        return self.scheduler.started + self.scheduler.aside

    def claimable(self, endpoint_id: int) -> tuple[int, float]:
        """How many deliveries of the backlog this endpoint could start soon, and the lease they need, in seconds."""
        queue, now = self._queues.get(endpoint_id), time.monotonic()
        if queue is None or self._lanes.takes_nothing or self._is_waiting_for_a_way_out(now):
            return 0, 0.0
        if not self.scheduler.is_open(queue.standing):
            return 0, 0.0
        return queue.appetite(now, AHEAD), queue.endpoint.timeout + LEASE_MARGIN

    def is_ours(self, endpoint_id: int) -> bool:
        """True when we send to this endpoint, alone or with others."""
        return endpoint_id in self._queues and self._queues[endpoint_id].feed is not Feed.NONE

    def is_well(self, endpoint_id: int) -> bool:
        """True when this endpoint takes what it gets."""
        return (queue := self._queues.get(endpoint_id)) is not None and queue.is_well()

    def rests(self, endpoint_id: int) -> None:
        """Nothing waits for this endpoint but what it has been offered."""
        if (queue := self._queues.get(endpoint_id)) is not None:
            queue.rest()

    def keeps_up(self, endpoint_id: int) -> None:
        """Begin anew to count what is put off for this endpoint, since little of it is owed still."""
        if (queue := self._queues.get(endpoint_id)) is not None:
            queue.spilled = 0

    def breaker(self, endpoint_id: int) -> tuple[int, float]:
        """How often this endpoint has failed, 0 when its breaker is closed, and the seconds until it is probed."""
        queue = self._queues.get(endpoint_id)
        if queue is None:
            return 0, 0.0
        return queue.breaker.fails, max(queue.breaker.retry_at - time.monotonic(), 0.0)

    def last_word(self, endpoint_id: int) -> tuple[str, float] | None:
        """How its receiver has said that it wants nothing more, if it has; since when, on the database's clock."""
        queue = self._queues.get(endpoint_id)
        return None if queue is None or not (word := queue.last_word()) else (word[0], self._clock.earliest(word[1]))

    def offer(self, delivery: Delivery) -> None:
        """Attempt this delivery when its turn comes, or spill it when its endpoint cannot keep up."""
        queue = self._queues.get(delivery.endpoint.id)
        if queue is None:  # of another daemon's files, or gone from ours a moment ago: whoever has it finds it owed
            return self._recorder.put(Result(delivery, None, Postponed(0.0)))
        if queue.order is not None and not self.ordering.admits(queue, delivery):
            return None
        if delivery.event.size > self._max_payload or self._is_discarded(delivery):
            reason = "payload_too_large" if delivery.event.size > self._max_payload else "discarded"
            self._recorder.put(Result(delivery, None, Ended("rejected", reason)))
            return self.ordering.ended(queue, delivery, over=True)
        if delivery.batch is not None and delivery.key is None and queue.is_full(time.monotonic(), self._patience):
            self._spills.spill(queue, delivery)
            return self.ordering.ended(queue, delivery, over=True)
        if delivery.deaths > DEATHS_MOST:
            return self.ordering.ended(queue, delivery, over=self.answers.blame(delivery, self._clock.now()))
        self._room.take(delivery.event.tenant)
        if queue.order is None or queue.order.wants(delivery):
            queue.waiting.append(delivery)
        self._stirred[queue] = None
        return self.feeder.ask(queue)

    def _ready(self, queue: EndpointQueue) -> None:
        if self._queues.get(queue.endpoint.id) is queue:
            self.scheduler.ask(queue)
        else:
            self._spills.spill_all(queue)  # its endpoint went while its payloads came

    def configure(self, endpoints: Collection[Endpoint], delivery: Settings) -> None:
        """Go on with these endpoints and settings; what an endpoint that is gone was owed goes to the backlog."""
        for _ in self.prepare(endpoints):
            pass
        self._limits.slots, self._limits.per_host = delivery.max_in_flight, delivery.max_in_flight_per_host
        self.feeder.max_payload = self._max_payload = delivery.max_payload
        self._lanes.source = delivery.source
        self.feeder.paths = {condition.path for endpoint in endpoints for condition in endpoint.data_filter}
        self.answers.keep_response = delivery.response_body == "failures"
        self._let_go_of(self._queues.keys() - {endpoint.id for endpoint in endpoints})
        self.scheduler.forget_hosts()
        self._limit(self._queues.values())

    def change(self, endpoints: Collection[Endpoint], gone: Iterable[int], shares: Shares) -> None:
        """Go on with these as they are now, and without those; the others are as they were."""
        self._limits.shares = shares
        for _ in self.prepare(endpoints):
            pass
        self._let_go_of(gone)
        self.scheduler.forget_hosts(beyond=2 * len(self._queues))
        self._limit([self._queues[endpoint.id] for endpoint in endpoints])

    def _let_go_of(self, endpoint_ids: Iterable[int]) -> None:
        for endpoint_id in endpoint_ids:
            if (queue := self._queues.pop(endpoint_id, None)) is not None:
                queue.host.queues.discard(queue)
                self._spills.spill_all(queue)
                self.ordering.forget(queue)

    def prepare(self, endpoints: Collection[Endpoint]) -> Iterator[None]:
        """Do most of what `configure` does with these, in pieces, between which others may have their turn."""
        for number, endpoint in enumerate(endpoints, start=1):
            queue = self._queues.get(endpoint.id)
            if queue is None:
                queue = self._queues[endpoint.id] = EndpointQueue(endpoint, self.scheduler.host(endpoint.url))
                self.ordering.keep(queue)
                self._follow(queue, self._fed.get(endpoint.id, LIVE))
                self._limits.keep(queue)
            elif queue.endpoint is not endpoint:
                if is_other := queue.endpoint.ordered != endpoint.ordered:
                    self._spills.spill_all(queue, for_good=not endpoint.ordered)
                queue.change(endpoint, self.scheduler.host(endpoint.url))
                if is_other:
                    self.ordering.keep(queue)
            if number % AT_A_TIME == 0:
                yield
        yield

    def share(self, shares: Shares) -> None:
        """Keep to our share of the limits of endpoints and hosts."""
        if shares != self._limits.shares:
            self._limits.shares = shares
            self._limit(self._queues.values())

    def follow(self, fed: Mapping[int, FeedState]) -> None:
        """Feed these endpoints from there, and the others as before."""
        changed = []
        for endpoint_id, now_fed in fed.items():
            if now_fed.feed is Feed.MEMORY:
                self._fed.pop(endpoint_id, None)
            else:
                self._fed[endpoint_id] = now_fed
            queue = self._queues.get(endpoint_id)
            if queue is not None and self._follow(queue, now_fed):
                if self._limits.keep(queue):
                    changed.append(queue)
                if queue.feed is Feed.NONE:
                    self._spills.spill_all(queue)
        self._limit(changed)

    def _follow(self, queue: EndpointQueue, fed: FeedState) -> bool:
        self.ordering.follow(queue, fed)
        if queue.feed is fed.feed:
            return False
        queue.follow(fed.feed, fed.fails, fed.retry_at)
        return True

    def _limit(self, queues: Iterable[EndpointQueue]) -> None:
        if self._limits.change(queues):
            self._limit_some()

    def _limit_some(self) -> None:
        if self._limits.some():
            asyncio.get_running_loop().call_soon(self._limit_some)
        self._lanes.fill()

    def hold(self, on_hold: bool) -> None:
        """Start no attempts while nobody can know whether we are alive."""
        self._lanes.hold(on_hold)

    def stop(self) -> None:
        """Start nothing more; run returns when every attempt in flight is answered."""
        self._stopped.set()
        self._lanes.stop()

    async def run(self) -> None:
        """Attempt what is offered until stopped."""
        async with asyncio.TaskGroup() as group:
            self._lanes.start(group)
            feeding = group.create_task(self.feeder.run())
            group.create_task(self._sweep())
            await self._stopped.wait()
            feeding.cancel()  # it may hang in the database
        for queue in self._queues.values():
            self._spills.release(queue)

    def _left(self, queue: EndpointQueue, delivery: Delivery, over: bool) -> None:
        if queue.order is not None:
            self.ordering.ended(queue, delivery, over=over)
            self.feeder.ask(queue)
            self.scheduler.ask(queue)
        if queue.is_shut(time.monotonic()):
            self._spills.spill_all(queue)
        self.room_freed.set()

    def _end(self, delivery: Delivery, outcome: Ended | Unwanted) -> None:
        queue = self._queues.get(delivery.endpoint.id)
        self._spills.end(queue, delivery, outcome)
        if queue is not None:
            self.feeder.ask(queue)
            self.scheduler.ask(queue)

    async def discard(self) -> None:
        """Let go of all that waits and is discarded, of some endpoints at a time."""
        async for queue in in_slices(list(self._queues.values()), AT_A_TIME):
            self._spills.discard(queue, self._is_discarded)
            self.feeder.ask(queue)  # for what is left
        self.room_freed.set()

    def put_off(self, delivery: Delivery) -> None:
        """Leave it to the backlog, whatever there is room for."""
        self._spills.put_off(self._queues.get(delivery.endpoint.id), delivery)

    async def _sweep(self) -> None:
        sweeps = itertools.count(1)
        while not await wait_for(self._stopped, SWEEP_SECONDS):
            now = time.monotonic()
            self._room.measure(SWEEP_SECONDS)
            self.scheduler.age(now)
            for delivery in self.scheduler.stragglers(now - self._patience):
                self._recorder.lease(delivery, delivery.endpoint.timeout + LEASE_MARGIN)
            if next(sweeps) % ALL_EVERY == 0:
                self._stirred = {queue: None for queue in self._queues.values() if queue.has_some}
            for number, queue in enumerate(list(self._stirred), start=1):
                if queue.has_some and queue.is_held_up(now) and self._spills.spill_overdue(queue, now):
                    self.feeder.ask(queue)
                    self.room_freed.set()
                if queue.ready:
                    self.scheduler.ask(queue)  # a limit that was raised tells nobody
                if number % AT_A_TIME == 0:
                    await asyncio.sleep(0)
            self._lanes.fill()
