"""A transaction of very many events: it delays nobody, most of it stays in the log, and each event comes once."""

import asyncio
from random import Random

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
from tests.stopwatch import Stopwatch, family
from tests.waiting import HANGS, until
from webhookd.engine.intake.reader import MOST_IN_HAND, MOST_PER_CUT
from webhookd.store.statements import QUERIES

pytestmark = pytest.mark.timeout(600)

MUCH = 3 * HANGS  # for tens of thousands of deliveries
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


async def cut(sql: Sql, most: int, rest: int = 0, read: int | None = None, **asked: object) -> list[list[int]]:
    """The events of the batches, of ten at most, that this makes; numbered from 1."""
    more = "".join(f", p_{name} => ${at}" for at, name in enumerate(asked, start=4))
    query = f"SELECT o_ids FROM webhookd.cut($1, 10, 1, $2, $3{more}) ORDER BY batch_id"
    return [row["o_ids"] for row in await sql.fetch(query, most, rest, read, *asked.values())]


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
        await finished(sql, MUCH)
        await sql.execute(FLOOD, many)
        for n in range(1, 21):
            watch = Stopwatch(*family(sql.get_server_pid()))
            await insert(sql, tenant="small")
            await until(lambda n=n: len(came) == n, "the other's event")  # type: ignore[misc]
            waits.append(watch.seconds)
            await asyncio.sleep(0.1)
        if receives == "slow":

            async def is_over() -> bool:
                return not await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.remainder)")

            await eventually(is_over, "the flood to be cut")
            assert await sql.fetchval("SELECT count(*) FROM webhookd.parked") == 1
            # How much is put off until it is parked depends on speed, which the benchmark has a bound for.
            assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") < many / 20
        else:
            await finished(sql, MUCH)
    print("waits", sorted(round(wait, 3) for wait in waits)[-3:])  # noqa: T201 - the figures are what the test is for
    assert max(waits) < 2.0


@pytest.mark.parametrize("rate", [0, 1])
async def test_another_tenant_waits_for_no_flood_of_transactions(
    sql: Sql, receiver: Receiver, daemon: Running, rate: int
) -> None:
    """Its events, committed one after the other, are all there long before the flood is half delivered."""
    keys: dict[str, object] = {"url": receiver.url("large"), "tenant": "large", "max_in_flight": 1}
    if rate:
        keys["rate_limit"] = f"{rate}/s"
    config = configuration(
        {f"large-{n}": keys for n in range(30)} | {"small": {"url": receiver.url("small"), "tenant": "small"}}
    )
    async with daemon(config):
        await insert(sql, tenant="small")
        await until(lambda: len(receiver.events("small")) == 1, "a first one")
        for _ in range(80):
            await sql.execute(FLOOD, 100)
        for n in range(2, 12):
            await insert(sql, tenant="small")
            await until(lambda n=n: len(receiver.events("small")) == n, "the other's event")  # type: ignore[misc]
        assert len(receiver.events("large")) < 80 * 100 * 30 / 2
        # One tenant takes half of what may be in hand. A cut may be under way, and an end may not be written yet.
        in_hand = "SELECT sum(cardinality(outbox_ids)) FROM webhookd.batch WHERE done_at IS NULL"
        assert (await sql.fetchval(in_hand) or 0) <= MOST_IN_HAND / 2 + MOST_PER_CUT
        assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") < 30 * 3_500


async def test_scheduled_events_that_are_due_at_once_delay_nobody_elses(sql: Sql) -> None:
    """Those of others come with the first cut, though they are due later than all of those; each comes once."""
    schedule = """INSERT INTO webhookd.outbox (type, tenant, payload, deliver_after)
                  SELECT 't', $1, '{}', now() + $3 * interval '1 min' FROM generate_series(1, $2)"""
    await sql.execute(schedule, "large", 100, 60)
    for tenant in ("", "b", "z"):
        await sql.execute(schedule, tenant, 2, 61)
    await sql.execute(schedule, "late", 1, 200)
    assert await cut(sql, 1000, read=1000) == [[]]
    assert await sql.fetchval("SELECT count(*) FROM webhookd.scheduled WHERE tenant = 'large'") == 100
    await sql.execute("UPDATE webhookd.scheduled SET due = due - interval '2 h'")
    batches = await cut(sql, 5, read=20)
    assert sorted(id_ for batch in batches for id_ in batch) == [*events(1, 5), *events(101, 106)]
    for _ in range(10):
        batches += await cut(sql, 100, 1000, read=20)
    assert sorted(id_ for batch in batches for id_ in batch) == events(1, 106)
    assert [row["outbox_id"] for row in await sql.fetch("SELECT outbox_id FROM webhookd.scheduled")] == [107]


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
        await finished(sql, MUCH)

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
        await finished(sql, MUCH)
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
        assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") < 20_000 / 4


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
    assert await cut(sql, 20, 10) == [events(61, 63), events(21, 30)]  # and no batch holds both
    assert await cut(sql, 20, 10) == [events(31, 40)]
    assert await cut(sql, 20, 10) == [events(41, 50)]
    assert await cut(sql, 20, 10) == [events(51, 55)]
    assert await cut(sql, 20, 10) == []
    assert await sql.fetchval("SELECT count(*) FROM webhookd.remainder") == 0
    assert await sql.fetchval("SELECT count(*) FROM webhookd.surplus") == 0


