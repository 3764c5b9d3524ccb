"""What a reload changes, and when it is too much."""

from hypothesis import given
from hypothesis import strategies as st

from webhookd.policy.difference import Difference, Specs, difference, refusal

_specs = st.dictionaries(
    st.tuples(st.sampled_from(["", "acme", "*"]), st.sampled_from(["orders", "bills", "notes"])),
    st.fixed_dictionaries({"timeout": st.sampled_from(["1s", "2s"])}),
)


def test_endpoints_are_named_with_their_tenant() -> None:
    before = {("", "orders"): {"timeout": "1s"}, ("acme", "bills"): {}, ("acme", "orders"): {"timeout": "1s"}}
    after = {("", "orders"): {"timeout": "2s"}, ("acme", "orders"): {"timeout": "1s"}, ("beta", "bills"): {}}
    assert difference(before, after) == Difference(("beta/bills",), ("acme/bills",), ("orders",))
    assert difference(before, before) == Difference()


@given(_specs, _specs)
def test_the_way_back_is_the_difference_turned_round(before: Specs, after: Specs) -> None:
    there, back = difference(before, after), difference(after, before)
    assert (there.added, there.removed, there.changed) == (back.removed, back.added, back.changed)
    assert len(before) + len(there.added) - len(there.removed) == len(after)


@given(st.integers(0, 300), st.integers(0, 9000))
def test_only_many_and_more_than_one_percent_are_refused(removed: int, kept: int) -> None:
    gone = Difference(removed=tuple(f"e{number}" for number in range(removed)))
    assert (refusal(gone, removed + kept) is not None) == (removed > 5 and removed * 100 > removed + kept)


def test_the_sentence_of_a_refusal() -> None:
    gone = Difference(removed=tuple(f"acme/e{number}" for number in range(7)))
    assert (refusal(gone, 9, "its command") or "").endswith("; if that is meant, run `its command`")
    assert refusal(gone, 9) == (
        "7 of 9 endpoints are gone from the files (acme/e0, acme/e1, acme/e2, acme/e3, acme/e4 and 2 more), and all "
        "of them stay as they were; if that is meant, run `webhookd reload --accept-removals`"
    )
