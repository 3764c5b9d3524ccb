"""A message is one INSERT, byte for byte."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import ClientSession

from tests.integration.conftest import Receiver, Running, Sql, configuration
from tests.integration.web.conftest import Client, a_token
from tests.waiting import until
from webhookd.config.schema import Api as Settings
from webhookd.store.database import Database
from webhookd.store.erasure import pieces
from webhookd.web.api import Api
from webhookd.web.operation import Around
from webhookd.web.server import serve


@pytest.fixture
async def shop(api: Client) -> Client:
    await api("POST", "/app", {"name": "Shop", "uid": "shop"})
    return api


async def test_it_is_in_the_outbox_as_it_came(shop: Client, sql: Sql) -> None:
    payload = '{ "n": 1.10, "long": 123456789012345678901234567890, "a": 1, "a": 2, "s": "\\u0000 \\ud800 é" }'
    rest = '"orderingKey": "o-1", "channels": ["a"], "tags": ["b c"]'
    body = f'{{"eventType": "order.created", "payload": {payload}, {rest}}}'
    made = await shop("POST", "/app/shop/msg", body.encode())
    assert made.status == 202
    row = await sql.fetchrow("SELECT * FROM webhookd.outbox")
    assert row is not None
    assert (row["event_id"], row["type"], row["tenant"], row["payload"], row["ordering_key"]) == (
        made.body["id"], "order.created", "shop", payload, "o-1",
    )  # fmt: skip
    assert json.loads(row["metadata"]) == {"channels": ["a"], "tags": ["b c"]}
    assert (made.body["eventType"], made.body["channels"], made.body["tags"]) == ("order.created", ["a"], ["b c"])
    assert made.body["payload"]["a"] == 2
    assert (await shop("GET", f"/app/shop/msg/{made.body['id']}")).body == made.body


async def test_it_is_delivered(shop: Client, receiver: Receiver, daemon: Running) -> None:
    config = configuration({"hook": {"url": receiver.url("hook"), "tenant": "shop", "format": "raw"}})
    async with daemon(config):
        made = await shop("POST", "/app/shop/msg", b'{"eventType": "order.created", "payload": {"n": 1.10}}')
        await until(lambda: bool(receiver.got), "it")
    assert (receiver.got[0].event_id, receiver.got[0].body) == (made.body["id"], b'{"n": 1.10}')


async def test_a_uid_is_as_long_as_a_tenant_of_the_outbox_may_be(api: Client) -> None:
    uid = "x" * 255
    assert (await api("POST", "/app", {"name": "a", "uid": uid})).status == 201
    assert (await api("POST", f"/app/{uid}/msg", {"eventType": "a", "payload": {}})).status == 202


async def test_metadata_is_byte_for_byte_too(shop: Client, sql: Sql) -> None:
    metadata = '{ "n": 1.10, "long": 123456789012345678901234567890, "channels": ["theirs"] }'
    for more, end in (("", ""), (', "channels": ["a"]', ',"channels":["a"]}')):
        await shop(
            "POST", "/app/shop/msg", f'{{"eventType": "a", "metadata": {metadata}, "payload": {{}}{more}}}'.encode()
        )
        found = await sql.fetchval("SELECT metadata FROM webhookd.outbox ORDER BY id DESC LIMIT 1")
        assert found == (metadata[:-1].rstrip() + end if end else metadata)


async def test_who_takes_a_key_has_its_own_ids(api: Client) -> None:
    body = {"eventType": "a", "eventId": "evt", "payload": {}, "application": {"name": "a"}}
    first = (await api("POST", "/app/shop/msg", body)).body["id"]
    await api("DELETE", "/app/shop")
    second = await api("POST", "/app/shop/msg", body)
    assert second.status == 202
    assert (await api("GET", "/app/shop/msg/evt")).body["id"] == second.body["id"] != first
    assert (await api("POST", "/app/shop/msg", body)).status == 409


async def test_what_no_receiver_would_get_is_refused(dsn: str) -> None:
    """A payload above [delivery] max_payload, and all else that is long."""
    async with (
        Database(dsn) as database,
        serve(Api(database, Around(Settings(), 1_000)).answer, "127.0.0.1:0", {}, "[api]") as url,
        ClientSession() as session,
    ):
        client = Client(session, url, await a_token(dsn, "admin"))
        for size, status in ((1_000, 202), (1_001, 413)):
            payload = json.dumps({"a": "x" * (size - 9)})
            reply = await client("POST", "/app/default/msg", f'{{"eventType": "a", "payload": {payload}}}'.encode())
            assert reply.status == status, reply
        long = await client("POST", "/app/default/msg", {"eventType": "a", "payload": {}, "else": "x" * 65_600})
        assert (long.status, long.body["code"]) == (413, "too_large")


async def test_its_callers_id_is_taken_once(shop: Client, sql: Sql) -> None:
    body = {"eventType": "order.created", "eventId": "evt.1", "payload": {}}
    made = await shop("POST", "/app/shop/msg", body)
    assert made.body["eventId"] == "evt.1"
    again = await shop("POST", "/app/shop/msg", body)
    assert (again.status, again.body["code"]) == (409, "conflict")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 1
    assert (await shop("GET", "/app/shop/msg/evt.1")).body == made.body
    await shop("POST", "/app", {"name": "Other", "uid": "other"})
    assert (await shop("POST", "/app/other/msg", body)).status == 202
    assert (await shop("GET", "/app/other/msg/evt.1")).body["id"] != made.body["id"]
    assert (await shop("GET", f"/app/other/msg/{made.body['id']}")).status == 404


@pytest.mark.parametrize("of_tenant", [True, False])
async def test_what_it_was_called_is_erased_with_it(shop: Client, sql: Sql, dsn: str, of_tenant: bool) -> None:
    made = await shop("POST", "/app/shop/msg", {"eventType": "a", "eventId": "mine", "payload": {}})
    wanted = {"tenant": "shop"} if of_tenant else {"event_id": made.body["id"]}
    async with Database(dsn, size=1) as database:
        for dry_run, left in ((True, 1), (False, 0)):
            async for _ in pieces(database, "test", **wanted, dry_run=dry_run):
                pass
            assert await sql.fetchval("SELECT count(*) FROM webhookd.event_alias") == left
    assert (await shop("GET", "/app/shop/msg/mine")).status == 404


async def test_what_it_was_called_goes_with_it(shop: Client, sql: Sql) -> None:
    await shop("POST", "/app/shop/msg", {"eventType": "a", "eventId": "mine", "payload": {}})
    await sql.execute("UPDATE webhookd.event_alias SET at = now() - interval '6 days'")
    await sql.execute("SELECT webhookd.sweep()")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.event_alias") == 1
    await sql.execute("UPDATE webhookd.event_alias SET at = now() - interval '8 days'")
    await sql.execute("SELECT webhookd.sweep()")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.event_alias") == 0


async def test_not_before_its_time(shop: Client, sql: Sql) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    made = await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}, "deliverAt": at.isoformat()})
    assert datetime.fromisoformat(made.body["deliverAt"]) == at
    assert await sql.fetchval("SELECT deliver_after FROM webhookd.outbox") == at


async def test_an_application_is_made_on_the_way(api: Client, sql: Sql) -> None:
    body = {"eventType": "a", "payload": {}, "application": {"name": "New"}}
    assert (await api("POST", "/app/new/msg", {"eventType": "a", "payload": {}})).status == 404
    for _ in range(2):
        assert (await api("POST", "/app/new/msg", body)).status == 202
    assert [row["tenant"] for row in await sql.fetch("SELECT DISTINCT tenant FROM webhookd.outbox")] == ["new"]
    assert (await api("GET", "/app/new")).body["name"] == "New"


async def test_a_producer_makes_no_application_on_the_way(as_role: dict[str, Client]) -> None:
    body = {"eventType": "a", "payload": {}, "application": {"name": "New"}}
    assert (await as_role["producer"]("POST", "/app/new/msg", body)).status == 403
    assert (await as_role["producer"]("POST", "/app/default/msg", body)).status == 202


async def test_without_content(shop: Client) -> None:
    made = await shop("POST", "/app/shop/msg?with_content=false", {"eventType": "a", "payload": {"x": 1}})
    assert made.body["payload"] == {}
    path = f"/app/shop/msg/{made.body['id']}"
    assert (await shop("GET", f"{path}?with_content=false")).body["payload"] == {}
    assert (await shop("GET", path)).body["payload"] == {"x": 1}


async def test_a_payload_that_is_no_object_is_shown_in_one(shop: Client, sql: Sql) -> None:
    id_ = await sql.fetchval(
        "INSERT INTO webhookd.outbox (type, payload, tenant) VALUES ('a', '[1]', 'shop') RETURNING event_id"
    )
    assert (await shop("GET", f"/app/shop/msg/{id_}")).body["payload"] == {"data": [1]}


@pytest.mark.parametrize(
    ("body", "status", "where"),
    [
        (b"", 422, ["body"]),
        (b"{", 422, ["body"]),
        (b'{"eventType": "a"}', 422, ["body", "payload"]),
        (b'{"eventType": "a", "payload": 7}', 422, ["body", "payload"]),
        (b'{"eventType": "a", "payload": null}', 422, ["body", "payload"]),
        (b'{"eventType": "a b", "payload": {}}', 422, ["body", "eventType"]),
        (b'{"eventType": "webhookd.mine", "payload": {}}', 422, ["body", "eventType"]),
        (b'{"payload": {}}', 422, ["body", "eventType"]),
        (b'{"eventType": "a" "payload": {}}', 422, ["body"]),
        (b'{"eventType": "a", "payload": {}, "deliverAt": "soon"}', 422, ["body", "deliverAt"]),
        (b'{"eventType": "a", "payload": {}, "deliverAt": "2030-01-31T08:00:00"}', 422, ["body", "deliverAt"]),
        (b'{"eventType": "a", "payload": {}, "channels": []}', 422, ["body", "channels"]),
        (b'{"eventType": "a", "payload": {}, "metadata": []}', 422, ["body", "metadata"]),
        (b'{"eventType": "a", "pay\\u006coad": {}}', 422, ["body", "payload"]),
        (b'{"eventType": "a", "payload": {}, "tags": ["a\\u0000"]}', 422, ["body", "tags", "0"]),
        (b'{"eventType": "a", "payload": {"a": NaN}}', 400, None),
        (b'{"eventType": "a", "payload": {"a": }}', 400, None),
        (b'{"eventType": "a", "payload": {"a" 1}}', 400, None),
        (b'{"eventType": "a", "payload": {"a": "\xff"}}', 400, None),
        (b'{"eventType": "a", "payload": ' + b"[" * 200_000, 400, None),
        (b'{"eventType": "a", "metadata": {"x": "' + b"x" * 20_000 + b'"}, "payload": {}}', 400, None),
    ],
)
async def test_what_is_wrong_inserts_nothing(
    shop: Client, sql: Sql, body: bytes, status: int, where: list[str] | None
) -> None:
    reply = await shop("POST", "/app/shop/msg", body)
    assert reply.status == status, reply
    if where is not None:
        assert reply.body["detail"][0]["loc"] == where
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 0
