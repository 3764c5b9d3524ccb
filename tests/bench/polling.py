"""What pollers cost who wait, and who is behind; and what they wait for."""

import asyncio
import json
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.bench import rig
from tests.bench.api import Served, admin, served
from tests.bench.isolation import HEALTHY, burst
from tests.bench.line import Line
from tests.bench.pairs import in_pairs, is_clear
from tests.bench.reload import Lag
from webhookd.config import loader
from webhookd.daemon.daemon import Daemon
from webhookd.message.sealing import new_key

POLLERS = 1_000
EVENTS, RATE = 400, 50.0  # a second
INSERT = "INSERT INTO webhookd.outbox (type, payload) VALUES ($1, to_json(repeat('x', 1000))) RETURNING event_id"
BEHIND = 100_000
LOG = """INSERT INTO webhookd.outbox (type, payload)
 SELECT 'behind', to_json(repeat('x', 1000)) FROM generate_series(1, 500)"""
ONE = b'"eventType":'
SPEED, BESIDE = 0.95, 0.9
PAIRS, WAKINGS = 7, 5


def endpoints(url: str) -> dict[str, dict[str, Any]]:
    polled: dict[str, dict[str, Any]] = {
        f"poll-{n}": {"kind": "poll", "events": [f"poll.{n}", "poll-all"]} for n in range(POLLERS)
    }
    polled["behind"] = {"kind": "poll", "events": ["behind"]}
    healthy = {f"healthy-{n}": {"url": f"{url}/healthy", "events": [f"healthy.{n}"]} for n in range(HEALTHY)}
    return polled | healthy


async def polling(server: str) -> list[Line]:
    """The costs, and the loop when all wake."""
    return [*await _costs(server), await _stall(server)]


async def _costs(server: str) -> list[Line]:
    """Each in turns with a daemon that has the same endpoints and nobody who polls."""
    async with (
        rig.receiver() as url,
        rig.database(server, "unpolled") as (alone, elsewhere),
        rig.database(server, "polled") as (dsn, connection),
        served(alone, endpoints(url), new_key()),
        served(dsn, endpoints(url), new_key()) as daemon,
    ):
        for each in (elsewhere, connection):
            await burst(each)
        async with rig.process("tests.bench.pollers", daemon.where, daemon.token, "1") as pollers:
            assert await rig.line(pollers) == "ready"  # what is read of the log is kept for a while, for all
        before = daemon.process.memory_info().rss
        async with rig.process("tests.bench.pollers", daemon.where, daemon.token, str(POLLERS)) as pollers:
            assert await rig.line(pollers) == "ready"
            await asyncio.sleep(2.0)
            memory = (daemon.process.memory_info().rss - before) / 2**20
            waits = await _latencies(connection, pollers)
            woken = await _woken(connection, pollers)
            pairs = await in_pairs(burst, elsewhere, connection, SPEED, least=PAIRS, most=3 * PAIRS)
        ratios = [beside / alone for alone, beside in pairs]
        speed = await _behind(connection, daemon)
        beside = await _beside(connection, daemon)
    what = "deliveries/s beside 1,000 pollers that wait / alone"
    behind = "deliveries/s beside a poller that is behind / alone"
    return [
        Line("1,000 pollers that wait: memory", memory, "MiB", 15.0),
        Line("commit to the answer of who waits, p50", statistics.median(waits) * 1000, "ms", 10.0),
        Line("commit to the answer of who waits, p99", waits[int(len(waits) * 0.99)] * 1000, "ms", 50.0),
        Line("commit to the last answer of 1,000 who wait for the same", woken, "s", 2.0),
        Line(what, statistics.median(ratios), "ratio", SPEED, at_least=True, clear=is_clear(ratios, SPEED)),
        Line("events/s of a poller that is behind", speed, "per s", 5_000.0, at_least=True),
        Line(behind, statistics.median(beside), "ratio", BESIDE, at_least=True, clear=is_clear(beside, BESIDE)),
    ]


