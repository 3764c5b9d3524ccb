"""Endpoints that tenants make: kept, sealed, sent to, changed and ended."""

import asyncio
import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import svix
from aiohttp import ClientSession

from tests.conftest import connected
from tests.integration.conftest import Receiver, Running, Sql, configuration, eventually, finished
from tests.integration.web.conftest import Client, a_token
from tests.waiting import until
from webhookd.config.config import Config, build
from webhookd.message.sealing import Keyring, Sealed, SealingKey, Unreadable, new_key, parse_key
from webhookd.message.signing import new_secret
from webhookd.store.database import Database
from webhookd.store.secrets import Secrets

KEY = new_key()


def config(receiver: Receiver, **api: Any) -> Config:
    """An API that may send to loopback, with a key to seal with."""
    document = {
        "retry": {"first": "50ms", "max_interval": "200ms", "factor": 2},
        "api": {"listen": "127.0.0.1:0", "allow_http": True, "allow_networks": ["127.0.0.0/8"], **api},
        "encryption": {"keys": [{"id": "one", "file": "key"}]},
    }
    return build(document, [], {}, lambda path, file: KEY)


@pytest.fixture
async def shop(dsn: str, receiver: Receiver, daemon: Running) -> AsyncIterator[Client]:
    """A daemon with the API, as an administrator of an application `shop`."""
    async with daemon(config(receiver)) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        await client("POST", "/app", {"name": "Shop", "uid": "shop"})
        yield client


async def test_one_gets_all_that_comes_after_it(shop: Client, sql: Sql, receiver: Receiver) -> None:
    secret = new_secret()
    given = {"url": receiver.url("hook?token=a%2Fb"), "secret": secret, "signature": "svix", "headers": {"X-Mine": "1"}}
    made = await shop("POST", "/app/shop/endpoint", given)
    assert made.status == 201, made
    assert made.body["id"].startswith("ep_")
    assert (made.body["url"], made.body["eventTypes"], made.body["disabled"]) == (given["url"], None, False)
    ids = [(await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {"n": n}})).body["id"] for n in range(20)]
    await until(lambda: len(receiver.got) >= 20, "all of them")
    await finished(sql)
    assert sorted(got.event_id for got in receiver.got) == sorted(ids)
    got = receiver.got[0]
    assert got.headers["x-mine"] == "1"
    svix.Webhook(secret).verify(
        got.body, {name: text for name, text in got.headers.items() if name.startswith("svix-")}
    )
    assert json.loads(got.body).keys() == {"n"}
    rows = [row[0] for row in await sql.fetch("SELECT row_to_json(e)::text FROM webhookd.endpoint e")]
    rows += [row[0] for row in await sql.fetch("SELECT row_to_json(a)::text FROM webhookd.audit a")]
    assert not any(secret in row or "token=" in row for row in rows)


async def test_many_times_an_endpoint_and_then_at_once_its_messages(
    dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    async with (
        daemon(config(receiver)) as first,
        daemon(config(receiver)) as second,
        daemon(config(receiver)),
        ClientSession() as session,
    ):
        token = await a_token(dsn, "admin")
        clients = [Client(session, each.api_url, token) for each in (first, second)]
        ids: dict[str, set[str]] = {}
        for n in range(100):
            await clients[n % 2]("POST", "/app", {"name": "a", "uid": f"app-{n}"})
            made = await clients[n % 2]("POST", f"/app/app-{n}/endpoint", {"url": receiver.url(f"hook-{n}")})
            assert made.status == 201
            replies = await asyncio.gather(
                *(clients[m % 2]("POST", f"/app/app-{n}/msg", {"eventType": "a", "payload": {}}) for m in range(20))
            )
            ids[f"hook-{n}"] = {reply.body["id"] for reply in replies}
        await until(lambda: all(set(receiver.events(path)) == each for path, each in ids.items()), "all of them")
        await finished(sql)


async def test_it_is_shown_changed_and_ended(shop: Client, sql: Sql, receiver: Receiver) -> None:
    made = await shop("POST", "/app/shop/endpoint", {"url": receiver.url("a"), "uid": "mine", "rateLimit": 7})
    path = f"/app/shop/endpoint/{made.body['id']}"
    for name in (path, "/app/shop/endpoint/mine"):
        assert (await shop("GET", name)).body == made.body
    changed = await shop("PATCH", path, {"eventTypes": ["order.created"], "description": "x", "rateLimit": None})
    assert changed.body | {"eventTypes": ["order.created"], "description": "x", "rateLimit": None} == changed.body
    assert changed.body["url"] == made.body["url"]
    replaced = await shop("PUT", path, {"url": receiver.url("b")})
    assert (replaced.status, replaced.body["eventTypes"], replaced.body["description"]) == (200, None, "")
    assert replaced.body["uid"] == "mine"
    await shop("PATCH", path, {"disabled": True})
    await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}})
    await finished(sql)  # what comes before a change may be matched after it
    await shop("PATCH", path, {"disabled": False})
    last = (await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}})).body["id"]
    await until(lambda: bool(receiver.of("b")), "the last")
    await finished(sql)
    assert receiver.events("b") == [last]
    assert (await shop("DELETE", path)).status == 204
    assert (await shop("GET", path)).status == 404
    assert await sql.fetchval("SELECT count(*) FROM webhookd.secret") == 0
    await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}})
    await finished(sql)
    assert receiver.events("b") == [last]


