"""Five webhook systems as they are described by who runs them: from an INSERT to the bytes, and by their customers.

Each is a file of config/examples, which is read as it stands but for its URLs; docs/systems.md has a column for each.
"""

import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientSession, web
from svix.webhooks import Webhook

from tests.integration.conftest import Got, Receiver, Running, Sql, eventually, finished, insert
from tests.integration.web.conftest import Client, a_token
from tests.waiting import until
from webhookd.config.config import Config
from webhookd.config.loader import load
from webhookd.message.sealing import new_key

EXAMPLES = Path(__file__).parents[3] / "config" / "examples"
FAKE = "whsec_dGhpcy1pcy1hLWZha2Utc2VjcmV0LWZvci1leGFtcGxlcw=="


class System(NamedTuple):
    """A daemon with one of the five, as its operator."""

    api: Client
    config: Config


@pytest.fixture
def system(dsn: str, receiver: Receiver, daemon: Running, tmp_path: Path) -> Callable[[str], Any]:
    @asynccontextmanager
    async def running(name: str) -> AsyncIterator[System]:
        (tmp_path / "endpoints.d").mkdir()
        (tmp_path / "sealing.key").write_text(new_key())
        text = (EXAMPLES / f"{name}.toml").read_text()
        text = text.replace("https://hooks.example.com/", receiver.url(""))
        (tmp_path / "endpoints.d" / "system.toml").write_text(text)
        (tmp_path / "webhookd.toml").write_text(
            '[egress]\nallow_http = true\nallow_networks = ["127.0.0.0/8"]\n'
            '[encryption]\nkeys = [{ id = "one", file = "sealing.key" }]\n'
            '[api]\nlisten = "127.0.0.1:0"\nallow_http = true\nallow_networks = ["127.0.0.0/8"]\n'
            "endpoints_per_tenant = 10\n"
        )
        config = load(tmp_path / "webhookd.toml", {})
        async with daemon(config) as made, ClientSession() as session:
            yield System(Client(session, made.api_url, await a_token(dsn, "admin")), config)

    return running


async def got(receiver: Receiver, path: str, count: int = 1) -> Got:
    await until(lambda: len(receiver.of(path)) >= count, f"a request at {path}")
    return receiver.of(path)[-1]


async def test_glider_event_objects_with_an_authorization_header(
    system: Callable[[str], Any], sql: Sql, receiver: Receiver
) -> None:
    async with system("glider") as glider:
        event = await insert(sql, '{"trip": 7,  "km": 1.10}', type="trip.created")
        sent = await got(receiver, "builder/trips")
        assert (
            sent.body
            == b'{"event":{"type":"trip.created","id":"%b","resource":{"trip": 7,  "km": 1.10}}}' % event.encode()
        )
        assert sent.headers["authorization"] == "Bearer visibly-fake-token"
        assert sent.headers["content-type"] == "application/json"
        assert "webhook-signature" not in sent.headers
        archived = await got(receiver, "builder/archive")
        assert (archived.body, archived.headers["authorization"]) == (sent.body, "Bearer another-visibly-fake-token")
        # By the API: several of one customer, with headers, thresholds of failures, and intervals of retries.
        api = glider.api
        await api("POST", "/app", {"name": "Customer", "uid": "customer"})
        for n in range(2):
            made = await api("POST", "/app/customer/endpoint", {
                "url": receiver.url(f"customer-{n}"), "uid": f"hook-{n}", "format": "glider", "signature": "none",
                "eventTypes": ["trip.created", "trip.updated"], "headers": {"Authorization": f"Bearer fake-{n}"},
                "retry": {"schedule": [10, 60], "giveUpAfter": 86_400},
                "webhookd": {"disableAfter": {"failures": 50, "seconds": 86_400}},
            })  # fmt: skip
            assert made.status == 201, made
            assert made.body["webhookd"] == {"disableAfter": {"failures": 50, "seconds": 86_400}}
            assert made.body["retry"] == {"schedule": [10.0, 60.0], "giveUpAfter": 86_400.0}
        event = await insert(sql, '{"trip": 8}', type="trip.created", tenant="customer")
        for n in range(2):
            sent = await got(receiver, f"customer-{n}")
            assert sent.body == b'{"event":{"type":"trip.created","id":"%b","resource":{"trip": 8}}}' % event.encode()
            assert sent.headers["authorization"] == f"Bearer fake-{n}"


