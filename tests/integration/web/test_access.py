"""Who may do what, by HTTP."""

import asyncio
from collections import defaultdict

import pytest
from aiohttp import ClientSession

from tests.integration.conftest import Sql
from tests.integration.web.conftest import Client, a_token
from webhookd.config.schema import Api as Settings
from webhookd.store.database import Database
from webhookd.store.tokens import hash_of
from webhookd.web import recent
from webhookd.web.api import Api
from webhookd.web.operation import Around
from webhookd.web.server import serve
from webhookd.web.table import OPERATIONS

BODIES = {
    "v1.application.create": {"name": "a"},
    "v1.application.update": {"name": "a"},
    "v1.application.patch": {"name": "a"},
    "v1.event-type.create": {"name": "made.now", "description": ""},
    "v1.event-type.update": {"description": ""},
    "v1.event-type.patch": {},
    "v1.message.create": {"eventType": "a", "payload": {}},
    "v1.token.create": {"role": "read", "name": "a"},
    "v1.endpoint.create": {"url": "https://a.example/"},
    "v1.endpoint.update": {"url": "https://a.example/"},
    "v1.endpoint.patch": {},
    "v1.endpoint.rotate-secret": {},
    "v1.endpoint.update-headers": {"headers": {}},
    "v1.endpoint.patch-headers": {"headers": {}},
    "v1.endpoint.send-example": {"eventType": "a"},
    "v1.endpoint.recover": {"since": "2020-01-01T00:00:00Z"},
    "v1.message.poller.consumer-seek": {"after": "2020-01-01T00:00:00Z"},
    "v1.authentication.rotate-poller-token": {},
    "v1.endpoint.replay-missing": {"since": "2020-01-01T00:00:00Z"},
    "v1.endpoint.bulk-replay": {"since": "2020-01-01T00:00:00Z"},
}


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.right is not None], ids=lambda each: each.id)
async def test_each_operation_is_for_who_has_its_right(as_role: dict[str, Client], operation: object) -> None:
    id_, method, path = operation.id, operation.method, operation.path  # type: ignore[attr-defined]
    path = path.format_map(defaultdict(lambda: "none", app_id="default"))
    for role, client in reversed(as_role.items()):  # the portal's before an administrator ends it
        reply = await client(method, path, BODIES.get(id_))
        rights = {
            "admin": True,
            "operator": operation.right.name not in ("TOKENS", "SEE_SECRETS", "CHANGE_SECRETS", "ERASE"),  # type: ignore[attr-defined]
            "read": operation.right.name == "LOOK",  # type: ignore[attr-defined]
            "producer": operation.right.name == "EMIT",  # type: ignore[attr-defined]
            "poll": operation.right.name == "POLL",  # type: ignore[attr-defined]
            "portal": operation.right.name not in ("TENANTS", "TOKENS", "ERASE", "EMIT", "POLL")  # type: ignore[attr-defined]
            and (operation.of_tenant or operation.for_all),  # type: ignore[attr-defined]
        }
        assert (reply.status != 403) == rights[role], (role, reply)
        assert reply.status not in (401, 500)


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.right is not None], ids=lambda each: each.id)
async def test_nobody_is_401(api: Client, operation: object) -> None:
    path = operation.path.format_map(defaultdict(lambda: "x", app_id="default"))  # type: ignore[attr-defined]
    for token in (None, "", "whtk_wrong", "x" * 5_000):
        reply = await api.with_token(token)(operation.method, path, b"{")  # type: ignore[attr-defined]
        assert (reply.status, reply.body["code"]) == (401, "authentication_failed")
        assert reply.headers["www-authenticate"] == "Bearer"


