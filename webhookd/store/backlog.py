"""What is owed later."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

ALONE_AFTER = 3  # deaths: who was merely in hand when a daemon died is rarely there so often
SLACK = 60.0  # seconds: more than ever passes between the question what is owed and the claim


class Claimed(NamedTuple):
    """A row of the backlog that is leased to us."""

    event_id: int  # outbox.id
    endpoint_id: int
    attempts: int
    event_at: datetime  # outbox.created_at
    clock_from: float
    asked: int
    deaths: int
    replay: int  # the number of the one that it is of; 0 for none

    @property
    def is_suspect(self) -> bool:
        """True when more daemons died with it in hand than chance explains."""
        return self.deaths > ALONE_AFTER


class Backlog:
    """What the retrier of one daemon asks; another that has not beaten for `dead_after` seconds is dead to it."""

    def __init__(self, database: Database, owner: int, dead_after: float) -> None:
        self._database = database
        self._owner = owner
        self._dead_after = dead_after

    async def owing(self) -> dict[int, float]:
        """Endpoint id -> seconds until its first delivery is due; negative when it is overdue."""
        rows = await self._database.fetch(QUERIES["owing"])
        return dict(rows)  # type: ignore[arg-type]  # a Record of two columns is a pair

    async def claim(self, wanted: Sequence[tuple[int, int, float, float]], *, suspects: bool = True) -> list[Claimed]:
        """Lease what is due: `wanted` are (endpoint id, most rows, seconds of the lease, seconds it is overdue).

        500 rows at most, of which each of the first 500 endpoints has its part. Of suspects there is one at most, and
        none unless `suspects`.
        """
        ids, rooms, leases, overdue = zip(*wanted, strict=True)
        since = [seconds + SLACK for seconds in overdue]
        rows = await self._database.fetch(
            QUERIES["claim"], ids, rooms, leases, since, self._owner, self._dead_after, ALONE_AFTER, suspects
        )
        return [Claimed._make(row) for row in rows]
