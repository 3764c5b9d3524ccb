"""The cut never loses or repeats an event, whatever transactions do; under the same load `id > last` does."""

import asyncio
import os
from collections import Counter

import asyncpg

from tests.fault.writers import Connection, Writers, insert, payload
from tests.waiting import until
from webhookd.store.statements import QUERIES

SEED = int(os.environ.get("WEBHOOKD_TEST_SEED", "20261120"))
SECONDS = 10.0
CUTTERS = 4
HUGE = 6_000  # events of one transaction, far more than a cut asks for
MOST, PAGE, READ = 1_000, 500, 10_000


async def cut(dsn: str, owner: int, stopped: asyncio.Event) -> int:
    """Cut until stopped and nothing is new; how many cuts found something."""
    connection = await asyncpg.connect(dsn)
    found = 0
    try:
        while True:
            last = stopped.is_set()
            rows = await connection.fetch(QUERIES["cut"], MOST, PAGE, owner, PAGE, READ, [], [], None)
            found += bool(rows)
            if last and not rows and await nothing_is_left(connection):
                return found
            await asyncio.sleep(0.001)
    finally:
        await connection.close()


async def nothing_is_left(connection: Connection) -> bool:
    """As many events are in batches as were committed, or more."""
    return bool(
        await connection.fetchval(
            "SELECT (SELECT count(*) FROM webhookd.outbox) <= (SELECT sum(cardinality(outbox_ids)) FROM webhookd.batch)"
        )
    )


async def read_by_id(dsn: str, stopped: asyncio.Event) -> set[int]:
    """What a reader sees that remembers the last id: the control that must lose."""
    connection = await asyncpg.connect(dsn)
    seen: set[int] = set()
    try:
        while True:
            last = stopped.is_set()
            query = "SELECT id FROM webhookd.outbox WHERE id > $1 ORDER BY id LIMIT 1000"
            rows = await connection.fetch(query, max(seen, default=0))
            seen |= {row["id"] for row in rows}
            if last and not rows:
                return seen
            await asyncio.sleep(0.002)
    finally:
        await connection.close()


async def write_hugely(dsn: str, committed: dict[str, str], stopped: asyncio.Event) -> None:
    """Transactions of thousands of events, with a savepoint in the middle."""
    connection = await asyncpg.connect(dsn)
    try:
        for number in range(1000):
            if stopped.is_set():
                return
            events = {f"huge-{number}-{n}": payload(99, n) for n in range(HUGE)}
            async with connection.transaction():
                for part in (list(events)[: HUGE // 2], list(events)[HUGE // 2 :]):
                    async with connection.transaction():
                        await insert(connection, {id_: events[id_] for id_ in part}, "huge")
            committed |= events
            await asyncio.sleep(0.5)
    finally:
        await connection.close()


async def open_for_long(dsn: str, stopped: asyncio.Event) -> None:
    """A transaction that writes and lives through the whole test: nobody's events may wait for it."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute("CREATE TABLE public.something_else (n int)")
            await stopped.wait()
    finally:
        await connection.close()


async def test_the_cut_never_loses_or_repeats_an_event(dsn: str, sql: Connection) -> None:
    writers = Writers(dsn, SEED, writers=8, pause=0.01, huge=300, long=3.0)
    stopped, written = asyncio.Event(), asyncio.Event()
    huge: dict[str, str] = {}
    async with asyncio.TaskGroup() as group:
        writing = [group.create_task(writers.run()), group.create_task(write_hugely(dsn, huge, stopped))]
        cutters = [group.create_task(cut(dsn, owner, written)) for owner in range(1, CUTTERS + 1)]
        control = group.create_task(read_by_id(dsn, written))
        group.create_task(open_for_long(dsn, stopped))
        await asyncio.sleep(SECONDS)
        # Everything before now is cut although a transaction is still open that began before all of it.
        before = await sql.fetchval("SELECT max(id) FROM webhookd.outbox")
        reached = "SELECT COALESCE(max((SELECT max(u) FROM unnest(outbox_ids) u)), 0) >= $1 FROM webhookd.batch"
        await until(lambda: sql.fetchval(reached, before), "cuts do not wait for a long transaction", interval=0.1)
        stopped.set()
        writers.stop()
        await asyncio.wait(writing)
        written.set()

    committed = writers.committed | huge
    ids = {row["event_id"]: row["id"] for row in await sql.fetch("SELECT event_id, id FROM webhookd.outbox")}
    assert ids.keys() == committed.keys()
    batches = await sql.fetch("SELECT id, owner, outbox_ids FROM webhookd.batch WHERE id > 0 ORDER BY id")
    read = Counter(id_ for batch in batches for id_ in batch["outbox_ids"])
    lost = len(ids.values() - read.keys())
    repeated = sum(times > 1 for times in read.values())
    lost_by_id = len(set(ids.values()) - control.result())
    print(  # noqa: T201 - the figures are what the test is for
        f"seed {SEED}: {len(ids)} events, {len(batches)} batches by {[c.result() for c in cutters]} cuts,"
        f" lost {lost}, repeated {repeated}; by `id > last` lost {lost_by_id} ({lost_by_id / len(ids):.0%})"
    )
    assert (lost, repeated) == (0, 0)
    assert read.keys() == set(ids.values()), "nothing is read that was not committed"
    assert [batch["id"] for batch in batches] == list(range(1, len(batches) + 1)), "batches are dense"
    assert max(len(batch["outbox_ids"]) for batch in batches) <= PAGE
    assert len({batch["owner"] for batch in batches}) > 1, "the cutters raced"
    assert lost_by_id > 0, "the load is too tame: even the naive reader loses nothing"
