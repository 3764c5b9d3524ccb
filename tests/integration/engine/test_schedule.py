"""Time: the three days, outages, endpoints that hang, and how soon an event is noticed."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from tests.integration.conftest import (
    QUICK,
    Ear,
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
    status,
)
from tests.stopwatch import Stopwatch, family
from tests.waiting import until
from webhookd.exchange import Response
from webhookd.message.formats import FORMATS
from webhookd.message.signing import SCHEMES
from webhookd.model import Delivery, Ended, Endpoint, Event, Retry, RetryPolicy
from webhookd.policy import breaker, outcome
from webhookd.policy.backoff import horizon
from webhookd.store.registry import Registry

DAYS = 86400.0
NO_JITTER = {"jitter": 0.0}  # and the default schedule: 5 s to 6 h, for three days


@pytest.fixture(autouse=True)
def no_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one delivery fails more often in a minute than it would in days."""
    monkeypatch.setattr(breaker, "FAILED_IN_ROW", 1000)
    monkeypatch.setattr(breaker, "FAILED_IN_WINDOW", 1000)


def step_by_step(policy: RetryPolicy, random: Callable[[], float], seconds: float = 1.0) -> tuple[list[float], str]:
    """The moments at which a receiver that always fails is tried, each attempt taking `seconds`; and how it ends."""
    event = Event(1, "evt_1", datetime(2021, 1, 27, tzinfo=UTC), "a", "", None, None, None, 2)
    endpoint = Endpoint(
        id=1,
        tenant="",
        name="hook",
        url="https://hooks.example.com/",
        events=("*",),
        format=FORMATS["raw"],
        signature=SCHEMES["none"],
        secrets=(),
        retry=policy,
        timeout=20.0,
        max_in_flight=10,
    )
    delivery = Delivery(event, endpoint, None, 0, 0.0, 0.0, 0.0)
    now, starts = 0.0, []
    while True:
        starts.append(now)
        answered = now + seconds
        decided = outcome.decide(delivery, Response(500), answered, horizon(policy, 0.0), 0.0, random)
        if isinstance(decided, Ended):
            return starts, decided.state
        assert isinstance(decided, Retry)
        delivery.attempts += 1
        now = answered + decided.delay


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999999])
def test_the_schedule_of_three_days(random: float) -> None:
    starts, end = step_by_step(RetryPolicy(), lambda: random)
    assert end == "exhausted"
    assert starts[-1] == pytest.approx(3 * DAYS)
    pauses = [later - earlier - 1.0 for earlier, later in itertools.pairwise(starts)]
    for number, pause in enumerate(pauses[:-1]):
        assert pause == pytest.approx(min(5.0 * 3.0**number, 6 * 3600.0), rel=0.2001)
    assert pauses[:9] == sorted(pauses[:9])


async def move_back(sql: Sql, days: float) -> None:
    """Let the backlog be that much older, and due."""
    await sql.execute("UPDATE webhookd.backlog SET clock_from = clock_from - $1 * interval '1 day', due = now()", days)


async def owed(sql: Sql) -> list[asyncpg.Record]:
    return await sql.fetch(
        "SELECT state, attempts, last_error, extract(epoch FROM due - now())::float8 AS due_in FROM webhookd.backlog"
    )


async def test_the_last_attempt_is_on_the_horizon_and_none_follows(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 500)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, retry=NO_JITTER)):
        event_id = await insert(sql)
        pauses = []
        for number in range(1, 12):

            async def recorded(n: int = number) -> bool:
                return [row["attempts"] for row in await owed(sql)] == [n]

            await eventually(recorded, f"attempt {number}")
            pauses.append((await owed(sql))[0]["due_in"])
            await sql.execute("UPDATE webhookd.backlog SET due = now()")
        assert pauses == pytest.approx([min(5 * 3**n, 21600) for n in range(11)], abs=3.0)

        async def twelfth() -> bool:
            return [row["attempts"] for row in await owed(sql)] == [12]

        await eventually(twelfth, "attempt 12")
        await move_back(sql, 3 - 1 / 24)  # an hour before the horizon

        async def thirteenth() -> bool:
            return [row["attempts"] for row in await owed(sql)] == [13]

        await eventually(thirteenth, "attempt 13")
        assert (await owed(sql))[0]["due_in"] == pytest.approx(3600, abs=10)  # on the horizon, though 6 h were its turn
        await move_back(sql, 1 / 24)
        await settled(sql, event_id, {"hook": "exhausted"})
    assert [got.attempt for got in receiver.got] == list(range(1, 15))
    said = (await status(sql, event_id))["hook"]
    assert (said["attempts"], said["last_code"], said["due"]) == (14, 500, None)
    assert len(await attempts(sql, event_id)) == 14


