"""Which daemons share an endpoint: the live ones that have it in their files and can send to it."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import NamedTuple

_SPREAD = 2654435761  # an odd number that scatters neighbours over 32 bits (Knuth, 6.4)


class Member(NamedTuple):
    """A live daemon, and the endpoints that it can send to; None when it does not say, so that it may be any.

    `keys` are the names of those with which it opens what the API has made; without them such are in `endpoint_ids`.
    """

    id: int
    endpoint_ids: frozenset[int] | None
    keys: frozenset[str] | None = None

    def has(self, endpoint_id: int, sealed_by: Set[str]) -> bool:
        """True when it can send to this endpoint, which these keys open."""
        if sealed_by and self.keys is not None:
            return self.keys >= sealed_by
        return self.endpoint_ids is None or endpoint_id in self.endpoint_ids


class Shares(NamedTuple):
    """Who shares what with the daemon `me`. Sharers are ids of daemons in their order, and `me` is one of them.

    `usual` share an endpoint that is not in `others`: nearly always all do, and all have the same endpoints.
    """

    me: int
    usual: tuple[int, ...]
    others: Mapping[int, tuple[int, ...]]

    def of(self, endpoint_id: int) -> tuple[int, ...]:
        """The daemons that share one of our endpoints."""
        return self.others.get(endpoint_id, self.usual)

    def first(self, endpoint_id: int) -> int:
        """The one of them that sends to the endpoint when one alone is to; all daemons say the same."""
        sharers = self.of(endpoint_id)
        return sharers[(endpoint_id * _SPREAD >> 16 & 0xFFFF) % len(sharers)]

    def place(self, sharers: Sequence[int]) -> tuple[int, int]:
        """Our place among these, from 0, and how many they are."""
        return bisect_left(sharers, self.me), len(sharers)

    def changed(self, sealed: Mapping[int, Set[str]], gone: Iterable[int], members: Iterable[Member]) -> "Shares":
        """The same, but for those of our endpoints that have changed, by the keys that open them, and those gone."""
        others = dict(self.others)
        for id_ in gone:
            others.pop(id_, None)
        beside = [member for member in members if member.id != self.me]
        for id_, keys in sealed.items():
            sharers = tuple(sorted([self.me, *(member.id for member in beside if member.has(id_, keys))]))
            if sharers != self.usual:
                others[id_] = sharers
            else:
                others.pop(id_, None)
        return self if others == self.others else Shares(self.me, self.usual, others)


def alone(me: int = 0) -> Shares:
    """The shares of a daemon that knows of no other."""
    return Shares(me, (me,), {})


def shares(
    me: int, mine: Iterable[int], members: Iterable[Member], sealed: Mapping[int, Set[str]] = MappingProxyType({})
) -> Shares:
    """Who shares the endpoints `mine`; of ourselves among the members we know better. `sealed`: what opens which.

    It costs a few operations on sets for each different set of endpoints, and nothing when all are the same.
    """
    ours = frozenset(mine)
    groups: dict[tuple[frozenset[int] | None, frozenset[str] | None], list[int]] = {}
    for member in members:
        if member.id != me:
            groups.setdefault((member.endpoint_ids, member.keys), []).append(member.id)
    parts: dict[tuple[int, ...], frozenset[int]] = {(me,): ours}  # of ours, by who has them
    for (endpoint_ids, keys), ids in groups.items():
        theirs = _had(ours, endpoint_ids, keys, sealed)
        parted: dict[tuple[int, ...], frozenset[int]] = {}
        for sharers, part in parts.items():
            both = part if theirs is ours else part & theirs
            if both or not part:
                parted[*sharers, *ids] = both
            if len(both) < len(part):
                parted[sharers] = part - both
        parts = parted
    usual = max(parts, key=lambda sharers: len(parts[sharers]))
    others = {id_: tuple(sorted(sharers)) for sharers, part in parts.items() if sharers != usual for id_ in part}
    return Shares(me, tuple(sorted(usual)), others)


def _had(
    ours: frozenset[int],
    endpoint_ids: frozenset[int] | None,
    keys: frozenset[str] | None,
    sealed: Mapping[int, Set[str]],
) -> frozenset[int]:
    """Of ours those that one has who says this; `ours` itself when it has all."""
    theirs = ours if endpoint_ids is None or endpoint_ids == ours else endpoint_ids
    if keys is None or not sealed:
        return theirs
    opened = {id_ for id_, names in sealed.items() if keys >= names}
    theirs = (ours if endpoint_ids is None else endpoint_ids) - sealed.keys() | opened
    return ours if theirs == ours else theirs
