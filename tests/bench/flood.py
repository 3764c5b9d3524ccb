"""What another tenant notices of a transaction of half a million events."""

import asyncio
import time

from tests.bench import rig
from tests.bench.isolation import INSERT, MANY
from tests.bench.line import Line

EVENTS = 500_000
PROBES, PAUSE = 60, 0.3  # events of the other tenant while the flood is worked off, and seconds between them


async def flood(server: str) -> list[Line]:
    """The longest wait of an event of another, the rows and the memory it takes; for endpoints quick and hung."""
    return [line for name in ("quick", "hung") for line in await _flood(server, name)]


async def _flood(server: str, name: str) -> list[Line]:
    async with rig.receiver() as url, rig.database(server, f"flood_{name}") as (dsn, connection):
        endpoints = {
            "large": {"url": f"{url}/{name}", "events": ["large"]},
            "small": {"url": f"{url}/small", "events": ["small"]},
        }
        async with rig.daemon(dsn, endpoints) as daemon, rig.asking(dsn) as other:
            await connection.fetchval(INSERT, "small")
            await rig.until_recorded(connection, 1)
            committed: dict[str, float] = {}
            received: dict[str, float] = {}
            await connection.execute(MANY, "large", EVENTS, 1)
            for _ in range(PROBES):
                committed[await other.fetchval(INSERT, "small")] = time.monotonic()
                await asyncio.sleep(PAUSE)
                received |= await rig.moments(url)
            await asyncio.sleep(5.0)  # what takes longer counts as lost
            received |= await rig.moments(url)
            waits = [received.get(event_id, float("inf")) - moment for event_id, moment in committed.items()]
            rows = await connection.fetchval("SELECT count(*) FROM webhookd.backlog")
            memory = daemon.memory_info().rss / 2**20
    what = f"{EVENTS:,} events in one transaction for a {name} endpoint"
    return [
        Line(f"longest wait of another's event beside {what}", max(waits), "s", 2.0),
        Line(f"rows in the backlog beside {what}", rows, "rows", 2_500),
        Line(f"resident memory beside {what}", memory, "MiB", 150.0),
    ]
