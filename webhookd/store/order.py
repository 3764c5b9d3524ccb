"""The backlog of endpoints that keep an order: of each key a head, and the others held behind it."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from webhookd.store.backlog import Claimed
from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

RELEASED_MOST: Final = 10_000  # rows in one statement


class Found(NamedTuple):
    """Keys that have rows, and of these those without a head.

    `at` is where the cursor has come to in the log: a batch, and how many of its events are handed out. `last` is where
    that stands which is held, as far as it is known: a batch, and the place in it, from 1.
    """

    keys: Sequence[str]
    headless: Sequence[str]
    at: tuple[int, int]
    last: tuple[int, int]


class OrderStore:
    """What the daemon `owner` asks of the endpoints that it sends to."""

    def __init__(self, database: Database, owner: int) -> None:
        self._database = database
        self._owner = owner

    async def holding(self) -> set[int]:
        """The endpoints for which something is held."""
        return {row[0] for row in await self._database.fetch(QUERIES["holding"])}

    async def look(self, endpoint_id: int, *, by_key: bool, holds: bool) -> Found | None:
        """What the backlog has of an endpoint; what waits for somebody ends unless it `holds`.

        None while something is in hand that was cut before the order began, and where another sends to the endpoint.
        """
        arguments = endpoint_id, self._owner, by_key, holds
        row = await self._database.fetch_row(QUERIES["order_backlog"], *arguments)
        ready, at_batch, at_pos, last_batch, last_place, keys, headless = row
        if not ready:
            return None
        return Found(keys or [], headless or [], (at_batch, at_pos), (last_batch or 0, last_place or 0))

    async def promote(self, endpoint_id: int, keys: Sequence[str], *, by_key: bool) -> None:
        """Have the first that is held of each of these keys be due."""
        await self._database.fetch(QUERIES["promote_held"], endpoint_id, self._owner, by_key, keys)

    async def release(self, endpoint_id: int) -> None:
        """Let what is held for an endpoint that keeps no order any longer go on as any other; of some at a time."""
        await self._database.fetch(QUERIES["release_held"], endpoint_id, RELEASED_MOST)

    async def held(
        self, endpoint_id: int, keys: Sequence[str], most: int, *, by_key: bool
    ) -> list[tuple[str, Claimed]]:
        """Of each of these keys the first that are held, in order.

        Nothing of one that has a head or waits for somebody. They stay as they are, since there is one sender.
        """
        if by_key:
            rows = await self._database.fetch(QUERIES["held_rows"], endpoint_id, keys, most)
        else:
            rows = await self._database.fetch(QUERIES["held_rows_of_all"], endpoint_id, most)
        return [(row[0], Claimed._make(tuple(row)[1:])) for row in rows]

    async def owed(self, endpoint_id: int, keys: Sequence[str], *, by_key: bool) -> set[str]:
        """Those of these keys that have any row that is owed."""
        if by_key:
            rows = await self._database.fetch(QUERIES["keys_with_rows"], endpoint_id, keys)
        else:
            rows = await self._database.fetch(QUERIES["keys_with_rows_of_all"], endpoint_id)
        return {row[0] for row in rows}
