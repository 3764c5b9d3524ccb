"""The same request twice does one thing, and is answered the same."""

import asyncio

import pytest

from tests.conftest import connected
from tests.integration.conftest import Sql, eventually
from tests.integration.web.conftest import Client
from webhookd.web import api as api_module

MESSAGE = {"eventType": "order.created", "payload": {"n": 1}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/app", {"name": "a"}),
        ("/app", {"name": "a", "uid": "shop"}),
        ("/event-type", {"name": "order.created", "description": "x"}),
        ("/app/default/msg", MESSAGE),
        ("/app/default/msg", {**MESSAGE, "eventId": "evt"}),
        ("/app/new/msg", {**MESSAGE, "application": {"name": "New"}}),
    ],
)
async def test_it_is_done_once(api: Client, sql: Sql, path: str, body: object) -> None:
    replies = await asyncio.gather(*(api("POST", path, body, idempotency_key="key") for _ in range(6)))
    assert {(reply.status, str(reply.body)) for reply in replies} == {(replies[0].status, str(replies[0].body))}
    assert replies[0].status in (201, 202)
    assert (await api("POST", path, body, idempotency_key="key")).body == replies[0].body
    for table in ("outbox", "event_type", "tenant WHERE key <> ''"):
        assert await sql.fetchval(f"SELECT count(*) FROM webhookd.{table}") <= 1
    another = await api("POST", path, body, idempotency_key="other")
    assert another.body.get("id") != replies[0].body.get("id", "a type has none")


async def test_the_same_key_for_another_body_is_refused(api: Client) -> None:
    await api("POST", "/app/default/msg", MESSAGE, idempotency_key="key")
    reply = await api("POST", "/app/default/msg", {**MESSAGE, "payload": {"n": 2}}, idempotency_key="key")
    assert (reply.status, reply.body["code"]) == (409, "key_reused")


async def test_a_key_is_its_tokens_own_and_of_a_path(api: Client, as_role: dict[str, Client], sql: Sql) -> None:
    await api("POST", "/app", {"name": "a", "uid": "other"})
    for client, path in ((api, "default"), (api, "other"), (as_role["producer"], "default")):
        assert (await client("POST", f"/app/{path}/msg", MESSAGE, idempotency_key="key")).status == 202
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 3


async def test_what_failed_may_be_done_with_the_same_key(api: Client) -> None:
    assert (await api("POST", "/app/new/msg", MESSAGE, idempotency_key="key")).status == 404
    await api("POST", "/app", {"name": "a", "uid": "new"})
    assert (await api("POST", "/app/new/msg", MESSAGE, idempotency_key="key")).status == 202


async def test_what_is_kept_says_nothing_of_it(api: Client, sql: Sql) -> None:
    made = await api("POST", "/app/default/msg", MESSAGE, idempotency_key="key")
    (row,) = await sql.fetch("SELECT * FROM webhookd.request")
    assert (row["status"], row["made"], len(row["key"]), len(row["body"])) == (202, made.body["id"], 32, 32)


async def test_after_twelve_hours_it_is_another(api: Client, sql: Sql) -> None:
    first = await api("POST", "/app/default/msg", MESSAGE, idempotency_key="key")
    await sql.execute("UPDATE webhookd.request SET at = at - interval '12 hours 1 second'")
    assert (await api("POST", "/app/default/msg", MESSAGE, idempotency_key="key")).body["id"] != first.body["id"]


async def test_the_second_does_not_wait_for_ever(api: Client, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "TWICE_SECONDS", 0.3)
    named = {**MESSAGE, "eventId": "evt"}
    async with sql.transaction():  # an event of that name is on its way, and its end is not known
        await sql.execute("INSERT INTO webhookd.event_alias (tenant, alias, event_id) VALUES ('', 'evt', 'x')")
        first = asyncio.create_task(api("POST", "/app/default/msg", named, idempotency_key="k"))

        async def is_under_way() -> bool:
            here = "SELECT oid FROM pg_database WHERE datname = current_database()"
            held = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = ({here})"
            return bool(await sql.fetchval(held))

        await eventually(is_under_way, "the first")
        second = await api("POST", "/app/default/msg", named, idempotency_key="k")
        assert (second.status, second.body["code"]) == (409, "under_way")
    assert (await first).status in (202, 409)


async def test_what_has_gone_since_is_404(api: Client) -> None:
    await api("POST", "/app", {"name": "a", "uid": "shop"})
    assert (await api("POST", "/app/shop/msg", MESSAGE, idempotency_key="key")).status == 202
    await api("DELETE", "/app/shop")
    assert (await api("POST", "/app/shop/msg", MESSAGE, idempotency_key="key")).status == 404


async def test_a_key_may_be_any_bytes(api: Client, sql: Sql) -> None:
    host, _, port = api.url.removeprefix("http://").rpartition(":")
    for _ in range(2):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /api/v1/app HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.token}\r\n".encode()
            + b'idempotency-key: \xe9\xff\r\ncontent-length: 13\r\n\r\n{"name": "a"}'
        )
        assert (await reader.readline()).split()[1] == b"201"
        writer.close()
    assert await sql.fetchval("SELECT count(*) FROM webhookd.tenant WHERE name = 'a'") == 1


async def test_slots_are_emptied_before_their_hour_unless_somebody_reads(api: Client, sql: Sql, dsn: str) -> None:
    await sql.execute(
        "INSERT INTO webhookd.request (slot, key, body, status)"
        " SELECT DISTINCT webhookd.request_slot(now() + n * interval '1 hour'), 'old'::bytea, ''::bytea, 202"
        " FROM generate_series(2, 3) n"
    )
    async with connected(dsn) as reader, reader.transaction():
        await reader.fetch("SELECT FROM webhookd.request")
        await sql.execute("SELECT webhookd.forget_requests()")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.request WHERE key = 'old'") == 2
    await sql.execute("SELECT webhookd.forget_requests()")
    assert (
        await sql.fetchval("SELECT count(*) FROM webhookd.request WHERE key = 'old'") <= 1
    )  # the hour may have turned


@pytest.mark.parametrize("key", ["", "x" * 257])
async def test_a_bad_key_is_refused(api: Client, key: str) -> None:
    assert (await api("POST", "/app", {"name": "a"}, idempotency_key=key)).status == 400
