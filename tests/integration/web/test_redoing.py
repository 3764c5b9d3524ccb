"""Sent again, tested and replayed by the API; paused, explained, and told how far it is."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, web

from tests.integration.conftest import Got, Receiver, Running, Sql, eventually, finished
from tests.integration.web.conftest import Client, a_token
from tests.integration.web.test_endpoints import config
from tests.waiting import until
from webhookd.web.redoing import sending

SINCE = {"since": "2020-01-01T00:00:00Z"}
HOOK = "/app/shop/endpoint/hook"


@pytest.fixture
async def shop(dsn: str, receiver: Receiver, daemon: Running) -> AsyncIterator[Client]:
    """An application with an endpoint, which gives up after a second."""
    async with daemon(config(receiver)) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        await client("POST", "/app", {"name": "Shop", "uid": "shop"})
        made = {"url": receiver.url("hook"), "uid": "hook", "retry": {"schedule": [1], "giveUpAfter": 1}}
        assert (await client("POST", "/app/shop/endpoint", made)).status == 201
        yield client


async def emit(shop: Client, **more: Any) -> str:
    event: str = (await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {"n": 1}, **more})).body["id"]
    return event


async def ended(shop: Client, task: str) -> dict[str, Any]:
    """The task, once it is through."""
    found: dict[str, Any] = {}

    async def over() -> bool:
        found.update((await shop("GET", f"/background-task/{task}")).body)
        return bool(found["status"] != "running")

    await eventually(over, "the end of the task")
    return found


async def test_a_message_is_resent(shop: Client, sql: Sql, receiver: Receiver) -> None:
    event = await emit(shop, eventId="order-1")
    await until(lambda: len(receiver.got) == 1, "it")
    await finished(sql)
    path = "/app/shop/msg/order-1/endpoint/hook/resend"
    for _ in range(2):  # the same request twice is one
        answered = await shop("POST", path, idempotency_key="once")
        assert answered.status == 202
    await until(lambda: len(receiver.got) == 2, "it again")
    assert receiver.events("hook") == [event, event]
    assert receiver.got[1].headers["webhook-trigger"] == "resend"

    async def told() -> bool:
        found = (await shop("GET", f"/app/shop/attempt/msg/{event}")).body["data"]
        return [(each["trigger"], each["triggerType"]) for each in found] == [("resend", 1), (None, 0)]

    await eventually(told, "both attempts")
    task = await ended(shop, answered.body["taskId"])
    assert (task["status"], task["data"]["kind"], task["data"]["msgId"]) == ("finished", "resend", event)
    for wrong in ("/app/shop/msg/none/endpoint/hook/resend", "/app/shop/msg/order-1/endpoint/none/resend"):
        assert (await shop("POST", wrong)).status == 404
    assert await sql.fetchval("SELECT count(*) FROM webhookd.shot") == 1
    assert "the admin" in await sql.fetchval("SELECT who FROM webhookd.audit WHERE action = 'resend'")


async def test_where_no_daemon_could_send_it_says_so(shop: Client, sql: Sql) -> None:
    event = await emit(shop)
    await sql.execute("UPDATE webhookd.secret SET key_id = 'other'")
    await sql.execute("UPDATE webhookd.daemon SET key_ids = '{}', endpoint_ids = '{}', inactive_ids = '{}'")
    for path, body in (
        (f"/app/shop/msg/{event}/endpoint/hook/resend", None),
        (f"{HOOK}/test", {}),
        (f"{HOOK}/send-example", {"eventType": "a"}),
    ):
        await sql.execute("UPDATE webhookd.daemon SET key_ids = '{}', endpoint_ids = '{}', inactive_ids = '{}'")
        answered = await shop("POST", path, body)
        assert (answered.status, answered.body["code"]) == (409, "no_daemon"), path


async def test_an_example_is_sent_and_can_be_looked_up(shop: Client, sql: Sql, receiver: Receiver) -> None:
    schemas = {"1": {"examples": [{"old": 1}]}, "10": {"type": "object", "examples": [{"id": 7}]}, "2": {}}
    await shop("POST", "/event-type", {"name": "order.paid", "description": "Paid", "schemas": schemas})
    body = {"eventType": "order.paid"}
    sent = [await shop("POST", f"{HOOK}/send-example", body, idempotency_key="k") for _ in range(2)]
    assert sent[0].status == 200
    assert sent[0].body == sent[1].body
    assert (sent[0].body["eventType"], sent[0].body["payload"]) == ("order.paid", {"id": 7})
    await until(lambda: receiver.got, "it")
    assert receiver.got[0].body == b'{"id":7}'
    assert receiver.got[0].headers["webhook-trigger"] == "test"
    assert receiver.events("hook") == [sent[0].body["id"]]
    assert (await shop("GET", f"/app/shop/msg/{sent[0].body['id']}")).body == sent[0].body
    assert (await shop("GET", "/app/shop/msg")).body["data"] == []
    await shop("POST", "/app", {"name": "Other", "uid": "other"})
    assert (await shop("GET", f"/app/other/msg/{sent[0].body['id']}")).status == 404
    made_up = (await shop("POST", f"{HOOK}/send-example", {"eventType": "strange"})).body
    assert "made up" in made_up["payload"]["message"]
    assert (await shop("POST", f"{HOOK}/send-example", {})).status == 422


async def test_a_test_says_what_was_answered(shop: Client, receiver: Receiver) -> None:
    async def script(got: Got) -> web.Response:
        return web.Response(status=500 if b'"bad"' in got.body else 200, text="hello")

    receiver.scripts["hook"] = script
    for name in ("good", "bad", "out"):
        schemas = {"1": {"examples": [{"is": name}]}}
        await shop("POST", "/event-type", {"name": f"order.{name}", "description": name, "schemas": schemas})
    await shop("PATCH", HOOK, {"eventTypes": ["order.good", "order.bad"], "disabled": True})
    answered = await shop("POST", f"{HOOK}/test")
    assert answered.status == 200, answered
    data = answered.body["data"]
    assert (answered.body["error"], data["testsRun"], data["testsSucceeded"], data["testsFailed"]) == (None, 2, 1, 1)
    assert [(each["event"], each["ok"], each["status"]) for each in data["tests"]] == [
        ("order.bad", False, 500),
        ("order.good", True, 200),
    ]
    assert data["tests"][1]["response"] == {"status": 200, "body": "hello"}
    assert data["tests"][1]["request"]["body"] == '{"is":"good"}'
    one = (await shop("POST", f"{HOOK}/test", {"eventType": "order.out"})).body["data"]
    assert [(each["event"], each["ok"]) for each in one["tests"]] == [("order.out", True)]


async def test_a_test_that_takes_long_is_a_task(
    shop: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "TEST_SECONDS", 0.3)
    go = asyncio.Event()

    async def slow(_: Got) -> web.Response:
        await go.wait()
        return web.Response()

    receiver.scripts["hook"] = slow
    answered = await shop("POST", f"{HOOK}/test", {"eventType": "a"}, idempotency_key="k")
    assert (answered.status, answered.body["status"], answered.body["task"]) == (202, "running", "endpoint.replay")
    go.set()
    data = (await ended(shop, answered.body["id"]))["data"]
    assert (data["kind"], data["endpointId"]) == ("test", (await shop("GET", HOOK)).body["id"])
    assert (data["testsRun"], data["testsSucceeded"], data["tests"][0]["status"]) == (1, 1, 200)
    again = await shop("POST", f"{HOOK}/test", {"eventType": "a"}, idempotency_key="k")
    assert (again.status, again.body["data"]["testsSucceeded"]) == (200, 1)
    assert len(receiver.got) == 1


async def test_what_failed_is_recovered(shop: Client, sql: Sql, receiver: Receiver) -> None:
    works = False

    async def script(_: Got) -> web.Response:
        return web.Response(status=200 if works else 500)

    receiver.scripts["hook"] = script
    events = [await emit(shop) for _ in range(3)]

    async def given_up() -> bool:
        return bool(await sql.fetchval("SELECT count(*) = 3 FROM webhookd.backlog WHERE state = 'exhausted'"))

    await eventually(given_up, "all of them to be given up")
    works = True
    begun = await shop("POST", f"{HOOK}/recover", SINCE, idempotency_key="k")
    assert (begun.status, begun.body["task"]) == (202, "endpoint.recover")
    task = await ended(shop, begun.body["id"])
    assert (task["status"], task["data"]["messagesSent"], task["data"]["progress"]) == ("finished", 3, 1.0)
    await finished(sql)
    assert sorted(receiver.events("hook")[-3:]) == sorted(events)
    assert {got.headers["webhook-trigger"] for got in receiver.got[-3:]} == {"replay"}
    again = await shop("POST", f"{HOOK}/recover", SINCE, idempotency_key="k")
    assert again.body["id"] == begun.body["id"]
    listed = (await shop("GET", "/background-task?task=endpoint.recover&status=finished")).body
    assert [each["id"] for each in listed["data"]] == [task["id"]]
    for query in ("task=endpoint.replay", "status=running"):
        assert (await shop("GET", f"/background-task?{query}")).body["data"] == []


async def test_what_was_missed_is_replayed(shop: Client, sql: Sql, receiver: Receiver) -> None:
    await emit(shop)
    await until(lambda: receiver.got, "the first")
    await shop("PATCH", HOOK, {"disabled": True})
    missed = await emit(shop)
    await finished(sql)
    await shop("PATCH", HOOK, {"disabled": False})
    begun = await shop("POST", f"{HOOK}/replay-missing", SINCE)
    assert begun.status == 202
    assert (await ended(shop, begun.body["id"]))["data"]["messagesSent"] == 1
    await until(lambda: len(receiver.got) == 2, "what was missed")
    assert receiver.events("hook")[1] == missed


async def test_what_was_missed_while_it_was_disabled_is_listed_and_replayed(
    shop: Client, sql: Sql, receiver: Receiver
) -> None:
    receiver.answers("hook", *[410] * 3)
    gone = {await emit(shop) for _ in range(3)}

    async def told() -> bool:
        return bool((await shop("GET", HOOK)).body["disabled"])

    await eventually(told, "410 to disable it")
    asked = len(receiver.got)
    missed = await emit(shop)

    async def listed() -> dict[str, tuple[str, str]]:
        page = (await shop("GET", f"{HOOK}/msg?status=2")).body
        return {each["id"]: (each["state"], each["reason"]) for each in page["data"]}

    async def is_listed() -> bool:
        return missed in await listed()

    await eventually(is_listed, "it to be listed")
    assert (await listed())[missed] == ("missed", "disabled")
    assert set(await listed()) <= gone | {missed}
    assert len(receiver.got) == asked
    receiver.answers("hook", 200)
    assert (await shop("PATCH", HOOK, {"disabled": False})).body["disabled"] is False
    begun = await shop("POST", f"{HOOK}/replay-missing", SINCE)
    assert (await ended(shop, begun.body["id"]))["data"]["messagesSent"] == 1
    await until(lambda: missed in receiver.events("hook"), "what was missed")  # beside those that are tried again


async def test_what_is_chosen_is_replayed(shop: Client, sql: Sql, receiver: Receiver) -> None:
    async def script(got: Got) -> web.Response:
        return web.Response(status=410 if b'"no"' in got.body else 204)

    receiver.scripts["hook"] = script
    a = await emit(shop, channels=["red"], tags=["x"])
    b = await emit(shop, eventType="b")
    c = await emit(shop, channels=["blue"], payload={"say": "no"})
    await until(lambda: len(receiver.got) >= 3, "all")
    await eventually(
        lambda: sql.fetchval("SELECT count(*) >= 3 FROM webhookd.attempt"), "all of them to be written down"
    )
    for chosen, expected in (
        ({"channel": "red"}, [a]),
        ({"tag": "x"}, [a]),
        ({"eventTypes": ["b", "c"]}, [b]),
        ({"status": 0}, [a, b]),
        ({"statusCodeClass": 200, "eventTypes": ["a"]}, [a]),
        ({"statusCodeClass": 0}, []),
        ({"until": "2020-01-02T00:00:00Z"}, []),
    ):
        before = len(receiver.got)
        begun = await shop("POST", f"{HOOK}/bulk-replay", {**SINCE, **chosen})
        assert begun.status == 202, begun
        sent = (await ended(shop, begun.body["id"]))["data"]["messagesSent"]
        assert sent == len(expected), chosen
        wanted = before + len(expected)
        await until(lambda wanted=wanted: len(receiver.got) >= wanted, "them")  # type: ignore[misc]
        got = [each.event_id for each in receiver.got[before:] if each.event_id != c]
        assert sorted(got) == sorted(expected), chosen
    for wrong in ({}, {"since": "yesterday"}, {**SINCE, "status": 1}, {**SINCE, "until": "2019-01-01T00:00:00Z"}):
        assert (await shop("POST", f"{HOOK}/bulk-replay", wrong)).status == 422, wrong


async def test_who_takes_the_key_of_one_that_is_gone_replays_nothing_of_it(
    shop: Client, sql: Sql, receiver: Receiver
) -> None:
    await emit(shop)
    await until(lambda: len(receiver.got) == 1, "it")
    await finished(sql)
    await shop("DELETE", "/app/shop")
    await shop("POST", "/app", {"name": "Shop", "uid": "shop"})
    await shop("POST", "/app/shop/endpoint", {"url": receiver.url("new"), "uid": "hook"})
    mine = await emit(shop)
    await until(lambda: receiver.events("new") == [mine], "mine")
    await finished(sql)
    for kind in ("replay-missing", "bulk-replay"):
        begun = await shop("POST", f"{HOOK}/{kind}", SINCE)
        sent = (await ended(shop, begun.body["id"]))["data"]["messagesSent"]
        assert sent == (1 if kind == "bulk-replay" else 0)
    await until(lambda: len(receiver.of("new")) == 2, "mine again")
    assert set(receiver.events("new")) == {mine}


async def test_a_portal_sends_no_example_of_a_type_that_it_does_not_see(dsn: str, shop: Client) -> None:
    schemas = {"1": {"examples": [{"secret": "plan"}]}}
    hidden = {"name": "beta.x", "description": "", "schemas": schemas, "featureFlags": ["beta"]}
    await shop("POST", "/event-type", hidden)
    tenant = (await shop("GET", "/app/shop")).body["id"]
    portal = shop.with_token(await a_token(dsn, "portal", tenant, ("ViewBase", "CreateAttempts")))
    sent = (await portal("POST", f"{HOOK}/send-example", {"eventType": "beta.x"})).body
    assert "made up" in sent["payload"]["message"]
    tested = (await portal("POST", f"{HOOK}/test")).body["data"]["tests"]
    assert [each["event"] for each in tested] == ["webhookd.test"]
    assert (await shop("POST", f"{HOOK}/send-example", {"eventType": "beta.x"})).body["payload"] == {"secret": "plan"}


async def test_many_for_one_are_refused_and_keep_no_other_waiting(
    shop: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "WAITING_MOST", 12)
    hang = asyncio.Event()

    async def slow(_: Got) -> web.Response:
        await hang.wait()
        return web.Response()

    event = await emit(shop)
    await until(lambda: receiver.got, "it")
    receiver.scripts["hook"] = slow
    statuses = [(await shop("POST", f"/app/shop/msg/{event}/endpoint/hook/resend")).status for _ in range(14)]
    assert statuses == [202] * 12 + [429] * 2
    await shop("POST", "/app", {"name": "Other", "uid": "other"})
    await shop("POST", "/app/other/endpoint", {"url": receiver.url("other"), "uid": "hook"})
    answered = await shop("POST", "/app/other/endpoint/hook/test", {"eventType": "a"})
    assert answered.body["data"]["testsSucceeded"] == 1
    assert receiver.peaks["hook"] <= 5
    hang.set()


async def test_one_at_a_time(shop: Client, receiver: Receiver, sql: Sql) -> None:
    await emit(shop)
    await until(lambda: receiver.got, "it")
    await finished(sql)
    await shop("POST", f"{HOOK}/pause")  # so that it does not go on
    begun = await shop("POST", f"{HOOK}/bulk-replay", SINCE)
    assert (begun.status, begun.body["status"]) == (202, "running")
    refused = await shop("POST", f"{HOOK}/recover", SINCE)
    assert (refused.status, refused.body["code"]) == (409, "replay_running")
    await shop("POST", f"{HOOK}/resume")
    assert (await ended(shop, begun.body["id"]))["status"] == "finished"


async def test_tasks_in_pages_and_of_tenants(dsn: str, shop: Client, sql: Sql) -> None:
    await shop("POST", "/app", {"name": "Other", "uid": "other"})
    made = []
    for _ in range(5):
        begun = await shop("POST", f"{HOOK}/recover", SINCE)
        made.append((await ended(shop, begun.body["id"]))["id"])
    made.reverse()
    one = (await shop("GET", "/background-task?limit=2")).body
    two = (await shop("GET", f"/background-task?limit=2&iterator={one['iterator']}")).body
    last = (await shop("GET", f"/background-task?limit=2&iterator={two['iterator']}")).body
    assert [[each["id"] for each in page["data"]] for page in (one, two, last)] == [made[:2], made[2:4], made[4:]]
    assert (one["done"], two["done"], last["done"]) == (False, False, True)
    assert (await shop("GET", f"/background-task?limit=2&iterator={two['prevIterator']}")).body["data"] == one["data"]
    rising = (await shop("GET", "/background-task?order=ascending")).body["data"]
    assert [each["id"] for each in rising] == made[::-1]
    assert (await shop("GET", "/background-task?iterator=none")).status == 422
    own, other = [
        shop.with_token(await a_token(dsn, "portal", (await shop("GET", f"/app/{uid}")).body["id"], ("ViewBase",)))
        for uid in ("shop", "other")
    ]
    assert (await own("GET", f"/background-task/{made[0]}")).status == 200
    assert (await other("GET", f"/background-task/{made[0]}")).status == 404
    assert (await own("GET", "/background-task")).status == 403
    for wrong in ("none", f"qtask_{'0' * 27}", made[0][:-1]):
        assert (await shop("GET", f"/background-task/{wrong}")).status == 404


async def test_pause_and_resume(shop: Client, sql: Sql, receiver: Receiver, dsn: str) -> None:
    for _ in range(2):
        assert (await shop("POST", f"{HOOK}/pause")).status == 204
    event = await emit(shop)

    async def waits() -> bool:
        found = (await shop("GET", f"{HOOK}/msg")).body["data"]
        return [each["state"] for each in found] == ["parked"]

    await eventually(waits, "it to wait")
    assert not receiver.got
    assert (await shop("POST", f"{HOOK}/resume")).status == 204
    await until(lambda: receiver.events("hook") == [event], "it")
    who = [row[0] for row in await sql.fetch("SELECT who FROM webhookd.audit WHERE action IN ('pause', 'resume')")]
    assert len(who) == 2
    assert all("the admin" in each for each in who)
    tenant = (await shop("GET", "/app/shop")).body["id"]
    portal = shop.with_token(await a_token(dsn, "portal", tenant, ("ViewBase", "ManageEndpoint", "CreateAttempts")))
    assert (await portal("POST", f"{HOOK}/pause")).status == 403
    assert (await shop("POST", "/app/shop/endpoint/none/pause")).status == 404


async def test_what_an_operator_asks(shop: Client, sql: Sql, receiver: Receiver) -> None:
    event = await emit(shop)
    await until(lambda: receiver.got, "it")
    await finished(sql)
    await shop("PATCH", HOOK, {"eventTypes": ["b"]})
    (explained,) = (await shop("GET", f"/app/shop/msg/{event}/explain")).body["data"]
    assert explained["event_id"] == event
    assert [(each["gets_it"], each["why_not"].partition(":")[0]) for each in explained["endpoints"]] == [
        (False, "type")
    ]
    assert [each["state"] for each in explained["status"]] == ["delivered"]
    assert (await shop("GET", "/app/shop/msg/none/explain")).status == 404
    assert (await shop("GET", f"/app/default/msg/{event}/explain")).status == 404
    how = (await shop("GET", "/status")).body
    assert len(how["daemons"]) == 1
    assert [each["tenant"] for each in how["endpoints"]] == ["shop"]
    deeds = (await shop("GET", "/audit?limit=2")).body
    assert [each["action"] for each in deeds["data"]] == ["change endpoint", "create endpoint"]
    more = (await shop("GET", f"/audit?iterator={deeds['iterator']}")).body
    assert "create tenant" in [each["action"] for each in more["data"]]
    assert {each["action"] for each in (await shop("GET", "/audit?action=pause")).body["data"]} == set()
    assert len((await shop("GET", "/audit?of=shop")).body["data"]) >= 2
    assert (await shop("GET", "/audit?iterator=none")).status == 422


async def test_nobody_is_let_into_the_portal_any_more(shop: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhookd.web.recent.SECONDS", 0.0)
    tokens = [(await shop("POST", "/auth/app-portal-access/shop", {})).body["token"] for _ in range(2)]
    await shop("POST", "/app", {"name": "Other", "uid": "other"})
    other = (await shop("POST", "/auth/app-portal-access/other", {})).body["token"]
    assert (await shop("POST", "/auth/app/shop/expire-all", {"expiry": 3600})).status == 204
    assert [(await shop.with_token(each)("GET", "/app/shop/endpoint")).status for each in tokens] == [200, 200]
    assert (await shop("POST", "/auth/app/shop/expire-all", {})).status == 204
    assert [(await shop.with_token(each)("GET", "/app/shop/endpoint")).status for each in tokens] == [401, 401]
    assert (await shop.with_token(other)("GET", "/app/other/endpoint")).status == 200
    assert (await shop("POST", "/auth/app/shop/expire-all", {"expiry": 999999})).status == 422
