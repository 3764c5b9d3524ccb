"""Replays: a part of the log for an endpoint once more. People begin them; daemons take their next pieces."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Final, Literal, NamedTuple

from webhookd.store.database import Database
from webhookd.store.statements import QUERIES
from webhookd.store.tenants import Asking

# `failed` is what was exhausted or rejected.
State = Literal["exhausted", "rejected", "discarded", "missed", "all", "failed", "delivered"]


class Wanted(NamedTuple):
    """What of the log: deliveries that are in a state, of a type or pattern, inserted in a span."""

    state: State
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Narrowed(NamedTuple):
    """Of that only some: of these types, with labels that pass, last answered with a code of a class."""

    types: Sequence[str] | None = None
    labels: bytes | None = None  # JSON: label -> values, one of which is enough
    code_class: int | None = None  # 400 for 400 to 499, 0 for no answer


ALL_OF_IT: Final = Narrowed()


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


class Task(NamedTuple):
    """A replay, as those see it who have begun it; `query` is JSON."""

    id: int
    tenant: str
    endpoint: str
    query: bytes
    state: str  # running | done | cancelled
    created_at: datetime
    updated_at: datetime
    sent: int
    gone: int
    part: float


class Replayed(NamedTuple):
    """A replay that an event was of, for whom, and who wanted it."""

    id: int
    at: datetime
    by: str
    endpoint: str


async def begin(
    asking: Asking, endpoint_ids: Sequence[int], wanted: Wanted, rate: float, who: str, narrowed: Narrowed = ALL_OF_IT
) -> dict[int, int]:
    """Begin one for each of these endpoints, but where one runs: endpoint id -> replay."""
    rows = await asking.fetch(QUERIES["replay_begin"], list(endpoint_ids), *wanted, rate, who, *narrowed)
    return {row[1]: row[0] for row in rows}


async def task(asking: Asking, replay: int) -> Task | None:
    """The one with this number."""
    rows = await asking.fetch(QUERIES["replay_tasks"], None, replay, None, False, None, None, 1)
    return Task._make(rows[0]) if rows else None


async def tasks(
    asking: Asking,
    limit: int,
    after: int | None,
    *,
    back: bool = False,
    states: Sequence[str] | None = None,
    of: Sequence[State] | None = None,
) -> list[Task]:
    """The newest first, or the oldest with `back`, behind a number; one more than asked for where there are more."""
    rows = await asking.fetch(QUERIES["replay_tasks"], None, None, after, back, states, of, limit + 1)
    return [Task._make(row) for row in rows]


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
        return await begin(self._database, endpoint_ids, wanted, rate, who)

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
