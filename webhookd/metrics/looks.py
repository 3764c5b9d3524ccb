"""What is looked at now and then, and shown to who asks meanwhile: the database, and how late the loop is."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

from webhookd.errors import WebhookdError
from webhookd.tasks import Setbacks

T = TypeVar("T")

LOOK_SECONDS: Final = 5.0  # between two looks at the database, at least
RESTRAINT: Final = 50.0  # times what a look took, until the next: no more than 2 % of a connection's time
AGAIN_MOST: Final = 60.0  # seconds until the next try where one failed
OLD_SECONDS: Final = 90.0  # beyond the next look, from which on what was seen is told no more

TICK_SECONDS: Final = 0.1
KEPT_SECONDS: Final = 60.0  # in which the longest stall is seen by who asks once a minute


class Look(Generic[T]):
    """Asks something of the database in one task, however many want to know; less often where it takes long.

    `most` are the seconds between two looks however long one takes. `is_alone()` where nobody else would tell that they
    fail.
    """

    def __init__(
        self, what: str, ask: Callable[[], Awaitable[T]], most: float, is_alone: Callable[[], bool] = lambda: False
    ) -> None:
        self._ask = ask
        self._most = most
        self._setbacks = Setbacks(what, is_alone=is_alone)
        self._at = time.monotonic()
        self._until = 0.0
        self.last: T | None = None  # what was seen, however old

    @property
    def age(self) -> float:
        """Seconds since there was an answer, or since the start where there never was."""
        return time.monotonic() - self._at

    @property
    def found(self) -> T | None:
        """What was seen; nothing that is old."""
        return self.last if time.monotonic() < self._until else None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            began, least = time.monotonic(), LOOK_SECONDS
            try:
                self.last = await self._ask()
            except Exception as error:
                with suppress(WebhookdError):  # what ends a daemon, its other parts meet as well
                    least = max(least, self._setbacks.met(error))
                await asyncio.sleep(min(self._pause(began, least), AGAIN_MOST))
            else:
                self._setbacks.over()
                self._at = time.monotonic()
                pause = self._pause(began, least)
                self._until = self._at + pause + OLD_SECONDS
                await asyncio.sleep(pause)

    def _pause(self, began: float, least: float) -> float:
        return min(max(least, (time.monotonic() - began) * RESTRAINT), self._most)


class LoopLag:
    """By how much the loop comes late."""

    def __init__(self) -> None:
        self._late: deque[float] = deque([0.0], maxlen=round(KEPT_SECONDS / TICK_SECONDS))

    @property
    def longest(self) -> float:
        """The longest of the last minute, in seconds."""
        return max(self._late)

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self._late.append(max(loop.time() - due, 0.0))
