"""What is passed on of what a server says first, and how long a host that cost much has to rest."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tls13 import ALERT, FFDHE8192, HANDSHAKE, P256, UNRECOGNIZED_NAME, record, retry
from webhookd.egress.handshake import FREE_SECONDS, MOST_BYTES, OVERDRAWN, REST_MOST, Costs, judged, rest

HELLO = record(HANDSHAKE, bytes(43) + b"\x00")  # of ours, without a session
WARNING = record(ALERT, UNRECOGNIZED_NAME)


def asking(group: int) -> bytes:
    return record(HANDSHAKE, retry(HELLO, group))


@pytest.mark.parametrize("before", [b"", WARNING, WARNING * 3])
@pytest.mark.parametrize("group", [0x100, 0x101, FFDHE8192, 0x1FF])
def test_a_finite_field_is_refused_as_soon_as_it_is_asked_for(before: bytes, group: int) -> None:
    said = before + asking(group)
    for end in range(len(said)):
        assert judged(said[:end]) == (len(WARNING) * (end // len(WARNING)) if end < len(before) else len(before), False)
    for after in (b"", b"x" * 1000):
        with pytest.raises(ssl.SSLError, match="finite-field"):
            judged(said + after)


@pytest.mark.parametrize("group", [P256, 24, 25, 29, 30, 0x11EC, 0x200])
def test_other_groups_and_all_that_follows_are_passed_on(group: int) -> None:
    said = asking(group) + b"more"
    assert judged(said) == (len(said), True)


def test_a_usual_answer_is_passed_on() -> None:
    for message in (b"\x02\x00\x00\x26" + b"\x03\x03" + bytes(36), b"\x02\x00\x00\x00", b"\x0e\x00\x00\x00"):
        said = record(HANDSHAKE, message)
        assert judged(said) == (len(said), True)


def test_a_first_message_in_pieces_is_refused() -> None:
    message = retry(HELLO, P256)
    for at in range(len(message)):
        with pytest.raises(ssl.SSLError, match="in pieces"):
            judged(record(HANDSHAKE, message[:at]))


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad\r\n\r\n", b"\x17\x03\x03\x00\x05", b"\x16\x02\x00\x00\x05"])
def test_what_is_no_tls_is_for_openssl_to_refuse(said: bytes) -> None:
    assert judged(said) == (len(said), True)


@given(st.binary(max_size=200), st.integers(0, 2**16 - 1))
def test_whatever_is_said_is_passed_on_held_or_refused(noise: bytes, group: int) -> None:
    for said in (noise, record(HANDSHAKE, noise), asking(group)[: len(noise)] + noise):
        try:
            passed, is_whole = judged(said)
        except ssl.SSLError:
            continue
        assert passed == len(said) if is_whole else passed <= len(said) < MOST_BYTES


def test_what_is_usual_costs_no_rest_and_what_is_not_costs_all_the_more() -> None:
    assert rest(FREE_SECONDS) == FREE_SECONDS
    assert rest(FREE_SECONDS / 5) < FREE_SECONDS / 100
    assert rest(10 * FREE_SECONDS) == pytest.approx(OVERDRAWN)
    assert rest(1.0) == REST_MOST


def test_a_host_that_is_overdrawn_rests_and_others_do_not() -> None:
    costs = Costs()
    costs.charge("costly", 0.0, 0.06, 100.0)
    assert costs.is_overdrawn("costly", 100.0)
    assert not costs.is_overdrawn("other", 100.0)
    assert costs.is_overdrawn("costly", 100.0 + rest(0.06) - OVERDRAWN - 0.01)
    assert not costs.is_overdrawn("costly", 100.0 + rest(0.06) - OVERDRAWN + 0.01)


def test_many_connections_are_paid_for_one_after_the_other_and_each_by_what_all_of_it_cost() -> None:
    costs = Costs()
    for _ in range(3):
        costs.charge("host", 0.0, 0.02, 0.0)
        costs.charge("host", 0.02, 0.04, 0.0)
    assert costs.is_overdrawn("host", 3 * rest(0.04) - OVERDRAWN - 0.01)
    assert not costs.is_overdrawn("host", 3 * rest(0.04) - OVERDRAWN + 0.01)


def test_a_thousand_usual_handshakes_a_minute_are_free() -> None:
    costs = Costs()
    for number in range(1000):
        costs.charge("host", 0.0, FREE_SECONDS, number * 0.06)
        assert not costs.is_overdrawn("host", number * 0.06)


def test_who_has_paid_is_forgotten() -> None:
    costs = Costs()
    for number in range(100_000):
        costs.charge(f"host-{number}", 0.0, 0.001, float(number))
    assert len(costs._paid_at) <= 4096