async def test_several_large_transactions_take_turns(sql: Sql) -> None:
    for _ in range(2):
        await insert_many(sql, 40)
        await cut(sql, 10, read=40)
    assert [await cut(sql, 10, 10) for _ in range(7)] == [
        [events(11, 20)],
        [events(51, 60)],
        [events(21, 30)],
        [events(61, 70)],
        [events(31, 40)],
        [events(71, 80)],
        [],
    ]


async def insert_for(sql: Sql, tenant: str, count: int) -> None:
    await sql.execute(
        "INSERT INTO webhookd.outbox (type, tenant, payload) SELECT 'a.b', $1, '{}' FROM generate_series(1, $2)",
        tenant,
        count,
    )


async def test_a_tenant_gets_its_share_of_a_cut(sql: Sql) -> None:
    for _ in range(6):
        await insert_for(sql, "a", 8)
    await insert_for(sql, "b", 2)
    assert await cut(sql, 10, read=100) == [events(1, 10), events(49, 50)]
    await insert_for(sql, "a", 8)
    await insert_for(sql, "b", 2)
    assert await cut(sql, 10, read=100) == [events(59, 60)]  # what came first goes first
    assert await cut(sql, 10, 10, busy=["a"]) == []
    drawn = [await cut(sql, 10, 10) for _ in range(6)]
    assert [event for batches in drawn for batch in batches for event in batch] == [*events(11, 48), *events(51, 58)]
    assert await sql.fetchval("SELECT count(*) FROM webhookd.surplus") == 0


async def test_a_tenant_that_is_full_gets_nothing_more(sql: Sql) -> None:
    await insert_for(sql, "a", 8)
    await insert_for(sql, "b", 2)
    assert await cut(sql, 10, read=100, full=["a"]) == [events(9, 10)]
    await insert_for(sql, "a", 3)
    assert await cut(sql, 10, read=100, full=["a"]) == [[]]  # the place in the log, and that it was read
    assert await cut(sql, 10, read=100, full=["a"]) == []
    assert await cut(sql, 10, 10) == [[*events(1, 8), 11, 12], [13]]  # of two pages


async def test_tenants_take_turns_with_their_surplus(sql: Sql) -> None:
    for tenant in ("a", "b", "c"):
        await insert_for(sql, tenant, 20)
    await cut(sql, 0, read=100)
    after = None
    found = []
    for _ in range(6):
        row = await sql.fetchrow("SELECT o_ids, o_after FROM webhookd.cut(0, 10, 1, 10, 100, p_after => $1)", after)
        assert row is not None
        after = row["o_after"]
        found.append((after, row["o_ids"][0]))
    assert found == [("a", 1), ("b", 21), ("c", 41), ("a", 11), ("b", 31), ("c", 51)]


async def test_what_is_due_at_once_is_shared_too(sql: Sql) -> None:
    for tenant, count in (("a", 30), ("b", 2)):
        await sql.execute(
            """INSERT INTO webhookd.outbox (type, tenant, payload, deliver_after)
               SELECT 'a.b', $1, '{}', now() + interval '1 hour' FROM generate_series(1, $2)""",
            tenant,
            count,
        )
    assert await cut(sql, 10, read=100) == [[]]
    await sql.execute("UPDATE webhookd.scheduled SET due = now()")
    assert await cut(sql, 10, read=100) == [events(1, 10), events(31, 32)]
    assert [await cut(sql, 10, 10) for _ in range(3)] == [[events(11, 20)], [events(21, 30)], []]
    assert await sql.fetchval("SELECT count(*) FROM webhookd.scheduled") == 0


async def test_random_transactions_are_cut_once_each(sql: Sql) -> None:
    """Of tenants in all kinds of transactions, with anybody full or busy at any time."""
    random = Random(7)
    found: list[int] = []
    for _ in range(150):
        for tenant in random.choices("abc", k=random.randrange(3)):
            await insert_for(sql, tenant, random.choice((1, 2, 3, 25, 90)))
        if random.random() < 0.2:  # of several tenants at once
            await sql.execute(
                """INSERT INTO webhookd.outbox (type, tenant, payload)
                   SELECT 'a.b', chr(97 + n % 3), '{}' FROM generate_series(1, $1) n""",
                random.randrange(1, 80),
            )
        tenants = ["a", "b", "c"]
        batches = await cut(
            sql,
            random.choice((0, 5, 10)),
            random.choice((0, 10, 30)),
            read=20,
            full=random.sample(tenants, random.randrange(3)),
            busy=random.sample(tenants, random.randrange(3)),
            after=random.choice((None, *tenants)),
        )
        assert all(len(batch) <= 10 for batch in batches)
        found += [event for batch in batches for event in batch]
    for _ in range(1_000):
        batches = await cut(sql, 10, 30, read=20)
        found += [event for batch in batches for event in batch]
        if not batches and not await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.remainder)"):
            break
    assert len(found) == len(set(found)) == await sql.fetchval("SELECT count(*) FROM webhookd.outbox")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.remainder") == 0
    assert await sql.fetchval("SELECT count(*) FROM webhookd.surplus") == 0


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
    assert [await cut(sql, 10, 10) for _ in range(3)] == [[], [events(26, 30)], []]
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
