"""The functions that read the log and decide who reads it, each called by itself."""

import asyncpg
import pytest

from tests.conftest import connected
from tests.integration.conftest import Sql, insert, insert_many
from tests.integration.engine.test_flood import cut, events, insert_for
from webhookd.store.batches import Batches
from webhookd.store.database import Database

BEHIND = "now() - interval '3 days'"


async def one(sql: Sql, query: str) -> object:
    """The row of a query, of which there is one, or its only value."""
    (row,) = await sql.fetch(query)
    return row[0] if len(row) == 1 else tuple(row)


# Cutting


async def test_a_transaction_that_is_open_while_a_surplus_is_drawn_is_read_when_it_commits(dsn: str, sql: Sql) -> None:
    async with connected(dsn) as writer:
        async with writer.transaction():
            await insert(writer)
            await insert_many(sql, 25)
            assert await cut(sql, 10, read=100) == [events(2, 11)]
            assert await cut(sql, 10, 10) == [events(12, 21)]
        assert await cut(sql, 10) == [[1]]
    assert await cut(sql, 10, 10) == [events(22, 26)]


async def test_a_transaction_that_is_open_over_several_cuts_is_read_when_it_commits(dsn: str, sql: Sql) -> None:
    async with connected(dsn) as writer:
        async with writer.transaction():
            await insert(writer)
            for first in (2, 4):
                await insert_many(sql, 2)
                assert await cut(sql, 10) == [events(first, first + 1)]
        assert await cut(sql, 10) == [[1]]
    assert await cut(sql, 10) == []


async def test_of_each_tenant_a_page_is_drawn_though_it_has_many(sql: Sql) -> None:
    for _ in range(4):
        await insert_for(sql, "a", 5)
    await insert_for(sql, "b", 10)
    await cut(sql, 0, read=100)
    assert await cut(sql, 0, 20) == [events(1, 10), events(21, 30)]
    assert await cut(sql, 0, 20) == [events(11, 20)]


async def test_the_rest_of_a_large_transaction_comes_behind_the_first_page_of_those_after_it(sql: Sql) -> None:
    await insert_many(sql, 60)
    await cut(sql, 0, read=20)
    await insert_many(sql, 10)
    for _ in range(3):
        await cut(sql, 0, read=20)
    drawn = [batch[0] for _ in range(7) for batch in await cut(sql, 0, 10)]
    assert drawn == [1, 61, 11, 21, 31, 41, 51]


async def test_what_comes_later_takes_turns_with_what_is_left(sql: Sql) -> None:
    await insert_many(sql, 40)
    await cut(sql, 0, read=100)
    drawn = [batch[0] for _ in range(2) for batch in await cut(sql, 0, 10)]
    await insert_many(sql, 20)
    await cut(sql, 0, read=100)
    drawn += [batch[0] for _ in range(4) for batch in await cut(sql, 0, 10)]
    assert drawn == [1, 11, 21, 41, 31, 51]


@pytest.mark.parametrize("what", ["log", "one transaction", "scheduled", "remainder of one, while pages are drawn"])
async def test_it_says_when_there_is_more_to_read(sql: Sql, what: str) -> None:
    more = "SELECT bool_or(o_more) FROM webhookd.cut(10, 10, 1, $1, 10)"
    if what == "log":
        for _ in range(3):
            await insert_many(sql, 6)
    elif what == "scheduled":
        await sql.execute("SELECT webhookd.emit('a', '{}', deliver_after => now() + '1 h') FROM generate_series(1, 20)")
        await cut(sql, 100, read=100)
        await sql.execute("UPDATE webhookd.scheduled SET due = now()")
    else:
        await insert_many(sql, 35)
    if what.startswith("remainder"):
        await cut(sql, 0, read=10)  # the first ten of it are surplus
        assert await sql.fetchval("SELECT bool_and(o_more) FROM webhookd.cut(0, 10, 1, 10, 10)")
        return
    assert await sql.fetchval(more, 0)
    while await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.surplus) OR EXISTS (SELECT FROM webhookd.remainder)"):
        await cut(sql, 100, 100, read=100)
    await cut(sql, 100, read=100)
    await insert(sql)
    assert await sql.fetchval(more, 0) is False


# What is left over counts as unread


async def test_a_surplus_is_unread(sql: Sql) -> None:
    """For whoever watches, for retention, and for a copy that is taken over."""
    await insert_many(sql, 30)
    await cut(sql, 10, read=100)
    await sql.execute("UPDATE webhookd.batch SET done_at = now()")
    await sql.execute("UPDATE webhookd.surplus SET lo = lo - interval '1 hour'")
    assert await one(sql, "SELECT count(*) FROM webhookd.surplus") == 2
    assert await one(sql, "SELECT unread_events, unread_seconds >= 3600 FROM webhookd.health") == (20, True)
    why = "SELECT webhookd.needed(name, since, until) FROM webhookd.partitions('outbox') ORDER BY since LIMIT 1"
    assert await one(sql, why) == "it has events that wait for those before them"
    assert await one(sql, "SELECT events FROM webhookd.rebase('production', 'deliver')") == 20
    assert await one(sql, "SELECT count(*) FROM webhookd.surplus") == 0
    assert await one(sql, "SELECT sum(cardinality(outbox_ids)) FROM webhookd.batch") == 30


