"""What people have done: a row is written by what does it, in the same transaction."""

from datetime import datetime
from typing import NamedTuple

from webhookd.store.database import Database
from webhookd.store.statements import QUERIES


class Deed(NamedTuple):
    """A row of `webhookd.audit`; `before` and `after` are JSON."""

    id: int
    at: datetime
    who: str  # as the command knew them
    role: str  # as Postgres did
    action: str
    subject: str | None  # the label of an endpoint, the id of an event, a tenant, an environment
    tenant: str | None
    before: bytes | None
    after: bytes | None


class Wanted(NamedTuple):
    """Which part of it; `since` is in seconds."""

    limit: int
    before: int | None = None  # the number of a row
    action: str | None = None
    subject: str | None = None
    since: float | None = None


async def audited(database: Database, wanted: Wanted) -> list[Deed]:
    """What people have done, the newest first."""
    async with database.snapshot() as connection:
        limit, *filters = wanted
        return [Deed._make(row) for row in await connection.fetch(QUERIES["audited"], *filters, limit)]
