"""How fast an endpoint is sent to that keeps an order: all of its events, or those of each of many keys."""

import statistics
import time
from typing import Any

from tests.bench import rig
from tests.bench.line import Line

ONE_BY_ONE = 200  # events, each after the answer to the one before
KEYS, OF_EACH = 1_000, 10  # keys, and events of each
ROUNDS = 5
EVENTS = """
INSERT INTO webhookd.outbox (type, payload, ordering_key)
SELECT $1, '{}', 'key-' || n % $2::int FROM generate_series(1, $3::int) n"""
ANSWERED_IN = """
SELECT avg(a.ms) / 1000 FROM webhookd.attempt a JOIN webhookd.endpoint e ON e.id = a.endpoint_id
 WHERE e.name = 'line'"""


async def ordered(server: str) -> list[Line]:
    """One after the other at a receiver that takes 50 ms; and of 1,000 keys, beside an endpoint without an order."""
    async with rig.receiver() as url, rig.database(server, "ordered") as (dsn, connection):
        endpoints: dict[str, dict[str, Any]] = {
            "line": {"url": f"{url}/slow", "events": ["line"], "ordered": True},
            "lines": {"url": f"{url}/slow", "events": ["lines"], "ordered": "key", "max_in_flight": KEYS},
            "free": {"url": f"{url}/slow", "events": ["free"], "max_in_flight": KEYS},
        }
        async with rig.daemon(dsn, endpoints, max_in_flight=KEYS, max_in_flight_per_host=KEYS):
            await rig.moments(url)
            await connection.execute(EVENTS, "line", ONE_BY_ONE, ONE_BY_ONE)
            await rig.until_recorded(connection, ONE_BY_ONE, look=0.5)
            moments = sorted((await rig.moments(url)).values())
            speed = (ONE_BY_ONE - 1) / (moments[-1] - moments[0])
            round_trip = float(await connection.fetchval(ANSWERED_IN))

            ratios, so_far = [], ONE_BY_ONE
            for turn in range(ROUNDS + 1):
                speeds = {}
                for which in ("lines", "free") if turn % 2 else ("free", "lines"):
                    began = time.monotonic()
                    await connection.execute(EVENTS, which, KEYS, KEYS * OF_EACH)
                    so_far += KEYS * OF_EACH
                    await rig.until_recorded(connection, so_far, look=0.02)
                    speeds[which] = KEYS * OF_EACH / (time.monotonic() - began)
                if turn:  # the first makes connections, plans and caches
                    ratios.append(speeds["lines"] / speeds["free"])
    return [
        Line("ordered: deliveries/s x seconds of an answer", speed * round_trip, "ratio", 0.8, at_least=True),
        Line(
            f"ordered by key, {KEYS:,} keys: deliveries/s / without",
            statistics.median(ratios),
            "ratio",
            0.7,
            at_least=True,
        ),
    ]
