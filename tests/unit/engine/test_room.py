"""How much more is taken into memory."""

from hypothesis import given
from hypothesis import strategies as st

from webhookd.engine.dispatch.room import LEAST_DELIVERIES, MOST_DELIVERIES, TENANTS_PART, Room


def test_a_seconds_work_is_taken_and_never_less_than_some_nor_more_than_all() -> None:
    room = Room()
    assert room.left(0, lambda: 0) == LEAST_DELIVERIES
    for _ in range(20):
        for _ in range(3_000):
            room.answered()
        room.measure(0.25)
    assert 11_900 < room.left(0, lambda: 0) <= 12_000
    for _ in range(20):
        for _ in range(30_000):
            room.answered()
        room.measure(0.25)
    assert room.left(0, lambda: 0) == MOST_DELIVERIES


def test_results_that_are_not_recorded_count_and_what_waits_for_silence_does_not() -> None:
    room = Room()
    for _ in range(LEAST_DELIVERIES):
        room.take("a")
    assert room.left(0, lambda: 0) == 0
    assert room.left(100, lambda: 0) == -100
    assert room.left(100, lambda: 300) == 200
    assert room.left(0, lambda: MOST_DELIVERIES) == MOST_DELIVERIES - LEAST_DELIVERIES


def test_a_tenant_that_holds_much_leaves_room_for_others() -> None:
    room = Room()
    while room.left_for("a", room.left(0, lambda: 0)) > 0:
        room.take("a")
    left = room.left(0, lambda: 0)
    assert left == LEAST_DELIVERIES - room.held
    assert abs(room.held - TENANTS_PART * left) < TENANTS_PART + 1
    assert room.left_for("b", left) == left > 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_it_knows_what_each_tenant_holds(steps: list[tuple[str, bool]]) -> None:
    room, held = Room(), dict.fromkeys("abc", 0)
    for tenant, takes in steps:
        if takes:
            room.take(tenant)
            held[tenant] += 1
        elif held[tenant]:
            room.leave(tenant)
            held[tenant] -= 1
    assert room.held == sum(held.values())
    left = 1_000
    assert all(room.left_for(tenant, left) == min(left, 7 * left - held[tenant]) for tenant in "abc")
    assert all(room.left_for(tenant, 1) == min(1, 7 - held[tenant]) for tenant in "abc")
