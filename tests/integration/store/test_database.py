"""Connections are few: one that is held up does not hold up others, and each goes to who waits the longest."""

import asyncio

import asyncpg
import pytest

from tests.conftest import connected
from tests.integration.conftest import Sql
from tests.waiting import until
from webhookd.errors import StoreUnavailable
from webhookd.store import database
from webhookd.store.database import Database
from webhookd.store.translation import translated

LOCK = "UPDATE webhookd.batch SET owner = 7 WHERE id = 0"


async def stand_still(store: Database, other: Sql) -> None:
    """Hold a row in a transaction that idles until another has it, and then go on."""
    async with store.transaction() as connection:
        await connection.execute(LOCK)
        await other.execute("SET lock_timeout = '5s'")
        await other.execute(LOCK)
        await connection.execute(LOCK)


async def test_a_transaction_that_stands_still_lets_go_of_its_rows(
    dsn: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE_SECONDS", 0.3)
    async with Database(dsn, size=1) as store:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await stand_still(store, sql)
        assert (await store.fetch_row("SELECT owner FROM webhookd.batch WHERE id = 0"))[0] == 7


async def test_only_our_own_sessions_are_bounded(dsn: str) -> None:
    async with Database(dsn, size=1) as store, store.transaction() as connection:
        assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "10s"
    async with connected(dsn) as application:
        assert await application.fetchval("SHOW idle_in_transaction_session_timeout") == "0"


def test_what_asyncpg_says_to_itself_is_told_to_nobody() -> None:
    with pytest.raises(StoreUnavailable, match=r"^The database does not answer: the connection broke\.$"), translated():
        raise asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")


async def test_one_that_broke_while_it_was_at_hand_is_replaced(dsn: str, sql: Sql) -> None:
    async with Database(dsn, size=1) as store:
        for _ in range(3):
            pid = (await store.fetch_row("SELECT pg_backend_pid()"))[0]
            await sql.execute("SELECT pg_terminate_backend($1)", pid)
            await until(lambda: database._is_closed(store._idle[0][1]), "it to be known")
            async with asyncio.timeout(5):
                assert (await store.fetch_row("SELECT pg_backend_pid()"))[0] != pid


async def test_who_waits_has_the_next_connection_in_turn(dsn: str) -> None:
    done: list[int] = []

    async def ask(store: Database, number: int) -> None:
        await store.fetch("SELECT 1")
        done.append(number)

    async with Database(dsn, size=1) as store:
        await store.fetch("SELECT 1")
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(ask(store, number))
    assert done == list(range(50))


async def test_who_waits_no_more_keeps_nothing(dsn: str) -> None:
    async with Database(dsn, size=1) as store:
        await store.fetch("SELECT 1")
        for turns in range(12):  # of the loop, until it is cancelled: also when it has just been given the connection
            async with store.transaction() as connection:
                waits = [asyncio.create_task(store.fetch("SELECT 1")) for _ in range(2)]
                await asyncio.sleep(0)
                await connection.fetch("SELECT 1")
            for _ in range(turns):
                await asyncio.sleep(0)
            waits[0].cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            async with asyncio.timeout(5):
                assert await store.fetch("SELECT 2")


async def test_who_waits_goes_on_when_the_connection_breaks(dsn: str, sql: Sql) -> None:
    async with Database(dsn, size=1) as store:
        waits = []

        async def break_it() -> None:
            async with store.connection() as connection:
                waits.append(asyncio.create_task(store.fetch("SELECT 1")))
                await sql.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
                await connection.fetch("SELECT 1")

        with pytest.raises(StoreUnavailable):
            await break_it()
        async with asyncio.timeout(5):
            assert len(await waits[0]) == 1