async def test_bridge_content_and_seconds_signed_and_ten_for_each(
    system: Callable[[str], Any], sql: Sql, receiver: Receiver, dsn: str
) -> None:
    async with system("bridge") as bridge:
        at = datetime(2021, 1, 26, 17, 23, 9, tzinfo=UTC)
        await insert(sql, '{"item_id": 1}', type="item.refreshed", tenant="application-1", occurred_at=at)
        sent = await got(receiver, "bank")
        assert sent.body == b'{"content":{"item_id": 1},"timestamp":1611681789,"type":"item.refreshed"}'
        Webhook(FAKE).verify(sent.body, dict(sent.headers))
        assert bridge.config.endpoints[0].retry.give_up_after == 2 * 86_400
        # A customer makes his own: a URL, perhaps a name, events; and sends a test, with the sample content.
        api = bridge.api
        await api("POST", "/app", {"name": "Second", "uid": "application-2"})
        for n in range(10):
            body = {
                "url": receiver.url(f"own-{n}"),
                "description": f"hook {n}",
                "eventTypes": ["TEST_EVENT"],
                "format": "bridge",
            }
            assert (await api("POST", "/app/application-2/endpoint", body)).status == 201
        eleventh = await api("POST", "/app/application-2/endpoint", {"url": receiver.url("own-11")})
        assert (eleventh.status, eleventh.body["code"]) == (409, "limit_reached")
        first = (await api("GET", "/app/application-2/endpoint?limit=1")).body["data"][0]["id"]
        report = await api("POST", f"/app/application-2/endpoint/{first}/test", {"eventType": "TEST_EVENT"})
        assert (report.status, report.body["data"]["testsSucceeded"], report.body["error"]) == (200, 1, None)
        tested = json.loads((await got(receiver, "own-0")).body)
        assert (tested["type"], tested["content"]) == ("TEST_EVENT", {"item_id": 1234567, "status": 0})
        assert isinstance(tested["timestamp"], int)
        for role in ("read", "producer"):  # only administrators manage them
            refused = await api.with_token(await a_token(dsn, role))("DELETE", f"/app/application-2/endpoint/{first}")
            assert refused.status == 403


async def test_orders_of_workspaces(system: Callable[[str], Any], sql: Sql, receiver: Receiver) -> None:
    async with system("orders") as orders:
        event = await insert(sql, '{"order":"A-1"}', type="order.status", tenant="workspace-1")
        sent = await got(receiver, "orders/status")
        assert json.loads(sent.body)["data"] == {"order": "A-1"}
        assert sent.headers["webhook-id"] == event
        Webhook(FAKE).verify(sent.body, dict(sent.headers))
        await insert(sql, "{}", type="order.status", tenant="workspace-2")
        await finished(sql)
        assert receiver.of("orders/new") == []  # it is not active
        # Created, listed, shown, changed and deleted with no body; the names of events.
        api, base = orders.api, "/app/workspace-1/endpoint"
        given = {"url": receiver.url("mine"), "uid": "mine", "description": "Mine", "eventTypes": ["order.status"]}
        made = await api("POST", base, {**given, "secret": FAKE, "disabled": True})
        assert (made.status, made.body["disabled"]) == (201, True)
        assert FAKE not in json.dumps(made.body)
        listed = [each["uid"] for each in (await api("GET", base)).body["data"]]
        assert "mine" in listed
        names = {each["name"] for each in (await api("GET", "/event-type")).body["data"]}
        assert {"order.status", "order.created"} <= names
        # A test before it is active, of one event, and of all that it subscribes to.
        for body in ({"eventType": "order.status"}, {}):
            report = (await api("POST", f"{base}/mine/test", body)).body
            assert report["error"] is None
            data = report["data"]
            assert (data["testsRun"], data["testsSucceeded"], data["testsFailed"]) == (1, 1, 0)
            assert data["tests"][0]["event"] == "order.status"
        assert json.loads(receiver.of("mine")[0].body) == {
            "order": "A-1001",
            "status": "shipped",
            "at": "2026-01-31T12:00:00+00:00",
        }
        changed = await api("PUT", f"{base}/mine", {**given, "description": "Changed", "disabled": False})
        assert (changed.status, changed.body["description"], changed.body["disabled"]) == (200, "Changed", False)
        await insert(sql, '{"order":"A-2"}', type="order.status", tenant="workspace-1")
        Webhook(FAKE).verify((await got(receiver, "mine", 3)).body, dict(receiver.of("mine")[-1].headers))
        gone = await api("DELETE", f"{base}/mine")
        assert (gone.status, gone.body) == (204, None)
        assert (await api("GET", f"{base}/mine")).status == 404


