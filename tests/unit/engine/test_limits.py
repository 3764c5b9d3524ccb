"""Of thousands of endpoints some are looked at at a time, each once, and their hosts after them."""

from dataclasses import replace

import pytest

from tests.endpoints import HOOK
from webhookd.engine.dispatch.limits import AT_A_TIME, Limits
from webhookd.engine.dispatch.queues import EndpointQueue
from webhookd.engine.dispatch.scheduler import Scheduler
from webhookd.policy.members import Shares

HALF = Shares(1, (1, 2), {})


def queues(turns: Scheduler, count: int, hosts: int) -> list[EndpointQueue]:
    """So many endpoints on so many hosts; what follows is none of them yet kept to our share."""
    endpoints = (replace(HOOK, id=n, url=f"https://{n % hosts}.example.com/") for n in range(count))
    return [EndpointQueue(endpoint, turns.host(endpoint.url)) for endpoint in endpoints]


@pytest.mark.parametrize("hosts", [1, 50, 1_000])
def test_all_come_to_their_share_some_at_a_time(hosts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Scheduler()
    limits, every = Limits(turns), queues(turns, 1_000, hosts)
    limits.slots, limits.per_host, limits.shares = 100, 60, HALF
    looked_at = 0
    keep = Limits.keep

    def spy(self: Limits, queue: EndpointQueue) -> bool:
        nonlocal looked_at
        looked_at += 1
        return keep(self, queue)

    monkeypatch.setattr(Limits, "keep", spy)
    assert limits.change(every)
    steps = []
    while (before := looked_at, limits.some())[1]:
        steps.append(looked_at - before)
    assert max(steps) == AT_A_TIME
    assert looked_at == 1_000, "each once"
    assert {queue.most for queue in every} == {5}
    assert {queue.host.most for queue in every} == {30}


def test_what_changes_meanwhile_is_looked_at_in_the_same_run() -> None:
    turns = Scheduler()
    limits, every = Limits(turns), queues(turns, 2 * AT_A_TIME, 1)
    assert limits.change(every)
    assert limits.some()
    limits.shares = HALF
    assert not limits.change(every), "it has begun"
    while limits.some():
        pass
    assert {queue.most for queue in every} == {5}
    assert limits.change(every[:1]), "it is over"


def test_one_that_goes_meanwhile_is_left_alone() -> None:
    turns = Scheduler()
    limits, (one, other) = Limits(turns), queues(turns, 2, 2)
    limits.shares = HALF
    limits.change([one, other])
    one.host.queues.discard(one)
    while limits.some():
        pass
    assert (one.most, other.most) == (10, 5)
    limits.change([other])
    while limits._endpoints:
        limits.some()
    other.host.queues.discard(other)
    assert not limits.some(), "its host, too"
