"""What guard and limits cost: a daemon as it is, and one that is careless, in turns."""

import statistics
from typing import Any

from tests.bench import rig
from tests.bench.isolation import HEALTHY, burst
from tests.bench.line import Line
from tests.bench.pairs import is_clear

# Each with new processes, as two of the same program differ by some percent, too; more, until it is clear.
ROUNDS, ROUNDS_MOST = 7, 13
SPEED, CPU = 0.95, 1.1
TURNS = 8


async def guarded(server: str) -> list[Line]:
    """Healthy endpoints with a rate that is never reached, and without any."""
    async with rig.receiver() as url:
        speeds: list[float] = []
        cpus: list[float] = []
        while len(speeds) < ROUNDS_MOST:
            speed, cpu = await _round(server, url, f"round_{len(speeds)}")
            speeds.append(speed)
            cpus.append(cpu)
            if len(speeds) >= ROUNDS and is_clear(speeds, SPEED) and is_clear(cpus, CPU):
                break
    what, speed, cpu = "with guard and limits / without", statistics.median(speeds), statistics.median(cpus)
    return [
        Line(f"deliveries/s {what}", speed, "ratio", SPEED, at_least=True, clear=is_clear(speeds, SPEED)),
        Line(f"CPU of the daemon per delivery {what}", cpu, "ratio", CPU, clear=is_clear(cpus, CPU)),
    ]


async def _round(server: str, url: str, name: str) -> tuple[float, float]:
    """The ratios of deliveries a second, and of CPU per delivery."""

    def endpoints(**keys: Any) -> dict[str, dict[str, Any]]:
        return {f"healthy-{n}": {"url": f"{url}/healthy", "events": [f"healthy.{n}"], **keys} for n in range(HEALTHY)}

    speeds: tuple[list[float], list[float]] = ([], [])
    cpus: tuple[list[float], list[float]] = ([], [])
    async with (
        rig.database(server, name) as (guarded_dsn, guarded_connection),
        rig.database(server, f"{name}_careless") as (careless_dsn, careless_connection),
        rig.daemon(guarded_dsn, endpoints(rate_limit="10000/s")) as with_guard,
        rig.daemon(careless_dsn, endpoints(), careless=True) as without,
    ):
        both = ((with_guard, guarded_connection), (without, careless_connection))
        for turn in range(TURNS + 1):
            for which in (0, 1) if turn % 2 else (1, 0):
                daemon, connection = both[which]
                before = rig.cpu(daemon)
                speed = await burst(connection)
                if turn:  # the first makes connections, plans and caches
                    speeds[which].append(speed)
                    cpus[which].append(rig.cpu(daemon) - before)
    of_speeds, of_cpus = (statistics.median(found[0]) / statistics.median(found[1]) for found in (speeds, cpus))
    return of_speeds, of_cpus
