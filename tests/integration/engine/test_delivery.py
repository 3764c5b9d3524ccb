"""From the INSERT of an application to what the receiver gets and what is written down about it."""

import asyncio
import base64
import hmac
import json
import socket
import time
from typing import Any

import pytest
import stripe
from aiohttp import web
from standardwebhooks import Webhook

from tests.integration.conftest import (
    Got,
    Receiver,
    Running,
    Sql,
    attempts,
    configuration,
    eventually,
    finished,
    insert,
    insert_many,
    settled,
    states,
    status,
)
from tests.planted import SECRET
from tests.waiting import until
from webhookd.message.signing import new_keypair, new_secret, parse_verifier, verify
from webhookd.model import Event

MIB = 1024 * 1024
AWKWARD = [
    "1.10",
    '{"z":1,"a":123456789012345678901234567890}',
    '{"a":1,"a":2}',
    r'{"nul":"\u0000"}',
    r'{"lone":"\ud800"}',
    ' { "a" :\n[ ] , "b":1e400}\t',
    '{"name":"Zoë 😀 %b $type"}',
    "null",
]


async def test_one_of_three_fails_and_heals(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("c", 500, 500, 200)
    config = configuration({name: {"url": receiver.url(name)} for name in "abc"})
    async with daemon(config):
        event_id = await insert(sql, '{"n": 1.10}')
        await settled(sql, event_id, dict.fromkeys("abc", "delivered"))
    assert receiver.events("a") == receiver.events("b") == [event_id]
    assert receiver.events("c") == [event_id] * 3
    assert [got.attempt for got in receiver.of("c")] == [1, 2, 3]
    assert len({got.body for got in receiver.got}) == 1  # the same bytes for everybody, each time
    assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") == 0


async def test_routing(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    config = configuration(
        {
            "exact": {"url": receiver.url("exact"), "events": ["order.created"]},
            "below": {"url": receiver.url("below"), "events": ["order.*"]},
            "all": {"url": receiver.url("all")},
            "acme": {"url": receiver.url("acme"), "tenant": "acme"},
            "any": {"url": receiver.url("any"), "tenant": "*", "events": ["user.*"]},
            "eu": {"url": receiver.url("eu"), "filter": {"region": ["eu", "uk"]}},
            "off": {"url": receiver.url("off"), "active": False},
        }
    )
    async with daemon(config):
        created = await insert(sql)
        paid = await insert(sql, type="order.paid.late")
        plain = await insert(sql, type="order")
        acme = await insert(sql, tenant="acme")
        user = await insert(sql, type="user.new", tenant="acme")
        nobody = await insert(sql, tenant="unknown")
        uk = await insert(sql, type="x", metadata='{"region":"uk"}')
        own = await insert(sql, type="webhookd.test", own=True)
        await settled(sql, nobody, {None: "unmatched"})
        await settled(sql, own, {None: "unmatched"})
        await finished(sql)
    wanted = {
        "exact": [created],
        "below": [created, paid],
        "all": [created, paid, plain, uk],
        "acme": [acme, user],
        "any": [user],
        "eu": [uk],
        "off": [],
    }
    assert {path: sorted(receiver.events(path)) for path in wanted} == {k: sorted(v) for k, v in wanted.items()}
    assert await attempts(sql, nobody) == []


async def test_the_attempt_log_and_event_status_agree(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("hook", 500, 404, 204)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        event_id = await insert(sql)
        await until(lambda: receiver.of("hook"), "the first attempt")
        await settled(sql, event_id, {"hook": "delivered"})
    log = await attempts(sql, event_id)
    assert [(row["attempt"], row["ok"], row["code"], row["error"]) for row in log] == [
        (1, False, 500, "http_500"),
        (2, False, 404, "http_404"),
        (3, True, 204, None),
    ]
    assert [row["response"] for row in log] == [b"answer 500", b"answer 404", None]
    assert [row["at"] for row in log] == sorted(row["at"] for row in log)
    assert all(0 <= row["ms"] < 5000 for row in log)
    said = (await status(sql, event_id))["hook"]
    assert (said["attempts"], said["last_code"], said["last_error"]) == (3, 204, None)
    assert said["last_attempt_at"] == log[-1]["at"]
    assert said["due"] is None


async def test_between_two_attempts_event_status_says_when_the_next_is(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 500)
    retry = {"first": "1h", "max_interval": "1h", "jitter": 0.0}
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, retry=retry)):
        event_id = await insert(sql)
        await settled(sql, event_id, {"hook": "retrying"})
        said = (await status(sql, event_id))["hook"]
        assert (said["attempts"], said["last_code"], said["last_error"]) == (1, 500, "http_500")
        assert abs((said["due"] - said["last_attempt_at"]).total_seconds() - 3600) < 5


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def test_every_kind_of_failure_is_on_the_same_schedule(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def lookup(host: str, *arguments: Any, **more: Any) -> Any:
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    healed = receiver.hangs("timeout")
    receiver.answers("http_403", 403)
    urls = {
        "timeout": receiver.url("timeout"),
        "connection_refused": f"http://127.0.0.1:{unused_port()}/",
        "dns_error": "http://nowhere.invalid/",
        "http_403": receiver.url("http_403"),
    }
    config = configuration(
        {name: {"url": url, "timeout": "100ms"} for name, url in urls.items()},
        retry={"schedule": ["50ms", "100ms", "1h"], "jitter": 0.0},
    )
    async with daemon(config):
        event_id = await insert(sql)
        wanted: dict[str | None, int] = dict.fromkeys(urls, 3)

        async def tried() -> bool:
            return {name: row["attempts"] for name, row in (await status(sql, event_id)).items()} == wanted

        await eventually(tried, "three attempts of each")
        healed.set()
        for name in urls:
            log = await attempts(sql, event_id, name)
            assert [(row["attempt"], row["ok"], row["error"]) for row in log] == [(n, False, name) for n in (1, 2, 3)]
            assert [row["code"] for row in log] == [403 if name == "http_403" else None] * 3
            said = (await status(sql, event_id))[name]
            assert said["state"] == "retrying"
            assert 3590 < (said["due"] - log[-1]["at"]).total_seconds() < 3610


async def test_deliver_after_waits_in_the_future_and_not_in_the_past(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        now = await sql.fetchval("SELECT clock_timestamp()")
        future, past, later = [
            await sql.fetchval(
                "INSERT INTO webhookd.outbox (type, payload, deliver_after) "
                "VALUES ('a', '{}', now() + $1 * interval '1 s') RETURNING event_id",
                seconds,
            )
            for seconds in (1.0, -3600.0, 3600.0)
        ]
        await until(lambda: past in receiver.events("hook"), "the one of the past")
        assert future not in receiver.events("hook")
        await settled(sql, future, {None: "waiting"})
        await settled(sql, future, {"hook": "delivered"})
        assert await sql.fetchval("SELECT clock_timestamp() - $1 >= interval '1 s'", now)
        assert await states(sql, later) == {None: "waiting"}
        assert (await status(sql, later))[None]["due"] is not None
    assert receiver.events("hook") == [past, future]


@pytest.mark.parametrize("name", ["raw", "standard"])
async def test_payload_bytes_stay_what_they_are(sql: Sql, receiver: Receiver, daemon: Running, name: str) -> None:
    receiver.answers("hook", 500, 200)
    async with daemon(configuration({"hook": {"url": receiver.url("hook"), "format": name}})):
        payloads = {await insert(sql, payload): payload.encode() for payload in AWKWARD}
        await until(lambda: len(receiver.got) == 2 * len(AWKWARD), "a failure and a success of each")
        await finished(sql)
    for event_id, payload in payloads.items():
        first, retry = (got for got in receiver.of("hook") if got.event_id == event_id)
        assert first.body == retry.body
        assert first.body == payload if name == "raw" else first.body.endswith(b',"data":' + payload + b"}")
        stored = await sql.fetchval("SELECT payload::text FROM webhookd.outbox WHERE event_id = $1", event_id)
        assert stored.encode() == payload


async def test_every_request_verifies_also_while_secrets_rotate(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    older, (private, public) = new_secret(), new_keypair()
    for path in ("one", "two", "ed"):
        receiver.answers(path, 503, 200)
    config = configuration(
        {
            "one": {"url": receiver.url("one")},
            "two": {"url": receiver.url("two"), "secrets": [SECRET, older]},
            "ed": {"url": receiver.url("ed"), "secret": private},
            "none": {"url": receiver.url("none"), "signature": "none"},
        }
    )
    async with daemon(config):
        await insert(sql, '{"name":"Zoë","n":1.10}')
        await until(lambda: len(receiver.got) == 7, "a failure and a success of each")
    for got in receiver.got:
        headers = dict(got.headers)
        if got.path in ("one", "two"):
            Webhook(SECRET).verify(got.body, headers)
        if got.path == "two":
            Webhook(older).verify(got.body, headers)
        if got.path == "ed":
            assert verify((parse_verifier(public),), headers, got.body, time.time()) is None
        assert ("webhook-signature" in headers) == (got.path != "none")
        names = [name for name, _ in got.pairs]
        assert len(names) == len(set(names))


async def test_one_bad_among_a_thousand(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    config = configuration({"hook": {"url": receiver.url("hook"), "format": "raw"}}, delivery={"max_payload": "1KiB"})
    async with daemon(config):
        async with sql.transaction():
            good = await insert_many(sql, 500)
            bad = await insert(sql, json.dumps("x" * 2000))
            good += await insert_many(sql, 500)
        await finished(sql)
        said = (await status(sql, bad))["hook"]
        assert (said["state"], said["attempts"], said["last_error"]) == ("rejected", 0, "payload_too_large")
    assert sorted(receiver.events("hook")) == sorted(good)
    assert await sql.fetchval("SELECT count(*) FROM webhookd.attempt") == 1000


async def test_a_format_that_breaks_on_one_event_is_an_attempt_of_that_event(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from webhookd.message import request

    real = request.build

    def broken(delivery: Any, *arguments: Any) -> Any:
        if delivery.event.type == "bad":
            raise ZeroDivisionError
        return real(delivery, *arguments)

    monkeypatch.setattr(request, "build", broken)
    retry = {"first": "1h", "max_interval": "1h"}
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, retry=retry)):
        async with sql.transaction():
            good = await insert_many(sql, 500)
            bad = await insert(sql, type="bad")
            good += await insert_many(sql, 500)
        await until(lambda: len(receiver.got) == 1000, "all the others")
        await settled(sql, bad, {"hook": "retrying"})
        assert [(row["ok"], row["error"]) for row in await attempts(sql, bad)] == [(False, "internal")]
    assert sorted(receiver.events("hook")) == sorted(good)
    assert await sql.fetchval("SELECT count(*) FROM webhookd.batch WHERE done_at IS NULL") == 0


async def test_metadata_of_any_depth_harms_nobody(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    config = configuration(
        {
            "filtered": {"url": receiver.url("filtered"), "filter": {"k": "v"}},
            "all": {"url": receiver.url("all")},
        }
    )
    async with daemon(config):
        deep = await insert(sql, metadata='{"k":' + "[" * 300 + "]" * 300 + "}")
        after = await insert(sql, metadata='{"k":"v"}')
        await until(lambda: len(receiver.got) == 3, "all of them")
        await finished(sql)
    assert sorted(receiver.events("all")) == sorted([deep, after])
    assert receiver.events("filtered") == [after]


async def test_an_endpoint_of_all_tenants_gets_an_event_once_whatever_the_tenant_is_called(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(configuration({"any": {"url": receiver.url("any"), "tenant": "*"}})):
        event_id = await insert(sql, tenant="*")
        await settled(sql, event_id, {"*/any": "delivered"})
    assert receiver.events("any") == [event_id]


async def test_a_payload_above_the_limit_is_rejected_and_never_read(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from webhookd.store.batches import Batches

    read: list[int] = []
    real = Batches.payloads

    async def payloads(self: Batches, events: list[Event], most_bytes: int) -> dict[int, bytes | str]:
        found = await real(self, events, most_bytes)
        read.extend(len(content) for content in found.values() if content)
        return found

    monkeypatch.setattr(Batches, "payloads", payloads)
    sizes = [10, MIB - 2, MIB, MIB + 1, 2 * MIB, 100]
    config = configuration({"hook": {"url": receiver.url("hook"), "format": "raw"}}, delivery={"max_payload": "1MiB"})
    async with daemon(config):
        events = {await insert(sql, json.dumps("x" * (size - 2))): size for size in sizes}
        await finished(sql)
        for event_id, size in events.items():
            wanted = "delivered" if size <= MIB else "rejected"
            assert await states(sql, event_id) == {"hook": wanted}
            if size > MIB:
                assert (await status(sql, event_id))["hook"]["last_error"] == "payload_too_large"
                assert await attempts(sql, event_id) == []
    assert sorted(len(got.body) for got in receiver.got) == sorted(size for size in sizes if size <= MIB)
    assert max(read) <= MIB


@pytest.mark.parametrize("code", [429, 503])
async def test_retry_after_delays_the_endpoint_not_only_the_delivery(
    sql: Sql, receiver: Receiver, daemon: Running, code: int
) -> None:
    throttled = True

    async def script(_: Got) -> web.Response:
        return web.Response(status=code, headers={"Retry-After": "2"}) if throttled else web.Response()

    receiver.scripts["hook"] = script
    config = configuration({"hook": {"url": receiver.url("hook")}, "other": {"url": receiver.url("other")}})
    async with daemon(config):
        first = await insert(sql)
        await until(lambda: receiver.of("hook"), "the refusal")
        throttled = False
        await settled(sql, first, {"hook": "retrying", "other": "delivered"})
        later = [await insert(sql) for _ in range(20)]
        await until(lambda: len(receiver.of("other")) == 21, "another endpoint, at once")
        assert len(receiver.of("hook")) == 1
        await until(lambda: len(receiver.of("hook")) == 22, "the rest")
        await finished(sql)
    refused, *rest = receiver.of("hook")
    assert min(got.at for got in rest) - refused.at >= 1.9
    assert sorted(got.event_id for got in rest) == sorted([first, *later])


async def test_other_signatures_end_to_end(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """Over the very bytes that arrive, on a retry with a new moment."""
    config = configuration(
        {
            "github": {"url": receiver.url("github"), "signature": "github", "secret": "fake-github"},
            "stripe": {"url": receiver.url("stripe"), "signature": "stripe", "secret": "fake-stripe"},
            "hmac": {
                "url": receiver.url("hmac"),
                "signature": "hmac",
                "secret": "fake-hmac",
                "hmac": {"header": "X-Mine", "hash": "sha512", "encoding": "base64"},
            },
        }
    )
    for path in ("github", "stripe", "hmac"):
        receiver.answers(path, 503, 200)
    async with daemon(config):
        await insert(sql, '{"name":"Zoë","n":1.10}')
        await until(lambda: len(receiver.got) == 6, "a failure and a success of each")
    for got in receiver.of("github"):
        made = hmac.new(b"fake-github", got.body, "sha256").hexdigest()
        assert got.headers["x-hub-signature-256"] == f"sha256={made}"
    for got in receiver.of("stripe"):
        signature = got.headers["stripe-signature"]
        assert stripe.WebhookSignature.verify_header(got.body.decode(), signature, "fake-stripe", tolerance=300)
    for got in receiver.of("hmac"):
        assert base64.b64decode(got.headers["x-mine"]) == hmac.new(b"fake-hmac", got.body, "sha512").digest()
    assert not any("webhook-signature" in got.headers for got in receiver.got)


async def test_formats_and_headers_end_to_end(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    headers = {
        "X-Fixed": "yes",
        "X-Region": "$metadata.region",
        "Authorization": "Bearer planted-token",
        "Content-Type": "application/vnd.shop+json",
    }
    config = configuration(
        {
            "cloudevents": {"url": receiver.url("cloudevents"), "format": "cloudevents"},
            "binary": {"url": receiver.url("binary"), "format": "cloudevents-binary"},
            "raw": {"url": receiver.url("raw"), "format": "raw", "headers": headers},
            "mine": {"url": receiver.url("mine"), "format": "mine"},
        },
        delivery={"source": "https://shop.example"},
        formats={"mine": {"body": {"kind": "$type", "text": "new $type in ${metadata.region}", "it": "$data"}}},
    )
    async with daemon(config):
        event_id = await insert(sql, '{"n":1.10}', metadata='{"region":"eu"}', ordering_key="k-1", event_id="evt_9")
        await until(lambda: len(receiver.got) == 4, "one of each")
    got = {each.path: each for each in receiver.got}
    for each in got.values():
        Webhook(SECRET).verify(each.body, dict(each.headers))
        assert each.event_id == event_id == "evt_9"
        names = [name for name, _ in each.pairs]
        assert len(names) == len(set(names)), f"{each.path}: {names}"
    assert got["cloudevents"].headers["content-type"].startswith("application/cloudevents+json")
    structured = json.loads(got["cloudevents"].body)
    assert structured["id"] == "evt_9"
    assert structured["source"] == "https://shop.example"
    assert got["cloudevents"].body.endswith(b'"data":{"n":1.10}}')
    binary = got["binary"].headers
    assert (binary["ce-id"], binary["ce-type"], binary["ce-partitionkey"]) == ("evt_9", "order.created", "k-1")
    assert got["binary"].body == got["raw"].body == b'{"n":1.10}'
    assert got["mine"].body == b'{"kind":"order.created","text":"new order.created in eu","it":{"n":1.10}}'
    raw = got["raw"].headers
    assert (raw["x-fixed"], raw["x-region"], raw["authorization"]) == ("yes", "eu", "Bearer planted-token")
    assert raw["content-type"] == "application/vnd.shop+json"


async def test_limits_are_kept_end_to_end(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    async def slow(_: Got) -> web.Response:
        await asyncio.sleep(0.005)
        return web.Response()

    receiver.scripts |= {"a": slow, "b": slow}
    config = configuration(
        {
            "a": {"url": receiver.url("a"), "max_in_flight": 3},
            "b": {"url": receiver.url("b")},
        },
        delivery={"max_in_flight": 5},
    )
    total = 0

    async def watched(got: Got) -> web.Response:
        nonlocal total
        total = max(total, receiver.flying.total())
        return await slow(got)

    receiver.scripts["b"] = watched
    async with daemon(config):
        await insert_many(sql, 200)
        await finished(sql)
    assert len(receiver.got) == 400
    assert receiver.peaks["a"] <= 3
    assert total <= 5


async def test_a_delivery_that_was_tried_more_often_than_can_be_counted_ends_and_harms_nobody(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 500)
    hook = {"url": receiver.url("hook")}
    async with daemon(configuration({"hook": hook}, retry={"first": "1h", "max_interval": "1h"})):
        event_id = await insert(sql)
        await settled(sql, event_id, {"hook": "retrying"})
    # A second apart and for three days would be more attempts than a smallint counts. What are left reach to the end.
    await sql.execute("UPDATE webhookd.backlog SET attempts = 32765, due = now()")
    async with daemon(configuration({"hook": hook}, retry={"schedule": ["20ms"], "jitter": 0.0})):
        await eventually(lambda: sql.fetchval("SELECT attempts = 32766 FROM webhookd.backlog"), "the last but one")
        assert await sql.fetchval("SELECT due > now() + interval '2 days 23 hours' FROM webhookd.backlog")
        await sql.execute("UPDATE webhookd.backlog SET due = now(), clock_from = now() - interval '3 days'")
        await settled(sql, event_id, {"hook": "exhausted"})
        receiver.answers("hook", 200)
        await settled(sql, await insert(sql), {"hook": "delivered"})
