"""Discards: wherever a delivery waits, it is not sent; what is newer, and what was delivered, is as it would be."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from tests.integration.conftest import (
    Got,
    Receiver,
    Running,
    Sql,
    attempts,
    configuration,
    eventually,
    finished,
    insert,
    insert_many,
    settled,
    states,
)
from tests.integration.engine.test_shots import resent
from tests.waiting import HANGS, until
from webhookd.daemon.daemon import NORMAL
from webhookd.store.batches import Batches
from webhookd.store.database import Database
from webhookd.store.discards import DiscardStore, Wanted
from webhookd.store.listings import STATES, Asked, Listings
from webhookd.store.replays import Replays
from webhookd.store.replays import Wanted as Replayed

LONG = {"first": "1h", "max_interval": "1h"}
ALL = Wanted(None, None, None, None, None)
DISCARDED: dict[str | None, str] = {"hook": "rejected"}


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with Database(dsn) as made:
        yield made


@pytest.fixture
def store(database: Database) -> DiscardStore:
    return DiscardStore(database)


def hook(receiver: Receiver, **table: Any) -> Any:
    return configuration({"hook": {"url": receiver.url("hook"), **table}}, retry=LONG)


async def discarded(store: DiscardStore, wanted: Wanted = ALL) -> int:
    """Discard, and let every daemon know."""
    number = await store.discard(wanted, "me@here")
    await asyncio.sleep(0.3)  # they look each 50 ms here
    return number


async def reasons(sql: Sql, event_id: str) -> set[str | None]:
    rows = await sql.fetch("SELECT last_error FROM webhookd.event_status($1)", event_id)
    return {row["last_error"] for row in rows}


async def test_what_is_to_be_tried_again(sql: Sql, store: DiscardStore, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("hook", 500)
    async with daemon(hook(receiver)):
        ids = [await insert(sql) for _ in range(3)]
        for event_id in ids:
            await settled(sql, event_id, {"hook": "retrying"})
        assert await store.count(ALL) == (3, 0, 3, 0, False)
        number = await discarded(store)
        for event_id in ids:
            await settled(sql, event_id, DISCARDED)
            assert await reasons(sql, event_id) == {"discarded"}
        await sql.execute("UPDATE webhookd.backlog SET due = now()")
        new = await insert(sql)
        await settled(sql, new, {"hook": "retrying"})
        assert len(receiver.got) == 4
        assert (await store.progress(number))[0] == 3
        assert [tuple(row) for row in await sql.fetch("SELECT who, action, subject FROM webhookd.audit")] == [
            ("me@here", "discard", None)
        ]


async def test_what_waits_in_memory(sql: Sql, store: DiscardStore, receiver: Receiver, daemon: Running) -> None:
    """Behind an attempt that hangs, which ends as it does: a failure is no reason to try again."""
    answer = asyncio.Event()
    status = 200

    async def script(_: Got) -> web.Response:
        await answer.wait()
        return web.Response(status=status)

    receiver.scripts["hook"] = script
    async with daemon(hook(receiver, max_in_flight=2)):
        ids = await insert_many(sql, 20)
        await until(lambda: receiver.flying["hook"] == 2, "two attempts")
        await discarded(store)
        status = 500
        answer.set()
        for event_id in ids:
            await settled(sql, event_id, DISCARDED)
            assert await reasons(sql, event_id) == {"discarded"}
        assert len(receiver.got) == 2
        assert len([each for event_id in ids for each in await attempts(sql, event_id)]) == 2
        receiver.answers("hook", 200)
        new = await insert(sql)
        await settled(sql, new, {"hook": "delivered"})


async def test_an_attempt_under_way_that_succeeds_is_a_delivery(
    sql: Sql, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    healed = receiver.hangs("hook")
    async with daemon(hook(receiver)):
        event_id = await insert(sql)
        await until(lambda: receiver.flying["hook"] == 1, "an attempt")
        await eventually(lambda: _has_row(sql), "its lease")
        await discarded(store)
        healed.set()
        await settled(sql, event_id, {"hook": "delivered"})


async def _has_row(sql: Sql) -> bool:
    return bool(await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.backlog)"))


async def test_what_stands_before_a_cursor_costs_no_row(
    sql: Sql, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(hook(receiver)):
        await eventually(lambda: _has(sql), "the endpoint")
        await sql.execute("SELECT webhookd.pause('{1}')")
        ids = await insert_many(sql, 1_000)
        await settled(sql, ids[-1], {"hook": "parked"})

        async def all_stand_before_it() -> bool:
            return await store.count(ALL) == (1_000, 0, 0, 1_000, False)

        await eventually(all_stand_before_it, "all to be read")
        await discarded(store)
        new = await insert(sql)
        await settled(sql, new, {"hook": "parked"})
        for event_id in (ids[0], ids[-1]):
            assert await states(sql, event_id) == DISCARDED
            assert await reasons(sql, event_id) == {"discarded"}
        (aside,) = await sql.fetch("SELECT parked, missed FROM webhookd.count_aside(10000)")
        assert tuple(aside) == (1, 0)
        await sql.execute("SELECT webhookd.resume('{1}')")
        await settled(sql, new, {"hook": "delivered"})
        await finished(sql)
    assert len(receiver.got) == 1
    assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") == 0
    assert await states(sql, ids[5]) == DISCARDED


async def _has(sql: Sql) -> bool:
    return bool(await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.endpoint)"))


async def test_what_nobody_has_read_and_what_is_scheduled(
    sql: Sql, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(hook(receiver)):
        pass  # the endpoint is known
    await sql.execute(
        """INSERT INTO webhookd.outbox (event_id, type, payload, deliver_after)
           VALUES ('unread', 't', '{}', NULL), ('later', 't', '{}', now() + interval '2 s')"""
    )
    assert await store.count(ALL) == (2, 2, 0, 0, False)
    await store.discard(ALL, "me")
    async with daemon(hook(receiver)):
        new = await insert(sql)
        await settled(sql, new, {"hook": "delivered"})
        for event_id in ("unread", "later"):
            assert await states(sql, event_id) == DISCARDED
        await eventually(lambda: _is_due(sql), "it to be due")
        await finished(sql)
        assert await states(sql, "later") == DISCARDED
    assert len(receiver.got) == 1
    assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") == 0


async def _is_due(sql: Sql) -> bool:
    return bool(await sql.fetchval("SELECT count(*) = 0 FROM webhookd.scheduled"))


@pytest.mark.parametrize(
    ("wanted", "covered"),
    [
        (ALL, {"plain", "acme", "paid", "old"}),
        (ALL._replace(type="order.*"), {"plain", "acme", "old"}),
        (ALL._replace(type="order.created"), {"plain", "acme", "old"}),
        (ALL._replace(type="*"), {"plain", "acme", "paid", "old"}),
        (ALL._replace(tenant="acme"), {"acme"}),
        (ALL._replace(tenant=""), {"plain", "paid", "old"}),
        (ALL._replace(endpoint_id=2), set()),
        (ALL._replace(endpoint_id=1, type="invoice.paid"), {"paid"}),
    ],
)
async def test_which_it_covers(
    sql: Sql, store: DiscardStore, receiver: Receiver, daemon: Running, wanted: Wanted, covered: set[str]
) -> None:
    """The same by what a daemon decides and by what the tables say, and of those that are in the backlog."""
    config = hook(receiver, tenant="*", events=["*", "webhookd.*"])
    async with daemon(config):
        pass  # the endpoint is known
    await sql.execute(
        """INSERT INTO webhookd.outbox (event_id, type, tenant, payload)
           VALUES ('plain', 'order.created', '', '{}'), ('acme', 'order.created', 'acme', '{}'),
                  ('paid', 'invoice.paid', '', '{}'), ('old', 'order.created', '', '{}')"""
    )
    await store.discard(wanted, "me")
    async with daemon(config):
        await finished(sql)
        new = await insert(sql)
        await settled(sql, new, {"*/hook": "delivered"})
        sent = set(receiver.events("hook")) - {new}
        names = ("plain", "acme", "paid", "old")
        found = {event_id for event_id in names if await states(sql, event_id) == {"*/hook": "rejected"}}
        assert (sent, found) == ({"plain", "acme", "paid", "old"} - covered, covered)
        await sql.execute(
            """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due)
               SELECT 1, id, created_at, now() + interval '1 h' FROM webhookd.outbox WHERE event_id <> $1
               ON CONFLICT DO NOTHING""",
            new,
        )
        again = await store.discard(wanted, "me")
        await eventually(lambda: _have_ended(store, again, len(covered)), "those of the backlog")
        rows = await sql.fetch(
            """SELECT o.event_id FROM webhookd.backlog b JOIN webhookd.outbox o ON o.id = b.outbox_id
                WHERE b.state = 'rejected'"""
        )
        assert {row["event_id"] for row in rows} == covered


async def _have_ended(store: DiscardStore, number: int, many: int) -> bool:
    return (await store.progress(number))[0] == many


async def test_spans_never_reach_into_the_future(
    sql: Sql, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    later = await sql.fetchval("SELECT now() + interval '1 day'")
    async with daemon(hook(receiver)):
        before = await insert(sql)
        await finished(sql)
        middle = await sql.fetchval("SELECT clock_timestamp()")
        await discarded(store, ALL._replace(since=middle, until=later))
        after = await insert(sql)
        await settled(sql, after, {"hook": "delivered"})
        assert await states(sql, before) == {"hook": "delivered"}
        assert await sql.fetchval("SELECT until <= now() FROM webhookd.discard")


async def test_a_replay_before_it_hands_out_nothing_more_and_one_after_it_does(
    sql: Sql, database: Database, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    replays = Replays(database)
    async with daemon(hook(receiver)):
        ids = await insert_many(sql, 3)
        await finished(sql)
        receiver.got.clear()
        await sql.execute("SELECT webhookd.pause('{1}')")
        (before,) = (await replays.begin([1], Replayed("all"), 1000.0, "me")).values()
        await discarded(store)
        await sql.execute("SELECT webhookd.resume('{1}')")

        async def is_over() -> bool:
            return (await replays.all(before))[0].state == "done"

        await eventually(is_over, "the replay")
        assert (await replays.all(before))[0].sent == 0
        assert receiver.got == []
        receiver.answers("hook", 500)
        more = await insert(sql)
        await settled(sql, more, {"hook": "retrying"})
        await discarded(store)
        await settled(sql, more, DISCARDED)
        receiver.answers("hook", 200)
        await replays.begin([1], Replayed("discarded"), 1000.0, "me")
        await settled(sql, more, {"hook": "delivered"})
        assert receiver.of("hook")[-1].headers["webhook-trigger"] == "replay"
    assert ids


async def test_what_was_discarded_without_a_row_can_be_replayed(
    sql: Sql, database: Database, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(hook(receiver)):
        pass  # the endpoint is known
    event_id = await insert(sql)
    await store.discard(ALL, "me")
    async with daemon(hook(receiver)):
        await eventually(lambda: _is_cut(sql), "the cut")
        await settled(sql, event_id, DISCARDED)
        replays = Replays(database)
        counts = {}
        for state in ("missed", "discarded", "exhausted", "rejected"):
            counts[state] = sum([many async for many in replays.count(1, Replayed(state))])
        assert counts == {"missed": 0, "discarded": 1, "exhausted": 0, "rejected": 0}
        await replays.begin([1], Replayed("discarded"), 1000.0, "me")
        await settled(sql, event_id, {"hook": "delivered"})


async def _is_cut(sql: Sql) -> bool:
    return bool(
        await sql.fetchval(
            "SELECT EXISTS (SELECT FROM webhookd.batch WHERE outbox_ids <> '{}' AND done_at IS NOT NULL)"
        )
    )


async def test_a_resend_is_somebodys_word_all_the_same(
    sql: Sql, database: Database, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 500, 200)
    async with daemon(hook(receiver)):
        event_id = await insert(sql)
        await settled(sql, event_id, {"hook": "retrying"})
        await discarded(store)
        await settled(sql, event_id, DISCARDED)
        (ended,) = await resent(database, sql, event_id)
        assert ended.ok
        assert await states(sql, event_id) == {"hook": "delivered"}


async def test_rows_that_appear_behind_are_found_by_another_look(sql: Sql, store: DiscardStore) -> None:
    """What a daemon that does not know yet puts off while the backlog is looked through."""
    await insert_many(sql, 3)
    row = """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due)
             SELECT $1, id, created_at, now() FROM webhookd.outbox WHERE id = $2"""
    await sql.execute(row, 2, 1)
    number = await store.discard(ALL, "me")
    await store.step(number)
    await sql.execute(row, 1, 2)
    assert await store.step(number) is False
    assert await store.progress(number) == (1, True)
    assert await store.to_look_for() == [number]
    await sql.execute("UPDATE webhookd.discard SET created_at = created_at - interval '1 min'")
    await store.step(number)
    assert await store.progress(number) == (2, True)
    assert await store.to_look_for() == []
    assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog WHERE state = 'rejected'") == 2


async def test_what_is_listed(
    sql: Sql, database: Database, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(hook(receiver)):
        pass  # the endpoint is known
    await insert_many(sql, 3)
    await store.discard(ALL, "me")
    async with daemon(hook(receiver)):
        await eventually(lambda: _is_cut(sql), "the cut")
        listings = Listings(database)
        for states_ in (STATES, ("rejected",)):
            page = await listings.deliveries(Asked(10), None, states_, None)
            assert [(row.state, row.error) for row in page.rows] == [("rejected", "discarded")] * 3
        events = await listings.events(Asked(10), None, None)
        assert [(row.rejected, row.state) for row in events.rows] == [(1, None)] * 3
        assert (await listings.deliveries(Asked(10), None, ("missed",), None)).rows == []


async def test_what_is_not_discarded_goes_on_behind_it(
    sql: Sql, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    """Its payloads are yet to come when what stood before it in the queue is gone."""

    async def script(_: Got) -> web.Response:
        await asyncio.sleep(0.02)
        return web.Response()

    receiver.scripts["hook"] = script
    async with daemon(hook(receiver), NORMAL):
        await insert_many(sql, 600, type_="a")
        await insert_many(sql, 40, type_="b")
        await until(lambda: len(receiver.got) > 20, "some of the first")
        await store.discard(ALL._replace(type="a"), "me")
        await finished(sql)
        kept = {row[0] for row in await sql.fetch("SELECT event_id FROM webhookd.outbox WHERE type = 'b'")}
    assert kept <= set(receiver.events("hook"))
    assert len(receiver.got) < 640


async def test_what_is_discarded_while_its_payload_comes(
    sql: Sql, store: DiscardStore, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads, arrived, gate = Batches.payloads, asyncio.Event(), asyncio.Event()

    async def late(self: Batches, *given: Any) -> Any:
        found = await payloads(self, *given)
        arrived.set()
        await gate.wait()
        return found

    monkeypatch.setattr(Batches, "payloads", late)
    async with daemon(hook(receiver)):
        ids = await insert_many(sql, 30, payload=f'"{"x" * 9_000}"')  # too large to come along
        async with asyncio.timeout(HANGS):
            await arrived.wait()
        await discarded(store)
        gate.set()
        for event_id in ids:
            await settled(sql, event_id, DISCARDED)
        assert receiver.got == []


async def test_what_is_under_way_undoes_no_replay(
    sql: Sql, database: Database, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    """The attempt of before ends as discarded when the row is that of a replay which takes that back."""
    fail = asyncio.Event()

    async def script(got: Got) -> web.Response:
        if "webhook-trigger" not in got.headers:
            await fail.wait()
        return web.Response(status=200 if "webhook-trigger" in got.headers else 500)

    receiver.scripts["hook"] = script
    async with daemon(hook(receiver, max_in_flight=1)):
        event_id = await insert(sql)
        await eventually(lambda: _has_row(sql), "the lease of an attempt that hangs")
        await discarded(store)
        await settled(sql, event_id, DISCARDED)
        await Replays(database).begin([1], Replayed("discarded"), 1000.0, "me")
        await settled(sql, event_id, {"hook": "retrying"})
        fail.set()
        await settled(sql, event_id, {"hook": "delivered"})


async def test_what_was_discarded_before_a_cursor_can_be_replayed(
    sql: Sql, database: Database, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(hook(receiver)):
        await eventually(lambda: _has(sql), "the endpoint")
        await sql.execute("SELECT webhookd.pause('{1}')")
        ids = await insert_many(sql, 5)
        await settled(sql, ids[-1], {"hook": "parked"})
        await discarded(store)
        replays = Replays(database)
        assert sum([many async for many in replays.count(1, Replayed("discarded"))]) == 5
        await replays.begin([1], Replayed("discarded"), 1000.0, "me")
        await sql.execute("SELECT webhookd.resume('{1}')")
        for event_id in ids:
            await settled(sql, event_id, {"hook": "delivered"})
    assert len(receiver.got) == 5


async def test_who_came_later_was_owed_nothing_that_could_be_discarded(
    sql: Sql, database: Database, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(hook(receiver)):
        event_id = await insert(sql)
        await finished(sql)
    await store.discard(ALL, "me")
    both = {name: {"url": receiver.url(name)} for name in ("hook", "new")}
    async with daemon(configuration(both)):
        await eventually(lambda: _are_two(sql), "the new endpoint")
        assert await states(sql, event_id) == {"hook": "delivered"}
        number = await sql.fetchval("SELECT id FROM webhookd.endpoint WHERE name = 'new'")
        assert sum([many async for many in Replays(database).count(number, Replayed("missed"))]) == 1


async def _are_two(sql: Sql) -> bool:
    return bool(await sql.fetchval("SELECT count(*) = 2 FROM webhookd.endpoint"))


async def test_where_the_ledger_is_gone_nobody_says_what_was_discarded(
    sql: Sql, database: Database, store: DiscardStore, receiver: Receiver, daemon: Running
) -> None:
    """Attempts may be kept for a shorter time than events; what was delivered would look as if it had not been."""
    async with daemon(hook(receiver)):
        event_id = await insert(sql)
        await finished(sql)
        await store.discard(ALL, "me")
        for (partition,) in await sql.fetch("SELECT name FROM webhookd.partitions('attempt') WHERE since <= now()"):
            await sql.execute(f"DROP TABLE webhookd.{partition}")
        assert await states(sql, event_id) == {None: "unmatched"}
        assert sum([many async for many in Replays(database).count(1, Replayed("discarded"))]) == 0
