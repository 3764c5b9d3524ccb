"""Stopping in order loses nothing and leaves nothing behind; daemons that run side by side do not meet."""

import asyncio
import signal
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from tests.fault.fleet import Fleet
from tests.fault.verdict import ROLES, judge, wait_until_settled
from tests.fault.writers import Connection, Writers, events_of, insert
from tests.waiting import until
from webhookd.model import Batch
from webhookd.store.batches import Batches
from webhookd.store.database import Database

# An endpoint that says nothing for a second has one attempt at a time, and not every machine starts so many in one.
# So what depends on silence comes later here.
IN_FLIGHT = 500
LEASE = 80.0  # seconds; what waited for one would be late by so much
STOP_WITHIN = 30.0


@pytest.mark.parametrize("patience", ["60", "5"], ids=["in_the_batch", "leased_and_spilled"])
async def test_sigterm_with_500_in_flight(processes: Fleet, watched: Connection, patience: str) -> None:
    first, second = ROLES[:2]
    processes.configure({"hold": {"max_in_flight": IN_FLIGHT, "timeout": "60s"}}, delivery={"max_in_flight": IN_FLIGHT})
    receiver = processes.receiver
    arguments = ("--lease-margin", str(LEASE), "--patience", patience, "--aside-after", patience)
    daemon = await processes.start(first, *arguments)
    events = await insert(watched, events_of(0, 800))
    await until(lambda: receiver.count("hold", 0) == IN_FLIGHT, "500 are in flight")
    if patience == "5":
        closed = "SELECT count(*) = 0 FROM webhookd.batch WHERE done_at IS NULL"
        await until(lambda: watched.fetchval(closed), "the backlog has taken over the batches")
    daemon.send(signal.SIGTERM)
    await asyncio.sleep(0.2)  # the signal has to arrive before what must not be claimed
    batches = await watched.fetchval("SELECT count(*) FROM webhookd.batch")
    events |= await insert(watched, events_of(800, 50))
    await asyncio.sleep(0.5)  # for what must not happen
    assert daemon.process.returncode is None, "it waits for what is in flight"
    assert receiver.count("hold", 0) == IN_FLIGHT
    receiver.release()
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await daemon.ended(STOP_WITHIN) == 0, daemon.log()
    took = loop.time() - began

    assert await watched.fetchval("SELECT count(*) FROM webhookd.batch") == batches, "nothing more was claimed"
    assert await watched.fetchval("SELECT count(*) FROM webhookd.attempt WHERE ok") == IN_FLIGHT, "all are recorded"
    assert await watched.fetchval("SELECT count(*) FROM webhookd.attempt") == IN_FLIGHT, "unsent is no attempt"
    assert await watched.fetchval("SELECT count(*) FROM webhookd.backlog WHERE attempts > 0") == 0
    assert (
        await watched.fetchval("SELECT count(*) FROM webhookd.batch WHERE owner IS NOT NULL AND done_at IS NULL") == 0
    )

    began = loop.time()
    await processes.start(second, *arguments)
    started = loop.time() - began
    assert await wait_until_settled(watched), "the next daemon waits for no lease"
    delivered = loop.time() - began - started
    verdict = await judge(watched, events, receiver.receipts(), ["hold"])
    print(f"stopped in {took:.1f} s, the rest delivered {delivered:.1f} s after the start: {verdict}")  # noqa: T201
    assert not verdict.faults
    assert verdict.duplicates == 0


async def test_sigterm_waits_for_timeouts_and_records_them(processes: Fleet, watched: Connection) -> None:
    processes.configure({"hung": {"max_in_flight": IN_FLIGHT, "timeout": "10s"}}, delivery={"max_in_flight": IN_FLIGHT})
    daemon = await processes.start(ROLES[0], "--patience", "60", "--aside-after", "60")
    await insert(watched, events_of(0, IN_FLIGHT))
    await until(lambda: processes.receiver.count("hung", 0) == IN_FLIGHT, "500 are in flight")
    daemon.send(signal.SIGTERM)
    assert await daemon.ended(STOP_WITHIN) == 0, daemon.log()
    rows = await watched.fetch("SELECT error, ok, count(*) FROM webhookd.attempt GROUP BY 1, 2")
    assert [tuple(row) for row in rows] == [("timeout", False, IN_FLIGHT)]
    owed = "SELECT count(*) FROM webhookd.backlog WHERE state = 'retry' AND attempts = 1"
    assert await watched.fetchval(owed) == IN_FLIGHT


