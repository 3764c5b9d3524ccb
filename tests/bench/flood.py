"""What another tenant notices of half a million events, in one transaction and in thousands."""

import asyncio
import time
from typing import Any

from tests.bench import rig
from tests.bench.isolation import INSERT, MANY
from tests.bench.line import Line

EVENTS = 500_000
PROBES, PAUSE = 60, 0.3  # events of the other tenant while the flood is worked off, and seconds between them
TRANSACTIONS, EACH, SECONDS = 5_000, 100, 10.0
KINDS: tuple[tuple[str, int, dict[str, str]], ...] = (
    ("1 endpoint", 1, {}),
    ("30 endpoints", 30, {}),
    ("1 endpoint at 100/s", 1, {"rate_limit": "100/s"}),
    ("100 endpoints at 1/s", 100, {"rate_limit": "1/s"}),
)
OF_A = """INSERT INTO webhookd.outbox (type, tenant, payload)
          SELECT 'flood', 'a', to_json(repeat('x', 1000)) FROM generate_series(1, $1::int)"""
OF_B = """INSERT INTO webhookd.outbox (type, tenant, payload) VALUES ('flood', 'b', to_json(repeat('x', 1000)))
          RETURNING event_id"""


async def flood(server: str) -> list[Line]:
    """The longest wait of an event of another, the rows and the memory it takes; for endpoints quick and hung.

    Then the same wait beside thousands of transactions, for few and many endpoints, also with a rate of their own.
    """
    lines = [line for name in ("quick", "hung") for line in await _flood(server, name)]
    for number, (kind, endpoints, limits) in enumerate(KINDS):
        lines += await _transactions(server, f"flood_{number}", kind, endpoints, limits)
    return lines


async def _flood(server: str, name: str) -> list[Line]:
    async with rig.receiver() as url, rig.database(server, f"flood_{name}") as (dsn, connection):
        endpoints = {
            "large": {"url": f"{url}/{name}", "events": ["large"]},
            "small": {"url": f"{url}/small", "events": ["small"]},
        }
        async with rig.daemon(dsn, endpoints) as daemon, rig.asking(dsn) as other:
            await connection.fetchval(INSERT, "small")
            await rig.until_recorded(connection, 1)
            committed: dict[str, float] = {}
            received: dict[str, float] = {}
            await connection.execute(MANY, "large", EVENTS, 1)
            for _ in range(PROBES):
                committed[await other.fetchval(INSERT, "small")] = time.monotonic()
                await asyncio.sleep(PAUSE)
                received |= await rig.moments(url)
            await asyncio.sleep(5.0)  # what takes longer counts as lost
            received |= await rig.moments(url)
            waits = [received.get(event_id, float("inf")) - moment for event_id, moment in committed.items()]
            rows = await connection.fetchval("SELECT count(*) FROM webhookd.backlog")
            memory = daemon.memory_info().rss / 2**20
    what = f"{EVENTS:,} events in one transaction for a {name} endpoint"
    return [
        Line(f"longest wait of another's event beside {what}", max(waits), "s", 2.0),
        Line(f"rows in the backlog beside {what}", rows, "rows", 2_500),
        Line(f"resident memory beside {what}", memory, "MiB", 150.0),
    ]


async def _transactions(server: str, name: str, kind: str, count: int, limits: dict[str, Any]) -> list[Line]:
    async with rig.receiver() as url, rig.database(server, name) as (dsn, connection):
        endpoints: dict[str, dict[str, Any]] = {
            f"a-{n}": {"url": f"{url}/quick", "events": ["flood"], "tenant": "a", **limits} for n in range(count)
        }
        endpoints["b"] = {"url": f"{url}/small", "events": ["flood"], "tenant": "b"}
        async with rig.daemon(dsn, endpoints) as daemon, rig.asking(dsn) as other:
            await connection.fetchval(OF_B)
            await rig.until_recorded(connection, 1)
            committed: dict[str, float] = {}
            received: dict[str, float] = {}
            async with asyncio.TaskGroup() as group:
                flooding = group.create_task(_flood_for_ten_seconds(connection))
                while len(committed) < PROBES or not flooding.done():
                    committed[await other.fetchval(OF_B)] = time.monotonic()
                    await asyncio.sleep(PAUSE)
                    received |= await rig.moments(url)
            await asyncio.sleep(5.0)  # what takes longer counts as lost
            received |= await rig.moments(url)
            waits = [received.get(event_id, float("inf")) - moment for event_id, moment in committed.items()]
            memory = daemon.memory_info().rss / 2**20
    what = f"{TRANSACTIONS:,} transactions of {EACH} for {kind}"
    return [
        Line(f"longest wait of another tenant's event beside {what}", max(waits), "s", 2.0),
        Line(f"resident memory beside {what}", memory, "MiB", 150.0),
    ]


async def _flood_for_ten_seconds(connection: Any) -> None:
    started = time.monotonic()
    for number in range(TRANSACTIONS):
        await connection.execute(OF_A, EACH)
        await asyncio.sleep(max(started + number * SECONDS / TRANSACTIONS - time.monotonic(), 0))
