"""What any role can do that may connect: keep the sleep lock, or flood the channel. Events go out all the same."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.integration.conftest import Receiver, Running, Sql, configuration, eventually, insert
from tests.waiting import until
from webhookd.store import bell

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
    monkeypatch.setattr(bell, "LEAVE_FIRST", 1.0)
    monkeypatch.setattr(bell, "QUIET_FOR", 1.0)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        await eventually(lambda: sql.fetchval(LISTENER), "a daemon that listens")
        before = await sql.fetchval(LISTENER)
        await stranger.execute("SELECT pg_notify('webhookd', n::text) FROM generate_series(1, 20000) n")
        who = f"process {stranger.get_server_pid()}"

        async def told() -> bool:
            return who in (await sql.fetchval(PROBLEMS) or "")

        await eventually(told, "health says who it was")
        event_id = await insert(sql)
        await until(lambda: event_id in receiver.events("hook"), "the event")
        await eventually(lambda: sql.fetchval(f"SELECT ({PROBLEMS}) IS NULL"), "and that it is over")
        again = f"SELECT ({LISTENER}) <> {before}"
        await eventually(lambda: sql.fetchval(again), "it listens again")
