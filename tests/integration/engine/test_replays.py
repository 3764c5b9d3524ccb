"""Replays: which of the log is owed again, what becomes of it, and what keeps it back."""

import asyncio
from typing import Any

import asyncpg
import pytest

from tests.integration.conftest import (
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
from webhookd.store.replays import Replays, State, Wanted

LONG = {"first": "1h", "max_interval": "1h"}
QUICKLY = 10_000.0  # deliveries a second


@pytest.fixture
async def replays(dsn: str) -> Any:
    async with Database(dsn) as database:
        yield Replays(database)


async def counted(replays: Replays, wanted: Wanted, endpoint_id: int = 1) -> int:
    return sum([many async for many in replays.count(endpoint_id, wanted)])


async def replayed(replays: Replays, state: State, rate: float = QUICKLY, **more: Any) -> int:
    """Begin one to the first endpoint; its number."""
    (number,) = (await replays.begin([1], Wanted(state, **more), rate, "me@here")).values()
    return number


async def over(sql: Sql, replays: Replays, number: int) -> None:
    async def is_over() -> bool:
        return (await replays.all(number))[0].state != "running"

    await eventually(is_over, "the replay")
    await finished(sql)


def hook(receiver: Receiver, **table: Any) -> Any:
    return configuration({"hook": {"url": receiver.url("hook"), **table}}, retry=LONG)


async def test_what_was_given_up_is_owed_again_and_has_its_whole_time(
    sql: Sql, replays: Replays, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 500)
    async with daemon(hook(receiver)):
        ids = [await insert(sql, ordering_key="k") for _ in range(3)]
        for event_id in ids:
            await settled(sql, event_id, {"hook": "retrying"})
        await sql.execute("UPDATE webhookd.backlog SET state = 'exhausted' WHERE outbox_id < 3")
        await sql.execute("UPDATE webhookd.backlog SET attempts = 17, clock_from = now() - interval '3 days'")
        before = await sql.fetchrow("SELECT * FROM webhookd.backlog WHERE state = 'retry'")
        assert await counted(replays, Wanted("exhausted")) == 2
        number = await replayed(replays, "exhausted")
        await until(lambda: len(receiver.of("hook")) == 5, "two more requests")
        again = receiver.of("hook")[3:]
        assert {each.event_id for each in again} == set(ids[:2])
        assert {(each.attempt, each.headers["webhook-trigger"]) for each in again} == {(1, "replay")}
        for event_id in ids[:2]:
            await settled(sql, event_id, {"hook": "retrying"})
        await eventually(lambda: _has_tried(sql), "both attempts to be recorded")
        rows = await sql.fetch("SELECT * FROM webhookd.backlog WHERE outbox_id < 3")
        assert {(row["attempts"], row["replay"], row["last_code"]) for row in rows} == {(1, number, 500)}
        assert all(row["clock_from"] > row["outbox_at"] for row in rows)
        assert await sql.fetchrow("SELECT * FROM webhookd.backlog WHERE state = 'retry' AND replay IS NULL") == before
        receiver.answers("hook", 200)
        await sql.execute("UPDATE webhookd.backlog SET due = now()")
        await finished(sql)
        assert [row["trigger"] for row in await attempts(sql, ids[0])] == [None, "replay", "replay"]
        found = (await replays.all(number))[0]
        assert (found.state, found.sent, found.part, found.owed, found.by) == ("done", 2, 1.0, 0, "me@here")
        assert [tuple(row) for row in await sql.fetch("SELECT who, action, subject FROM webhookd.audit")] == [
            ("me@here", "replay", "hook")
        ]


async def _has_tried(sql: Sql) -> bool:
    return bool(await sql.fetchval("SELECT bool_and(attempts = 1) FROM webhookd.backlog WHERE outbox_id < 3"))


async def test_which_deliveries_a_state_means(sql: Sql, replays: Replays, receiver: Receiver, daemon: Running) -> None:
    """One event in each state there is."""
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('hook', 'file', '{}')")
    kinds = {}
    async with daemon(hook(receiver, events=["order.*"], filter={"region": ["eu"]})):
        for kind in ("delivered", "exhausted", "rejected", "discarded", "retry", "unreadable"):
            kinds[kind] = await insert(sql, metadata='{"region": "eu"}')
        kinds["type"] = await insert(sql, type="invoice.paid", metadata='{"region": "eu"}')
        kinds["filter"] = await insert(sql, metadata='{"region": "us"}')
        kinds["tenant"] = await insert(sql, tenant="acme", metadata='{"region": "eu"}')
        await finished(sql)
        await sql.execute("SELECT webhookd.disable(1, 'http_410')")
        kinds["disabled"] = await insert(sql, metadata='{"region": "eu"}')
        await settled(sql, kinds["disabled"], {"hook": "missed"})
        await sql.execute("SELECT webhookd.enable('{1}')")
    await sql.execute("DELETE FROM webhookd.attempt WHERE outbox_id BETWEEN 2 AND 6")
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due, state, last_error)
           SELECT 1, id, created_at, now() + interval '1 h',
                  (ARRAY['', 'exhausted', 'rejected', 'rejected', 'retry'])[id],
                  (ARRAY['', 'x', 'event_missing', 'discarded', 'x'])[id] FROM webhookd.outbox WHERE id BETWEEN 2 AND 5;
           INSERT INTO webhookd.unreadable (outbox_id, why) VALUES (6, 'a test');
           INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason) VALUES (1, 1, 2, 'retention')
           ON CONFLICT DO NOTHING"""
    )
    for state, names in {
        "exhausted": ["exhausted"],
        "rejected": ["rejected"],
        "discarded": ["discarded"],
        "missed": ["disabled"],
        "all": ["delivered", "exhausted", "rejected", "discarded", "disabled"],
    }.items():
        assert await counted(replays, Wanted(state)) == len(names), state  # type: ignore[arg-type]
    async with daemon(hook(receiver, events=["order.*"], filter={"region": ["eu"]})):
        receiver.got.clear()
        number = await replayed(replays, "all")
        await eventually(lambda: _is_done(replays, number), "the replay")
        await until(lambda: len(receiver.got) == 5, "what is owed again")
        expected = {kinds[kind] for kind in ("delivered", "exhausted", "rejected", "discarded", "disabled")}
        assert set(receiver.events("hook")) == expected
    # A wrong configuration is made good: what nobody was owed is, by the configuration of now.
    async with daemon(hook(receiver)):
        assert await counted(replays, Wanted("missed")) == 2
        receiver.got.clear()
        number = await replayed(replays, "missed")
        await until(lambda: len(receiver.got) == 2, "what was missed")
        assert set(receiver.events("hook")) == {kinds["type"], kinds["filter"]}


async def _is_done(replays: Replays, number: int) -> bool:
    return (await replays.all(number))[0].state == "done"


async def test_it_reaches_events_that_are_older_than_the_endpoint(
    sql: Sql, replays: Replays, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(configuration({"other": {"url": receiver.url("other"), "events": ["a"]}})):
        early = await insert_many(sql, 600)
        await eventually(lambda: _is_read(sql, 600), "the cut")
    async with daemon(
        configuration({"other": {"url": receiver.url("other"), "events": ["a"]}, "hook": {"url": receiver.url("hook")}})
    ):
        await eventually(lambda: _has(sql, "hook"), "the endpoint")
        number = await sql.fetchval("SELECT id FROM webhookd.endpoint WHERE name = 'hook'")
        (replay,) = (await replays.begin([number], Wanted("missed"), QUICKLY, "me")).values()
        await over(sql, replays, replay)
        assert sorted(receiver.events("hook")) == sorted(early)


async def _is_read(sql: Sql, many: int) -> bool:
    query = "SELECT sum(cardinality(outbox_ids)) = $1 AND bool_and(done_at IS NOT NULL) FROM webhookd.batch"
    return bool(await sql.fetchval(query, many))


async def _has(sql: Sql, name: str) -> bool:
    return bool(await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.endpoint WHERE name = $1)", name))


async def test_types_and_spans(sql: Sql, replays: Replays, receiver: Receiver, daemon: Running) -> None:
    async with daemon(hook(receiver)):
        await insert(sql, type="order.created")
        middle = await insert(sql, type="order.paid")
        await insert(sql, type="invoice.paid")
        await finished(sql)
        at = await sql.fetchval("SELECT created_at FROM webhookd.outbox WHERE event_id = $1", middle)
        assert await counted(replays, Wanted("all", type="order.*")) == 2
        assert await counted(replays, Wanted("all", since=at)) == 2
        assert await counted(replays, Wanted("all", until=at)) == 2
        assert await counted(replays, Wanted("all", since=at, until=at)) == 1
        number = await replayed(replays, "all", type="order.paid", since=at, until=at)
        await over(sql, replays, number)
        assert receiver.events("hook").count(middle) == 2
        assert len(receiver.got) == 4


async def test_it_keeps_to_its_rate(sql: Sql, replays: Replays, receiver: Receiver, daemon: Running) -> None:
    async with daemon(hook(receiver)):
        await insert_many(sql, 60)
        await finished(sql)
        receiver.got.clear()
        await replayed(replays, "all", rate=50.0)
        began = asyncio.get_running_loop().time()
        await until(lambda: len(receiver.got) == 60, "all of it")
        assert asyncio.get_running_loop().time() - began > 59 / 50 - 1.0  # a second of it may be there at once
    late = receiver.got[-1].at - receiver.got[0].at
    assert late > 0.1


@pytest.mark.parametrize("why", ["paused", "disabled", "inactive"])
async def test_it_waits_for_its_endpoint(
    sql: Sql, replays: Replays, receiver: Receiver, daemon: Running, why: str
) -> None:
    async with daemon(hook(receiver)):
        ids = await insert_many(sql, 3)
        await finished(sql)
        receiver.got.clear()
        statement = {
            "paused": "SELECT webhookd.pause('{1}')",
            "disabled": "SELECT webhookd.disable(1, 'http_410')",
            "inactive": """UPDATE webhookd.endpoint SET spec = spec || '{"active": false}'""",
        }
        await sql.execute(statement[why])
        number = await replayed(replays, "all")
        for _ in range(20):
            assert await replays.step(number) is False
        assert (await replays.all(number))[0].sent == 0
        assert receiver.got == []
        await sql.execute("SELECT webhookd.resume('{1}'), webhookd.enable('{1}')")
        await sql.execute("""UPDATE webhookd.endpoint SET spec = spec || '{"active": true}'""")
        await over(sql, replays, number)
        assert sorted(receiver.events("hook")) == sorted(ids)


async def test_what_waits_before_a_cursor_is_left_alone(
    sql: Sql, replays: Replays, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(hook(receiver)):
        await insert_many(sql, 2)
        await finished(sql)
        await sql.execute("SELECT webhookd.pause('{1}')")
        parked = await insert(sql)
        await settled(sql, parked, {"hook": "parked"})
        assert await counted(replays, Wanted("all")) == 2
        assert await counted(replays, Wanted("missed")) == 0


async def test_it_hands_out_no_more_than_is_taken(
    sql: Sql, replays: Replays, receiver: Receiver, daemon: Running
) -> None:
    healed = receiver.hangs("hook")
    async with daemon(hook(receiver, max_in_flight=1)):
        await insert_many(sql, 1)
        await until(lambda: receiver.flying["hook"] == 1, "an attempt that hangs")
        healed.set()
        await finished(sql)
    await sql.execute("INSERT INTO webhookd.outbox (type, payload) SELECT 't', '{}' FROM generate_series(1, 2000)")
    await sql.execute("SELECT webhookd.cut(5000, 500, 99)")
    await sql.execute("UPDATE webhookd.batch SET done_at = now()")
    number = await replayed(replays, "missed")
    while await replays.step(number):
        pass
    owed = await sql.fetchval("SELECT count(*) FROM webhookd.backlog")
    assert 400 <= owed < 900  # what is enough, and no more than another step
    assert await replays.step(number) is False
    async with daemon(hook(receiver)):
        await over(sql, replays, number)
    assert len(set(receiver.events("hook"))) == 2001


async def test_one_for_an_endpoint_at_a_time(sql: Sql, replays: Replays, receiver: Receiver, daemon: Running) -> None:
    async with daemon(hook(receiver)):
        await insert_many(sql, 3)
        await finished(sql)
        await sql.execute("SELECT webhookd.pause('{1}')")
        number = await replayed(replays, "all")
        assert await replays.begin([1], Wanted("missed"), 1.0, "me") == {}
        assert await replays.cancel(number, "you@there")
        assert not await replays.cancel(number, "you@there")
        assert (await replays.all(number))[0].state == "cancelled"
        assert await replays.step(number) is False
        await replayed(replays, "missed")
    rows = await sql.fetch("SELECT action, who FROM webhookd.audit WHERE action <> 'pause' ORDER BY id")
    actions = [tuple(row) for row in rows]
    assert actions == [("replay", "me@here"), ("cancel replay", "you@there"), ("replay", "me@here")]


async def test_two_daemons_take_each_piece_once(
    sql: Sql, replays: Replays, receiver: Receiver, daemon: Running
) -> None:
    config = hook(receiver)
    async with daemon(config), daemon(config):
        ids = await insert_many(sql, 1_500)
        await finished(sql)
        receiver.got.clear()
        number = await replayed(replays, "all")
        await over(sql, replays, number)
    assert sorted(receiver.events("hook")) == sorted(ids)
    assert (await replays.all(number))[0].sent == 1_500


async def test_what_is_in_hand_is_waited_for(sql: Sql, replays: Replays, receiver: Receiver, daemon: Running) -> None:
    """Nobody knows yet what becomes of it."""
    async with daemon(hook(receiver)):
        await insert_many(sql, 2)
        await finished(sql)
    await insert_many(sql, 2)
    await sql.execute("SELECT webhookd.cut(500, 500, 99)")
    await insert_many(sql, 2)
    await sql.execute("SELECT webhookd.cut(500, 500, 99)")
    await sql.execute("UPDATE webhookd.batch SET done_at = now() WHERE id = (SELECT max(id) FROM webhookd.batch)")
    number = await replayed(replays, "all")
    while await replays.step(number):
        pass
    found = (await replays.all(number))[0]
    assert (found.state, found.sent) == ("running", 2)
    assert await counted(replays, Wanted("all")) == 0  # those are owed again already
    await sql.execute("UPDATE webhookd.batch SET done_at = now()")
    while await replays.step(number):
        pass
    assert (await replays.all(number))[0].sent == 6


async def test_what_retention_has_taken_is_passed_over(
    sql: Sql, replays: Replays, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(hook(receiver)):
        ids = await insert_many(sql, 3)
        await finished(sql)
        receiver.got.clear()
        await sql.execute("DELETE FROM webhookd.outbox WHERE event_id = $1", ids[0])
        number = await replayed(replays, "all")
        await eventually(lambda: _is_done(replays, number), "the replay")
        await until(lambda: len(receiver.got) == 2, "the others")
        found = (await replays.all(number))[0]
        assert (found.sent, found.gone) == (2, 1)


async def test_one_that_fails_again_is_given_up_again(
    sql: Sql, replays: Replays, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 500)
    async with daemon(hook(receiver)):
        event_id = await insert(sql)
        await settled(sql, event_id, {"hook": "retrying"})
        await sql.execute("UPDATE webhookd.backlog SET state = 'exhausted'")
        await replayed(replays, "exhausted")
        await until(lambda: len(receiver.got) == 2, "another request")

        async def recorded() -> bool:
            return len(await attempts(sql, event_id)) == 2

        await eventually(recorded, "what became of it")
        await sql.execute("UPDATE webhookd.backlog SET due = now(), clock_from = now() - interval '4 days'")
        await settled(sql, event_id, {"hook": "exhausted"})
        assert await counted(replays, Wanted("exhausted")) == 1
    assert await states(sql, event_id) == {"hook": "exhausted"}


@pytest.mark.parametrize("how", ["late", "scheduled"])
async def test_a_batch_of_early_events_behind_those_of_the_span_hides_none(
    sql: Sql, dsn: str, replays: Replays, receiver: Receiver, daemon: Running, how: str
) -> None:
    """Of a transaction that commits late, or that are due late; and a span behind all of them has nothing."""
    async with daemon(hook(receiver)):
        since = await sql.fetchval("SELECT clock_timestamp()")
        other = await asyncpg.connect(dsn)
        transaction = other.transaction()
        await transaction.start()
        due = await other.fetchval("SELECT clock_timestamp() + interval '1 s'") if how == "scheduled" else None
        await insert(other, deliver_after=due)
        if how == "scheduled":
            await transaction.commit()
        for number in range(1, 4):
            await insert(sql)
            await until(lambda n=number: len(receiver.got) == n, "one of those")  # type: ignore[misc]
        if how == "late":
            await transaction.commit()
        await other.close()
        await until(lambda: len(receiver.got) == 4, "the late one")
        await finished(sql)
        assert await counted(replays, Wanted("all", since=since)) == 4
        nothing = await replayed(replays, "all", since=await sql.fetchval("SELECT clock_timestamp()"))
        await over(sql, replays, nothing)
        found = (await replays.all(nothing))[0]
        assert (found.sent, found.gone) == (0, 0)


async def test_any_rate_goes_on(sql: Sql, replays: Replays, receiver: Receiver, daemon: Running) -> None:
    """A part of a delivery a second is one in some seconds, whatever that is as a fraction."""
    async with daemon(hook(receiver)):
        await insert_many(sql, 1)
        await finished(sql)
    for rate in (0.01, 0.09, 0.23, 0.45, 0.47, 0.49, 0.69, 0.81, 0.9, 0.98, 1.0, 1.5):
        number = await replayed(replays, "all", rate)
        assert await replays.step(number) is False
        assert (await replays.all(number))[0].sent == 0
        await sql.execute(
            "UPDATE webhookd.replay SET paced_at = now() - 1 / rate * interval '1 s' WHERE id = $1", number
        )
        while await replays.step(number):
            pass
        assert (await replays.all(number))[0].sent == 1, rate
        await replays.cancel(number, "me")
        await sql.execute("DELETE FROM webhookd.backlog")


async def test_a_copy_that_drops_what_is_owed_replays_nothing(
    sql: Sql, replays: Replays, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(hook(receiver)):
        await insert_many(sql, 3)
        await finished(sql)
    number = await replayed(replays, "all")
    await sql.execute("SELECT webhookd.rebase('staging', 'drop')")
    assert (await replays.all(number))[0].state == "cancelled"


async def test_what_a_replay_has_delivered_was_not_missed(
    sql: Sql, replays: Replays, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(hook(receiver)):
        await eventually(lambda: _has(sql, "hook"), "the endpoint")
        await sql.execute("SELECT webhookd.disable(1, 'http_410')")
        event_id = await insert(sql)
        await settled(sql, event_id, {"hook": "missed"})
        await sql.execute("SELECT webhookd.enable('{1}')")
        for reason, missed in (("disabled", 1), ("retention", 1), ("discarded", 0), ("exhausted", 0)):
            await sql.execute("UPDATE webhookd.missed SET reason = $1", reason)
            assert await counted(replays, Wanted("missed")) == missed, reason
        await sql.execute("UPDATE webhookd.missed SET reason = 'disabled'")
        receiver.answers("hook", 500, 200)
        number = await replayed(replays, "missed")
        await settled(sql, event_id, {"hook": "retrying"})
        await eventually(lambda: _is_logged(sql), "the attempt")
        row = await sql.fetchrow("SELECT * FROM webhookd.event_status($1)", event_id)
        assert row is not None
        assert (row["attempts"], row["last_code"]) == (1, 500)
        assert row["last_attempt_at"] is not None
        await sql.execute("UPDATE webhookd.backlog SET due = now()")
        await over(sql, replays, number)
        await settled(sql, event_id, {"hook": "delivered"})
        assert await sql.fetchval("SELECT missed FROM webhookd.count_aside(1000)") == 0


async def _is_logged(sql: Sql) -> bool:
    return bool(await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.attempt)"))
