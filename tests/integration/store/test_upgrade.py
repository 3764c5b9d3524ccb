"""From the schema of the version before, with all that may lie in it, to that of today."""

import asyncio
from contextlib import suppress

import asyncpg
import pytest

from tests.conftest import connected
from tests.integration.conftest import Receiver, Running, Sql, configuration, finished, insert_many, states
from tests.integration.store.test_migrations import VECTOR, catalogue
from tests.waiting import until
from webhookd.store.migrations import _BEGIN, migrate
from webhookd.store.statements import MIGRATIONS

BEFORE = [each for each in MIGRATIONS if each.version <= 9]
OPEN = "SELECT id, nonce, owner, claims, outbox_ids FROM webhookd.batch WHERE done_at IS NULL ORDER BY id"
BEYOND = {  # rows that this version would not take any longer
    "long": "repeat('t', 600), '{}'",
    "long-tenant": "'t', '{}', tenant => repeat('a', 300)",
    "long-key": "'t', '{}', ordering_key => repeat('k', 600)",
    "wide": "'t', '{}', metadata => to_json(repeat('m', 20000))",
    "late": "'t', '{}', occurred_at => to_timestamp(1764336000000)",
    "never": "'t', '{}', deliver_after => 'infinity'",
}


@pytest.fixture
async def before(dsn: str, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> Sql:
    """The schema of the version before, and an endpoint of it that is parked since its second batch."""
    await sql.execute("DROP SCHEMA webhookd CASCADE")
    with monkeypatch.context() as old:
        old.setattr("webhookd.store.migrations.MIGRATIONS", tuple(BEFORE))
        assert await migrate(dsn) == [each.name for each in BEFORE]
    await sql.execute(
        """INSERT INTO webhookd.daemon (id, beat_at) SELECT nextval('webhookd.daemon_id_seq'), now() - '1 h'::interval;
           INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('live', 'file', '{}'), ('parked', 'file', '{}')"""
    )
    return sql


async def fill(sql: Sql) -> dict[str, list[str]]:
    """Batches that are done and open, a retry, events that none has read, and some beyond the bounds of today."""
    kinds = {"done": await insert_many(sql, 3)}
    await sql.execute("SELECT * FROM webhookd.cut(500, 500, 1)")
    await sql.execute("UPDATE webhookd.batch SET done_at = now()")
    await sql.execute("SELECT webhookd.park('{2}', 'failing', 1, '{3}', '{0}')")
    kinds["open"] = await insert_many(sql, 3)
    beyond = [await sql.fetchval(f"SELECT webhookd.emit({call}, event_id => '{id_}')") for id_, call in BEYOND.items()]
    await sql.execute("SELECT * FROM webhookd.cut(500, 500, 1)")
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due)
           SELECT 1, id, created_at, 1, now() FROM webhookd.outbox WHERE event_id = $1""",
        kinds["done"][0],
    )
    kinds["unread"] = await insert_many(sql, 3)
    kinds["beyond"] = beyond
    return kinds


async def rows(sql: Sql) -> list[list[asyncpg.Record]]:
    """All that must be as it was."""
    return [
        await sql.fetch(query)
        for query in (
            "SELECT event_id, xid::text, size, type FROM webhookd.outbox ORDER BY id",
            OPEN,
            "SELECT endpoint_id, from_batch, to_batch, next_batch, owner, epoch, fails, retry_at FROM webhookd.parked",
            "SELECT outbox_id, due::text FROM webhookd.scheduled",
            "SELECT endpoint_id, outbox_id, attempts, due, state FROM webhookd.backlog",
            "SELECT parked, version FROM webhookd.config_version",
        )
    ]


async def test_what_is_owed_stays_and_is_delivered(dsn: str, before: Sql, receiver: Receiver, daemon: Running) -> None:
    kinds = await fill(before)
    was = await rows(before)
    assert len(was[1]) == 1
    assert len(was[2]) == 1
    assert await migrate(dsn) == [each.name for each in MIGRATIONS if each not in BEFORE]
    assert await rows(before) == was
    assert await catalogue(dsn) == VECTOR.read_text()
    with pytest.raises(asyncpg.CheckViolationError):
        await before.execute(f"SELECT webhookd.emit({BEYOND['long']})")
    hooks = {name: {"url": receiver.url(name)} for name in ("live", "parked")}
    async with daemon(configuration(hooks)):
        await finished(before)
        await until(lambda: set(kinds["unread"]) <= set(receiver.events("parked")), "what the cursor reads")
    readable = {*kinds["open"], *kinds["unread"], "long", "wide", "long-key"}  # another tenant's is not theirs
    assert set(receiver.events("live")) == readable | {kinds["done"][0]}
    told = {event for event in receiver.events("parked") if event in readable}
    assert told == readable
    assert set(await states(before, "late")) == {None}
    assert (await states(before, "late"))[None] == "unreadable"
    assert (await states(before, "never"))[None] == "waiting"


async def test_whoever_has_the_old_lock_finishes_before_others_take_the_new_one(
    dsn: str, before: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhookd.store.migrations._BEGIN", _BEGIN.replace("'50ms'", "'90s'"))
    waits = """SELECT EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND (classid, objid) = (7301, 1) AND NOT granted
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"""
    takes = "SELECT array_agg(proname::text ORDER BY proname) FROM pg_proc WHERE prosrc LIKE '%(7301, 1)%'"
    old = ["cut", "disable", "park", "pause", "rebase", "resume", "unpark"]
    async with connected(dsn) as watch, asyncio.TaskGroup() as group:
        async with before.transaction():  # of an old daemon, which is about to cut
            await before.execute("SELECT pg_advisory_xact_lock(7301, 1)")
            migration = group.create_task(migrate(dsn))
            await until(lambda: watch.fetchval(waits), "a migration that waits for the old lock")
            assert await watch.fetchval(takes) == old, "all or none take the new one"
            await before.execute("SET LOCAL lock_timeout = '1ms'")
            await insert_many(before, 1)
            await before.execute("SELECT * FROM webhookd.cut(500, 500, 1)")
            await before.execute("SELECT webhookd.park('{1}', 'paused'), webhookd.resume('{1}')")
        await migration
        assert await watch.fetchval(takes) is None


async def test_who_keeps_old_locks_hinders_no_upgrade(dsn: str, before: Sql) -> None:
    async with connected(dsn) as stranger:
        for number in (1, 2, 3):
            await stranger.execute(f"SELECT pg_advisory_lock(7301, {number})")
        await migrate(dsn)
        await insert_many(before, 2)
        assert len(await before.fetch("SELECT * FROM webhookd.cut(500, 500, 1)")) == 1


async def test_an_old_daemon_goes_on_meanwhile(dsn: str, before: Sql) -> None:
    """Its cut has four parameters, and it asks again where the columns of an answer are others than they were."""
    cut: list[str] = []

    async def old_daemon(done: asyncio.Event) -> None:
        async with connected(dsn) as connection:
            while not done.is_set() or await connection.fetchval("SELECT EXISTS (SELECT FROM webhookd.surplus)"):
                with suppress(asyncpg.InvalidCachedStatementError):
                    batches = await connection.fetch("SELECT o_ids FROM webhookd.cut($1, $2, $3, $4)", 500, 50, 1, 100)
                    cut.extend(id_ for batch in batches for id_ in batch["o_ids"])
                await connection.fetch("SELECT webhookd.park('{2}', 'failing', 1, '{1}', '{0}')")
                await connection.fetch("SELECT webhookd.unpark('{2}', 1, '{1}')")

    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        old = group.create_task(old_daemon(done))
        await insert_many(before, 20)
        await migrate(dsn)
        await insert_many(before, 20)
        done.set()
        await old
    await before.execute("SELECT * FROM webhookd.cut(500, 50, 1)")
    assert len(set(cut)) == len(cut)
    assert await before.fetchval(
        "SELECT count(*) FROM webhookd.batch, unnest(outbox_ids)"
    ) == 40 + await before.fetchval("SELECT count(*) FROM webhookd.outbox WHERE type LIKE 'webhookd.%'")
