"""What a daemon knows of the database's clock from answers that take their time."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.engine.clock import Clock

AHEAD = 1_000_000.0  # seconds by which the database's clock is ahead of the monotonic one
LATENCIES = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=20)


def measured(latencies: list[tuple[float, float]], ahead: float = AHEAD, clock: Clock | None = None) -> Clock:
    """A clock that was told the time once for each of these: seconds on the way there, and on the way back."""
    clock = clock or Clock()
    for number, (there, back) in enumerate(latencies):
        asked = 100.0 + number
        clock.measure(asked + there + ahead, asked, asked + there + back)
    return clock


def error(clock: Clock, ahead: float = AHEAD) -> float:
    return clock.now() - time.monotonic() - ahead


def test_the_wall_clock_is_believed_at_first() -> None:
    assert Clock().skew == pytest.approx(0, abs=0.1)


@given(LATENCIES)
def test_it_is_as_right_as_the_quickest_answer(latencies: list[tuple[float, float]]) -> None:
    clock = measured(latencies)
    assert abs(error(clock)) <= min(map(sum, latencies)) / 2 + 0.01


@given(LATENCIES)
def test_the_earliest_is_never_late(latencies: list[tuple[float, float]]) -> None:
    assert measured(latencies).earliest(50.0) <= 50.0 + AHEAD + 1e-6


@given(LATENCIES, st.sampled_from([-3600.0, -5.0, 5.0, 3600.0]))
def test_a_clock_that_steps_is_followed_at_once(latencies: list[tuple[float, float]], step: float) -> None:
    clock = measured([(0.1, 0.2)], AHEAD + step, measured(latencies))
    assert abs(error(clock, AHEAD + step)) <= 0.15 + 0.01


def test_clocks_that_drift_apart_are_followed() -> None:
    clock = Clock()
    for second in range(1000):
        measured([(0.001, 0.001)], AHEAD + second * 0.001, clock)
        assert abs(error(clock, AHEAD + second * 0.001)) < 0.01
