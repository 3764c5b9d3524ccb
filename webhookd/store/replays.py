"""Replays: a part of the log for an endpoint once more. People begin them; daemons take their next pieces."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

State = Literal["exhausted", "rejected", "discarded", "missed", "all"]


class Wanted(NamedTuple):
    """What of the log: deliveries that are in a state, of a type or pattern, inserted in a span."""

    state: State
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Replay(NamedTuple):
    """One, however far it is; `query` is JSON, `rate` in deliveries a second."""

    id: int
    endpoint_id: int
    endpoint: str
    query: bytes
    rate: float
    by: str
    created_at: datetime
    ended_at: datetime | None
    state: str  # running | done | cancelled
    sent: int  # deliveries that it has handed out
    gone: int  # events that it has passed over since retention has taken them
    part: float  # of its batches that it is through with
    owed: int  # of what it has handed out, what is to be tried still
    waits: str | None  # the state of its endpoint that keeps it waiting


class Replayed(NamedTuple):
    """A replay that an event was of, for whom, and who wanted it."""

    id: int
    at: datetime
    by: str
    endpoint: str


class Replays:
    """What daemons and people ask."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def running(self) -> list[tuple[int, int]]:
        """(replay, endpoint id) of those that are not through."""
        return [(row[0], row[1]) for row in await self._database.fetch(QUERIES["replays_running"])]

    async def step(self, replay: int) -> bool:
        """Have its next piece owed, as its rate allows; True when there may be more at once."""
        return bool((await self._database.fetch_row(QUERIES["replay_step"], replay))[1])

    async def begin(self, endpoint_ids: Sequence[int], wanted: Wanted, rate: float, who: str) -> dict[int, int]:
        """Begin one for each of these endpoints, but where one runs: endpoint id -> replay."""
        rows = await self._database.fetch(QUERIES["replay_begin"], list(endpoint_ids), *wanted, rate, who)
        return {row[1]: row[0] for row in rows}

    async def count(self, endpoint_id: int, wanted: Wanted) -> AsyncIterator[int]:
        """How many deliveries one would have, a piece of the log at a time."""
        place, end = await self._database.fetch_row(QUERIES["replay_bounds"], wanted.since)
        pos = 0
        while place < end:
            before = place, pos
            row = await self._database.fetch_row(QUERIES["replay_count"], endpoint_id, *wanted, end, place, pos)
            place, pos = row[0], row[1]
            yield row[2]
            if (place, pos) == before:  # what is behind is in hand, and nobody knows what becomes of it
                return

    async def all(self, replay: int | None = None) -> list[Replay]:
        """Replays, the newest first, or the one with this number."""
        return [Replay._make(row) for row in await self._database.fetch(QUERIES["replays"], replay)]

    async def of(self, event: int) -> list[Replayed]:
        """The replays that an event of the outbox was of."""
        return [Replayed._make(row) for row in await self._database.fetch(QUERIES["replays_of"], event)]

    async def cancel(self, replay: int, who: str) -> bool:
        """End one; False when it does not run."""
        return bool(await self._database.fetch(QUERIES["replay_cancel"], replay, who))
