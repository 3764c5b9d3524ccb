"""Who is alive, and which endpoints there are."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from webhookd.sql import QUERIES
from webhookd.store.database import Database

DOWNTIME_AFTER = 60.0  # seconds without any daemon's heartbeat that deliveries get back


class Beat(NamedTuple):
    """What a heartbeat learns: spans in which no daemon ran, and whether the database still knows us."""

    now: float
    known: bool
    live: int
    downtimes: tuple[tuple[float, float], ...]


class Registry:
    """What the janitor and the daemon ask about daemons, partitions and endpoints."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, host: str, version: str, config_hash: str) -> tuple[int, int]:
        """A new daemon id, never used before, and the batch up to which everything is done."""
        await self._database.fetch(QUERIES["downtime"], DOWNTIME_AFTER)
        row = await self._database.fetch_row(QUERIES["register"], host, version, config_hash)
        return row[0], row[1]

    async def beat(self, daemon: int, low: int, dead_after: float) -> Beat:
        """Say that we are alive. `dead_after`: seconds of silence after which another daemon counts as dead."""
        await self._database.fetch(QUERIES["downtime"], DOWNTIME_AFTER)
        row = await self._database.fetch_row(QUERIES["beat"], daemon, low, dead_after)
        return Beat(row[0], row[1], row[2], tuple(zip(row[3], row[4], strict=True)))

    async def low(self, low: int) -> int:
        """The last batch before which everything is done, looked for from `low`."""
        return int((await self._database.fetch_row(QUERIES["low"], low))[0])

    async def leave(self, daemon: int) -> None:
        """Stop counting as alive."""
        await self._database.fetch(QUERIES["leave"], daemon)

    async def tidy(self, days_ahead: int) -> None:
        """Make partitions ahead and forget daemons that stopped long ago."""
        await self._database.fetch(QUERIES["partitions"], days_ahead)
        await self._database.fetch(QUERIES["forget_daemons"])

    async def sync_endpoints(
        self, specs: Mapping[tuple[str, str], Mapping[str, Any]], config_hash: str, dead_after: float
    ) -> dict[tuple[str, str], int]:
        """Write the endpoints of the files to the database; (tenant, name) -> number of each."""
        tenants, names = _columns(specs)
        texts = [json.dumps(spec, sort_keys=True) for spec in specs.values()]
        async with self._database.connection() as connection, connection.transaction():
            await connection.fetch(QUERIES["sync_lock"])
            await connection.fetch(QUERIES["sync_endpoints"], tenants, names, texts)
            await connection.fetch(QUERIES["removed_endpoints"], tenants, names, config_hash, dead_after)
            rows = await connection.fetch(QUERIES["endpoint_ids"])
        return {(row["tenant"], row["name"]): row["id"] for row in rows}


def _columns(pairs: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    tenants, names = [], []
    for tenant, name in pairs:
        tenants.append(tenant)
        names.append(name)
    return tenants, names
