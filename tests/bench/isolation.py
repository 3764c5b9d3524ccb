"""What healthy endpoints notice of receivers that hang: one with 10,000 events, and 200 at once."""

import asyncio
import itertools
import random
import statistics
import time
from typing import Any, NamedTuple

from tests.bench import rig
from tests.bench.line import Line
from tests.bench.pairs import in_pairs, is_clear

HEALTHY, HUNG = 20, 200
RATE = 200.0  # events/s for the healthy endpoints, one for each event
SLICES, SECONDS = 9, 4.0  # of each measurement, at least
OWED = 10_000
SOON, SETTLING = 3.0, 30.0  # seconds after which one endpoint, or 200, that fell silent are known for it
TRICKLE = 1.0  # events/s that each hung endpoint goes on to get
BURST, BURSTS = 6_000, 5
P99, SPEED = 1.2, 0.9  # budgets, as ratios
INSERT = "INSERT INTO webhookd.outbox (type, payload) VALUES ($1, to_json(repeat('x', 1000))) RETURNING event_id"
MANY = """
    INSERT INTO webhookd.outbox (type, payload)
    SELECT $1 || CASE WHEN $3 > 1 THEN (number % $3)::text ELSE '' END, to_json(repeat('x', 1000))
    FROM generate_series(1, $2::int) number
"""
DELIVERED = "SELECT count(*) FROM webhookd.attempt WHERE ok"


async def isolation(server: str) -> list[Line]:
    """The same measurements beside one that hangs, and beside 200 that hang, each in turns with a daemon left alone."""
    async with (
        rig.receiver() as url,
        rig.database(server, "quiet") as (quiet, elsewhere),
        rig.database(server, "isolation") as (dsn, connection),
    ):
        endpoints: dict[str, dict[str, Any]] = {
            f"healthy-{n}": {"url": f"{url}/healthy", "events": [f"healthy.{n}"]} for n in range(HEALTHY)
        }
        endpoints["hung"] = {"url": f"{url}/hung", "events": ["hung"]}
        endpoints |= {f"silent-{n}": {"url": f"{url}/hung", "events": ["silent"]} for n in range(HUNG)}
        async with (
            rig.daemon(quiet, endpoints, max_in_flight_per_host=10_000),
            rig.daemon(dsn, endpoints, max_in_flight_per_host=10_000),
            rig.asking(dsn) as other,
        ):
            for each, kind in ((elsewhere, "nobody's"), (connection, "hung")):
                await burst(each)  # connections, plans and caches
                await each.execute(MANY, kind, OWED, 1)
            async with asyncio.TaskGroup() as group:
                one = group.create_task(_trickle(other, "hung"))
                await asyncio.sleep(SOON)
                with_one = await in_turns(url, elsewhere, connection)
                one.cancel()
            async with asyncio.TaskGroup() as group:
                many = group.create_task(_trickle(other, "silent"))
                await asyncio.sleep(SETTLING)
                with_many = await in_turns(url, elsewhere, connection)
                many.cancel()
    return [
        line
        for name, found in (("one that hangs", with_one), (f"{HUNG} that hang", with_many))
        for line in found.lines(f"healthy endpoints beside {name} / alone")
    ]


class Turns(NamedTuple):
    """What two databases gave in turns: the p99 from COMMIT to receiver in ms, and deliveries a second of a burst."""

    p99: list[tuple[float, float]]  # alone, and beside
    speed: list[tuple[float, float]]

    def lines(self, what: str) -> list[Line]:
        """The medians of the ratios."""
        p99, speed = ([beside / alone for alone, beside in pairs] for pairs in self)
        return [
            Line(f"p99 of {what}", statistics.median(p99), "ratio", P99, clear=is_clear(p99, P99)),
            Line(
                f"deliveries/s of {what}",
                statistics.median(speed),
                "ratio",
                SPEED,
                at_least=True,
                clear=is_clear(speed, SPEED),
            ),
        ]


async def in_turns(url: str, alone: Any, beside: Any, healthy: int = HEALTHY) -> Turns:
    """A trickle and a burst of each database in turns, so that no mood of the machine favours one."""

    async def slice_(connection: Any) -> float:
        return await slice_of(url, connection, healthy)

    async def burst_(connection: Any) -> float:
        return await burst(connection, healthy)

    return Turns(
        await in_pairs(slice_, alone, beside, P99, least=SLICES, most=6 * SLICES),
        await in_pairs(burst_, alone, beside, SPEED, least=BURSTS, most=6 * BURSTS),
    )


async def slice_of(url: str, connection: Any, healthy: int) -> float:
    """The p99 from COMMIT to receiver, in ms, of a trickle for all healthy endpoints."""
    moments, numbers = random.Random(7), itertools.cycle(range(healthy))
    committed: dict[str, float] = {}
    await rig.moments(url)
    start, due = time.monotonic(), 0.0
    while due < SECONDS:
        due += moments.expovariate(RATE)
        await asyncio.sleep(max(start + due - time.monotonic(), 0))
        event_id = await connection.fetchval(INSERT, f"healthy.{next(numbers)}")
        committed[event_id] = time.monotonic()
    await asyncio.sleep(1.0)  # what takes longer does not count as arrived
    received = await rig.moments(url)
    waits = sorted((received.get(event_id, float("inf")) - moment) * 1000 for event_id, moment in committed.items())
    return waits[int(len(waits) * 0.99)]


async def burst(connection: Any, healthy: int = HEALTHY) -> float:
    """Deliveries a second, from INSERT to recorded, of a transaction for all healthy endpoints."""
    before = await connection.fetchval(DELIVERED)
    started = time.monotonic()
    await connection.execute(MANY, "healthy.", BURST, healthy)
    while await connection.fetchval(DELIVERED) < before + BURST:
        await asyncio.sleep(0.02)
        if time.monotonic() > started + 120:
            raise TimeoutError(f"{BURST} deliveries were not recorded")
    return BURST / (time.monotonic() - started)


async def _trickle(connection: Any, kind: str) -> None:
    while True:
        await connection.fetchval(INSERT, kind)
        await asyncio.sleep(1 / TRICKLE)
