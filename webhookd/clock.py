"""The database's clock, as this process knows it."""

import time


class Clock:
    """Tells the database's time, seconds since the epoch, by the monotonic clock and an offset that heartbeats measure.

    A step of this machine's wall clock changes nothing; until the first measurement the wall clock is believed.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def set(self, database_now: float, monotonic: float) -> None:
        """The database said `database_now` when the monotonic clock stood at `monotonic`."""
        self._offset = database_now - monotonic

    def now(self) -> float:
        """Seconds since the epoch on the database's clock."""
        return time.monotonic() + self._offset

    @property
    def skew(self) -> float:
        """Seconds by which this machine's wall clock is ahead of the database's."""
        return time.time() - self.now()