async def test_channels_and_filters_choose(shop: Client, sql: Sql, receiver: Receiver) -> None:
    await shop("POST", "/app/shop/endpoint", {"url": receiver.url("all")})
    one = await shop("POST", "/app/shop/endpoint", {"url": receiver.url("one"), "channels": ["a", "b"], "uid": "one"})
    await shop("POST", "/app/shop/endpoint", {"url": receiver.url("eu"), "filter": {"region": ["eu"]}})
    assert one.body["channels"] == ["a", "b"]

    async def sent(**more: Any) -> str:
        return str((await shop("POST", "/app/shop/msg", {"eventType": "x", "payload": {}, **more})).body["id"])

    first, second = await sent(channels=["c", "b"]), await sent(channels=["c"])
    third, fourth = await sent(metadata={"region": "eu"}), await sent()
    await finished(sql)
    await shop("PATCH", "/app/shop/endpoint/one", {"channels": None})
    fifth = await sent()
    await finished(sql)
    assert set(receiver.events("all")) == {first, second, third, fourth, fifth}
    assert set(receiver.events("one")) == {first, fifth}
    assert receiver.events("eu") == [third]


async def test_secrets_are_read_and_rotated(shop: Client, sql: Sql, receiver: Receiver) -> None:
    made = await shop("POST", "/app/shop/endpoint", {"url": receiver.url("a")})
    path = f"/app/shop/endpoint/{made.body['id']}"
    old = (await shop("GET", f"{path}/secret")).body["key"]
    new = b64encode(b"x" * 32).decode()
    rotated = await shop("POST", f"{path}/secret/rotate", {"key": new})
    assert (rotated.status, rotated.body) == (200, {"key": f"whsec_{new}"})
    assert await sql.fetchval("SELECT count(*) FROM webhookd.audit WHERE action = 'rotate secret'") == 1
    assert (await shop("GET", f"{path}/secret")).body["key"] == f"whsec_{new}"
    await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}})
    await until(lambda: bool(receiver.got), "it")
    for secret in (old, new):
        svix.Webhook(secret).verify(receiver.got[0].body, dict(receiver.got[0].headers))
    assert (await shop("POST", f"{path}/secret/rotate", {"gracePeriodSeconds": 0})).status == 200
    await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}})
    await until(lambda: len(receiver.got) == 2, "the next")
    for secret in (old, new):
        with pytest.raises(svix.WebhookVerificationError):
            svix.Webhook(secret).verify(receiver.got[1].body, dict(receiver.got[1].headers))


