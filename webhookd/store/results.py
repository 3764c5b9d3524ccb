"""What the recorder writes: one transaction a flush, exactly once also when the reply to COMMIT is lost."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import asyncpg

from webhookd.errors import StoreConflict, StoreRefused, StoreUnavailable
from webhookd.model import Batch, Delivered, Delivery, Ended, Held, Postponed, Result, Retry, Unwanted, Window
from webhookd.policy.matching import OWN_TYPES
from webhookd.store.database import COMMITTED, CONFLICTS_MOST, Database
from webhookd.store.statements import QUERIES

ATTEMPT_COLUMNS = ("at", "outbox_id", "endpoint_id", "attempt", "ok", "code", "ms", "error", "response", "trigger")
ASK_AGAIN = 0.5  # seconds between two questions for the fate of a commit
NEVER = float("inf")


class Results:
    """Writes attempts, backlog rows and ends of batches on behalf of one daemon."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(
        self,
        owner: int,
        results: Sequence[Result],
        leases: Sequence[tuple[Delivery, float]],
        done: Sequence[Batch | Window],
    ) -> None:
        """Write all of it, or nothing and raise: StoreUnavailable when it may work later, StoreRefused for a bad value.

        `leases` are deliveries in flight, with the seconds for which nobody else may start them. A delivery whose
        batch is None has a row of the backlog. Attempts are facts and always written; the state of the backlog and
        of batches is fenced.
        """
        flush = _Flush(owner, results, leases, done)
        for _ in range(CONFLICTS_MOST):
            with suppress(StoreConflict):
                return await self._write(flush)
        return await self._write(flush)

    async def _write(self, flush: "_Flush") -> None:
        xact_id: str | None = None
        try:
            async with self._database.connection() as connection:
                transaction = connection.transaction(**COMMITTED)
                await transaction.start()
                try:
                    await self._database.check_place(connection)
                    with _refused_by_the_owner():
                        xact = await flush.write(connection)
                except BaseException:
                    with suppress(asyncpg.InterfaceError, asyncpg.PostgresError, OSError):  # it may be gone
                        await transaction.rollback()
                    raise
                xact_id = xact  # from here on only Postgres knows
                await transaction.commit()
        except StoreUnavailable:
            if xact_id is None or not await self._committed(xact_id):
                raise

    async def set_aside(self, event_id: int, why: str) -> None:
        """Show that an event, by its number, cannot be seen through, and why; no delivery of it is owed any longer."""
        await self._database.fetch(QUERIES["set_aside"], [event_id], [why.replace("\0", "")])

    async def _committed(self, xact_id: str) -> bool:
        """What became of a commit whose reply was lost; asks until Postgres answers."""
        while True:
            try:
                status = (await self._database.fetch_row(QUERIES["xact_status"], xact_id))[0]
            except StoreUnavailable:
                status = "in progress"
            if status != "in progress":
                return bool(status == "committed")
            await asyncio.sleep(ASK_AGAIN)


@contextmanager
def _refused_by_the_owner() -> Iterator[None]:
    """Raise StoreRefused for what a trigger raises that the owner has put on a table: nothing of ours does."""
    try:
        yield
    except asyncpg.PLPGSQLError as error:
        raise StoreRefused(f"a trigger refuses it: {str(error).splitlines()[0]}", passes=True) from error


def _state(outcome: Retry | Postponed | Held | Ended) -> tuple[str, float]:
    """The state that a row has then, and the seconds until it is due."""
    if isinstance(outcome, Ended):
        return outcome.state, 0.0
    return ("held", 0.0) if isinstance(outcome, Held) else ("retry", outcome.delay)


