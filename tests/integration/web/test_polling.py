"""Polling: what an endpoint is owed is fetched, nothing is skipped, and nothing comes twice but after a lost answer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
from aiohttp import ClientSession
from svix.webhooks import Webhook, WebhookVerificationError

from tests.integration.conftest import Receiver, Running, Sql, as_user, eventually, insert
from tests.integration.web.conftest import Client, Reply, a_token
from tests.integration.web.test_endpoints import config
from webhookd.config.config import build
from webhookd.daemon.daemon import Daemon
from webhookd.engine.polled import polls
from webhookd.store.database import Database
from webhookd.store.registry import Registry

POLLED = {"url": "", "uid": "polled", "eventTypes": ["order.*"], "webhookd": {"kind": "poll"}}
POLLER = "/app/shop/poller/polled"
STATEMENT = "INSERT INTO webhookd.outbox (type, tenant, payload) VALUES ('order.created', 'shop', $1::text::json)"


@pytest.fixture
async def shop(dsn: str, receiver: Receiver, daemon: Running) -> AsyncIterator[Client]:
    """An application with an endpoint that is polled."""
    async with daemon(config(receiver)) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        await client("POST", "/app", {"name": "Shop", "uid": "shop"})
        made = await client("POST", "/app/shop/endpoint", POLLED)
        assert made.status == 201, made
        yield client


async def emit(shop: Client, n: int, app: str = "shop", **more: Any) -> str:
    body = {"eventType": "order.created", "payload": {"n": n}, **more}
    made = await shop("POST", f"/app/{app}/msg", body)
    assert made.status == 202, made
    event: str = made.body["id"]
    return event


async def polled(shop: Client, path: str = POLLER, **query: object) -> Reply:
    said = "&".join(f"{name}={quote(str(value))}" for name, value in {"wait": 0, **query}.items())
    return await shop("GET", f"{path}?{said}")


def numbers(reply: Reply) -> list[int]:
    assert reply.status == 200, reply
    return [each["payload"]["n"] for each in reply.body["data"]]


async def all_of(shop: Client, path: str = POLLER, **query: object) -> list[Mapping[str, Any]]:
    """Page after page, until there is no more."""
    found: list[Mapping[str, Any]] = []
    for _ in range(1_000):
        reply = await polled(shop, path, **query)
        assert reply.status == 200, reply
        found += reply.body["data"]
        query["iterator"] = reply.body["iterator"]
        if reply.body["done"]:
            return found
    raise AssertionError("it has no end")


async def arrived(shop: Client, count: int, path: str = POLLER, **query: object) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []

    async def are_there() -> bool:
        found[:] = await all_of(shop, path, **query)
        return len(found) >= count

    await eventually(are_there, f"{count} events")
    return found


async def test_what_comes_is_fetched_as_it_would_be_sent(shop: Client, receiver: Receiver, sql: Sql) -> None:
    secret = (await shop("GET", "/app/shop/endpoint/polled/secret")).body["key"]
    event = await emit(shop, 1, eventId="order-1", channels=["eu"], tags=["new"])
    await emit(shop, 2, eventType="other")
    (found,) = await arrived(shop, 1)
    shown = (await shop("GET", f"/app/shop/msg/{event}")).body
    headers = found["headers"]
    assert {key: value for key, value in found.items() if key != "headers"} == shown
    Webhook(secret).verify(json.dumps(found["payload"], separators=(",", ":")), headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify('{"n":2}', headers)
    assert headers["webhook-id"] == event
    assert not {"user-agent", "accept-encoding", "webhook-attempt"} & headers.keys()
    assert receiver.got == []
    for table in ("backlog", "parked", "attempt", "missed"):
        assert await sql.fetchval(f"SELECT count(*) FROM webhookd.{table}") == 0, table


async def test_an_iterator_leads_on(shop: Client) -> None:
    for n in range(7):
        await emit(shop, n)
    await arrived(shop, 7)
    first = await polled(shop, limit=3)
    assert (numbers(first), first.body["done"]) == ([0, 1, 2], False)
    again = await polled(shop, limit=3)
    assert again.body["data"][0]["id"] == first.body["data"][0]["id"]
    second = await polled(shop, limit=3, iterator=first.body["iterator"])
    third = await polled(shop, limit=3, iterator=second.body["iterator"])
    assert numbers(second) + numbers(third) == [3, 4, 5, 6]
    assert third.body["done"] is True
    end = await polled(shop, iterator=third.body["iterator"])
    assert (end.body["data"], end.body["done"], end.body["missed"]) == ([], True, None)


async def test_a_consumer_goes_on_from_the_iterator_that_it_passed_last(shop: Client) -> None:
    path = f"{POLLER}/consumer/printer"
    for n in range(5):
        await emit(shop, n)
    await arrived(shop, 5)
    first = await polled(shop, path, limit=2)
    assert numbers(first) == numbers(await polled(shop, path, limit=2)) == [0, 1]  # the first answer may have been lost
    second = await polled(shop, path, limit=2, iterator=first.body["iterator"])
    assert numbers(second) == [2, 3]
    assert numbers(await polled(shop, path, limit=2)) == [2, 3]
    assert numbers(await polled(shop, f"{POLLER}/consumer/other", limit=2)) == [0, 1]


async def test_a_consumer_seeks_back_and_forth(shop: Client) -> None:
    path = f"{POLLER}/consumer/printer"
    began = datetime.now(UTC)
    await emit(shop, 1)
    await arrived(shop, 1)
    between = datetime.now(UTC)
    await emit(shop, 2)
    await arrived(shop, 2)

    async def begins(moment: datetime) -> list[int]:
        sought = await shop("POST", f"{path}/seek", {"after": moment.isoformat()})
        assert sought.status == 200, sought
        found = numbers(await polled(shop, path))
        assert numbers(await polled(shop, path, iterator=sought.body["iterator"])) == found
        return found

    assert await begins(between) == [2]
    assert await begins(began) == [1, 2]
    assert await begins(datetime.now(UTC) + timedelta(days=1)) == []
    assert await begins(datetime(2000, 1, 1, tzinfo=UTC)) == [1, 2]
    assert numbers(await polled(shop, after=between.isoformat())) == [2]


async def test_types_and_channels_choose(shop: Client) -> None:
    await emit(shop, 1, channels=["eu"])
    await emit(shop, 2, channels=["us"])
    await emit(shop, 3, eventType="order.paid")
    await arrived(shop, 3)
    assert numbers(await polled(shop, event_type="order.paid")) == [3]
    assert numbers(await polled(shop, channel="us")) == [2]
    assert numbers(await polled(shop, channel="us", event_type="order.paid")) == []
    assert (await polled(shop, limit=0)).status == 422
    assert (await polled(shop, wait=61)).status == 422


async def test_who_waits_has_it_when_it_comes(shop: Client) -> None:
    path = f"{POLLER}/consumer/printer"
    waiting = asyncio.create_task(polled(shop, path, wait=30))
    await asyncio.sleep(0.3)  # so that it does wait
    assert not waiting.done()
    await emit(shop, 1, eventType="other")
    await emit(shop, 2)
    reply = await waiting
    assert (numbers(reply), reply.body["done"]) == ([2], False)
    empty = await polled(shop, path, wait=0.2, iterator=reply.body["iterator"])
    assert (empty.body["data"], empty.body["done"]) == ([], False)  # a bridge that sleeps when it is done asks again


async def test_what_is_asked_for_wrongly_says_what_to_do(shop: Client, receiver: Receiver) -> None:
    await shop("POST", "/app/shop/endpoint", {"url": receiver.url("hook"), "uid": "hook"})
    await shop("POST", "/app/shop/endpoint", {**POLLED, "uid": "second"})
    await shop("POST", "/app", {"name": "Other", "uid": "other"})
    await shop("POST", "/app/other/endpoint", POLLED)
    theirs = (await polled(shop, "/app/other/poller/polled")).body["iterator"]
    second = (await polled(shop, "/app/shop/poller/second")).body["iterator"]

    async def refused(path: str, **query: object) -> tuple[int, str]:
        reply = await polled(shop, path, **query)
        return reply.status, reply.body["code"]

    assert await refused(POLLER, iterator=theirs) == (404, "not_found")
    assert await refused(POLLER, iterator=second) == (404, "not_found")
    assert await refused(POLLER, iterator="nothing") == (400, "invalid_iterator")
    assert await refused(POLLER, iterator="") == (400, "invalid_iterator")
    assert await refused("/app/shop/poller/none") == (404, "not_found")
    assert await refused("/app/shop/poller/hook") == (409, "not_polled")
    assert await refused(f"{POLLER}/consumer/{'x' * 257}") == (400, "bad_consumer")
    assert (await shop("POST", f"{POLLER}/consumer/c/seek", {})).status == 422
    sought = await shop("POST", "/app/shop/poller/hook/consumer/c/seek", {"after": "2026-01-01T00:00:00Z"})
    assert (sought.status, sought.body["code"]) == (409, "not_polled")


@pytest.mark.parametrize(
    "more",
    [
        {"url": "https://example.com/"},
        {"timeout": 3.0},
        {"throttleRate": 5},
        {"retry": {"first": 1}},
        {"webhookd": {"kind": "poll", "maxInFlight": 3}},
    ],
)
async def test_one_that_is_polled_says_nothing_of_sending(shop: Client, more: dict[str, object]) -> None:
    made = await shop("POST", "/app/shop/endpoint", {**POLLED, "uid": "new", **more})
    assert made.status == 422
    assert "polled" in made.body["detail"][0]["msg"]


async def test_it_stays_what_it_was_made_as(shop: Client, receiver: Receiver) -> None:
    one = "/app/shop/endpoint/polled"
    found = (await shop("GET", one)).body
    assert (found["url"], found["webhookd"]) == ("", {"kind": "poll"})
    assert (await shop("PUT", one, {"url": receiver.url("hook")})).status == 422
    assert (await shop("PATCH", one, {"webhookd": {"kind": "push"}})).body["code"] == "kind_stays"
    changed = await shop("PUT", one, {"url": "", "uid": "polled", "eventTypes": ["a.*"]})
    assert (changed.status, changed.body["webhookd"]) == (200, {"kind": "poll"})
    await shop("POST", "/app/shop/endpoint", {"url": receiver.url("hook"), "uid": "hook"})
    assert (await shop("PATCH", "/app/shop/endpoint/hook", {"webhookd": {"kind": "poll"}})).body["code"] == "kind_stays"
    assert (await shop("POST", "/app/shop/endpoint", {"url": "", "uid": "new"})).status == 422


async def test_nothing_is_sent_to_it(shop: Client) -> None:
    event = await emit(shop, 1)
    one = "/app/shop/endpoint/polled"
    for path, body in (
        (f"{one}/test", {}),
        (f"{one}/send-example", {"eventType": "order.created"}),
        (f"{one}/recover", {"since": "2026-01-01T00:00:00Z"}),
        (f"{one}/replay-missing", {"since": "2026-01-01T00:00:00Z"}),
        (f"{one}/bulk-replay", {"since": "2026-01-01T00:00:00Z"}),
        (f"{one}/pause", None),
        (f"/app/shop/msg/{event}/endpoint/polled/resend", None),
    ):
        reply = await shop("POST", path, body)
        assert (reply.status, reply.body["code"]) == (409, "polled"), path


async def test_a_pollers_token_polls_its_endpoint_and_nothing_else(shop: Client, sql: Sql) -> None:
    await shop("POST", "/app/shop/endpoint", {**POLLED, "uid": "second"})
    token = f"/auth{POLLER}/token"
    assert (await shop("GET", token)).status == 404
    made = await shop("POST", f"{token}/rotate", {"expiry": 3600}, idempotency_key="k")
    again = await shop("POST", f"{token}/rotate", {"expiry": 3600}, idempotency_key="k")
    assert (made.status, again.status, again.body["token"], again.body["id"]) == (201, 201, "", made.body["id"])
    poller = shop.with_token(made.body["token"])
    assert (await polled(poller)).status == 200
    assert (await polled(poller, f"{POLLER}/consumer/c")).status == 200
    assert (await polled(poller, "/app/shop/poller/second")).status == 404
    assert (await polled(poller, "/app/other/poller/polled")).status == 404
    for path in ("/app/shop/endpoint", "/app/shop/msg", "/app", token):
        assert (await poller("GET", path)).status == 403, path
    newer = await shop("POST", f"{token}/rotate", {"oldTokenExpiry": 0})
    shown = (await shop("GET", token)).body
    assert (shown["id"], shown["token"]) == (newer.body["id"], "")

    async def is_over() -> bool:
        return (await polled(poller)).status == 401

    await eventually(is_over, "the end of the token before")
    await shop("DELETE", "/app/shop/endpoint/polled")

    async def all_over() -> bool:
        return (await polled(shop.with_token(newer.body["token"]))).status == 401

    await eventually(all_over, "the end of the token with its endpoint")
    assert made.body["token"] not in str(await sql.fetch("SELECT * FROM webhookd.token"))


async def test_a_readers_token_moves_no_consumer(shop: Client, dsn: str) -> None:
    for role in ("read", "producer"):
        assert (await polled(shop.with_token(await a_token(dsn, role)))).status == 403


async def produce(connection: Any, first: int, wanted: set[int]) -> None:
    """Transactions of three savepoints each, of which the second is rolled back."""
    for turn in range(15):
        async with connection.transaction():
            for step in range(3):
                n = first + turn * 10 + step
                savepoint = connection.transaction()
                await savepoint.start()
                await connection.execute(
                    STATEMENT,
                    json.dumps({"n": n}),
                )
                await asyncio.sleep(0.001 * ((n * 7) % 5))
                if step == 1:
                    await savepoint.rollback()
                else:
                    await savepoint.commit()
                    wanted.add(n)


async def test_beside_transactions_that_overlap_nothing_is_skipped(shop: Client, dsn: str) -> None:
    """Ids are drawn long before they are committed; savepoints are rolled back; pages are small."""
    connections = [await asyncpg.connect(dsn) for _ in range(6)]
    wanted = set[int]()
    over = asyncio.Event()

    async def consume(path: str) -> list[int]:
        found, query, is_over = list[int](), dict[str, object](), False
        while not is_over:
            was_over = over.is_set()
            reply = await polled(shop, path, limit=7, **query)
            found += numbers(reply)
            query["iterator"] = reply.body["iterator"]
            is_over = was_over and reply.body["done"]
        return found

    async def everything() -> None:
        await asyncio.gather(*(produce(each, 1000 * number, wanted) for number, each in enumerate(connections)))
        await arrived(shop, len(wanted))
        over.set()

    *answers, _ = await asyncio.gather(consume(POLLER), consume(f"{POLLER}/consumer/one"), everything())
    for each in answers:
        assert sorted(each) == sorted(wanted)
    for connection in connections:
        await connection.close()


async def test_after_a_failover_it_reads_again(shop: Client, sql: Sql) -> None:
    """Another timeline has given the same ids to other batches."""
    path = f"{POLLER}/consumer/printer"
    await emit(shop, 1)
    await arrived(shop, 1)
    first = await polled(shop, path)
    await polled(shop, path, iterator=first.body["iterator"])
    await sql.execute("UPDATE webhookd.batch SET nonce = nonce # 12345")
    stale = await polled(shop, iterator=first.body["iterator"])
    assert (stale.status, stale.body["code"]) == (400, "invalid_iterator")
    assert numbers(await polled(shop, path)) == [1]
    assert numbers(await polled(shop, path, iterator=first.body["iterator"])) == [1]
    await sql.execute("UPDATE webhookd.consumer SET batch = batch + 1000")
    assert numbers(await polled(shop, path)) == [1]


@pytest.fixture
async def untidy(dsn: str, receiver: Receiver, daemon: Running) -> AsyncIterator[Client]:
    """The same, of a daemon that leaves partitions alone."""
    its = config(receiver)
    async with (
        daemon(replace(its, retention=its.retention.model_copy(update={"manage_partitions": False}))) as running,
        ClientSession() as session,
    ):
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        await client("POST", "/app", {"name": "Shop", "uid": "shop"})
        await client("POST", "/app/shop/endpoint", POLLED)
        yield client


async def test_what_retention_took_is_told(untidy: Client, sql: Sql, dsn: str) -> None:
    shop = untidy
    path = f"{POLLER}/consumer/printer"
    old = datetime.now(UTC) - timedelta(days=9)
    ends = f"FROM ('{old.date()} 00:00+00') TO ('{old.date() + timedelta(days=1)} 00:00+00')"
    name = f"webhookd.outbox_{old.date():%Y%m%d}"
    await sql.execute(f"CREATE TABLE {name} PARTITION OF webhookd.outbox FOR VALUES {ends}")

    async def write(n: int, type_: str = "order.created") -> None:
        await sql.execute(
            "INSERT INTO webhookd.outbox (created_at, type, tenant, payload) VALUES ($1, $2, 'shop', $3::text::json)",
            old, type_, json.dumps({"n": n}),
        )  # fmt: skip

    await sql.execute("UPDATE webhookd.endpoint SET created_at = created_at - interval '10 days'")
    await write(0)
    await arrived(shop, 1)
    first = await polled(shop, path)
    before = (await polled(shop, path, iterator=first.body["iterator"])).body["iterator"]
    await write(1)
    await write(2, "other")
    await write(3)
    await arrived(shop, 3)
    await sql.execute("UPDATE webhookd.batch SET cut_at = cut_at - interval '9 days'")
    await sql.execute("UPDATE webhookd.consumer SET cut_at = cut_at - interval '9 days'")
    await sql.execute(
        "INSERT INTO webhookd.outbox (type, tenant, payload) SELECT 'order.created', 'shop',"
        " json_build_object('n', n) FROM generate_series(9, 11) n"
    )  # in one batch
    await arrived(shop, 6)

    async def is_done() -> bool:
        return not await sql.fetchval("SELECT count(*) FROM webhookd.batch WHERE done_at IS NULL")

    await eventually(is_done, "all batches done")
    async with Database(dsn, size=1) as database:
        registry = Registry(database)
        assert len(await registry.lagging(0.8 * 7 * 86_400)) == 1
        pieces = await registry.maintain(7 * 86_400, 7 * 86_400)
    (told,) = [problem for what, problem in pieces if what.startswith("consumer printer")]
    assert told is not None
    assert "2 events" in told
    assert await sql.fetchval(f"SELECT to_regclass('{name}') IS NULL OR NOT EXISTS (SELECT FROM {name})")
    late = await polled(shop, path, iterator=before)  # which it had before retention took what is behind it
    assert (numbers(late), late.body["missed"]["count"]) == ([9, 10, 11], 2)
    reply = await polled(shop, path)
    assert numbers(reply) == [9, 10, 11]
    assert reply.body["missed"]["count"] == 2
    assert reply.body["missed"]["from"] < reply.body["missed"]["to"]
    again = await polled(shop, path)
    assert again.body["missed"]["count"] == 2  # the answer may have been lost
    after = await polled(shop, path, iterator=again.body["iterator"])
    assert after.body["missed"] is None
    lost = await polled(shop, iterator=before)
    assert (numbers(lost), lost.body["missed"]["count"]) == ([9, 10, 11], None)
    other = f"{POLLER}/consumer/other"  # of whom nobody knew
    assert (await polled(shop, other, iterator=before, limit=1)).body["missed"] is not None
    assert [each["payload"]["n"] for each in await all_of(shop, other, limit=1)] == [9, 10, 11]
    assert await sql.fetchval("SELECT reason FROM webhookd.missed") == "unread"


async def test_sigterm_answers_all(dsn: str, receiver: Receiver, daemon: Running) -> None:
    async with daemon(config(receiver)) as running, ClientSession() as session:
        shop = Client(session, running.api_url, await a_token(dsn, "admin"))
        await shop("POST", "/app", {"name": "Shop", "uid": "shop"})
        await shop("POST", "/app/shop/endpoint", POLLED)
        waiting = [asyncio.create_task(polled(shop, wait=60)) for _ in range(20)]
        await asyncio.sleep(0.5)  # so that they do wait
        running.stop()
        began = time.monotonic()
        replies = await asyncio.gather(*waiting)
    assert {(reply.status, len(reply.body["data"])) for reply in replies} == {(200, 0)}
    assert time.monotonic() - began < 30


async def test_who_vanishes_leaves_nothing(
    dsn: str, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[polls.Polls] = []
    before = polls.Polls.__init__

    def kept(self: polls.Polls, *arguments: Any) -> None:
        before(self, *arguments)
        made.append(self)

    monkeypatch.setattr(polls.Polls, "__init__", kept)
    async with daemon(config(receiver)) as running, ClientSession() as session:
        shop = Client(session, running.api_url, await a_token(dsn, "admin"))
        await shop("POST", "/app", {"name": "Shop", "uid": "shop"})
        await shop("POST", "/app/shop/endpoint", POLLED)
        waiting = [asyncio.create_task(polled(shop, wait=60)) for _ in range(50)]

        async def all_wait() -> bool:
            return made[0].waiting == 50

        await eventually(all_wait, "fifty who wait")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

        async def nobody_waits() -> bool:
            return made[0].waiting == 0

        await eventually(nobody_waits, "nobody who waits")


async def test_one_daemon_cuts_and_another_is_polled(dsn: str, sql: Sql, receiver: Receiver, daemon: Running) -> None:
    async with (
        daemon(config(receiver)) as one,
        daemon(config(receiver)) as other,
        daemon(config(receiver)) as third,
        ClientSession() as session,
    ):
        token = await a_token(dsn, "admin")
        shops = [Client(session, running.api_url, token) for running in (one, other, third)]
        await shops[0]("POST", "/app", {"name": "Shop", "uid": "shop"})
        await shops[0]("POST", "/app/shop/endpoint", POLLED)
        found: list[list[int]] = [[], [], []]

        async def consume(number: int) -> None:
            query: dict[str, object] = {}
            while len(found[number]) < 30:
                reply = await polled(shops[number], f"{POLLER}/consumer/{number}", wait=20, **query)
                found[number] += numbers(reply)
                query["iterator"] = reply.body["iterator"]

        async def produce() -> None:
            for n in range(30):
                await insert(sql, json.dumps({"n": n}), tenant="shop")
                await asyncio.sleep(0.02)

        await asyncio.gather(*(consume(number) for number in range(3)), produce())
        assert found == [list(range(30))] * 3


async def test_it_is_polled_with_no_more_rights_than_a_daemon_has(granted: Sql, dsn: str, receiver: Receiver) -> None:
    ready = asyncio.Event()
    running = Daemon(config(receiver), as_user(dsn, "webhookd_daemon"), on_ready=lambda _: ready.set())
    async with asyncio.TaskGroup() as group, ClientSession() as session:
        group.create_task(running.run())
        await ready.wait()
        shop = Client(session, running.api_url, await a_token(dsn, "admin"))
        await shop("POST", "/app", {"name": "Shop", "uid": "shop"})
        await shop("POST", "/app/shop/endpoint", POLLED)
        await emit(shop, 1)
        await arrived(shop, 1, f"{POLLER}/consumer/c")
        assert (await shop("POST", f"{POLLER}/consumer/c/seek", {"after": "2026-01-01T00:00:00Z"})).status == 200
        assert (await shop("POST", f"/auth{POLLER}/token/rotate", {})).status == 201
        running.stop()
    async with Database(as_user(dsn, "webhookd_daemon"), size=1) as database:
        registry = Registry(database)
        await registry.maintain(7 * 86_400, 7 * 86_400)
        await registry.sweep(7 * 86_400)
        assert set(await registry.lagging(0.0)) == {1}


async def test_what_is_too_large_is_left_out_and_the_rest_comes(shop: Client, sql: Sql) -> None:
    payloads = ['{"n": 1}', json.dumps({"n": 2, "x": "y" * (2 << 20)}), '{"n": 3}', "[4]"]
    for payload in payloads:
        await insert(sql, payload, tenant="shop")
    found = await arrived(shop, 3)
    assert [each["payload"] for each in found] == [{"n": 1}, {"n": 3}, {"data": [4]}]


async def test_many_large_ones_come_in_pages_that_are_bounded(shop: Client, sql: Sql) -> None:
    for n in range(30):
        await insert(sql, json.dumps({"n": n, "x": "y" * 500_000}), tenant="shop")
    await arrived(shop, 30)
    first = await polled(shop, limit=250)
    assert 5 < len(first.body["data"]) < 15
    assert (
        numbers(first) + [each["payload"]["n"] for each in await all_of(shop, iterator=first.body["iterator"])]
    ) == list(range(30))


async def test_one_that_is_changed_while_somebody_waits(shop: Client) -> None:
    waiting = asyncio.create_task(polled(shop, wait=30))
    await asyncio.sleep(0.3)  # so that it does wait
    await shop("PATCH", "/app/shop/endpoint/polled", {"eventTypes": ["other"]})
    await emit(shop, 1)
    await emit(shop, 2, eventType="other")
    assert numbers(await waiting) == [2]
    waiting = asyncio.create_task(polled(shop, wait=30))
    await asyncio.sleep(0.3)
    assert (await shop("DELETE", "/app/shop/endpoint/polled")).status == 204
    assert (await waiting).status == 200


async def test_a_filter_of_payloads_is_looked_at_when_it_is_asked(
    dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    document = {
        "api": {"listen": "127.0.0.1:0"},
        "endpoint": {
            "some": {"kind": "poll", "events": ["*"], "signature": "none", "filter": {"data": {"n": {"gte": 3}}}},
            "all": {"kind": "poll", "events": ["*"], "signature": "none", "format": "raw"},
        },
    }
    async with daemon(build(document, [], {}, lambda path, file: "")) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        for n in range(6):
            await insert(sql, json.dumps({"n": n}))
        found = await arrived(client, 3, "/app/default/poller/some", limit=2)
        assert [each["payload"]["data"] for each in found] == [{"n": n} for n in (3, 4, 5)]
        assert "webhook-signature" not in found[0]["headers"]
        assert [each["payload"] for each in await all_of(client, "/app/default/poller/all")] == [
            {"n": n} for n in range(6)
        ]
