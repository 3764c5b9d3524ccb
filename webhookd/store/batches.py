"""The log as the daemon reads it: cut, adopt, heads and payloads.

An event that cannot be read is found by halving, and gets a row in `webhookd.unreadable`; all others go on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from webhookd.errors import StoreDamaged, StoreRefused, StoreUnavailable
from webhookd.model import Batch, Event
from webhookd.policy.cutting import Cut, Share
from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

EVENTS_PER_BATCH = 500
# An attempt is stamped with the clock of the database as the daemon knows it, so it may seem to lie before its event.
CLOCK_SLACK = timedelta(minutes=1)
SURE_AFTER: Final = 0.1  # seconds after which is read once more what failed as what passes may fail
TOLD: Final = 10  # of those that are found in one reading; `webhookd.unreadable` has all
UNREADABLE: Final = "event_unreadable"  # why a delivery of it ends

T = TypeVar("T")

log = structlog.get_logger("webhookd.batches")


class Content(NamedTuple):
    """What an event says, with all of its metadata; and what whoever made it by the API calls it."""

    payload: bytes
    metadata: bytes | None
    deliver_after: datetime | None
    alias: str | None


class Batches:
    """What the reader and the dispatcher ask of the log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def cut(self, owner: int, share: Share) -> Cut:
        """New batches of newly committed and newly due events, and of surplus ones, owned by `owner`.

        Without any, nothing is new, or another has the log at this moment: then there may be more.
        """
        most, read, surplus, full, busy, after = share
        arguments = most, EVENTS_PER_BATCH, owner, surplus, read, full, busy, after
        try:
            rows = await self._database.fetch(QUERIES["cut"], *arguments)
        except StoreRefused as error:  # another timeline gave the same batch id out; the next cut sees it
            raise StoreUnavailable(str(error)) from error
        batches = sorted((_batch(tuple(row)[:-2]) for row in rows if row[0] is not None), key=lambda batch: batch.id)
        self._database.tally.events_read += sum(len(batch.event_ids) for batch in batches)
        drawn = next((row["o_after"] for row in rows if row["o_after"] is not None), None)
        return Cut(batches, any(row["o_more"] for row in rows), drawn)

    async def adopt(
        self, owner: int, low: int, mine: Iterable[int], *, steady_until: float, dead_after: float, most: int
    ) -> list[Batch]:
        """Batches after `low` that nobody handles, now owned by `owner`; `mine` are those it knows it has.

        Batches of daemons that look dead are taken only until `steady_until`, on the database's clock.
        """
        rows = await self._database.fetch(QUERIES["adopt"], low, owner, list(mine), steady_until, dead_after, most)
        self._database.tally.rescues += len(rows)
        return sorted((_batch(row[:-1], left_by=row[-1]) for row in map(tuple, rows)), key=lambda batch: batch.id)

    async def known(self, batch: Batch) -> set[tuple[int, int]]:
        """(event, endpoint) pairs of an adopted batch that are settled: delivered, or owed by the backlog."""
        rows = await self._database.fetch(QUERIES["known"], batch.event_ids, before(batch.lo))
        return {(row[0], row[1]) for row in rows}

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime, along: int = -1) -> list[Event]:
        """The events in the order of their ids, but those that cannot be read.

        Payloads of up to `along` bytes come along with them.
        """

        async def read(some: Sequence[int]) -> list[Event]:
            found = [Event._make(row) for row in await self._database.fetch(QUERIES["heads"], some, lo, hi, along)]
            if any(event.created_at.tzinfo is None for event in found):  # which is how asyncpg gives `infinity`
                raise StoreRefused("its created_at is infinite")
            return found

        parts, _ = await self._halved(read, ids)
        return sorted((event for part in parts for event in part), key=lambda event: event.id)

    async def payloads(self, events: Sequence[Event], most_bytes: int) -> dict[int, bytes | str]:
        """Payload texts by event id, or the reason why there is none; nothing for an event that is gone."""
        lo = min(event.created_at for event in events)
        hi = max(event.created_at for event in events)

        async def read(ids: Sequence[int]) -> Sequence[Any]:
            return await self._database.fetch(QUERIES["payloads"], ids, lo, hi, most_bytes)

        parts, unreadable = await self._halved(read, [event.id for event in events])
        found: dict[int, bytes | str] = dict.fromkeys(unreadable, UNREADABLE)
        for part in parts:
            found.update((id_, "payload_too_large" if content is None else content) for id_, content in part)
        return found

    async def _halved(
        self, read: Callable[[Sequence[int]], Awaitable[T]], ids: Sequence[int]
    ) -> tuple[list[T], Iterable[int]]:
        """What `read` gives of these events, in parts, and those of them that cannot be read, which are set aside.

        StoreDamaged when the server can read none of them: then it may be no fault of any event.
        """
        try:
            return [await read(ids)], ()
        except (StoreRefused, StoreDamaged) as error:
            if error.passes:
                await asyncio.sleep(SURE_AFTER)
        parts, unreadable, unsure = await _apart(read, ids)
        for id_ in unsure:
            try:
                parts.append(await read([id_]))
            except StoreRefused as error:
                unreadable[id_] = str(error)
            except StoreDamaged as error:
                if not parts:
                    raise
                unreadable[id_] = str(error)
        if unreadable:
            await self.set_aside(unreadable)
        return parts, unreadable

    async def set_aside(self, unreadable: Mapping[int, str]) -> None:
        """Show that these events, by their numbers, cannot be seen through, and why; nobody is owed them any longer."""
        new = await self._database.fetch(QUERIES["set_aside"], list(unreadable), list(unreadable.values()))
        self._database.tally.unreadable_events += len(new)
        for (id_,) in new[:TOLD]:
            log.error("event_unreadable", id=id_, reason=unreadable[id_], others=len(new) - 1)

    async def metadata(self, events: Sequence[Event]) -> dict[int, bytes]:
        """Metadata texts by event id; nothing for an event that is gone, or whose metadata cannot be read."""
        lo = min(event.created_at for event in events)
        hi = max(event.created_at for event in events)

        async def read(ids: Sequence[int]) -> Sequence[Any]:
            return await self._database.fetch(QUERIES["metadata"], ids, lo, hi)

        parts, _ = await self._halved(read, [event.id for event in events])
        return {id_: text for part in parts for id_, text in part}

    async def contents(self, events: Sequence[Event], most_bytes: int) -> dict[int, Content]:
        """What these say, by event id; nothing for one that is gone, is larger than that, or cannot be read."""
        lo = min(event.created_at for event in events)
        hi = max(event.created_at for event in events)

        async def read(ids: Sequence[int]) -> Sequence[Any]:
            return await self._database.fetch(QUERIES["contents"], ids, lo, hi, most_bytes)

        parts, _ = await self._halved(read, [event.id for event in events])
        return {row[0]: Content(*row[1:]) for part in parts for row in part}

    async def whole(self, event: Event) -> Event:
        """The event with the metadata that `heads` has left out."""
        return event._replace(metadata=(await self.metadata([event])).get(event.id), unread=0)

    async def give_back(self, owner: int, ids: Sequence[int]) -> None:
        """Free the batches a stopping daemon did not finish."""
        await self._database.fetch(QUERIES["give_back"], owner, ids)


