"""How much an endpoint is sent: a width that follows its answers, a pace, and its share among the daemons."""

from enum import Enum

BURST_SECONDS = 0.1  # of a rate that may go out at once: a stricter receiver would answer the rest with 429
STRAINED_SECONDS = 1.0  # answers that are faster never narrow anything: the machine may just be busy
STRAINED_FACTOR = 3.0  # times the best latency: more means that requests wait for each other at the receiver
BEST_DRIFT = 0.01  # of the best latency per answer, so that a receiver may become slower for good


class Signal(Enum):
    """What an answer says about how much its endpoint can take."""

    GOOD = "good"  # it took the event
    PLAIN = "plain"  # it answered
    BUSY = "busy"  # it asked for less
    LATE = "late"  # nothing came in time
    LOST = "lost"  # nothing came, and that was known at once: refused, reset
    OURS = "ours"  # a fault of our side, which says nothing about it


class Width:
    """Requests at one time between 1 and `most`: one more per round of good answers, half on a sign of trouble.

    Additive increase, multiplicative decrease (Chiu and Jain, 1989).
    """

    __slots__ = ("_best", "_narrowed_at", "most", "value")

    def __init__(self, most: int) -> None:
        self.most = most
        self.value = float(most)
        self._best = 0.0  # seconds: the quickest answer, slowly forgotten
        self._narrowed_at = 0.0

    def resize(self, most: int) -> None:
        """Go on below another upper bound; one that stood at its bound goes to the new one."""
        self.value = float(most) if self.value >= self.most else min(self.value, float(most))
        self.most = most

    def learn(self, signal: Signal, started: float, now: float) -> None:
        """Follow the answer to a request that started then; requests that flew together narrow it once."""
        seconds = now - started
        if signal is Signal.GOOD or signal is Signal.PLAIN:
            best = self._best * (1 + BEST_DRIFT)
            self._best = seconds if best == 0 or seconds < best else best
            strained = seconds > STRAINED_SECONDS and seconds > STRAINED_FACTOR * self._best
        else:
            strained = signal is Signal.BUSY or signal is Signal.LATE
        if strained:
            if started >= self._narrowed_at:
                self.value = max(self.value / 2, 1.0)
                self._narrowed_at = now
        elif signal is Signal.GOOD and self.value < self.most:
            self.value = min(self.value + 1 / self.value, float(self.most))


class Pace:
    """At most `rate` starts a second, evenly but for a burst of a tenth of a second (GCRA, ITU-T I.371)."""

    __slots__ = ("_early", "_next", "rate", "until")

    def __init__(self, rate: float) -> None:
        self._next = 0.0  # when the next start is due if they came evenly
        self.change(rate)

    def change(self, rate: float) -> None:
        """Go on at another rate."""
        self.rate = rate
        self._early = max(BURST_SECONDS - 1 / rate, 0.0)
        self.until = self._next - self._early  # the moment from which the next start is allowed

    def started(self, now: float) -> None:
        """Count a start."""
        self._next = (now if now > self._next else self._next) + 1 / self.rate
        self.until = self._next - self._early


def share(most: int, rank: int, live: int, key: int) -> int:
    """What the daemon at place `rank` of `live` may take of a limit; the shares of all add up to `most`.

    `key` spreads what cannot be divided: without it the first daemon would get all endpoints of one slot.
    """
    return most // live + ((rank + key) % live < most % live)