async def test_headers_are_set_and_changed_and_secret_ones_not_shown(shop: Client, receiver: Receiver) -> None:
    given = {"url": receiver.url("a"), "headers": {"X-One": "1", "Authorization": "Bearer fake"}}
    made = await shop("POST", "/app/shop/endpoint", given)
    path = f"/app/shop/endpoint/{made.body['id']}/headers"
    assert (await shop("GET", path)).body == {"headers": {"X-One": "1"}, "sensitive": ["Authorization"]}
    assert (await shop("PATCH", path, {"headers": {"x-one": None, "X-Two": "2"}})).status == 204
    assert (await shop("GET", path)).body == {"headers": {"X-Two": "2"}, "sensitive": ["Authorization"]}
    await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}})
    await until(lambda: bool(receiver.got), "it")
    assert receiver.got[0].headers["authorization"] == "Bearer fake"
    assert receiver.got[0].headers["x-two"] == "2"
    assert "x-one" not in receiver.got[0].headers
    assert (await shop("PUT", path, {"headers": {}})).status == 204
    assert (await shop("GET", path)).body == {"headers": {}, "sensitive": []}
    for bad in (
        {"Host": "x"},
        {"svix-id": "x"},
        {"webhook-id": "x"},
        {"X": "a\nb"},
        {"a b": "x"},
        {"X": "1", "x": "2"},
    ):
        assert (await shop("PUT", path, {"headers": bad})).status == 422, bad


@pytest.mark.parametrize(
    "url",
    [
        "http://x.example",
        "https://127.0.0.1/",
        "https://[::1]/",
        "ftp://a.example",
        "https://u:p@a.example",
        "",
        "x",
        "https://a.example/#f",
    ],
)
async def test_addresses_are_guarded_whatever_the_operator_may(
    dsn: str, sql: Sql, receiver: Receiver, daemon: Running, url: str
) -> None:
    strict = {"api": {"listen": "127.0.0.1:0"}, "encryption": {"keys": [{"id": "one", "file": "key"}]}}
    own = {"egress": {"allow_http": True, "allow_networks": ["127.0.0.0/8"]}}
    async with daemon(build({**strict, **own}, [], {}, lambda path, file: KEY)) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        made = await client("POST", "/app/default/endpoint", {"url": url})
        if made.status == 201:  # an address is judged when it is dialled
            await client("POST", "/app/default/msg", {"eventType": "a", "payload": {}})

            async def is_denied() -> bool:
                return bool(await sql.fetchval("SELECT error = 'egress_denied' FROM webhookd.attempt LIMIT 1"))

            await eventually(is_denied, "the guard")
        else:
            assert made.status == 422
            assert made.body["detail"][0]["loc"] == ["body", "url"]


async def test_without_a_key_it_is_said_what_to_do(api: Client) -> None:
    made = await api("POST", "/app/default/endpoint", {"url": "https://a.example/"})
    assert (made.status, made.body["code"]) == (409, "no_sealing_key")
    assert "webhookd secret key" in made.body["detail"]


async def test_those_of_files_are_there_to_be_read(dsn: str, receiver: Receiver, daemon: Running) -> None:
    files = configuration(
        {"filed": {"url": receiver.url("a"), "tenant": "shop"}, "all": {"url": receiver.url("b"), "tenant": "*"}},
        api={"listen": "127.0.0.1:0"},
    )
    async with daemon(files) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        await client("POST", "/app", {"name": "a", "uid": "shop"})
        (found,) = (await client("GET", "/app/shop/endpoint")).body["data"]
        assert (found["id"], found["readOnly"]) == ("filed", True)
        assert (await client("PATCH", "/app/shop/endpoint/filed", {"description": "x"})).body["code"] == "read_only"
        assert (await client("DELETE", "/app/shop/endpoint/filed")).body["code"] == "read_only"
        assert (await client("GET", "/app/shop/endpoint/filed/secret")).status == 403
        assert (await client("GET", "/app/shop/endpoint/all")).status == 404


async def test_an_application_takes_its_endpoints_along(shop: Client, sql: Sql, receiver: Receiver) -> None:
    await shop("POST", "/app/shop/endpoint", {"url": receiver.url("a")})
    await shop("DELETE", "/app/shop")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.endpoint WHERE removed_at IS NULL") == 0
    await shop("POST", "/app", {"name": "a", "uid": "shop"})
    assert (await shop("GET", "/app/shop/endpoint")).body["data"] == []


async def test_as_many_as_are_allowed(dsn: str, receiver: Receiver, daemon: Running) -> None:
    async with daemon(config(receiver, endpoints_per_tenant=2)) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        replies = await asyncio.gather(
            *(client("POST", "/app/default/endpoint", {"url": receiver.url(f"{n}")}) for n in range(4))
        )
        assert sorted(reply.status for reply in replies) == [201, 201, 409, 409]
        assert [reply.body.get("code") for reply in replies].count("limit_reached") == 2


