"""Writes down what happened: many results in one transaction, none ever dropped.

    put / lease / settle ──▶ pending ──every 20 ms or 500 results──▶ one transaction ──▶ batches recorded

The database may be slow or away: results then wait here, and as they count as deliveries in memory the reader stops
reading.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import structlog

from webhookd.engine.given_up import GivenUp
from webhookd.errors import Moved, OtherPlace, SchemaMismatch, StoreRefused, StoreUnavailable
from webhookd.model import Batch, Delivered, Delivery, Ended, Result, Retry, Unwanted, Window
from webhookd.tasks import Setbacks, wait_for

FLUSH_RESULTS = 500
FLUSH_MOST = 1_000  # results in one transaction: more would hold up the loop while they are put together
FLUSH_SECONDS = 0.02  # what a kill -9 resends; shorter costs a transaction for a handful of results
RETRY_FIRST, RETRY_MOST = 0.1, 2.0
LAST_TRIES = 10  # of one thing that cannot be written for an unknown reason: about 15 s
ENDING = (Moved, OtherPlace, SchemaMismatch)  # what ends a daemon; a schema that a migration mends is waited for before
TOLD_SECONDS = 60.0  # between two lines about attempts without a row, of which there may be thousands a second
REFUSED = "internal"  # the error of an attempt whose own words are refused

log = structlog.get_logger("webhookd.recorder")


class Results(Protocol):
    """What the recorder needs of the store."""

    async def record(
        self,
        owner: int,
        results: Sequence[Result],
        leases: Sequence[tuple[Delivery, float]],
        done: Sequence[Batch | Window],
    ) -> None:
        """Write all of it, or nothing and raise StoreUnavailable or StoreRefused."""

    async def set_aside(self, event_id: int, why: str) -> None:
        """Show that an event, by its number, cannot be seen through, and why."""


class Part(NamedTuple):
    """What is written at once. The ends of batches go last: a batch is done when all of its results are written."""

    results: Sequence[Result]
    leases: Sequence[tuple[Delivery, float]]
    done: Sequence[Batch | Window]

    @property
    def size(self) -> int:
        """So many things, each of which may be what is refused."""
        return len(self.results) + len(self.leases) + len(self.done)

    def halves(self) -> tuple["Part", "Part"]:
        """The same in two, in the same order."""
        results = self.size // 2
        leases = max(results - len(self.results), 0)
        done = max(leases - len(self.leases), 0)
        return (
            Part(self.results[:results], self.leases[:leases], self.done[:done]),
            Part(self.results[results:], self.leases[leases:], self.done[done:]),
        )


class Recorder:
    """Takes results without ever waiting, and writes them in batches."""

    def __init__(
        self,
        results: Results,
        owner: int,
        *,
        flush_seconds: float = FLUSH_SECONDS,
        is_discarded: Callable[[Delivery], bool] = lambda delivery: False,
        on_recorded: Callable[[Result], None] = lambda result: None,
    ) -> None:
        self._store = results
        self._is_discarded = is_discarded
        self._on_recorded = on_recorded
        self._owner = owner
        self._flush_seconds = flush_seconds
        self._results: list[Result] = []
        self._leases: dict[Delivery, float] = {}
        self._done: list[Batch | Window] = []
        self._writing: Sequence[Result] = ()  # of the flush that is under way
        self._given_up = GivenUp()
        self._wake = asyncio.Event()
        self._full = asyncio.Event()
        self.flushed = asyncio.Event()  # set by each flush; whoever waits clears it
        self._stopping = False
        self.stuck = False  # the database does not take what we have, so nothing more should be claimed
        self.setbacks = Setbacks("recorder", RETRY_FIRST, RETRY_MOST)
        self._refused = ""  # why something is not taken, while that may pass
        self._unlogged = 0  # attempts without a row, of which nobody has been told
        self._told_at = float("-inf")
        self.put_so_far = self.written = 0  # results: each has a number, and all up to `written` are in the database
        self.totals = {"delivered": 0, "failed": 0, "exhausted": 0, "rejected": 0, "spilled": 0}

    @property
    def problem(self) -> str:
        """Why results wait, or attempts have no row, or nothing."""
        if sentence := self.setbacks.sentence or self._refused:
            return sentence
        is_fresh = time.monotonic() < self._told_at + TOLD_SECONDS * 2
        return "the table webhookd.attempt refuses attempts, so they have no row: see the log" if is_fresh else ""

    @property
    def pending(self) -> int:
        """Results that are not in the database yet."""
        return len(self._results) + len(self._writing)

    def unwritten(self) -> set[tuple[int, int, int]]:
        """Event, endpoint, and attempts made before, of the attempts that are not in the database yet.

        Of attempts alone: what was only put off is in nobody's hands, and its row may be claimed at once.
        """
        results = (*self._writing, *self._results)
        return {(d.event.id, d.endpoint.id, d.attempts) for d, attempt, _ in results if attempt is not None}

    def put(self, result: Result) -> None:
        """Record `result` with the next flush; what is discarded is not tried again."""
        if isinstance(result.outcome, Unwanted):
            if result.delivery.attempts or result.delivery.replay:  # which would look as if it was to be tried again
                result = result._replace(outcome=Ended("rejected", "unwanted"))
        elif not isinstance(result.outcome, Delivered) and self._is_discarded(result.delivery):
            result = result._replace(outcome=Ended("rejected", "discarded"))
        self._leases.pop(result.delivery, None)  # the result itself says what becomes of it
        self._results.append(result)
        self.put_so_far += 1
        if len(self._results) >= FLUSH_RESULTS:
            self._full.set()
        self._wake.set()

    def lease(self, delivery: Delivery, seconds: float) -> None:
        """Give a delivery in flight a row of the backlog, so that its batch need not wait for it."""
        self._leases[delivery] = seconds
        self._wake.set()

    def settle(self, batch: Batch | Window) -> None:
        """One thing less keeps `batch` open; with the last one its end is recorded with the next flush."""
        part: Batch | Window | None = batch
        while part is not None:
            part.open -= 1
            if part.open:
                return
            self._done.append(part)
            self._wake.set()
            part = part.next if isinstance(part, Window) else None  # which waited for this one

    def stop(self) -> None:
        """Write what there is and return from run."""
        self._stopping = True
        self._wake.set()
        self._full.set()

    async def run(self) -> None:
        """Write until stopped and empty."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._stopping:
                await wait_for(self._full, self._flush_seconds)
            self._full.clear()
            await self._flush()
            if self._stopping and not (self._results or self._leases or self._done):
                return self._given_up.close()

    async def _flush(self) -> None:
        results, self._results = self._results[:FLUSH_MOST], self._results[FLUSH_MOST:]
        left = bool(self._results)
        leases, self._leases = list(self._leases.items()), {}
        self._writing = results
        # From here on a leased delivery belongs to its row; whether a result has one, the store sees by its batch.
        for delivery, _ in leases:
            if delivery.batch is not None:
                self.settle(delivery.batch)
                delivery.batch = None
        for result in results:
            if result.delivery.batch is not None:
                self.settle(result.delivery.batch)
        done, self._done = self._done, []
        self._wake.clear()  # everything until here is in this flush, or in the next
        if self._results:
            self._wake.set()
            self._full.set()
        if results or leases or done:
            await self._write(Part(results, leases, done))
        if not left:  # or rows would be claimed again whose results wait here
            self.stuck = False
        for batch in done:
            batch.recorded = True
        for result in results:
            self._count(result)
            self._on_recorded(result)
        self._writing = ()
        self.written += len(results)
        self.flushed.set()

    async def _write(self, part: Part) -> None:
        """Write all of it. What is refused, for whatever reason, is found by halving, so that nothing else waits."""
        try:
            await self._insist(lambda: self._store.record(self._owner, *part), part)
        except StoreRefused as error:
            await self._halve(part, error)
        except ENDING:
            raise
        except Exception as error:
            log.exception("record_broke", results=len(part.results))
            await self._halve(part, error)

    async def _halve(self, part: Part, error: Exception) -> None:
        if part.size > 1:
            first, second = part.halves()
            await self._write(first)
            await self._write(second)
        elif part.results and part.results[0].attempt is not None:
            await self._write_less(part, part.results[0], error)
        else:
            await self._give_up(part, error)

    async def _write_less(self, part: Part, result: Result, error: Exception) -> None:
        """Write what becomes of a delivery, with as much of its attempt as is taken.

        Without the words of its receiver, and where the owner of the table has a rule that no attempt passes, without
        its row: the log of attempts is no reason to owe a delivery no longer, or to hold up others.
        """
        for less in (_without_its_words(result), result._replace(attempt=None)):
            try:
                await self._insist(partial(self._store.record, self._owner, [less], part.leases, part.done), part)
            except ENDING:
                raise
            except Exception as again:
                error = again
            else:
                return self._tell_refused(less, error)
            if not isinstance(error, StoreRefused):
                break  # nobody knows why, so it may pass
        await self._give_up(part, error)

    def _tell_refused(self, written: Result, error: Exception) -> None:
        event_id = written.delivery.event.event_id
        if written.attempt is not None:
            log.error("result_refused", event_id=event_id, reason=type(error).__name__)
            return
        self._unlogged += 1
        now = time.monotonic()
        if now >= self._told_at + TOLD_SECONDS:
            self._told_at = now
            log.error("attempts_refused", attempts=self._unlogged, event_id=event_id, reason=str(error))
            self._unlogged = 0

    async def _give_up(self, part: Part, error: Exception) -> None:
        """Say of an event that what became of it cannot be written; the end of a batch is left to who adopts it.

        Not at once where nobody knows why, since that may pass.
        """
        delay = RETRY_FIRST
        for _ in range(0 if isinstance(error, StoreRefused) and not error.passes else LAST_TRIES):
            self.stuck = True
            self._refused = f"its recorder waits: what became of a delivery is refused: {type(error).__name__}"
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MOST)
            try:
                await self._insist(lambda: self._store.record(self._owner, *part), part)
            except ENDING:
                raise
            except Exception as again:
                error = again
            else:
                self._refused = ""
                return
        self._refused = ""
        why = f"{type(error).__name__}: {error}"
        for delivery in (*(result.delivery for result in part.results), *(delivery for delivery, _ in part.leases)):
            event = delivery.event
            log.error("not_recorded", event_id=event.event_id, endpoint=delivery.endpoint.label, reason=why)
            try:
                await self._insist(partial(self._store.set_aside, event.id, f"not recorded: {why}"), part)
            except ENDING:
                raise
            except Exception:
                log.exception("not_set_aside", event_id=event.event_id)
        for batch in part.done:
            log.error("not_ended", batch=batch.batch if isinstance(batch, Window) else batch.id, reason=why)

    async def _insist(self, write: Callable[[], Awaitable[None]], part: Part) -> None:
        while True:
            try:
                await write()
            except (StoreUnavailable, SchemaMismatch) as error:
                pause = self.setbacks.met(error)
                if self.setbacks.is_worth_a_line:
                    log.warning("record_waits", results=len(part.results), seconds=round(pause, 1), reason=str(error))
                self.stuck = True
                await asyncio.sleep(pause)
            else:
                return self.setbacks.over()

    def _count(self, result: Result) -> None:
        outcome = result.outcome
        if isinstance(outcome, Delivered):
            self.totals["delivered"] += 1
        elif isinstance(outcome, Retry):
            self.totals["failed"] += 1
        elif isinstance(outcome, Ended):
            self.totals[outcome.state] += 1
            delivery, attempt = result.delivery, result.attempt
            why = outcome.reason if attempt is None or attempt.error is None else attempt.error
            self._given_up.add(outcome.state, delivery.endpoint.label, delivery.event.event_id, why)
        elif not isinstance(outcome, Unwanted):
            self.totals["spilled"] += 1


def _without_its_words(result: Result) -> Result:
    """The same result, without anything a receiver could have put into it."""
    attempt = result.attempt
    if attempt is None:
        return result
    return result._replace(attempt=attempt._replace(ok=attempt.ok, error=REFUSED, response=None, code=None))
