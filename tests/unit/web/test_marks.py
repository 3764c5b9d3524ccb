"""Numbers that people see as texts."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from webhookd.web.marks import Marks

MARKS = Marks(bytes(range(16)))


@given(st.integers(0, 255), st.integers(0, 2**63 - 1))
def test_a_number_comes_back(kind: int, number: int) -> None:
    mark = MARKS.mark(kind, number)
    assert len(mark) == 22
    assert mark.isascii()
    assert mark.isalnum()
    assert MARKS.number(kind, mark) == number
    assert MARKS.number(kind ^ 1, mark) is None
    assert Marks(bytes(16)).number(kind, mark) is None


@given(st.text(max_size=30) | st.text("0123456789AZaz", min_size=22, max_size=22))
def test_anything_else_is_none(text: str) -> None:
    assert MARKS.number(1, text) is None


def test_neighbours_look_nothing_alike() -> None:
    one, other = MARKS.mark(1, 1), MARKS.mark(1, 2)
    assert sum(left == right for left, right in zip(one, other, strict=True)) < 8


@given(st.integers(0, 255), st.binary(min_size=20, max_size=20))
def test_a_place_comes_back(kind: int, content: bytes) -> None:
    mark = MARKS.wide(kind, content)
    assert len(mark) == 27
    assert mark.isalnum()
    assert MARKS.content(kind, mark) == content
    assert MARKS.content(kind ^ 1, mark) != content
    assert Marks(bytes(16)).content(kind, mark) != content


def test_neighbours_in_place_look_nothing_alike() -> None:
    marks = [MARKS.wide(1, number.to_bytes(20)) for number in (1, 2, 1 << 158)]
    for one, other in pairwise(marks):
        assert sum(left == right for left, right in zip(one, other, strict=True)) < 9


@given(st.text(max_size=30))
def test_what_is_no_place_is_none(text: str) -> None:
    assert len(text) == 27 or MARKS.content(1, text) is None
    assert MARKS.content(1, "z" * 27) is None  # more than 20 bytes
