"""What a process counts of itself, for `/metrics`: numbers that only grow, so that no look is missed."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence, Set
from typing import Final

# Seconds, the upper bounds of what is counted together.
WAITS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0)
ANSWERS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0)
LAGS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 3600.0, 21_600.0, 86_400.0, 259_200.0)


class Histogram:
    """How many there were up to each of these bounds, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # of each the upper bound belongs to it; the last has none
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """One of a process, to which all parts add."""

    __slots__ = (
        "answers",
        "attempts",
        "connections_kept",
        "connections_opened",
        "database_errors",
        "deliveries",
        "endpoints",
        "events_read",
        "lags",
        "missed_events",
        "pool_waits",
        "request_seconds",
        "requests",
        "rescues",
        "spills",
        "unreadable_events",
    )

    def __init__(self) -> None:
        self.attempts: Counter[tuple[bool, int | str | None]] = Counter()  # by success, and status or code
        self.answers = Histogram(ANSWERS)  # how long attempts took
        self.deliveries: Counter[str] = Counter()  # by what became of them for good
        self.lags = Histogram(LAGS)  # until they were delivered
        # Attempts that failed, and that did not, by endpoint, where somebody may ask for them: it is tidied then.
        self.endpoints: dict[int, list[int]] | None = None
        self.missed_events = self.events_read = self.rescues = self.spills = self.unreadable_events = 0
        self.connections_opened = self.connections_kept = 0  # for a request each
        self.database_errors: Counter[str] = Counter()  # by kind
        self.pool_waits = Histogram(WAITS)  # for a connection to the database
        self.requests: Counter[tuple[str, int]] = Counter()  # to the API, by operation and status
        self.request_seconds = Histogram(ANSWERS)

    def keep(self, endpoint_ids: Set[int]) -> None:
        """All others are gone."""
        for id_ in (self.endpoints or {}).keys() - endpoint_ids:
            del (self.endpoints or {})[id_]