async def _apart(
    read: Callable[[Sequence[int]], Awaitable[T]], ids: Sequence[int]
) -> tuple[list[T], dict[int, str], list[int]]:
    """What `read` gives of these events, in parts; those that cannot be read, and why; those that may be another time.

    The last are to be read once more when all others are, by which time it may have passed.
    """
    parts: list[T] = []
    unreadable: dict[int, str] = {}
    unsure: list[int] = []
    rest = [ids]
    while rest:
        some = rest.pop()
        try:
            parts.append(await read(some))
        except (StoreRefused, StoreDamaged) as error:
            half = len(some) // 2
            if half:
                rest += some[half:], some[:half]
            elif error.passes:
                unsure.append(some[0])
            else:
                unreadable[some[0]] = str(error)
    return parts, unreadable, unsure


def _batch(row: Any, left_by: int | None = None) -> Batch:
    id_, nonce, cut_at, ids, lo, hi, claims, parked, config = row
    return Batch(id_, nonce, cut_at.timestamp(), ids, lo, hi, claims, parked, config, left_by=left_by)


def before(moment: datetime) -> datetime:
    """From when on attempts may be about an event of that moment."""
    try:
        return moment - CLOCK_SLACK
    except OverflowError:  # as early as a datetime can be, which stands for -infinity
        return moment
