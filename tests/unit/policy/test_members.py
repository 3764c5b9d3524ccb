"""Whatever daemons there are and whatever each has, all that have an endpoint agree who shares it."""

from hypothesis import given
from hypothesis import strategies as st

from webhookd.policy.limiter import share
from webhookd.policy.members import Member, Shares, alone, shares

ids = st.frozensets(st.integers(1, 12))
fleets = st.dictionaries(st.integers(1, 40), ids, min_size=1, max_size=6)


def seen(fleet: dict[int, frozenset[int]], unknown: frozenset[int] = frozenset()) -> dict[int, Shares]:
    """What each daemon makes of what the others say; `unknown` do not say."""
    members = [Member(id_, None if id_ in unknown else has) for id_, has in sorted(fleet.items())]
    return {id_: shares(id_, has, members) for id_, has in fleet.items()}


@given(fleets)
def test_those_that_have_an_endpoint_agree_and_no_other_counts(fleet: dict[int, frozenset[int]]) -> None:
    for me, made in seen(fleet).items():
        for endpoint in fleet[me]:
            assert made.of(endpoint) == tuple(sorted(id_ for id_, has in fleet.items() if endpoint in has))


@given(fleets, st.integers(1, 20))
def test_shares_add_up_to_the_limit_and_one_alone_is_first(fleet: dict[int, frozenset[int]], most: int) -> None:
    views = seen(fleet)
    for endpoint in frozenset().union(*fleet.values()):
        mine = {me: made for me, made in views.items() if endpoint in fleet[me]}
        assert sum(share(most, *made.place(made.of(endpoint)), endpoint) for made in mine.values()) == most
        (first,) = {made.first(endpoint) for made in mine.values()}
        assert first in mine


@given(fleets)
def test_what_all_have_is_no_exception(fleet: dict[int, frozenset[int]]) -> None:
    same = dict.fromkeys(fleet, frozenset({1, 2, 3}))
    for made in seen(same).values():
        assert (made.usual, made.others) == (tuple(sorted(fleet)), {})


def test_one_that_does_not_say_what_it_has_may_have_it() -> None:
    views = seen({1: frozenset({5}), 2: frozenset()}, unknown=frozenset({2}))
    assert views[1].of(5) == (1, 2)


def test_who_knows_of_nobody_has_all() -> None:
    assert alone(7) == shares(7, [1, 2], []) == shares(7, [], [Member(7, frozenset())])
    assert alone(7).place(alone(7).of(1)) == (0, 1)


def test_endpoints_are_spread_over_those_that_share_them() -> None:
    made = shares(1, range(1, 3001), [Member(2, frozenset(range(1, 3001))), Member(3, frozenset(range(1, 3001)))])
    counts = [sum(made.first(endpoint) == id_ for endpoint in range(1, 3001)) for id_ in (1, 2, 3)]
    assert min(counts) > 900


keys = st.frozensets(st.sampled_from(["a", "b", "c"]), min_size=1)
sealed_fleets = st.dictionaries(st.integers(1, 40), st.tuples(ids, st.none() | keys), min_size=1, max_size=5)


def sees(
    fleet: dict[int, tuple[frozenset[int], frozenset[str] | None]], me: int, id_: int, names: frozenset[str]
) -> bool:
    has, opens = fleet[me]
    return opens >= names if names and opens is not None else id_ in has


@given(sealed_fleets, st.dictionaries(st.integers(1, 12), keys, max_size=6))
def test_what_is_sealed_is_shared_by_those_who_can_open_it(
    fleet: dict[int, tuple[frozenset[int], frozenset[str] | None]], sealed: dict[int, frozenset[str]]
) -> None:
    members = [Member(id_, has, opens) for id_, (has, opens) in sorted(fleet.items())]
    every = {*sealed, *(id_ for has, _ in fleet.values() for id_ in has)}
    for me in fleet:
        mine = [id_ for id_ in every if sees(fleet, me, id_, sealed.get(id_, frozenset()))]
        own = {id_: sealed[id_] for id_ in mine if id_ in sealed}
        made = shares(me, mine, members, own)
        for id_ in mine:
            names = sealed.get(id_, frozenset())
            assert made.of(id_) == tuple(sorted(each for each in fleet if sees(fleet, each, id_, names)))


@given(sealed_fleets, st.dictionaries(st.integers(1, 12), keys, min_size=1, max_size=6), st.integers(0, 6))
def test_one_that_changes_is_shared_as_if_all_were_looked_at(
    fleet: dict[int, tuple[frozenset[int], frozenset[str] | None]], sealed: dict[int, frozenset[str]], at: int
) -> None:
    members = [Member(id_, has, opens) for id_, (has, opens) in sorted(fleet.items())]
    me, names = next(iter(fleet)), list(sealed)
    before, after = names[:at], names[at // 2 :]
    made = shares(me, before, members, {id_: sealed[id_] for id_ in before})
    changed = made.changed({id_: sealed[id_] for id_ in after}, set(before) - set(after), members)
    wanted = shares(me, after, members, {id_: sealed[id_] for id_ in after})
    assert all(changed.of(id_) == wanted.of(id_) for id_ in after)
    assert not set(before) - set(after) & changed.others.keys()
