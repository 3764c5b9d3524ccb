"""Ids that are made here."""

import re

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


def test_no_two_are_the_same() -> None:
    made = [new_id("msg_") for _ in range(1_000)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"msg_[0-9A-Za-z]{27}", each) for each in made)
