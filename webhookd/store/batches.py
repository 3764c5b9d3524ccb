"""The log as the daemon reads it: cut, adopt, heads and payloads."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from webhookd.errors import StoreRefused, StoreUnavailable
from webhookd.model import Batch, Cut, Event, Share
from webhookd.sql import QUERIES
from webhookd.store.database import Database

EVENTS_PER_BATCH = 500
# An attempt is stamped with the clock of the database as the daemon knows it, so it may seem to lie before its event.
CLOCK_SLACK = timedelta(minutes=1)


class Batches:
    """What the reader and the dispatcher ask of the log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def cut(self, owner: int, share: Share) -> Cut:
        """New batches of newly committed and newly due events, and of surplus ones, owned by `owner`.

        Without any, nothing is new, or another daemon is cutting at this moment.
        """
        most, read, surplus, full, busy, after = share
        arguments = most, EVENTS_PER_BATCH, owner, surplus, read, full, busy, after
        try:
            rows = await self._database.fetch(QUERIES["cut"], *arguments)
        except StoreRefused as error:  # another timeline gave the same batch id out; the next cut sees it
            raise StoreUnavailable(str(error)) from error
        batches = sorted((_batch(tuple(row)[:-2]) for row in rows), key=lambda batch: batch.id)
        drawn = next((row["o_after"] for row in rows if row["o_after"] is not None), None)
        return Cut(batches, any(row["o_more"] for row in rows), drawn)

    async def adopt(
        self, owner: int, low: int, mine: Iterable[int], *, steady_until: float, dead_after: float, most: int
    ) -> list[Batch]:
        """Batches after `low` that nobody handles, now owned by `owner`; `mine` are those it knows it has.

        Batches of daemons that look dead are taken only until `steady_until`, on the database's clock.
        """
        rows = await self._database.fetch(QUERIES["adopt"], low, owner, list(mine), steady_until, dead_after, most)
        return sorted((_batch(row) for row in rows), key=lambda batch: batch.id)

    async def known(self, batch: Batch) -> set[tuple[int, int]]:
        """(event, endpoint) pairs of an adopted batch that are settled: delivered, or owed by the backlog."""
        rows = await self._database.fetch(QUERIES["known"], batch.event_ids, batch.lo - CLOCK_SLACK)
        return {(row[0], row[1]) for row in rows}

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime) -> list[Event]:
        """The events without their payloads, in the order of their ids."""
        rows = await self._database.fetch(QUERIES["heads"], ids, lo, hi)
        events = [Event._make(row) for row in rows]
        events.sort(key=lambda event: event.id)
        return events

    async def payloads(self, events: Sequence[Event], most_bytes: int) -> dict[int, bytes | None]:
        """Payload texts by event id; None for one above `most_bytes`, nothing for an event that is gone."""
        lo = min(event.created_at for event in events)
        hi = max(event.created_at for event in events)
        rows = await self._database.fetch(QUERIES["payloads"], [event.id for event in events], lo, hi, most_bytes)
        return dict(rows)  # type: ignore[arg-type]  # a Record of two columns is a pair

    async def give_back(self, owner: int, ids: Sequence[int]) -> None:
        """Free the batches a stopping daemon did not finish."""
        await self._database.fetch(QUERIES["give_back"], owner, ids)


def _batch(row: Any) -> Batch:
    id_, nonce, cut_at, ids, lo, hi, claims, parked = row
    return Batch(id_, nonce, cut_at.timestamp(), ids, lo, hi, claims, parked)
