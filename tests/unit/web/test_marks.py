"""Numbers that people see as texts."""

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
