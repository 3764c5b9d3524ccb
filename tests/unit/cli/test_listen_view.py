"""What the local receiver shows: exact, cut, and harmless to a terminal."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.cli.listen.view import MOST_CHARACTERS, MOST_LINES, Seen, body_lines, described, lines
from webhookd.cli.receiver import Received

AT = datetime(2030, 1, 31, 8, tzinfo=UTC)
HEADERS = {"webhook-id": "evt_1", "webhook-attempt": "2"}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"\\{}[],:', max_size=5), inner, max_size=3),
    max_leaves=10,
)


def seen(body: bytes = b'{"type":"order.created"}', **changes: Any) -> Seen:
    return Seen(AT, Received("/hook", HEADERS, body, None, 200)._replace(**changes))


def test_numbers_and_strings_stay_as_they_were_written() -> None:
    body = b'{"total":1.10,"big":123456789012345678901234567890,"none":[],"empty":{},"list":[1,"\\u00e9 {,}"]}'
    assert list(body_lines(body)) == [
        "{",
        '  "total": 1.10,',
        '  "big": 123456789012345678901234567890,',
        '  "none": [],',
        '  "empty": {},',
        '  "list": [',
        "    1,",
        '    "\\u00e9 {,}"',
        "  ]",
        "}",
    ]


@given(values)
def test_what_is_laid_out_means_the_same(value: object) -> None:
    for ascii_only in (True, False):
        shown = list(body_lines(json.dumps(value, ensure_ascii=ascii_only).encode()))
        assert all(line.isprintable() for line in shown)
        if len(shown) <= MOST_LINES:
            assert json.loads("\n".join(shown)) == value


def test_a_long_body_is_cut() -> None:
    body = json.dumps(list(range(100))).encode()
    shown = list(body_lines(body))
    assert len(shown) == MOST_LINES + 1
    assert shown[-1] == f"… cut; {len(body)} bytes in all"
    (start, cut) = body_lines(b"x" * (MOST_CHARACTERS + 1))
    assert len(start) == MOST_CHARACTERS
    assert cut == f"… cut; {MOST_CHARACTERS + 1} bytes in all"


@given(st.binary(max_size=200))
def test_no_body_reaches_the_terminal_as_a_command(body: bytes) -> None:
    assert all(line.isprintable() for line in body_lines(body))


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({}, "POST /hook  order.created  evt_1  attempt 2  verified  answered 200"),
        ({"status": None}, "POST /hook  order.created  evt_1  attempt 2  verified  hangs"),
        (
            {"headers": {}, "body": b"", "problem": "the header webhook-id is missing", "status": 401, "method": "GET"},
            "GET /hook  (no type)  (no id)  attempt ?  NOT VERIFIED: the header webhook-id is missing  answered 401",
        ),
        (
            {"headers": {**HEADERS, "ce-type": "order.\x1b[31mpaid"}, "body": b"[]"},
            "POST /hook  order.\\x1b[31mpaid  evt_1  attempt 2  verified  answered 200",
        ),
    ],
)
def test_the_headline(changes: dict[str, Any], headline: str) -> None:
    first, *_ = lines(seen(**changes))
    assert first.partition("  ")[2] == headline


def test_a_request_is_described() -> None:
    assert described(seen()) == {
        "at": "2030-01-31T08:00:00+00:00",
        "method": "POST",
        "path": "/hook",
        "type": "order.created",
        "id": "evt_1",
        "attempt": 2,
        "verified": True,
        "problem": None,
        "status": 200,
        "headers": HEADERS,
        "body": '{"type":"order.created"}',
    }
