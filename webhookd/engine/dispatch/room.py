"""How many more deliveries may be taken into memory: of all, and of the events of one tenant."""

from collections import Counter
from collections.abc import Callable

MOST_DELIVERIES = 20_000  # in memory, results that are not yet recorded included
LEAST_DELIVERIES = 4_000  # in memory, however slow things go
TENANTS_PART = 7  # times the room that is left: so much of the memory one tenant may hold


class Room:
    """What is in memory, and how fast it goes.

    No more than a second's work is taken: what a fast endpoint cannot start within its patience would be spilled, at
    six times the cost of leaving it in the log a little longer.
    """

    def __init__(self, most: int = MOST_DELIVERIES) -> None:
        self.held = 0
        self._most = most
        self._of: Counter[str] = Counter()  # tenants
        self._answered = 0  # attempts, since the rate was measured
        self._rate = 0.0  # of answered attempts, per second

    def take(self, tenant: str) -> None:
        """One more is held."""
        self.held += 1
        self._of[tenant] += 1

    def leave(self, tenant: str) -> None:
        """One less is held."""
        self.held -= 1
        self._of[tenant] -= 1
        if not self._of[tenant]:
            del self._of[tenant]

    def answered(self) -> None:
        """An attempt has come to its end."""
        self._answered += 1

    def measure(self, seconds: float) -> None:
        """So many have passed since this was last called."""
        self._rate += (self._answered / seconds - self._rate) / 2
        self._answered = 0

    def left(self, pending: int, still: Callable[[], int]) -> int:
        """How many more may be held, with so many `pending` results that are not recorded yet.

        `still()` are held and wait for endpoints that say nothing. That is none of a second's work, so it stops nobody.
        """
        held = self.held + pending
        most = min(max(int(self._rate), LEAST_DELIVERIES), self._most)
        if held < most:
            return most - held
        return min(most - held + still(), self._most - held)

    def left_for(self, tenant: str, left: int) -> int:
        """How many of these may be of the tenant's events.

        What is left is for those who hold little: whoever holds many times as much as there is room waits, so that
        there is some left, whoever floods us (dynamic thresholds, Choudhury and Hahne 1998).
        """
        return min(left, TENANTS_PART * left - self._of[tenant])