async def test_a_second_sigterm_stops_the_command_at_once(processes: Fleet, watched: Connection) -> None:
    processes.configure({"hold": {"timeout": "20s"}})
    daemon = await processes.command(ROLES[0])
    events = await insert(watched, events_of(0, 10))
    await until(lambda: processes.receiver.count("hold", 0) == len(events), "they are in flight")
    daemon.send(signal.SIGTERM)
    with pytest.raises(AssertionError, match="still runs"):
        await daemon.ended(0.5)
    daemon.send(signal.SIGTERM)
    assert await daemon.ended() != 0, "it has not stopped in order, which takes what is in flight"
    processes.receiver.release()
    await processes.start(ROLES[1])
    assert await wait_until_settled(watched)
    verdict = await judge(watched, events, processes.receiver.receipts(), ["hold"])
    assert verdict.faults == set()


async def test_daemons_side_by_side_never_hold_the_same_batch(
    processes: Fleet, watched: Connection, dsn: str, seed: int
) -> None:
    processes.configure({"healthy": {}, "flaky": {"retry": {"schedule": ["200ms"]}}})
    async with asyncio.TaskGroup() as starting:
        for name in ROLES:
            starting.create_task(processes.start(name))
    writers = Writers(dsn, seed, writers=6, pause=0.05, long=0.5)
    async with asyncio.TaskGroup() as load:
        load.create_task(writers.run())
        await until(lambda: len(writers.committed) > 2000, "there was enough load")
        writers.stop()
    processes.receiver.heal()
    assert await wait_until_settled(watched)
    verdict = await judge(watched, writers.committed, processes.receiver.receipts(), ["healthy", "flaky"])
    shares = await watched.fetch("SELECT owner, count(*) FROM webhookd.batch WHERE owner IS NOT NULL GROUP BY 1")
    print(verdict, "batches", [row["count"] for row in shares])  # noqa: T201 - the figures are what the test is for
    assert not verdict.faults
    assert verdict.duplicates == 0
    assert await watched.fetchval("SELECT count(*) FROM audit.taken") == 0, "nobody takes from the living"
    assert len(shares) == 3, "each of them had its share"


async def test_racing_rescuers_share_orphans_without_overlap(watched: Connection, dsn: str) -> None:
    await insert(watched, events_of(0, 600))
    made = await watched.fetch("SELECT * FROM webhookd.cut(5000, 3, NULL)")
    async with Database(dsn, size=8) as database:
        store = Batches(database)

        async def rescue(owner: int) -> list[Batch]:
            taken: list[Batch] = []
            for _ in range(100):
                found = await store.adopt(owner, 0, [b.id for b in taken], steady_until=0.0, dead_after=1.5, most=7)
                taken += found
                if not found:
                    break
            return taken

        found = await asyncio.gather(*map(rescue, range(1, 9)))
    ids = [batch.id for taken in found for batch in taken]
    assert sorted(ids) == sorted(row["batch_id"] for row in made)
    assert {batch.claims for taken in found for batch in taken} == {2}


async def test_nothing_starts_before_its_time(processes: Fleet, watched: Connection) -> None:
    retry = {"schedule": ["1s"], "jitter": 0}
    processes.configure({"healthy": {}, "failing": {"retry": retry}})
    for name in ROLES:
        await processes.start(name)
    now = await watched.fetchval("SELECT clock_timestamp()")
    due = {"soon": now + timedelta(seconds=2), "past": now - timedelta(days=1), "later": now + timedelta(days=1)}
    for event_id, moment in due.items():
        await watched.execute(
            "INSERT INTO webhookd.outbox (event_id, type, payload, deliver_after) VALUES ($1, 'a', '{}', $2)",
            event_id,
            moment,
        )
    receiver = processes.receiver
    await until(lambda: sum(r.id == "soon" and r.attempt == 3 for r in receiver.receipts()), "two retries")
    for receipt in receiver.receipts():
        at = datetime.fromtimestamp(receipt.at, UTC)
        assert at >= due[receipt.id], f"{receipt.id} came {due[receipt.id] - at} early"
    late = min(datetime.fromtimestamp(r.at, UTC) for r in receiver.receipts() if r.id == "soon") - due["soon"]
    for event_id in ("soon", "past"):
        moments = sorted(r.at for r in receiver.receipts() if r.id == event_id and r.path == "/failing")
        gaps = [after - before for before, after in pairwise(moments)]
        assert min(gaps) >= 0.99, f"{event_id}: {gaps}"
    print("late by", late)  # noqa: T201 - the figure is what the test is for
    assert late < timedelta(seconds=1)
