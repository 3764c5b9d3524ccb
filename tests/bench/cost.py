"""What one delivery costs: CPU of the daemon beside a bare loop, WAL, and dead rows."""

import asyncio
import statistics
import time
from typing import Any

from tests.bench import rig
from tests.bench.line import Line

PAIRS = 40  # of a slice of the bare loop and one of the daemon, since machines have moods that last for seconds
EVENTS = 3_000  # in each slice
WARM_UP = 6_000  # the first touch of each page of a fresh database is logged whole, which is no delivery's work
PER_TRANSACTION = 100
INSERT = (
    "INSERT INTO webhookd.outbox (type, payload)"
    f" SELECT 'order.created', to_json(repeat('x', 1000)) FROM generate_series(1, {PER_TRANSACTION})"
)
# Every update and delete leaves a dead row; HOT ones are counted too.
DEAD = """
    SELECT sum(n_tup_upd + n_tup_del)::float8 FROM pg_stat_user_tables WHERE schemaname = 'webhookd'
"""


async def cost(server: str) -> list[Line]:
    """1 KB payloads to one healthy endpoint, inserted while the daemon delivers."""
    async with rig.database(server, "alone") as (_, connection):
        await inserted(connection, WARM_UP)
        alone = await inserted(connection, EVENTS * PAIRS)
    ratios, rates, bytes_of_wal = [], [], -alone
    async with (
        rig.receiver() as url,
        rig.process("tests.bench.bare", url + "/bare") as bare,
        rig.database(server, "cost") as (dsn, connection),
    ):
        async with rig.daemon(dsn, {"a": {"url": url + "/a", "events": ["*"]}}) as daemon:
            await _ask(bare, EVENTS)
            await inserted(connection, WARM_UP)
            await rig.until_recorded(connection, WARM_UP)
            for number in range(PAIRS):
                cpu = rig.cpu(bare)
                await _ask(bare, EVENTS)
                of_bare = rig.cpu(bare) - cpu
                cpu, start, started = rig.cpu(daemon), await rig.wal(connection), time.monotonic()
                await inserted(connection, EVENTS)
                await rig.until_recorded(connection, WARM_UP + EVENTS * (number + 1), look=0.02)
                rates.append(EVENTS / (time.monotonic() - started))
                ratios.append((rig.cpu(daemon) - cpu) / of_bare)
                bytes_of_wal += await rig.wal(connection) - start
        dead = await connection.fetchval(DEAD)
    deliveries = EVENTS * PAIRS
    return [
        Line("CPU of the daemon per delivery / a bare signing POST loop", statistics.median(ratios), "ratio", 1.15),
        Line("WAL per delivery, the outbox row not counted", bytes_of_wal / deliveries, "B", 215.0),
        Line("dead rows per delivery, HOT ones included", dead / deliveries, "rows", 0.02),
        Line(
            "seconds per 1,000 deliveries, Postgres and receiver on the same 2 cores",
            1000 / statistics.median(rates),
            "s",
            1.0,
        ),
    ]


async def inserted(connection: Any, events: int) -> float:
    """Insert so many events; the bytes of WAL while that lasted."""
    start = await rig.wal(connection)
    for _ in range(events // PER_TRANSACTION):
        await connection.execute(INSERT)
    return await rig.wal(connection) - start


async def _ask(bare: asyncio.subprocess.Process, requests: int) -> None:
    """Let the bare loop send so many."""
    assert bare.stdin is not None
    bare.stdin.write(b"%d\n" % requests)
    assert await rig.line(bare) == "done"
