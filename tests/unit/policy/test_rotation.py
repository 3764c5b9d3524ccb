"""Whose turn it is."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from webhookd.policy.rotation import Rotation


def test_tenants_take_turns_and_so_do_the_members_of_one() -> None:
    rotation: Rotation[str] = Rotation()
    for member in ("a1", "a2", "a3", "b1", "c1", "c2"):
        rotation.add(member[0], member)
    assert [rotation.take() for _ in range(7)] == ["a1", "b1", "c1", "a2", "c2", "a3", None]


def test_a_member_waits_at_most_once() -> None:
    rotation: Rotation[str] = Rotation()
    rotation.add("a", "a1")
    rotation.add("a", "a1")
    assert len(rotation) == 1
    assert rotation.take() == "a1"
    assert rotation.take() is None
    rotation.add("a", "a1")
    assert rotation.take() == "a1"


members = st.tuples(st.integers(0, 4), st.integers(0, 3))  # (tenant, number)


@given(st.lists(st.one_of(members, st.none()), max_size=200))
def test_everybody_who_waits_gets_exactly_one_turn(steps: list[tuple[int, int] | None]) -> None:
    rotation: Rotation[tuple[int, int]] = Rotation()
    waiting: set[tuple[int, int]] = set()
    for step in steps:
        if step is None:
            taken = rotation.take()
            assert (taken is None) == (not waiting)
            if taken is not None:
                waiting.remove(taken)
        else:
            rotation.add(str(step[0]), step)
            waiting.add(step)
        assert len(rotation) == len(waiting)
    assert {rotation.take() for _ in range(len(waiting))} == waiting
    assert rotation.take() is None


@given(st.sets(members, min_size=1), st.integers(1, 100))
def test_between_two_turns_of_a_member_every_other_tenant_had_one(present: set[tuple[int, int]], turns: int) -> None:
    rotation: Rotation[tuple[int, int]] = Rotation()
    for member in sorted(present):
        rotation.add(str(member[0]), member)
    tenants = {tenant for tenant, _ in present}
    since: dict[tuple[int, int], Counter[int]] = {}
    for _ in range(turns):
        taken = rotation.take()
        assert taken is not None
        if taken in since:
            assert {tenant for tenant, n in since[taken].items() if n} >= tenants - {taken[0]}
        since[taken] = Counter()
        for member, seen in since.items():
            if member != taken:
                seen[taken[0]] += 1
        rotation.add(str(taken[0]), taken)  # it always has more to do


@given(st.lists(members, min_size=1, max_size=60))
def test_a_tenant_waits_one_turn_of_each_other_however_much_they_add(noise: list[tuple[int, int]]) -> None:
    rotation: Rotation[tuple[int, int]] = Rotation()
    for member in noise:
        rotation.add(str(member[0]), member)
    others = {tenant for tenant, _ in noise}
    quiet = (9, 0)
    rotation.add("quiet", quiet)
    for turn in range(len(others) + 1):
        taken = rotation.take()
        if taken == quiet:
            return
        assert taken is not None
        rotation.add(str(taken[0]), taken)
        for member in noise[: turn + 1]:
            rotation.add(str(member[0]), member)
    raise AssertionError("another tenant had two turns before the quiet one had its first")
