"""Who may have what of whom, by what the rows of daemons say: each statement by itself."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.conftest import Sql
from webhookd.store.batches import Batches
from webhookd.store.database import Database
from webhookd.store.parking import ParkingStore
from webhookd.store.registry import Registry
from webhookd.store.statements import QUERIES

NOW, NEVER = 1e12, 0.0  # until when one is steady
ME, LIVES, STOPPED, SILENT, GONE = 1, 2, 3, 4, 5  # the last has no row


@pytest.fixture
async def database(sql: Sql, dsn: str) -> AsyncIterator[Database]:
    """Daemons of each kind, and connections of ours."""
    await sql.execute(
        """INSERT INTO webhookd.daemon (id, beat_at, stopped_at)
           VALUES (1, now(), NULL), (2, now(), NULL), (3, now(), now()), (4, now() - interval '16 s', NULL)"""
    )
    async with Database(dsn) as there:
        yield there


@pytest.mark.parametrize(
    ("steady", "found"), [(NEVER, {None, "mine", STOPPED}), (NOW, {None, "mine", STOPPED, SILENT, GONE})]
)
async def test_batches_that_nobody_handles(
    sql: Sql, database: Database, steady: float, found: set[int | str | None]
) -> None:
    """Of a living one never, of who only seems dead when we are steady, and ours when we do not know of them."""
    await sql.execute(
        """INSERT INTO webhookd.batch (id, pos_xmax, outbox_ids, owner, claims, done_at)
           SELECT n, '1', '{}', owner, 1, CASE WHEN n > 10 THEN now() END
             FROM (VALUES (1, NULL), (2, 1), (3, 1), (4, 2), (5, 3), (6, 4), (7, 5), (11, NULL), (12, 3)) v(n, owner)"""
    )
    names = {1: None, 2: "mine", 3: "known", 4: LIVES, 5: STOPPED, 6: SILENT, 7: GONE}
    adopted = await Batches(database).adopt(ME, 0, [3], steady_until=steady, dead_after=15.0, most=20)
    assert {names[each.id] for each in adopted} == found
    assert {each.claims for each in adopted} == {2}, "whoever had them is fenced"
    owners = await sql.fetch("SELECT DISTINCT owner FROM webhookd.batch WHERE claims = 2")
    assert [row[0] for row in owners] == [ME]
    assert {batch.left_by for batch in adopted} == {each if each != "mine" else ME for each in found}
    again = await Batches(database).adopt(ME, 0, [1, 2, 3, 5, 6, 7], steady_until=steady, dead_after=15.0, most=20)
    assert again == []


async def test_a_heartbeat_tells_who_else_lives_and_counts(sql: Sql, database: Database) -> None:
    await sql.execute("INSERT INTO webhookd.daemon (id, counts) VALUES (9, false)")  # it is about to join
    registry = Registry(database)
    beat = await registry.beat(ME, 7, 15.0)
    assert (beat.known, [each.id for each in beat.members]) == (True, [LIVES])
    await registry.beat(ME, 3, 15.0)
    assert await sql.fetchval("SELECT low FROM webhookd.daemon WHERE id = 1") == 7, "it falls never"
    for daemon in (STOPPED, GONE):
        assert not (await registry.beat(daemon, 0, 15.0)).known, "whoever has been buried stays dead"
    assert await sql.fetchval("SELECT stopped_at IS NOT NULL FROM webhookd.daemon WHERE id = 3")
    await registry.beat(9, 0, 15.0)
    assert [each.id for each in (await registry.beat(ME, 7, 15.0)).members] == [LIVES, 9]


async def test_only_leases_of_the_dead_end(sql: Sql, database: Database) -> None:
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due, owner, state)
           SELECT 1, n, now(), now() + due * interval '1 s', owner, state
             FROM (VALUES (1, 60, 4, 'retry'), (2, 60, 2, 'retry'), (3, 60, NULL, 'retry'),
                          (4, 900, 4, 'retry'), (5, 60, 4, 'held')) v(n, due, owner, state)"""
    )
    assert await Registry(database).bury([SILENT, STOPPED, GONE], 100.0) == [SILENT]
    due = await sql.fetch("SELECT outbox_id FROM webhookd.backlog WHERE due <= now()")
    assert [row[0] for row in due] == [1]