async def test_they_are_still_there_after_a_restart(dsn: str, sql: Sql, receiver: Receiver, daemon: Running) -> None:
    async with daemon(config(receiver)) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        await client("POST", "/app/default/endpoint", {"url": receiver.url("a?x=1")})
    async with connected(dsn) as other:
        await other.execute("INSERT INTO webhookd.outbox (type, payload) VALUES ('a', '{}')")
    async with daemon(config(receiver)):
        await until(lambda: bool(receiver.of("a")), "it")


@pytest.mark.parametrize("other", [pytest.param(None, id="none"), pytest.param(new_key(), id="another")])
async def test_a_daemon_without_the_key_leaves_them_to_who_has_it(
    dsn: str, sql: Sql, receiver: Receiver, daemon: Running, other: str | None
) -> None:
    """Or with another of the same name. It owes them their events all the same, whoever has cut those."""
    keys = {"encryption": {"keys": [{"id": "one", "file": "key"}]}} if other else {}
    without = build({**keys, "api": {"listen": "127.0.0.1:0"}}, [], {}, lambda path, file: other or "")
    async with (
        daemon(without) as keyless,
        daemon(config(receiver)) as running,
        ClientSession() as session,
    ):
        token = await a_token(dsn, "admin")
        client, elsewhere = (Client(session, each.api_url, token) for each in (running, keyless))
        given = {"url": receiver.url("a?x=1"), "headers": {"X": "y"}}
        made = await client("POST", "/app/default/endpoint", given)
        (seen,) = (await elsewhere("GET", "/app/default/endpoint")).body["data"]
        assert (seen["id"], seen["url"]) == (made.body["id"], receiver.url("a"))
        ids = [
            (await elsewhere("POST", "/app/default/msg", {"eventType": "a", "payload": {}})).body["id"]
            for _ in range(20)
        ]
        await until(lambda: set(receiver.events("a")) == set(ids), "all of them")
        keys_said = await sql.fetch("SELECT key_ids FROM webhookd.daemon WHERE stopped_at IS NULL ORDER BY id")
        assert [row[0] for row in keys_said] == [["one"] if other else [], ["one"]]


