"""When an endpoint that fails is left alone, when it is probed, and how it comes back."""

FAILED_IN_ROW = 10  # failures one after the other that open a breaker
WINDOW = 50  # of the last answers that the rate is taken from
FAILED_IN_WINDOW = 40  # of them that open a breaker, whatever came between
PROBE_FIRST, PROBE_FACTOR, PROBE_MOST = 1.0, 2.0, 300.0  # seconds to the first probe, and how they grow
PROBE_JITTER = 0.2  # share of it, on or off, so that endpoints that failed together are not probed together
UNLIMITED = 1_000_000
_HISTORY = (1 << WINDOW) - 1


class Breaker:
    """Closed, open, or half-open; all moments are of the monotonic clock.

    Closed, it allows all and counts. Open, it allows one probe at `retry_at`; the time to the next one doubles with
    each that fails, up to five minutes. A probe that succeeds half-opens it: 2 at a time, then 4, 8, and so on, each as
    soon as so many have succeeded, and closed once they are as many as the endpoint has slots. Failures meanwhile open
    it again where the intervals had come to, if they are so many as would open it when closed: an endpoint that fails
    one time in three would never come back if it had to be without fault on the way. And one that is owed nothing more
    would take days to succeed so often.
    """

    __slots__ = ("_good", "_history", "_row", "_since", "allowance", "fails", "retry_at")

    def __init__(self) -> None:
        self.fails = 0  # probes that failed, the opening included; 0 when it is closed
        self.retry_at = 0.0
        self.allowance = UNLIMITED  # attempts at one time
        self._row = 0
        self._history = 0
        self._since = 0.0  # when it opened or allowed more: what started before says nothing about that
        self._good = 0

    @property
    def is_closed(self) -> bool:
        """True when it keeps nothing back."""
        return self.fails == 0

    @property
    def has_failures(self) -> bool:
        """True when the last answers were not all good."""
        return self._history != 0

    def is_open(self, now: float) -> bool:
        """True when nothing may start now."""
        return self.retry_at > now

    def reopen(self, fails: int, retry_at: float) -> None:
        """Go on where another daemon's breaker was."""
        self.fails, self.retry_at, self.allowance = fails, retry_at, 1
        self._good = self._row = self._history = 0

    def succeeded(self, started: float, now: float, most: int) -> bool:
        """Count a success of an attempt that started then; True when it closes. `most`: the endpoint's slots."""
        self._row = 0
        self._history = self._history << 1 & _HISTORY
        if self.is_closed or started < self._since:
            return False
        self.retry_at = 0.0
        self._good += 1
        if self._good < self.allowance:
            return False
        if self.allowance >= most:
            self._close()
            return True
        self._good, self._since = 0, now
        self.allowance *= 2
        return False

    def rest(self) -> None:
        """Close when it is half-open and the last answer was good: there is nothing more to prove itself with."""
        if 1 < self.allowance < UNLIMITED and self._row == 0:
            self._close()

    def failed(self, started: float, now: float, random: float) -> bool:
        """Count a failure of an attempt that started then; True when it opens. `random` is uniform in [0, 1)."""
        if started < self._since:
            return False
        self._row += 1
        self._history = (self._history << 1 | 1) & _HISTORY
        is_probe = self.allowance == 1
        if not is_probe and self._row < FAILED_IN_ROW and self._history.bit_count() < FAILED_IN_WINDOW:
            return False
        was_closed = self.is_closed
        self._open(now, random)
        return was_closed

    def _open(self, now: float, random: float) -> None:
        self.fails = min(self.fails + 1, 1000)
        seconds = min(PROBE_FIRST * PROBE_FACTOR ** min(self.fails - 1, 30), PROBE_MOST)
        self.retry_at = now + seconds * (1 + PROBE_JITTER * (2 * random - 1))
        self._since = now
        self.allowance, self._good = 1, 0
        self._row = self._history = 0

    def _close(self) -> None:
        self.fails, self.allowance = 0, UNLIMITED
        self._row = self._history = 0