@pytest.mark.parametrize("steady", [NEVER, NOW])
async def test_cursors_without_a_sender(sql: Sql, database: Database, steady: float) -> None:
    """All of an endpoint go together, and none while a living daemon has another of it."""
    await sql.execute(
        """INSERT INTO webhookd.parked (endpoint_id, from_batch, to_batch, next_batch, reason, owner)
           VALUES (11, 1, NULL, 1, 'failing', NULL), (12, 1, NULL, 1, 'failing', 2), (13, 1, NULL, 1, 'failing', 3),
                  (14, 1, NULL, 1, 'failing', 4), (15, 1, NULL, 1, 'failing', 5),
                  (16, 1, 5, 1, 'failing', NULL), (16, 5, NULL, 5, 'failing', 2),
                  (17, 1, 5, 1, 'failing', 3), (17, 5, NULL, 5, 'failing', NULL),
                  (18, 1, NULL, 9223372036854775807, 'disabled', NULL)"""
    )
    store = ParkingStore(database)
    free = [11, 13, 17, 17] + ([14, 15] if steady else [])
    assert await store.take(ME, [*range(11, 19)], steady, 15.0) == len(free)
    taken = await sql.fetch("SELECT endpoint_id FROM webhookd.parked WHERE owner = 1 AND epoch = 1")
    assert sorted(row[0] for row in taken) == sorted(free)


async def test_a_cursor_only_goes_on_and_only_for_its_daemon(sql: Sql, database: Database) -> None:
    await sql.execute(
        """INSERT INTO webhookd.parked (endpoint_id, from_batch, next_batch, next_pos, reason, owner, epoch)
           VALUES (11, 1, 5, 2, 'failing', 1, 3)"""
    )
    statement = "SELECT next_batch, next_pos FROM webhookd.parked"
    for owner, epoch, batch, pos, stands in (
        (1, 3, 5, 1, (5, 2)),
        (1, 3, 4, 9, (5, 2)),
        (2, 3, 6, 0, (5, 2)),
        (1, 2, 6, 0, (5, 2)),
        (1, 3, 5, 3, (5, 3)),
        (1, 3, 6, 0, (6, 0)),
    ):
        await sql.fetch(QUERIES["cursors"], [11], [1], [epoch], [batch], [pos], owner)
        row = await sql.fetchrow(statement)
        assert row is not None
        assert tuple(row) == stands


@pytest.mark.parametrize(
    ("daemon", "says", "gone"),
    [
        (LIVES, "endpoint_ids = '{1}'", False),
        (LIVES, "endpoint_ids = '{2}', inactive_ids = '{1}'", False),
        (LIVES, "endpoint_ids = '{2}', inactive_ids = '{}'", True),
        (LIVES, "config_hash = 'another'", False),  # of a version that does not say what it has
        (LIVES, "config_hash = 'ours'", True),
        (STOPPED, "endpoint_ids = '{1}', config_hash = 'another'", True),
        (SILENT, "config_hash = 'another'", True),
    ],
)
async def test_an_endpoint_is_gone_when_no_living_daemon_may_name_it(
    sql: Sql, database: Database, daemon: int, says: str, gone: bool
) -> None:
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('theirs', 'file', '{}')")
    await sql.execute(f"UPDATE webhookd.daemon SET {says} WHERE id = $1", daemon)
    await Registry(database).agree({}, "ours", 15.0)
    assert await sql.fetchval("SELECT removed_at IS NOT NULL FROM webhookd.endpoint") == gone
