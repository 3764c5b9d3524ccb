"""Order where something is in flight, in memory or on its way to the database while what decides about it changes."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from tests.integration.conftest import QUICK, Receiver, Running, Sql, as_user, configuration, eventually, insert
from tests.integration.engine.test_order import LATER, ONCE, SOON, Lines, has_rows, hook, rows
from tests.waiting import until
from webhookd.daemon.daemon import Daemon
from webhookd.store.batches import Batches
from webhookd.store.order import Found, OrderStore

STEADY = {"schedule": ["200ms"], "give_up_after": "1h"}
MANY = """
INSERT INTO webhookd.outbox (type, payload, tenant, ordering_key)
SELECT 'order.created', json_build_object('key', $1::text, 'n', n), $2, $1
  FROM generate_series($3::int, $4::int - 1) n"""


def came(receiver: Receiver, n: int) -> int:
    """How often an event has come, however it was answered."""
    return sum(json.loads(got.body)["data"]["n"] == n for got in receiver.of("hook"))


async def pause_and_resume(sql: Sql) -> None:
    await sql.execute("SELECT webhookd.pause('{1}')")
    await asyncio.sleep(2 * QUICK.look)
    await sql.execute("SELECT webhookd.resume('{1}')")
    await asyncio.sleep(4 * QUICK.look)


async def test_what_is_held_behind_a_full_line_waits_for_who_takes_over(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    lines = Lines(receiver)
    lines.delay = 0.05
    async with daemon(hook(receiver, "key")):
        await lines.insert(sql, "a", range(60))
        await until(lambda: len(lines.got["a"]) >= 3, "some")
        assert await rows(sql, "held")
    lines.delay = 0.0
    async with daemon(hook(receiver, "key")):
        await until(lambda: lines.has("a", range(60)), "all of them")
    lines.is_exact()


@pytest.mark.parametrize("ordered", [True, "key"])
@pytest.mark.parametrize("row", ["due", "lent"])
async def test_a_pause_while_one_with_a_row_is_in_flight(
    sql: Sql, receiver: Receiver, daemon: Running, ordered: Any, row: str
) -> None:
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: n == 1 and attempt < 2
    async with daemon(hook(receiver, ordered, STEADY)):
        await lines.insert(sql, "a", range(2))
        await until(lambda: came(receiver, 1) == 1, "the first attempt")
        await lines.insert(sql, "a", range(2, 60))
        if row == "lent":
            await until(lambda: lines.has("a", range(4)), "some that were held")
        lines.delay = 1.0
        if row == "due":
            await until(lambda: came(receiver, 1) == 2, "the second attempt")
        await pause_and_resume(sql)
        await lines.insert(sql, "a", range(60, 64))
        lines.delay = 0.0
        await until(lambda: lines.has("a", range(64)), "all of them")
    lines.is_exact()


async def test_who_loses_an_endpoint_keeps_it_until_what_is_in_flight_is_answered(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: n == 0 and attempt < 3
    tables: dict[str, dict[str, Any]] = {
        "hook": {"url": receiver.url("hook"), "ordered": "key"},
        "other": {"url": receiver.url("other")},
    }
    whole, less = configuration(tables, retry=SOON), configuration({"other": tables["other"]}, retry=SOON)
    files = [whole, whole]
    async with daemon(whole, load=lambda: files[0]) as one, daemon(whole, load=lambda: files[1]) as two:

        async def owner() -> Any:
            return await sql.fetchval(
                "SELECT (SELECT count(*) FROM webhookd.daemon d WHERE d.id < p.owner) FROM webhookd.parked p"
            )

        async def has_one() -> bool:
            return await owner() is not None

        await eventually(has_one, "a sender")
        await lines.insert(sql, "a", range(6))
        await until(lambda: 0 in lines.got["a"], "the first")
        lines.delay = 1.0
        await until(lambda: lines.flying["a"] > 0, "one that was held")
        whose = await owner()
        files[whose] = less
        (one, two)[whose].reload()
        await until(lambda: lines.has("a", range(2)), "it to be answered")
        lines.delay = 0.0
        await until(lambda: lines.has("a", range(6)), "all of them")
    lines.is_exact()


async def test_removed_and_back_while_one_is_in_flight(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: n == 0 and attempt < 2
    tables: dict[str, dict[str, Any]] = {
        "hook": {"url": receiver.url("hook"), "ordered": "key"},
        "other": {"url": receiver.url("other")},
    }
    whole, less = configuration(tables, retry=SOON), configuration({"other": tables["other"]}, retry=SOON)
    files = [whole]
    async with daemon(whole, load=lambda: files[-1]) as running:
        await lines.insert(sql, "a", range(6))
        await until(lambda: 0 in lines.got["a"], "the first")
        lines.delay = 1.0
        await until(lambda: lines.flying["a"] > 0, "one that was held")
        for changed in (less, whole):
            files.append(changed)
            running.reload()
            await asyncio.sleep(6 * QUICK.look)
        lines.delay = 0.0
        await until(lambda: lines.has("a", range(6)), "all of them")
    lines.is_exact()


async def test_another_order_while_one_is_in_flight(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    lines.delay = 0.3
    config = hook(receiver, True)
    async with daemon(config, load=lambda: config) as running:
        await lines.insert(sql, "a", range(4))
        await until(lambda: lines.flying["a"] > 0, "one in flight")
        config = hook(receiver, "key", max_in_flight=4)
        running.reload()
        await until(lambda: lines.has("a", range(4)), "all of them")
    lines.is_exact()


@pytest.mark.parametrize("what", ["payloads", "lent", "waiting"])
async def test_no_order_any_longer_sends_nothing_twice(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    fetch, gate = Batches.payloads, asyncio.Event()
    gate.set()

    async def gated(self: Batches, *arguments: Any) -> Any:
        await gate.wait()
        return await fetch(self, *arguments)

    monkeypatch.setattr(Batches, "payloads", gated)
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: what == "lent" and n == 0 and attempt < 2
    config = hook(receiver, "key", STEADY, max_in_flight=4)
    async with daemon(config, load=lambda: config) as running:
        await lines.insert(sql, "first", range(1))
        await until(lambda: lines.has("first", range(1)), "what is known")
        if what == "payloads":
            gate.clear()
        for n in range(20):
            lines.sent["a"].append(n)
            told = {"key": "a", "n": n, "long": "x" * 5_000}  # it comes late
            await insert(sql, json.dumps(told), ordering_key="a")
        if what != "payloads":
            await until(lambda: len(lines.got["a"]) > 3, "some")
            lines.delay = 0.5
            await until(lambda: lines.flying["a"] > 0, "one in flight")
        else:
            await asyncio.sleep(4 * QUICK.look)
        config = hook(receiver, False, STEADY, max_in_flight=4)
        running.reload()
        await asyncio.sleep(6 * QUICK.look)
        gate.set()
        lines.delay = 0.0
        await until(lambda: lines.has("a", range(20)), "all of them")
        await has_rows(sql, "held", 0)
        await has_rows(sql, "retry", 0)
    assert sorted(lines.got["a"]) == list(range(20))


async def test_a_line_that_fills_while_the_backlog_is_looked_at(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = OrderStore.look

    async def slow(self: OrderStore, *arguments: Any, **more: Any) -> Found | None:
        found = await look(self, *arguments, **more)
        await asyncio.sleep(0.3)
        return found

    monkeypatch.setattr(OrderStore, "look", slow)
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: key == "bad"
    async with daemon(hook(receiver, "key", LATER, max_in_flight=8)):
        await lines.insert(sql, "bad", range(3))  # so that it is looked at
        await has_rows(sql, "held", 2)
        lines.delay = 0.05
        for n in range(8):
            lines.sent[key := f"k{n}"] += range(30)
            await sql.execute(MANY, key, "", 0, 30)
            await asyncio.sleep(0.1)
        lines.delay = 0.0
        await until(lambda: all(lines.has(f"k{n}", range(30)) for n in range(8)), "all of them")
    lines.is_right()


async def test_what_held_goes_on_when_the_files_say_skip(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: n == 2
    lines.given_up.add(("a", 2))
    config = hook(receiver, "key", ONCE, on_exhausted="hold")
    async with daemon(config, load=lambda: config) as running:
        await lines.insert(sql, "a", range(6))

        async def stopped() -> bool:
            return bool(await sql.fetchval("SELECT count(*) FROM webhookd.backlog WHERE due = 'infinity'"))

        await eventually(stopped, "the order to hold")
        config = hook(receiver, "key", ONCE)
        running.reload()
        await until(lambda: lines.has("a", range(3, 6)), "those behind it")
    lines.is_exact()


@pytest.mark.parametrize("many", [700, 2_500])
async def test_transactions_of_several_tenants(sql: Sql, receiver: Receiver, daemon: Running, many: int) -> None:
    """What is left of one that has more than its share is older than what another gets of the same cut."""
    lines = Lines(receiver)
    async with daemon(hook(receiver, True, tenant="*")):
        await lines.insert(sql, "a", range(1), tenant="small")
        await until(lambda: lines.has("a", range(1)), "the first")
    n = 1
    for _ in range(3):
        lines.sent["a"] += range(n, n + many)
        await sql.execute(MANY, "a", "large", n, n + many)
        n += many
        await lines.insert(sql, "a", range(n, n + 1), tenant="small")
        n += 1
    async with daemon(hook(receiver, True, tenant="*")):
        await until(lambda: lines.has("a", range(n)), "all of them", 120)
    lines.is_exact()


@pytest.mark.parametrize("how", ["scheduled", "open"])
async def test_what_comes_late_into_a_run_that_is_read_by_number(
    sql: Sql, dsn: str, receiver: Receiver, daemon: Running, how: str
) -> None:
    lines = Lines(receiver)
    tables: dict[str, dict[str, Any]] = {
        "hook": {"url": receiver.url("hook"), "ordered": "key", "events": ["line"]},
        "other": {"url": receiver.url("other"), "events": ["order.created"], "rate_limit": "500/s"},
    }
    low = json.dumps({"key": "low", "n": 0})
    connection = await asyncpg.connect(dsn)
    async with daemon(configuration(tables)):
        transaction = connection.transaction()
        await transaction.start()
        due = await sql.fetchval("SELECT now() + interval '1.5 s'") if how == "scheduled" else None
        await insert(connection, low, type="line", ordering_key="low", deliver_after=due)
        if how == "scheduled":
            await transaction.commit()
        await lines.insert(sql, "a", range(20), type="line")
        await sql.execute(MANY, "large", "", 0, 40_000)

        async def is_in_it() -> bool:
            return bool(await sql.fetchval("SELECT count(*) > 3 FROM webhookd.batch WHERE late"))

        await eventually(is_in_it, "batches that are cut while something older waits")
        await lines.insert(sql, "a", range(20, 30), type="line")
        if how == "open":
            await asyncio.sleep(10 * QUICK.look)
            await transaction.commit()
        await until(lambda: lines.has("low", range(1)), "what came late")
        await until(lambda: lines.has("a", range(30)), "the others")
    await connection.close()
    lines.is_exact()


async def test_the_least_rights_are_enough(granted: Sql, sql: Sql, dsn: str, receiver: Receiver) -> None:
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: n in (3, 7) and attempt < 3
    ready = asyncio.Event()
    made = Daemon(
        hook(receiver, "key"), as_user(dsn, "webhookd_daemon"), intervals=QUICK, on_ready=lambda _: ready.set()
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(made.run())
        await ready.wait()
        await lines.insert(sql, "a", range(20))
        await until(lambda: lines.has("a", range(20)), "all of them")
        made.stop()
        await task
    lines.is_exact()
