"""Through Debian's pgbouncer in transaction mode everything works, and its connections are left as they were."""

import asyncio
import json
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from tests.fault.fleet import Fleet
from tests.fault.pooler import CONNECTIONS, PROGRAM, Pooler
from tests.fault.verdict import ROLES, judge, wait_until_settled
from tests.fault.writers import Connection, Writers, insert, payload
from tests.integration.cli.test_cli import webhookd
from tests.integration.store.test_database import stand_still
from tests.stopwatch import Stopwatch, family
from tests.waiting import until
from webhookd.errors import StoreUnavailable
from webhookd.store import database
from webhookd.store.database import Database

pytestmark = pytest.mark.skipif(not Path(PROGRAM).exists(), reason="Debian's pgbouncer is not installed")

ROLE = ROLES[0]  # of all daemons of a test, which therefore share the pooler's few connections
ENDPOINTS: dict[str, dict[str, object]] = {
    "healthy": {"timeout": "3s"},  # a claim whose reply is lost stays leased for that long, and some seconds more
    "flaky": {"timeout": "3s", "retry": {"schedule": ["300ms"]}},
    "flaky/too": {"timeout": "3s", "retry": {"schedule": ["500ms", "5s"]}},
}
AWAY = "The database does not answer"  # in a log
SOME = 300  # failures of an endpoint that is not left alone for them
PACE = 0.3  # at a tenth a daemon that must wait its turn is soon taken for dead
PROBES = 40
SELDOM = 1.0  # seconds between the looks of a reader that nobody wakes: ten times what a wake-up may take
TWICE = """SELECT count(*) FROM (
  SELECT FROM webhookd.attempt GROUP BY outbox_id, endpoint_id, attempt, at HAVING count(*) > 1) a"""
ASLEEP = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND (classid, objid) = (7301, 2) AND granted
  AND mode = 'ExclusiveLock' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
SERVERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = $1"


@pytest.fixture
async def pooler(dsn: str) -> AsyncIterator[Pooler]:
    """What the daemons take for the server."""
    async with Pooler(dsn) as made:
        yield made


async def clean(pooler: Pooler, role: str = ROLE) -> None:
    """Fail if anything is left on a connection that others use, too."""
    left = await pooler.left(role)
    assert len(left) == CONNECTIONS
    assert not any(left.values()), left


async def waits(
    processes: Fleet, sql: Connection, seed: int, others: Sequence[int]
) -> tuple[dict[str, str], list[float]]:
    """Single events at random moments of an idle time, and the sorted seconds from their commits to their receipts.

    On a stopwatch that knows `others`, who have a part in it.
    """
    dice = random.Random(f"{seed}-probes")
    events: dict[str, str] = {}
    took = []
    for number in range(1, PROBES + 1):
        await asyncio.sleep(dice.uniform(0.1, 0.3))
        events |= await insert(sql, {f"probe-{number}": payload(0, number)})
        committed, watch = time.time(), Stopwatch(*others)
        await until(lambda: processes.receiver.count("healthy") == number, "it is received")  # noqa: B023
        left_out = watch.left_out
        at = max(r.at for r in processes.receiver.receipts() if r.path == "/healthy")
        took.append(at - committed - left_out)
    return events, sorted(took)


