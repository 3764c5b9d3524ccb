"""Attempts and deliveries: of an endpoint, of a message, in pages, and forgotten."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession, web

from tests.integration.conftest import Got, Receiver, Running, Sql, as_user, finished, insert
from tests.integration.web.conftest import Client, a_token
from tests.integration.web.test_endpoints import config
from tests.integration.web.test_message_list import listed
from tests.waiting import until
from webhookd.config.schema import Api as Settings
from webhookd.store.database import Database
from webhookd.web.api import Api
from webhookd.web.endpoints.specs import NEW
from webhookd.web.operation import Around
from webhookd.web.server import serve
from webhookd.web.table import OPERATIONS

SPEC = json.dumps({**NEW, "name": "hook", "tenant": "", "url": "https://example.com/"})


@pytest.fixture
async def shop(dsn: str, receiver: Receiver, daemon: Running) -> AsyncIterator[Client]:
    """An application with an endpoint that works, one that says 500 twice, and one that says 404 at first."""
    receiver.answers("twice", 500, 500, 200)

    async def gone(got: Got) -> web.Response:
        return web.Response(status=404 if got.attempt == 1 else 200, body=b"there \x00 is \xe9 \xff nothing: \xc3\xbc")

    receiver.scripts["gone"] = gone
    async with daemon(config(receiver)) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        await client("POST", "/app", {"name": "Shop", "uid": "shop"})
        for uid in ("works", "twice", "gone"):
            made = await client("POST", "/app/shop/endpoint", {"url": receiver.url(uid), "uid": uid, "channels": [uid]})
            assert made.status == 201
        yield client


async def emit(shop: Client, *channels: str, type_: str = "a", **more: Any) -> str:
    body = {"eventType": type_, "payload": {"n": 1}, "channels": list(channels), **more}
    event: str = (await shop("POST", "/app/shop/msg", body)).body["id"]
    return event


async def ids(shop: Client, path: str) -> list[str]:
    return await listed(shop, f"/app/shop/{path}")


async def test_what_was_tried_of_a_message(shop: Client, sql: Sql, receiver: Receiver) -> None:
    event = await emit(shop, "works", "twice", eventId="order-1")
    await until(lambda: len(receiver.of("twice")) == 3, "the third attempt")
    await finished(sql)
    page = (await shop("GET", f"/app/shop/attempt/msg/{event}")).body
    assert page["done"]
    tried = page["data"]
    names = {each["uid"]: each["id"] for each in (await shop("GET", "/app/shop/endpoint")).body["data"]}
    assert sorted((each["endpointId"], each["attempt"], each["status"]) for each in tried) == sorted(
        [(names["works"], 1, 0), (names["twice"], 1, 2), (names["twice"], 2, 2), (names["twice"], 3, 0)]
    )
    assert [each["timestamp"] for each in tried] == sorted((each["timestamp"] for each in tried), reverse=True)
    failed = next(each for each in tried if each["status"] == 2)
    assert failed["id"].startswith("atmpt_")
    assert len(failed["id"]) == 33
    assert (failed["msgId"], failed["url"], failed["responseStatusCode"]) == (event, receiver.url("twice"), 500)
    assert (failed["statusText"], failed["triggerType"], failed["trigger"]) == ("fail", 0, None)
    # By the caller's own id, too, and one of them alone.
    assert (await shop("GET", "/app/shop/attempt/msg/order-1")).body == page
    for each in tried:
        assert (await shop("GET", f"/app/shop/msg/{event}/attempt/{each['id']}")).body == each
    for query, many in {
        "status=0": 2, "status=2": 2, "status=1": 0, "status=3": 0, "status_code_class=500": 2,
        "status_code_class=200": 2, "status_code_class=0": 0, "endpoint_id=twice": 3, "event_types=a": 4,
        "event_types=b": 0, "channel=works": 4, "channel=other": 0, "limit=1": 4, "limit=3": 4,
    }.items():  # fmt: skip
        assert len(await ids(shop, f"attempt/msg/{event}?{query}")) == many, query
    assert (await shop("GET", f"/app/shop/attempt/msg/{event}?endpoint_id=none")).status == 404
    assert (await shop("GET", "/app/shop/attempt/msg/none")).status == 404
    assert (await shop("GET", f"/app/shop/attempt/msg/{event}?status=7")).status == 422
    for wrong in ("none", "0" * 27, "A1b2C3d4E5f6G7h8I9j0K1l2M3n", tried[0]["id"].removeprefix("atmpt_")):
        assert (await shop("GET", f"/app/shop/attempt/msg/{event}?iterator={wrong}")).status == 422, wrong


async def test_what_was_answered_is_shown_and_forgotten(shop: Client, sql: Sql, receiver: Receiver) -> None:
    event = await emit(shop, "gone")
    await until(lambda: receiver.of("gone"), "it")
    await finished(sql)
    path = f"/app/shop/attempt/msg/{event}"
    (*_, tried) = (await shop("GET", path)).body["data"]
    assert tried["response"] == "there \x00 is \ufffd \ufffd nothing: ü"
    assert (await shop("GET", f"{path}?with_content=false")).body["data"][-1]["response"] == ""
    assert (await shop("DELETE", f"/app/shop/msg/{event}/attempt/{tried['id']}/content")).status == 204
    assert (await shop("GET", path)).body["data"][-1] == tried | {"response": ""}
    deed = await sql.fetchrow("SELECT who, subject FROM webhookd.audit WHERE action = 'erase attempt'")
    assert deed is not None
    assert (deed["subject"], "the admin" in deed["who"]) == (event, True)
    other = await emit(shop, "works")
    for wrong in (f"{event}/attempt/atmpt_{'0' * 27}", f"{other}/attempt/{tried['id']}", f"{event}/attempt/x"):
        assert (await shop("DELETE", f"/app/shop/msg/{wrong}/content")).status == 404
        assert (await shop("GET", f"/app/shop/msg/{wrong}")).status == 404


async def test_what_was_tried_at_an_endpoint_there_and_back(shop: Client, sql: Sql, receiver: Receiver) -> None:
    for n in range(7):
        await emit(shop, "works", type_=f"type.{n % 2}")
    await until(lambda: len(receiver.of("works")) == 7, "all")
    await finished(sql)
    path = "attempt/endpoint/works"
    everything = await ids(shop, path)
    assert len(everything) == 7
    assert await ids(shop, f"{path}?limit=2") == everything
    assert len(await ids(shop, f"{path}?event_types=type.1")) == 3
    pages, iterator = [], None
    for _ in range(3):
        page = (await shop("GET", f"/app/shop/{path}?limit=3{f'&iterator={iterator}' if iterator else ''}")).body
        pages.append(page)
        iterator = page["iterator"]
    assert [[each["id"] for each in page["data"]] for page in pages] == [
        everything[:3],
        everything[3:6],
        everything[6:],
    ]
    await emit(shop, "works")  # what comes meanwhile moves nothing
    await until(lambda: len(receiver.of("works")) == 8, "one more")
    await finished(sql)
    back = (await shop("GET", f"/app/shop/{path}?limit=3&iterator={pages[2]['prevIterator']}")).body
    assert [each["id"] for each in back["data"]] == everything[3:6]
    back = (await shop("GET", f"/app/shop/{path}?limit=3&iterator={back['prevIterator']}")).body
    assert [each["id"] for each in back["data"]] == everything[:3]
    at = quote(pages[1]["data"][0]["timestamp"])
    assert await ids(shop, f"{path}?before={at}") == everything[4:]
    assert (await ids(shop, f"{path}?after={at}"))[1:] == everything[:4]
    assert (await shop("GET", "/app/shop/attempt/endpoint/none")).status == 404


async def test_few_fit_of_many_that_are_looked_at(shop: Client, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await sql.fetchval("SELECT id FROM webhookd.endpoint WHERE uid = 'works'")
    # 7,000 attempts, of which the oldest is the only one that failed.
    await sql.execute(
        """WITH made AS (
             INSERT INTO webhookd.outbox (type, payload, tenant)
             SELECT 'never.wanted', '{}', 'shop' FROM generate_series(1, 7000) RETURNING id)
           INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok, code, ms)
           SELECT now() - interval '1 hour' + id * interval '1 ms', id, $1, 1, id > (SELECT min(id) FROM made), 200, 1
             FROM made""",
        endpoint,
    )
    path = "/app/shop/attempt/endpoint/works?status=2"
    first = (await shop("GET", path)).body
    assert (first["data"], first["done"]) == ([], False)
    then = (await shop("GET", f"{path}&iterator={first['iterator']}")).body
    assert (len(then["data"]), then["done"]) == (1, True)
    # And back to where it came from.
    there = (await shop("GET", f"{path}&iterator={then['prevIterator']}")).body
    assert (there["data"], there["done"]) == ([], False)


async def test_what_became_of_messages_at_an_endpoint(shop: Client, sql: Sql, receiver: Receiver) -> None:
    sent = [await emit(shop, "works", type_=f"type.{n % 2}", eventId=f"e-{n}") for n in range(5)][::-1]
    await emit(shop, "twice")
    await until(lambda: len(receiver.of("works")) == 5, "all")
    await finished(sql)
    await shop("POST", "/app/shop/endpoint/works/pause")
    waits = await emit(shop, "works", deliverAt=None)

    async def page(query: str = "") -> dict[str, Any]:
        found: dict[str, Any] = (await shop("GET", f"/app/shop/endpoint/works/msg{query}")).body
        return found

    await until(lambda: receiver.of("twice"), "the other")
    for _ in range(100):
        found = await page()
        if len(found["data"]) == 6:
            break
    assert [(each["id"], each["status"], each["state"]) for each in found["data"]] == [
        (waits, 1, "parked"),
        *((event, 0, "delivered") for event in sent),
    ]
    assert found["data"][1]["eventId"] == "e-4"
    assert (found["data"][1]["payload"], found["data"][1]["channels"]) == ({"n": 1}, ["works"])
    assert (await page("?with_content=false"))["data"][1]["payload"] == {}
    for query, many in {
        "status=0": 5, "status=1": 1, "status=2": 0, "event_types=type.1": 2, "limit=2": 6, "channel=twice": 0,
    }.items():  # fmt: skip
        assert len(await ids(shop, f"endpoint/works/msg?{query}")) == many, query
    two = await page("?limit=2")
    next_ = await page(f"?limit=2&iterator={two['iterator']}")
    assert [each["id"] for each in next_["data"]] == sent[1:3]
    assert (await page(f"?limit=2&iterator={next_['prevIterator']}"))["data"] == two["data"]
    assert (await shop("GET", "/app/shop/endpoint/works/msg?iterator=none")).status == 422


async def test_what_became_of_a_message_at_its_endpoints(shop: Client, sql: Sql, receiver: Receiver) -> None:
    receiver.answers("twice", 500)
    event = await emit(shop, "works", "twice")
    await until(lambda: len(receiver.of("twice")) > 1, "a second try")
    for limit in (1, 50):
        found, iterator = [], ""
        for _ in range(4):
            page = (await shop("GET", f"/app/shop/msg/{event}/endpoint?limit={limit}{iterator}")).body
            found += page["data"]
            if page["done"]:
                break
            iterator = f"&iterator={page['iterator']}"
        assert [
            (each["uid"], each["status"], each["statusText"]) for each in sorted(found, key=lambda e: e["uid"])
        ] == [
            ("twice", 3, "sending"),
            ("works", 0, "success"),
        ]
        again = next(each for each in found if each["uid"] == "twice")
        assert again["nextAttempt"] is not None
        assert again["url"] == receiver.url("twice")
    await shop("DELETE", "/app/shop/endpoint/twice")
    page = (await shop("GET", f"/app/shop/msg/{event}/endpoint")).body
    assert [each["uid"] for each in page["data"]] == ["works"]


async def test_few_were_delivered_of_many_that_were_tried_often(shop: Client, sql: Sql) -> None:
    """Only attempts tell what was delivered: a page looks at 500 events, and the next one goes on behind them."""
    endpoint = await sql.fetchval("SELECT id FROM webhookd.endpoint WHERE uid = 'works'")
    await sql.execute(
        """WITH made AS (
             INSERT INTO webhookd.outbox (type, payload, tenant)
             SELECT 'never.wanted', '{}', 'shop' FROM generate_series(1, 501) RETURNING id)
           INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok, code, ms)
           SELECT now() + n * interval '1 s', id, $1, n, n = 3 AND id = (SELECT min(id) FROM made), 200, 1
             FROM made CROSS JOIN generate_series(1, 3) n""",
        endpoint,
    )
    path = "/app/shop/endpoint/works/msg?status=0"
    first = (await shop("GET", path)).body
    assert (first["data"], first["done"]) == ([], False)
    then = (await shop("GET", f"{path}&iterator={first['iterator']}")).body
    assert (len(then["data"]), then["done"]) == (1, True)
    assert len((await shop("GET", "/app/shop/endpoint/works/msg?limit=250")).body["data"]) == 250


async def test_what_an_operator_has_for_all_no_tenant_sees(
    dsn: str, sql: Sql, receiver: Receiver, shop: Client
) -> None:
    event = await emit(shop, "works")
    await until(lambda: receiver.of("works"), "it")
    await finished(sql)
    number = await sql.fetchval(
        "INSERT INTO webhookd.endpoint (tenant, name, source, spec) VALUES ('*', 'all', 'file', $1) RETURNING id",
        json.dumps({**NEW, "url": "https://inside.example/"}),
    )
    outbox = await sql.fetchval("SELECT id FROM webhookd.outbox WHERE event_id = $1", event)
    await sql.execute(
        "INSERT INTO webhookd.attempt (outbox_id, endpoint_id, attempt, ok, code, ms) VALUES ($1, $2, 1, true, 200, 1)",
        outbox,
        number,
    )
    tenant = (await shop("GET", "/app/shop")).body["id"]
    portal = shop.with_token(await a_token(dsn, "portal", tenant, ("ViewBase",)))
    path = f"/app/shop/attempt/msg/{event}"
    seen = (await shop("GET", path)).body["data"]
    assert sorted(each["endpointId"] == "all" for each in seen) == [False, True]
    hidden = next(each["id"] for each in seen if each["endpointId"] == "all")
    assert ["all" not in each["endpointId"] for each in (await portal("GET", path)).body["data"]] == [True]
    assert (await portal("GET", f"/app/shop/msg/{event}/attempt/{hidden}")).status == 404
    assert (await shop("GET", f"/app/shop/msg/{event}/attempt/{hidden}")).status == 200
    for path in ("/app/shop/attempt/endpoint/all", "/app/shop/endpoint/all/msg"):
        assert ((await shop("GET", path)).status, (await portal("GET", path)).status) == (200, 404)
    both = [
        [each["id"] == "all" for each in (await who("GET", f"/app/shop/msg/{event}/endpoint")).body["data"]]
        for who in (shop, portal)
    ]
    assert (sorted(both[0]), both[1]) == ([False, True], [False])


async def test_events_that_are_gone_are_left_out(shop: Client, sql: Sql, receiver: Receiver) -> None:
    event = await emit(shop, "works")
    await insert(sql, tenant="shop")
    await until(lambda: receiver.of("works"), "it")
    await finished(sql)
    assert len(await ids(shop, "attempt/endpoint/works")) == 1
    await shop("DELETE", f"/app/shop/msg/{event}/content")
    assert await ids(shop, "attempt/endpoint/works") == []
    assert await ids(shop, "endpoint/works/msg") == []


@pytest.mark.usefixtures("granted")
async def test_it_is_read_with_no_more_rights_than_a_daemon_has(dsn: str, sql: Sql) -> None:
    """Also from partitions that were made when the rights had been given."""
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date()
    for parent in ("outbox", "attempt"):
        await sql.execute(
            f"CREATE TABLE webhookd.{parent}_later PARTITION OF webhookd.{parent}"
            f" FOR VALUES FROM ('{yesterday} 00:00:00+00') TO ('{yesterday} 23:00:00+00')"
        )
    await sql.execute(
        "INSERT INTO webhookd.endpoint (tenant, name, source, spec) VALUES ('', 'hook', 'file', $1)", SPEC
    )
    await sql.execute(
        f"""WITH made AS (
              INSERT INTO webhookd.outbox (type, payload, event_id, created_at)
              VALUES ('a', '{{}}', 'old', '{yesterday} 12:00+00'), ('a', '{{}}', 'new', now()) RETURNING id, created_at)
            INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok, code, ms)
            SELECT created_at, id, 1, 1, true, 200, 1 FROM made"""
    )
    async with (
        Database(as_user(dsn, "webhookd_daemon"), size=2) as database,
        serve(Api(database, Around(Settings())).answer, "127.0.0.1:0", {}, "[api]") as url,
        ClientSession() as session,
    ):
        client = Client(session, url, await a_token(dsn, "admin"))
        (new, old) = (await client("GET", "/app/default/attempt/endpoint/hook")).body["data"]
        assert (new["msgId"], old["msgId"]) == ("new", "old")
        parts = {"app_id": "default", "endpoint_id": "hook", "msg_id": "old", "attempt_id": old["id"]}
        for operation in OPERATIONS:
            if operation.method == "GET" and "{" not in operation.path.format_map(defaultdict(lambda: "{", parts)):
                answered = await client("GET", operation.path.format(**parts))
                wanted = {"v1.health.get": 204, "v1.endpoint.get-secret": 403}  # which files' are never shown
                wanted |= {"v1.message.poller.poll": 409, "v1.authentication.get-poller-token": 409}  # it is sent to
                assert answered.status == wanted.get(operation.id, 200), (operation.id, answered)
        assert (await client("DELETE", f"/app/default/msg/old/attempt/{old['id']}/content")).status == 204