async def _latencies(connection: Any, pollers: asyncio.subprocess.Process) -> list[float]:
    committed: dict[str, float] = {}
    start = time.monotonic()
    for number in range(EVENTS):
        await asyncio.sleep(max(start + number / RATE - time.monotonic(), 0))
        committed[await connection.fetchval(INSERT, f"poll.{number * 7 % POLLERS}")] = time.monotonic()
    await asyncio.sleep(1.0)
    got = await _got(pollers)
    print(len(got), len(committed), [n for n, e in enumerate(committed) if e not in got][:20])
    return sorted(got[event][0] - moment for event, moment in committed.items() if event in got)


async def _woken(connection: Any, pollers: asyncio.subprocess.Process) -> float:
    event = await connection.fetchval(INSERT, "poll-all")
    committed = time.monotonic()
    await asyncio.sleep(5.0)
    got = await _got(pollers)
    print(len(got[event]), len(got))
    assert len(got[event]) >= POLLERS // 2
    return max(got[event]) - committed


async def _got(pollers: asyncio.subprocess.Process) -> dict[str, list[float]]:
    assert pollers.stdin is not None
    pollers.stdin.write(b"\n")
    found: dict[str, list[float]] = json.loads(await rig.line(pollers))
    return found


async def _behind(connection: Any, daemon: Served) -> float:
    """Events a second of one who fetches all that there is."""
    for _ in range(BEHIND // 500):
        await connection.execute(LOG)
    await rig.until_recorded(connection, 0)
    found, started = 0, time.monotonic()
    async with _asking(daemon) as pages:
        async for page in pages:
            found += page.count(ONE)
            if found >= BEHIND:
                return found / (time.monotonic() - started)
    raise AssertionError("there are fewer")


async def _beside(connection: Any, daemon: Served) -> list[float]:
    """Deliveries a second while one fetches all of it again and again, and while nobody does."""
    reads = asyncio.Event()

    async def read() -> None:
        async with _asking(daemon) as pages:
            async for _ in pages:
                await reads.wait()

    async def measure(with_reader: bool) -> float:
        if with_reader:
            reads.set()
        found = await burst(connection)
        reads.clear()
        return found

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read())
        pairs = await in_pairs(measure, False, True, BESIDE, least=PAIRS, most=3 * PAIRS)
        reading.cancel()
    return [beside / alone for alone, beside in pairs]


@asynccontextmanager
async def _asking(daemon: Served) -> AsyncIterator[AsyncIterator[bytes]]:
    """Pages of what there is, and at the end from the beginning."""
    base = f"http://{daemon.where}/api/v1/app/default/poller/behind?limit=250&wait=0"

    async def pages(session: aiohttp.ClientSession) -> AsyncIterator[bytes]:
        iterator = ""
        while True:
            async with session.get(base + iterator) as response:
                page = await response.read()
            yield page
            found = re.search(rb'"iterator":"(\w+)","done":false', page)
            iterator = f"&iterator={found[1].decode()}" if found else ""

    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {daemon.token}"}) as session:
        yield pages(session)


async def _stall(server: str) -> Line:
    """The longest turn of the loop while 1,000 wake, of a daemon in this process; the median of some times."""
    stalls = []
    with tempfile.TemporaryDirectory(prefix="webhookd-bench-") as folder:
        async with rig.database(server, "stall") as (dsn, connection):
            token = await admin(dsn)
            file = Path(folder) / "webhookd.toml"
            file.write_text(rig.configuration(dsn, endpoints("https://example.com"), '[api]\nlisten = "127.0.0.1:0"'))
            ready = asyncio.Event()
            daemon = Daemon(loader.load(file, {}), dsn, on_ready=lambda _: ready.set())
            async with asyncio.TaskGroup() as group:
                group.create_task(daemon.run())
                await ready.wait()
                lag = Lag()
                ticking = group.create_task(lag.run())
                where = daemon.api_url.removeprefix("http://")
                async with rig.process("tests.bench.pollers", where, token, str(POLLERS)) as pollers:
                    assert await rig.line(pollers) == "ready"
                    for _ in range(WAKINGS):
                        await asyncio.sleep(2.0)
                        lag.busiest = 0.0
                        await connection.execute(INSERT, "poll-all")
                        await asyncio.sleep(2.0)
                        stalls.append(lag.busiest)
                        assert [len(each) for each in (await _got(pollers)).values()] == [POLLERS]
                ticking.cancel()
                daemon.stop()
    return Line("longest turn of the loop when 1,000 wake, CPU", statistics.median(stalls) * 1000, "ms", 20.0)
