"""The end of the log: who waits passes over what he is not owed, and over nothing else."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.engine.polled import tail as module
from webhookd.engine.polled.tail import Tail
from webhookd.policy.polling import WHOLE, Place

ENDPOINTS = 3
batches = st.dictionaries(st.integers(1, 40), st.frozensets(st.integers(1, ENDPOINTS)), min_size=1)


def whole(batch: int) -> Place:
    return Place(batch, WHOLE, 1000 + batch)


@given(batches, st.randoms(use_true_random=False), st.integers(0, 41), st.integers(1, ENDPOINTS))
def test_nothing_that_is_owed_is_passed_over(
    owed: Mapping[int, frozenset[int]], random: object, start: int, endpoint_id: int
) -> None:
    """Batches come in any order, and some are not known."""
    found = Tail()
    order = list(owed)
    random.shuffle(order)  # type: ignore[attr-defined]
    for batch in order:
        found.add(batch, 1000 + batch, owed[batch])
    place = whole(start)
    passed = found.passed(place, endpoint_id)
    assert passed == place or passed == whole(passed.batch)
    assert passed.batch >= start
    for batch in range(start + 1, passed.batch + 1):
        assert endpoint_id not in owed[batch], "known, and not his"
    half = Place(start, 3, 1000 + start)
    if start in owed and endpoint_id in owed[start]:
        assert found.passed(half, endpoint_id) == half, "of a batch that is owed the rest is looked at"


def test_in_order_all_is_passed_over_up_to_what_is_owed() -> None:
    found = Tail()
    for batch in range(10, 20):
        found.add(batch, 1000 + batch, {1} if batch == 15 else set())
    assert found.passed(whole(9), 1) == whole(14)
    assert found.passed(whole(14), 1) == whole(14)
    assert found.passed(whole(15), 1) == whole(19)
    assert found.passed(whole(9), 2) == whole(19)
    assert found.passed(Place(12, 0, 1012), 2) == whole(19)
    assert found.passed(whole(8), 2) == whole(8), "nobody knows what is in 9"
    assert found.passed(whole(19), 2) == whole(19)
    assert found.ends_with(whole(19))
    assert not found.ends_with(whole(18))
    found.forget()
    assert found.passed(whole(9), 2) == whole(9)
    assert not found.ends_with(whole(19))


def test_what_comes_late_is_waited_for() -> None:
    found = Tail()
    found.add(1, 1001, set())
    found.add(3, 1003, {1})
    assert found.passed(whole(0), 2) == whole(1)
    found.add(2, 1002, set())
    assert found.passed(whole(0), 2) == whole(3)
    assert found.passed(whole(0), 1) == whole(2)


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 20)
    monkeypatch.setattr(module, "AT_ONCE", 10)
    monkeypatch.setattr(module, "AHEAD", 5)
    found = Tail()
    for batch in range(100):
        found.add(batch, 1000 + batch, {batch % 7})
        assert len(found._nonces) <= 20
    assert sum(map(len, found._owed.values())) <= 20
    assert found.passed(whole(70), 9) == whole(70), "that is forgotten"
    assert found.passed(whole(95), 9) == whole(99)
    for batch in range(101, 107):  # 100 never comes
        found.add(batch, 1000 + batch, set())
    assert found.passed(whole(95), 9) == whole(95), "it begins anew"
    found.add(107, 1107, set())
    assert found.passed(whole(106), 9) == whole(107)
