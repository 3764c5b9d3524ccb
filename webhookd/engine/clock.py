"""The database's clock, as this process knows it."""

import time


class Clock:
    """Tells the database's time, seconds since the epoch, by the monotonic clock and an offset that heartbeats measure.

    A step of this machine's wall clock changes nothing; until the first measurement the wall clock is believed.
    """

    def __init__(self) -> None:
        self._least = self._most = time.time() - time.monotonic()  # between which the offset is
        self._is_measured = False

    def measure(self, database_now: float, asked: float, answered: float) -> None:
        """The database said `database_now` at some moment between these two of the monotonic clock.

        What all measurements agree on is kept, since one that took long says little. One that contradicts them is
        believed alone: the clocks drift, and a standby that takes over has another.
        """
        least, most = database_now - answered, database_now - asked
        if self._is_measured and least <= self._most and most >= self._least:
            least, most = max(least, self._least), min(most, self._most)
        self._least, self._most, self._is_measured = least, most, True

    def now(self) -> float:
        """Seconds since the epoch on the database's clock."""
        return time.monotonic() + (self._least + self._most) / 2

    def earliest(self, moment: float) -> float:
        """What the database's clock showed at that moment of the monotonic clock, or less: never more."""
        return moment + self._least

    @property
    def skew(self) -> float:
        """Seconds by which this machine's wall clock is ahead of the database's."""
        return time.time() - self.now()
