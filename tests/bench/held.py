"""Whether the daemon stays quick while another session holds a snapshot, under which no dead row can be removed.

sample ──▶ a while with single events ──▶ as long with many a transaction ──▶ sample
"""

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from tests.bench import rig
from tests.bench.cost import DEAD
from tests.bench.line import Line
from tests.bench.pgbench import pgbench
from webhookd.store.backlog import SLACK
from webhookd.store.statements import QUERIES

SECONDS = 60.0
SAMPLING = 10.0  # seconds at the start, and at the end
RATE = 1_000.0
MANY = 100  # events a transaction, as in the benchmark of the cost
FLAKY_RATE = 1.0  # of these each fails once, so that the backlog has rows that come and go
INSERT = (
    "INSERT INTO webhookd.outbox (type, payload)"
    " SELECT '{type}', to_json(repeat('x', 1000)) FROM generate_series(1, {events})"
)
# Owed by an endpoint that this daemon does not know, so they stay, and stay due.
STRANGER, OWED = 1_000_000, 1_000
OWE = """
    INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due)
    SELECT $1, -number, now(), now() - interval '1 hour' FROM generate_series(1, $2::int) number
"""
CUT: tuple[object, ...] = 5_000, 500, 0, 0, 5_000, [], [], None  # what a reader with nothing in hand asks for
FILL = 0.02  # seconds for which events gather for a cut
PAUSE = 0.1  # seconds between two samples, in which the daemon cuts
REST = 0.002  # seconds after which the server has come to rest
REPORTED = 11.0  # seconds after which the server knows what an idle session did: it reports after 10 at the latest
SAMPLES_LEAST = 30
INSERTED = "SELECT last_value::float8 FROM webhookd.outbox_id_seq"
BATCHES = "SELECT max(id)::float8 FROM webhookd.batch"
DELIVERED = "SELECT count(*)::float8, extract(epoch FROM clock_timestamp())::float8 FROM webhookd.attempt WHERE ok"


class Samples(NamedTuple):
    """Milliseconds of each statement."""

    loaded: list[float]
    idle: list[float]
    claim: list[float]


class Counts(NamedTuple):
    """Rows updated or deleted, events and batches."""

    dead: float
    events: float
    batches: float


async def held(server: str, seconds: float = SECONDS) -> list[Line]:
    """1,000 deliveries a second, and two failures, while a snapshot is held; what the statements take at both ends."""
    dead: dict[int, Counts] = {}
    async with rig.receiver() as url, rig.database(server, "held") as (dsn, connection):
        endpoints = {"a": {"url": url + "/a", "events": ["order.*"]}, "b": {"url": url + "/flaky", "events": ["flaky"]}}
        async with rig.daemon(dsn, endpoints), rig.asking(dsn) as asking:
            flaky = await connection.fetchval("SELECT id FROM webhookd.endpoint WHERE name = 'b'")
            await connection.execute(OWE, STRANGER, OWED)
            await _flow(dsn, 1, 3.0)  # connections, plans and caches
            async with _snapshot(dsn), asyncio.TaskGroup() as group:
                statement = INSERT.format(type="flaky", events=1)
                group.create_task(pgbench(dsn, statement, clients=1, seconds=seconds, rate=FLAKY_RATE), name="flaky")
                start = await connection.fetchrow(DELIVERED)
                first = await _sampled(dsn, asking, [flaky, STRANGER])
                counts = [await _counts(connection)]
                for events in (1, MANY):
                    await _flow(dsn, events, (seconds - 2 * SAMPLING) / 2)
                    counts.append(await _counts(connection))
                    dead[events] = Counts(*(now - then for then, now in zip(*counts[-2:], strict=True)))
                last = await _sampled(dsn, asking, [flaky, STRANGER])
                end = await connection.fetchrow(DELIVERED)
    flowing = end[1] - start[1] - len(counts) * REPORTED  # seconds; nothing flows while it is waited for counts
    during = f"{seconds:.0f} s of a held snapshot"
    few = f"{RATE * FILL:.0f} events"
    return [
        Line(f"cut of {few}, after / before {during}", _growth(first.loaded, last.loaded), "ratio", 1.5),
        Line(f"cut of nothing, after / before {during}", _growth(first.idle, last.idle), "ratio", 1.5),
        Line(f"claim, after / before {during}", _growth(first.claim, last.claim), "ratio", 1.5),
        Line(f"dead rows per delivery, {MANY} events a transaction", dead[MANY].dead / dead[MANY].events, "rows", 0.02),
        # Batches are small then, for the sake of latency, and each is updated once however few events it has.
        Line("dead rows per batch, 1 event a transaction", dead[1].dead / dead[1].batches, "rows", 1.25),
        Line("deliveries per second meanwhile", (end[0] - start[0]) / flowing, "per s", RATE * 0.95, True),
    ]


