"""How attempts went, by the minute and by the hour."""

from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from typing import NamedTuple

from webhookd.policy.statistics import Row
from webhookd.store.database import Database
from webhookd.store.statements import QUERIES
from webhookd.store.tenants import Asking


class Sum(NamedTuple):
    """What there was of an endpoint in a span, and what it is owed now; `took` by the bounds of the policy."""

    delivered: int
    failed: int  # attempts after which there was to be another
    exhausted: int
    rejected: int
    took: Sequence[int]
    waiting: int = 0
    retrying: int = 0
    discarded: int = 0
    parked: int = 0


class StatisticStore:
    """Takes what daemons have summed up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, rows: Sequence[Row]) -> None:
        """Write these."""
        minutes, endpoints, counts, took = zip(*rows, strict=True)
        await self._database.fetch(
            QUERIES["statistics_add"],
            endpoints,
            minutes,
            *zip(*counts, strict=True),
            list(chain.from_iterable(took)),
        )


async def of_endpoint(asking: Asking, endpoint: int, since: datetime, until: datetime) -> Sum:
    """Of one endpoint."""
    return Sum._make((await asking.fetch(QUERIES["statistics"], endpoint, since, until))[0])
