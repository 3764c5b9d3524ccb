"""Parked endpoints: who they are, where their cursors stand, and what those read."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from webhookd.policy.parking import Parked, Parking
from webhookd.store.batches import before
from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

AT_ONCE = 500  # rows


class Page(NamedTuple):
    """A batch as a cursor reads it."""

    id: int
    cut_at: float
    event_ids: Sequence[int]
    lo: datetime
    hi: datetime
    late: bool  # it was cut while something older was in no batch
    config: int = 0  # the version of the endpoints when it was read
    nonce: int = 0


class ParkingStore:
    """What the follower asks of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def parking(self) -> Parking:
        """What is parked now."""
        version, rows = -1, []
        async with self._database.transaction(readonly=True) as connection:
            # One snapshot, but thousands would stall the loop. asyncpg's own cursor leaves a name behind in a pooler.
            await connection.execute(f"DECLARE parked NO SCROLL CURSOR FOR {QUERIES['parked']}")
            while some := await connection.fetch(f"FETCH {AT_ONCE} FROM parked"):
                version = some[0][0]
                rows += [Parked._make(tuple(row)[1:]) for row in some if row[1] is not None]
        return Parking(version, rows)

    async def version(self) -> int:
        """How often that has changed."""
        return int((await self._database.fetch_row(QUERIES["parked_version"]))[0])

    async def park(self, breakers: dict[int, tuple[int, float]], why: str, owner: int) -> int:
        """Park these endpoints; each has failed so often and is left alone for so many seconds. How many were not."""
        fails = [fails for fails, _ in breakers.values()]
        waits = [wait for _, wait in breakers.values()]
        return len(await self._database.fetch(QUERIES["park"], list(breakers), why, owner, fails, waits))

    async def unpark(self, epochs: dict[int, int], owner: int) -> int:
        """Feed these endpoints from memory again, but for those that are ours no longer; how many."""
        return len(await self._database.fetch(QUERIES["unpark"], list(epochs), owner, list(epochs.values())))

    async def unpark_idle(self, endpoint_ids: Sequence[int]) -> None:
        """End the cursors of endpoints that are owed nothing new."""
        await self._database.fetch(QUERIES["unpark_idle"], endpoint_ids)

    async def disable(self, endpoint_id: int, why: str, since: float) -> bool:
        """Owe this endpoint nothing new; False when it is disabled already, or was enabled after `since`."""
        rows = await self._database.fetch(QUERIES["disable"], endpoint_id, why, since)
        return bool(rows and rows[0][0])

    async def disable_failing(self, endpoint_id: int, failures: int, seconds: float) -> bool:
        """The same, if so many of its attempts in a row have failed, the first of them so many seconds ago."""
        return bool((await self._database.fetch_row(QUERIES["disable_failing"], endpoint_id, failures, seconds))[0])

    async def pause(self, endpoint_ids: Sequence[int], who: str) -> list[int]:
        """Send nothing to these endpoints, and keep what arrives; those that were not paused before."""
        return [row[0] for row in await self._database.fetch(QUERIES["pause"], endpoint_ids, who)]

    async def resume(self, endpoint_ids: Sequence[int], who: str) -> list[int]:
        """Send again to these endpoints; those that were paused."""
        return [row[0] for row in await self._database.fetch(QUERIES["resume"], endpoint_ids, who)]

    async def enable(self, endpoint_ids: Sequence[int], who: str) -> list[int]:
        """Owe these endpoints what is new; those that were disabled."""
        return [row[0] for row in await self._database.fetch(QUERIES["enable"], endpoint_ids, who)]

    async def take(self, owner: int, endpoint_ids: Sequence[int], steady_until: float, dead_after: float) -> int:
        """Become the sender of those of these endpoints that have none; how many cursors that were."""
        row = await self._database.fetch_row(QUERIES["take_parked"], owner, endpoint_ids, steady_until, dead_after)
        return int(row[0])

    async def let_go_of(self, owner: int, endpoint_ids: Sequence[int]) -> None:
        """Free what we have of these endpoints."""
        await self._database.fetch(QUERIES["let_go_of"], owner, endpoint_ids)

    async def let_go(self, owner: int) -> None:
        """Free all that we have."""
        await self._database.fetch(QUERIES["let_go"], owner)

    async def breakers(self, breakers: dict[int, tuple[int, float]], owner: int) -> None:
        """Write how often they have failed, and for how many seconds they are left alone."""
        fails = [fails for fails, _ in breakers.values()]
        waits = [wait for _, wait in breakers.values()]
        await self._database.fetch(QUERIES["breakers"], list(breakers), fails, waits, owner)

    async def give_up(self, endpoints: Sequence[tuple[int, int, float]], owner: int) -> dict[int, int]:
        """End what is older than a moment and still behind endpoints that fail: (endpoint id, epoch, moment).

        How many ended of those that had such: rows, and ranges of the log that are missed, whatever is in them.
        """
        ids, epochs, befores = zip(*endpoints, strict=True)
        rows = await self._database.fetch(QUERIES["give_up"], ids, owner, epochs, befores)
        self._database.tally.deliveries["exhausted"] += sum(row[1] for row in rows)
        self._database.tally.missed_events += sum(row[3] for row in rows)
        return {row[0]: row[1] + row[2] for row in rows}

    async def forget(self) -> None:
        """Delete cursors that nobody needs any longer."""
        await self._database.fetch(QUERIES["forget_parked"])

    async def owing_little(self, endpoint_ids: Sequence[int], most: int) -> set[int]:
        """Those of these endpoints that have fewer than `most` deliveries in the backlog that are due."""
        return {row[0] for row in await self._database.fetch(QUERIES["owing_little"], endpoint_ids, most)}

    async def newest(self) -> int:
        """The last batch of the log."""
        return int((await self._database.fetch_row(QUERIES["newest_batch"]))[0])

    async def pages(self, first: int, most: int) -> list[Page]:
        """Batches from `first` on, in order."""
        rows = await self._database.fetch(QUERIES["batches_from"], first, most)
        return [Page(row[0], row[1].timestamp(), *tuple(row)[2:]) for row in rows]

    async def unread(self, tenant: str) -> tuple[int, int | None]:
        """The last batch, and the lowest number that events of the tenant may have which are known and in none."""
        newest, below = await self._database.fetch_row(QUERIES["unread"], tenant)
        return newest, below

    async def punctual(self, batch: int) -> int | None:
        """The first batch behind this one that was cut when nothing older was in none."""
        rows = await self._database.fetch(QUERIES["punctual"], batch)
        return rows[0][0] if rows else None

    async def by_number(
        self, first: int, last: int, place: int, after: int, below: int | None, most: int
    ) -> Page | None:
        """What these batches hold behind a number, and behind a place in the first, as if it were one batch."""
        row = await self._database.fetch_row(QUERIES["late_events"], first, last, after, below, place, most)
        return None if row[1] is None else Page(first, row[0].timestamp(), row[1], row[2], row[3], True, row[4])

    async def lower(self, first: int, last: int, number: int) -> Page | None:
        """Of the first of these batches that has events up to a number, these."""
        rows = await self._database.fetch(QUERIES["lower_numbers"], first, last, number)
        return Page(rows[0][0], rows[0][1].timestamp(), *tuple(rows[0])[2:]) if rows else None

    async def settled(self, pairs: Sequence[tuple[int, int]], lo: datetime) -> set[tuple[int, int]]:
        """Those of these (event, endpoint) pairs that were delivered or have a row; no event is older than `lo`."""
        events, endpoints = zip(*pairs, strict=True)
        rows = await self._database.fetch(QUERIES["settled"], events, endpoints, before(lo))
        return {(row[0], row[1]) for row in rows}
