"""How long an event takes from its COMMIT to the receiver, at a trickle of 100 events a second."""

import asyncio
import random
import statistics
import time

from tests.bench import rig
from tests.bench.line import Line

EVENTS = 1_500
RATE = 100.0
INSERT = (
    "INSERT INTO webhookd.outbox (type, payload)"
    " VALUES ('order.created', to_json(repeat('x', 1000))) RETURNING event_id"
)


async def latency(server: str) -> list[Line]:
    """Single INSERTs at random moments; both ends stamp with the same monotonic clock of this machine."""
    moments = random.Random(7)
    committed: dict[str, float] = {}
    async with rig.receiver() as url, rig.database(server, "latency") as (dsn, connection):
        async with rig.daemon(dsn, {"a": {"url": url + "/a", "events": ["*"]}}):
            for _ in range(50):  # connections, plans and caches
                await connection.fetchval(INSERT)
                await asyncio.sleep(0.01)
            start, due = time.monotonic(), 0.0
            for _ in range(EVENTS):
                due += moments.expovariate(RATE)
                await asyncio.sleep(max(start + due - time.monotonic(), 0))
                event_id = await connection.fetchval(INSERT)
                committed[event_id] = time.monotonic()
            await rig.until_recorded(connection, EVENTS + 50)
        received = await rig.moments(url)
    waits = sorted((received[event_id] - moment) * 1000 for event_id, moment in committed.items())
    return [
        Line("commit to receiver at 100 events/s, p50", statistics.median(waits), "ms", 4.0),
        Line("commit to receiver at 100 events/s, p99", waits[int(len(waits) * 0.99)], "ms", 15.0),
    ]
