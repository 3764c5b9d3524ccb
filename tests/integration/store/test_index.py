"""The index by tenant, where there are events before it."""

import asyncio

import pytest

from tests.conftest import connected
from tests.integration.conftest import Sql
from webhookd.store.migrations import migrate
from webhookd.store.statements import MIGRATIONS

BEFORE = tuple(each for each in MIGRATIONS if each.version < 32)
MANY = (
    "INSERT INTO webhookd.outbox (type, tenant, payload) SELECT 'a', 't' || n % 10, '{}' FROM generate_series(1, $1) n"
)


@pytest.fixture
async def before(dsn: str, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> Sql:
    """The version before, with events."""
    await sql.execute("DROP SCHEMA webhookd CASCADE")
    with monkeypatch.context() as old:
        old.setattr("webhookd.store.migrations.MIGRATIONS", BEFORE)
        await migrate(dsn)
    await sql.execute(MANY, 5_000)
    return sql


async def is_whole(sql: Sql) -> bool:
    """Whether every partition has it, and all of it."""
    found: bool = await sql.fetchval(
        """WITH parts(of, count) AS (SELECT inhparent, count(*) FROM pg_inherits GROUP BY 1)
           SELECT x.indisvalid AND i.count = t.count FROM pg_index x
             JOIN parts i ON i.of = x.indexrelid JOIN parts t ON t.of = x.indrelid
            WHERE x.indexrelid = 'webhookd.outbox_tenant'::regclass"""
    )
    return found


async def test_it_is_built_by_whoever_comes_while_events_come(dsn: str, before: Sql) -> None:
    async def insert() -> None:
        async with connected(dsn) as producer:
            for _ in range(50):
                await producer.execute(MANY, 10)

    *applied, _ = await asyncio.gather(migrate(dsn), migrate(dsn), migrate(dsn), insert())
    done = [name for each in applied for name in each]  # one after the other, by whoever comes to it first
    assert sorted(done) == sorted(set(done))
    assert len(done) == len(MIGRATIONS) - len(BEFORE)
    assert await is_whole(before)
    assert await before.fetchval("SELECT count(*) FROM webhookd.outbox") == 5_500


async def test_one_that_was_interrupted_is_built_anew(dsn: str, before: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: object) -> None:
        return None

    with monkeypatch.context() as interrupted:
        interrupted.setattr("webhookd.store.migrations._build_indexes", never)
        await migrate(dsn)
    assert not await is_whole(before)
    part = await before.fetchval("SELECT tableoid::regclass::text FROM webhookd.outbox LIMIT 1")
    name = part.removeprefix("webhookd.")
    await before.execute(f"CREATE INDEX {name}_tenant ON {part} (tenant)")
    await before.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = $1::regclass", f"{part}_tenant")
    assert await migrate(dsn) == []
    assert await is_whole(before)


async def test_a_partition_made_since_has_it(dsn: str, before: Sql) -> None:
    await migrate(dsn)
    await before.execute("SELECT webhookd.make_partitions(40)")
    assert await is_whole(before)
