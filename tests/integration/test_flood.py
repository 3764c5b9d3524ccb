"""A transaction of very many events: it delays nobody, most of it stays in the log, and each event comes once."""

import asyncio
import time

import asyncpg
import pytest
from aiohttp import web

from tests.integration.conftest import (
    Got,
    Receiver,
    Running,
    Sql,
    configuration,
    eventually,
    finished,
    insert,
    insert_many,
    settled,
)
from tests.waiting import until
from webhookd.sql import QUERIES

SLOW = {"max_in_flight": 2}  # of a receiver that takes 0.2 s: ten a second
FLOOD = """INSERT INTO webhookd.outbox (type, tenant, payload)
           SELECT 'order.created', 'large', '{}' FROM generate_series(1, $1)"""


def is_slow(receiver: Receiver, path: str) -> asyncio.Event:
    """The path takes 0.2 s for an answer until the event that is returned is set."""
    quick = asyncio.Event()

    async def script(_: Got) -> web.Response:
        if not quick.is_set():
            await asyncio.sleep(0.2)
        return web.Response()

    receiver.scripts[path] = script
    return quick


async def cut(sql: Sql, most: int, rest: int = 0) -> list[list[int]]:
    """The events of the batches, of ten at most, that this makes; numbered from 1."""
    rows = await sql.fetch("SELECT o_ids FROM webhookd.cut($1, 10, 1, $2) ORDER BY batch_id", most, rest)
    return [row["o_ids"] for row in rows]


def events(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


@pytest.mark.parametrize(("many", "receives"), [(100_000, "slow"), (10_000, "quick")])
async def test_another_tenant_waits_for_no_flood(
    sql: Sql, receiver: Receiver, daemon: Running, many: int, receives: str
) -> None:
    if receives == "slow":
        is_slow(receiver, "large")
    came: list[Got] = []

    async def small(got: Got) -> web.Response:
        came.append(got)
        return web.Response()

    receiver.scripts["small"] = small
    config = configuration(
        {
            "large": {"url": receiver.url("large"), "tenant": "large", **SLOW},
            "small": {"url": receiver.url("small"), "tenant": "small"},
        }
    )
    waits = []
    async with daemon(config):
        await insert(sql, tenant="large")
        await finished(sql)
        await sql.execute(FLOOD, many)
        for n in range(1, 21):
            started = time.monotonic()
            await insert(sql, tenant="small")
            await until(lambda n=n: len(came) == n, "the other's event")  # type: ignore[misc]
            waits.append(time.monotonic() - started)
            await asyncio.sleep(0.1)
        if receives == "slow":

            async def is_over() -> bool:
                return not await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.remainder)")

            await eventually(is_over, "the flood to be cut")
            assert await sql.fetchval("SELECT count(*) FROM webhookd.parked") == 1
            assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") < 2_500
        else:
            await finished(sql)
    print("waits", sorted(round(wait, 3) for wait in waits)[-3:])  # noqa: T201 - the figures are what the test is for
    assert max(waits) < 2.0


