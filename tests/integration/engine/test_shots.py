"""Resends and tests: one request, whatever keeps the endpoint from being sent to, within its limits."""

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg
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
from tests.waiting import until
from webhookd.store.database import Database
from webhookd.store.shots import Ended, Wishes

LONG = {"first": "1h", "max_interval": "1h"}


@pytest.fixture
async def database(dsn: str) -> Any:
    async with Database(dsn) as made:
        yield made


async def wanted(database: Database, sql: Sql, event_id: str, *names: str, seconds: float = 30.0) -> list[int]:
    """Resends of an event to these endpoints."""
    rows = await sql.fetch(
        """SELECT p.id, o.id AS event, o.created_at FROM webhookd.endpoint p, webhookd.outbox o
            WHERE p.name = ANY($1) AND o.event_id = $2 ORDER BY p.name""",
        names or ["hook"],
        event_id,
    )
    pairs: list[tuple[int, int, datetime]] = [(row[0], row[1], row[2]) for row in rows]
    return [shot for shot, *_ in await Wishes(database, "me@here", seconds).resend(pairs)]


async def end(database: Database, shots: Sequence[int]) -> list[Ended]:
    wishes = Wishes(database, "", 0)

    async def have_ended() -> bool:
        return len(await wishes.ended(shots)) == len(shots)

    await eventually(have_ended, "the shots")
    return await wishes.ended(shots)


async def resent(database: Database, sql: Sql, event_id: str, *names: str) -> list[Ended]:
    return await end(database, await wanted(database, sql, event_id, *names))


async def tried(
    database: Database, sql: Sql, *types: str, name: str = "hook", payload: bytes = b'{"a": 1}'
) -> list[Ended]:
    number = await sql.fetchval("SELECT id FROM webhookd.endpoint WHERE name = $1", name)
    examples = [(f"test_{type_.replace('.', '_')}", type_, payload) for type_ in types]
    shots, _ = await Wishes(database, "me@here", 30.0).test(number, examples)
    return await end(database, shots)


async def test_a_resend_is_one_more_request_and_says_so(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(configuration({"hook": {"url": receiver.url("hook"), "headers": {"x-of": "{tenant}!"}}})):
        event_id = await insert(sql, '{"n": 1.10}', ordering_key="k")
        await finished(sql)
        (ended,) = await resent(database, sql, event_id)
        assert (ended.ok, ended.code, ended.error, ended.request, ended.response) == (True, 200, None, None, None)
        first, second = receiver.of("hook")
        assert second.body == first.body
        assert "webhook-trigger" not in first.headers
        assert second.headers["webhook-trigger"] == "resend"
        assert (second.event_id, second.attempt) == (event_id, 2)
        assert await states(sql, event_id) == {"hook": "delivered"}
        rows = await attempts(sql, event_id)
        assert [(row["attempt"], row["ok"], row["trigger"]) for row in rows] == [(1, True, None), (2, True, "resend")]
        assert [tuple(row) for row in await sql.fetch("SELECT who, action, subject FROM webhookd.audit")] == [
            ("me@here", "resend", event_id)
        ]


async def test_a_delivered_one_ends_the_retries(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 500, 200)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, retry=LONG)):
        event_id = await insert(sql)
        await settled(sql, event_id, {"hook": "retrying"})
        (ended,) = await resent(database, sql, event_id)
        assert ended.ok
        assert await states(sql, event_id) == {"hook": "delivered"}
        assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") == 0


