"""What an answer means for a delivery, and what is written down about it."""

import re
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

from webhookd.exchange import NoResponse, Response
from webhookd.model import Attempt, Delivered, Delivery, Ended, Outcome, Postponed, Retry
from webhookd.policy import backoff
from webhookd.policy.limiter import Signal

OWN_FAULT_PAUSE = 5.0  # seconds until a delivery is tried again after a fault of this side
MOST_ATTEMPTS = 30_000  # the attempt log counts in a smallint; from half of them on they are spread up to the horizon
MAX_RETRY_AFTER = 3600.0  # an hour: a receiver may slow itself down, not put its deliveries off for days
_SECONDS = re.compile(r"[0-9]+")

_SLOW_DOWN, _UNAVAILABLE = 429, 503
_BUSY = (_SLOW_DOWN, _UNAVAILABLE)
_GONE = 410
_TIMEOUT = "timeout"
_BUG = "internal"  # of this side, in one delivery
_PROXY = "proxy_error"
_FROM_AFAR = ("timeout", "tls_certificate", "tls_error", "malformed_response", "connection_reset")
_NO_TOKEN = "auth_error"  # noqa: S105 - a code

Answer = Response | NoResponse


def wait_of(answer: Answer, wall_clock: float) -> float:
    """Seconds that a 429 or a 503 asks us to wait; 0 for any other answer, whatever it says."""
    if isinstance(answer, NoResponse) or answer.status not in _BUSY:
        return 0.0
    return retry_after(answer.retry_after, wall_clock)


def retry_after(header: str | None, wall_clock: float) -> float:
    """Seconds a receiver asked us to wait, at most an hour; 0 for no header or a senseless one (RFC 9110 10.2.3)."""
    if header is None:
        return 0.0
    header = header.strip()
    if _SECONDS.fullmatch(header):
        return min(float(header), MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(header)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - wall_clock
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def attempt_of(answer: Answer, number: int, at: float, ms: int) -> Attempt:
    """The row of the attempt log for this answer."""
    if isinstance(answer, NoResponse):
        return Attempt(at, number, False, None, ms, answer.code, None)
    status = answer.status
    if 200 <= status < 300:
        return Attempt(at, number, True, status, ms, None, None)
    return Attempt(at, number, False, status, ms, f"http_{status:03d}", answer.body or None)


def signal(answer: Answer) -> Signal:
    """What an answer says about how much its endpoint can take."""
    if isinstance(answer, NoResponse):
        if answer.ours or answer.code == _BUG:
            return Signal.OURS
        return Signal.LATE if answer.code == _TIMEOUT else Signal.LOST
    if 200 <= answer.status < 300:
        return Signal.GOOD
    return Signal.BUSY if answer.status in _BUSY else Signal.PLAIN


def asks_for_less(answer: Answer, wait: float) -> bool:
    """True when an answer says "not now": a 429, or a 503 that says until when. `wait`: what it asked for.

    A 503 that asks for nothing is a failure like any other.
    """
    if isinstance(answer, NoResponse):
        return False
    return answer.status == _SLOW_DOWN or (answer.status == _UNAVAILABLE and wait > 0)


def is_failure(answer: Answer, wait: float) -> bool:
    """True when an answer says that its endpoint does not work; `wait` is what it asked for."""
    if isinstance(answer, NoResponse):
        return signal(answer) is not Signal.OURS
    return not 200 <= answer.status < 300 and not asks_for_less(answer, wait)


def is_egress_down(answer: Answer) -> bool | None:
    """True when an answer says that our own way out is shut, False when it is open, None when it says nothing of it."""
    if isinstance(answer, Response):
        return False
    if answer.code == _PROXY:
        return answer.ours
    return False if answer.code in _FROM_AFAR else None


def is_gone(answer: Answer) -> bool:
    """True when the receiver says that there will be no endpoint here any more (RFC 9110 15.5.11)."""
    return isinstance(answer, Response) and answer.status == _GONE


def decide(
    delivery: Delivery, answer: Answer, now: float, last_start: float, wait: float, random: Callable[[], float]
) -> Outcome:
    """What `answer` means for `delivery`.

    `now` and `last_start` (the horizon) are on the database's clock; `wait` is for how many seconds its endpoint is
    left alone because this answer asked for less, 0 when it did not say for how long.
    """
    if isinstance(answer, Response) and 200 <= answer.status < 300:
        return Delivered()
    if isinstance(answer, NoResponse) and (
        answer.ours or (answer.code == _NO_TOKEN and now + OWN_FAULT_PAUSE <= last_start)
    ):
        return Postponed(OWN_FAULT_PAUSE, answer.code)
    policy, asked = delivery.endpoint.retry, asks_for_less(answer, wait)
    if not asked:
        delay = backoff.interval(policy, delivery.step, random())
    elif wait:
        delay = wait
    else:
        # Later each time, or thousands of deliveries would ask a receiver that always says 429 every few seconds.
        delay = min(backoff.interval(policy, delivery.attempt, random()), MAX_RETRY_AFTER)
    if delivery.attempt > MOST_ATTEMPTS // 2:
        delay = max(delay, (last_start - now) / max(MOST_ATTEMPTS - delivery.attempt, 1))
    left = backoff.within(delay, now, last_start)
    return Ended("exhausted", "the time to retry is over") if left is None else Retry(left, asked)
