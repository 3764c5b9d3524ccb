"""A payload is cut out of a body as it stands there."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.metadata import TOKEN
from webhookd.web import body
from webhookd.web.problem import Problem

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("payload"), inner, max_size=4),
    max_leaves=20,
)


@given(others=st.dictionaries(st.text(), JSON, max_size=4), payload=JSON, indent=st.sampled_from([None, 1]))
async def test_what_is_cut_is_what_was_written(others: dict[str, Any], payload: Any, indent: int | None) -> None:
    others.pop("payload", None)
    text = json.dumps({**others, "payload": payload}, indent=indent).encode()
    rest, found = await body.cut(text, "payload", "nothing")
    assert found.keys() == {"payload"}
    assert found["payload"] in text
    assert json.loads(found["payload"]) == payload
    assert json.loads(rest) == {**others, "payload": {}}


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        (
            b'{"payload": {"n": 1.10, "long": 123456789012345678901234567890}}',
            b'{"n": 1.10, "long": 123456789012345678901234567890}',
        ),
        (b'{"payload":{"a":1,"a":2},"x":1}', b'{"a":1,"a":2}'),
        (b'{"payload": {"s": "\\ud800 \\u0000 }"}\n}', b'{"s": "\\ud800 \\u0000 }"}'),
        (b'{"x": {"payload": 1}, "payload": {"y": {"payload": 2}}}', b'{"y": {"payload": 2}}'),
        (b'{"payload": {"first": 1}, "payload": {"last": 2}}', b'{"last": 2}'),
        (b'{"payload": "text"}', b'"text"'),
        (b'{"eventType": "payload", "other": "payload"}', None),
        (b"[1, 2]", None),
        (b"", None),
        (b"no json at all", None),
        (b'{"payload"', None),
    ],
)
async def test_it_is_byte_for_byte(text: bytes, payload: bytes | None) -> None:
    assert (await body.cut(text, "payload"))[1].get("payload") == payload


@pytest.mark.parametrize(
    "text", [b"[" * 200_000, b'{"payload":' * 200, b'{"payload": ' + b"[" * 101 + b"]" * 101 + b"}"]
)
async def test_what_is_nested_too_deep_is_refused(text: bytes) -> None:
    for look in (body.cut(text, "payload"), body.expect_shallow(text)):
        with pytest.raises(Problem) as found:
            await look
        assert (found.value.status, found.value.code) == (400, "too_deep")


async def test_brackets_in_texts_and_side_by_side_are_not_deep() -> None:
    wide = json.dumps({"a": ["[" * 500], "b": [[] for _ in range(500)]}).encode()
    await body.expect_shallow(wide)
    assert (await body.cut(wide, "b"))[1] == {"b": json.dumps([[] for _ in range(500)]).encode()}


async def test_several_are_cut_in_one_go() -> None:
    rest, found = await body.cut(b'{"a": [1.10], "x": 1, "b" :{"a": 2} }', "a", "b")
    assert (rest, found) == (b'{"a": {}, "x": 1, "b" :{} }', {"a": b"[1.10]", "b": b'{"a": 2}'})


@pytest.mark.parametrize(
    "text",
    [
        b'{"payload": "' + rb"\"" * 500_000,  # a text that never ends
        b"[]," * 101 + b'"' + rb"\"" * 500_000,
        b'{"payload": "' + b"x" * 1_000_000 + b'"}',
        b"\\" * 1_000_000,
        b'"' * 1_000_001,
    ],
)
async def test_no_body_costs_more_than_its_length(text: bytes) -> None:
    """Each byte is looked at once: the tokens of it are no longer than it is."""
    tokens = [mark for mark, _, _ in body._tokens(text)]
    assert sum(map(len, tokens)) <= len(text)
    assert TOKEN.match(b'"' + rb"\"" * 1_000).end() == 2_001  # type: ignore[union-attr]  # to its end, and never back
    await body.cut(text, "payload")
    await body.expect_shallow(text)
