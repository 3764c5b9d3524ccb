"""What thousands of endpoints cost: reading their files, and the loop while they change under a running daemon."""

import asyncio
import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import rig
from tests.bench.line import Line
from tests.waiting import until
from webhookd.config import loader
from webhookd.config.config import Config
from webhookd.daemon.daemon import Daemon

ENDPOINTS = 8_000
PARKINGS = 3
READINGS = 5
RELOADS = 5  # and before each a second without; the median of these pairs is told
FILES = 8
TICK = 0.001


async def reload(server: str) -> list[Line]:
    """Read 8,000 endpoints from 8 files, then reload all of them, changed, with a daemon in this process."""
    with tempfile.TemporaryDirectory(prefix="webhookd-bench-") as folder:
        main = Path(folder) / "webhookd.toml"
        async with rig.database(server, "reload") as (dsn, _):
            _write(main, dsn, "30s")
            readings = []
            for _ in range(READINGS):
                started = time.perf_counter()
                config = loader.load(main, {})
                readings.append(time.perf_counter() - started)
            reads: list[Config] = []
            stalls: list[float] = []
            turns: list[float] = []

            def load() -> Config:
                reads.append(loader.load(main, {}))
                return reads[-1]

            ready = asyncio.Event()
            daemon = Daemon(config, dsn, load=load, on_ready=lambda _: ready.set())
            async with asyncio.TaskGroup() as group:
                group.create_task(daemon.run())
                await ready.wait()
                lag = Lag()
                ticking = group.create_task(lag.run())
                async with rig.asking(dsn) as connection:
                    for number in range(RELOADS):
                        lag.worst = 0.0
                        await asyncio.sleep(1.0)
                        quiet, lag.worst, lag.busiest = lag.worst, 0.0, 0.0
                        timeout = 40 + number
                        _write(main, dsn, f"{timeout}s")
                        reads.clear()
                        daemon.reload()
                        await until(lambda: reads, "the files", timeout=60.0)
                        changed = "SELECT count(*) = $1 FROM webhookd.endpoint WHERE spec->>'timeout' = $2"
                        arrived = functools.partial(connection.fetchval, changed, ENDPOINTS, f"{timeout:.1f}")
                        await until(arrived, "the reload", timeout=60.0)
                        await asyncio.sleep(1.0)
                        stalls.append(max(lag.worst - quiet, 0.0))
                        turns.append(lag.busiest)
                    parkings = [await _parked(connection, lag, change) for change in ("pause", "resume") * PARKINGS]
                ticking.cancel()
                daemon.stop()
    return [
        Line("reading 8,000 endpoints from 8 files", statistics.median(readings), "s", 2.0),
        Line("longest stall of the loop while they are reloaded", statistics.median(stalls) * 1000, "ms", 50.0),
        Line("longest turn of the loop meanwhile, CPU", statistics.median(turns) * 1000, "ms", 25.0),
        Line("the same while all are paused or resumed", statistics.median(parkings) * 1000, "ms", 25.0),
    ]


async def _parked(connection: Any, lag: "Lag", change: str) -> float:
    """The longest turn while all are paused, or resumed, and everybody has seen it."""
    await asyncio.sleep(1.0)
    lag.busiest = 0.0
    await connection.execute(f"SELECT webhookd.{change}(ARRAY(SELECT id FROM webhookd.endpoint))")
    await asyncio.sleep(2.0)
    return lag.busiest


class Lag:
    """Measures how much later than asked the loop comes back, and for how long it computes in between."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.busiest = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            started, computed = time.perf_counter(), time.thread_time()
            await asyncio.sleep(TICK)
            self.worst = max(self.worst, time.perf_counter() - started - TICK)
            self.busiest = max(self.busiest, time.thread_time() - computed)


def _write(main: Path, dsn: str, timeout: str) -> None:
    main.write_text(f'[database]\ndsn = "{dsn}"\n')
    directory = main.parent / "endpoints.d"
    directory.mkdir(exist_ok=True)
    for file in range(FILES):
        tables = (
            f'[endpoint.e{number}]\nurl = "https://example.com/hooks/{number}"\nevents = ["order.*", "invoice.paid"]\n'
            f'tenant = "t{number % 500}"\nsecret = "{rig.SECRET}"\ntimeout = "{timeout}"\n'
            for number in range(file, ENDPOINTS, FILES)
        )
        (directory / f"{file}.toml").write_text("\n".join(tables))
