"""Filters on what payloads say."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.policy.payload_filter import MOST_BYTES, MOST_FOUND, compiled, look_up, mistake, passes, spelled

ORDER: dict[str, Any] = {
    "amount": 100,
    "weight": 1.5,
    "order": {"status": "paid", "at": "2026-01-31T12:00:00Z", "gone": None, "items": [{"sku": "a"}, {"sku": "b"}]},
    "a.b": "dotted",
    "a": {"b": "deep"},
    "new": True,
    "tags": ["x", 7, None, ["y"]],
    "empty": {},
    "none": [],
}


def wants(**said: Any) -> bool:
    """Whether the order passes; in the names of paths _ stands for a dot."""
    return asks({path.replace("_", "."): value for path, value in said.items()})


def asks(said: dict[str, Any], payload: object = ORDER) -> bool:
    conditions = compiled(said)
    assert compiled(spelled(conditions)) == conditions
    content = json.dumps(payload).encode()
    found = passes(conditions, look_up(content, [condition.path for condition in conditions]))
    assert found is (mistake(conditions, content) is None)
    return found


@pytest.mark.parametrize(
    ("said", "passing"),
    [
        ({"order.status": "paid"}, True),
        ({"order.status": ["open", "paid"]}, True),
        ({"order.status": ["open"]}, False),
        ({"order.status": {"in": ["open", "paid"]}}, True),
        ({"order.missing": "paid"}, False),
        ({"order.status.more": "paid"}, False),
        ({"amount": 100}, True),
        ({"amount": 100.0}, True),
        ({"amount": "100"}, False),
        ({"weight": 1.5}, True),
        ({"new": True}, True),
        ({"new": 1}, False),
        ({"new": False}, False),
        ({"amount": {"gte": 100}}, True),
        ({"amount": {"gt": 100}}, False),
        ({"amount": {"gt": 99.5, "lt": 101}}, True),
        ({"amount": {"lte": 99}}, False),
        ({"amount": {"gte": "1"}}, False),
        ({"new": {"gte": 0}}, False),
        ({"order.at": {"gte": "2026-01-01", "lt": "2026-02"}}, True),
        ({"order.at": {"lt": "2026-01-31T12:00:00Z"}}, False),
        ({"order.gone": {"exists": True}}, True),
        ({"order.gone": {"exists": False}}, False),
        ({"order.gone": "null"}, False),
        ({"order.missing": {"exists": False}}, True),
        ({"order.missing": {"exists": True}}, False),
        ({"empty": {"exists": True}}, True),
        ({"none": {"exists": True}}, True),
        ({"order": {"exists": True}}, True),
        ({"a.b": "dotted"}, True),
        ({"a.b": "deep"}, False),
        ({"tags": "x"}, True),
        ({"tags": 7}, True),
        ({"tags": "y"}, False),  # of a list its items, not theirs
        ({"order.items.sku": "b"}, True),
        ({"order.items.sku": {"exists": True}}, True),
        ({"order.items.name": {"exists": False}}, True),
        ({"amount": 100, "order.status": "paid"}, True),
        ({"amount": 100, "order.status": "open"}, False),
        ({"amount": {"exists": True, "in": [1, 100], "gt": 1}}, True),
    ],
    ids=str,
)
def test_an_order(said: dict[str, Any], passing: bool) -> None:
    assert asks(said) is passing


@pytest.mark.parametrize(
    "other", [rb'"\ud83d"', b"1e400", b"-1e400", b"1" * 5000, b"12345678901234567890123", b'"\xf0\x9f\x98\xb1"']
)
def test_what_postgres_takes_for_json_is_looked_into(other: bytes) -> None:
    for payload in (b'{"n":1,"x":' + other + b"}", b'{"x":[' + other + b'],"n":1}'):
        assert passes(compiled({"n": 1}), look_up(payload, ["n"]))
        assert mistake(compiled({"n": 2}), payload) == '"n" of the payload is 1, it wants {"in": [2]}'


def test_a_number_beyond_64_bits_is_the_nearest_float_on_both_sides() -> None:
    large = 12345678901234567890123
    assert asks({"n": large}, {"n": large})
    assert asks({"n": {"gte": large}}, {"n": large})
    assert asks({"n": 2**64 - 1}, {"n": 2**64 - 1})
    with pytest.raises(ValueError, match='"n" has a number that is too large'):
        compiled({"n": 10**400})


@pytest.mark.parametrize("payload", [[], "text", 7, None, [[{"n": 1}]]])
def test_what_is_no_object_has_no_paths(payload: object) -> None:
    assert not asks({"n": 1}, payload)
    assert asks({"n": {"exists": False}}, payload)


def test_a_list_is_each_of_its_items() -> None:
    assert asks({"n": 2}, [{"n": 1}, {"n": 2}])


def test_both_bounds_are_of_one_value() -> None:
    assert not asks({"n": {"gt": 3, "lt": 5}}, {"n": [1, 9]})
    assert asks({"n": {"gt": 3, "lt": 5}}, {"n": [1, 4, 9]})


def test_no_more_than_a_thousand_are_looked_at() -> None:
    assert asks({"n": MOST_FOUND - 1}, {"n": list(range(5000))})
    assert not asks({"n": MOST_FOUND}, {"n": list(range(5000))})
    assert not asks({"a.n": MOST_FOUND}, {"a": [{"n": n} for n in range(5000)]})


@pytest.mark.parametrize(
    "payload", [b'{"n":1,"x":"' + b"x" * MOST_BYTES + b'"}', b'{"n":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"]
)
def test_what_cannot_be_looked_into_passes_nothing(payload: bytes) -> None:
    for said in ({"n": 1}, {"m": {"exists": False}}):
        conditions = compiled(said)
        assert look_up(payload, ["n", "m"]) is None
        assert not passes(conditions, None)
        assert "so that it passes no filter" in (mistake(conditions, payload) or "")


def test_a_mistake_says_what_is_there() -> None:
    def of(said: dict[str, Any]) -> str | None:
        return mistake(compiled(said), json.dumps(ORDER).encode())

    assert of({"amount": {"gt": 100}}) == '"amount" of the payload is 100, it wants {"gt": 100}'
    assert of({"order.status": ["a"]}) == '"order.status" of the payload is "paid", it wants {"in": ["a"]}'
    assert of({"x": 1}) == '"x" of the payload is missing, it wants {"in": [1]}'
    assert of({"empty": 1}) == '"empty" of the payload is there, it wants {"in": [1]}'
    assert of({"tags": 1}) == '"tags" of the payload is "x", 7, null, it wants {"in": [1]}'


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({}, "wants at least one path"),
        ({"": 1}, '"" is no path; write names with dots between them'),
        ({"a..b": 1}, '"a..b" is no path'),
        ({"a": []}, '"a" wants at least one value, as nothing would pass'),
        ({"a": {}}, '"a" wants a value, or gt, gte, lt, lte, in or exists'),
        ({"a": {"ge": 1}}, '"a" has "ge" that means nothing there; known are gt, gte, lt and lte with a number'),
        ({"a": {"gt": True}}, '"a" has "gt" that means nothing there'),
        ({"a": {"gt": [1]}}, '"a" has "gt" that means nothing there'),
        ({"a": {"exists": 1}}, '"a" has "exists" that means nothing there'),
        ({"a": None}, '"a" wants a text, a number, true or false, or a list of them'),
        ({"a": [float("nan")]}, '"a" wants a text, a number, true or false, or a list of them'),
        ({"a": "x\0"}, '"a" wants a text, a number, true or false, or a list of them'),
    ],
    ids=str,
)
def test_what_is_no_condition_is_told(said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        compiled(said)


scalars = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
documents = st.recursive(
    scalars | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(documents, st.text(alphabet="ab.", min_size=1))
def test_any_payload_has_a_verdict(payload: object, path: str) -> None:
    if all(path.split(".")):
        there = asks({path: {"exists": True}}, payload)
        assert asks({path: {"exists": False}}, payload) is not there


@given(
    st.text(alphabet="abc", min_size=1), scalars.filter(lambda value: not (isinstance(value, str) and "\0" in value))
)
def test_a_value_is_like_itself(name: str, value: Any) -> None:
    assert asks({name: value}, {name: value})
    assert asks({f"{name}.{name}": [value]}, {name: {name: [None, value]}})