async def test_a_failed_one_leaves_the_retries_alone(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 500)
    owed = "SELECT attempts, due, state, last_code, asked, clock_from FROM webhookd.backlog"
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, retry=LONG)):
        event_id = await insert(sql)
        await settled(sql, event_id, {"hook": "retrying"})
        before = await sql.fetchrow(owed)
        receiver.answers("hook", 404)
        (ended,) = await resent(database, sql, event_id)
        assert (ended.ok, ended.code, ended.error) == (False, 404, "http_404")
        assert await sql.fetchrow(owed) == before
        assert [row["response"] for row in await attempts(sql, event_id)] == [b"answer 500", b"answer 404"]
        receiver.answers("hook", 200)
        await sql.execute("UPDATE webhookd.backlog SET due = now()")
        await settled(sql, event_id, {"hook": "delivered"})
        assert [row["attempt"] for row in await attempts(sql, event_id)] == [1, 2, 2]


async def test_a_failed_one_undoes_nothing(sql: Sql, database: Database, receiver: Receiver, daemon: Running) -> None:
    """What was delivered stays so; what nobody was owed is not owed now, and what was missed stays missed."""
    tables = {"hook": {}, "other": {"events": ["order.*"]}, "gone": {}}
    urls = {name: {"url": receiver.url(name), **table} for name, table in tables.items()}
    async with daemon(configuration(urls, retry=LONG)):
        await sql.execute("SELECT webhookd.disable(id, 'http_410') FROM webhookd.endpoint WHERE name = 'gone'")
        event_id = await insert(sql, type="invoice.paid")
        await settled(sql, event_id, {"gone": "missed", "hook": "delivered"})
        for name in tables:
            receiver.answers(name, 500)
        ended = await resent(database, sql, event_id, "gone", "hook", "other")
        assert [each.code for each in ended] == [500, 500, 500]
        assert await states(sql, event_id) == {"gone": "missed", "hook": "delivered"}
        assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") == 0


async def test_a_failure_that_is_recorded_later_does_not_bring_the_row_back(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    """The first attempt hangs while a resend is delivered, and fails then."""
    fail = asyncio.Event()

    async def script(got: Got) -> web.Response:
        if "webhook-trigger" in got.headers:
            return web.Response()
        await fail.wait()
        return web.Response(status=500)

    receiver.scripts["hook"] = script
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, retry=LONG)):
        event_id = await insert(sql)
        await until(lambda: len(receiver.of("hook")) == 1, "the first attempt")
        (ended,) = await resent(database, sql, event_id)
        assert ended.ok
        fail.set()
        await eventually(lambda: _count(sql, 2), "both attempts")
        await finished(sql)
        assert await states(sql, event_id) == {"hook": "delivered"}
        assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") == 0


async def _count(sql: Sql, many: int) -> bool:
    return bool(await sql.fetchval("SELECT count(*) FROM webhookd.attempt") == many)


@pytest.mark.parametrize("why", ["paused", "disabled", "inactive", "failing"])
async def test_whatever_keeps_the_rest_from_it(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running, why: str
) -> None:
    config = configuration({"hook": {"url": receiver.url("hook"), "active": why != "inactive"}}, retry=LONG)
    async with daemon(config):
        event_id = await insert(sql)
        if why == "paused":
            await sql.execute("SELECT webhookd.pause('{1}')")
        elif why == "disabled":
            await sql.execute("SELECT webhookd.disable(1, 'http_410')")
        elif why == "failing":
            receiver.answers("hook", 500)
            for _ in range(50):
                await insert(sql)
            await eventually(lambda: _is_parked(sql), "the breaker")
            receiver.answers("hook", 200)
        await eventually(lambda: _is_cut(sql), "the cut")
        (ended,) = await resent(database, sql, event_id)
        assert ended.ok
        assert receiver.of("hook")[-1].headers["webhook-trigger"] == "resend"
        (told,) = await tried(database, sql, "order.created")
        assert told.ok
        assert receiver.of("hook")[-1].headers["webhook-trigger"] == "test"


async def _is_parked(sql: Sql) -> bool:
    return bool(await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.parked WHERE fails > 0)"))


async def _is_cut(sql: Sql) -> bool:
    return bool(
        await sql.fetchval(
            """SELECT bool_and(EXISTS (SELECT FROM webhookd.batch b WHERE o.id = ANY (b.outbox_ids)))
                 FROM webhookd.outbox o"""
        )
    )


