"""What monitoring costs: a scrape of 1,000 and of 10,000 endpoints, and counting beside not being asked."""

import asyncio
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import psutil

from tests.bench import rig
from tests.bench.cost import inserted
from tests.bench.line import Line
from tests.bench.pairs import in_pairs, is_clear
from tests.bench.reload import Lag
from webhookd.config import loader
from webhookd.daemon.daemon import Daemon
from webhookd.metrics import looks, pages

WINDOWS, APART = 3, looks.LOOK_SECONDS
SCRAPES = 9  # of each number of endpoints; the median is told
EVENTS, LEAST, MOST = 3_000, 9, 27  # of a slice; pairs
EVERY = 1.0  # seconds between two scrapes, which is more often than anybody does
LISTENS = '[metrics]\nlisten = "127.0.0.1:0"'
COSTS = 1.02


async def scrape(server: str) -> list[Line]:
    """CPU and the longest turn of the loop of a daemon in this process; then CPU per delivery, in pairs."""
    cpu, _, _ = await _scraped(server, 1_000)
    _, turn, look = await _scraped(server, 10_000)
    ratios = await _beside(server)
    return [
        Line("a scrape of 1,000 endpoints, CPU", cpu * 1000, "ms", 50.0),
        Line("longest turn of the loop while 10,000 are scraped, CPU", turn * 1000, "ms", 10.0),
        Line("while the database is asked about them, beyond its other turns, CPU", look * 1000, "ms", 10.0),
        Line(
            "CPU per delivery of a daemon that is scraped each second / of one that is not",
            statistics.median(ratios),
            "ratio",
            COSTS,
            clear=is_clear(ratios, COSTS),
        ),
    ]


async def _scraped(server: str, endpoints: int) -> tuple[float, float, float]:
    """In seconds: CPU of a scrape, the longest turn of the loop meanwhile, and by how much longer a look makes it."""
    took, turns = [], []
    with tempfile.TemporaryDirectory(prefix="webhookd-bench-") as folder:
        async with rig.database(server, f"scrape{endpoints}") as (dsn, _):
            tables: dict[str, Any] = {
                f"e{n}": {"url": "https://example.com", "events": [f"t.{n}"]} for n in range(endpoints)
            }
            file = Path(folder) / "webhookd.toml"
            file.write_text(rig.configuration(dsn, tables, LISTENS))
            ready = asyncio.Event()
            daemon = Daemon(loader.load(file, {}), dsn, on_ready=lambda _: ready.set())
            async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as session:
                group.create_task(daemon.run())
                await ready.wait()
                await asyncio.sleep(2 * looks.LOOK_SECONDS)  # until it has seen all of them
                lag = Lag()
                ticking = group.create_task(lag.run())
                for _ in range(SCRAPES):
                    await asyncio.sleep(2 * pages.FRESH_SECONDS)
                    lag.busiest, before = 0.0, time.process_time()
                    async with session.get(daemon.metrics_url + "/metrics") as response:
                        text = await response.read()
                    took.append(time.process_time() - before)
                    turns.append(lag.busiest)
                    assert text.count(b"webhookd_endpoint_owed{") == endpoints
                looked = await _turns(lag)
                with mock.patch.object(looks, "LOOK_SECONDS", 1_000.0):
                    await asyncio.sleep(1.5 * APART)  # until the last look is over
                    quiet = await _turns(lag)
                ticking.cancel()
                daemon.stop()
    return statistics.median(took), statistics.median(turns), max(looked - quiet, 0.0)


async def _turns(lag: Lag) -> float:
    """The longest turn of the loop: the median of some windows, each of which has a heartbeat and may have a look."""
    found = []
    for _ in range(WINDOWS):
        lag.busiest = 0.0
        await asyncio.sleep(1.5 * APART)
        found.append(lag.busiest)
    return statistics.median(found)


async def _beside(server: str) -> list[float]:
    async with (
        rig.receiver() as url,
        rig.database(server, "unwatched") as (plain, without),
        rig.database(server, "watched") as (dsn, connection),
    ):
        tables = {"a": {"url": url + "/a", "events": ["*"]}}
        async with (
            rig.daemon(plain, tables) as alone,
            rig.daemon(dsn, tables, also=LISTENS) as watched,
            asyncio.TaskGroup() as group,
        ):
            asking = group.create_task(_ask(_where(watched)))
            made = {id(without): 0, id(connection): 0}

            async def measure(way: tuple[psutil.Process, Any]) -> float:
                daemon, to = way
                before = rig.cpu(daemon)
                await inserted(to, EVENTS)
                made[id(to)] += EVENTS
                await rig.until_recorded(to, made[id(to)], look=0.02)
                return rig.cpu(daemon) - before

            ways = (alone, without), (watched, connection)
            for way in ways:
                await measure(way)
            pairs = await in_pairs(measure, *ways, COSTS, least=LEAST, most=MOST)
            asking.cancel()
    return [its / mine for mine, its in pairs]


def _where(daemon: psutil.Process) -> str:
    """Where it listens, which is one of its own ports on loopback."""
    ports = [each.laddr.port for each in daemon.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    (port,) = ports
    return f"http://127.0.0.1:{port}/metrics"


async def _ask(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(url) as response:
                assert re.search(rb"^webhookd_in_flight ", await response.read(), re.MULTILINE)
            await asyncio.sleep(EVERY)
