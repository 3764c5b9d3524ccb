"""Ids that are made here."""

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.ids import base62, new_id


@given(st.binary(min_size=20, max_size=20), st.binary(min_size=20, max_size=20))
def test_texts_have_the_order_of_the_bytes(one: bytes, other: bytes) -> None:
    assert (base62(one, 27) < base62(other, 27)) == (one < other)
    assert len(base62(one, 27)) == 27


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=20))
def test_they_sort_by_the_millisecond_that_they_were_made_in(moments: list[int]) -> None:
    made = sorted((new_id("app_", moment / 1000), moment) for moment in set(moments))
    assert [moment for _, moment in made] == sorted(set(moments))


def test_each_is_behind_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in one millisecond, and when the clock goes back."""
    now = time.time() + 1_000
    moments = itertools.chain([now] * 500, [now - 5] * 499, itertools.repeat(now + 0.001))
    monkeypatch.setattr("webhookd.ids.time.time", lambda: next(moments))
    made = [new_id("msg_") for _ in range(1_000)]
    assert made == sorted(set(made))
    assert all(re.fullmatch(r"msg_[0-9A-Za-z]{27}", each) for each in made)
