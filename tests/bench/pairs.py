"""Two ways of doing the same, measured in turns, in as many pairs as it takes to tell whether a budget is kept.

A machine has moods that last for a minute or two. Where the difference is small beside them, some pairs say nothing.
"""

from collections.abc import Awaitable, Callable, Sequence
from math import sqrt
from typing import TypeVar

W = TypeVar("W")

SURE = 1.96  # standard deviations: of a hundred such intervals, five do not have the median


def is_clear(ratios: Sequence[float], budget: float) -> bool:
    """True when the median of what such pairs give is on one side of the budget: an interval by order statistics.

    It assumes nothing of their distribution, and is all of the values where there are few (Conover, 3.2). Asked again
    and again, it says so of one that is on the budget in about one case of seven.
    """
    inside = max(int((len(ratios) - SURE * sqrt(len(ratios))) / 2), 0)
    ranked = sorted(ratios)[inside : len(ratios) - inside]
    return budget < ranked[0] or budget > ranked[-1]


async def in_pairs(
    measure: Callable[[W], Awaitable[float]], one: W, other: W, budget: float, *, least: int, most: int
) -> list[tuple[float, float]]:
    """What each way gives, in turns of which neither is always the first, until other / one is clear."""
    pairs: list[tuple[float, float]] = []
    while len(pairs) < least or (len(pairs) < most and not is_clear([its / mine for mine, its in pairs], budget)):
        if len(pairs) % 2:
            its = await measure(other)
            pairs.append((await measure(one), its))
        else:
            pairs.append((await measure(one), await measure(other)))
    return pairs
