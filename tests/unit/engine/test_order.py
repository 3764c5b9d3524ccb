"""Lines: whatever is offered, fed, ended or stopped, only the first of a key may start, and all of it is counted."""

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.endpoints import HOOK
from webhookd.engine.dispatch.order import OF_A_KEY, Order
from webhookd.engine.dispatch.ordering import Ordering
from webhookd.engine.dispatch.payloads import Payload
from webhookd.engine.dispatch.queues import EndpointQueue, Host
from webhookd.model import Batch, Delivery, Event, Ordered, Window

DAY = datetime(2026, 11, 3, tzinfo=UTC)
WINDOW = Window(1, 1, 1, 2, 0)
BATCH = Batch(1, 1, 0.0, [], DAY, DAY, 1, 0)


def delivery(
    number: int,
    key: str | None = "a",
    *,
    of: Window | Batch | None = WINDOW,
    ordered: Ordered = "key",
    lent: bool = False,
) -> Delivery:
    event = Event(number, f"evt_{number}", DAY, "order.created", "", key, None, None, 2)
    return Delivery(event, replace(HOOK, id=1, ordered=ordered), of, 0, 0.0, 0.0, 0.0)


def known(*keys: str, by_key: bool = True) -> Order:
    order = Order(by_key)
    order.know(keys, 0)
    return order


class Play:
    """A model of the queue: what is waiting for its payload, what is ready, what flies, and in which order it ended."""

    def __init__(self, random: Random) -> None:
        self.random, self.order = random, known()
        self.waiting: list[Delivery] = []
        self.ready: list[Delivery] = []
        self.flying: list[Delivery] = []
        self.offered: dict[str, list[int]] = defaultdict(list)
        self.through: dict[str, list[int]] = defaultdict(list)

    def one_of(self, some: list[Delivery]) -> Delivery:
        return some.pop(self.random.randrange(len(some)))

    def offer(self, number: int) -> None:
        made = delivery(number, key := self.random.choice("abc"))
        if self.order.admits(made):
            self.offered[key].append(number)
            if self.order.wants(made):
                self.waiting.append(made)

    def feed(self) -> None:
        fed = self.one_of(self.waiting)  # payloads come in any order
        is_ready, wanted = self.order.has_fed(fed, Payload(b"{}"))
        if is_ready:
            self.ready.append(fed)
        self.ask(wanted)

    def ask(self, wanted: Delivery | None) -> None:
        if wanted is not None:
            assert wanted not in self.waiting
            self.waiting.append(wanted)

    def start(self) -> None:
        self.flying.append(self.one_of(self.ready))
        assert len({each.key for each in self.flying}) == len(self.flying)

    def land(self) -> None:
        landed = self.one_of(self.flying)
        assert landed.key is not None
        self.through[landed.key].append(landed.event.id)
        if self.random.random() < 0.8:
            ready, wanted = self.order.over(landed)
            if ready is not None:
                self.ready.append(ready[0])
            self.ask(wanted)
            return
        gone = [each for each, _ in self.order.stop(landed, self.flying)]
        self.waiting = [each for each in self.waiting if each not in gone]
        for each in gone:
            self.offered[landed.key].remove(each.event.id)

    def go_on(self) -> None:
        possible = [
            move
            for move, some in ((self.feed, self.waiting), (self.start, self.ready), (self.land, self.flying))
            if some
        ]
        if possible:
            self.random.choice(possible)()


@given(st.integers(0, 10_000))
def test_whatever_happens_each_key_goes_in_order(seed: int) -> None:
    play = Play(Random(seed))
    for number in range(60):
        play.offer(number)
        for _ in range(play.random.randrange(4)):
            play.go_on()
        in_memory = [*play.flying, *play.order.waiting(play.flying)]
        assert play.order.size == len(in_memory)
        assert play.order.behind == len(in_memory) - len({each.key for each in in_memory})
        assert all(play.order.waiting(play.flying).count(each) == 1 for each in (*play.waiting, *play.ready))
        # Of each key the first is on its way, or is ready, or flies: nothing waits for ever.
        firsts = {each.key: each for each in reversed(in_memory)}
        assert all(each in (*play.waiting, *play.ready, *play.flying) for each in firsts.values())
    for key, numbers in play.through.items():
        assert numbers == play.offered[key][: len(numbers)]


def test_what_follows_one_that_has_a_row_is_held() -> None:
    order = known("a")
    assert order.admits(delivery(1, "b"))
    assert not order.admits(delivery(2, "a"))
    assert order.admits(delivery(3, None))
    assert order.admits(delivery(4, "a", of=None))  # the row itself
    assert not order.admits(delivery(5, "a"))


@pytest.mark.parametrize("of", [BATCH, WINDOW])
def test_nothing_is_sent_before_it_is_known_what_the_backlog_has(of: Window | Batch) -> None:
    assert not Order(True).admits(delivery(1, of=of))
    assert known().admits(delivery(1, of=WINDOW))
    assert not known().admits(delivery(1, of=BATCH))  # which others cut when it had no order


