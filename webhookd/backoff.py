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


def next_delay(
    policy: RetryPolicy, attempt: int, now: float, last_start: float, random: float, at_least: float = 0.0
) -> float | None:
    """Seconds until the next attempt, or None when none may follow.

    `last_start` is the horizon; an attempt that would start behind it starts on it. `at_least` is what the receiver
    asked for.
    """
    remaining = last_start - now
    if remaining <= 0:
        return None
    return min(max(interval(policy, attempt, random), at_least), remaining)
