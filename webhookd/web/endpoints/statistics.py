"""How the deliveries of an endpoint went."""

from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import AwareDatetime

from webhookd.policy.statistics import BOUNDS
from webhookd.store import statistics
from webhookd.web.endpoints import finding
from webhookd.web.operation import EPOCH, Answer, Call
from webhookd.web.shapes import Query, Shape

SPAN: Final = timedelta(days=28)


class StatisticsSpan(Query):
    """Of which time; what is waiting or to be tried again is that of now."""

    since: AwareDatetime | None = None
    """Since then; of 28 days without it, as far as there is something kept."""
    until: AwareDatetime | None = None
    """Until then; until now without it."""


class BucketOut(Shape):
    """Attempts that took so long."""

    up_to_ms: int | None
    """At most so many milliseconds; null for longer than all."""
    attempts: int


class StatisticsOut(Shape):
    """How deliveries went."""

    success: int
    pending: int
    fail: int
    sending: int
    canceled: int
    failed_attempts: int
    """Attempts that failed, after which there was another, or is to be."""
    latency: list[BucketOut]


async def get(call: Call) -> Answer:
    """Sums over a span."""
    query: StatisticsSpan = call.query
    found = await finding.seen(call)
    until = query.until or datetime.now(UTC) + timedelta(minutes=1)
    since = query.since or max(until, EPOCH + SPAN) - SPAN
    if call.of.since is not None:
        since = max(since, call.of.since)
    sums = await statistics.of_endpoint(call.connection, found.id, since, until)
    latency = [
        BucketOut(up_to_ms=bound, attempts=count) for bound, count in zip((*BOUNDS, None), sums.took, strict=True)
    ]
    return Answer(
        200,
        StatisticsOut(
            success=sums.delivered, pending=sums.waiting + sums.parked, fail=sums.exhausted + sums.rejected,
            sending=sums.retrying, canceled=sums.discarded, failed_attempts=sums.failed, latency=latency,
        ),
    )  # fmt: skip