async def test_console_with_a_context_and_an_api_key(
    system: Callable[[str], Any], sql: Sql, receiver: Receiver
) -> None:
    async with system("console") as console:
        at = datetime(2026, 1, 31, 12, tzinfo=UTC)
        said = {"type": "user.created", "metadata": '{"context": {"admin": 7, "ratio": 1.50}}', "occurred_at": at}
        await insert(sql, '{"user":1}', **said)
        sent = await got(receiver, "notifications")
        assert sent.body == (
            b'{"event_time":"2026-01-31T12:00:00Z","event_type":"user.created",'
            b'"current_context":{"admin": 7, "ratio": 1.50},"data":{"user":1}}'
        )
        assert sent.headers["x-api-key"] == "visibly-fake-api-key"
        api = console.api
        await api("POST", "/app", {"name": "Desk", "uid": "desk"})
        made = await api("POST", "/app/desk/endpoint", {
            "url": receiver.url("desk"), "description": "Service desk", "eventTypes": ["user.created"],
            "format": "console", "signature": "none", "headers": {"X-Api-Key": "fake"},
        })  # fmt: skip
        assert (made.status, made.body["format"]) == (201, "console")
        await insert(sql, '{"user":2}', **said, tenant="desk")
        sent = await got(receiver, "desk")
        assert json.loads(sent.body)["current_context"] == {"admin": 7, "ratio": 1.5}
        assert (sent.headers["x-api-key"], "webhook-signature" in sent.headers) == ("fake", False)
        assert (await api("GET", f"/app/desk/endpoint/{made.body['id']}/headers")).body["sensitive"] == ["X-Api-Key"]
        assert (await api("DELETE", f"/app/desk/endpoint/{made.body['id']}")).status == 204


def sha1_of(date: str, key: bytes) -> str:
    return "sha1=" + hmac.new(key, date.encode(), hashlib.sha1).hexdigest()


