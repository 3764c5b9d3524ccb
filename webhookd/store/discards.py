"""Discards: people say what nobody wants any longer; daemons ask, and end what of it is in the backlog."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from webhookd.policy.discards import Discard, Discards
from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

Mark = tuple[int, int]


class Wanted(NamedTuple):
    """What to discard; None is any, and an `until` that is to come is now."""

    type: str | None  # a pattern, as endpoints have
    tenant: str | None
    endpoint_id: int | None
    since: datetime | None
    until: datetime | None


class Count(NamedTuple):
    """What there is: events, those that no daemon is through with, deliveries of the backlog, and before cursors.

    The last are of the first 20,000 events; `parked_more` when there are more.
    """

    events: int
    waiting: int
    owed: int
    parked: int
    parked_more: bool


class Discarded(NamedTuple):
    """Who discarded an event, and for whom; None for all."""

    at: datetime
    by: str
    endpoint: str | None


class DiscardStore:
    """What daemons and people ask."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def mark(self) -> tuple[Mark, bool]:
        """Something that changes when they do, and whether the backlog is to be looked through for one."""
        newest, many, looked_for = await self._database.fetch_row(QUERIES["discards_mark"])
        return (newest, many), looked_for > 0

    async def all(self) -> Discards:
        """All there are."""
        rows = await self._database.fetch(QUERIES["discards"])
        return Discards(Discard._make(tuple(row)[:-1]) for row in rows)

    async def to_look_for(self) -> Sequence[int]:
        """Those that the backlog is to be looked through for."""
        return [row[0] for row in await self._database.fetch(QUERIES["discards"]) if not row[-1]]

    async def step(self, discard: int) -> bool:
        """End what the next rows of the backlog have of one; True when there may be more at once."""
        many, more = await self._database.fetch_row(QUERIES["discard_step"], discard)
        self._database.tally.deliveries["discarded"] += many
        return bool(more)

    async def discard(self, wanted: Wanted, who: str) -> int:
        """Say that nobody wants these any longer; the number of that."""
        return int((await self._database.fetch_row(QUERIES["discard"], *wanted, who))[0])

    async def count(self, wanted: Wanted) -> Count:
        """What that would be."""
        return Count._make(await self._database.fetch_row(QUERIES["discard_count"], *wanted))

    async def progress(self, discard: int) -> tuple[int, bool]:
        """How many rows of the backlog one has ended, and whether it has been looked through."""
        row = await self._database.fetch_row(QUERIES["discard_progress"], discard)
        return int(row[0]), bool(row[1])

    async def of(self, event: int) -> list[Discarded]:
        """Who discarded an event of the outbox."""
        return [Discarded._make(row) for row in await self._database.fetch(QUERIES["discards_of"], event)]
