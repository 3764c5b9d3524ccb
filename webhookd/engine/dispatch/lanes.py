"""Attempts deliveries whose turn it is, in lanes.

A lane is a task that attempts one delivery after the other, whose ever turn it is, and holds a slot of the daemon; an
attempt that takes long gives its slot to another lane.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from webhookd.engine.clock import Clock
from webhookd.engine.dispatch.answers import Answers
from webhookd.engine.dispatch.feeder import LOOKING_SECONDS, Feeder
from webhookd.engine.dispatch.payloads import Payload
from webhookd.engine.dispatch.queues import EndpointQueue, Flight
from webhookd.engine.dispatch.room import Room
from webhookd.engine.dispatch.scheduler import FOREVER, Scheduler
from webhookd.exchange import NoResponse, Request, Response
from webhookd.message import request
from webhookd.model import Delivery
from webhookd.policy import outcome

log = structlog.get_logger("webhookd.dispatcher")


class Sender(Protocol):
    """What is needed of the network."""

    def send(self, request: Request) -> Coroutine[Any, Any, Response | NoResponse]:
        """The answer, whatever the receiver does."""


class Lanes:
    """Starts attempts as turns and limits allow, and sees to their answers.

    `on_left(queue, delivery, over)` comes when it is put what became of one that was ready; `over`: what is behind it
    may go on.

    `source` is what the events are said to come from.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        feeder: Feeder,
        room: Room,
        sender: Sender,
        answers: Answers,
        clock: Clock,
        *,
        user_agent: str,
        is_discarded: Callable[[Delivery], bool],
        on_left: Callable[[EndpointQueue, Delivery, bool], None],
    ) -> None:
        self._scheduler = scheduler
        self._feeder = feeder
        self._room = room
        self._sender = sender
        self._answers = answers
        self._clock = clock
        self._user_agent = user_agent
        self._is_discarded = is_discarded
        self._on_left = on_left
        self.source = ""
        self._alarm: asyncio.TimerHandle | None = None  # for the first queue that may start at some moment
        self._alarm_at = FOREVER
        self._group: asyncio.TaskGroup | None = None
        self._stopped = self._on_hold = False

    @property
    def takes_nothing(self) -> bool:
        """True while nothing may start, whatever has its turn."""
        return self._on_hold or self._stopped

    def hold(self, on_hold: bool) -> None:
        """Start no attempts while nobody can know whether we are alive."""
        before, self._on_hold = self._on_hold, on_hold
        if before and not on_hold:
            self.fill()

    def start(self, group: asyncio.TaskGroup) -> None:
        """Attempt what has its turn, in tasks of this group."""
        self._group = group

    def stop(self) -> None:
        """Start nothing more; what is in flight is answered."""
        self._stopped = True
        if self._alarm is not None:
            self._alarm.cancel()

    def fill(self) -> None:
        """Start what may start."""
        if self._group is None:
            return
        while (flight := self._take()) is not None:
            self._group.create_task(self._lane(flight))

    def let_go(self, delivery: Delivery, payload: Payload | None) -> None:
        """It leaves memory without an attempt."""
        self._room.leave(delivery.event.tenant)
        if payload is not None:
            self._feeder.drop(delivery.event)

    def _set_alarm(self, moment: float) -> None:
        """Start at that moment, which is earlier than any known, what may not start before."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = moment
        self._alarm = asyncio.get_running_loop().call_later(moment - time.monotonic(), self._ring)

    def _ring(self) -> None:
        self._alarm_at = FOREVER
        self._scheduler.wake(time.monotonic())
        self.fill()

    def _take(self) -> Flight | None:
        """The attempt whose turn it is, its slots taken."""
        if self._stopped or self._on_hold:
            return None
        now = time.monotonic()
        while (queue := self._scheduler.take(now)) is not None:
            delivery, payload = queue.ready.popleft()
            self._feeder.ask(queue)
            if delivery.endpoint is not queue.endpoint:  # changed, however long ago whoever offered it had looked
                delivery.follow(queue.endpoint)
                if queue.order is not None and not queue.order.has(delivery):  # it had no order then, and so no place
                    self.let_go(delivery, payload)
                    self._answers.put_off(delivery)
                    self._scheduler.ask(queue)
                    continue
            discarded = self._is_discarded(delivery)  # while its payload came
            unwanted = bool(queue.endpoint.data_filter) and not payload.passes(queue.endpoint.data_filter, ())
            if delivery.start_by >= now and not discarded and not unwanted:
                return self._scheduler.start(queue, delivery, payload, now)
            self.let_go(delivery, payload)
            if discarded:
                self._answers.discard(delivery)
            elif unwanted:
                self._answers.unwanted(delivery)
            # Else it is too late for its lease: whoever claims it next sends it.
            self._on_left(queue, delivery, discarded or unwanted)
            self._scheduler.ask(queue)
            if unwanted and time.monotonic() > now + LOOKING_SECONDS:
                asyncio.get_running_loop().call_soon(self.fill)
                return None
        if (upcoming := self._scheduler.upcoming) < self._alarm_at:
            self._set_alarm(upcoming)
        return None

    async def _lane(self, flight: Flight | None) -> None:
        while flight is not None:
            await self._attempt(flight)
            flight = self._take()

    async def _attempt(self, flight: Flight) -> None:
        queue, delivery, payload = flight.queue, flight.delivery, flight.payload
        at = self._clock.now()
        answer: Response | NoResponse
        lean = delivery.event
        if payload.metadata is not None:
            delivery.event = lean._replace(metadata=payload.metadata)
        try:
            post = request.build(delivery, payload.content, int(time.time()), self.source, self._user_agent)
            answer = await self._sender.send(post)
        except Exception:
            # A bug in one delivery is an attempt of this delivery, and nothing else.
            log.exception("attempt_broke", endpoint=delivery.endpoint.label, event_id=delivery.event.event_id)
            answer = NoResponse("internal")
        finally:
            delivery.event = lean
            now = time.monotonic()
            self._scheduler.land(flight)
            self._room.answered()
            self._room.leave(delivery.event.tenant)
            self._feeder.drop(delivery.event)
        if self._scheduler.note_egress(outcome.is_egress_down(answer), flight.started, now):
            log.warning("proxy_away" if self._scheduler.egress_down_at else "proxy_back")
        self._on_left(queue, delivery, self._answers.take(flight, answer, at, now))
