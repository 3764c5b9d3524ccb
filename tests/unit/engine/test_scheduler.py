"""Whose turn it is: slots of the endpoint, its host and the daemon, and what becomes of those that say nothing."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.endpoints import HOOK
from webhookd.engine.dispatch.payloads import Payload
from webhookd.engine.dispatch.queues import QUEUED, EndpointQueue, Flight, Standing, host_of
from webhookd.engine.dispatch.scheduler import ASIDE_PER_SLOT, FOREVER, Scheduler
from webhookd.model import Batch, Delivery, Event
from webhookd.policy.limiter import Signal

DAY = datetime(2021, 1, 27, tzinfo=UTC)
NOW = 1000.0
PATIENCE = 3.0
PAYLOAD = Payload(b"{}")


class Daemon:
    """Queues with something in them, and their turns."""

    def __init__(self, slots: int = 100, per_host: int = 100) -> None:
        self.turns = Scheduler()
        self.limits = slots, per_host
        self.numbers = itertools.count(1)
        self.queues: list[EndpointQueue] = []

    def queue(self, ready: int = 100, **changes: Any) -> EndpointQueue:
        """Of an endpoint of which nothing is known."""
        number = next(self.numbers)
        endpoint = replace(HOOK, id=number, **{"url": f"https://{number}.example.com/", **changes})
        queue = EndpointQueue(endpoint, self.turns.host(endpoint.url))
        self.queues.append(queue)
        queue.share(0, 1)
        self.turns.configure(*self.limits, {queue.host for queue in self.queues})
        if ready:
            self.fill(queue, ready)
        return queue

    def fill(self, queue: EndpointQueue, ready: int) -> None:
        for _ in range(ready):
            event = Event(next(self.numbers), "evt", DAY, "order.created", "", None, None, None, 2)
            batch = Batch(1, 7, 0.0, [], DAY, DAY, 1, 0)
            queue.ready.append((Delivery(event, queue.endpoint, batch, 0, 0.0, NOW, FOREVER), PAYLOAD))
        self.turns.ask(queue)

    def start(self, now: float = NOW, most: int = 10_000) -> list[Flight]:
        """Start all that may."""
        flights: list[Flight] = []
        while len(flights) < most and (queue := self.turns.take(now)) is not None:
            flights.append(self.turns.start(queue, *queue.ready.popleft(), now))
        return flights

    def check(self, flying: list[Flight], slots: int, per_host: int, most: int) -> None:
        """No limit is exceeded."""
        assert self.turns.started + self.turns.aside == len(flying)
        assert 0 <= self.turns.started <= slots
        assert 0 <= self.turns.aside <= slots * ASIDE_PER_SLOT
        assert all(len(queue.flying) <= most for queue in self.queues)
        assert all(0 <= queue.host.flying <= max(per_host, most) for queue in self.queues)
        assert sum(flight.standing is Standing.STUCK for flight in flying) <= max(slots // 4, 1)

    def finish(self, flying: list[Flight], now: float) -> None:
        """All answer, until nothing is left."""
        for _ in range(1000):
            now += 1
            for flight in flying:
                self.turns.land(flight)
                flight.queue.learn(Signal.GOOD, now - 0.01, now)
            self.turns.wake(now)
            flying = self.start(now)
            if not flying and not any(queue.ready for queue in self.queues):
                break

    def stuck(self, ready: int = 100, **changes: Any) -> EndpointQueue:
        queue = self.queue(0, **changes)
        queue.learn(Signal.LATE, NOW - 20, NOW)
        self.fill(queue, ready)
        return queue

    def slow(self, ready: int = 100, **changes: Any) -> EndpointQueue:
        queue = self.queue(0, **changes)
        queue.learn(Signal.GOOD, NOW - 5, NOW)
        self.fill(queue, ready)
        return queue


def count(flights: list[Flight], queue: EndpointQueue) -> int:
    return sum(flight.queue is queue for flight in flights)


def test_each_limit_holds_and_is_used() -> None:
    daemon = Daemon(slots=25)
    first, second, third = daemon.queue(), daemon.queue(max_in_flight=7), daemon.queue(ready=3)
    flights = daemon.start()
    assert [count(flights, queue) for queue in (first, second, third)] == [10, 7, 3]
    daemon.queue(max_in_flight=50)
    assert len(daemon.start()) == 5
    assert daemon.turns.started == 25


def test_an_answer_gives_the_slots_to_who_waits() -> None:
    daemon = Daemon(slots=2)
    first, second = daemon.queue(max_in_flight=1), daemon.queue(max_in_flight=5)
    flights = daemon.start()
    assert (count(flights, first), count(flights, second)) == (1, 1)
    daemon.turns.land(flights[0])
    (following,) = daemon.start()
    assert following.queue is second
    daemon.turns.land(following)
    assert count(daemon.start(), first) == 1


def test_endpoints_of_one_host_share_its_slots_in_turns() -> None:
    daemon = Daemon(per_host=4)
    one, two = (daemon.queue(url=f"https://Hooks.example.com:8443/{path}", max_in_flight=4) for path in "ab")
    other = daemon.queue(url="https://hooks.example.com/", max_in_flight=4)
    flights = daemon.start()
    assert [count(flights, queue) for queue in (one, two, other)] == [2, 2, 4]
    assert one.is_held_up(NOW)
    daemon.turns.land(flights[0])
    assert len(daemon.start()) == 1
    assert not daemon.start()


def test_a_host_has_at_least_what_one_of_its_endpoints_has() -> None:
    daemon = Daemon(per_host=4)
    large = daemon.queue(url="https://a.example/1", max_in_flight=9)
    daemon.queue(url="https://a.example/2", max_in_flight=2)
    flights = daemon.start()
    assert len(flights) == 9
    assert count(flights, large) < 9


def test_an_endpoint_that_moves_counts_where_its_attempts_started() -> None:
    daemon = Daemon()
    queue = daemon.queue(max_in_flight=4)
    before = queue.host
    flights = daemon.start(most=2)
    moved = replace(queue.endpoint, url="https://moved.example.com/")
    queue.change(moved, daemon.turns.host(moved.url))
    daemon.turns.configure(*daemon.limits, {queue.host for queue in daemon.queues})
    daemon.turns.ask(queue)
    assert len(daemon.start()) == 2
    daemon.turns.land(flights[0])
    assert (before.flying, queue.host.flying) == (1, 2)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Hooks.Example.com/a?b=c", "hooks.example.com"),
        ("https://user:pass@hooks.example.com:8443/", "hooks.example.com:8443"),
        ("https://[2001:DB8::1]:8443/", "[2001:db8::1]:8443"),
    ],
)
def test_the_host_of_a_url(url: str, host: str) -> None:
    assert host_of(url) == host


def test_a_rate_is_kept_and_its_endpoint_wakes_in_time() -> None:
    daemon = Daemon()
    queue, free = daemon.queue(300, rate_limit=50.0, max_in_flight=100), daemon.queue()
    now, started = NOW, 0
    flights = daemon.start(now)
    assert count(flights, free) == 10
    free.ready.clear()
    while now < NOW + 2:
        started += count(flights, queue)
        for flight in flights:
            daemon.turns.land(flight)
        assert now < daemon.turns.upcoming < now + 0.03
        now = daemon.turns.upcoming
        daemon.turns.wake(now)
        flights = daemon.start(now)
    assert 100 <= started <= 106


def test_a_block_holds_until_its_moment() -> None:
    daemon = Daemon()
    queue = daemon.queue()
    queue.blocked_until = NOW + 5
    assert not daemon.start(NOW)
    assert daemon.turns.upcoming == NOW + 5
    daemon.turns.wake(NOW + 4)
    assert not daemon.start(NOW + 4)
    daemon.turns.wake(NOW + 5)
    assert len(daemon.start(NOW + 5)) == 10
    assert daemon.turns.upcoming == FOREVER


def test_what_is_silent_for_a_second_gives_its_slot_away() -> None:
    daemon = Daemon(slots=4)
    silent, healthy = daemon.queue(), daemon.queue()
    flights = daemon.start(most=4)
    daemon.turns.age(NOW + 0.9)
    assert not daemon.start(NOW + 0.9)
    daemon.turns.age(NOW + 1)
    assert (daemon.turns.started, daemon.turns.aside) == (0, 4)
    assert silent.standing is healthy.standing is Standing.STUCK
    for flight in flights:
        daemon.turns.land(flight)
    assert (daemon.turns.started, daemon.turns.aside) == (0, 0)


def test_while_our_way_out_is_shut_one_attempt_a_second_looks_at_it() -> None:
    daemon = Daemon()
    daemon.queue(10)
    first = daemon.start()
    assert len(first) == 10
    turns = daemon.turns
    daemon.fill(daemon.queues[0], 10)
    turns.land(first[0])
    assert turns.note_egress(True, NOW, NOW + 1)
    assert not turns.note_egress(True, NOW, NOW + 1.1)  # known by now
    assert not turns.note_egress(False, NOW, NOW + 1.2)  # began before
    assert not turns.note_egress(None, NOW + 1.1, NOW + 1.2)  # got nowhere near it
    for flight in first[1:]:
        turns.land(flight)
    assert daemon.start(NOW + 2) == []
    (look,) = daemon.start(NOW + 2.2)
    turns.land(look)
    assert not turns.note_egress(True, NOW + 2.2, NOW + 2.3)
    assert daemon.start(NOW + 3.2) == []
    (look,) = daemon.start(NOW + 3.4)
    turns.land(look)
    assert turns.note_egress(False, NOW + 3.4, NOW + 3.5)
    assert len(daemon.start(NOW + 3.5)) == 8


def test_only_so_many_may_be_aside() -> None:
    daemon = Daemon(slots=4)
    flights: list[Flight] = []
    for second in range(ASIDE_PER_SLOT + 2):  # endpoint after endpoint falls silent
        for _ in range(4):
            daemon.queue(ready=1)
        flights += daemon.start(NOW + 2 * second)
        daemon.turns.age(NOW + 2 * second + 1)
    assert (daemon.turns.started, daemon.turns.aside) == (4, 4 * ASIDE_PER_SLOT)
    for flight in flights[:2]:
        daemon.turns.land(flight)
    daemon.turns.age(NOW + 100)
    assert (daemon.turns.started, daemon.turns.aside) == (2, 4 * ASIDE_PER_SLOT)
    for flight in flights[2:]:
        daemon.turns.land(flight)
    assert (daemon.turns.started, daemon.turns.aside) == (0, 0)


def test_those_that_say_nothing_share_a_quarter_and_with_the_slow_ones_half() -> None:
    daemon = Daemon(slots=40)
    stuck = [daemon.stuck() for _ in range(30)]
    slow = [daemon.slow() for _ in range(30)]
    flights = daemon.start()
    assert sum(flight.standing is Standing.STUCK for flight in flights) == 10
    assert sum(flight.standing is Standing.SLOW for flight in flights) == 10
    assert len({flight.queue for flight in flights}) == 20
    healthy = [daemon.queue() for _ in range(30)]
    assert len(daemon.start()) == 20
    assert all(count(flights, queue) <= 1 for queue in (*stuck, *slow))
    assert not any(queue.flying for queue in healthy[20:])
    landed = next(flight for flight in flights if flight.standing is Standing.STUCK)
    daemon.turns.land(landed)
    (following,) = daemon.start()
    assert following.queue in (*healthy, *stuck, *slow)


def test_a_stuck_slot_goes_to_the_next_that_is_stuck_in_turns() -> None:
    daemon = Daemon(slots=4)
    queues = [daemon.stuck() for _ in range(5)]
    order = []
    for _ in range(10):
        (flight,) = daemon.start()
        order.append(flight.queue)
        daemon.turns.land(flight)
    assert [queues.index(queue) for queue in order] == [0, 1, 2, 3, 4] * 2


def test_one_slot_is_enough_for_everybody() -> None:
    daemon = Daemon(slots=1)
    queues = {daemon.stuck(), daemon.slow(), daemon.queue()}
    for _ in range(3):
        (flight,) = daemon.start()
        queues.remove(flight.queue)
        daemon.turns.land(flight)


@pytest.mark.parametrize("signal", [Signal.LATE, Signal.LOST])
def test_an_endpoint_that_does_not_answer_is_tried_one_at_a_time_until_it_does(signal: Signal) -> None:
    queue = Daemon().queue()
    queue.learn(signal, NOW, NOW + 0.5)
    assert (queue.standing, queue.limit) == (Standing.STUCK, 1)
    for nothing_new in (Signal.PLAIN, Signal.BUSY, Signal.OURS):
        queue.learn(nothing_new, NOW + 1, NOW + 1.1)
        assert queue.standing is Standing.STUCK
    queue.learn(Signal.GOOD, NOW + 2, NOW + 2.1)
    assert queue.standing is Standing.PROVEN
    assert queue.limit > 1


@pytest.mark.parametrize("signal", [Signal.PLAIN, Signal.BUSY, Signal.OURS])
def test_an_endpoint_that_answers_is_not_stuck(signal: Signal) -> None:
    queue = Daemon().queue()
    queue.learn(signal, NOW, NOW + 0.5)
    assert queue.standing is Standing.PROVEN


def test_what_is_silent_is_stuck_unless_it_answered_since_or_is_slow_by_nature() -> None:
    daemon = Daemon()
    new, busy, slow = daemon.queue(ready=1), daemon.queue(ready=1), daemon.slow(ready=1)
    daemon.start(NOW + 0.1)
    busy.learn(Signal.GOOD, NOW + 0.4, NOW + 0.5)
    daemon.turns.age(NOW + 2)
    assert (new.standing, busy.standing, slow.standing) == (Standing.STUCK, Standing.PROVEN, Standing.SLOW)
    daemon.turns.age(NOW + 20)
    assert (new.standing, busy.standing, slow.standing) == (Standing.STUCK, Standing.PROVEN, Standing.STUCK)


def test_what_waits_behind_silence_is_counted() -> None:
    daemon = Daemon()
    silent, answering, old = daemon.queue(ready=30), daemon.queue(ready=30), daemon.queue(ready=30)
    daemon.start(NOW)
    answering.learn(Signal.GOOD, NOW, NOW + 0.08)
    assert daemon.turns.behind_silence(NOW + 0.04) == 0
    assert daemon.turns.behind_silence(NOW + 0.1) == 40
    daemon.turns.age(NOW + 2)
    assert daemon.turns.behind_silence(NOW + 2) == silent.queued + answering.queued + old.queued == 60


def test_a_slot_that_one_endpoint_of_a_host_cannot_use_goes_to_the_next() -> None:
    daemon = Daemon(per_host=1)
    first, paced, free = (
        daemon.queue(url="https://a.example/", max_in_flight=1, rate_limit=rate) for rate in (0.0, 1.0, 0.0)
    )
    (flight,) = daemon.start()
    assert flight.queue is first
    first.ready.clear()
    assert paced.pace is not None
    paced.pace.started(NOW)
    daemon.turns.land(flight)
    (flight,) = daemon.start()
    assert flight.queue is free


def test_a_delivery_that_takes_long_is_told_once() -> None:
    daemon = Daemon()
    daemon.queue(ready=2)
    first, claimed = daemon.start(NOW)
    claimed.delivery.batch = None
    daemon.queue(ready=1)
    daemon.start(NOW + 2)
    daemon.turns.age(NOW + 3.5)
    assert daemon.turns.stragglers(NOW + 3.5 - PATIENCE) == [first.delivery]
    first.delivery.batch = None  # as the recorder does when its row is written
    assert daemon.turns.stragglers(NOW + 3.5 - PATIENCE) == []


def test_a_queue_is_full_when_its_endpoint_would_take_too_long() -> None:
    daemon = Daemon()
    new = daemon.queue(ready=5000)
    assert not new.is_full(NOW, PATIENCE)
    new.learn(Signal.GOOD, NOW - 0.01, NOW)  # 10 slots at 10 ms: 5 s
    assert new.is_full(NOW, PATIENCE)
    fast = daemon.queue(ready=2000)
    fast.learn(Signal.GOOD, NOW - 0.01, NOW)
    assert not fast.is_full(NOW, PATIENCE)
    daemon.start()
    assert not fast.is_full(NOW, PATIENCE)
    assert fast.is_full(NOW + 0.5, PATIENCE)  # nothing has come for half a second, whatever it was like before
    paced = daemon.queue(ready=QUEUED - 1, rate_limit=50.0)
    assert not paced.is_full(NOW, PATIENCE)
    daemon.fill(paced, 1)
    assert paced.is_full(NOW, PATIENCE)
    assert daemon.stuck(ready=1).is_full(NOW, PATIENCE)
    assert not daemon.stuck(ready=0).is_full(NOW, PATIENCE)
    shared = daemon.queue(ready=0, max_in_flight=1)
    shared.share(1, 2)
    assert shared.limit == 1
    shared.share(0, 2)
    assert shared.limit == 0
    assert shared.is_full(NOW, PATIENCE)


def test_what_is_claimed_could_start_within_a_second() -> None:
    daemon = Daemon()
    assert daemon.queue(ready=0).appetite(NOW, 200) == 20
    fast = daemon.queue(ready=5)
    fast.learn(Signal.GOOD, NOW - 0.125, NOW)
    assert fast.appetite(NOW, 200) == 75
    assert fast.appetite(NOW, 50) == 45
    assert daemon.slow(ready=0).appetite(NOW, 200) == 10
    assert daemon.queue(ready=0, rate_limit=7.0).appetite(NOW, 200) == 7
    rare = daemon.queue(ready=1, rate_limit=0.01)
    daemon.start()
    assert rare.appetite(NOW + 1, 200) == 0
    assert rare.appetite(NOW + 99.5, 200) == 0  # one is still in flight
    assert daemon.stuck(ready=0).appetite(NOW, 200) == 1
    assert daemon.stuck(ready=1).appetite(NOW, 200) == 0
    blocked = daemon.queue(ready=0)
    blocked.blocked_until = NOW + 1
    assert blocked.appetite(NOW, 200) == 0


def test_daemons_share_a_limit_and_a_rate() -> None:
    queue = Daemon().queue(max_in_flight=7, rate_limit=30.0)
    limits = []
    for rank in range(3):
        queue.share(rank, 3)
        assert queue.pace is not None
        assert queue.pace.rate == 10
        limits.append(queue.limit)
    assert sorted(limits) == [2, 2, 3]


moves = st.lists(st.tuples(st.sampled_from(["start", "land", "age", "fill", "learn", "wake"]), st.integers(0, 99)))


@given(moves, st.integers(1, 8), st.integers(1, 5), st.integers(1, 4))
def test_whatever_happens_no_limit_is_exceeded_and_nothing_is_forgotten(
    moves: list[tuple[str, int]], slots: int, per_host: int, most: int
) -> None:
    daemon = Daemon(slots, per_host)
    queues = [
        daemon.queue(
            3, max_in_flight=most, tenant=f"t{n % 2}", url=f"https://{n % 3}.example/", rate_limit=20.0 * (n % 2)
        )
        for n in range(6)
    ]
    signals, flying, now = list(Signal), list[Flight](), NOW
    for move, number in moves:
        now += number / 50
        queue, signal = queues[number % 6], signals[number % len(signals)]
        match move:
            case "start":
                flying += daemon.start(now, 1 + number % 5)
            case "land" if flying:
                flight = flying.pop(number % len(flying))
                daemon.turns.land(flight)
                flight.queue.learn(signal, flight.started, now)
            case "age":
                daemon.turns.age(now)
            case "wake":
                daemon.turns.wake(now)
            case "fill":
                daemon.fill(queue, 2)
            case "learn":
                queue.learn(signal, now - number / 20, now)
                daemon.turns.ask(queue)
        daemon.check(flying, slots, per_host, most)
    daemon.finish(flying, now)
    assert not any(queue.ready for queue in queues)
    assert (daemon.turns.started, daemon.turns.aside) == (0, 0)
