"""Places of pollers, as iterators carry them."""

from hypothesis import given
from hypothesis import strategies as st

from webhookd.policy.polling import NONCES, WHOLE, Place, There, is_same, packed, unpacked

places = st.builds(
    Place,
    st.integers(0, 2**63 - 1),
    st.one_of(st.integers(0, 500), st.just(WHOLE)),
    st.integers(0, 2**63 - 1),
)


@given(places, st.integers(1, 2**31 - 1))
def test_a_place_comes_back_as_it_was_as_far_as_that_counts(place: Place, endpoint_id: int) -> None:
    content = packed(place, endpoint_id)
    assert len(content) == 20
    found, of = unpacked(content)
    assert (found, of) == (place._replace(nonce=place.nonce % NONCES), endpoint_id)
    assert is_same(found, There(place.batch, place.nonce, 0.0))
    assert not is_same(found, There(place.batch, place.nonce ^ 1, 0.0))
    assert not is_same(found, There(place.batch + 1, place.nonce, 0.0))
    assert not is_same(found, None)


@given(st.binary(min_size=20, max_size=20))
def test_whatever_is_passed_is_a_place(content: bytes) -> None:
    place, endpoint_id = unpacked(content)
    assert packed(place, endpoint_id) == content


def test_where_to_go_on() -> None:
    assert Place(7, 3, 0).next_batch == 7
    assert Place(7, WHOLE, 0).next_batch == 8
    assert [Place(7, 3, 0).skips(batch) for batch in (7, 8)] == [3, 0]