async def test_none_is_made_for_an_application_that_goes_meanwhile(
    shop: Client, sql: Sql, dsn: str, receiver: Receiver
) -> None:
    async with sql.transaction():
        await sql.execute("SELECT webhookd.lock_endpoints()")
        asked = asyncio.create_task(shop("POST", "/app/shop/endpoint", {"url": receiver.url("a")}))

        async def waits() -> bool:
            async with connected(dsn) as other:
                return bool(await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        await eventually(waits, "the endpoint to wait for the lock")
        await sql.execute("UPDATE webhookd.tenant SET deleted_at = now() WHERE uid = 'shop'")
    assert (await asked).status == 404
    assert await sql.fetchval("SELECT count(*) FROM webhookd.endpoint") == 0


async def test_they_go_by_no_other_way_than_theirs(dsn: str, sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """Once all requests go through a proxy, that is not theirs to use, nor is the way past it."""
    async with daemon(config(receiver)) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        await client("POST", "/app/default/endpoint", {"url": receiver.url("a")})
    proxied = build(
        {
            "api": {"listen": "127.0.0.1:0", "allow_http": True, "allow_networks": ["127.0.0.0/8"]},
            "egress": {"allow_http": True, "proxy": "http://127.0.0.1:9"},
            "encryption": {"keys": [{"id": "one", "file": "key"}]},
        },
        [], {}, lambda path, file: KEY,
    )  # fmt: skip
    async with daemon(proxied) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        refused = await client("POST", "/app/default/endpoint", {"url": "https://a.example/"})
        assert (refused.status, refused.body["detail"][0]["loc"]) == (422, ["body", "url"])
        await client("POST", "/app/default/msg", {"eventType": "a", "payload": {}})

        async def is_denied() -> bool:
            return bool(await sql.fetchval("SELECT error = 'egress_denied' FROM webhookd.attempt LIMIT 1"))

        await eventually(is_denied, "the refusal")
    assert not receiver.got


async def test_what_makes_no_sense_is_refused(shop: Client, sql: Sql, dsn: str, receiver: Receiver) -> None:
    url = receiver.url("a")
    first = await shop("POST", "/app/shop/endpoint", {"url": url, "uid": "one"})
    path = f"/app/shop/endpoint/{first.body['id']}"
    for body in (
        {"url": url, "uid": first.body["id"]},
        {"url": url, "eventTypes": []},
        {"url": url, "channels": []},
        {"url": url, "secret": "short"},
        {"url": url, "headers": {f"X-{n}": "x" for n in range(51)}},
        {"url": url, "metadata": {"a": 1}},
        {"uid": "two"},
    ):
        assert (await shop("POST", "/app/shop/endpoint", body)).status == 422, body
    assert (await shop("POST", "/app/shop/endpoint", {"url": url, "uid": "one"})).status == 409
    other = await shop("POST", "/app/shop/endpoint", {"url": url, "uid": "two"})
    assert (await shop("PATCH", f"/app/shop/endpoint/{other.body['id']}", {"uid": "one"})).status == 409
    for n in (0, 30):
        headers = {f"X-{n + m}": "x" for m in range(30)}
        assert (await shop("PATCH", f"{path}/headers", {"headers": headers})).status == (422 if n else 204)
    secret = (await shop("GET", f"{path}/secret")).body
    await shop("PATCH", path, {"secret": new_secret()})  # which is rotated by who may, and not on the way
    assert (await shop("GET", f"{path}/secret")).body == secret
    both = await shop("PATCH", path, {"throttleRate": 0, "rateLimit": 5})
    assert both.body["rateLimit"] is None
    tenant = await sql.fetchval("SELECT id FROM webhookd.tenant WHERE uid = 'shop'")
    portal = shop.with_token(await a_token(dsn, "portal", tenant, ("ManageEndpoint",)))
    assert (await portal("PATCH", path, {"format": "standard"})).status == 403
    assert (await portal("PATCH", path, {"description": "mine"})).status == 200
    assert await sql.fetchval("SELECT count(*) FROM webhookd.endpoint") == 2


async def test_all_that_is_sealed_is_sealed_anew(shop: Client, dsn: str, sql: Sql, receiver: Receiver) -> None:
    url, secret = receiver.url("a?x=1"), new_secret()
    made = await shop("POST", "/app/shop/endpoint", {"url": url, "headers": {"X": "y"}, "secret": secret})
    keys = SealingKey("two", parse_key(new_key())), SealingKey("one", parse_key(KEY))
    version = "SELECT changed_at_version FROM webhookd.endpoint"
    before = await sql.fetchval(version)
    async with Database(dsn, size=1) as database:
        assert await Secrets(database, Keyring(keys)).rekey() == (3, [])
        assert await sql.fetchval(version) > before, "daemons look which key opens it now"
        assert await Secrets(database, Keyring(keys)).rekey() == (0, [])
    ids = await sql.fetch("SELECT key_id FROM webhookd.secret UNION SELECT key_id FROM webhookd.sealed")
    assert [row[0] for row in ids] == ["two"]
    ring, id_ = (
        Keyring(keys[:1]),
        await sql.fetchval("SELECT id FROM webhookd.endpoint WHERE name = $1", made.body["id"]),
    )
    rows = await sql.fetch("SELECT name, content FROM webhookd.sealed ORDER BY name")
    assert [ring.open(id_, Sealed("two", row[1]), row[0]) for row in rows] == ["y", url]
    with pytest.raises(Unreadable):  # what is one's is nothing in the place of another
        ring.open(id_, Sealed("two", rows[0][1]), rows[1][0])


async def test_commands_show_them(shop: Client, dsn: str, receiver: Receiver, tmp_path: Path) -> None:
    made = await shop("POST", "/app/shop/endpoint", {"url": receiver.url("a?token=fake"), "channels": ["x"]})
    event = (await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}})).body["id"]
    main = tmp_path / "webhookd.toml"
    main.write_text("")
    serving = tmp_path / "serving.toml"  # it has no endpoint, and needs none
    serving.write_text('[api]\nlisten = "127.0.0.1:0"\n')
    asked = ["explain", "--type", "a", "--tenant", "shop", "-c", str(serving), "--metadata"]
    label = f"shop/{made.body['id']}"
    for command, wanted in (
        (["endpoints", "list"], made.body["id"][:20]),
        (["endpoints", "show", label], "filter channels"),
        (["status"], made.body["id"][:20]),
        (["explain", event, "-c", str(main)], "filter"),
        ([*asked, '{"channels": ["x"]}'], label),
        ([*asked, '{"channels": ["y"]}'], "filter"),
        (["check", "--offline", "-c", str(serving)], "0 endpoints"),
    ):
        found = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "webhookd", *command],
            capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "WEBHOOKD_DSN": dsn},
        )  # fmt: skip
        assert "Traceback" not in found.stderr, found.stderr
        assert wanted in found.stdout, (command, found.stdout, found.stderr)
        assert "token=" not in found.stdout


