"""How attempts went, summed by the minute and the endpoint."""

from bisect import bisect_left
from itertools import islice
from typing import Final, NamedTuple

BOUNDS: Final = (10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000)  # ms: of a bucket the last
BUCKETS: Final = len(BOUNDS) + 1
OUTCOMES: Final = ("delivered", "failed", "exhausted", "rejected")
ALL: Final = 0  # the number that stands for all endpoints
MOST: Final = 200_000  # rows in memory, while the database is away
MINUTE: Final = 60.0  # seconds


class Row(NamedTuple):
    """What there was in a minute since the epoch: counts by outcome, and attempts by how long they took."""

    minute: int
    endpoint: int
    counts: tuple[int, ...]
    took: tuple[int, ...]


class Sums:
    """Adds up what is seen, until it is taken."""

    def __init__(self) -> None:
        self._minutes: dict[int, dict[int, list[int]]] = {}  # minute -> endpoint -> counts, and then how long they took
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, at: float, endpoint: int, outcome: int, ms: int | None) -> None:
        """One more; `at` is in seconds since the epoch, the outcome by its place, and `ms` None without a request."""
        sums = self._minutes.setdefault(int(at // MINUTE), {})
        found = sums.get(endpoint)
        if found is None:
            if self._rows >= MOST:  # the database has been away for long, and these are the least that is lost
                return
            self._rows += 1
            found = sums[endpoint] = [0] * (len(OUTCOMES) + BUCKETS)
        found[outcome] += 1
        if ms is not None:
            found[len(OUTCOMES) + bisect_left(BOUNDS, ms)] += 1

    def take(self, most: int, before: int | None = None) -> list[Row]:
        """So many rows at most of one minute, which is before this one if there is one, and the sum of these for all.

        Nothing when there is none left.
        """
        minute = min((each for each, sums in self._minutes.items() if sums), default=None)
        if minute is None or (before is not None and minute >= before):
            return []
        sums = self._minutes[minute]
        taken = [(endpoint, sums.pop(endpoint)) for endpoint in list(islice(sums, most))]
        if not sums:
            del self._minutes[minute]
        self._rows -= len(taken)
        total = [sum(column) for column in zip(*(counts for _, counts in taken), strict=True)]
        return [_row(minute, endpoint, counts) for endpoint, counts in (*taken, (ALL, total))]


def _row(minute: int, endpoint: int, sums: list[int]) -> Row:
    return Row(minute, endpoint, tuple(sums[: len(OUTCOMES)]), tuple(sums[len(OUTCOMES) :]))
