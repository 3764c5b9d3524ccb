"""Endpoints that fail, cannot keep up or are paused: they cost no row per event, and each event comes once."""

import asyncio
import json
from typing import Any

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
    states,
)
from tests.waiting import until
from webhookd.engine.dispatch import spills
from webhookd.engine.parked import endings, follower
from webhookd.policy import breaker
from webhookd.store.database import Database
from webhookd.store.parking import ParkingStore
from webhookd.store.registry import Registry


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes at a tenth of their pace, as everything else here."""
    monkeypatch.setattr(breaker, "PROBE_FIRST", 0.1)
    monkeypatch.setattr(breaker, "PROBE_MOST", 0.5)


async def parked(sql: Sql, reason: str = "failing") -> None:
    async def is_so() -> bool:
        return bool(
            await sql.fetchval(
                "SELECT EXISTS (SELECT FROM webhookd.parked WHERE to_batch IS NULL AND reason = $1)", reason
            )
        )

    await eventually(is_so, f"it to be parked as {reason}")


async def more_until_parked(sql: Sql) -> int:
    """Insert events until the endpoint is parked since it cannot keep up; how many they were."""
    events = 0

    async def is_so() -> bool:
        nonlocal events
        events += len(await insert_many(sql, 20))
        return bool(await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.parked WHERE reason = 'saturated')"))

    await eventually(is_so, "it to be parked as saturated")
    return events


async def live(sql: Sql) -> None:
    async def is_so() -> bool:
        return not await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.parked)")

    await eventually(is_so, "nothing to be parked any longer")


def is_dead(receiver: Receiver, path: str) -> asyncio.Event:
    """The path answers 500 until the event that is returned is set."""
    healed = asyncio.Event()

    async def script(_: Got) -> web.Response:
        return web.Response(status=200 if healed.is_set() else 500)

    receiver.scripts[path] = script
    return healed


async def rows(sql: Sql) -> int:
    """What the first endpoint has in the backlog."""
    return int(await sql.fetchval("SELECT count(*) FROM webhookd.backlog WHERE endpoint_id = 1"))


async def each_once(sql: Sql, events: int) -> None:
    """Nobody was sent anything twice, and the first endpoint got all."""
    counts = await sql.fetch("SELECT count(*) FROM webhookd.attempt WHERE ok AND endpoint_id = 1 GROUP BY outbox_id")
    assert [row["count"] for row in counts] == [1] * events


async def told(sql: Sql) -> list[str]:
    """The kinds of our own events, in their order."""
    rows = await sql.fetch("SELECT type FROM webhookd.outbox WHERE type LIKE 'webhookd.%' ORDER BY id")
    return [row["type"].removeprefix("webhookd.") for row in rows]


async def test_a_dead_endpoint_is_parked_costs_nothing_and_gets_all_when_it_is_back(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    healed = is_dead(receiver, "dead")
    config = configuration({"dead": {"url": receiver.url("dead")}, "fine": {"url": receiver.url("fine")}})
    async with daemon(config):
        first = await insert_many(sql, 20)
        await parked(sql)
        before = await rows(sql)
        later = [event for _ in range(5) for event in await insert_many(sql, 300)]
        await until(lambda: len(receiver.of("fine")) == 1520, "the other endpoint")
        # What was under way when it failed, and a probe now and then that is the first of the log.
        assert await rows(sql) <= max(before, 20) + 10
        assert len(receiver.of("dead")) < 60
        healed.set()
        await finished(sql)
        assert set(receiver.events("dead")) == {*first, *later}
        await each_once(sql, 1520)
        await live(sql)
        event = await insert(sql)
        await settled(sql, event, {"dead": "delivered", "fine": "delivered"})

        async def is_told() -> bool:  # with the next look at the breakers
            return await told(sql) == ["endpoint.failing", "endpoint.recovered"]

        await eventually(is_told, "both to be told")


async def test_one_that_is_owed_too_little_to_prove_itself_with_is_live_again_when_that_is_delivered(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    """It would need 63 successes, and at an event an hour that is days in which it counts as failing."""
    healed = is_dead(receiver, "dead")
    async with daemon(configuration({"dead": {"url": receiver.url("dead"), "max_in_flight": 32}})):
        events = await insert_many(sql, breaker.FAILED_IN_ROW)
        await parked(sql)
        healed.set()
        await finished(sql)
        await live(sql)
        assert await told(sql) == ["endpoint.failing", "endpoint.recovered"]
        await each_once(sql, len(events))
        await settled(sql, await insert(sql), {"dead": "delivered"})


async def test_paused_means_no_request_and_no_row_and_resumed_means_all_of_it(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    config = configuration({"hook": {"url": receiver.url("hook")}})
    async with daemon(config):
        before = await insert_many(sql, 10)
        await finished(sql)
        assert [row[0] for row in await sql.fetch("SELECT webhookd.pause('{1}')")] == [1]
        during = [event for _ in range(4) for event in await insert_many(sql, 200)]
        await eventually(lambda: all_handled(sql), "all of it to be cut")
        await settled(sql, during[0], {"hook": "parked"})
        assert len(receiver.got) == 10
        assert await rows(sql) == 0
        assert [row[0] for row in await sql.fetch("SELECT webhookd.resume('{1}')")] == [1]
        await finished(sql)
        await live(sql)
        after = await insert_many(sql, 10)
        await finished(sql)
    assert sorted(receiver.events("hook")) == sorted(before + during + after)


async def test_a_pause_takes_back_what_waits_in_memory(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """Two requests are under way; what waits behind them is not sent before the resume."""
    answered = receiver.hangs("hook")
    config = configuration({"hook": {"url": receiver.url("hook"), "max_in_flight": 2}})
    async with daemon(config):
        events = await insert_many(sql, 50)
        await until(lambda: receiver.flying["hook"] == 2, "requests under way")
        await sql.execute("SELECT webhookd.pause('{1}')")

        async def in_the_backlog() -> bool:
            return await rows(sql) == 50  # those under way have a lease

        await eventually(in_the_backlog, "the rest to leave memory")
        answered.set()
        await until(lambda: receiver.flying["hook"] == 0, "the answers")
        assert len(receiver.got) == 2
        await sql.execute("SELECT webhookd.resume('{1}')")
        await finished(sql)
    assert sorted(receiver.events("hook")) == sorted(events)


async def test_a_pause_stops_the_three_days(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """What was owed at the pause, and what came during it, has its whole time when it ends."""
    healed = is_dead(receiver, "hook")
    retry = {"schedule": ["300ms"], "jitter": 0, "give_up_after": "1s"}
    config = configuration({"hook": {"url": receiver.url("hook"), "retry": retry}})
    async with daemon(config):
        events = await insert_many(sql, 3)
        await until(lambda: len(receiver.of("hook")) >= 3, "the first attempts")
        await sql.execute("SELECT webhookd.pause('{1}')")
        events += await insert_many(sql, 3)
        await asyncio.sleep(1.2)  # longer than they are given: this is about time
        asked = len(receiver.got)
        await sql.execute("SELECT webhookd.resume('{1}')")
        await until(lambda: len(receiver.got) >= asked + 6, "an attempt of each, which fails")
        healed.set()
        for event in events:
            await settled(sql, event, {"hook": "delivered"})


async def test_one_that_cannot_keep_up_reads_the_log(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spills, "SPILLED_MOST", 100)
    monkeypatch.setattr(follower, "SPILLED_MOST", 100)
    monkeypatch.setattr(endings, "SPILLED_MOST", 100)
    quick = asyncio.Event()

    async def slow(_: Got) -> web.Response:
        await asyncio.sleep(0.0 if quick.is_set() else 0.1)
        return web.Response()

    receiver.scripts["hook"] = slow
    config = configuration({"hook": {"url": receiver.url("hook"), "max_in_flight": 2}})
    async with daemon(config):
        events = []
        for _ in range(10):
            events += await insert_many(sql, 100)
            await asyncio.sleep(0.01)
        await parked(sql, "saturated")
        for _ in range(20):
            events += await insert_many(sql, 100)
        await eventually(lambda: all_handled(sql), "all of it to be cut")
        assert await rows(sql) <= 1010  # of the first thousand, which were in hand already
        quick.set()
        await finished(sql)
        await live(sql)
        await each_once(sql, 3000)
    assert await told(sql) == []  # it has not failed


async def test_one_that_fails_once_it_is_parked_is_told_each_time(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spills, "SPILLED_MOST", 100)
    monkeypatch.setattr(follower, "SPILLED_MOST", 100)
    monkeypatch.setattr(endings, "SPILLED_MOST", 100)
    monkeypatch.setattr(breaker, "PROBE_MOST", 0.1)
    quick, status = asyncio.Event(), [200]

    async def script(_: Got) -> web.Response:
        await asyncio.sleep(0.0 if quick.is_set() else 0.1)
        return web.Response(status=status[0])

    async def tells(*kinds: str) -> None:
        async def is_so() -> bool:
            return await told(sql) == [f"endpoint.{kind}" for kind in kinds]

        await eventually(is_so, f"{kinds} to be told")

    receiver.scripts["hook"] = script
    async with daemon(configuration({"hook": {"url": receiver.url("hook"), "max_in_flight": 2}})):
        await more_until_parked(sql)
        status[0] = 500
        await tells("failing")
        status[0] = 200
        await tells("failing", "recovered")
        status[0] = 500
        await tells("failing", "recovered", "failing")
        assert await sql.fetchval("SELECT array_agg(reason) FROM webhookd.parked WHERE to_batch IS NULL") == [
            "saturated"
        ]
        status[0] = 200
        quick.set()
        await finished(sql)
        await live(sql)
        await tells("failing", "recovered", "failing", "recovered")


async def test_one_that_cannot_keep_up_is_live_again_whoever_sent_what_another_had_put_off(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One slot, so of two daemons one puts off all it reads, and the other sends it."""
    monkeypatch.setattr(spills, "SPILLED_MOST", 100)
    monkeypatch.setattr(follower, "SPILLED_MOST", 100)
    monkeypatch.setattr(endings, "SPILLED_MOST", 100)
    quick = asyncio.Event()

    async def slow(_: Got) -> web.Response:
        await asyncio.sleep(0.0 if quick.is_set() else 0.1)
        return web.Response()

    receiver.scripts["hook"] = slow
    config = configuration({"hook": {"url": receiver.url("hook"), "max_in_flight": 1}})
    async with daemon(config), daemon(config):
        events = await more_until_parked(sql)
        quick.set()
        await finished(sql)
        await live(sql)
    await each_once(sql, events)


