"""What a dead endpoint that is owed a million events costs its neighbours and the database, and how it is drained."""

import asyncio
import time
from typing import Any

from tests.bench import rig
from tests.bench.isolation import HEALTHY, MANY, burst, in_turns
from tests.bench.line import Line

OWED, AT_ONCE = 1_000_000, 20_000  # events for the dead endpoint, inserted in transactions of so many
DRAINED = 100_000  # more, which it gets when it comes back
RATE = 1_500  # its limit, in requests a second; the receiver refuses a tenth more than that
DEAD = "ARRAY(SELECT id FROM webhookd.endpoint WHERE name = 'dead')"
ROWS = "SELECT count(*) FROM webhookd.backlog"
HANDLED = """
SELECT NOT EXISTS (SELECT FROM webhookd.remainder) AND NOT EXISTS (SELECT FROM webhookd.batch WHERE done_at IS NULL)"""
RAN_DRY = """
SELECT NOT EXISTS (SELECT FROM webhookd.parked
                    WHERE next_batch < COALESCE(to_batch, (SELECT max(id) + 1 FROM webhookd.batch)))"""
SKIP = """
UPDATE webhookd.parked SET epoch = epoch + 1,
       next_batch = COALESCE(to_batch, (SELECT max(id) + 1 FROM webhookd.batch))"""


async def parked(server: str) -> list[Line]:
    """Healthy endpoints beside one that is dead, and where nobody is owed as many events; and the way back.

    Two databases hold the same and are measured in turns, since a million events more slow one by themselves.
    """
    async with (
        rig.receiver() as url,
        rig.database(server, "quiet") as (quiet, elsewhere),
        rig.database(server, "parked") as (dsn, connection),
    ):
        endpoints: dict[str, dict[str, Any]] = {
            f"healthy-{n}": {"url": f"{url}/healthy", "events": [f"healthy.{n}"]} for n in range(HEALTHY)
        }
        endpoints["dead"] = {"url": f"{url}/dead", "events": ["dead"], "rate_limit": f"{RATE}/s"}
        async with (
            rig.daemon(quiet, endpoints, max_in_flight_per_host=10_000),
            rig.daemon(dsn, endpoints, max_in_flight_per_host=10_000) as daemon,
        ):
            for each, kind in ((elsewhere, "nobody's"), (connection, "dead")):
                await burst(each)  # connections, plans and caches
                await _commit(each, kind, OWED)
            for each in (elsewhere, connection):  # what the server would do while one of them is measured
                await each.execute("VACUUM (ANALYZE) webhookd.outbox, webhookd.batch", timeout=300)
            found = await in_turns(url, elsewhere, connection)
            rows, memory = await connection.fetchval(ROWS), daemon.memory_info().rss / 2**20
            # These are taken off its cursors, or the way back would take a quarter of an hour.
            await connection.execute(f"SELECT webhookd.pause({DEAD})")
            await connection.execute(SKIP)
            await _commit(connection, "dead", DRAINED)
            await rig.switch(url)
            started = time.monotonic()
            await connection.execute(f"SELECT webhookd.resume({DEAD})")
            await _until(connection, RAN_DRY)
            speed = DRAINED / (time.monotonic() - started)
            refused = await rig.refused(url)
    return [
        *found.lines(f"healthy endpoints beside a dead one that is owed {OWED:,} / alone"),
        Line("rows in the backlog for it", rows, "rows", 2_000),
        Line("resident memory of the daemon", memory, "MiB", 150),
        Line(f"back from the dead: deliveries/s / its limit of {RATE}", speed / RATE, "ratio", 0.8, at_least=True),
        Line(f"requests refused with 429 of {DRAINED:,}", refused, "", DRAINED / 1000),
    ]


async def _commit(connection: Any, kind: str, events: int) -> None:
    for _ in range(events // AT_ONCE):
        await connection.execute(MANY, kind, AT_ONCE, 1)
    await _until(connection, HANDLED)


async def _until(connection: Any, question: str) -> None:
    end = time.monotonic() + 300
    while not await connection.fetchval(question):
        await asyncio.sleep(0.1)
        if time.monotonic() > end:
            raise TimeoutError(question)
