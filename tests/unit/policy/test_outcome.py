"""What an answer means."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.egress.sender import CODES
from webhookd.exchange import NoResponse, Response
from webhookd.message.formats import FORMATS
from webhookd.message.signing import SCHEMES
from webhookd.model import Attempt, Delivered, Delivery, Ended, Endpoint, Event, Postponed, Retry, RetryPolicy
from webhookd.policy.limiter import Signal
from webhookd.policy.outcome import (
    MAX_RETRY_AFTER,
    MOST_ATTEMPTS,
    OWN_FAULT_PAUSE,
    attempt_of,
    decide,
    is_egress_down,
    is_failure,
    retry_after,
    signal,
    wait_of,
)

NOW = 1_700_000_000.0
FAILURES = [status for status in range(101, 1000) if not 200 <= status < 300]


def delivery(attempts: int = 0, asked: int = 0, **policy: Any) -> Delivery:
    event = Event(1, "evt_1", datetime(2021, 1, 27, tzinfo=UTC), "order.created", "", None, None, None, 2)
    endpoint = Endpoint(
        id=1,
        tenant="",
        name="hook",
        url="https://hooks.example.com/",
        events=("*",),
        format=FORMATS["raw"],
        signature=SCHEMES["none"],
        secrets=(),
        retry=replace(RetryPolicy(jitter=0.0), **policy),
        timeout=20.0,
        max_in_flight=10,
    )
    return Delivery(event, endpoint, None, attempts, NOW, 0.0, 0.0, asked)


def decided(
    answer: Response | NoResponse, *, attempts: int = 0, asked: int = 0, left: float = 1e6, wait: float = 0.0
) -> object:
    return decide(delivery(attempts, asked), answer, NOW, NOW + left, wait, lambda: 0.5)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("5", 5),
        (" 5 ", 5),
        ("0", 0),
        ("3600", 3600),
        ("3601", MAX_RETRY_AFTER),
        ("9999999999", MAX_RETRY_AFTER),
        ("9" * 20, MAX_RETRY_AFTER),
        ("9" * 1000, MAX_RETRY_AFTER),
        ("-1", 0),
        ("+5", 0),
        ("1.5", 0),
        ("NaN", 0),
        ("inf", 0),
        ("1e309", 0),
        ("1000000000000", MAX_RETRY_AFTER),
        ("10^12", 0),
        ("", 0),
        ("soon", 0),
        ("\u0665", 0),  # a digit, but not of HTTP
        ("5, 6", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Mon, 32 Feb 2023 99:99:99 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", MAX_RETRY_AFTER),
    ],
)
def test_retry_after(header: str | None, seconds: float) -> None:
    assert retry_after(header, NOW) == seconds


@given(st.one_of(st.text(), st.text("0123456789+-:, GMTMonJan", max_size=40)))
def test_retry_after_never_raises_and_stays_within_an_hour(header: str) -> None:
    assert 0 <= retry_after(header, NOW) <= MAX_RETRY_AFTER


@given(st.integers(0, 4000))
def test_retry_after_as_a_date(seconds: int) -> None:
    header = format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)
    assert retry_after(header, NOW) == min(seconds, MAX_RETRY_AFTER)


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's time zone is nine hours ahead."""
    before = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    yield
    monkeypatch.undo()
    assert os.environ.get("TZ") == before
    time.tzset()


@pytest.mark.usefixtures("far_east")
@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S -0000", "%a %b %d %H:%M:%S %Y"])
def test_a_date_without_a_zone_is_utc_wherever_we_are(form: str) -> None:
    header = datetime.fromtimestamp(NOW + 90, UTC).strftime(form)  # the last is the obsolete form of RFC 9110 5.6.7
    assert retry_after(header, NOW) == 90


@pytest.mark.parametrize("status", range(200, 300))
def test_every_2xx_is_delivered(status: int) -> None:
    assert decided(Response(status), left=-5.0) == Delivered()  # however late
    assert attempt_of(Response(status, b"thanks"), 3, NOW, 12) == Attempt(NOW, 3, True, status, 12, None, None)


@pytest.mark.parametrize("status", FAILURES)
def test_every_other_status_is_tried_again(status: int) -> None:
    assert decided(Response(status, b"no")) == Retry(5.0, asked=status == 429)
    assert decided(Response(status, b"no"), left=0.0) == Ended("exhausted", "the time to retry is over")
    assert attempt_of(Response(status, b"no"), 1, NOW, 12) == Attempt(
        NOW, 1, False, status, 12, f"http_{status}", b"no"
    )


def test_a_status_of_three_zeros_is_a_failure_with_a_code() -> None:
    assert decided(Response(0)) == Retry(5.0)
    assert attempt_of(Response(0), 1, NOW, 12) == Attempt(NOW, 1, False, 0, 12, "http_000", None)


@pytest.mark.parametrize("code", sorted(CODES - {"auth_error"}))
def test_no_response_is_tried_again_on_the_same_schedule(code: str) -> None:
    assert decided(NoResponse(code)) == decided(Response(500)) == Retry(5.0)
    assert decided(NoResponse(code), attempts=2) == decided(Response(403), attempts=2) == Retry(45.0)
    assert attempt_of(NoResponse(code), 2, NOW, 20_000) == Attempt(NOW, 2, False, None, 20_000, code, None)


