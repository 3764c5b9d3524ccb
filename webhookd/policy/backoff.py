"""When a failed delivery is tried again: exponential with jitter, or a schedule, and at last on the horizon itself."""

from collections.abc import Sequence

from webhookd.model import RetryPolicy


def horizon(policy: RetryPolicy, clock_from: float, downtimes: Sequence[tuple[float, float]] = ()) -> float:
    """The moment after which no attempt of this delivery starts.

    `downtimes` are (start, end) spans in which no daemon ran; they do not count against the delivery.
    """
    lost = sum(end - max(start, clock_from) for start, end in downtimes if end > clock_from)
    return clock_from + policy.give_up_after + lost


def over_before(policy: RetryPolicy, now: float, downtimes: Sequence[tuple[float, float]] = ()) -> float:
    """A moment before which every delivery that counts from there has its horizon behind it."""
    moment = now - policy.give_up_after
    for start, end in sorted(downtimes, reverse=True):
        if end <= moment:
            break
        moment -= end - start
    return moment


def interval(policy: RetryPolicy, attempt: int, random: float) -> float:
    """Seconds from failed attempt number `attempt` (from 1) to the next; `random` is uniform in [0, 1).

    Jitter takes its share off or puts it on, so that endpoints that failed together do not come back together.
    """
    if policy.schedule:
        base = policy.schedule[min(attempt, len(policy.schedule)) - 1]
    else:
        try:
            base = min(policy.first * policy.factor ** (attempt - 1), policy.max_interval)
        except OverflowError:
            base = policy.max_interval
    return base * (1 + policy.jitter * (2 * random - 1))


def within(delay: float, now: float, last_start: float) -> float | None:
    """The delay, or what is left before `last_start`, the horizon, on which the last attempt is; None behind that."""
    remaining = last_start - now
    return min(delay, remaining) if remaining > 0 else None
