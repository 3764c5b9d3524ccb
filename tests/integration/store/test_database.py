"""A connection that is held up does not hold up others."""

import asyncpg
import pytest

from tests.conftest import connected
from tests.integration.conftest import Sql
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
