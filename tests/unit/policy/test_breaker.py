"""A breaker opens on failures alone, probes at growing intervals, and lets an endpoint back bit by bit."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.policy.breaker import (
    FAILED_IN_ROW,
    FAILED_IN_WINDOW,
    PROBE_JITTER,
    PROBE_MOST,
    UNLIMITED,
    WINDOW,
    Breaker,
)


def opened(at: float = 100.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILED_IN_ROW):
        breaker.failed(at, at, 0.5)
    return breaker


def test_it_opens_on_failures_one_after_the_other() -> None:
    breaker = Breaker()
    assert not any(breaker.failed(1.0, 1.0, 0.5) for _ in range(FAILED_IN_ROW - 1))
    assert breaker.is_closed
    assert breaker.failed(1.0, 1.0, 0.5)
    assert breaker.is_open(1.5)
    assert not breaker.is_open(2.0)
    assert breaker.allowance == 1


def test_a_success_between_begins_the_row_anew() -> None:
    breaker = Breaker()
    for _ in range(3):
        for _ in range(FAILED_IN_ROW - 1):
            assert not breaker.failed(1.0, 1.0, 0.5)
        breaker.succeeded(1.0, 1.0, 10)
    assert breaker.is_closed


def test_it_opens_when_nearly_all_of_the_last_answers_are_failures() -> None:
    """Nine failures for each success never make a row of ten."""
    breaker = Breaker()
    for number in range(WINDOW):
        if number % 9 == 8:
            breaker.succeeded(1.0, 1.0, 10)
        elif breaker.failed(1.0, 1.0, 0.5):
            break
    assert not breaker.is_closed
    assert number >= FAILED_IN_WINDOW


def test_half_of_the_answers_may_be_failures() -> None:
    breaker = Breaker()
    for _ in range(1000):
        assert not breaker.failed(1.0, 1.0, 0.5)
        breaker.succeeded(1.0, 1.0, 10)


def test_probes_come_at_growing_intervals() -> None:
    breaker, now, waits = opened(0.0), 0.0, []
    for _ in range(12):
        waits.append(breaker.retry_at - now)
        now = breaker.retry_at
        breaker.failed(now, now, 0.5)
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == PROBE_MOST


def test_it_comes_back_by_1_2_4_and_closes_at_the_slots() -> None:
    breaker, now = opened(), 200.0
    allowed = []
    while not breaker.is_closed:
        allowed.append(breaker.allowance)
        now += 1
        for number in range(breaker.allowance):
            closed = breaker.succeeded(now, now, 10)
            assert closed == (allowed[-1] == 16 and number == 15)
    assert allowed == [1, 2, 4, 8, 16]
    assert breaker.allowance == UNLIMITED
    assert not breaker.is_open(now)


def test_what_started_before_it_opened_says_nothing() -> None:
    breaker = opened(100.0)
    before = breaker.retry_at
    breaker.failed(99.0, 105.0, 0.5)
    breaker.succeeded(99.0, 105.0, 10)
    assert (breaker.fails, breaker.retry_at, breaker.allowance) == (1, before, 1)


def test_failures_on_the_way_back_go_on_with_the_intervals() -> None:
    breaker = opened(0.0)
    for now in (10.0, 20.0):
        breaker.failed(now, now, 0.5)
    breaker.succeeded(30.0, 30.0, 10)
    for _ in range(FAILED_IN_ROW):
        assert (breaker.allowance, breaker.retry_at) == (2, 0.0), "as many as when it is closed"
        breaker.failed(31.0, 31.0, 0.5)
    assert (breaker.allowance, breaker.retry_at) == (1, 31.0 + 8.0)


@pytest.mark.parametrize("most", [1, 20, 100])
@pytest.mark.parametrize("failing", [1 / 3, 1 / 2])
def test_who_fails_now_and_then_comes_back(failing: float, most: int) -> None:
    """It would not be opened for that, so that must not keep it open."""
    dice, took = random.Random(20261128), []
    for _ in range(100):
        breaker, now = opened(0.0), 0.0
        while not breaker.is_closed:
            now = max(now + 0.01, breaker.retry_at)
            if dice.random() < failing:
                breaker.failed(now, now, dice.random())
            else:
                breaker.succeeded(now, now, most)
        took.append(now)
    assert statistics.median(took) < 10, "half of them within seconds, and probes that fail double them"


def test_it_closes_when_nothing_is_owed_once_a_probe_has_succeeded_and_until_the_next_failure() -> None:
    def rests() -> bool:
        breaker.rest()
        return breaker.is_closed

    breaker = opened(0.0)
    assert not rests(), "open"
    breaker.failed(10.0, 10.0, 0.5)
    assert not rests(), "its probe failed"
    breaker.succeeded(20.0, 20.0, 100)
    breaker.failed(21.0, 21.0, 0.5)
    assert not rests(), "its last answer was bad"
    breaker.succeeded(22.0, 22.0, 100)
    assert rests()
    assert breaker.allowance == UNLIMITED


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 30), st.floats(0, 20)), max_size=300),
    st.integers(1, 50),
    st.floats(0, 0.999),
)
def test_it_never_closes_without_successes_nor_opens_without_failures(
    answers: list[tuple[bool, float, float]], most: int, chance: float
) -> None:
    breaker, now = Breaker(), 0.0
    failures = successes = 0
    for good, pause, seconds in answers:
        now = max(now + pause, breaker.retry_at)  # nobody starts anything before
        started, now = now, now + seconds
        was_closed = breaker.is_closed
        changed = breaker.succeeded(started, now, most) if good else breaker.failed(started, now, chance)
        failures, successes = (failures, successes + 1) if good else (failures + 1, successes)
        if was_closed and not breaker.is_closed:
            assert changed
            assert not good
            assert failures >= FAILED_IN_ROW
        if breaker.allowance == 1:  # it opened
            successes = 0
        if breaker.is_closed and not was_closed:
            assert changed
            assert successes >= most
        assert breaker.is_closed == (breaker.allowance == UNLIMITED)
        assert breaker.allowance >= 1
        assert breaker.is_closed or breaker.allowance < 2 * most or breaker.allowance == 1
        assert breaker.retry_at - now <= PROBE_MOST * (1 + PROBE_JITTER)


@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_probes_of_endpoints_that_failed_together_are_spread(chance: float) -> None:
    breaker = Breaker()
    for _ in range(FAILED_IN_ROW):
        breaker.failed(0.0, 0.0, chance)
    assert breaker.retry_at == pytest.approx(1 + (2 * chance - 1) * PROBE_JITTER)