@pytest.mark.parametrize(
    "woken", [True, pytest.param(False, marks=pytest.mark.long)], ids=["with_direct_dsn", "without_direct_dsn"]
)
async def test_two_daemons_deliver_through_it(
    processes: Fleet, watched: Connection, pooler: Pooler, dsn: str, seed: int, woken: bool
) -> None:
    processes.configure(ENDPOINTS)
    arguments = ("--pace", str(PACE), *(("--poll", str(SELDOM)) if woken else ()))
    for name in ("one", "two"):
        await processes.start(name, *arguments, dsn=pooler.dsn(ROLE), direct_dsn=dsn if woken else "")
    if woken:
        await until(lambda: watched.fetchval(ASLEEP), "a daemon sleeps, and wants to be woken")
    receiver = processes.receiver
    ours = [each.process.pid for each in processes.daemons.values()]
    events, took = await waits(
        processes, watched, seed, [*ours, receiver.pid, pooler.pid, *family(watched.get_server_pid())]
    )
    writers = Writers(dsn, seed)
    looks = 0
    async with asyncio.TaskGroup() as load:
        load.create_task(writers.run())
        loop = asyncio.get_running_loop()
        end = loop.time() + 40
        while (len(writers.committed) < 1_000 or receiver.count("flaky", 500) < SOME) and loop.time() < end:
            await clean(pooler)
            assert woken or not await watched.fetchval(ASLEEP), "nobody is asked for what cannot arrive"
            looks += 1
            await asyncio.sleep(0.2)
        writers.stop()
    shared = await watched.fetchval(SERVERS, ROLE)
    receiver.heal()
    assert await wait_until_settled(watched), processes.log()
    events |= writers.committed
    verdict = await judge(watched, events, receiver.receipts(), list(ENDPOINTS))
    print(  # noqa: T201 - the figures are what the test is for
        f"commit to receipt p50 {statistics.median(took) * 1000:.1f} ms, p90 {took[int(PROBES * 0.9)] * 1000:.1f} ms;"
        f" {len(events)} events, {receiver.count('flaky', 500)} failures; {looks} looks; {verdict}"
    )
    assert len(events) > 1_000
    assert receiver.count("flaky", 500) >= SOME, processes.log()
    assert not verdict.faults, processes.log()
    assert await watched.fetchval(TWICE) == 0
    if woken:
        assert statistics.median(took) < SELDOM / 10, "they are woken"
    else:
        assert statistics.median(took) < 0.1, "they look often enough"
    assert shared == CONNECTIONS, "nobody goes around the pooler but to listen"
    await clean(pooler)
    for name in ("one", "two"):
        await processes.stop(name)
    await clean(pooler)
    assert await watched.fetchval("SELECT count(*) FROM webhookd.daemon WHERE stopped_at IS NULL") == 0


async def test_a_pooler_that_is_restarted_while_events_flow(
    processes: Fleet, watched: Connection, pooler: Pooler, dsn: str, seed: int
) -> None:
    processes.configure(ENDPOINTS)
    for name in ROLES[:2]:
        await processes.start(name, "--pace", str(PACE), dsn=pooler.dsn(name), direct_dsn=dsn)
    receiver = processes.receiver
    writers = Writers(dsn, seed)
    async with asyncio.TaskGroup() as load:
        load.create_task(writers.run())
        for how in (signal.SIGTERM, signal.SIGKILL):
            before = receiver.count("healthy")
            await until(lambda: receiver.count("healthy") > before + 300, "the load flows")  # noqa: B023
            seen = processes.log().count(AWAY)
            await pooler.stop(how)
            await until(lambda: processes.log().count(AWAY) > seen, "a daemon notices")  # noqa: B023
            committed = len(writers.committed)
            await until(lambda: len(writers.committed) > committed + 100, "applications do not notice")  # noqa: B023
            await pooler.start()
        writers.stop()
    receiver.heal()
    assert await wait_until_settled(watched), processes.log()
    verdict = await judge(watched, writers.committed, receiver.receipts(), list(ENDPOINTS))
    print(len(writers.committed), "events", verdict, f"{verdict.duplicate_share:.2%} twice")  # noqa: T201 - the figures
    assert not verdict.faults, processes.log()
    assert await watched.fetchval(TWICE) == 0
    for name in ROLES[:2]:
        await processes.stop(name)
        await clean(pooler, name)