@asynccontextmanager
async def _snapshot(dsn: str) -> AsyncIterator[None]:
    """Another session's snapshot, held open."""
    async with rig.asking(dsn) as holder, holder.transaction(isolation="repeatable_read"):
        await holder.fetchval("SELECT 1")
        yield


async def _flow(dsn: str, events: int, seconds: float) -> None:
    """Events at RATE, so many in a transaction."""
    statement = INSERT.format(type="order.created", events=events)
    await pgbench(dsn, statement, clients=8, seconds=seconds, rate=RATE / events)


async def _counts(connection: Any) -> Counts:
    """What is counted now, with all that went before."""
    await asyncio.sleep(REPORTED)
    return Counts(*[await connection.fetchval(query) for query in (DEAD, INSERTED, BATCHES)])


async def _sampled(dsn: str, connection: Any, endpoints: list[int]) -> Samples:
    """Time the statements while single events flow."""
    samples = Samples([], [], [])
    async with asyncio.TaskGroup() as group:
        flowing = group.create_task(_flow(dsn, 1, SAMPLING), name="flow")
        while not flowing.done():
            await _cuts(connection, samples)
            await _claim(connection, endpoints, samples)
            await asyncio.sleep(PAUSE)
    assert min(map(len, samples)) >= SAMPLES_LEAST, f"only {[len(each) for each in samples]} samples"
    return samples


async def _cuts(connection: Any, samples: Samples) -> None:
    """Time a cut of a few events and one of none, and take them back."""
    # A cut gives nothing while another runs, so the lock is ours before it begins.
    transaction = connection.transaction()
    await transaction.start()
    try:
        if await connection.fetchval("SELECT webhookd.try_lock_log()"):
            await asyncio.sleep(FILL)
            samples.loaded.append(await _timed(connection, "cut", *CUT))
            # Nothing comes between the last two, so that the second of these finds nothing.
            await connection.execute("LOCK TABLE webhookd.outbox IN SHARE MODE")
            await connection.fetch(QUERIES["cut"], *CUT)
            samples.idle.append(await _timed(connection, "cut", *CUT))
    finally:
        await transaction.rollback()


async def _claim(connection: Any, endpoints: list[int], samples: Samples) -> None:
    """Time a claim for these endpoints, and take it back."""
    transaction = connection.transaction()
    await transaction.start()
    owing = dict(await connection.fetch(QUERIES["owing"]))
    overdue = [SLACK - owing.get(id_, 0.0) for id_ in endpoints]
    arguments = endpoints, [10] * len(endpoints), [45.0] * len(endpoints), overdue, 0, 15.0, 3, True
    samples.claim.append(await _timed(connection, "claim", *arguments))
    await transaction.rollback()


async def _timed(connection: Any, query: str, *arguments: object) -> float:
    """Milliseconds of CPU the server spends on a statement: unlike those of a clock they hardly know neighbours."""
    before = rig.cpu_of_backend(connection)
    await connection.fetch(QUERIES[query], *arguments)
    await asyncio.sleep(REST)
    return (rig.cpu_of_backend(connection) - before) * 1000


def _growth(first: list[float], last: list[float]) -> float:
    return statistics.median(last) / statistics.median(first)