async def test_a_tenants_token_sees_that_tenant_alone(api: Client, dsn: str) -> None:
    mine = (await api("POST", "/app", {"name": "a", "uid": "mine"})).body["id"]
    await api("POST", "/app", {"name": "b", "uid": "theirs"})
    token = api.with_token(await a_token(dsn, "admin", mine))
    assert (await token("GET", "/app/mine")).status == 200
    assert (await token("GET", "/app/theirs")).status == 404
    assert (await token("GET", "/app/nothing")).status == 404
    assert (await token("POST", "/app/theirs/msg", {"eventType": "a", "payload": {}})).status == 404
    assert (
        await token("POST", "/app/new/msg", {"eventType": "a", "payload": {}, "application": {"name": "n"}})
    ).status == 404
    assert (await token("PUT", "/app/new", {"name": "n"})).status == 403
    assert (await token("PATCH", "/app/mine", {"rateLimit": None})).status == 403
    assert (await token("DELETE", "/app/mine")).status == 403
    assert (await token("GET", "/token")).status == 403
    assert (await token("GET", "/app")).status == 403
    assert (await token("POST", "/app", {"name": "c"})).status == 403
    assert (await api("GET", "/app/new")).status == 404


async def test_a_token_ends_with_its_tenant_by_revoking_and_with_time(
    api: Client, dsn: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "SECONDS", 0.0)
    mine = (await api("POST", "/app", {"name": "a", "uid": "mine"})).body["id"]
    of_tenant, revoked, expired = [await a_token(dsn, "read", tenant) for tenant in (mine, None, None)]
    for token in (of_tenant, revoked, expired):
        assert (await api.with_token(token)("GET", "/app/mine")).status == 200
    await api("DELETE", "/app/mine")
    id_ = await sql.fetchval("SELECT id FROM webhookd.token WHERE hash = $1", hash_of(revoked))
    assert (await api("DELETE", f"/token/{id_}")).status == 204
    assert (await api("DELETE", f"/token/{id_}")).status == 404
    await sql.execute("UPDATE webhookd.token SET expires_at = now() WHERE hash = $1", hash_of(expired))
    for token in (of_tenant, revoked, expired):
        assert (await api.with_token(token)("GET", "/event-type")).status == 401


async def test_a_token_is_shown_once_and_kept_nowhere(api: Client, sql: Sql) -> None:
    body = {"role": "portal", "name": "a", "appId": "default", "capabilities": ["ViewBase"], "expiry": 3600}
    made = await api("POST", "/token", body, idempotency_key="k")
    assert made.status == 201
    assert (await api.with_token(made.body["token"])("GET", "/app/default")).status == 200
    again = await api("POST", "/token", body, idempotency_key="k")
    assert again.body == {"id": made.body["id"], "token": None}
    (listed,) = [each for each in (await api("GET", "/token")).body["data"] if each["id"] == made.body["id"]]
    assert (listed["role"], listed["appId"], listed["capabilities"]) == ("portal", "default", ["ViewBase"])
    assert "token" not in listed
    rows = await sql.fetch(
        "SELECT row_to_json(t)::text FROM webhookd.token t UNION ALL SELECT row_to_json(a)::text FROM webhookd.audit a"
    )
    assert not any(made.body["token"] in row for (row,) in rows)


@pytest.mark.parametrize(
    "body",
    [
        {"role": "king", "name": "a"},
        {"role": "portal", "name": "a"},
        {"role": "read", "name": "a", "capabilities": ["ViewBase"]},
        {"role": "portal", "name": "a", "appId": "default", "capabilities": ["All"]},
        {"role": "read", "name": "a", "appId": "none"},
    ],
)
async def test_a_token_that_makes_no_sense_is_422(api: Client, body: object) -> None:
    assert (await api("POST", "/token", body)).status == 422


async def test_tokens_of_a_file_count_too(dsn: str) -> None:
    settings = Settings.model_construct(tokens_file={hash_of("a-token-of-a-file-000"): "read"})
    async with (
        Database(dsn) as database,
        serve(Api(database, Around(settings)).answer, "127.0.0.1:0", {}, "[api]") as url,
        ClientSession() as session,
    ):
        client = Client(session, url, "a-token-of-a-file-000")
        assert (await client("GET", "/app")).status == 200
        assert (await client("POST", "/app", {"name": "a"})).status == 403


async def test_asking_is_noted_at_most_once_a_minute(api: Client, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "SECONDS", 0.0)
    await api("GET", "/app")
    used = await sql.fetchval("SELECT used_at FROM webhookd.token")
    assert used is not None
    await asyncio.gather(*(api("GET", "/app") for _ in range(5)))
    assert await sql.fetchval("SELECT used_at FROM webhookd.token") == used