async def test_a_transaction_that_stands_still_lets_go_of_its_rows(
    watched: Connection, pooler: Pooler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE_SECONDS", 0.3)
    async with Database(pooler.dsn(ROLE), size=1) as store:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await stand_still(store, watched)
        assert (await store.fetch_row("SELECT owner FROM webhookd.batch WHERE id = 0"))[0] == 7
    await clean(pooler)


async def test_the_commands_go_through_it(
    processes: Fleet, watched: Connection, pooler: Pooler, tmp_path: Path
) -> None:
    processes.configure({"healthy": {}})
    await processes.start("one", dsn=pooler.dsn(ROLE))

    async def said(*arguments: str) -> str:
        environment = {"WEBHOOKD_CONFIG": str(tmp_path / "one.toml")}
        found = await asyncio.to_thread(partial(webhookd, *arguments, env=environment))
        assert (found.returncode, found.stderr) == (0, ""), arguments
        return found.stdout

    event_id = (await said("emit", "order.created", '{"n": 1}')).split()[0]
    await until(lambda: processes.receiver.count("healthy") == 1, "the event is received")
    assert await wait_until_settled(watched)
    assert json.loads(await said("events", "--json"))["events"][0]["event_id"] == event_id
    status = json.loads(await said("status", "--json"))
    assert (len(status["daemons"]), status["last_minute"]["delivered"]) == (1, 1)
    assert "it knows the same endpoints" in await said("check")
    for words in (("deliveries",), ("attempts",), ("endpoints", "list"), ("explain", event_id), ("reload",)):
        assert await said(*words), words
    await clean(pooler)


async def test_the_schema_is_made_through_it(empty_dsn: str) -> None:
    async with Pooler(empty_dsn) as pooler:
        environment = {"WEBHOOKD_DSN": pooler.dsn("postgres")}
        for first in (True, False):
            found = await asyncio.to_thread(partial(webhookd, "migrate", env=environment))
            assert found.returncode == 0, found.stderr
            assert ("applied 0001" in found.stdout) is first
        await clean(pooler, "postgres")


async def test_what_it_says_of_the_server_may_be_old(
    processes: Fleet, watched: Connection, pooler: Pooler, dsn: str
) -> None:
    """It tells every client the settings of the first connection it made, which may have been to a standby."""
    name = (await watched.fetchval("SELECT current_database()")).join('""')
    await watched.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    first = await asyncpg.connect(pooler.dsn(ROLE), statement_cache_size=0)
    assert await first.execute("SELECT pg_backend_pid()") == "SELECT 1"
    await watched.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert await watched.fetchval(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1", ROLE
    )
    await first.close()
    processes.configure({"healthy": {}})
    await processes.start("one", dsn=pooler.dsn(ROLE))
    await insert(watched, {"e": payload(0, 0)})
    await until(lambda: processes.receiver.count("healthy") == 1, "the event is received")


async def test_its_pid_is_not_that_of_the_server(pooler: Pooler, dsn: str) -> None:
    for where, same in ((pooler.dsn(ROLE), False), (dsn, True)):
        client = await asyncpg.connect(where, statement_cache_size=0)
        assert (await client.fetchval("SELECT pg_backend_pid()") == client.get_server_pid()) is same
        await client.close()


@pytest.mark.parametrize(
    ("statement", "left"),
    [
        ("SELECT pg_advisory_lock(7301, 2)", "lock 7301/2"),
        ("LISTEN webhookd", "listens to webhookd"),
        ("SET jit = off", "jit = off"),
        ("PREPARE mine AS SELECT 1", "prepared PREPARE mine AS SELECT 1"),
        ("CREATE TEMPORARY TABLE mine ()", "temporary mine"),
        ("DECLARE mine CURSOR WITH HOLD FOR SELECT 1", "cursor DECLARE mine CURSOR WITH HOLD FOR SELECT 1"),
    ],
)
async def test_what_a_bad_guest_leaves_is_seen(pooler: Pooler, watched: Connection, statement: str, left: str) -> None:
    await clean(pooler)
    guest = await asyncpg.connect(pooler.dsn(ROLE), statement_cache_size=0)
    await guest.execute(statement)
    await guest.close()
    found = await pooler.left(ROLE)
    assert [what for each in found.values() for what in each] == [left]
