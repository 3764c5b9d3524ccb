"""How long an event takes from its COMMIT to the receiver, at a trickle of 100 events a second."""

import asyncio
import random
import statistics
import time
from typing import Any

from tests.bench import rig
from tests.bench.line import Line

SLICES, EVENTS = 7, 300  # of each the median and the p99; the median of these is told
RATE = 100.0
INSERT = (
    "INSERT INTO webhookd.outbox (type, payload)"
    " VALUES ('order.created', to_json(repeat('x', 1000))) RETURNING event_id"
)


async def latency(server: str) -> list[Line]:
    """Single INSERTs at random moments; both ends stamp with the same monotonic clock of this machine."""
    moments = random.Random(7)
    found = []
    async with (
        rig.receiver() as url,
        rig.database(server, "latency") as (dsn, connection),
        rig.daemon(dsn, {"a": {"url": url + "/a", "events": ["*"]}}),
    ):
        for _ in range(50):  # connections, plans and caches
            await connection.fetchval(INSERT)
            await asyncio.sleep(0.01)
        for number in range(SLICES):
            committed = await _commit(connection, moments)
            await rig.until_recorded(connection, EVENTS * (number + 1) + 50)
            received = await rig.moments(url)
            waits = sorted((received[event_id] - moment) * 1000 for event_id, moment in committed.items())
            found.append((statistics.median(waits), waits[int(len(waits) * 0.99)]))
    p50, p99 = map(statistics.median, zip(*found, strict=True))
    return [
        Line("commit to receiver at 100 events/s, p50", p50, "ms", 4.0),
        Line("commit to receiver at 100 events/s, p99", p99, "ms", 15.0),
    ]


async def _commit(connection: Any, moments: random.Random) -> dict[str, float]:
    """When each event of a slice was committed."""
    committed: dict[str, float] = {}
    start, due = time.monotonic(), 0.0
    for _ in range(EVENTS):
        due += moments.expovariate(RATE)
        await asyncio.sleep(max(start + due - time.monotonic(), 0))
        event_id = await connection.fetchval(INSERT)
        committed[event_id] = time.monotonic()
    return committed
