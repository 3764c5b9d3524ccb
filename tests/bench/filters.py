"""What filters of payloads cost the events that none of them is about, and those that they let pass."""

import statistics
from typing import Any

from tests.bench import rig
from tests.bench.isolation import HEALTHY, burst
from tests.bench.line import Line
from tests.bench.pairs import in_pairs, is_clear

OTHERS = 100
PAIRS, BUDGET = 9, 0.95


async def filters(server: str) -> list[Line]:
    """Bursts of a daemon that has a hundred endpoints with such filters, and of one whose have none, in turns."""
    async with (
        rig.receiver() as url,
        rig.database(server, "unfiltered") as (plain, without),
        rig.database(server, "filtered") as (dsn, connection),
    ):
        healthy: dict[str, dict[str, Any]] = {
            f"healthy-{n}": {"url": f"{url}/healthy", "events": [f"healthy.{n}"]} for n in range(HEALTHY)
        }
        others = {f"other-{n}": {"url": f"{url}/healthy", "events": ["other.*"]} for n in range(OTHERS)}
        filtered = {name: {**keys, "filter.data.amount.gte": 100} for name, keys in others.items()}
        async with (
            rig.daemon(plain, healthy | others, max_in_flight_per_host=10_000),
            rig.daemon(dsn, healthy | filtered, max_in_flight_per_host=10_000),
        ):
            for each in (without, connection):
                await burst(each)
            pairs = await in_pairs(burst, without, connection, BUDGET, least=PAIRS, most=3 * PAIRS)
    ratios = [with_filters / without_any for without_any, with_filters in pairs]
    what = "deliveries/s beside 100 filters of payloads for other types / without"
    return [Line(what, statistics.median(ratios), "ratio", BUDGET, at_least=True, clear=is_clear(ratios, BUDGET))]
