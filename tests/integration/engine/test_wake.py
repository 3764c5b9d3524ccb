"""The wake-up of the daemon by producers that are cancelled again and again, or whose transactions live on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

import asyncpg
import pytest

from tests.integration.conftest import Ear, Receiver, Running, Sql, configuration, eventually, insert
from tests.waiting import HANGS, until
from webhookd.engine.intake import polling

INSERT = "INSERT INTO webhookd.outbox (type, payload) VALUES ('cancelled', '{}')"
MANY = "INSERT INTO webhookd.outbox (type, payload) SELECT 'unwanted', '{}' FROM generate_series(1, 250)"
EMIT_AND_STAY = "SELECT webhookd.emit('cancelled', '{}'), pg_sleep(60)"
NAP, SOON = 60.0, 30.0  # seconds: of a daemon that nobody wakes, and what is no nap, however busy the machine is


@pytest.fixture(autouse=True)
def long_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "NAP", NAP)


@pytest.fixture
async def applications(producer: str) -> AsyncIterator[list[Sql]]:
    """Eight connections with the rights of a producer."""
    connections = [await asyncpg.connect(producer) for _ in range(8)]
    yield connections
    for connection in connections:
        await connection.close()


def pids(connections: list[Sql]) -> list[int]:
    return [connection.get_server_pid() for connection in connections]


async def asleep(sql: Sql) -> None:
    """Wait until the daemon holds the sleep lock."""
    query = """SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                WHERE (locktype, classid, objid, mode) = ('advisory', 7301, 2, 'ExclusiveLock')
                  AND granted AND datname = current_database())"""
    await eventually(lambda: sql.fetchval(query), "a sleeping daemon")


async def comes_soon(receiver: Receiver, event_id: str) -> None:
    await until(lambda: event_id in receiver.events("hook"), "the event before a nap is over", timeout=SOON)


# Cancelled in every way that an application knows


async def insert_and_stay(application: Sql) -> None:
    """A transaction, or a savepoint of one, that is cancelled for certain while it holds what the trigger took."""
    async with application.transaction():
        await application.execute(INSERT)
        await application.execute("SET LOCAL statement_timeout = 1; SELECT pg_sleep(60)")


async def by_statement_timeout(application: Sql, times: int) -> None:
    """One statement inserts and stays; some are cancelled before, in or after the trigger."""
    for number in range(times):
        with pytest.raises(asyncpg.QueryCanceledError):
            await application.execute(f"SET LOCAL statement_timeout = {1 + number % 4}; {EMIT_AND_STAY}")


async def by_local_timeout(application: Sql, times: int) -> None:
    """A whole transaction fails."""
    for _ in range(times):
        with pytest.raises(asyncpg.QueryCanceledError):
            await insert_and_stay(application)


async def in_savepoint(application: Sql, times: int) -> None:
    """Only a savepoint fails, and the transaction commits."""
    for _ in range(times):
        async with application.transaction():
            with pytest.raises(asyncpg.QueryCanceledError):
                await insert_and_stay(application)


async def by_request(application: Sql, times: int) -> None:
    """The timeout is the client's, which then asks the server to cancel."""
    # A request is lost when the server gets it before the statement; its own timeout then ends what nobody waits for.
    await application.execute("SET statement_timeout = '5s'")
    for _ in range(times):
        with pytest.raises(TimeoutError):
            await application.execute(EMIT_AND_STAY, timeout=0.01)
        assert await application.fetchval("SELECT 1") == 1  # the server has cancelled it by then


Way = Callable[[Sql, int], Coroutine[None, None, None]]
TIMES: Mapping[Way, int] = {by_statement_timeout: 2_000, by_local_timeout: 1_500, in_savepoint: 1_250, by_request: 250}


async def test_ten_thousand_cancelled_inserts_leave_no_lock_and_the_daemon_is_still_woken(
    applications: list[Sql], sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    ways = [way for way in TIMES for _ in range(2)]
    assert sum(TIMES[way] for way in ways) == 10_000

    async with asyncio.timeout(HANGS * 3), asyncio.TaskGroup() as group:
        for application, way in zip(applications, ways, strict=True):
            group.create_task(way(application, TIMES[way]))

    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 0
    reached = await sql.fetchval("SELECT last_value FROM webhookd.outbox_id_seq")
    assert reached >= 2 * (TIMES[by_local_timeout] + TIMES[in_savepoint]), "these had inserted when they were cancelled"
    there = pids(applications)
    idle = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1) AND state = 'idle'"
    assert await sql.fetchval(idle, there) == len(there), "the connections are still open"
    left = await sql.fetch("SELECT pid, mode FROM pg_locks WHERE locktype = 'advisory' AND pid = ANY ($1)", there)
    assert left == []

    ear = Ear()
    await sql.add_listener("webhookd", ear)
    assert await sql.fetchval("SELECT pg_try_advisory_lock(7301, 2)"), "a daemon could sleep"
    for application in applications:
        await insert(application)
    await until(lambda: ear.pids == set(there), "a notification by each of the applications")
    await sql.remove_listener("webhookd", ear)
    assert await sql.fetchval("SELECT pg_advisory_unlock(7301, 2)")

    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        for application in applications * 3:
            await asleep(sql)
            await comes_soon(receiver, await insert(application))


async def take_from_the_daemon(keeping: Sql, ringing: Sql) -> None:
    """When the daemon gets up, as many events make it, its lock passes to `keeping`, so it cannot lie down again."""

    async def rung() -> bool:
        await ringing.execute(MANY)
        return taking.done()

    async with asyncio.TaskGroup() as group:
        taking = group.create_task(keeping.execute("SELECT pg_advisory_xact_lock_shared(7301, 2)", timeout=20))
        await eventually(rung, "a daemon that gets up")


async def test_an_event_whose_transaction_lives_on_comes_soon_after_its_commit_though_it_has_not_notified(
    applications: list[Sql], sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    ringing, keeping, lasting = applications[:3]
    ear = Ear()
    await sql.add_listener("webhookd", ear)
    async with daemon(configuration({"hook": {"url": receiver.url("hook"), "events": ["order.*"]}})):
        for _ in range(20):
            await asleep(sql)
            transaction = lasting.transaction()
            async with keeping.transaction():
                await take_from_the_daemon(keeping, ringing)
                await transaction.start()
                event_id = await insert(lasting)
            await asyncio.sleep(0.03)  # how long it lives on
            await transaction.commit()
            await comes_soon(receiver, event_id)
    assert ear.pids & set(pids([ringing, lasting])) == set(pids([ringing]))
    await sql.remove_listener("webhookd", ear)
