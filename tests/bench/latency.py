"""How long an event takes from its COMMIT to the receiver, at a trickle of 100 events a second.

In turns with the shortest way there is, since a machine that is slow for an hour makes both slow: what is judged is the
difference.
"""

import asyncio
import random
import statistics
import time
from typing import Any, NamedTuple

from tests.bench import relay, rig
from tests.bench.line import Line
from tests.bench.pairs import is_clear

LEAST, MOST, EVENTS = 7, 21, 300  # pairs of slices; events of a slice
RATE = 100.0
P50, P99 = 3.5, 13.0  # budgets, in ms beyond the shortest way
INSERT = (
    "INSERT INTO webhookd.outbox (type, payload)"
    " VALUES ('order.created', to_json(repeat('x', 1000))) RETURNING event_id"
)


class Slice(NamedTuple):
    """What one of them showed, in ms."""

    p50: float
    p99: float


async def latency(server: str) -> list[Line]:
    """Single INSERTs at random moments; both ends stamp with the same monotonic clock of this machine."""
    moments = random.Random(7)
    pairs: list[tuple[Slice, Slice]] = []  # the relay's, and the daemon's
    async with rig.receiver() as url, rig.database(server, "latency") as (dsn, connection):
        await connection.execute(relay.TABLE)
        async with (
            rig.process("tests.bench.relay", dsn, url + "/relay") as shortest,
            rig.daemon(dsn, {"a": {"url": url + "/a", "events": ["*"]}}),
        ):
            await rig.line(shortest)
            for statement in (relay.INSERT, INSERT):  # connections, plans and caches
                await _slice(url, connection, statement, moments)
            while len(pairs) < LEAST or (len(pairs) < MOST and not _is_clear(pairs)):
                ways = (relay.INSERT, INSERT)
                found = {way: await _slice(url, connection, way, moments) for way in ways[:: (-1) ** len(pairs)]}
                pairs.append((found[relay.INSERT], found[INSERT]))
    p50, p99 = _beyond(pairs)
    daemon = Slice(*map(statistics.median, zip(*(its for _, its in pairs), strict=True)))
    what = "commit to receiver, {} ({:.1f} ms), beyond LISTEN, SELECT and POST"
    return [
        Line(what.format("p50", daemon.p50), statistics.median(p50), "ms", P50, clear=is_clear(p50, P50)),
        Line(what.format("p99", daemon.p99), statistics.median(p99), "ms", P99, clear=is_clear(p99, P99)),
    ]


def _beyond(pairs: list[tuple[Slice, Slice]]) -> tuple[list[float], list[float]]:
    return [its.p50 - least.p50 for least, its in pairs], [its.p99 - least.p99 for least, its in pairs]


def _is_clear(pairs: list[tuple[Slice, Slice]]) -> bool:
    p50, p99 = _beyond(pairs)
    return is_clear(p50, P50) and is_clear(p99, P99)


async def _slice(url: str, connection: Any, statement: str, moments: random.Random) -> Slice:
    committed = await _commit(connection, statement, moments)
    received: dict[str, float] = {}
    async with asyncio.timeout(60):
        while not committed.keys() <= received.keys():
            await asyncio.sleep(0.1)
            received |= await rig.moments(url)
    waits = sorted((received[event_id] - moment) * 1000 for event_id, moment in committed.items())
    return Slice(statistics.median(waits), waits[int(len(waits) * 0.99)])


async def _commit(connection: Any, statement: str, moments: random.Random) -> dict[str, float]:
    """When each event of a slice was committed."""
    committed: dict[str, float] = {}
    start, due = time.monotonic(), 0.0
    for _ in range(EVENTS):
        due += moments.expovariate(RATE)
        await asyncio.sleep(max(start + due - time.monotonic(), 0))
        event_id = await connection.fetchval(statement)
        committed[event_id] = time.monotonic()
    return committed