async def test_what_heals_on_the_horizon_is_delivered(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("hook", 500, 200)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, retry=NO_JITTER)):
        event_id = await insert(sql)
        await settled(sql, event_id, {"hook": "retrying"})
        await move_back(sql, 3.0)
        await settled(sql, event_id, {"hook": "delivered"})


async def test_each_endpoint_has_its_own_schedule_and_horizon(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    for path in ("brief", "listed"):
        receiver.answers(path, 500)
    config = configuration(
        {
            "brief": {"url": receiver.url("brief"), "retry": {"give_up_after": "300ms"}},
            "listed": {"url": receiver.url("listed"), "retry": {"schedule": ["10ms", "20ms", "2h"], "jitter": 0.0}},
        }
    )
    async with daemon(config):
        event_id = await insert(sql)
        await settled(sql, event_id, {"brief": "exhausted", "listed": "retrying"})

        async def third() -> bool:
            return bool((await status(sql, event_id))["listed"]["attempts"] == 3)

        await eventually(third, "the third attempt")
        log = await attempts(sql, event_id, "listed")
        due = (await status(sql, event_id))["listed"]["due"]
        assert abs((due - log[-1]["at"]).total_seconds() - 7200) < 5
    # The last attempt starts on the horizon, which counts from the cut of the batch.
    cut_at = await sql.fetchval("SELECT cut_at FROM webhookd.batch WHERE id = 1")
    last = (await attempts(sql, event_id, "brief"))[-1]
    assert timedelta(seconds=0.2) < last["at"] - cut_at < timedelta(seconds=5)


async def four_days_pass(sql: Sql) -> None:
    """Move all that is written down four days into the past, as if no daemon had run since."""
    for table, column in (
        ("daemon", "beat_at"),
        ("daemon", "stopped_at"),
        ("batch", "cut_at"),
        ("batch", "done_at"),
        ("backlog", "clock_from"),
        ("backlog", "due"),
    ):
        await sql.execute(f"UPDATE webhookd.{table} SET {column} = {column} - interval '4 days'")


@pytest.mark.parametrize("slow_beat", [False, True])
async def test_an_outage_of_four_days_takes_nothing_from_the_three(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch, slow_beat: bool
) -> None:
    receiver.answers("hook", 500)
    config = configuration({"hook": {"url": receiver.url("hook")}}, retry=NO_JITTER)
    async with daemon(config):
        old = await insert(sql)
        await settled(sql, old, {"hook": "retrying"})
    during = await insert(sql)
    await four_days_pass(sql)
    if slow_beat:
        real = Registry.beat

        async def beat(self: Registry, *arguments: Any) -> Any:
            await asyncio.sleep(0.2)  # less than the 0.5 s between beats
            return await real(self, *arguments)

        monkeypatch.setattr(Registry, "beat", beat)
    async with daemon(config):
        await settled(sql, during, {"hook": "retrying"})

        async def again() -> bool:
            return bool((await status(sql, old))["hook"]["attempts"] == 2)

        await eventually(again, "another attempt of the old one")
        assert await states(sql, old) == {"hook": "retrying"}
        spans = await sql.fetch("SELECT ended_at - started_at AS span FROM webhookd.downtime")
        assert len(spans) == 1
        assert abs(spans[0]["span"] - timedelta(days=4)) < timedelta(minutes=1)
        # It has what was left of its three days: nearly all.
        await sql.execute("UPDATE webhookd.backlog SET clock_from = clock_from - interval '70 h', due = now()")

        async def third() -> bool:
            return bool((await status(sql, old))["hook"]["attempts"] == 3)

        await eventually(third, "an attempt within its three days")
        assert await states(sql, old) == {"hook": "retrying"}
        await sql.execute("UPDATE webhookd.backlog SET clock_from = clock_from - interval '2 h', due = now()")
        await settled(sql, old, {"hook": "exhausted"})


async def test_a_batch_that_was_open_during_the_outage_is_attempted(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 500)
    config = configuration({"hook": {"url": receiver.url("hook")}}, retry=NO_JITTER)
    async with daemon(config):
        pass
    event_id = await insert(sql)
    await sql.fetch("SELECT * FROM webhookd.cut(10, 500, 99999)")  # by a daemon that died at once
    await four_days_pass(sql)
    async with daemon(config):
        await settled(sql, event_id, {"hook": "retrying"})
        assert (await owed(sql))[0]["attempts"] == 1
        assert 0 < (await owed(sql))[0]["due_in"] < 6


async def test_a_short_restart_is_no_downtime(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    config = configuration({"hook": {"url": receiver.url("hook")}})
    for _ in range(2):
        async with daemon(config):
            await settled(sql, await insert(sql), {"hook": "delivered"})
    assert await sql.fetchval("SELECT count(*) FROM webhookd.downtime") == 0


async def test_deliver_after_four_days_has_its_three_days(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("hook", 500)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, retry=NO_JITTER)):
        event_id = await sql.fetchval(
            "INSERT INTO webhookd.outbox (type, payload, deliver_after) "
            "VALUES ('a', '{}', now() + interval '4 days') RETURNING event_id"
        )

        async def scheduled() -> bool:
            return bool(await sql.fetchval("SELECT count(*) FROM webhookd.scheduled") == 1)

        await eventually(scheduled, "its place in the schedule")
        assert await states(sql, event_id) == {None: "waiting"}
        # Four days later: what was written then is four days old now.
        await sql.execute("UPDATE webhookd.outbox SET deliver_after = now() + interval '0.2 s'")
        await sql.execute("UPDATE webhookd.scheduled SET due = now() + interval '0.2 s'")
        await sql.execute("UPDATE webhookd.batch SET cut_at = cut_at - interval '4 days'")
        await settled(sql, event_id, {"hook": "retrying"})
        await move_back(sql, 2.9)

        async def second() -> bool:
            return bool((await status(sql, event_id))["hook"]["attempts"] == 2)

        await eventually(second, "another attempt")
        assert await states(sql, event_id) == {"hook": "retrying"}
        await move_back(sql, 0.2)
        await settled(sql, event_id, {"hook": "exhausted"})
    assert len(receiver.got) == 3  # what was due before its horizon has that attempt, however late, and no other


async def test_a_hung_endpoint_holds_nobody_up_and_loses_nothing(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    healed = receiver.hangs("hung")
    config = configuration(
        {
            "hung": {"url": receiver.url("hung"), "events": ["hung"], "timeout": "300s"},  # longer than the test
            "fine": {"url": receiver.url("fine")},
        }
    )
    config_slots = config.endpoints[0].max_in_flight
    async with daemon(config):
        hung = await insert_many(sql, 2000, "hung")
        await until(lambda: len(receiver.of("fine")) == 2000, "the first two thousand at the other")
        for _ in range(10):
            watch = Stopwatch(*family(sql.get_server_pid()))
            event_id = await insert(sql)
            await until(lambda e=event_id: e in receiver.events("fine"), "an event of the other endpoint")  # type: ignore[misc]
            assert watch.seconds < 1.0

        async def closed() -> bool:
            return not await sql.fetchval("SELECT count(*) FROM webhookd.batch WHERE done_at IS NULL")

        await eventually(closed, "every batch to close though the endpoint hangs")
        assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") <= 2000  # from 1,000 on it is parked
        assert receiver.peaks["hung"] <= config_slots
        healed.set()
        await finished(sql)
    assert sorted(set(receiver.events("hung"))) == sorted(hung)
    assert len(receiver.events("hung")) == 2000  # each once
    assert await sql.fetchval("SELECT count(*) FROM webhookd.attempt a WHERE NOT ok") == 0


async def test_what_a_stopping_daemon_did_not_send_the_next_one_sends(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    async def slow(_: Got) -> web.Response:
        await asyncio.sleep(0.02)
        return web.Response()

    receiver.scripts["hook"] = slow
    config = configuration({"hook": {"url": receiver.url("hook")}})
    async with daemon(config):
        events = await insert_many(sql, 1000)
        await until(lambda: len(receiver.got) > 50, "some")
    assert len(receiver.got) < 1000
    assert await sql.fetchval("SELECT count(*) FROM webhookd.attempt") == len(receiver.got)  # all that was sent
    receiver.scripts.clear()
    async with daemon(config):
        await finished(sql)
    assert sorted(receiver.events("hook")) == sorted(events)  # each once


@pytest.fixture
async def writers(dsn: str) -> AsyncIterator[list[Sql]]:
    """Four connections of applications."""
    connections = [await asyncpg.connect(dsn) for _ in range(4)]
    yield connections
    for connection in connections:
        await connection.close()


async def test_under_load_producers_do_not_notify_and_when_idle_they_do(
    sql: Sql, writers: list[Sql], receiver: Receiver, daemon: Running
) -> None:
    ear = Ear()
    await sql.add_listener("webhookd", ear)

    async def write(writer: Sql, statements: int) -> None:
        # Of 20 events each, or the machine has to be quick for what a daemon calls load.
        insert_some = "INSERT INTO webhookd.outbox (type, payload) SELECT 'noise', '{}' FROM generate_series(1, 20)"
        statement = await writer.prepare(insert_some)
        for _ in range(statements):
            await statement.fetch()
            await asyncio.sleep(0.001)

    async def load(statements: int) -> None:
        async with asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(write(writer, statements))

    async with daemon(configuration({"hook": {"url": receiver.url("hook"), "events": ["wanted"]}})):
        for _ in range(5):
            await asyncio.sleep(0.1)  # long enough to fall asleep
            await settled(sql, await insert(sql, type="wanted"), {"hook": "delivered"})
        await until(lambda: ear.heard, "a notification while the daemon sleeps")
        assert ear.heard <= 5
        await load(100)  # until the daemon has noticed how much there is
        heard = ear.heard
        await load(300)
        assert ear.heard - heard <= 300 * len(writers) * 0.02
    await sql.remove_listener("webhookd", ear)


async def test_an_event_is_noticed_long_before_the_nap_is_over(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        await settled(sql, await insert(sql), {"hook": "delivered"})
        took = []
        for number in range(2, 32):
            await asyncio.sleep(0.05)  # long enough to fall asleep
            watch = Stopwatch(*family(sql.get_server_pid()))
            await insert(sql)
            await until(lambda n=number: len(receiver.got) == n, "the event", interval=0.001)  # type: ignore[misc]
            took.append(watch.seconds)
        assert sorted(took)[len(took) // 2] < 0.05  # a nap is 200 ms


async def test_when_the_listening_connection_is_killed_deliveries_go_on(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        for number in range(1, 6):
            await settled(sql, await insert(sql), {"hook": "delivered"})
            killed = await sql.fetchval(
                """SELECT count(*) FILTER (WHERE pg_terminate_backend(l.pid)) FROM pg_locks l
                    WHERE locktype = 'advisory' AND classid = 7301 AND objid = 2 AND mode = 'ExclusiveLock'
                      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
            )
            if number == 1:
                assert killed in (0, 1)
            await settled(sql, await insert(sql), {"hook": "delivered"})
    assert len(receiver.got) == 10


async def test_when_every_connection_is_killed_nothing_is_lost(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        events = []
        for _ in range(5):
            events += await insert_many(sql, 100)
            await sql.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'webhookd'"""
            )
        await finished(sql)
    assert set(receiver.events("hook")) == set(events)


def test_the_pace_of_these_tests_is_that_of_the_daemon_at_a_tenth() -> None:
    assert QUICK.beat < 1