async def test_a_flood_for_an_endpoint_that_cannot_keep_up_comes_once_each(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    quick = is_slow(receiver, "hook")
    config = configuration({"hook": {"url": receiver.url("hook"), **SLOW}})
    async with daemon(config):
        first = await insert_many(sql, 12_000)

        async def is_parked() -> bool:
            return bool(await sql.fetchval("SELECT count(*) FROM webhookd.parked"))

        await eventually(is_parked, "it to be parked")
        await settled(sql, first[-1], {"hook": "parked"})
        later = await insert_many(sql, 50)
        quick.set()
        await finished(sql)

        async def is_live() -> bool:
            return not await is_parked()

        await eventually(is_live, "it to be live again")
    counts = await sql.fetch("SELECT count(*) FROM webhookd.attempt WHERE ok GROUP BY outbox_id")
    assert [row["count"] for row in counts] == [1] * 12_050
    assert set(receiver.events("hook")) == {*first, *later}


async def test_two_daemons_share_a_flood(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    config = configuration({"hook": {"url": receiver.url("hook")}})
    async with daemon(config), daemon(config):
        many = await insert_many(sql, 8_000)
        await finished(sql)
        owners = await sql.fetch("SELECT DISTINCT owner FROM webhookd.batch WHERE outbox_ids <> '{}'")
    assert len(owners) == 2
    assert sorted(receiver.events("hook")) == sorted(many)


async def test_a_flood_for_an_endpoint_that_is_gone_costs_no_row_per_event(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 410)
    config = configuration({"hook": {"url": receiver.url("hook"), **SLOW}})
    async with daemon(config):
        await insert_many(sql, 20_000)

        async def is_disabled() -> bool:
            return bool(await sql.fetchval("SELECT disabled_at IS NOT NULL FROM webhookd.endpoint"))

        await eventually(is_disabled, "it to be disabled")
        await eventually(lambda: all_cut(sql), "the flood to be worked off")
        assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") < 2_500


async def all_cut(sql: Sql) -> bool:
    return not await sql.fetchval(
        """SELECT EXISTS (SELECT FROM webhookd.batch WHERE done_at IS NULL)
               OR EXISTS (SELECT FROM webhookd.remainder)"""
    )


async def test_a_large_transaction_is_cut_in_pieces(sql: Sql) -> None:
    await insert_many(sql, 55)
    assert await cut(sql, 20) == [events(1, 10), events(11, 20)]
    assert await cut(sql, 20) == []
    await insert_many(sql, 5)
    assert await cut(sql, 20) == [events(56, 60)]  # what is new does not wait for it
    await insert_many(sql, 3)
    assert await cut(sql, 20, 15) == [events(61, 63), events(21, 30), events(31, 35)]  # and no batch holds both
    assert await cut(sql, 20, 15) == [events(36, 45), events(46, 50)]
    assert await cut(sql, 20, 15) == [events(51, 55)]
    assert await sql.fetchval("SELECT count(*) FROM webhookd.remainder") == 0
    assert await cut(sql, 20, 15) == []


async def test_several_large_transactions_take_turns(sql: Sql) -> None:
    for _ in range(2):
        await insert_many(sql, 40)
        await cut(sql, 10)
    assert [await cut(sql, 10, 10) for _ in range(7)] == [
        [events(11, 20)],
        [events(51, 60)],
        [events(21, 30)],
        [events(61, 70)],
        [events(31, 40)],
        [events(71, 80)],
        [],
    ]


async def test_small_transactions_are_cut_whole(sql: Sql) -> None:
    for _ in range(3):
        await insert_many(sql, 8)
    assert await cut(sql, 20) == [events(1, 10), events(11, 16)]
    assert await cut(sql, 20) == [events(17, 24)]
    await insert_many(sql, 20)
    assert await cut(sql, 20) == [events(25, 34), events(35, 44)]
    assert await sql.fetchval("SELECT count(*) FROM webhookd.remainder") == 0


async def test_a_large_transaction_that_was_open_when_others_were_read(dsn: str, sql: Sql) -> None:
    writer: Sql = await asyncpg.connect(dsn)
    async with writer.transaction():
        await insert_many(writer, 15)
        await insert_many(sql, 2)
        assert await cut(sql, 10) == [events(16, 17)]
        await insert_many(writer, 10)
    await writer.close()
    assert await cut(sql, 10) == [events(1, 10)]
    assert await cut(sql, 10, 10) == [[*events(11, 15), *events(18, 22)]]
    assert await cut(sql, 10, 10) == [events(23, 27)]
    assert await sql.fetchval("SELECT pos_xip FROM webhookd.batch ORDER BY id DESC LIMIT 1") == []


async def test_pieces_may_be_scheduled_for_later(sql: Sql) -> None:
    await sql.execute(
        """INSERT INTO webhookd.outbox (type, payload, deliver_after)
           SELECT 'a.b', '{}', CASE WHEN n BETWEEN 6 AND 25 THEN now() + interval '1 hour' END
             FROM generate_series(1, 30) n"""
    )
    assert await cut(sql, 10) == [events(1, 5)]
    assert [await cut(sql, 10, 10) for _ in range(3)] == [[[]], [events(26, 30)], []]
    assert await sql.fetchval("SELECT count(*) FROM webhookd.scheduled") == 20


async def test_what_remains_is_unread(sql: Sql) -> None:
    """For whoever watches, for retention, and for a copy that is taken over."""
    await insert_many(sql, 30)
    await cut(sql, 10)
    await sql.execute("UPDATE webhookd.batch SET done_at = now()")
    assert await sql.fetchval("SELECT unread_events FROM webhookd.health") == 20
    assert (await sql.fetchrow(QUERIES["status_waiting"]))[0] == 20  # type: ignore[index]
    why = await sql.fetchval(
        "SELECT webhookd.needed(name, since, until) FROM webhookd.partitions('outbox') ORDER BY since LIMIT 1"
    )
    assert why == "it has events that no daemon has read"
    assert (await sql.fetchrow("SELECT * FROM webhookd.rebase('production', 'deliver')"))[0] == 20  # type: ignore[index]
    assert await sql.fetchval("SELECT count(*) FROM webhookd.remainder") == 0
    assert await sql.fetchval("SELECT sum(cardinality(outbox_ids)) FROM webhookd.batch") == 30


async def test_the_time_of_an_older_range_runs_out_too(sql: Sql) -> None:
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('hook', 'file', '{}')")
    await sql.execute("SELECT webhookd.park('{1}', 'failing', 5, '{10}', '{1}')")
    await insert_many(sql, 55)
    await cut(sql, 60)
    await sql.execute("SELECT webhookd.unpark('{1}', 5, '{1}')")
    await sql.execute("SELECT webhookd.park('{1}', 'failing', 5, '{10}', '{1}')")
    await sql.execute("UPDATE webhookd.batch SET cut_at = now() - interval '4 days' WHERE id <= 4")
    before = "now() - interval '3 days'"
    await sql.execute(f"SELECT webhookd.give_up(1, 5, 1, {before})")
    assert await sql.fetchval("SELECT next_batch FROM webhookd.parked WHERE from_batch = 1") == 5
    await sql.execute("UPDATE webhookd.batch SET cut_at = now() - interval '4 days'")
    await sql.execute(f"SELECT webhookd.give_up(1, 5, 1, {before})")
    missed = await sql.fetch("SELECT from_batch, to_batch, reason FROM webhookd.missed")
    assert [tuple(row) for row in missed] == [(1, 7, "exhausted")]
