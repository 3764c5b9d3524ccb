"""What is counted of a result, once it is recorded."""

from dataclasses import replace

import pytest

from tests.unit.engine.test_recorder import ENDPOINT, delivery
from webhookd.engine.counting import count
from webhookd.model import UNWANTED, Attempt, Delivered, Ended, Outcome, Postponed, Result, Retry
from webhookd.tally import Tally

GOOD = Attempt(1_000.5, 1, True, 204, 250, None, None)
BAD = Attempt(1_000.5, 1, False, 500, 10, "http_500", None)
MUTE = Attempt(1_000.5, 1, False, None, 20_000, "timeout", None)


def counted(*pairs: tuple[Attempt | None, Outcome]) -> Tally:
    tally = Tally()
    tally.endpoints = {}
    for attempt, outcome in pairs:
        count(tally, Result(replace(delivery(1, None), clock_from=1_000.0), attempt, outcome))
    return tally


def test_attempts_count_by_outcome_and_by_what_was_answered() -> None:
    tally = counted((GOOD, Delivered()), (BAD, Retry(5.0)), (BAD, Ended("exhausted", "over")), (MUTE, Retry(5.0)))
    assert tally.attempts == {(True, 204): 1, (False, 500): 2, (False, "timeout"): 1}
    assert tally.endpoints == {ENDPOINT.id: [3, 1]}
    assert tally.answers.sum == pytest.approx(20.27)
    assert tally.lags.sum == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("attempt", "outcome", "result"),
    [
        (GOOD, Delivered(), "delivered"),
        (None, Delivered(), "delivered"),
        (BAD, Ended("exhausted", "over"), "exhausted"),
        (None, Ended("rejected", "payload_too_large"), "rejected"),
        (None, Ended("rejected", "discarded"), "discarded"),
        (BAD, Ended("rejected", "unwanted"), "unwanted"),
    ],
)
def test_deliveries_count_by_what_became_of_them(attempt: Attempt | None, outcome: Outcome, result: str) -> None:
    assert counted((attempt, outcome)).deliveries == {result: 1}


def test_what_goes_on_counts_as_no_delivery_that_ended() -> None:
    tally = counted((BAD, Retry(5.0)), (None, Postponed(0.0)), (None, Postponed(5.0, "proxy_error")), (None, UNWANTED))
    assert not tally.deliveries
    assert tally.spills == 2


def test_endpoints_that_are_gone_are_forgotten() -> None:
    tally = counted((GOOD, Delivered()))
    tally.keep({ENDPOINT.id, 999})
    assert tally.endpoints == {ENDPOINT.id: [0, 1]}
    tally.keep({999})
    assert tally.endpoints == {}


def test_nothing_is_kept_of_endpoints_where_nobody_asks() -> None:
    tally = Tally()
    count(tally, Result(delivery(1, None), GOOD, Delivered()))
    tally.keep(set())
    assert tally.endpoints is None
