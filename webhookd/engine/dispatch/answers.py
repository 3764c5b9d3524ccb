"""What follows from an answer: the result that is recorded, the wait that was asked for, and the doubt it casts."""

import time
from collections.abc import Callable
from logging import DEBUG
from typing import Literal, Protocol

import structlog

from webhookd.engine.dispatch.queues import GONE_MOST, EndpointQueue, Flight
from webhookd.engine.state import Heartbeat
from webhookd.exchange import NoResponse, Response
from webhookd.model import UNWANTED, Attempt, Delivered, Delivery, Ended, Outcome, Postponed, Result, Retry
from webhookd.policy import outcome
from webhookd.policy.backoff import horizon

Trouble = Literal["failing", "saturated", "gone", "hopeless"]
JUDGED_SECONDS = 30.0  # between two questions whether an endpoint has failed for too long

_DELIVERED = Delivered()

log = structlog.get_logger("webhookd.answers")


class Recorder(Protocol):
    """Where results go."""

    def put(self, result: Result) -> None:
        """Record a result."""


class Answers:
    """Takes what was answered to an attempt. `on_trouble(endpoint id, trouble)` hears of endpoints that do not work.

    `keep_response` says whether the log gets what failed answers say.
    """

    def __init__(
        self,
        recorder: Recorder,
        heartbeat: Heartbeat,
        on_trouble: Callable[[int, Trouble], None],
        random: Callable[[], float],
    ) -> None:
        self._recorder = recorder
        self._random = random
        self._tells_all = log.is_enabled_for(DEBUG)  # asked once: what each success asks it would pay for
        self._heartbeat = heartbeat
        self.keep_response = True
        self.on_trouble = on_trouble

    def last_start(self, delivery: Delivery) -> float:
        """The horizon of a delivery, on the database's clock."""
        return horizon(delivery.endpoint.retry, delivery.clock_from, self._heartbeat.downtimes)

    def take(self, flight: Flight, answer: Response | NoResponse, at: float, now: float) -> bool:
        """Decide what it means, and have it recorded. `at`: when the attempt began, on the database's clock.

        True when what its endpoint is to get behind it may go on.
        """
        queue, delivery, seconds = flight.queue, flight.delivery, now - flight.started
        delivery.deaths = 0
        queue.learn(outcome.signal(answer), flight.started, now)
        attempt = outcome.attempt_of(answer, delivery.attempt, at, round(seconds * 1000))
        if delivery.endpoint.disable_on_request:
            wants_no_more = isinstance(answer, Response) and answer.disable
            queue.unwanted_at = flight.started if wants_no_more else None
            if wants_no_more:
                self.on_trouble(delivery.endpoint.id, "gone")
        if attempt.ok:
            queue.succeeded(flight.started, now)
            if self._tells_all:
                log.debug(
                    "attempt_succeeded",
                    endpoint=delivery.endpoint.label,
                    event_id=delivery.event.event_id,
                    attempt=delivery.attempt,
                    code=attempt.code,
                    ms=attempt.ms,
                )
            self._recorder.put(Result(delivery, attempt, _DELIVERED))
            return True
        wait = outcome.wait_of(answer, time.time())
        self._doubt(queue, answer, wait, flight.started, now)
        if outcome.asks_for_less(answer, wait):  # the endpoint waits as long as was asked, and this delivery with it
            wait = max(wait, queue.blocked_until - now)
            queue.blocked_until = max(queue.blocked_until, now + wait)
        decided = outcome.decide(delivery, answer, at + seconds, self.last_start(delivery), wait, self._random)
        _log_failure(delivery, attempt, decided)
        if isinstance(decided, Postponed):
            self._recorder.put(Result(delivery, None, decided))
            return False
        if not self.keep_response:
            attempt = attempt._replace(response=None)
        self._recorder.put(Result(delivery, attempt, decided))
        return _is_over(delivery, decided)

    def put_off(self, delivery: Delivery) -> None:
        """It is owed at once, and not from memory."""
        self._recorder.put(Result(delivery, None, Postponed(0.0)))

    def discard(self, delivery: Delivery) -> None:
        """Nobody wants it any longer."""
        self._recorder.put(Result(delivery, None, Ended("rejected", "discarded")))

    def unwanted(self, delivery: Delivery) -> None:
        """Its endpoint is not owed it, as its payload tells."""
        self._recorder.put(Result(delivery, None, UNWANTED))

    def blame(self, delivery: Delivery, at: float) -> bool:
        """Count an attempt that is not made: too many daemons died with this delivery in hand. The next one is made.

        True as with `take`.
        """
        delivery.deaths -= 1
        answer = NoResponse("internal")
        decided = outcome.decide(delivery, answer, at, self.last_start(delivery), 0.0, self._random)
        log.error("attempt_too_dangerous", endpoint=delivery.endpoint.label, event_id=delivery.event.event_id)
        self._recorder.put(Result(delivery, outcome.attempt_of(answer, delivery.attempt, at, 0), decided))
        return _is_over(delivery, decided)

    def _doubt(
        self, queue: EndpointQueue, answer: Response | NoResponse, wait: float, started: float, now: float
    ) -> None:
        """Count an answer that was not good against its endpoint, if it is the endpoint's fault."""
        endpoint = queue.endpoint
        if not outcome.is_gone(answer):
            queue.gone.clear()
        else:
            queue.gone.append(started)
            if len(queue.gone) == GONE_MOST:
                self.on_trouble(endpoint.id, "gone")
        if not outcome.is_failure(answer, wait):
            return
        if queue.failed(started, now, self._random()):
            log.warning("endpoint_failing", endpoint=endpoint.label)
            self.on_trouble(endpoint.id, "failing")
        elif (limit := endpoint.disable_after) and now >= queue.judged_at + min(JUDGED_SECONDS, limit.seconds / 10):
            queue.judged_at = now
            self.on_trouble(endpoint.id, "hopeless")


def _is_over(delivery: Delivery, decided: Outcome) -> bool:
    """True when what is behind it may go on."""
    if not isinstance(decided, Ended):
        return False
    if decided.state == "exhausted" and delivery.holds:
        event_id, key = delivery.event.event_id, delivery.key
        log.warning("order_holds", endpoint=delivery.endpoint.label, event_id=event_id, key=key)
        return False
    return True


def _log_failure(delivery: Delivery, attempt: Attempt, decided: Outcome) -> None:
    log.info(
        "attempt_postponed" if isinstance(decided, Postponed) else "attempt_failed",
        endpoint=delivery.endpoint.label,
        event_id=delivery.event.event_id,
        attempt=delivery.attempt,
        code=attempt.error,
        ms=attempt.ms,
        next_in=None if not isinstance(decided, (Retry, Postponed)) else round(decided.delay, 1),
    )
