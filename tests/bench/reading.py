"""How long reads of the HTTP API take with 10 million attempts, a million events, and 10,000 endpoints: `--long`."""

import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.bench import rig
from tests.bench.api import served
from tests.bench.line import Line
from webhookd.message.sealing import new_key

TURNS = 15
READ, ONE, ALL = 50.0, 20.0, 100.0  # ms
FILL = Path(__file__).with_name("reading.sql")
# Daily partitions of the days before, as a daemon would have made them.
MORE_DAYS = """DO $$ DECLARE parent text; day date; BEGIN
 FOREACH parent IN ARRAY ARRAY['outbox', 'attempt'] LOOP FOR n IN 1..7 LOOP
  day := (now() AT TIME ZONE 'UTC')::date - n;
  EXECUTE format('CREATE TABLE webhookd.%I PARTITION OF webhookd.%I FOR VALUES FROM (%L) TO (%L)',
   parent || to_char(day, '_YYYYMMDD'), parent, day || ' 00:00:00+00', day + 1 || ' 00:00:00+00');
 END LOOP; END LOOP; END $$"""
READS = {
    "attempts of an endpoint": "/app/t0/attempt/endpoint/ep_100",
    "attempts of an endpoint, with a filter that nothing fits": "/app/t0/attempt/endpoint/ep_100?event_types=none",
    "attempts of an endpoint, of a class that none has": "/app/t0/attempt/endpoint/ep_100?status_code_class=300",
    "attempts of a message": "/app/t0/attempt/msg/{event}",
    "messages": "/app/t0/msg?with_content=false",
    "messages of an endpoint": "/app/t0/endpoint/ep_100/msg",
    "messages of an endpoint that gets few": "/app/t0/endpoint/ep_5000/msg",
    "messages of an endpoint, with a filter that nothing fits": "/app/t0/endpoint/ep_100/msg?event_types=none",
    "messages of an endpoint, that failed": "/app/t0/endpoint/ep_100/msg?status=2",
    "messages of an endpoint, that were delivered, of one that never answers": "/app/t0/endpoint/ep_200/msg?status=0",
    "endpoints of a message": "/app/t0/msg/{event}/endpoint",
    "endpoints": "/app/t0/endpoint?limit=250",
}


async def reading(server: str) -> list[Line]:
    """Each read, the slowest of them, and statistics."""
    lines = []
    async with rig.database(server, "reading") as (dsn, connection):
        await connection.execute(MORE_DAYS)
        await connection.execute(FILL.read_text(), timeout=1_800)
        await connection.execute("VACUUM ANALYZE", timeout=1_800)
        event = await connection.fetchval(
            "SELECT event_id FROM webhookd.outbox WHERE tenant = 't0' ORDER BY id DESC OFFSET 1000 LIMIT 1"
        )
        async with _client(dsn) as (session, base):
            for what, path in READS.items():
                ms = await _ms(session, base + path.format(event=event))
                lines.append(Line(f"API, 10 M attempts: {what}", ms, "ms", READ))
            ms = await _ms(session, f"{base}/app/t0/endpoint/ep_100/stats")
            lines.append(Line("API, 10 M attempts: statistics of an endpoint over a week", ms, "ms", ONE))
        spent = []
        for _ in range(TURNS):
            started = time.perf_counter()
            await connection.fetch("SELECT * FROM webhookd.statistics(0, now() - interval '7 days', now())")
            spent.append((time.perf_counter() - started) * 1000)
        lines.append(Line("statistics of all endpoints over a week", statistics.median(spent), "ms", ALL))
    return lines


@asynccontextmanager
async def _client(dsn: str) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    async with (
        served(dsn, {}, new_key()) as daemon,
        aiohttp.ClientSession(headers={"authorization": f"Bearer {daemon.token}"}) as session,
    ):
        yield session, f"http://{daemon.where}/api/v1"


async def _ms(session: aiohttp.ClientSession, url: str) -> float:
    """How long it takes, the median of some turns."""
    spent: list[float] = []
    for _ in range(TURNS):
        started = time.perf_counter()
        async with session.get(url) as response:
            found: Any = await response.json()
            assert response.status == 200, found
        spent.append((time.perf_counter() - started) * 1000)
    return statistics.median(spent)