async def test_types_may_have_to_be_registered(dsn: str, receiver: Receiver, daemon: Running) -> None:
    document = {
        "api": {"listen": "127.0.0.1:0", "strict_event_types": True},
        "encryption": {"keys": [{"id": "one", "file": "key"}]},
        "event_types": {"user.left": {"description": "of a file"}},
    }
    strict = build(document, [], {}, lambda path, file: KEY)
    async with daemon(strict) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        for name in ("order.created", "old"):
            await client("POST", "/event-type", {"name": name, "description": ""})
        await client("DELETE", "/event-type/old")
        path, url = "/app/default/endpoint", "https://hooks.example.com/"
        for types, status in (
            (["order.created", "user.left"], 201),
            (["order.*"], 201),
            (["user.*"], 201),
            (None, 201),
            (["order.creatd"], 422),
            (["order.created", "old"], 422),
            (["orders.*"], 422),
            (["order.created.*"], 422),
        ):
            made = await client("POST", path, {"url": url, "eventTypes": types})
            assert made.status == status, types
            if status == 422:
                assert {each["loc"][1] for each in made.body["detail"]} == {"eventTypes"}
        one = (await client("POST", path, {"url": url})).body["id"]
        assert (await client("PATCH", f"{path}/{one}", {"eventTypes": ["nothing"]})).status == 422
        assert (await client("PUT", f"{path}/{one}", {"url": url, "eventTypes": ["nothing"]})).status == 422


async def test_it_says_how_it_is_tried(shop: Client, sql: Sql, receiver: Receiver) -> None:
    receiver.answers("hook", 500, 200)
    retry = {"schedule": [1.0], "giveUpAfter": 3_600.0}
    given = {"url": receiver.url("hook"), "timeout": 5, "retry": retry, "webhookd": {"maxInFlight": 1}}
    made = (await shop("POST", "/app/shop/endpoint", given)).body
    assert {key: made[key] for key in ("timeout", "retry", "webhookd")} == {
        "timeout": 5.0, "retry": retry, "webhookd": {"maxInFlight": 1},
    }  # fmt: skip
    await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}})
    await until(lambda: len(receiver.of("hook")) == 2, "it once more")
    assert receiver.of("hook")[1].at - receiver.of("hook")[0].at > 0.7  # and not after 50 ms, as others
    await finished(sql)
    path = f"/app/shop/endpoint/{made['id']}"
    changed = (await shop("PATCH", path, {"timeout": None, "webhookd": None})).body
    assert (changed["timeout"], changed["retry"], changed["webhookd"]) == (None, retry, None)
    assert (await shop("PUT", path, {"url": receiver.url("hook")})).body["retry"] is None


async def test_tenants_of_files_are_applications(dsn: str, sql: Sql, receiver: Receiver, daemon: Running) -> None:
    hooks = {
        str(n): {"url": receiver.url("a"), "tenant": tenant}
        for n, tenant in enumerate(("acme", "", "*", "Müller & Co", "app_strange", "taken"))
    }
    async with daemon(config(receiver)) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        other = (await client("POST", "/app", {"name": "has the uid", "uid": "was"})).body["id"]
        await client("PATCH", f"/app/{other}", {"uid": "taken"})
    async with daemon(configuration(hooks, api={"listen": "127.0.0.1:0"})) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        found = {each["name"]: each["uid"] for each in (await client("GET", "/app")).body["data"]}
        kept = {"default": "default", "has the uid": "taken", "acme": "acme"}
        assert found == {**kept, "Müller & Co": None, "app_strange": None, "taken": None}
        made = await client("POST", "/app/acme/msg", {"eventType": "a", "payload": {}})
        await until(lambda: receiver.events("a").count(made.body["id"]) == 2, "its own endpoint and that of all")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.audit WHERE who = 'files'") == 4
