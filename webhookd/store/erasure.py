"""Erasing what events say."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import asyncpg

from webhookd.errors import StoreUnavailable
from webhookd.store.database import Database
from webhookd.store.migrations import check_schema
from webhookd.store.statements import QUERIES


class Erased(NamedTuple):
    """So many events, rows of the backlog, and answers of receivers."""

    events: int = 0
    deliveries: int = 0
    responses: int = 0

    def __add__(self, other: object) -> "Erased":
        if not isinstance(other, Erased):
            return NotImplemented
        return Erased(*(mine + its for mine, its in zip(self, other, strict=True)))


async def pieces(
    database: Database, who: str, *, tenant: str | None = None, event_id: str | None = None, dry_run: bool = False
) -> AsyncIterator[Erased]:
    """Erase what the events of a tenant say, or one event's, a piece of the log at a time; what each piece had.

    StoreUnavailable for a role that is not the owner's. Doing it again finds nothing, and harms nothing.
    """
    after: int | None = 0
    while after is not None:
        try:
            async with database.transaction() as connection:
                await check_schema(connection)
                if not dry_run and await connection.fetch(QUERIES["erase_aliases"], tenant, event_id):
                    continue  # until none is left
                row = (await connection.fetch(QUERIES["erase"], tenant, event_id, after, dry_run, who))[0]
        except StoreUnavailable as error:
            if isinstance(error.__cause__, asyncpg.InsufficientPrivilegeError):
                raise StoreUnavailable("This role may not erase: be the owner of the schema.") from error
            raise
        after = row["next"]
        yield Erased(row["events"], row["deliveries"], row["responses"])