async def test_of_a_copy_nobody_has_the_cursors(sql: Sql) -> None:
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('hook', 'file', '{}')")
    await sql.execute("SELECT webhookd.park('{1}', 'failing', 5, '{3}', '{1}')")
    version = await one(sql, "SELECT parked FROM webhookd.config_version")
    await sql.execute("SELECT webhookd.rebase('production', 'deliver')")
    assert await one(sql, "SELECT owner IS NULL FROM webhookd.parked")
    assert await one(sql, f"SELECT parked > {version} FROM webhookd.config_version"), "daemons look again"


# Parked, paused, disabled


@pytest.fixture
async def failing(sql: Sql) -> Sql:
    """Endpoint 1 has failed and is parked since the first of four batches; daemon 5 has it, in epoch 1."""
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('hook', 'file', '{}')")
    await sql.execute("SELECT webhookd.park('{1}', 'failing', 5, '{3}', '{1}')")
    await insert_many(sql, 30)
    assert len(await cut(sql, 100)) == 4
    return sql


@pytest.mark.parametrize("kept", ["paused_at", "disabled_at"])
async def test_what_is_paused_or_disabled_is_not_made_live(failing: Sql, kept: str) -> None:
    await failing.execute(f"UPDATE webhookd.endpoint SET {kept} = now()")
    assert await failing.fetch("SELECT * FROM webhookd.unpark('{1}', 5, '{1}')") == []
    await failing.execute(f"UPDATE webhookd.endpoint SET {kept} = NULL")
    assert await failing.fetch("SELECT * FROM webhookd.unpark('{1}', 5, '{2}')") == [], "of another epoch"
    assert await failing.fetch("SELECT * FROM webhookd.unpark('{1}', 6, '{1}')") == [], "of another daemon"
    assert len(await failing.fetch("SELECT * FROM webhookd.unpark('{1}', 5, '{1}')")) == 1


async def test_who_is_parked_again_before_its_cursor_has_come_to_the_end_keeps_its_daemon(failing: Sql) -> None:
    await failing.execute("SELECT * FROM webhookd.unpark('{1}', 5, '{1}')")
    await failing.execute("SELECT webhookd.park('{1}', 'saturated', 6)")
    assert await failing.fetchval("SELECT array_agg(owner) FROM webhookd.parked") == [5, 5]


async def test_whoever_is_enabled_was_revived_at_that_moment(failing: Sql) -> None:
    """Not when the transaction of that began: answers may have come meanwhile."""
    revived = "SELECT revived_at FROM webhookd.endpoint"
    await failing.execute("SELECT webhookd.pause('{1}'); SELECT webhookd.resume('{1}')")
    assert await one(failing, revived) is None
    await failing.execute("SELECT webhookd.disable(1, 'gone')")
    async with failing.transaction():
        answered = await one(failing, "SELECT clock_timestamp()")
        await failing.execute("SELECT webhookd.enable('{1}')")
    assert await one(failing, revived) > answered  # type: ignore[operator]


GIVEN_UP = "SELECT next_batch FROM webhookd.parked"


@pytest.mark.parametrize(
    ("call", "change"),
    [
        ("1, 6, 1", "SELECT"),  # another daemon has it
        ("1, 5, 2", "SELECT"),  # it had it before
        ("1, 5, 1", "UPDATE webhookd.parked SET fails = 0"),  # it does not fail
        ("1, 5, 1", "UPDATE webhookd.batch SET cut_at = now()"),  # its time is not over
    ],
)
async def test_only_who_has_a_failing_endpoint_gives_up_what_it_is_behind(failing: Sql, call: str, change: str) -> None:
    await failing.execute("UPDATE webhookd.batch SET cut_at = now() - interval '4 days'")
    await failing.execute(change)
    await failing.execute(f"SELECT webhookd.give_up({call}, {BEHIND})")
    assert await one(failing, GIVEN_UP) == 1
    await failing.execute(
        "UPDATE webhookd.parked SET fails = 3; UPDATE webhookd.batch SET cut_at = now() - interval '4 days'"
    )
    await failing.execute(f"SELECT webhookd.give_up(1, 5, 1, {BEHIND})")
    assert await one(failing, GIVEN_UP) == 5