async def test_a_test_is_no_event(sql: Sql, database: Database, receiver: Receiver, daemon: Running) -> None:
    receiver.scripts["hook"] = lambda got: _says(got.body)
    hook = {"url": receiver.url("hook") + "?token=planted", "headers": {"x-key": "planted", "x-type": "{type}"}}
    async with daemon(configuration({"hook": hook}, delivery={"source": "here"})):
        first, second = await tried(database, sql, "order.created", "order.paid")
    assert (first.ok, first.code) == (True, 200)
    got = receiver.of("hook")
    assert {each.event_id for each in got} == {"test_order_created", "test_order_paid"}
    assert {each.headers["webhook-trigger"] for each in got} == {"test"}
    assert first.request is not None
    sent = json.loads(first.request)
    body = next(each.body for each in got if each.event_id == "test_order_created")
    assert (sent["method"], sent["url"], sent["body"]) == ("POST", receiver.url("hook"), body.decode())
    assert first.response == body
    assert sent["headers"]["webhook-signature"].startswith("v1,")
    assert b"planted" not in first.request
    for table in ("outbox", "attempt", "backlog", "batch WHERE id > 0"):
        assert await sql.fetchval(f"SELECT count(*) FROM webhookd.{table}") == 0
    assert second.ok
    (deed,) = await sql.fetch("SELECT action, subject, after FROM webhookd.audit")
    assert tuple(deed)[:2] == ("test", "hook")
    assert json.loads(deed["after"]) == {"events": ["order.created", "order.paid"]}


async def _says(body: bytes) -> web.Response:
    return web.Response(body=body)


