"""How long healthy endpoints' events wait when a quarter of thousands of endpoints has fallen silent at once."""

import asyncio
import random
import statistics
from typing import Any

from tests.bench import rig
from tests.bench.isolation import INSERT, burst, in_turns
from tests.bench.line import Line

ENDPOINTS, SILENT = 8_000, 2_000
TRICKLE = 200.0  # events/s for those that fall silent, before and after
SETTLING = 30.0  # seconds after which they are known for it


async def outage(server: str) -> list[Line]:
    """The others from 30 s after, in turns with a daemon that has as many endpoints, of which none falls silent."""
    healthy = ENDPOINTS - SILENT
    async with (
        rig.receiver() as url,
        rig.database(server, "quiet") as (quiet, elsewhere),
        rig.database(server, "outage") as (dsn, connection),
        rig.daemon(quiet, _endpoints(url, healthy, "healthy"), max_in_flight_per_host=10_000),
        rig.daemon(dsn, _endpoints(url, healthy, "mute"), max_in_flight_per_host=10_000),
        rig.asking(quiet) as one,
        rig.asking(dsn) as other,
        asyncio.TaskGroup() as group,
    ):
        for each in (elsewhere, connection):
            await burst(each, healthy)  # connections, plans and caches
        trickles = [group.create_task(_trickle(each)) for each in (one, other)]
        await asyncio.sleep(SETTLING)
        await rig.switch(url)
        await asyncio.sleep(SETTLING)
        found = await in_turns(url, elsewhere, connection, healthy)
        for trickle in trickles:
            trickle.cancel()
    what = f"{healthy:,} endpoints"
    p99, _ = found.lines(f"{what}, 30 s after {SILENT:,} others fell silent / while they answer")
    alone = statistics.median(alone for alone, _ in found.p99)
    return [p99, Line(f"p99 of {what}, while the others answer", alone, "ms", 50.0)]


def _endpoints(url: str, healthy: int, path: str) -> dict[str, dict[str, Any]]:
    """The healthy ones, and as many others as fall silent, at this path."""
    endpoints: dict[str, dict[str, Any]] = {
        f"healthy-{n}": {"url": f"{url}/healthy", "events": [f"healthy.{n}"]} for n in range(healthy)
    }
    return endpoints | {f"mute-{n}": {"url": f"{url}/{path}", "events": [f"mute.{n}"]} for n in range(SILENT)}


async def _trickle(connection: Any) -> None:
    numbers = random.Random(7)
    while True:
        await connection.fetchval(INSERT, f"mute.{numbers.randrange(SILENT)}")
        await asyncio.sleep(1 / TRICKLE)
