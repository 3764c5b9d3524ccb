"""Says in the log that the database is away and back: once for all parts, since the reader asks it all the time."""

import time

import structlog

MOST_TOLD = 10  # reasons, of one outage

log = structlog.get_logger("webhookd.reader")


class Outage:
    """`is_over` while the database answers. Before the first answer it is not, and nobody is told that it is away."""

    def __init__(self) -> None:
        self.is_over = False
        self._since: float | None = None
        self._told: set[str] = set()  # why it is away, each reason once

    def end(self) -> None:
        """It has answered."""
        if self._since is not None:
            log.info("database_back", seconds=round(time.monotonic() - self._since, 1))
        elif not self.is_over:
            log.info("reading")
        self.is_over, self._since = True, None
        self._told.clear()

    def begin(self, reason: str) -> None:
        """It has not, and this is why."""
        if reason not in self._told and len(self._told) < MOST_TOLD:  # what it says first is rarely what lasts
            self._told.add(reason)
            log.warning("database_away", reason=reason)
        if self._since is None:
            self._since = time.monotonic()
        self.is_over = False