async def test_nothing_of_an_answer_is_kept_where_none_is_to_be(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    receiver.scripts["hook"] = lambda got: _says(b"planted")
    config = configuration({"hook": {"url": receiver.url("hook")}}, delivery={"response_body": "none"})
    async with daemon(config):
        (ended,) = await tried(database, sql, "order.created")
    assert (ended.ok, ended.response) == (True, None)


async def test_it_keeps_to_the_slots_of_its_endpoint(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    """Among hundreds of events there is never more than one request at a time, and a resend waits for one at most."""

    async def script(_: Got) -> web.Response:
        await asyncio.sleep(0.02)
        return web.Response()

    receiver.scripts["hook"] = script
    async with daemon(configuration({"hook": {"url": receiver.url("hook"), "max_in_flight": 1}})):
        event_id = await insert(sql)
        await until(lambda: len(receiver.of("hook")) >= 1, "the first")
        for _ in range(150):
            await insert(sql)
        shots = [shot for _ in range(3) for shot in await wanted(database, sql, event_id)]
        ended = await end(database, shots)
        assert all(each.ok for each in ended)
        got = receiver.of("hook")
        assert len(got) < 150  # long before the events are through
        await finished(sql)
    assert receiver.peaks["hook"] == 1
    assert sorted(receiver.events("hook")).count(event_id) == 4


async def test_without_a_slot_it_ends(sql: Sql, database: Database, receiver: Receiver, daemon: Running) -> None:
    healed = receiver.hangs("hook")
    async with daemon(configuration({"hook": {"url": receiver.url("hook"), "max_in_flight": 1}})):
        event_id = await insert(sql)
        await until(lambda: receiver.flying["hook"] == 1, "an attempt that hangs")
        (ended,) = await end(database, await wanted(database, sql, event_id, seconds=1.0))
        assert (ended.ok, ended.code, ended.error) == (False, None, "no_slot")
        healed.set()
        await settled(sql, event_id, {"hook": "delivered"})
    assert len(receiver.of("hook")) == 1


async def test_it_counts_in_the_rate(sql: Sql, database: Database, receiver: Receiver, daemon: Running) -> None:
    async with daemon(configuration({"hook": {"url": receiver.url("hook"), "rate_limit": "20/s"}})):
        event_id = await insert(sql)
        await finished(sql)
        await insert(sql)
        shots = [shot for _ in range(10) for shot in await wanted(database, sql, event_id)]
        assert all(each.ok for each in await end(database, shots))
        await finished(sql)  # the second event may have waited for its turn behind the shots
    times = [each.at for each in receiver.of("hook")]
    assert len(times) == 12
    for first, third in zip(times, times[5:], strict=False):  # a tenth of a second may go out at once
        assert third - first >= 3 / 20 - 0.06


async def test_what_nobody_takes_ends(sql: Sql, database: Database, receiver: Receiver, daemon: Running) -> None:
    other = configuration({"other": {"url": receiver.url("other")}})
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        event_id = await insert(sql)
        await finished(sql)
    async with daemon(other):
        (ended,) = await end(database, await wanted(database, sql, event_id, seconds=0.5))
    assert (ended.ok, ended.error, ended.owner) == (False, "not_taken", None)
    assert len(receiver.of("hook")) == 1


async def test_what_a_daemon_took_and_died_with_is_sent_by_nobody(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    config = configuration({"hook": {"url": receiver.url("hook")}})
    async with daemon(config):
        event_id = await insert(sql)
        await finished(sql)
    (shot,) = await wanted(database, sql, event_id)
    await sql.execute("UPDATE webhookd.shot SET owner = 99, ends_at = now() + interval '1 s'")
    async with daemon(config):
        (ended,) = await end(database, [shot])
    assert (ended.ok, ended.error, ended.owner) == (False, "lost", 99)
    assert len(receiver.of("hook")) == 1


async def test_a_stop_leaves_what_was_not_sent_to_others(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    healed = receiver.hangs("hook")
    config = configuration({"hook": {"url": receiver.url("hook"), "max_in_flight": 1}})
    async with daemon(config) as first:
        event_id = await insert(sql)
        await until(lambda: receiver.flying["hook"] == 1, "an attempt that hangs")
        (shot,) = await wanted(database, sql, event_id)
        taken = "SELECT owner IS NOT NULL FROM webhookd.shot"
        await eventually(lambda: _true(sql, taken), "it is taken")
        first.stop()
        await eventually(lambda: _true(sql, f"SELECT NOT ({taken})"), "it is left")
        healed.set()
    async with daemon(config):
        (ended,) = await end(database, [shot])
    assert ended.ok


async def _true(sql: Sql, query: str) -> bool:
    return bool(await sql.fetchval(query))


async def test_what_cannot_be_sent(sql: Sql, database: Database, receiver: Receiver, daemon: Running) -> None:
    config = configuration({"hook": {"url": receiver.url("hook")}}, delivery={"max_payload": "1KiB"})
    async with daemon(config):
        event_id = await insert(sql, json.dumps("x" * 2_000))
        await settled(sql, event_id, {"hook": "rejected"})
        (large,) = await resent(database, sql, event_id)
        (test,) = await tried(database, sql, "order.created", payload=json.dumps("x" * 2_000).encode())
        gone = await sql.fetchval(
            """INSERT INTO webhookd.shot (kind, endpoint_id, outbox_id, outbox_at, by, start_by)
               VALUES ('resend', 1, 999, now(), 'me', now() + interval '30 s') RETURNING id"""
        )
        (missing,) = await end(database, [gone])
    assert [large.error, test.error, missing.error] == ["payload_too_large", "payload_too_large", "event_missing"]
    assert receiver.of("hook") == []
    assert await attempts(sql, event_id) == []  # there was no request


async def test_whom_an_erased_event_was_resent_to_is_erased(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(configuration({"hook": {"url": receiver.url("hook"), "tenant": "acme"}})):
        event_id = await insert(sql, tenant="acme")
        await finished(sql)
        await resent(database, sql, event_id)
        await tried(database, sql, "order.created")
    await sql.execute("SELECT webhookd.erase(event_id => $1)", event_id)
    assert [row[0] for row in await sql.fetch("SELECT kind FROM webhookd.shot")] == ["test"]
    await sql.execute("SELECT webhookd.erase('acme')")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.shot") == 0


async def test_a_busy_neighbour_at_its_host_leaves_it_a_slot(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    async def script(_: Got) -> web.Response:
        await asyncio.sleep(0.05)
        return web.Response()

    receiver.scripts["busy"] = receiver.scripts["hook"] = script
    tables = {
        name: {"url": receiver.url(name), "events": [f"{name}.*"], "max_in_flight": 2} for name in ("busy", "hook")
    }
    async with daemon(configuration(tables, delivery={"max_in_flight_per_host": 2})):
        await insert_many(sql, 400, type_="busy.now")
        await until(lambda: len(receiver.of("busy")) > 10, "the neighbour to be busy")
        (ended,) = await tried(database, sql, "hook.now")
        assert ended.ok
        assert len(receiver.of("busy")) < 390
        await sql.execute("SELECT webhookd.pause(ARRAY(SELECT id FROM webhookd.endpoint))")
    assert receiver.peaks["busy"] + receiver.peaks["hook"] <= 3  # never more than two together


async def test_many_tests_leave_half_of_the_slots_to_what_is_owed(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    async def script(_: Got) -> web.Response:
        await asyncio.sleep(0.1)
        return web.Response()

    receiver.scripts["hook"] = script
    async with daemon(configuration({"hook": {"url": receiver.url("hook"), "max_in_flight": 4}})):
        await eventually(lambda: _true(sql, "SELECT EXISTS (SELECT FROM webhookd.endpoint)"), "the endpoint")
        examples = [(f"test_{n}", "order.created", b"{}") for n in range(40)]
        shots, _ = await Wishes(database, "me", 60.0).test(1, examples)
        await until(lambda: len(receiver.got) > 2, "some of them")
        event_id = await insert(sql)
        await settled(sql, event_id, {"hook": "delivered"})
        assert len(receiver.got) < 35
        assert all(each.ok for each in await end(database, shots))
    assert receiver.peaks["hook"] <= 4


async def test_one_that_hangs_keeps_none_of_another(
    sql: Sql, database: Database, receiver: Receiver, daemon: Running
) -> None:
    healed = receiver.hangs("hung")
    tables = {name: {"url": receiver.url(name), "max_in_flight": 1} for name in ("hung", "hook")}
    async with daemon(configuration(tables)):
        await eventually(lambda: _true(sql, "SELECT count(*) = 2 FROM webhookd.endpoint"), "the endpoints")
        number = await sql.fetchval("SELECT id FROM webhookd.endpoint WHERE name = 'hung'")
        await Wishes(database, "me", 60.0).test(number, [(f"test_{n}", "t", b"{}") for n in range(100)])
        await until(lambda: receiver.flying["hung"] == 1, "one that hangs")
        (ended,) = await tried(database, sql, "order.created")
        assert ended.ok
        await sql.execute("DELETE FROM webhookd.shot")
        healed.set()


async def test_a_failure_that_is_written_at_that_very_moment_brings_no_row_back(
    sql: Sql, dsn: str, database: Database, receiver: Receiver, daemon: Running
) -> None:
    """Its transaction cannot see the resend, and commits after it."""
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, retry=LONG)):
        event_id = await insert(sql)
        await finished(sql)
        other = await asyncpg.connect(dsn)
        transaction = other.transaction()
        await transaction.start()
        await other.execute(
            """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due)
               SELECT 1, id, created_at, 1, now() + interval '1 h' FROM webhookd.outbox"""
        )
        (ended,) = await resent(database, sql, event_id)
        assert ended.ok
        await transaction.commit()
        await other.close()
        await settled(sql, event_id, {"hook": "delivered"})
