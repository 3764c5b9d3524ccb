"""The database is away, silent, or its reply gets lost: nothing is lost and nothing is recorded twice."""

import asyncio
import signal
from collections.abc import AsyncIterator

import psutil
import pytest

from tests.fault.fleet import Fleet
from tests.fault.proxy import Part, Proxy
from tests.fault.verdict import ROLES, judge, wait_until_settled
from tests.fault.writers import Connection, Writers, events_of, insert
from tests.waiting import until

MOST_MEMORY = 150 * 1024**2
DEAD_AFTER = 1.5  # seconds, at a tenth of the pace
SILENT_AFTER = 1.0
TWICE = """SELECT count(*) FROM (
  SELECT FROM webhookd.attempt GROUP BY outbox_id, endpoint_id, attempt, at HAVING count(*) > 1) a"""
# Two requests may have the same number, when the first one could not be recorded in time; no two have the same moment.
TAKEN = "SELECT count(*) FROM audit.taken WHERE from_owner <> to_owner"


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    """What the daemons take for the database."""
    async with Proxy(dsn) as made:
        yield made


@pytest.mark.parametrize("part", ["request", "reply"])
@pytest.mark.parametrize("statement", ["webhookd.cut(", "UPDATE webhookd.batch b SET owner", "FROM pick p", "COMMIT"])
async def test_a_message_gets_lost(
    processes: Fleet, watched: Connection, proxy: Proxy, statement: str, part: Part
) -> None:
    name = ROLES[0]
    # A claim that is lost is a lease that runs out, so the timeout is short.
    processes.configure({"healthy": {}, "failing": {"timeout": "1s", "retry": {"schedule": ["200ms"]}}})
    await processes.start(name, dsn=proxy.dsn(name))
    proxy.freeze()
    events = await insert(watched, events_of(0, 50))
    if "batch" in statement:  # somebody else's, given back
        await watched.fetch("SELECT * FROM webhookd.cut(5000, 500, NULL)")
    proxy.lose(part, statement)
    proxy.heal()
    await until(lambda: processes.receiver.count("healthy") >= len(events), "all are received")
    processes.receiver.heal()
    assert await wait_until_settled(watched)
    assert proxy.lost == 1
    verdict = await judge(watched, events, processes.receiver.receipts(), ["healthy", "failing"])
    claims = await watched.fetchval("SELECT max(claims) FROM webhookd.batch WHERE outbox_ids <> '{}'")
    print(statement, part, verdict, "claims", claims)  # noqa: T201 - the figures are what the test is for
    assert not verdict.faults
    assert verdict.duplicates == 0
    assert await watched.fetchval(TWICE) == 0
    expected = 1 + ("batch" in statement)
    unknown = part == "reply" and statement not in ("COMMIT", "FROM pick p")
    assert claims == expected + unknown, "what we own and do not know is adopted"