def test_a_key_does_not_fill_the_memory() -> None:
    order, all_ = known(), known(by_key=False)
    assert [order.admits(delivery(n)) for n in range(OF_A_KEY + 3)] == [True] * (OF_A_KEY + 1) + [False] * 2
    assert all(all_.admits(delivery(n, ordered=True)) for n in range(3 * OF_A_KEY))


def test_the_log_goes_on_when_the_backlog_has_nothing_and_all_is_written() -> None:
    order = known("a")
    head = delivery(1, of=None)
    assert order.admits(head)
    order.note(head, 5, was_first=True)
    assert order.over(head) == (None, None)
    assert (order.wanted(4, 10), order.wanted(5, 10)) == ([], ["a"])
    late = delivery(2)
    assert not order.admits(late)
    order.note(late, 6, was_first=False)
    order.has_none("a", 5)  # it was asked before that one was written
    assert not order.admits(delivery(3))
    assert order.wanted(6, 10) == ["a"]
    order.has_none("a", 6)
    assert order.admits(delivery(4))


def test_others_may_change_what_the_backlog_has() -> None:
    order = known("a", "b", "c")
    flying = delivery(1, "c", of=None)
    assert order.admits(flying)
    order.know(["b", "c", "d"], 0)
    assert order.admits(delivery(2, "a"))  # somebody has resent or discarded it
    assert not order.admits(delivery(3, "b"))
    assert not order.admits(delivery(4, "d"))  # somebody has begun a replay
    order.know([], 0)
    assert not order.admits(delivery(5, "c"))  # what it has is in our hands


def test_what_is_on_its_way_to_the_backlog_is_not_forgotten_with_all_else() -> None:
    order = known()
    first = delivery(1)
    assert order.admits(first)
    assert order.stop(first, ()) == []
    order.note(first, 7, was_first=True)
    order.forget(2)
    order.know([], 6)  # the backlog does not have it yet
    assert not order.admits(delivery(2))
    assert (order.headless(["a"], 6), order.headless(["a"], 7)) == ([], [])
    assert order.wanted(7, 10) == ["a"]


def test_what_others_have_of_a_key_gets_a_head_when_nothing_of_it_is_in_hand() -> None:
    order = known()
    flying, told = delivery(1, "b"), delivery(2, "c")
    assert order.admits(flying)
    order.note(told, 3, was_first=False)
    order.know(["a", "b", "c"], 2)
    assert order.headless(["a", "b", "c"], 2) == ["a"]


def test_what_was_read_of_a_key_is_behind_what_a_replay_has_made_of_it_meanwhile() -> None:
    order = known()
    first = delivery(1)
    assert order.admits(first)
    order.know(["a"], 0)
    assert not order.admits(delivery(2))
    order.note(first, 1, was_first=True)
    assert order.over(first) == (None, None)
    assert order.wanted(1, 10) == ["a"]


def test_a_row_that_waits_for_its_time_is_asked_for_by_others() -> None:
    order = known("a")
    head = delivery(1, of=None)
    assert order.admits(head)
    assert order.over(head) == (None, None)
    order.has_head("a", 0)
    assert not order.has_ended
    assert not order.admits(delivery(2))


def test_all_that_is_in_memory_can_be_taken_out_of_it() -> None:
    order = known()
    flying, behind, other, after = delivery(1), delivery(2), delivery(3, "b"), delivery(4, "b")
    for each in (flying, behind, other, after):
        assert order.admits(each)
    taken = [(each, is_first) for each, _, is_first in order.take_all({flying: None})]
    assert taken == [(behind, False), (other, True), (after, False)]
    assert (order.size, order.behind) == (1, 0)
    assert not order.admits(delivery(5, "b"))
    assert order.over(flying) == (None, None)
    assert order.wanted(0, 10) == ["a"]


def test_one_that_becomes_ordered_knows_what_is_in_flight() -> None:
    flying = [delivery(1), delivery(2)]
    order = Order(True, flying)
    order.know([], 0)
    behind = delivery(3)
    assert order.admits(behind)
    assert not order.wants(behind)
    assert order.over(flying[1]) == (None, None)
    assert order.over(flying[0]) == (None, behind)
    assert order.has_fed(behind, Payload(b"")) == (True, None)


def test_the_backlog_is_looked_at_once_it_has_what_left_memory() -> None:
    """When it is another order that is kept: the one before has noted what was put, and this one knows of nothing."""
    recorder = SimpleNamespace(put_so_far=5, written=4, put=lambda result: None)
    ordering = Ordering(recorder, lambda delivery, payload: None)
    ordering.keep(EndpointQueue(replace(HOOK, id=7, ordered="key"), Host()))
    assert ordering.still_flies(7)
    recorder.written = 5
    assert not ordering.still_flies(7)
