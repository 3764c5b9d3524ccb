"""Each batch is on exactly one path of an endpoint, and a cursor moves over nothing that is not settled."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.policy.parking import Cursor, Parked, Parking, in_turns, without_sender


def row(endpoint: int = 1, start: int = 10, end: int | None = None, **changes: Any) -> Parked:
    made = Parked(endpoint, start, end, start, 0, "failing", 7, 1, 0, None, False, False, 0.0, False)
    return made._replace(**changes)


def test_an_endpoint_is_parked_from_a_batch_on_and_before_another() -> None:
    parking = Parking(3, [row(1, 10, 20), row(2, 15), row(1, 30)])
    assert [parking.by_cursor(batch) for batch in (9, 10, 15, 19, 20, 29, 30, 1000)] == [
        set(),
        {1},
        {1, 2},
        {1, 2},
        {2},
        {2},
        {1, 2},
        {1, 2},
    ]


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 20), st.one_of(st.none(), st.integers(0, 25)))),
    st.integers(0, 30),
)
def test_whoever_asks_gets_what_the_rows_say(ranges: list[tuple[int, int, int | None]], batch: int) -> None:
    parking = Parking(1, [row(*each) for each in ranges])
    expected = {id_ for id_, start, end in ranges if start <= batch and (end is None or batch < end)}
    assert parking.by_cursor(batch) == expected


def test_a_cursor_ends_before_the_batch_where_its_endpoint_became_live() -> None:
    cursor = Cursor(row(1, 10, 12))
    assert cursor.has_more(newest=50)
    cursor.move(12, 0)
    assert not cursor.has_more(newest=50)
    assert not Cursor(row(1, 10)).has_more(newest=9)


def test_a_window_waits_for_the_one_before_it() -> None:
    cursor = Cursor(row())
    first = cursor.move(11, 0)
    second = cursor.move(12, 3)
    assert (first.open, second.open) == (1, 2)
    assert first.next is second
    assert (cursor.batch, cursor.pos) == (12, 3)
    second.open = 0
    assert cursor.move(13, 0).open == 1  # all before it is settled


def test_retention_moves_a_cursor_on_and_nothing_moves_it_back() -> None:
    cursor = Cursor(row())
    cursor.follow(row(next_batch=40, resumed_at=5.0))
    assert (cursor.batch, cursor.pos, cursor.resumed_at) == (40, 0, 5.0)
    cursor.follow(row(next_batch=12, end=60))
    assert (cursor.batch, cursor.to_batch) == (40, 60)


def test_tenants_hand_out_in_turns_and_of_each_first_who_has_waited_longest() -> None:
    cursors = [Cursor(row(id_, start=batch)) for id_, batch in ((1, 10), (2, 30), (3, 20), (4, 99), (5, 98))]
    cursors[0].turn = cursors[3].turn = 7
    tenants = {1: "a", 2: "a", 3: "a", 4: "b", 5: "b"}
    assert [cursor.endpoint_id for cursor in in_turns(cursors, tenants.__getitem__)] == [3, 5, 2, 4, 1]
    cursors[4].turn = 8  # b has just had one
    assert [cursor.endpoint_id for cursor in in_turns(cursors, tenants.__getitem__)][:2] == [3, 4]
    cursors[2].turn = cursors[1].turn = 9
    assert in_turns(cursors, tenants.__getitem__)[0].endpoint_id == 4


def parked(endpoint: int, owner: int | None, first: int = 1, last: int | None = None, **changes: Any) -> Parked:
    return row(endpoint, first, last, owner=owner, **changes)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([parked(1, None)], {1: False}),
        ([parked(1, 42)], {}),
        ([parked(1, 7)], {}),
        ([parked(1, 9)], {1: False}),  # dead, or without the endpoint
        ([parked(1, 9, 1, 5), parked(1, 9, 5)], {1: False}),  # one endpoint, however many cursors
        ([parked(1, 42, 1, 5), parked(1, None, 5)], {1: True}),
        ([parked(1, 7, 1, 5), parked(1, None, 5)], {}),  # the other's to take
        ([parked(1, 9, 5, 5), parked(1, 7, 5)], {}),  # at its end
        ([parked(1, None, reason="disabled")], {}),
        ([parked(2, None), parked(3, 9)], {3: False}),  # the second is not ours
    ],
)
def test_an_endpoint_is_without_a_sender_when_nobody_that_can_has_any_of_it(
    rows: list[Parked], found: dict[int, bool]
) -> None:
    sharers: dict[int, tuple[int, ...]] = {1: (7, 42), 2: (), 3: (42,)}
    assert without_sender(rows, 42, sharers.__getitem__) == found