async def test_glassix_headers_twenty_seconds_a_signed_date_and_polling(
    system: Callable[[str], Any], sql: Sql, receiver: Receiver
) -> None:
    async with system("glassix") as glassix:
        event = await insert(sql, '{"ticket":  1}', type="ticket.created")
        sent = await got(receiver, "chat")
        assert sent.body == b'{"ticket":  1}'
        wanted = {"x-chat-token": "visibly-fake-token", "x-chat-event": "ticket.created", "x-chat-delivery": event}
        assert wanted.items() <= dict(sent.headers).items()
        chat = next(each for each in glassix.config.endpoints if each.name == "chat")
        assert (chat.timeout, chat.retry.give_up_after) == (20.0, 3 * 86_400)
        signed = await got(receiver, "chat/signed")
        date = signed.headers["x-chat-date"]
        assert abs((parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()) < 600
        assert signed.headers["x-chat-signature"] == sha1_of(date, b"a-visibly-fake-key-of-the-chat")
        # Who has no address asks.
        page = await glassix.api("GET", "/app/default/poller/chat-poll/consumer/one?wait=30")
        assert [(each["eventType"], each["payload"]) for each in page.body["data"]] == [
            ("ticket.created", {"ticket": 1})
        ]
        # By the API the same signature is the operator's to say.
        api = glassix.api
        await api("POST", "/app", {"name": "Tenant", "uid": "tenant"})
        signature = {"header": "X-Chat-Signature", "hash": "sha1", "prefix": "sha1=", "signed": "$timestamp"}
        made = await api("POST", "/app/tenant/endpoint", {
            "url": receiver.url("tenant"), "uid": "hook", "eventTypes": ["ticket.*"], "timeout": 20, "secret": FAKE,
            "webhookd": {"hmac": {**signature, "timestampHeader": "X-Chat-Date", "timestamp": "http"}},
        })  # fmt: skip
        assert made.status == 201, made
        assert made.body["webhookd"]["hmac"]["signed"] == "$timestamp"
        poller = {"url": "", "uid": "asks", "eventTypes": ["ticket.*"], "webhookd": {"kind": "poll"}}
        assert (await api("POST", "/app/tenant/endpoint", poller)).status == 201
        await insert(sql, '{"ticket":2}', type="ticket.closed", tenant="tenant")
        sent = await got(receiver, "tenant")
        assert sent.headers["x-chat-signature"] == sha1_of(sent.headers["x-chat-date"], FAKE.encode())
        page = await api("GET", "/app/tenant/poller/asks?wait=30")
        assert [each["payload"] for each in page.body["data"]] == [{"ticket": 2}]


async def test_what_is_said_wrongly_of_these_is_said(system: Callable[[str], Any], receiver: Receiver) -> None:
    async with system("glassix") as glassix:
        api = glassix.api
        await api("POST", "/app", {"name": "Tenant", "uid": "tenant"})
        signature = {"header": "X-Sign", "signed": "$header.x-there.$body"}

        async def wrong(**said: Any) -> str:
            reply = await api("POST", "/app/tenant/endpoint", {"url": receiver.url("x"), **said})
            assert reply.status == 422, reply
            text: str = reply.body["detail"][0]["msg"]
            return text

        assert "has $header.x-there, which is not sent" in await wrong(webhookd={"hmac": signature})
        assert "stands in headers" in await wrong(webhookd={"hmac": {"header": "X-A"}}, headers={"X-A": "1"})
        assert "$nobody" in await wrong(webhookd={"hmac": {"header": "X-A", "signed": "$nobody"}})
        assert "is no format that there is" in await wrong(format="nobodys")
        assert "data is an object of paths" in await wrong(filter={"region": {"gte": 1}})
        assert "is no path" in await wrong(filter={"data": {"a..b": 1}})


async def test_a_filter_of_payloads_by_the_api(system: Callable[[str], Any], sql: Sql, receiver: Receiver) -> None:
    async with system("orders") as orders:
        filter_ = {"region": ["eu"], "data": {"amount": {"gte": 100}, "order.status": ["paid", "shipped"]}}
        body = {"url": receiver.url("large"), "uid": "large", "eventTypes": ["order.*"], "filter": filter_}
        made = await orders.api("POST", "/app/workspace-1/endpoint", body)
        assert made.status == 201, made
        shown = (await orders.api("GET", "/app/workspace-1/endpoint/large")).body["filter"]
        assert shown["region"] == ["eu"]
        assert shown["data"]["amount"] == {"gte": 100}
        said = {"type": "order.created", "tenant": "workspace-1", "metadata": '{"region": "eu"}'}
        await insert(sql, '{"amount": 99, "order": {"status": "paid"}}', **said)
        await insert(sql, '{"amount": 100, "order": {"status": "paid"}}', **said)
        await insert(sql, '{"amount": 100, "order": {"status": "new"}}', **said)
        await finished(sql)
        assert json.loads((await got(receiver, "large")).body)["amount"] == 100
        assert len(receiver.of("large")) == 1
        cleared = await orders.api("PATCH", "/app/workspace-1/endpoint/large", {"filter": {}})
        assert cleared.body["filter"] == {}


async def test_retries_over_one_to_three_days(system: Callable[[str], Any], sql: Sql, receiver: Receiver) -> None:
    """On a clock that is stepped: what is due is made due, and what counts the days is moved back."""

    async def fails(_: Got) -> web.Response:
        return web.Response(status=503)

    receiver.scripts["bank"] = fails
    async with system("bridge"):
        await insert(sql, "{}", type="item.refreshed", tenant="application-1")
        row = "SELECT attempts, extract(epoch FROM due - now())::float8 AS wait, state FROM webhookd.backlog"
        waits = list[float]()
        for attempt in range(1, 9):
            await eventually(
                lambda attempt=attempt: sql.fetchval("SELECT attempts = $1 FROM webhookd.backlog", attempt),  # type: ignore[misc]
                f"attempt {attempt}",
            )
            found = await sql.fetchrow(row)
            assert found is not None
            waits.append(found["wait"])
            await sql.execute("UPDATE webhookd.backlog SET due = now()")
        assert all(later > 1.5 * earlier for earlier, later in pairwise(waits[:6])), waits
        assert max(waits) <= 1.2 * 6 * 3600
        await sql.execute("UPDATE webhookd.backlog SET clock_from = clock_from - interval '2 days', due = now()")

        async def is_over() -> bool:
            return bool(await sql.fetchval("SELECT state = 'exhausted' FROM webhookd.backlog"))

        await eventually(is_over, "the end after two days")


async def test_headers_that_are_signed_stay(system: Callable[[str], Any], receiver: Receiver) -> None:
    async with system("glassix") as glassix:
        api, base = glassix.api, "/app/tenant/endpoint/hook"
        await api("POST", "/app", {"name": "Tenant", "uid": "tenant"})
        made = await api("POST", "/app/tenant/endpoint", {
            "url": receiver.url("x"), "uid": "hook", "headers": {"X-There": "1"}, "signature": "svix",
            "webhookd": {"hmac": {"header": "X-Sign", "signed": "$header.x-there.$body"}},
        })  # fmt: skip
        assert (made.status, made.body["signature"]) == (201, "svix")
        for headers in ({"X-There": None}, {"X-Sign": "mine"}):
            reply = await api("PATCH", f"{base}/headers", {"headers": headers})
            assert reply.status == 422, headers
        assert (await api("PUT", f"{base}/headers", {"headers": {}})).status == 422
        assert (await api("PATCH", f"{base}/headers", {"headers": {"X-More": "2"}})).status == 204
        assert (await api("PATCH", base, {"description": "new"})).body["webhookd"]["hmac"]["header"] == "X-Sign"
        cleared = await api("PATCH", base, {"webhookd": {"maxInFlight": 2}})
        assert (cleared.body["webhookd"], cleared.body["signature"]) == ({"maxInFlight": 2}, "svix")
        assert (await api("PUT", f"{base}/headers", {"headers": {}})).status == 204
        many = {"data": {"n": list(range(51))}}
        assert (await api("PATCH", base, {"filter": many})).status == 422


async def test_one_whose_format_is_gone_can_be_switched_off(
    dsn: str, receiver: Receiver, daemon: Running, system: Callable[[str], Any], tmp_path: Path
) -> None:
    async with system("console") as console:
        await console.api("POST", "/app", {"name": "Desk", "uid": "desk"})
        given = {"url": receiver.url("desk"), "uid": "desk", "format": "console"}
        assert (await console.api("POST", "/app/desk/endpoint", given)).status == 201
    file = tmp_path / "endpoints.d" / "system.toml"
    file.write_text('[endpoint.console]\nurl = "https://example.com/"\nevents = ["*"]\nsignature = "none"\n')
    async with daemon(load(tmp_path / "webhookd.toml", {})) as running, ClientSession() as session:
        api = Client(session, running.api_url, await a_token(dsn, "admin"))
        off = await api("PATCH", "/app/desk/endpoint/desk", {"disabled": True})
        assert (off.status, off.body["disabled"], off.body["format"]) == (200, True, "console")
        assert (await api("PATCH", "/app/desk/endpoint/desk", {"format": "nobodys"})).status == 422
