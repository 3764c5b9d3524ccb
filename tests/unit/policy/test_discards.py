"""Which deliveries are discarded."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tests.endpoints import HOOK
from webhookd.model import Event
from webhookd.policy.discards import Discard, Discards
from webhookd.policy.matching import matches_type

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ANY = Discard(1, None, None, None, datetime(1970, 1, 1, tzinfo=UTC), NOON, 0)
TYPES = st.sampled_from(["order.created", "order.paid", "order", "invoice.paid", "webhookd.endpoint.failing"])
PATTERNS = st.sampled_from([None, "*", "order.*", "order.paid", "webhookd.*"])
TENANTS = st.sampled_from([None, "", "acme"])
MOMENTS = st.integers(-5, 5).map(lambda minutes: NOON + timedelta(minutes=minutes))
DISCARDS = st.builds(
    Discard, st.just(1), PATTERNS, TENANTS, st.sampled_from([None, 1, 2]), MOMENTS, MOMENTS, st.integers(0, 3)
)


def event(type_: str = "order.created", tenant: str = "", at: datetime = NOON) -> Event:
    return Event(1, "e", at, type_, tenant, None, None, None, 2)


def test_without_any_nothing_is() -> None:
    assert not Discards()
    assert not Discards().covers(event(), 1)
    assert Discards().without(event(), (HOOK,)) == (HOOK,)


@given(
    st.lists(DISCARDS, max_size=4), TYPES, st.sampled_from(["", "acme"]), MOMENTS, st.integers(1, 2), st.integers(0, 4)
)
def test_all_that_one_says_must_be_so(
    several: list[Discard], type_: str, tenant: str, at: datetime, endpoint_id: int, replay: int
) -> None:
    wanted = any(
        each.since <= at <= each.until
        and each.tenant in (None, tenant)
        and each.endpoint_id in (None, endpoint_id)
        and (each.type is None or matches_type(each.type, type_))
        and replay <= each.replays
        for each in several
    )
    assert Discards(several).covers(event(type_, tenant, at), endpoint_id, replay) == wanted


def test_both_ends_of_a_span_are_in_it() -> None:
    second = timedelta(seconds=1)
    some = Discards([ANY._replace(since=NOON - second)])
    found = [some.covers(event(at=NOON + step * second), 1) for step in (-2, -1, 0, 1)]
    assert found == [False, True, True, False]


def test_those_that_still_get_it_are_the_very_tuple_where_all_do() -> None:
    """What is matched is kept by it."""
    both = HOOK, replace(HOOK, id=2)
    assert Discards([ANY._replace(endpoint_id=9)]).without(event(), both) is both
    assert Discards([ANY]).without(event(at=NOON + timedelta(days=1)), both) is both
    assert [each.id for each in Discards([ANY._replace(endpoint_id=1)]).without(event(), both)] == [2]
    assert Discards([ANY]).without(event(), both) == ()


def test_what_is_left_is_found_once_for_all_events_alike() -> None:
    """Whoever reads the log groups events by the very tuple of those that they are owed to."""
    many = tuple(replace(HOOK, id=number) for number in range(1, 1001))
    some = Discards([ANY._replace(endpoint_id=7), ANY._replace(endpoint_id=9, tenant="acme")])
    first = some.without(event(), many)
    assert len(first) == 999
    assert some.without(event("order.paid"), many) is first
    other = some.without(event(tenant="acme"), many)
    assert {7, 9}.isdisjoint(each.id for each in other)
    assert some.without(event(tenant="acme"), many) is other
    assert some.without(event(), many) is first