async def test_ten_seconds_without_a_database(
    processes: Fleet, watched: Connection, dsn: str, proxy: Proxy, seed: int
) -> None:
    paths = ["healthy", "flaky", "hung"]
    retry = {"schedule": ["300ms", "1s"]}
    processes.configure({path: {"timeout": "1s", "retry": retry, "max_in_flight": 5} for path in paths})
    for name in ROLES[:2]:
        await processes.start(name, dsn=proxy.dsn(name))
    writers = Writers(dsn, seed)
    receiver = processes.receiver
    async with asyncio.TaskGroup() as load:
        load.create_task(writers.run())
        await until(lambda: receiver.count("healthy") > 100, "the load flows")
        proxy.cut()
        await asyncio.sleep(4)
        before = len(receiver.receipts())
        committed = len(writers.committed)
        await asyncio.sleep(6)
        assert len(receiver.receipts()) == before, "what was claimed is sent, and nothing is claimed"
        assert len(writers.committed) > committed + 100, "applications do not notice"
        memory = [psutil.Process(daemon.process.pid).memory_info().rss for daemon in processes.daemons.values()]
        writers.stop()
    proxy.heal()
    receiver.heal()
    assert await wait_until_settled(watched), processes.log()
    verdict = await judge(watched, writers.committed, receiver.receipts(), paths)
    taken = await watched.fetchval(TAKEN)
    print(verdict, "MiB", [size // 1024**2 for size in memory], "taken", taken)  # noqa: T201 - the figures
    assert not verdict.faults
    assert await watched.fetchval(TWICE) == 0
    assert max(memory) < MOST_MEMORY


async def both_hold_a_batch(processes: Fleet, sql: Connection, proxy: Proxy) -> dict[str, str]:
    """Two daemons with batches in flight that have been alive long enough to call others dead; the events they have."""
    processes.configure({"hold": {"timeout": "300s", "max_in_flight": 100}})
    for name in ROLES[:2]:
        await processes.start(name, "--patience", "300", dsn=proxy.dsn(name))
    events: dict[str, str] = {}
    owners = "SELECT count(DISTINCT owner) FROM webhookd.batch WHERE done_at IS NULL"
    while await sql.fetchval(owners) < 2 and len(events) < 100:
        events |= await insert(sql, events_of(len(events), 1))
        wanted = len(events)
        await until(lambda: processes.receiver.count("hold", 0) == wanted, "the event is in flight")  # noqa: B023
    assert await sql.fetchval(owners) == 2
    start = await sql.fetchval("SELECT max(beat_at) FROM webhookd.daemon")
    steady = "SELECT min(beat_at) > $1::timestamptz + $2::float8 * interval '1 s' FROM webhookd.daemon"
    await until(lambda: sql.fetchval(steady, start, 2 * DEAD_AFTER), "both are steady")
    return events


@pytest.mark.parametrize("how", [pytest.param("cut", marks=pytest.mark.long), "freeze"])
async def test_an_outage_makes_no_daemon_look_dead(
    processes: Fleet, watched: Connection, proxy: Proxy, how: str
) -> None:
    events = await both_hold_a_batch(processes, watched, proxy)
    for _ in range(3):
        before = await watched.fetchval("SELECT max(beat_at) FROM webhookd.daemon")
        getattr(proxy, how)()
        await asyncio.sleep(2 * DEAD_AFTER)
        proxy.heal()
        again = "SELECT min(beat_at) > $1::timestamptz + $2::float8 * interval '1 s' FROM webhookd.daemon"
        await until(lambda: watched.fetchval(again, before, 4 * DEAD_AFTER), "both beat again")  # noqa: B023
    taken = await watched.fetchval("SELECT count(*) FROM audit.taken")  # their own by themselves included
    sent = processes.receiver.count("hold", 0)
    assert (taken, sent) == (0, len(events)), f"{taken} adoptions of batches in flight at living daemons"


@pytest.mark.parametrize("how", ["cut", pytest.param("freeze", marks=pytest.mark.long)])
async def test_who_cannot_beat_starts_no_attempts(
    processes: Fleet, watched: Connection, proxy: Proxy, how: str
) -> None:
    name = ROLES[0]
    processes.configure({"slow": {"max_in_flight": 1}})
    await processes.start(name, "--patience", "60", dsn=proxy.dsn(name))
    await insert(watched, events_of(0, 150))
    receiver = processes.receiver
    await until(lambda: receiver.count("slow") > 5, "they are sent one after the other")
    getattr(proxy, how)()
    await asyncio.sleep(2 * SILENT_AFTER)
    before = receiver.count("slow")
    await asyncio.sleep(3 * SILENT_AFTER)
    after = receiver.count("slow")
    proxy.heal()
    assert after <= before + 1, f"{after - before} attempts of a daemon that everybody takes for dead"
    assert await wait_until_settled(watched)


@pytest.mark.long
async def test_sigterm_while_the_database_is_silent(processes: Fleet, watched: Connection, proxy: Proxy) -> None:
    name = ROLES[0]
    processes.configure({"healthy": {}})
    daemon = await processes.start(name, dsn=proxy.dsn(name))
    proxy.freeze()
    daemon.send(signal.SIGTERM)
    assert await daemon.ended(30) == 0
