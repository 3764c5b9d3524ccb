"""A delivery that kills whoever tries it stops nobody's for long, and backs off like any that fails."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.fault.fleet import Fleet
from tests.fault.process import DEADLY
from tests.fault.writers import Connection, insert, payload
from tests.waiting import until

INNOCENT = [f"e{n}" for n in range(30)]


@asynccontextmanager
async def kept_alive(processes: Fleet) -> AsyncIterator[Callable[[], int]]:
    """A daemon that is started again whenever it died, as systemd does; how many lives it has had."""
    lives = 0

    async def keep_alive() -> None:
        nonlocal lives
        while True:
            lives += 1
            daemon = await processes.launch("daemon_1")
            await daemon.process.wait()

    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(keep_alive())
        yield lambda: lives
        keeping.cancel()


async def held_off(watched: Connection) -> None:
    """Wait until the deadly one is, and the others are sent."""
    found = (
        "SELECT EXISTS (SELECT FROM webhookd.attempt a JOIN webhookd.outbox o ON o.id = a.outbox_id"
        " WHERE o.event_id = $1 AND a.error = 'internal' AND NOT a.ok)"
    )
    await until(lambda: watched.fetchval(found, DEADLY), "it to be held off", timeout=240)
    others = "SELECT count(*) = $1 FROM webhookd.attempt WHERE ok"
    await until(lambda: watched.fetchval(others, len(INNOCENT)), "the others", timeout=60)


@pytest.mark.timeout(300)
async def test_a_delivery_that_kills_is_held_off_and_the_others_are_sent(processes: Fleet, watched: Connection) -> None:
    processes.configure({"healthy": {"retry": {"schedule": ["1h"]}}})
    await processes.start("daemon_1")
    await processes.stop("daemon_1")
    await insert(watched, {event: payload(0, n) for n, event in enumerate([*INNOCENT, DEADLY])})
    await watched.execute("SELECT batch_id FROM webhookd.cut(1000, 1000, 1)")
    await watched.execute("UPDATE webhookd.batch SET done_at = now() WHERE done_at IS NULL")
    await watched.execute(  # all of it in the backlog, where the batches' own safeguard has left it
        "INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due, clock_from)"
        " SELECT 1, id, created_at, now(), now() FROM webhookd.outbox"
    )
    async with kept_alive(processes) as lives:
        await held_off(watched)
        assert 6 < lives() < 12, processes.log()
    assert await watched.fetchval("SELECT due > now() + interval '40 min' FROM webhookd.backlog")
    assert await watched.fetchval("SELECT count(*) FROM webhookd.attempt WHERE NOT ok") == 1
    assert processes.receiver.count("healthy") <= len(INNOCENT) * 4


@pytest.mark.timeout(300)
async def test_one_that_a_cursor_comes_to_is_held_off_too(processes: Fleet, watched: Connection) -> None:
    """Whose endpoint is parked has no batch that counts who died of it."""
    processes.configure({"healthy": {"retry": {"schedule": ["1h"]}}})
    await processes.start("daemon_1")
    await watched.execute("SELECT webhookd.pause(array_agg(id)) FROM webhookd.endpoint")
    await insert(watched, {event: payload(0, n) for n, event in enumerate([*INNOCENT, DEADLY])})
    waits = "SELECT count(*) = 1 FROM webhookd.batch WHERE done_at IS NOT NULL AND cardinality(outbox_ids) > 1"
    await until(lambda: watched.fetchval(waits), "them to wait for the cursor")
    await processes.stop("daemon_1")
    await watched.execute("SELECT webhookd.resume(array_agg(id)) FROM webhookd.endpoint")
    async with kept_alive(processes) as lives:
        await held_off(watched)
        assert 6 < lives() < 18, processes.log()  # it may be spilled before the cursor is suspected
    assert await watched.fetchval("SELECT due > now() + interval '40 min' FROM webhookd.backlog")
    assert await watched.fetchval("SELECT count(*) FROM webhookd.attempt WHERE NOT ok") == 1
