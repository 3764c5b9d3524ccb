"""When the reader looks for new events again.

Under load after a few milliseconds, so that batches are worth their row. Else it rests: it asks producers to ring, and
where nobody can ring it polls. What rings for nothing, whoever does it, is listened to less and less.
"""

import asyncio
import time
from typing import Literal, Protocol

from webhookd.tasks import wait_for

NAP = 0.2  # seconds after which a sleeper looks, whether or not anybody rang
POLL_FIRST, POLL_MOST = 0.003, 0.05
LULL_FIRST, LULL_MOST = 0.0005, 0.05  # seconds after a ring for nothing; twice as long each time in a row
NEVER_SLEEP_ABOVE = 150.0  # events/s: to look every 2 ms costs no more than to be woken by each, and producers nothing
PAUSE_PER_RATE = 5e-6  # seconds between cuts per event/s: 2 ms up to 400/s, 20 ms from 4,000/s
PAUSE_LEAST, PAUSE_MOST = 0.002, 0.02
RATE_WINDOW = 0.25  # seconds over which the rate of events is averaged


class WakeUp(Protocol):
    """How producers wake the reader."""

    rung: asyncio.Event

    def request(self) -> Literal["sleep", "listen", "poll"]:
        """Ask to be woken; whether we are, by now."""

    def release(self) -> None:
        """No longer ask."""


class Polling:
    """Knows how many events come, and waits for the next.

    Who is woken goes on to be while it has some events to see to: at less than some hundreds a second to get up for
    each, and to lie down again, costs more than being rung for it.
    """

    def __init__(self, wakeup: WakeUp, stopped: asyncio.Event) -> None:
        self._wakeup = wakeup
        self._stopped = stopped
        self._rate = 0.0
        self._rate_at = time.monotonic()
        self._poll = POLL_FIRST
        self._lies = False
        self._heard = False  # producers rang when it looked, so what it did not see rings
        self._was_rung = False
        self._lull = LULL_FIRST

    @property
    def is_over(self) -> bool:
        """True while so many events come that nobody should sleep."""
        return self._rate >= NEVER_SLEEP_ABOVE

    def look(self) -> None:
        """The reader is about to look: from here on a ring tells of what it may not see."""
        if self.is_over and self._lies:
            self._get_up()
        self._was_rung = self._wakeup.rung.is_set()
        self._wakeup.rung.clear()
        self._heard = self._lies and self._wakeup.request() != "poll"

    def found(self, events: int) -> None:
        """So many were there."""
        now = time.monotonic()
        elapsed = max(now - self._rate_at, 1e-6)
        self._rate += (events / elapsed - self._rate) * min(elapsed / RATE_WINDOW, 1.0)
        self._rate_at = now
        if events:
            self._lull = LULL_FIRST

    async def pause(self) -> None:
        """Wait for some more events to come, where more come than are worth a look each."""
        if self.is_over:
            self._get_up()
            await wait_for(self._stopped, min(max(self._rate * PAUSE_PER_RATE, PAUSE_LEAST), PAUSE_MOST))

    async def sleep(self) -> None:
        """Wait, when there was nothing, until somebody rings; where nobody does, for a few milliseconds."""
        if self._was_rung:
            await wait_for(self._stopped, self._lull)
            self._lull = min(self._lull * 2, LULL_MOST)
        if self._heard:
            self._poll = POLL_FIRST
            await wait_for(self._wakeup.rung, NAP)
            return
        if not self._lies:
            self._lies = True
            self._wakeup.request()  # and from now on before each look, which is when the answer has to be true
        await wait_for(self._wakeup.rung, self._poll)  # it also rings when it has an answer
        self._poll = min(self._poll * 1.5, POLL_MOST)

    def _get_up(self) -> None:
        self._lies = False
        self._wakeup.release()
