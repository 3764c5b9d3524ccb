"""Sums of how attempts went: kept in memory, and written once their minute is over. A kill loses those of a minute."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from webhookd.errors import StoreUnavailable
from webhookd.model import Delivered, Ended, Result, Retry
from webhookd.policy.statistics import MINUTE, OUTCOMES, Row, Sums
from webhookd.tasks import Setbacks, wait_for

LATE_SECONDS: Final = 5.0  # after the end of a minute, for attempts that are recorded a little later
AT_ONCE: Final = 500  # rows of one INSERT; more would hold up the loop while they are put together
LAST_SECONDS, AGAIN_SECONDS = 2.0, 0.2  # for writing the last ones, once we stop; between two tries
DELIVERED, FAILED = OUTCOMES.index("delivered"), OUTCOMES.index("failed")

log = structlog.get_logger("webhookd.statistics")


class Store(Protocol):
    """Where they are written."""

    async def add(self, rows: Sequence[Row]) -> None:
        """Write these."""


class Statistics:
    """Sums up what is recorded."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sums = Sums()
        self._taken: Sequence[Row] = ()  # and not written yet
        self._stopped = asyncio.Event()
        self.setbacks = Setbacks("statistics")

    def add(self, result: Result) -> None:
        """One more of what was recorded; what was only put off is none, nor is what nobody wants any longer."""
        outcome, attempt = result.outcome, result.attempt
        if isinstance(outcome, Delivered):
            kind = DELIVERED
        elif isinstance(outcome, Retry):
            kind = FAILED
        elif isinstance(outcome, Ended) and outcome.reason != "discarded":
            kind = OUTCOMES.index(outcome.state)
        else:
            return
        if attempt is None:
            self._sums.add(time.time(), result.delivery.endpoint.id, kind, None)
        else:
            self._sums.add(attempt.at, result.delivery.endpoint.id, kind, attempt.ms)

    def stop(self) -> None:
        """Write all that there is, and return from run."""
        self._stopped.set()

    async def run(self) -> None:
        """Write what is over, each minute, until stopped; then the rest."""
        pause = _left()
        while not await wait_for(self._stopped, pause):
            try:
                await self._write(int((time.time() - LATE_SECONDS) // MINUTE))
            except Exception as error:
                pause = self.setbacks.met(error)
            else:
                self.setbacks.over()
                pause = _left()
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self._write_the_rest()
        except Exception as error:
            log.warning("statistics_lost", rows=len(self._taken) + len(self._sums), reason=str(error))

    async def _write_the_rest(self) -> None:
        while True:
            try:
                return await self._write(None)
            except StoreUnavailable:
                await asyncio.sleep(AGAIN_SECONDS)

    async def _write(self, before: int | None) -> None:
        """Write what there is of minutes before this one. What was not written is the first next time."""
        while rows := self._taken or self._sums.take(AT_ONCE, before):
            self._taken = rows
            await self._store.add(rows)
            self._taken = ()


def _left() -> float:
    """Seconds until a minute is over, and what is late of it has come."""
    return MINUTE - (time.time() - LATE_SECONDS) % MINUTE + 0.1
