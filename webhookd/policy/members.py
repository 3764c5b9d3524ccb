"""Which daemons share an endpoint: the live ones that have it in their files and can send to it."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_SPREAD = 2654435761  # an odd number that scatters neighbours over 32 bits (Knuth, 6.4)


class Member(NamedTuple):
    """A live daemon, and the endpoints that it can send to; None when it does not say, so that it may be any."""

    id: int
    endpoint_ids: frozenset[int] | None


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


def alone(me: int = 0) -> Shares:
    """The shares of a daemon that knows of no other."""
    return Shares(me, (me,), {})


def shares(me: int, mine: Iterable[int], members: Iterable[Member]) -> Shares:
    """Who shares the endpoints `mine`; of ourselves among the members we know better.

    It costs a few operations on sets for each different set of endpoints, and nothing when all are the same.
    """
    ours = frozenset(mine)
    groups: dict[frozenset[int] | None, list[int]] = {}
    for member in members:
        if member.id != me:
            groups.setdefault(member.endpoint_ids, []).append(member.id)
    parts: dict[tuple[int, ...], frozenset[int]] = {(me,): ours}  # of ours, by who has them
    for endpoint_ids, ids in groups.items():
        parted: dict[tuple[int, ...], frozenset[int]] = {}
        for sharers, part in parts.items():
            both = part if endpoint_ids is None or endpoint_ids == ours else part & endpoint_ids
            if both or not part:
                parted[*sharers, *ids] = both
            if len(both) < len(part):
                parted[sharers] = part - both
        parts = parted
    usual = max(parts, key=lambda sharers: len(parts[sharers]))
    others = {id_: tuple(sorted(sharers)) for sharers, part in parts.items() if sharers != usual for id_ in part}
    return Shares(me, tuple(sorted(usual)), others)
