"""What is owed later."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from webhookd.sql import QUERIES
from webhookd.store.database import Database

SLACK = 60.0  # seconds: more than ever passes between the question what is owed and the claim


class Claimed(NamedTuple):
    """A row of the backlog that is leased to us."""

    event_id: int  # outbox.id
    endpoint_id: int
    attempts: int
    event_at: datetime  # outbox.created_at
    clock_from: float
    asked: int


class Backlog:
    """What the retrier asks of the backlog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def owing(self) -> dict[int, float]:
        """Endpoint id -> seconds until its first delivery is due; negative when it is overdue."""
        rows = await self._database.fetch(QUERIES["owing"])
        return dict(rows)  # type: ignore[arg-type]  # a Record of two columns is a pair

    async def claim(self, wanted: Sequence[tuple[int, int, float, float]]) -> list[Claimed]:
        """Lease what is due: `wanted` are (endpoint id, most rows, seconds of the lease, seconds it is overdue)."""
        ids, rooms, leases, overdue = zip(*wanted, strict=True)
        since = [seconds + SLACK for seconds in overdue]
        rows = await self._database.fetch(QUERIES["claim"], ids, rooms, leases, since)
        return [Claimed._make(row) for row in rows]
