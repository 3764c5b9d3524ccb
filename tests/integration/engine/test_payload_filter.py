"""Endpoints that want an event only for what its payload says: no attempt, no row, and nobody waits for it."""

import json
from typing import Any

import pytest

from tests.integration.conftest import (
    Receiver,
    Running,
    Sql,
    configuration,
    eventually,
    finished,
    insert,
    settled,
    states,
    status,
)
from tests.waiting import until

PAID = {"data": {"order.status": ["paid", "shipped"], "amount": {"gte": 100}}}
WANTED = '{"order": {"status": "paid"}, "amount": 1.0e2}'
NOT = '{"order": {"status": "open"}, "amount": 500}'


def hook(receiver: Receiver, **more: Any) -> Any:
    return configuration(
        {
            "some": {"url": receiver.url("some"), "filter": PAID, "format": "raw", **more},
            "all": {"url": receiver.url("all")},
        }
    )


async def rows(sql: Sql) -> int:
    """What there is of deliveries in the database for the endpoint with the filter."""
    found = await sql.fetchval(
        """SELECT (SELECT count(*) FROM webhookd.backlog b WHERE b.endpoint_id = e.id)
                + (SELECT count(*) FROM webhookd.attempt a WHERE a.endpoint_id = e.id)
             FROM webhookd.endpoint e WHERE e.name = 'some'"""
    )
    return int(found)


@pytest.mark.parametrize("more", [{}, {"ordered": True}, {"ordered": "key"}], ids=str)
async def test_what_does_not_fit_is_not_sent_and_leaves_nothing(
    sql: Sql, receiver: Receiver, daemon: Running, more: dict[str, Any]
) -> None:
    large = json.dumps({"order": {"status": "paid"}, "amount": 100, "pad": "x" * 50_000})
    async with daemon(hook(receiver, **more)):
        ids = [await insert(sql, each, ordering_key="k") for each in (NOT, WANTED, NOT, "[1]", large, NOT, WANTED)]
        await until(lambda: len(receiver.of("all")) == len(ids), "all of them")
        await until(lambda: len(receiver.of("some")) == 3, "those that fit")
        await finished(sql)
    assert receiver.events("some") == [ids[1], ids[4], ids[6]] or not more
    assert sorted(receiver.events("some")) == sorted([ids[1], ids[4], ids[6]])
    assert {got.body for got in receiver.of("some")} == {WANTED.encode(), large.encode()}  # byte for byte
    assert await rows(sql) == 3


async def test_what_was_tried_and_does_not_fit_any_longer_ends(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """It failed once, and then its endpoint wants it no longer: it ends, and no attempt is made."""
    receiver.answers("some", 500)
    async with daemon(configuration({"some": {"url": receiver.url("some"), "retry": {"schedule": ["1h"]}}})):
        event = await insert(sql, NOT)
        await eventually(lambda: sql.fetchval("SELECT count(*) = 1 FROM webhookd.backlog"), "its retry")
    await sql.execute("UPDATE webhookd.backlog SET due = now()")
    async with daemon(hook(receiver)):
        await eventually(lambda: sql.fetchval("SELECT state = 'rejected' FROM webhookd.backlog"), "its end")
        await finished(sql)
    assert receiver.events("some") == [event]
    assert await states(sql, event) == {"some": "rejected"}
    assert (await status(sql, event))["some"]["last_error"] == "unwanted"


async def test_thousands_that_nobody_wants_keep_none_waiting(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """Nor does anybody lose an event that others do not want."""
    async with daemon(hook(receiver)):
        await sql.execute(
            "INSERT INTO webhookd.outbox (type, payload) SELECT 't', $1 FROM generate_series(1, 3000)", NOT
        )
        wanted = await insert(sql, WANTED)
        await until(lambda: receiver.of("some"), "the one that fits")
        await until(lambda: len(receiver.of("all")) == 3001, "all at the other")
        await finished(sql)
    assert receiver.events("some") == [wanted]
    assert await rows(sql) == 1
    assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") == 0


async def test_they_use_up_no_turn_of_an_endpoint_with_a_limit(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    async with daemon(hook(receiver, rate_limit="1/h")):
        for _ in range(2):
            await insert(sql, NOT)
        wanted = await insert(sql, WANTED)
        await until(lambda: receiver.of("some"), "the one that fits")
        await sql.execute(
            "INSERT INTO webhookd.outbox (type, payload) SELECT 't', $1 FROM generate_series(1, 150)", NOT
        )
        await finished(sql)
    assert receiver.events("some") == [wanted]
    assert await rows(sql) == 1


async def test_a_filter_that_changes_is_the_one_that_counts(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """Also for what waits for its turn when it changes."""
    after = configuration({"some": {"url": receiver.url("some"), "filter": {"data": {"amount": 500}}}})
    receiver.answers("some", 429, 200, headers={"retry-after": "2"})
    read = "SELECT NOT spec -> 'data_filter' ? 'order.status' FROM webhookd.endpoint WHERE name = 'some'"
    async with daemon(hook(receiver), load=lambda: after) as running:
        former = await insert(sql, WANTED)
        await until(lambda: receiver.of("some"), "the answer that asks for less")
        await insert(sql, WANTED)
        await until(lambda: len(receiver.of("all")) == 2, "both at the other")
        running.reload()
        await eventually(lambda: sql.fetchval(read), "the reload")
        fits = await insert(sql, NOT)
        await settled(sql, fits, {"some": "delivered"})
        await finished(sql)
    assert set(receiver.events("some")) <= {former, fits}
    assert fits in receiver.events("some")