async def test_what_is_given_up_is_a_range_of_its_own_beside_others(failing: Sql) -> None:
    await failing.execute("INSERT INTO webhookd.missed VALUES (1, 0, 1, 'disabled')")
    for first in (2, 5):
        await failing.execute("UPDATE webhookd.batch SET cut_at = now() - interval '4 days' WHERE id < $1", first)
        await failing.execute(f"SELECT webhookd.give_up(1, 5, 1, {BEHIND})")
    ranges = await failing.fetch("SELECT from_batch, to_batch, reason FROM webhookd.missed ORDER BY 1")
    assert [tuple(row) for row in ranges] == [(0, 1, "disabled"), (1, 5, "exhausted")]
    assert await one(failing, "SELECT count(*) FROM webhookd.outbox WHERE type = 'webhookd.delivery.exhausted'") == 1


async def test_what_is_in_hand_or_young_is_not_given_up(failing: Sql) -> None:
    await failing.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, state, clock_from)
           SELECT 1, n, now(), 1, now() + due * interval '1 min', state, now() - days * interval '1 day'
             FROM (VALUES (1, -1, 'retry', 4), (2, -1, 'held', 4), (3, 1, 'retry', 4), (4, -1, 'retry', 2),
                          (5, -1, 'rejected', 4)) v(n, due, state, days)"""
    )
    assert await one(failing, f"SELECT webhookd.give_up(1, 5, 1, {BEHIND})") == 2
    ended = "SELECT array_agg(outbox_id ORDER BY outbox_id) FROM webhookd.backlog WHERE state = 'exhausted'"
    assert await one(failing, ended) == [1, 2]


async def test_what_a_cursor_has_before_it_is_not_swept(failing: Sql) -> None:
    await failing.execute("UPDATE webhookd.parked SET next_batch = 3")
    await failing.execute("UPDATE webhookd.batch SET hi = now() - interval '20 days', done_at = now()")
    await failing.execute("SELECT webhookd.sweep()")
    assert await failing.fetchval("SELECT array_agg(id ORDER BY id) FROM webhookd.batch") == [3, 4]


# What cannot be read


async def test_what_is_unreadable_is_not_said_to_be_behind_a_cursor(failing: Sql) -> None:
    await failing.execute("""UPDATE webhookd.endpoint SET spec = '{"events": ["*"]}'""")
    event = "SELECT event_id FROM webhookd.outbox ORDER BY id DESC LIMIT 1"
    fate = f"SELECT endpoint, state FROM webhookd.event_status(({event}))"
    assert await one(failing, fate) == ("hook", "parked")
    await failing.execute("INSERT INTO webhookd.unreadable SELECT max(id), 'why' FROM webhookd.outbox")
    assert await one(failing, fate) == (None, "unreadable")


async def test_only_what_was_owed_ends_with_an_event_that_is_unreadable(dsn: str, failing: Sql) -> None:
    await failing.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due, state, last_error)
           SELECT n, 7, now(), now(), state, 'timeout'
             FROM (VALUES (1, 'retry'), (2, 'held'), (3, 'exhausted'), (4, 'rejected')) v(n, state)"""
    )
    async with Database(dsn) as database:
        await Batches(database).set_aside({7: "why"})
    rows = await failing.fetch("SELECT state, last_error FROM webhookd.backlog ORDER BY endpoint_id")
    ended = ("rejected", "event_unreadable")
    assert [tuple(row) for row in rows] == [ended, ended, ("exhausted", "timeout"), ("rejected", "timeout")]


# Bounds


@pytest.mark.parametrize(
    ("column", "fits", "not_"),
    [
        ("type", "repeat('é', 512)", "repeat('é', 513)"),
        ("tenant", "repeat('é', 255)", "repeat('é', 256)"),
        ("ordering_key", "repeat('é', 512)", "repeat('é', 513)"),
        ("metadata", "to_json(repeat('m', 16382))", "to_json(repeat('m', 16383))"),
        ("occurred_at", "'0001-01-01Z'", "'0001-12-31 23:59:59.999999Z BC'"),
        ("occurred_at", "'9999-12-31 23:59:59.999999Z'", "'10000-01-01Z'"),
        ("deliver_after", "'0001-01-01Z'", "'0001-12-31 23:59:59.999999Z BC'"),
        ("deliver_after", "'9999-12-31 23:59:59.999999Z'", "'10000-01-01Z'"),
        ("created_at", "'1970-01-01Z'", "'1969-12-31 23:59:59.999999Z'"),
        ("created_at", "'9999-12-31 23:59:59.999999Z'", "'10000-01-01Z'"),
    ],
)
async def test_the_outbox_takes_what_just_fits_and_no_more(sql: Sql, column: str, fits: str, not_: str) -> None:
    others = "payload" if column == "type" else "type, payload"
    values = "'{}'" if column == "type" else "'a', '{}'"
    insert_ = f"INSERT INTO webhookd.outbox ({others}, {column}) VALUES ({values}, "
    await sql.execute(f"{insert_}{fits})")
    with pytest.raises(asyncpg.CheckViolationError, match=column):
        await sql.execute(f"{insert_}{not_})")
