"""What a replay of 100,000 events costs live deliveries, how near it comes to its rate; how long a discard takes."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from tests.bench import rig
from tests.bench.isolation import HEALTHY, INSERT, burst, in_turns
from tests.bench.line import Line
from webhookd.store.database import Database
from webhookd.store.discards import DiscardStore
from webhookd.store.discards import Wanted as Unwanted
from webhookd.store.replays import Replays, Wanted

REPLAYED, RATE = 100_000, 50.0  # events, and deliveries a second, which is the rate that nobody has asked for
OWED, AT_ONCE = 1_000_000, 50_000  # deliveries that are discarded, inserted in transactions of so many
NOBODY = 999_999  # an endpoint that no daemon has
MISS = "SELECT count(*) FROM webhookd.cut(50000, 500, 99, p_rest => 50000)"  # by nobody who would send it
EVENTS = "INSERT INTO webhookd.outbox (type, payload) SELECT $1, '{}' FROM generate_series(1, $2::int)"
OWE = """
INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due)
SELECT $1, id, created_at, 1, now() + interval '1 h' FROM webhookd.outbox WHERE type = 'owed'"""


async def redrive(server: str) -> list[Line]:
    """Healthy endpoints beside one that is replayed to, and where nothing is; then a million deliveries end."""
    async with (
        rig.receiver() as url,
        rig.database(server, "quiet") as (quiet, elsewhere),
        rig.database(server, "redrive") as (dsn, connection),
        rig.asking(dsn) as producer,
    ):
        endpoints: dict[str, dict[str, Any]] = {
            f"healthy-{n}": {"url": f"{url}/healthy", "events": [f"healthy.{n}"]} for n in range(HEALTHY)
        }
        endpoints["replayed"] = {"url": f"{url}/healthy", "events": ["replayed"]}
        for each in (elsewhere, connection):
            for _ in range(REPLAYED // AT_ONCE):
                await each.execute(EVENTS, "replayed", AT_ONCE)
            while await each.fetchval(MISS):
                await each.execute("UPDATE webhookd.batch SET done_at = now() WHERE done_at IS NULL")
        async with (
            rig.daemon(quiet, endpoints, max_in_flight_per_host=10_000),
            rig.daemon(dsn, endpoints, max_in_flight_per_host=10_000),
            Database(dsn) as database,
        ):
            for each in (elsewhere, connection):
                await burst(each)  # connections, plans and caches
            replays, number = Replays(database), await _number(connection, "replayed")
            (replay,) = (await replays.begin([number], Wanted("missed"), RATE, "bench")).values()
            for each in (elsewhere, connection):  # what the server would do while one of them is measured
                await each.execute("VACUUM (ANALYZE) webhookd.outbox, webhookd.batch", timeout=300)
            live = await in_turns(url, elsewhere, connection)
            found = (await replays.all(replay))[0]
            assert found.state == "running"
            speed = found.sent / (datetime.now(UTC) - found.created_at).total_seconds()
            await replays.cancel(replay, "bench")

            for _ in range(OWED // AT_ONCE):
                await connection.execute(EVENTS, "owed", AT_ONCE)
            await connection.execute(OWE, NOBODY, timeout=300)
            store, started = DiscardStore(database), time.monotonic()
            discard, longest = await store.discard(Unwanted("owed", None, None, None, None), "bench"), 0.0
            while (await store.progress(discard)) != (OWED, True):
                asked = time.monotonic()
                await producer.fetchval(INSERT, "nobody's")
                longest = max(longest, time.monotonic() - asked)
                await asyncio.sleep(0.05)
            took = time.monotonic() - started
    return [
        *live.lines(f"healthy endpoints beside a replay of {REPLAYED:,} / alone"),
        Line(f"a replay: deliveries/s / its rate of {RATE:g}", speed / RATE, "ratio", 0.8, at_least=True),
        Line(f"to discard {OWED:,} deliveries of the backlog", took, "s", 60),
        Line("the longest INSERT meanwhile", longest * 1000, "ms", 250),
    ]


async def _number(connection: Any, name: str) -> int:
    number: int = await connection.fetchval("SELECT id FROM webhookd.endpoint WHERE name = $1", name)
    return number
