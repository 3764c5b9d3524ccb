"""When an endpoint that comes back may be fed from memory."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.endpoints import HOOK
from webhookd.engine.dispatch.feeds import Feed
from webhookd.engine.dispatch.payloads import Payload
from webhookd.engine.dispatch.queues import EndpointQueue, Flight, Host
from webhookd.model import Delivery, Event
from webhookd.policy.limiter import Signal


def comes_back() -> EndpointQueue:
    """A queue whose endpoint is parked as failing, and was sent one delivery since, which it took."""
    queue = EndpointQueue(HOOK, Host())
    queue.follow(Feed.CURSOR, 3, 0.0)
    queue.share(0, 1)
    queue.learn(Signal.GOOD, 10.0, 10.1)
    queue.succeeded(10.0, 10.1)
    assert not queue.breaker.is_closed
    return queue


def delivery() -> Delivery:
    event = Event(1, "evt_1", datetime(2026, 1, 27, tzinfo=UTC), "order.created", "", None, None, None, 2)
    return Delivery(event, HOOK, None, 0, 0.0, 0.0, 1.0)


def test_one_that_comes_back_and_is_owed_nothing_is_well() -> None:
    queue = comes_back()
    queue.rest()
    assert queue.is_well()
    assert queue.limit == 10


@pytest.mark.parametrize(
    "but",
    [
        lambda queue: queue.waiting.append(delivery()),
        lambda queue: queue.ready.append((delivery(), Payload(b"{}"))),
        lambda queue: queue.flying.update({(it := delivery()): Flight(queue, it, Payload(b"{}"), 11.0)}),
        lambda queue: queue.learn(Signal.LATE, 11.0, 31.0),
        lambda queue: queue.failed(11.0, 11.1, 0.5),
    ],
    ids=["waiting", "ready", "flying", "stuck", "failed"],
)
def test_one_that_comes_back_has_more_to_prove(but: Callable[[EndpointQueue], object]) -> None:
    queue = comes_back()
    but(queue)
    queue.rest()
    assert not queue.is_well()
