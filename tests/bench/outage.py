"""How long healthy endpoints' events wait when a quarter of thousands of endpoints has fallen silent at once."""

import asyncio
import random
from typing import Any

from tests.bench import rig
from tests.bench.isolation import INSERT, burst, measure
from tests.bench.line import Line

ENDPOINTS, SILENT = 8_000, 2_000
TRICKLE = 200.0  # events/s for those that fall silent, before and after
SETTLING = 30.0  # seconds before each measurement


async def outage(server: str) -> list[Line]:
    """The others before, and from 30 s after."""
    healthy = ENDPOINTS - SILENT
    async with rig.receiver() as url, rig.database(server, "outage") as (dsn, connection), rig.asking(dsn) as other:
        endpoints: dict[str, dict[str, Any]] = {
            f"healthy-{n}": {"url": f"{url}/healthy", "events": [f"healthy.{n}"]} for n in range(healthy)
        }
        endpoints |= {f"mute-{n}": {"url": f"{url}/mute", "events": [f"mute.{n}"]} for n in range(SILENT)}
        async with rig.daemon(dsn, endpoints, max_in_flight_per_host=10_000), asyncio.TaskGroup() as group:
            await burst(connection, healthy)  # connections, plans and caches
            trickle = group.create_task(_trickle(other))
            await asyncio.sleep(SETTLING)
            before, _ = await measure(url, connection, healthy)
            await rig.switch(url)
            await asyncio.sleep(SETTLING)
            after, _ = await measure(url, connection, healthy)
            trickle.cancel()
    what = f"of {healthy:,} endpoints, 30 s after {SILENT:,} others fell silent / before"
    return [
        Line(f"p99 {what}", after / before, "ratio", 1.2),
        Line(f"p99 of {healthy:,} endpoints, before", before, "ms", 50.0),
    ]


async def _trickle(connection: Any) -> None:
    numbers = random.Random(7)
    while True:
        await connection.fetchval(INSERT, f"mute.{numbers.randrange(SILENT)}")
        await asyncio.sleep(1 / TRICKLE)