async def test_one_that_cannot_keep_up_is_live_again_when_the_time_of_what_it_was_owed_is_over(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that end without an answer are none that it has to take."""
    monkeypatch.setattr(spills, "SPILLED_MOST", 100)
    monkeypatch.setattr(follower, "SPILLED_MOST", 100)
    monkeypatch.setattr(endings, "SPILLED_MOST", 100)
    answered = receiver.hangs("hook")
    config = configuration({"hook": {"url": receiver.url("hook"), "max_in_flight": 1}})
    async with daemon(config):
        await more_until_parked(sql)
        await sql.execute("UPDATE webhookd.backlog SET state = 'exhausted' WHERE due <= now()")
        answered.set()
        await live(sql)


async def test_only_the_owner_sends_and_another_daemon_takes_over(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    healed = is_dead(receiver, "hook")
    config = configuration({"hook": {"url": receiver.url("hook")}})
    async with daemon(config):
        async with daemon(config):
            await insert_many(sql, 40)
            await parked(sql)
            await insert_many(sql, 100)
            await sql.execute("UPDATE webhookd.parked SET owner = 2, epoch = epoch + 1")  # whoever found it
            await sql.execute("UPDATE webhookd.config_version SET parked = parked + 1")
        # The second has stopped in order.

        async def taken_over() -> bool:
            return bool(await sql.fetchval("SELECT owner = 1 FROM webhookd.parked"))

        await eventually(taken_over, "the first to take it")
        assert await sql.fetchval("SELECT fails FROM webhookd.parked") > 0
        healed.set()
        await finished(sql)
        await live(sql)
    await each_once(sql, 140)


async def test_a_daemon_that_died_has_its_cursors_taken_over(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """What it had sent beyond its cursor is not sent again."""
    config = configuration({"hook": {"url": receiver.url("hook")}})
    async with daemon(config):
        await insert_many(sql, 30)
        await finished(sql)
        await sql.execute("SELECT webhookd.pause('{1}')")
        await insert_many(sql, 30)
        await eventually(lambda: all_handled(sql), "all of it to be cut")
    await sql.execute("INSERT INTO webhookd.daemon (id, beat_at) VALUES (99, now() - interval '1 min')")
    await sql.execute(
        """INSERT INTO webhookd.attempt (outbox_id, endpoint_id, attempt, ok)
           SELECT o.id, 1, 1, true FROM webhookd.outbox o ORDER BY o.id DESC LIMIT 10"""
    )
    await sql.execute("UPDATE webhookd.parked SET owner = 99")
    await sql.execute("SELECT webhookd.resume('{1}')")
    async with daemon(config):
        await finished(sql)
        await live(sql)
        await each_once(sql, 60)
    assert len(receiver.got) == 50


async def test_one_daemon_takes_all_of_an_endpoint(sql: Sql, dsn: str) -> None:
    """Two that want it at the same moment: the first cursor decides, and nobody takes what another has just taken."""
    await sql.execute("INSERT INTO webhookd.daemon (id) VALUES (1), (2)")
    await sql.execute("INSERT INTO webhookd.daemon (id, beat_at) VALUES (9, now() - interval '1 min')")
    await sql.execute(
        """INSERT INTO webhookd.parked (endpoint_id, from_batch, to_batch, next_batch, reason, owner)
           VALUES (5, 1, 4, 1, 'failing', 9), (5, 4, NULL, 4, 'failing', NULL), (6, 1, NULL, 1, 'failing', 2)"""
    )
    soon = 1e12
    async with Database(dsn) as database:
        store = ParkingStore(database)
        assert await store.take(1, [5, 6], 0.0, 15.0) == 0  # one that is not steady calls nobody dead
        async with sql.transaction():
            await sql.execute("SELECT FROM webhookd.parked WHERE endpoint_id = 5 AND from_batch = 1 FOR UPDATE")
            assert await store.take(1, [5, 6], soon, 15.0) == 0  # another is about to take the first
        assert await store.take(1, [5, 6], soon, 15.0) == 2
        assert await store.take(2, [5, 6], soon, 15.0) == 0
        await store.let_go_of(1, [6])
        await store.let_go_of(1, [5])
        assert await store.take(2, [5], 0.0, 15.0) == 2
        owners = await sql.fetch("SELECT owner, epoch FROM webhookd.parked ORDER BY endpoint_id, from_batch")
        assert [tuple(row) for row in owners] == [(2, 2), (2, 2), (2, 0)]


async def test_three_times_410_disables_and_enable_says_what_was_missed(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 410)
    config = configuration({"hook": {"url": receiver.url("hook")}})
    async with daemon(config):
        owed = await insert(sql)
        await parked(sql, "disabled")
        assert await sql.fetchval("SELECT disabled_why FROM webhookd.endpoint") == "http_410"
        missed = await insert_many(sql, 5)
        await eventually(lambda: all_handled(sql), "these to be handled")
        await settled(sql, missed[0], {"hook": "missed"})
        asked = len(receiver.got)
        receiver.scripts.clear()
        await sql.execute("SELECT webhookd.enable('{1}')")
        new = await insert(sql)
        await settled(sql, new, {"hook": "delivered"})
        await settled(sql, owed, {"hook": "delivered"})
        await settled(sql, missed[0], {"hook": "missed"})
        assert set(receiver.events("hook")[asked:]) == {owed, new}
        await live(sql)
    assert await told(sql) == ["endpoint.disabled"]


@pytest.mark.parametrize("slow", [0.0, 0.2])
async def test_after_enable_it_takes_three_times_410_again(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch, slow: float
) -> None:
    """Enabled in the very moment that it is disabled, before the daemon can look, and though its clock is not exact."""
    beat = Registry.beat

    async def late(*args: Any, **more: Any) -> Any:
        await asyncio.sleep(slow)  # on its way: half of it is what the daemon's clock would be ahead
        return await beat(*args, **more)

    monkeypatch.setattr(Registry, "beat", late)
    receiver.answers("hook", 410)
    config = configuration({"hook": {"url": receiver.url("hook")}}, retry={"schedule": ["1h"]})
    tried = "SELECT count(*) FROM webhookd.attempt"

    async def is_disabled() -> bool:
        return bool(await sql.fetchval("SELECT disabled_at IS NOT NULL FROM webhookd.endpoint"))

    async with daemon(config):
        for times in (3, 6, 9):
            for number in range(times - 2, times + 1):
                await insert(sql)
                await eventually(lambda n=number: _is(sql, tried, n), f"410 number {number}")  # type: ignore[misc]
            await eventually(is_disabled, "it to be disabled")
            assert await sql.fetchval(tried) == times
            await sql.execute("SELECT webhookd.enable('{1}')")
    assert await told(sql) == ["endpoint.disabled"] * 3


async def _is(sql: Sql, question: str, answer: int) -> bool:
    return bool(await sql.fetchval(question) == answer)


async def test_what_was_answered_before_enable_disables_nothing(
    sql: Sql, receiver: Receiver, daemon: Running, dsn: str
) -> None:
    """By whichever daemon, also one that has seen neither the one nor the other."""
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        pass
    before, clock = "SELECT extract(epoch FROM clock_timestamp())::float8", []
    async with Database(dsn) as database:
        store = ParkingStore(database)
        clock.append(await sql.fetchval(before))
        assert await store.disable(1, "http_410", clock[0])
        assert not await store.disable(1, "http_410", clock[0])  # it is already
        await sql.execute("SELECT webhookd.enable('{1}')")
        assert not await store.disable(1, "http_410", clock[0])
        clock.append(await sql.fetchval(before))
        await sql.execute("SELECT webhookd.pause('{1}')")
        await sql.execute("SELECT webhookd.resume('{1}')")  # of a pause, which is another thing
        assert await store.disable(1, "http_410", clock[1])


async def test_what_waits_too_long_behind_a_dead_endpoint_is_a_range(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "GIVE_UP_LOOKS", 2)
    monkeypatch.setattr(breaker, "PROBE_MOST", 0.1)
    is_dead(receiver, "hook")
    retry = {"schedule": ["100ms"], "give_up_after": "2s"}
    operator = {"url": receiver.url("operator"), "events": ["webhookd.*"]}
    config = configuration({"hook": {"url": receiver.url("hook"), "retry": retry}, "operator": operator})
    async with daemon(config):
        await insert_many(sql, 20)
        await parked(sql)
        events = await insert_many(sql, 50)  # more than are probed with in two seconds
        await settled(sql, events[-1], {"hook": "parked"})

        async def over() -> bool:
            """One or another was probed with, and has a row."""
            found = {state for event in events for state in (await states(sql, event)).values()}
            return found <= {"missed", "exhausted"} and await states(sql, events[-1]) == {"hook": "missed"}

        await eventually(over, "their time to be over")
        ranges = await sql.fetch("SELECT reason FROM webhookd.missed WHERE endpoint_id = 1")
        assert [row["reason"] for row in ranges] == ["exhausted"]
        kinds = await told(sql)
        await until(lambda: len(receiver.of("operator")) >= len(kinds), "operators to hear of it")
        heard = [json.loads(got.body)["data"] for got in receiver.of("operator")]
        assert {each["endpoint"] for each in heard} == {"hook"}
        assert sum("from_batch" in each for each in heard) == 1


async def test_an_endpoint_is_not_told_about_itself(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("hook", 410)
    hook = {"url": receiver.url("hook"), "events": ["*", "webhookd.*"]}
    config = configuration({"hook": hook, "other": {**hook, "url": receiver.url("other"), "events": ["webhookd.*"]}})
    async with daemon(config):
        await insert(sql)
        await until(lambda: receiver.of("other"), "the other one to hear of it")
        await sql.execute("SELECT webhookd.enable('{1}')")
        await insert(sql)
        receiver.scripts.clear()
        await finished(sql)
    assert all(b"webhookd." not in got.body for got in receiver.of("hook"))
    assert [b"endpoint.disabled" in got.body for got in receiver.of("other")] == [True]


async def test_an_endpoint_that_is_switched_off_is_owed_nothing_new(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    """What its cursor had before it keeps for when it is switched on again."""
    healed = is_dead(receiver, "hook")
    hook = {"url": receiver.url("hook")}
    now = configuration({"hook": hook})
    async with daemon(now, load=lambda: now) as running:
        owed = await insert_many(sql, 40)
        await parked(sql)
        owed += await insert_many(sql, 10)
        await eventually(lambda: all_handled(sql), "all of it to be cut")
        now = configuration({"hook": {**hook, "active": False}})
        running.reload()

        async def ended() -> bool:
            return bool(await sql.fetchval("SELECT to_batch IS NOT NULL FROM webhookd.parked"))

        await eventually(ended, "its cursor to have an end")
        healed.set()
        await insert_many(sql, 10)
        await eventually(lambda: all_handled(sql), "these to be handled")
        now = configuration({"hook": hook})
        running.reload()
        await finished(sql)
        await live(sql)
        await each_once(sql, len(owed))


async def test_becoming_live_again_under_load_loses_and_repeats_nothing(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    config = configuration({"hook": {"url": receiver.url("hook")}})
    inserted = 0

    async with daemon(config), daemon(config):
        for round_ in range(6):
            await sql.execute("SELECT webhookd.pause('{1}')")
            for _ in range(5):
                inserted += len(await insert_many(sql, 20))
            await sql.execute("SELECT webhookd.resume('{1}')")
            for _ in range(20):
                inserted += len(await insert_many(sql, 5 + round_))
                await asyncio.sleep(0.005)
        await finished(sql)
        await live(sql)
    await each_once(sql, inserted)
    assert len(receiver.got) == inserted


async def all_handled(sql: Sql) -> bool:
    """Every event is cut, and every batch has ended."""
    return bool(
        await sql.fetchval(
            """SELECT NOT EXISTS (SELECT FROM webhookd.batch WHERE done_at IS NULL)
                  AND EXISTS (SELECT FROM webhookd.batch
                               WHERE (SELECT max(id) FROM webhookd.outbox) = ANY (outbox_ids))"""
        )
    )


async def test_one_that_failed_and_is_resumed_is_probed_at_once(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """Whatever its next probe would have been."""
    is_dead(receiver, "hook")
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, retry={"schedule": ["1h"]})):
        await insert_many(sql, 20)
        await parked(sql)
        await sql.execute("SELECT webhookd.pause('{1}')")
        await eventually(lambda: _is(sql, "SELECT count(*) FROM webhookd.parked WHERE fails > 0", 1), "its failures")
        await asyncio.sleep(0.5)  # until the daemon knows, which looks each 50 ms; if not, nothing is found here
        receiver.scripts.clear()
        await sql.execute("UPDATE webhookd.parked SET retry_at = now() + interval '1 hour'")
        event_id = await insert(sql)
        await sql.execute("SELECT webhookd.resume('{1}')")
        await settled(sql, event_id, {"hook": "delivered"})
