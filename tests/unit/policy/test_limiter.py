"""Widths follow answers, paces are kept to, and shares add up."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.policy.limiter import BURST_SECONDS, STRAINED_SECONDS, Pace, Signal, Width, share

SECOND = 1.0


def after(width: Width, *signals: Signal, seconds: float = 0.1) -> float:
    """Its value when requests were answered like this, one after the other."""
    now = 1000.0
    for signal in signals:
        width.learn(signal, now, now + seconds)
        now += seconds
    return width.value


def test_a_width_begins_at_its_bound_and_stays_there() -> None:
    assert after(Width(10), *[Signal.GOOD] * 5, Signal.PLAIN, Signal.LOST, Signal.OURS) == 10


@pytest.mark.parametrize("signal", [Signal.BUSY, Signal.LATE])
def test_trouble_halves_it_down_to_one(signal: Signal) -> None:
    width = Width(10)
    assert after(width, signal) == 5
    assert after(width, *[signal] * 5) == 1


def test_requests_that_flew_together_halve_it_once() -> None:
    width = Width(8)
    for n in range(8):
        width.learn(Signal.LATE, 100.0, 120.0 + n / 100)
    assert width.value == 4
    width.learn(Signal.LATE, 120.5, 140.5)
    assert width.value == 2


def test_a_round_of_good_answers_makes_room_for_one_more() -> None:
    width = Width(100)
    after(width, *[Signal.BUSY] * 3)
    assert width.value == 12.5
    assert 13.4 < after(width, *[Signal.GOOD] * 13) < 13.6


def test_other_answers_make_no_room() -> None:
    width = Width(100)
    after(width, Signal.BUSY)
    assert after(width, *[Signal.PLAIN, Signal.LOST, Signal.OURS] * 10) == 50


def test_requests_that_wait_for_each_other_narrow_it() -> None:
    """A receiver that works on one request at a time answers slower, the more it is sent."""
    width, now = Width(64), 1000.0
    values = []
    for _ in range(400):
        together = int(width.value)
        for nth in range(1, together + 1):
            width.learn(Signal.GOOD, now, now + 0.5 * nth)
        now += 0.5 * together
        values.append(width.value)
    assert max(values[50:]) < 8
    assert min(values) >= 1


def test_a_receiver_that_is_slow_by_nature_is_sent_as_much_as_allowed() -> None:
    assert after(Width(10), *[Signal.GOOD] * 50, seconds=5.0) == 10


def test_a_receiver_may_become_slow_for_good() -> None:
    width = Width(10)
    after(width, *[Signal.GOOD] * 10, seconds=0.5)
    assert after(width, *[Signal.GOOD] * 10, seconds=8.0) < 10
    assert after(width, *[Signal.GOOD] * 1000, seconds=8.0) == 10


def test_what_is_below_a_second_never_narrows() -> None:
    width = Width(10)
    after(width, *[Signal.GOOD] * 10, seconds=0.001)
    assert after(width, *[Signal.GOOD] * 10, seconds=STRAINED_SECONDS) == 10


@given(st.integers(1, 50), st.lists(st.tuples(st.sampled_from(Signal), st.floats(0.001, 30)), max_size=80))
def test_a_width_stays_within_its_bounds(most: int, answers: list[tuple[Signal, float]]) -> None:
    width, now = Width(most), 1000.0
    for signal, seconds in answers:
        width.learn(signal, now, now + seconds)
        now += seconds
        assert 1 <= width.value <= most


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 4))
def test_another_bound_is_taken_up(before: int, most: int, halvings: int) -> None:
    width = Width(before)
    value = after(width, *[Signal.BUSY] * halvings)
    width.resize(most)
    assert width.value <= most
    if halvings == 0:
        assert width.value == most
    elif value < before:
        assert width.value == min(value, most)


def starts(pace: Pace, seconds: float, idle: float = 0.0) -> list[float]:
    """When requests start that are always waiting, once `idle` seconds have passed without any."""
    now = 1000.0 + idle
    end, moments = now + seconds, []
    while now < end:
        if pace.until <= now:
            pace.started(now)
            moments.append(now)
        else:
            now = pace.until
    return moments


@given(st.floats(0.2, 5000), st.floats(0, 100))
def test_no_second_has_more_than_the_rate_and_its_burst(rate: float, idle: float) -> None:
    moments = starts(Pace(rate), min(3.0, 2000 / rate), idle)
    burst = max(rate * BURST_SECONDS, 1)
    most = SECOND * rate + burst
    for first in range(0, len(moments), max(len(moments) // 20, 1)):
        within = sum(moments[first] <= moment < moments[first] + SECOND for moment in moments)
        assert within <= most + 1e-6 + 1


@given(st.floats(0.2, 5000))
def test_a_rate_is_used_to_the_full(rate: float) -> None:
    seconds = max(20 / rate, 1.0) if rate < 500 else 0.2
    assert len(starts(Pace(rate), seconds)) >= int(rate * seconds) - 1


def test_a_slow_rate_has_no_burst() -> None:
    assert [round(b - a, 6) for a, b in pairwise(starts(Pace(2.0), 3.0, idle=60.0))] == [0.5] * 5


@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(0, 1000))
def test_shares_add_up_and_are_even(most: int, live: int, key: int) -> None:
    shares = [share(most, rank, live, key) for rank in range(live)]
    assert sum(shares) == most
    assert max(shares) - min(shares) <= 1


def test_what_cannot_be_divided_is_spread_over_the_daemons() -> None:
    owners = [[rank for rank in range(3) if share(1, rank, 3, key)] for key in range(6)]
    assert sorted(owners) == [[0], [0], [1], [1], [2], [2]]
