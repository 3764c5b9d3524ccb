"""Says in the log that events match no endpoint: at once of the first, then every five minutes of all there were."""

import asyncio
from typing import Final

import structlog

BETWEEN_SECONDS: Final = 300.0  # nothing need be wrong with it, so it is a line now and then
NAMED: Final = 5  # types in a line
LONGEST: Final = 100  # characters of one

log = structlog.get_logger("webhookd.reader")


class Unmatched:
    """Counts events that nobody gets, and tells of them on the loop."""

    def __init__(self, between_seconds: float = BETWEEN_SECONDS) -> None:
        self._between = between_seconds
        self._alarm: asyncio.Handle | None = None
        self._events = 0
        self._types: dict[str, None] = {}

    def add(self, type_: str) -> None:
        """Count an event of this type."""
        self._events += 1
        if len(self._types) < NAMED:
            self._types[type_[:LONGEST]] = None
        if self._alarm is None:  # what is read at the same moment is told together
            self._alarm = asyncio.get_running_loop().call_soon(self._tell)

    def close(self) -> None:
        """Tell what is left."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._tell_all()

    def _tell(self) -> None:
        self._alarm = asyncio.get_running_loop().call_later(self._between, self._tell) if self._events else None
        self._tell_all()

    def _tell_all(self) -> None:
        if self._events:
            log.info("events_unmatched", events=self._events, types=list(self._types))
        self._events, self._types = 0, {}
