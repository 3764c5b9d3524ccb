"""Who is in the way, from outside or with rights of ours, is named in the log, in `status` and in `health`.

What any role can do that may connect is to keep the sleep lock, or to flood the channel: events go out all the same.
What only the owner's role and the daemon's can do is to keep the locks of the daemons: then events wait.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
import structlog

from tests.integration.cli.test_cli import PLAIN, webhookd
from tests.integration.conftest import Receiver, Running, Sql, configuration, eventually, insert, insert_many
from tests.waiting import until
from webhookd.store import lock_holders, wakeup

PROBLEMS = "SELECT problems FROM webhookd.health"
LISTENER = "SELECT listen_pid FROM webhookd.daemon WHERE stopped_at IS NULL"


@pytest.fixture
async def stranger(producer: str) -> AsyncIterator[Sql]:
    """A connection of a role that may do nothing to the tables of the engine."""
    connection = await asyncpg.connect(producer, server_settings={"application_name": "stranger"})
    yield connection
    await connection.close()


@pytest.mark.parametrize("mode", ["", "_shared"])
async def test_who_keeps_the_sleep_lock_is_told_and_delays_nothing(
    mode: str, stranger: Sql, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    await stranger.execute(f"SELECT pg_advisory_lock{mode}(7301, 2)")
    who = f"process {stranger.get_server_pid()} of "

    async def told() -> bool:
        problems = await sql.fetchval(PROBLEMS) or ""
        return who in problems and "(stranger)" in problems

    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        await eventually(told, "health says who it is")
        event_id = await insert(sql)
        await until(lambda: event_id in receiver.events("hook"), "the event")
        await stranger.execute(f"SELECT pg_advisory_unlock{mode}(7301, 2)")
        await eventually(lambda: sql.fetchval(f"SELECT ({PROBLEMS}) IS NULL"), "and that it is over")


async def test_who_floods_the_channel_is_told_and_delays_nothing(
    stranger: Sql, sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "LEAVE_FIRST", 1.0)
    monkeypatch.setattr(wakeup, "QUIET_FOR", 1.0)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        await eventually(lambda: sql.fetchval(LISTENER), "a daemon that listens")
        before = await sql.fetchval(LISTENER)
        await stranger.execute("SELECT pg_notify('webhookd', n::text) FROM generate_series(1, 20000) n")
        who = f"flooded by process {stranger.get_server_pid()} of {await stranger.fetchval('SELECT user')} (stranger)"
        await eventually(telling(sql, who), "health says who it was")
        event_id = await insert(sql)
        await until(lambda: event_id in receiver.events("hook"), "the event")
        await eventually(lambda: sql.fetchval(f"SELECT ({PROBLEMS}) IS NULL"), "and that it is over")
        again = f"SELECT ({LISTENER}) <> {before}"
        await eventually(lambda: sql.fetchval(again), "it listens again")


async def test_all_who_flood_the_channel_are_told_by_number_when_they_are_gone(
    producer: str, sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "MOST_RINGS", 20)
    gone, there = [
        await asyncpg.connect(producer, server_settings={"application_name": name}) for name in ("gone", "there")
    ]
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        await eventually(lambda: sql.fetchval(LISTENER), "a daemon that listens")
        pids = gone.get_server_pid(), there.get_server_pid()
        await gone.execute("SELECT pg_notify('webhookd', n::text) FROM generate_series(1, 15) n")
        await gone.close()
        ended = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
        await eventually(lambda: sql.fetchval(ended, pids[0]), "the end of one")
        await there.execute("SELECT pg_notify('webhookd', n::text) FROM generate_series(1, 14) n")
        user = await there.fetchval("SELECT user")
        said = f"flooded by process {pids[0]}, process {pids[1]} of {user} (there)"
        await eventually(telling(sql, said), "health names both")
        await there.close()


@pytest.mark.parametrize(
    ("lock", "mode"),
    [
        ("lock_log", "SHARE UPDATE EXCLUSIVE"),
        ("lock_log", "ACCESS EXCLUSIVE"),
        ("lock_tables", "SHARE UPDATE EXCLUSIVE"),
        ("lock_endpoints", "SHARE UPDATE EXCLUSIVE"),
    ],
)
async def test_who_keeps_a_lock_of_the_daemons_is_told_as_long_as_it_is_kept(
    lock: str, mode: str, dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    keeper = await asyncpg.connect(dsn, server_settings={"application_name": "a migration"})
    with structlog.testing.capture_logs() as lines:
        async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
            transaction = keeper.transaction()
            await transaction.start()
            await keeper.execute(f"LOCK TABLE webhookd.{lock} IN {mode} MODE")
            since = await keeper.fetchval("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC')")
            event_id = await insert(sql)
            user = await keeper.fetchval("SELECT user")
            who = f"{lock} is kept by process {keeper.get_server_pid()} of {user} (a migration), since {since}"
            await eventually(telling(sql, who), "health says who it is")
            assert who in (await asyncio.to_thread(webhookd, "status", env={**PLAIN, "WEBHOOKD_DSN": dsn})).stdout
            assert [who in line["reason"] for line in lines if line["event"] == "lock_kept"] == [True]
            assert (lock == "lock_log") == (event_id not in receiver.events("hook"))
            await transaction.rollback()
            await until(lambda: event_id in receiver.events("hook"), "the event")
            await eventually(lambda: sql.fetchval(f"SELECT ({PROBLEMS}) IS NULL"), "and that it is over")
            assert [line["event"] for line in lines if line["event"].startswith("lock_")] == ["lock_kept", "lock_free"]
    await keeper.close()


async def test_who_makes_our_statements_wait_is_told(dsn: str, sql: Sql, receiver: Receiver, daemon: Running) -> None:
    keeper = await asyncpg.connect(dsn, server_settings={"application_name": "careless"})
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        transaction = keeper.transaction()
        await transaction.start()
        await keeper.execute("LOCK TABLE webhookd.backlog IN ACCESS EXCLUSIVE MODE")
        event_id = await insert(sql)
        who = f"what they need is kept by process {keeper.get_server_pid()} of "

        async def told() -> bool:  # health itself would wait for the table
            return who in (await sql.fetchval("SELECT string_agg(problem, '') FROM webhookd.daemon") or "")

        await eventually(told, "who it is")
        await transaction.rollback()
        await until(lambda: event_id in receiver.events("hook"), "the event")
        await eventually(lambda: sql.fetchval(f"SELECT ({PROBLEMS}) IS NULL"), "and that it is over")
    await keeper.close()


async def test_a_daemon_that_cannot_start_for_a_lock_says_who_has_it(
    dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    keeper = await asyncpg.connect(dsn)
    transaction = keeper.transaction()
    await transaction.start()
    await keeper.execute("LOCK TABLE webhookd.lock_endpoints IN SHARE UPDATE EXCLUSIVE MODE")
    with structlog.testing.capture_logs() as lines:

        async def let_go() -> None:
            who = f"lock_endpoints is kept by process {keeper.get_server_pid()} of "
            await until(lambda: any(who in line.get("reason", "") for line in lines), "who has it")
            await transaction.rollback()

        async with asyncio.TaskGroup() as group:
            group.create_task(let_go())
            async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
                event_id = await insert(sql)
                await until(lambda: event_id in receiver.events("hook"), "the event")
    await keeper.close()


async def test_daemons_that_take_turns_are_in_nobody_s_way(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    config = configuration({"hook": {"url": receiver.url("hook")}})
    with structlog.testing.capture_logs() as lines:
        async with daemon(config), daemon(config):
            written: list[str] = []
            until_then = asyncio.get_running_loop().time() + 2 * lock_holders.IN_THE_WAY_AFTER
            while asyncio.get_running_loop().time() < until_then:
                written += await insert_many(sql, 20)
                await asyncio.sleep(0.05)  # most of their turns find nothing
            await until(lambda: set(written) <= set(receiver.events("hook")), "the events")
    assert [line for line in lines if line["event"] == "lock_kept"] == []


def telling(sql: Sql, what: str) -> Callable[[], Awaitable[bool]]:
    """Whether `health` says this."""

    async def told() -> bool:
        return what in (await sql.fetchval(PROBLEMS) or "")

    return told
