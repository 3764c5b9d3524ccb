"""What changes of the endpoints while daemons run reaches each of them, and no more than that is read."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientSession

from tests.integration.conftest import Receiver, Running, Sql, configuration, eventually, finished, insert
from tests.integration.web.conftest import Client, a_token
from tests.integration.web.test_endpoints import config
from tests.waiting import until
from webhookd.daemon.catalog import Catalog
from webhookd.store import endpoints as endpoints_module
from webhookd.store import registry as registry_module
from webhookd.store.database import Database
from webhookd.store.registry import Registry


class Read(NamedTuple):
    """What daemons have read: how often all, and the names of what had changed."""

    whole: list[int]
    changed: list[str]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    found = Read([], [])
    known, changes = Registry.known, Registry.changes

    async def all_known(self: Registry, *about: Any) -> Any:
        made = await known(self, *about)
        found.whole.append(made.version)
        return made

    async def what_changed(self: Registry, since: int) -> Any:
        made = await changes(self, since)
        found.changed.extend(each.name for each in (made or (0, []))[1])
        return made

    monkeypatch.setattr(Registry, "known", all_known)
    monkeypatch.setattr(Registry, "changes", what_changed)
    return found


class Fleet(NamedTuple):
    shop: Client
    read: Read


@pytest.fixture
async def fleet(dsn: str, receiver: Receiver, daemon: Running, read: Read) -> AsyncIterator[Fleet]:
    """Two daemons, and an application that has ten endpoints."""
    async with daemon(config(receiver)) as running, daemon(config(receiver)), ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        await client("POST", "/app", {"name": "Shop", "uid": "shop"})
        for n in range(10):
            await client("POST", "/app/shop/endpoint", {"url": receiver.url(f"hook-{n}"), "uid": f"hook-{n}"})
        await until(lambda: len(read.changed) >= 20, "both daemons to know")
        read.changed.clear()
        yield Fleet(client, read)


async def emit(shop: Client) -> str:
    event: str = (await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}})).body["id"]
    return event


async def test_of_many_only_the_one_is_read_that_has_changed(fleet: Fleet, receiver: Receiver) -> None:
    shop, read = fleet
    before = len(read.whole)
    made = (await shop("PATCH", "/app/shop/endpoint/hook-3", {"url": receiver.url("moved")})).body
    event = await emit(shop)
    await until(lambda: receiver.events("moved") == [event], "it at its new place")
    await until(lambda: read.changed == [made["id"]] * 2, "both daemons to know")
    assert len(read.whole) == before
    assert not receiver.of("hook-3")


async def test_whatever_is_said_of_it_counts_at_once(fleet: Fleet, sql: Sql, receiver: Receiver) -> None:
    shop, one = fleet.shop, "/app/shop/endpoint/hook-1"
    for n, (method, path, body, header) in enumerate(
        (
            ("PUT", f"{one}/headers", {"headers": {"X-A": "1"}}, ("x-a", "1")),
            ("PATCH", f"{one}/headers", {"headers": {"X-A": "2"}}, ("x-a", "2")),
            ("PATCH", one, {"signature": "svix"}, ("svix-id", None)),
        )
    ):
        assert (await shop(method, path, body)).status in (200, 204)
        event = await emit(shop)
        await until(lambda n=n: len(receiver.of("hook-1")) == n + 1, "it")  # type: ignore[misc]
        assert receiver.of("hook-1")[n].headers[header[0]] == (header[1] or event)
    before = receiver.of("hook-1")[-1].headers["webhook-signature"]
    await shop("POST", f"{one}/secret/rotate", {})
    await emit(shop)
    await until(lambda: len(receiver.of("hook-1")) == 4, "it")
    assert len(receiver.of("hook-1")[-1].headers["webhook-signature"].split()) == 2 > len(before.split())
    await shop("PATCH", one, {"disabled": True})
    await emit(shop)
    await until(lambda: len(receiver.of("hook-2")) == 5, "the others")
    await shop("DELETE", "/app/shop/endpoint/hook-2")
    await emit(shop)
    await until(lambda: len(receiver.of("hook-3")) == 6, "the others")
    assert (len(receiver.of("hook-1")), len(receiver.of("hook-2"))) == (4, 5)
    await finished(sql)
    owed = "SELECT count(*) FROM webhookd.backlog b JOIN webhookd.endpoint e ON e.id = b.endpoint_id WHERE e.uid = $1"
    assert [await sql.fetchval(owed, uid) for uid in ("hook-1", "hook-2")] == [0, 0], "neither is owed it"
    await shop("PATCH", one, {"disabled": False})
    await emit(shop)
    await until(lambda: len(receiver.of("hook-1")) == 5, "it again")


async def test_many_at_once_are_read_again_as_a_whole(
    fleet: Fleet, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, read = fleet
    monkeypatch.setattr(registry_module, "MANY", 3)
    before = len(read.whole)
    await shop("DELETE", "/app/shop")
    await until(lambda: len(read.whole) >= before + 2, "both daemons to read all")
    await shop("POST", "/app", {"name": "Shop", "uid": "shop"})
    await shop("POST", "/app/shop/endpoint", {"url": receiver.url("new")})
    event = await emit(shop)
    await until(lambda: receiver.events("new") == [event], "it")
    assert not receiver.of("hook-1")


async def test_what_another_has_in_its_files_is_owed_as_soon_as_it_has_it(
    sql: Sql, receiver: Receiver, daemon: Running, read: Read
) -> None:
    ours = {"ours": {"url": receiver.url("ours")}}
    theirs = [{}, {"theirs": {"url": receiver.url("theirs")}}]
    configs = [configuration({**ours, **each}) for each in theirs]
    async with daemon(configs[0]), daemon(configs[0], load=lambda: configs[1]) as other:
        other.reload()
        await until(lambda: "theirs" in read.changed, "ours to know")
        events = [await insert(sql) for _ in range(10)]
        await until(lambda: sorted(receiver.events("theirs")) == sorted(events), "all of them")


@pytest.mark.parametrize("many", [1, 100])
async def test_what_is_in_our_files_is_there_though_others_have_counted_us_as_dead(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """Also where that is so much that all is read again."""
    monkeypatch.setattr(registry_module, "MANY", many)
    async with daemon(configuration({"ours": {"url": receiver.url("ours")}})):
        async with sql.transaction():
            await sql.execute("UPDATE webhookd.endpoint SET removed_at = now()")
            await sql.execute("UPDATE webhookd.config_version SET version = version + 1")

        async def is_there() -> bool:
            return await sql.fetchval("SELECT removed_at IS NULL FROM webhookd.endpoint") is True

        await eventually(is_there, "it to be there")
        event = await insert(sql)
        await until(lambda: receiver.events("ours") == [event], "it")


async def test_a_look_that_failed_is_made_up_for(
    dsn: str, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    class Broken(Catalog):
        def take(self, changed: Any) -> Any:
            nonlocal tries
            tries += bool(changed)
            if changed and tries == 1:
                raise RuntimeError("once")
            return super().take(changed)

    monkeypatch.setattr("webhookd.daemon.reloader.Catalog", Broken)
    async with daemon(config(receiver)) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        await client("POST", "/app/default/endpoint", {"url": receiver.url("hook")})
        await until(lambda: tries >= 2, "another look")
        event = (await client("POST", "/app/default/msg", {"eventType": "a", "payload": {}})).body["id"]
        await until(lambda: event in receiver.events("hook"), "it")


async def test_pages_of_all_that_is_there_are_of_one_moment(
    dsn: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints_module, "PAGE", 2)
    monkeypatch.setattr(registry_module, "MANY", 2)
    for n in range(7):
        await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ($1, 'file', '{}')", f"e{n}")
    ids = [row[0] for row in await sql.fetch("SELECT id FROM webhookd.endpoint ORDER BY id")]
    await sql.execute("UPDATE webhookd.endpoint SET removed_at = now() WHERE id = $1", ids[4])
    async with Database(dsn, size=1) as database:
        known = await Registry(database).known({}, ids[:2], "", 15.0)
        assert [each.id for each in known.others] == [ids[2], ids[3], ids[5], ids[6]]
        await sql.execute("UPDATE webhookd.config_version SET version = version + 1")
        assert await Registry(database).changes(known.version + 1) == (known.version + 1, [])
        found = await Registry(database).changes(known.version)
        assert found is None  # seven are more than a page
