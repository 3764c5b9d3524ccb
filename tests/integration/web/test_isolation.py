"""Of two tenants neither sees, changes or sends anything of the other's, by whatever route, id or iterator."""

import itertools
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientSession

from tests.integration.conftest import Receiver, Running, Sql, finished
from tests.integration.web.conftest import Client, a_token
from tests.integration.web.test_endpoints import config
from tests.waiting import until
from webhookd.policy.access import CAPABILITIES, Right
from webhookd.web.operation import Operation
from webhookd.web.table import OPERATIONS

BODIES: Mapping[str, Any] = {
    "v1.application.update": {"name": "x"},
    "v1.application.patch": {"name": "x"},
    "v1.endpoint.create": {"url": "http://127.0.0.1:1/x"},
    "v1.endpoint.update": {"url": "http://127.0.0.1:1/x"},
    "v1.endpoint.patch": {"description": "x"},
    "v1.endpoint.rotate-secret": {},
    "v1.endpoint.update-headers": {"headers": {}},
    "v1.endpoint.patch-headers": {"headers": {"X-A": "1"}},
    "v1.endpoint.send-example": {"eventType": "a"},
    "v1.endpoint.test": {},
    "v1.endpoint.recover": {"since": "2020-01-01T00:00:00Z"},
    "v1.endpoint.replay-missing": {"since": "2020-01-01T00:00:00Z"},
    "v1.endpoint.bulk-replay": {"since": "2020-01-01T00:00:00Z"},
    "v1.message.create": {"eventType": "a", "payload": {}},
    "v1.message.poller.consumer-seek": {"after": "2020-01-01T00:00:00Z"},
    "v1.authentication.rotate-poller-token": {},
    "v1.authentication.app-portal-access": {},
    "v1.authentication.expire-all": {},
}
PARTS = ("app_id", "endpoint_id", "msg_id", "attempt_id", "task_id")
OF_TENANTS = [each for each in OPERATIONS if each.of_tenant or "{task_id}" in each.path]


class Tenant(NamedTuple):
    """What one has: ids for the parts of paths, what it called them itself, and who asks."""

    ids: Mapping[str, str]
    names: Mapping[str, str]
    portal: Client


@pytest.fixture
async def tenants(
    dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> AsyncIterator[tuple[Tenant, Tenant, Client]]:
    async with daemon(config(receiver)) as running, ClientSession() as session:
        admin, found = Client(session, running.api_url, await a_token(dsn, "admin")), []
        for uid in ("one", "two"):
            app = (await admin("POST", "/app", {"name": uid, "uid": uid})).body["id"]
            hook = {"url": receiver.url(uid), "uid": f"hook-{uid}"}
            endpoint = (await admin("POST", f"/app/{uid}/endpoint", hook)).body["id"]
            for n in range(3):
                said = {"eventType": "a", "payload": {"of": uid}, "eventId": f"event-{uid}-{n}"}
                message = (await admin("POST", f"/app/{uid}/msg", said)).body["id"]
            await until(lambda uid=uid: len(receiver.of(uid)) == 3, "all of them")  # type: ignore[misc]
            await finished(sql)
            attempt = (await admin("GET", f"/app/{uid}/attempt/msg/{message}")).body["data"][0]["id"]
            span = {"since": "2020-01-01T00:00:00Z"}
            task = (await admin("POST", f"/app/{uid}/endpoint/{endpoint}/recover", span)).body["id"]
            ids = dict(zip(PARTS, (app, endpoint, message, attempt, task), strict=True))
            names = {**ids, "app_id": uid, "endpoint_id": f"hook-{uid}", "msg_id": f"event-{uid}-2"}
            found.append(Tenant(ids, names, admin.with_token(await a_token(dsn, "portal", app, tuple(CAPABILITIES)))))
        yield found[0], found[1], admin


def parts_of(operation: Operation) -> list[str]:
    return [part[1:-1] for part in operation.path.split("/") if part.startswith("{") and part != "{consumer_id}"]


async def test_whatever_is_asked_of_another(
    tenants: tuple[Tenant, Tenant, Client], sql: Sql, receiver: Receiver
) -> None:
    mine, other, _ = tenants
    before = await everything(sql)
    asked = 0
    for operation in OF_TENANTS:
        body = BODIES.get(operation.id)
        assert (operation.body is None) == (body is None), f"{operation.id} wants a body here"
        parts = parts_of(operation)
        # Each part is somebody's, at least one of them the other's; by id and by name.
        for whose in itertools.product((mine, other), repeat=len(parts)):
            if other not in whose:
                continue
            # What the other calls its endpoint is free here, so a PUT of that makes one.
            for way in ("ids",) if operation.id == "v1.endpoint.update" else ("ids", "names"):
                values = {part: getattr(each, way)[part] for part, each in zip(parts, whose, strict=True)}
                path = operation.path.format(**values, consumer_id="c")
                answered = await mine.portal(operation.method, path, body)
                asked += 1
                assert answered.status in (403, 404), (operation.id, path, answered)
                assert answered.status == 404 or operation.id.startswith(
                    ("v1.application", "v1.auth", "v1.message.exp", "v1.message-attempt.exp", "v1.message.create",
                     "v1.endpoint.pause", "v1.endpoint.resume", "v1.background-task.list", "v1.message.poller")
                ), (operation.id, path)  # fmt: skip
                assert "hook-two" not in json.dumps(answered.body)
    assert asked > 100
    assert await everything(sql) == before, "and nothing was changed"
    assert len(receiver.of("two")) == 3


async def test_iterators_of_another_lead_to_what_is_mine(tenants: tuple[Tenant, Tenant, Client]) -> None:
    mine, other, _ = tenants
    lists = [each for each in OF_TENANTS if each.query is not None and "iterator" in each.query.model_fields]
    lists = [each for each in lists if each.right is not Right.POLL]  # no portal's
    assert len(lists) >= 5
    for operation in lists:
        theirs, own = operation.path.format(**other.ids), operation.path.format(**mine.ids)
        page = (await other.portal("GET", f"{theirs}?limit=1")).body
        for iterator in {page["iterator"], page["prevIterator"], "~" + (page["iterator"] or "")} - {None, "~"}:
            answered = await mine.portal("GET", f"{own}?iterator={iterator}")
            assert answered.status in (200, 422), (operation.id, answered)
            text = json.dumps(answered.body.get("data"))
            for id_ in (*other.ids.values(), "event-two", "hook-two", '"of": "two"'):
                assert id_ not in text, (operation.id, id_)


async def everything(sql: Sql) -> list[Any]:
    """What of the other could have changed."""
    return [
        await sql.fetchval(f"SELECT json_agg(t ORDER BY t::text)::text FROM ({query}) t")
        for query in (
            "SELECT id, uid, name, updated_at, deleted_at FROM webhookd.tenant",
            "SELECT * FROM webhookd.endpoint",
            "SELECT id, tenant, event_id FROM webhookd.outbox",
            "SELECT id, endpoint_id FROM webhookd.replay",
            "SELECT id FROM webhookd.shot",
            "SELECT id, action, subject FROM webhookd.audit",
            "SELECT endpoint_id, number FROM webhookd.secret",
            "SELECT id, expires_at, revoked_at FROM webhookd.token",
        )
    ]
