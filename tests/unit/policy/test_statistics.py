"""Sums of how attempts went: nothing is counted twice, nothing is left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.policy import statistics
from webhookd.policy.statistics import ALL, BOUNDS, BUCKETS, OUTCOMES, Sums

SEEN = st.tuples(
    st.floats(0, 600), st.integers(1, 3), st.integers(0, len(OUTCOMES) - 1), st.none() | st.integers(0, 40_000)
)


@given(st.lists(SEEN, max_size=50), st.integers(0, 12))
def test_what_is_added_is_taken_once(seen: list[tuple[float, int, int, int | None]], before: int) -> None:
    sums = Sums()
    for at, endpoint, outcome, ms in seen:
        sums.add(at, endpoint, outcome, ms)
    rows = list[statistics.Row]()
    while taken := sums.take(2, before):
        assert {row.minute for row in taken} == {taken[0].minute}
        assert len(taken) <= 3
        assert taken[0].minute < before
        rows += taken
    assert all(at // 60 < before for at, *_ in seen) or len(sums) > 0
    while taken := sums.take(100):
        rows += taken
    assert len(sums) == 0
    own, total = [row for row in rows if row.endpoint != ALL], [row for row in rows if row.endpoint == ALL]
    for some in (own, total):
        assert sum(sum(row.counts) for row in some) == len(seen)
        assert sum(sum(row.took) for row in some) == sum(ms is not None for *_, ms in seen)
        for outcome in range(len(OUTCOMES)):
            assert sum(row.counts[outcome] for row in some) == sum(kind == outcome for _, _, kind, _ in seen)
    assert len({(row.minute, row.endpoint) for row in own}) == len(own)


def test_a_bucket_has_all_up_to_its_bound() -> None:
    for place, bound in enumerate(BOUNDS):
        for ms, bucket in ((bound, place), (bound + 1, place + 1)):
            sums = Sums()
            sums.add(0, 1, 0, ms)
            assert sums.take(9)[0].took == tuple(int(at == bucket) for at in range(BUCKETS))


def test_there_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST", 2)
    sums = Sums()
    for minute in range(4):
        sums.add(minute * 60, 1, 0, 5)
        sums.add(minute * 60, 1, 0, 5)
    taken = [*sums.take(9), *sums.take(9), *sums.take(9)]
    assert [(row.minute, row.counts[0]) for row in taken if row.endpoint != ALL] == [(0, 2), (1, 2)]
