"""What one delivery costs: CPU of the daemon beside a bare loop, WAL, and dead rows."""

import statistics
import time
from typing import Any

from tests.bench import rig
from tests.bench.line import Line

EVENTS = 40_000
WARM_UP = 2_000  # the first touch of each page of a fresh database is logged whole, which is no delivery's work
ROUNDS = 3
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
    ratios, bytes_of_wal, dead, rates = [], [], [], []
    async with rig.receiver() as url:
        for turn in range(ROUNDS):
            async with rig.process("tests.bench.bare", url + "/bare", str(EVENTS // 2)) as bare:
                bare_cpu = float(await rig.line(bare))
            async with rig.database(server, f"alone_{turn}") as (_, connection):
                await _insert(connection, WARM_UP)
                alone = await _insert(connection, EVENTS)
            async with rig.database(server, f"cost_{turn}") as (dsn, connection):
                endpoint = {"url": url + "/a", "events": ["*"]}
                async with rig.daemon(dsn, {"a": endpoint}) as daemon:
                    await _insert(connection, WARM_UP)
                    await rig.until_recorded(connection, WARM_UP)
                    cpu, start, started = rig.cpu(daemon), await rig.wal(connection), time.monotonic()
                    await _insert(connection, EVENTS)
                    await rig.until_recorded(connection, EVENTS + WARM_UP)
                    rates.append(EVENTS / (time.monotonic() - started))
                    ratios.append((rig.cpu(daemon) - cpu) / EVENTS * 1e6 / bare_cpu)
                    bytes_of_wal.append((await rig.wal(connection) - start - alone) / EVENTS)
                dead.append(await connection.fetchval(DEAD) / EVENTS)
    return [
        Line("CPU of the daemon per delivery / a bare signing POST loop", statistics.median(ratios), "ratio", 1.25),
        Line("WAL per delivery, the outbox row not counted", statistics.median(bytes_of_wal), "B", 215.0),
        Line("dead rows per delivery, HOT ones included", statistics.median(dead), "rows", 0.02),
        Line(
            "seconds per 1,000 deliveries, Postgres and receiver on the same 2 cores",
            1000 / statistics.median(rates),
            "s",
            1.0,
        ),
    ]


async def _insert(connection: Any, events: int) -> float:
    """Insert so many events; the bytes of WAL while that lasted."""
    start = await rig.wal(connection)
    for _ in range(events // PER_TRANSACTION):
        await connection.execute(INSERT)
    return await rig.wal(connection) - start