def test_without_a_token_no_attempt_is_counted_until_the_time_is_over() -> None:
    no_token = NoResponse("auth_error")
    postponed = Postponed(OWN_FAULT_PAUSE, "auth_error")
    assert decided(no_token) == decided(no_token, left=OWN_FAULT_PAUSE) == postponed
    assert decided(no_token, left=-1.0) == Ended("exhausted", "the time to retry is over")
    assert is_failure(no_token, 0.0)


def test_who_asks_for_less_has_not_failed_but_must_ask_for_something() -> None:
    assert not is_failure(Response(503), 5.0)
    assert not is_failure(Response(429), 0.0)
    for answer in (Response(503), Response(503, retry_after="NaN"), Response(503, retry_after="0"), Response(500)):
        assert is_failure(answer, 0.0)
    assert not is_failure(NoResponse("internal", ours=True), 0.0)


def test_what_an_answer_says_of_our_own_way_out() -> None:
    assert is_egress_down(NoResponse("proxy_error", ours=True)) is True
    for through in (NoResponse("proxy_error"), NoResponse("timeout"), NoResponse("tls_error"), Response(502)):
        assert is_egress_down(through) is False
    for neither in ("egress_denied", "invalid_url", "auth_error", "connect_timeout", "dns_error"):
        assert is_egress_down(NoResponse(neither)) is None
    assert is_egress_down(NoResponse("internal", ours=True)) is None


def test_a_fault_of_ours_costs_no_attempt_even_on_the_horizon() -> None:
    assert decided(NoResponse("internal", ours=True)) == Postponed(OWN_FAULT_PAUSE, "internal")
    assert decided(NoResponse("internal", ours=True), left=-1.0) == Postponed(OWN_FAULT_PAUSE, "internal")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Response(200), Signal.GOOD),
        (Response(299), Signal.GOOD),
        (Response(429), Signal.BUSY),
        (Response(503), Signal.BUSY),
        *((Response(status), Signal.PLAIN) for status in (301, 400, 410, 500, 502)),
        (NoResponse("timeout"), Signal.LATE),
        (NoResponse("connect_refused"), Signal.LOST),
        (NoResponse("dns_failed", ours=True), Signal.OURS),
        (NoResponse("internal"), Signal.OURS),
    ],
)
def test_what_an_answer_says_about_its_endpoint(answer: Response | NoResponse, expected: Signal) -> None:
    assert signal(answer) is expected


@pytest.mark.parametrize("status", [429, 503])
def test_who_asks_for_less_is_waited_for_as_long_as_was_asked_and_no_longer(status: int) -> None:
    for attempts in (0, 4, 8, 9_000):  # however old the delivery is
        assert decided(Response(status), wait=60.0, attempts=attempts) == Retry(60.0, asked=True)
    assert decided(Response(status), wait=3600.0, left=100.0) == Retry(100.0, asked=True)  # never past the horizon
    assert decided(Response(status), wait=60.0, left=0.0) == Ended("exhausted", "the time to retry is over")


def test_what_was_only_asked_for_uses_up_no_step_of_the_schedule() -> None:
    assert decided(Response(500), attempts=4, asked=4) == Retry(5.0)
    assert decided(NoResponse("timeout"), attempts=6, asked=4) == Retry(45.0)
    assert decided(Response(503), attempts=4, asked=3) == Retry(15.0)  # it asks for nothing


def test_a_429_that_does_not_say_for_how_long_is_asked_later_each_time_but_within_the_hour() -> None:
    delays = [decided(Response(429), attempts=n, asked=n) for n in (0, 1, 2, 6, 50)]
    assert delays == [Retry(seconds, asked=True) for seconds in (5.0, 15.0, 45.0, 3600.0, 3600.0)]


@pytest.mark.parametrize("status", FAILURES)
def test_only_429_and_503_are_heard_when_they_ask_for_time(status: int) -> None:
    answer = Response(status, retry_after="60")
    assert wait_of(answer, NOW) == (60.0 if status in (429, 503) else 0.0)
    assert is_failure(answer, wait_of(answer, NOW)) == (status not in (429, 503))
    assert wait_of(NoResponse("timeout"), NOW) == 0.0


@pytest.mark.parametrize("policy", [{}, {"schedule": (1.0,), "give_up_after": 30 * 86400.0}])
@pytest.mark.parametrize(("status", "wait"), [(429, 1.0), (500, 0.0)])
def test_the_numbers_of_attempts_last_until_the_horizon(status: int, wait: float, policy: dict[str, Any]) -> None:
    """A second between two attempts would need 259,200 numbers in three days, and the log has 32,767."""
    owed = delivery(**policy)
    last_start, now, pauses = NOW + owed.endpoint.retry.give_up_after, NOW, []
    while isinstance(outcome := decide(owed, Response(status), now, last_start, wait, lambda: 0.5), Retry):
        pauses.append(outcome.delay)
        now += outcome.delay
        owed.attempts += 1
        owed.asked += outcome.asked
    assert now == pytest.approx(last_start)  # the last attempt is on the horizon
    assert owed.attempt <= MOST_ATTEMPTS + 1
    if wait:
        assert pauses[:10_000] == [wait] * 10_000
        assert max(pauses) < 600


@given(st.integers(0, 40), st.floats(0.001, 1e6), st.floats(0, 3600))
def test_a_retry_is_never_behind_the_horizon(attempts: int, left: float, wait: float) -> None:
    outcome = decided(Response(500), attempts=attempts, left=left, wait=wait)
    assert isinstance(outcome, Retry)
    assert 0 < outcome.delay <= left + 1e-6
