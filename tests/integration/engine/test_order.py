"""Order: of all events, or of each ordering key, whatever fails, is stopped, is resent or comes late."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from tests.integration.conftest import (
    QUICK,
    Got,
    Receiver,
    Running,
    Sql,
    configuration,
    eventually,
    insert,
    settled,
    states,
)
from tests.waiting import until
from webhookd.store.database import Database
from webhookd.store.reports import Reports
from webhookd.store.shots import Wishes

SOON = {"schedule": ["30ms"] * 4, "give_up_after": "1h"}
ONCE = {"schedule": ["20ms"], "give_up_after": "200ms"}
LATER = {"first": "1h", "max_interval": "1h"}


class Lines:
    """A receiver that knows in what order it is to get what. `fails(key, n, attempt)` says what it refuses."""

    def __init__(self, receiver: Receiver, path: str = "hook") -> None:
        self.sent: dict[str, list[int]] = defaultdict(list)  # in the order in which they are to come
        self.got: dict[str, list[int]] = defaultdict(list)  # answered well
        self.done: dict[str, set[int]] = defaultdict(set)
        self.next: dict[str, int] = defaultdict(int)  # all below are through
        self.given_up: set[tuple[str, int]] = set()
        self.wrong: list[str] = []
        self.fails: Callable[[str, int, int], bool] = lambda key, n, attempt: False
        self.flying: dict[str, int] = defaultdict(int)
        self.peak = 0
        self.delay = 0.0
        receiver.scripts[path] = self._answer

    async def _answer(self, got: Got) -> web.Response:
        told = json.loads(got.body)["data"]
        key, n = told["key"], told["n"]
        self.flying[key] += 1
        self.peak = max(self.peak, sum(self.flying.values()))
        if self.flying[key] > 1:
            self.wrong.append(f"{n} of {key} while another of it is in flight")
        # Those sent so far in the order of their numbers, so all lower ones come before.
        if missing := [
            m for m in range(self.next[key], n) if m not in self.done[key] and (key, m) not in self.given_up
        ]:
            self.wrong.append(f"{n} of {key} before {missing[:5]}")
        else:
            self.next[key] = max(self.next[key], n)
        await asyncio.sleep(self.delay)
        self.flying[key] -= 1
        if self.fails(key, n, got.attempt):
            return web.Response(status=500)
        self.got[key].append(n)
        self.done[key].add(n)
        return web.Response()

    async def insert(self, sql: Sql, key: str, numbers: range, **columns: Any) -> list[str]:
        """Events of a key, one transaction each."""
        found = []
        for n in numbers:
            self.sent[key].append(n)
            found.append(await insert(sql, json.dumps({"key": key, "n": n}), ordering_key=key, **columns))
        return found

    def has(self, key: str, numbers: range) -> bool:
        return self.done[key].issuperset(numbers)

    def is_right(self) -> None:
        assert not self.wrong, self.wrong[:5]

    def is_exact(self) -> None:
        """Everything once, in order."""
        self.is_right()
        for key, sent in self.sent.items():
            assert [n for n in self.got[key]] == [n for n in sent if (key, n) not in self.given_up], key


def hook(receiver: Receiver, ordered: Any, retry: dict[str, Any] = SOON, **table: Any) -> Any:
    return configuration({"hook": {"url": receiver.url("hook"), "ordered": ordered, **table}}, retry=retry)


async def rows(sql: Sql, state: str) -> int:
    found: int = await sql.fetchval("SELECT count(*) FROM webhookd.backlog WHERE state = $1", state)
    return found


async def has_rows(sql: Sql, state: str, many: int) -> None:
    async def reached() -> bool:
        return await rows(sql, state) == many

    await eventually(reached, f"{many} rows in the state {state}")


async def test_all_come_one_after_the_other(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: n in (3, 7) and attempt < 3
    async with daemon(hook(receiver, True)):
        await lines.insert(sql, "one", range(40))
        await until(lambda: lines.has("one", range(40)), "all of them")
        await has_rows(sql, "held", 0)
        await has_rows(sql, "retry", 0)
    lines.is_exact()
    assert lines.peak == 1


async def test_all_means_whatever_their_key(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    lines.delay = 0.002
    lines.fails = lambda key, n, attempt: n % 10 == 4 and attempt == 1
    async with daemon(hook(receiver, True)):
        for n in range(30):
            await insert(sql, json.dumps({"key": "all", "n": n}), ordering_key=str(n % 3) if n % 5 else None)
            lines.sent["all"].append(n)
        await until(lambda: lines.has("all", range(30)), "all of them")
    lines.is_exact()
    assert lines.peak == 1


async def test_only_its_key_waits(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: key == "bad" and n == 1
    async with daemon(hook(receiver, "key", LATER)):
        await lines.insert(sql, "bad", range(5))
        for n in range(10):
            await asyncio.gather(*[lines.insert(sql, f"good{k}", range(n, n + 1)) for k in range(1)])
        await until(lambda: lines.has("good0", range(10)), "those of another key")
        await has_rows(sql, "held", 3)
        assert await rows(sql, "retry") == 1
        await lines.insert(sql, "bad", range(5, 8))
        await has_rows(sql, "held", 6)
    lines.is_right()
    assert lines.got["bad"] == [0]


async def test_events_without_a_key_have_no_order(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("hook", 500, 200)
    async with daemon(hook(receiver, "key", LATER)):
        first = await insert(sql)
        await settled(sql, first, {"hook": "retrying"})
        receiver.answers("hook", 200)
        second = await insert(sql)
        await settled(sql, second, {"hook": "delivered"})
        assert await states(sql, first) == {"hook": "retrying"}


async def test_many_keys_fly_at_once(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    lines.delay = 0.05
    async with daemon(hook(receiver, "key", max_in_flight=20)):
        for n in range(4):
            for key in range(30):
                await lines.insert(sql, f"k{key}", range(n, n + 1))
        await until(lambda: all(lines.has(f"k{key}", range(4)) for key in range(30)), "all of them")
    lines.is_exact()
    assert lines.peak > 5


@pytest.mark.parametrize("ordered", [True, "key"])
async def test_what_is_exhausted_is_skipped(sql: Sql, receiver: Receiver, daemon: Running, ordered: Any) -> None:
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: n == 2
    lines.given_up.add(("a", 2))
    async with daemon(hook(receiver, ordered, ONCE)):
        events = await lines.insert(sql, "a", range(8))
        await until(lambda: lines.has("a", range(3, 8)), "those behind it")
        await settled(sql, events[2], {"hook": "exhausted"})
    lines.is_exact()


@pytest.mark.parametrize("ordered", [True, "key"])
@pytest.mark.parametrize("how", ["resend", "discard"])
async def test_what_is_exhausted_holds(
    sql: Sql, dsn: str, receiver: Receiver, daemon: Running, ordered: Any, how: str
) -> None:
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: n == 2
    async with daemon(hook(receiver, ordered, ONCE, on_exhausted="hold")):
        events = await lines.insert(sql, "a", range(8))
        await until(lambda: lines.has("a", range(2)), "those before it")

        async def stopped() -> bool:
            return bool(await sql.fetchval("SELECT count(*) FROM webhookd.backlog WHERE due = 'infinity'"))

        await eventually(stopped, "the order to hold")
        assert await states(sql, events[2]) == {"hook": "held"}
        await lines.insert(sql, "a", range(8, 10))
        await asyncio.sleep(10 * QUICK.look)
        assert not lines.has("a", range(3, 4))
        async with Database(dsn) as database:
            (owed,) = (await Reports(database).status(15.0)).endpoints
        assert (owed.undecided, owed.held > 1) == (1, True)
        if how == "resend":
            lines.fails = lambda key, n, attempt: False
            async with Database(dsn) as database:
                row = await sql.fetchrow("SELECT id, created_at FROM webhookd.outbox WHERE event_id = $1", events[2])
                assert row is not None
                await Wishes(database, "me@here", 30.0).resend([(1, row[0], row[1])])
        else:
            lines.given_up.add(("a", 2))
            await sql.execute(
                """INSERT INTO webhookd.discard (type, since, until, replays, by)
                   SELECT 'order.created', created_at, created_at, 0, 'me' FROM webhookd.outbox WHERE event_id = $1""",
                events[2],
            )
        await until(lambda: lines.has("a", range(3, 10)), "those behind it")
    lines.is_exact()


async def test_one_that_keeps_failing_is_probed_in_order(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    broken = True
    lines.fails = lambda key, n, attempt: broken
    async with daemon(hook(receiver, "key", {"schedule": ["50ms"], "give_up_after": "1h"})):
        for n in range(6):
            for key in "abcde":
                await lines.insert(sql, key, range(n, n + 1))

        async def fails() -> bool:
            return bool(await sql.fetchval("SELECT fails FROM webhookd.parked WHERE to_batch IS NULL"))

        await eventually(fails, "the breaker to open")
        broken = False
        await until(lambda: all(lines.has(key, range(6)) for key in "abcde"), "all of them", 60)
    lines.is_exact()


@pytest.mark.parametrize("ordered", [True, "key"])
async def test_it_becomes_ordered_and_is_no_longer(sql: Sql, receiver: Receiver, daemon: Running, ordered: Any) -> None:
    refuses = True
    receiver.answers("hook", 200)
    lines = Lines(receiver)
    lines.fails = lambda key, n, attempt: refuses
    async with daemon(hook(receiver, False, {"schedule": ["100ms"], "give_up_after": "1h"})):
        await lines.insert(sql, "a", range(6))
        await has_rows(sql, "retry", 6)
    lines.wrong.clear()  # there was no order
    async with daemon(hook(receiver, ordered, {"schedule": ["100ms"], "give_up_after": "1h"})):
        await lines.insert(sql, "a", range(6, 12))
        refuses = False
        await until(lambda: lines.has("a", range(12)), "all of them", 60)
        refuses = True
        lines.is_exact()
        await lines.insert(sql, "a", range(12, 18))
        await has_rows(sql, "retry", 1)
    async with daemon(hook(receiver, False, {"schedule": ["100ms"], "give_up_after": "1h"})):
        await has_rows(sql, "held", 0)
        refuses = False
        await until(lambda: lines.has("a", range(18)), "all of them", 60)
    assert sorted(lines.got["a"]) == list(range(18))


async def test_it_changes_while_it_runs(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    lines.delay = 0.005
    config = hook(receiver, False, max_in_flight=4)
    async with daemon(config, load=lambda: config) as running:
        await lines.insert(sql, "a", range(20))
        for ordered in ("key", True, False, "key", True):
            config = hook(receiver, ordered, **(dict[str, Any]() if ordered is True else {"max_in_flight": 4}))
            running.reload()
            await lines.insert(sql, "a", range(len(lines.sent["a"]), len(lines.sent["a"]) + 20))
        await until(lambda: lines.has("a", range(120)), "all of them", 60)
        lines.wrong.clear()
        await lines.insert(sql, "a", range(120, 140))
        await until(lambda: lines.has("a", range(140)), "the last")
    lines.is_right()
    assert sorted(lines.got["a"]) == list(range(140))  # each once


@pytest.mark.timeout(400)
@pytest.mark.parametrize("ordered", [True, "key"])
async def test_a_large_transaction_comes_before_what_began_after_it(
    sql: Sql, receiver: Receiver, daemon: Running, ordered: Any
) -> None:
    lines = Lines(receiver)
    many = 6_000
    async with daemon(hook(receiver, ordered)):
        await lines.insert(sql, "a", range(1))
        lines.sent["a"] += range(1, many + 1)
        await sql.execute(
            """INSERT INTO webhookd.outbox (type, payload, ordering_key)
               SELECT 'order.created', json_build_object('key', 'a', 'n', n), 'a' FROM generate_series(1, $1::int) n""",
            many,
        )
        for n in range(many + 1, many + 40):
            await lines.insert(sql, "a", range(n, n + 1))
        await until(lambda: lines.has("a", range(many + 40)), "all of them", 360)
        assert await sql.fetchval("SELECT bool_or(late) FROM webhookd.batch WHERE cardinality(outbox_ids) > 0")
    lines.is_exact()


async def test_a_flood_of_another_tenant_holds_up_no_order(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    tables: dict[str, dict[str, Any]] = {
        "hook": {"url": receiver.url("hook"), "ordered": "key", "tenant": "small"},
        "other": {"url": receiver.url("other"), "tenant": "large", "max_in_flight": 1},
    }
    async with daemon(configuration(tables)):
        await sql.execute(
            """INSERT INTO webhookd.outbox (type, payload, tenant)
               SELECT 'order.created', '{}', 'large' FROM generate_series(1, 20000) n"""
        )
        await lines.insert(sql, "a", range(50), tenant="small")
        await until(lambda: lines.has("a", range(50)), "those of the small tenant")
        assert len(receiver.of("other")) < 20_000
    lines.is_exact()


async def test_pause_and_enable_keep_it(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    lines.delay = 0.01
    async with daemon(hook(receiver, "key")):
        await lines.insert(sql, "a", range(20))
        await sql.execute("SELECT webhookd.pause('{1}')")
        await lines.insert(sql, "a", range(20, 30))
        await sql.execute("SELECT webhookd.resume('{1}')")
        await until(lambda: lines.has("a", range(30)), "all of them")
        await sql.execute("SELECT webhookd.disable(1, 'test')")
        await sql.execute("SELECT webhookd.enable('{1}')")
        await lines.insert(sql, "a", range(30, 50))
        await until(lambda: lines.has("a", range(50)), "the others")
        assert await sql.fetchval("SELECT reason FROM webhookd.parked WHERE to_batch IS NULL") == "ordered"
    lines.is_exact()


async def test_it_never_becomes_live(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    async with daemon(hook(receiver, True)):
        await lines.insert(sql, "a", range(30))
        await until(lambda: lines.has("a", range(30)), "all of them")
        await asyncio.sleep(20 * QUICK.look)
        assert await sql.fetchval("SELECT count(*) FROM webhookd.parked WHERE to_batch IS NULL") == 1


async def test_two_daemons_are_one_sender(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    lines.delay = 0.002
    lines.fails = lambda key, n, attempt: n % 7 == 3 and attempt == 1
    config = hook(receiver, "key")
    async with daemon(config):
        async with daemon(config):
            for n in range(30):
                for key in "abc":
                    await lines.insert(sql, key, range(n, n + 1))
        # The second has stopped, perhaps as the one that sent.
        for key in "abc":
            await lines.insert(sql, key, range(30, 40))
        await until(lambda: all(lines.has(key, range(40)) for key in "abc"), "all of them", 60)
    lines.is_exact()


async def test_what_is_due_later_takes_its_place_then(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    lines = Lines(receiver)
    async with daemon(hook(receiver, True)):
        now = await sql.fetchval("SELECT now() + interval '700 ms'")
        (late,) = await lines.insert(sql, "late", range(1), deliver_after=now)
        await lines.insert(sql, "a", range(10))
        await until(lambda: lines.has("a", range(10)), "those that are due")
        await settled(sql, late, {"hook": "delivered"})
    lines.is_right()


@pytest.mark.parametrize("ordered", [True, "key"])
async def test_a_replay_comes_in_order(sql: Sql, receiver: Receiver, daemon: Running, ordered: Any) -> None:
    lines = Lines(receiver)
    async with daemon(hook(receiver, ordered)):
        await lines.insert(sql, "a", range(100))
        await until(lambda: lines.has("a", range(100)), "all of them")
        for known in (lines.got, lines.done, lines.next):
            known.clear()
        await sql.execute(
            """INSERT INTO webhookd.replay (endpoint_id, query, rate, from_batch, next_batch, to_batch)
               SELECT 1, '{"state": "all"}', 500, 0, 0, max(id) + 1 FROM webhookd.batch"""
        )
        await until(lambda: lines.has("a", range(100)), "all of them once more", 60)
        await has_rows(sql, "held", 0)
        await has_rows(sql, "retry", 0)
        await lines.insert(sql, "a", range(100, 110))
        await until(lambda: lines.has("a", range(100, 110)), "what is new")
    lines.is_exact()