class _Flush:
    """One flush, turned into the arguments of its statements."""

    def __init__(
        self,
        owner: int,
        results: Sequence[Result],
        leases: Sequence[tuple[Delivery, float]],
        done: Sequence[Batch | Window],
    ) -> None:
        self._owner = owner
        self._batches = sorted((b.id, b.nonce, b.claims) for b in done if isinstance(b, Batch))
        # Of the windows of a cursor, which end in their order, the last.
        windows = [w for w in done if isinstance(w, Window)]
        cursors = {(w.endpoint_id, w.from_batch): (w.epoch, w.batch, w.pos) for w in windows}
        self._cursors = [(*key, *place) for key, place in sorted(cursors.items())]
        self._attempts: list[tuple[object, ...]] = []
        self._deletes: list[tuple[int, int]] = []
        self._inserts: list[tuple[object, ...]] = [
            (
                d.endpoint.id,
                d.event.id,
                d.event.created_at,
                0,
                seconds,
                "retry",
                None,
                None,
                d.event.ordering_key,
                d.clock_from,
                d.asked,
                owner,
            )
            for d, seconds in leases
        ]
        self._updates: list[tuple[object, ...]] = []
        self._exhausted: list[tuple[object, ...]] = []
        for result in results:
            self._add(result)

    def _add(self, result: Result) -> None:
        delivery, attempt, outcome = result
        event_id, endpoint_id = delivery.event.id, delivery.endpoint.id
        if attempt is not None:
            at, number, ok, code, ms, error, response = attempt
            moment, trigger = datetime.fromtimestamp(at, UTC), delivery.trigger
            self._attempts.append((moment, event_id, endpoint_id, number, ok, code, ms, error, response, trigger))
        has_row = delivery.batch is None
        if isinstance(outcome, (Delivered, Unwanted)):
            if has_row:
                self._deletes.append((endpoint_id, event_id))
            return
        state, delay = _state(outcome)
        made = int(attempt is not None or isinstance(outcome, Retry))  # an attempt may have been refused its row
        asked = delivery.asked + (isinstance(outcome, Retry) and outcome.asked)
        if state == "exhausted" and not delivery.event.type.startswith(OWN_TYPES):
            last = None if attempt is None else attempt.error
            event = delivery.event
            self._exhausted.append((endpoint_id, event_id, event.event_id, event.type, delivery.attempts + made, last))
        if state == "exhausted" and delivery.holds:
            state, delay = "held", NEVER
        code, error = (None, None) if attempt is None else (attempt.code, attempt.error)
        if isinstance(outcome, Ended) and (attempt is None or state == "rejected"):
            code, error = None, outcome.reason  # whatever was answered
        elif isinstance(outcome, Postponed):
            error = outcome.why
        if has_row:
            fence = delivery.attempts, made
            rest = delay, state, code, error, asked, delivery.deaths, delivery.replay
            self._updates.append((endpoint_id, event_id, *fence, *rest))
        else:
            self._inserts.append(
                (
                    endpoint_id,
                    event_id,
                    delivery.event.created_at,
                    delivery.attempts + made,
                    delay,
                    state,
                    code,
                    error,
                    delivery.event.ordering_key,
                    delivery.clock_from,
                    asked,
                    None,
                )
            )

    async def write(self, connection: Any) -> str:
        """Write it inside the caller's transaction, whose id is returned."""
        if self._attempts:
            await connection.copy_records_to_table(
                "attempt", schema_name="webhookd", columns=ATTEMPT_COLUMNS, records=self._attempts
            )
        for name, rows in (
            ("backlog_delete", sorted(self._deletes)),
            ("backlog_insert", self._inserts),
            ("backlog_update", self._updates),
            ("tell_exhausted", self._exhausted),
        ):
            if rows:
                rows.sort(key=lambda row: row[:2])
                await connection.execute(QUERIES[name], *map(list, zip(*rows, strict=True)))
        for name, ends in (("batch_done", self._batches), ("cursors", self._cursors)):
            if ends:
                await connection.execute(QUERIES[name], *map(list, zip(*ends, strict=True)), self._owner)
        xact_id: str = await connection.fetchval(QUERIES["xact_id"])
        return xact_id
