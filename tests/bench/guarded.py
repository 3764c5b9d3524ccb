"""What guard and limits cost: a daemon as it is, and one that is careless, in turns."""

import statistics
from typing import Any

from tests.bench import rig
from tests.bench.isolation import BURST, HEALTHY, burst
from tests.bench.line import Line

TURNS = 9


async def guarded(server: str) -> list[Line]:
    """Healthy endpoints with a rate that is never reached, and without any."""
    async with (
        rig.receiver() as url,
        rig.database(server, "guarded") as (guarded_dsn, guarded_connection),
        rig.database(server, "careless") as (careless_dsn, careless_connection),
    ):

        def endpoints(**keys: Any) -> dict[str, dict[str, Any]]:
            return {
                f"healthy-{n}": {"url": f"{url}/healthy", "events": [f"healthy.{n}"], **keys} for n in range(HEALTHY)
            }

        async with (
            rig.daemon(guarded_dsn, endpoints(rate_limit="10000/s")) as with_guard,
            rig.daemon(careless_dsn, endpoints(), careless=True) as without,
        ):
            rates, cpus = [], []
            for turn in range(TURNS + 1):
                found = []
                for daemon, connection in ((with_guard, guarded_connection), (without, careless_connection)):
                    before = rig.cpu(daemon)
                    speed = await burst(connection)
                    found.append((speed, (rig.cpu(daemon) - before) / BURST))
                if turn:  # the first makes connections, plans and caches
                    rates.append(found[0][0] / found[1][0])
                    cpus.append(found[0][1] / found[1][1])
    return [
        Line("deliveries/s with guard and limits / without", statistics.median(rates), "ratio", 0.95, at_least=True),
        Line("CPU of the daemon per delivery with guard and limits / without", statistics.median(cpus), "ratio", 1.1),
    ]
