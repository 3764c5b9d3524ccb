"""When a failed delivery is tried again, and when no longer."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.model import RetryPolicy
from webhookd.policy.backoff import horizon, interval, over_before, within

DAY = 86400.0
NO_JITTER = RetryPolicy(jitter=0.0)
uniform = st.floats(0, 1, exclude_max=True)
policies = st.builds(
    RetryPolicy,
    first=st.floats(0.001, 3600),
    factor=st.floats(1, 100),
    max_interval=st.floats(3600, 30 * DAY),
    jitter=st.floats(0, 1),
    give_up_after=st.floats(0.001, 30 * DAY),
    schedule=st.one_of(st.just(()), st.lists(st.floats(0.001, 30 * DAY), min_size=1, max_size=8).map(tuple)),
)


def next_delay(
    policy: RetryPolicy, attempt: int, now: float, last_start: float, random: float, at_least: float = 0.0
) -> float | None:
    return within(max(interval(policy, attempt, random), at_least), now, last_start)


def test_the_default_grows_threefold_from_five_seconds_to_six_hours() -> None:
    assert [interval(NO_JITTER, n, 0.5) for n in (1, 2, 3, 4)] == [5, 15, 45, 135]
    assert [interval(NO_JITTER, n, 0.5) for n in (8, 9, 10, 1000)] == [5.0 * 3**7, 21600, 21600, 21600]


def test_a_schedule_is_followed_and_its_last_step_repeats() -> None:
    policy = replace(NO_JITTER, schedule=(5.0, 300.0, 60.0))
    assert [interval(policy, n, 0.5) for n in (1, 2, 3, 4, 500)] == [5, 300, 60, 60, 60]


@given(policies, st.integers(1, 100_000), uniform)
def test_jitter_stays_within_its_share(policy: RetryPolicy, attempt: int, random: float) -> None:
    base = interval(replace(policy, jitter=0.0), attempt, random)
    assert base * (1 - policy.jitter) <= interval(policy, attempt, random) <= base * (1 + policy.jitter) * (1 + 1e-9)


@given(policies, st.integers(1, 500))
def test_the_exponential_never_shrinks_nor_passes_its_greatest(policy: RetryPolicy, attempt: int) -> None:
    plain = replace(policy, jitter=0.0, schedule=())
    assert 0 < interval(plain, attempt, 0.5) <= interval(plain, attempt + 1, 0.5) <= plain.max_interval


@pytest.mark.parametrize("factor", [1.05, 1.1, 1.5, 3.0, 100.0])
def test_a_factor_above_one_reaches_the_greatest_interval(factor: float) -> None:
    policy = replace(NO_JITTER, first=1.0, factor=factor, max_interval=3600.0)
    assert interval(policy, 200, 0.5) == pytest.approx(3600.0)


@given(policies, st.integers(1, 1000), st.floats(0, 60 * DAY), uniform, st.floats(0, 3600))
def test_no_attempt_starts_behind_the_horizon(
    policy: RetryPolicy, attempt: int, now: float, random: float, at_least: float
) -> None:
    last_start = horizon(policy, 0.0)
    delay = next_delay(policy, attempt, now, last_start, random, at_least)
    if now >= last_start:
        assert delay is None
    else:
        assert delay is not None
        assert 0 <= delay <= last_start - now
        assert delay >= min(at_least, last_start - now)


@given(policies, uniform)
def test_the_last_attempt_is_on_the_horizon_itself(policy: RetryPolicy, random: float) -> None:
    last_start = horizon(policy, 1e9)
    delay = next_delay(
        replace(policy, first=30 * DAY, max_interval=30 * DAY, schedule=(), jitter=0.0), 1, 1e9, last_start, 0.5
    )
    assert delay is not None
    assert 1e9 + delay == pytest.approx(last_start, abs=1e-3)
    assert next_delay(policy, 2, last_start, last_start, random) is None


def test_three_days_of_failures_step_by_step() -> None:
    policy, now, starts = RetryPolicy(), 0.0, [0.0]
    last_start = horizon(policy, 0.0)
    while (delay := next_delay(policy, len(starts), now, last_start, 0.37)) is not None:
        now += delay
        starts.append(now)
    steps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert starts[-1] == pytest.approx(3 * DAY)
    assert steps[:9] == sorted(steps[:9])  # but for the last, which is cut to the horizon
    assert len(starts) == 21


def test_downtime_gives_back_what_it_took() -> None:
    policy = RetryPolicy(give_up_after=100.0)
    assert horizon(policy, 1000.0) == 1100
    assert horizon(policy, 1000.0, [(1010.0, 1030.0)]) == 1120
    assert horizon(policy, 1000.0, [(900.0, 1010.0)]) == 1110  # only what came after its clock began
    assert horizon(policy, 1000.0, [(900.0, 1000.0), (800.0, 900.0)]) == 1100
    assert horizon(policy, 1000.0, [(1010.0, 1030.0), (2000.0, 2005.0)]) == 1125


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)).map(lambda pair: (min(pair), max(pair)))))
def test_downtime_never_shortens_and_never_gives_more_than_it_lasted(spans: list[tuple[float, float]]) -> None:
    found = horizon(NO_JITTER, 5e5, spans)
    assert found >= horizon(NO_JITTER, 5e5) - 1e-6
    assert found <= horizon(NO_JITTER, 5e5) + sum(end - start for start, end in spans) + 1e-3


@given(
    policies,
    st.lists(st.tuples(st.floats(0, 30 * DAY), st.floats(1, DAY)), max_size=5),
    st.floats(0, 60 * DAY),
    st.floats(0, 30 * DAY),
)
def test_what_is_over_has_its_horizon_behind_it(
    policy: RetryPolicy, gaps: list[tuple[float, float]], now: float, earlier: float
) -> None:
    """Spans without a daemon lie one behind the other; what counts from before the moment is over, each of it."""
    ends = itertools.accumulate(gap + length for gap, length in gaps)
    downtimes = [(end - length, end) for end, (_, length) in zip(ends, gaps, strict=True) if end <= now]
    moment = over_before(policy, now, downtimes)
    assert horizon(policy, moment - earlier, downtimes) <= now + 1e-3
    assert now - moment <= policy.give_up_after + sum(end - start for start, end in downtimes) + 1e-3
