"""Messages in pages, the newest first, and forgotten."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.conftest import Sql, eventually, insert
from tests.integration.web.conftest import Client


@pytest.fixture
async def shop(api: Client) -> Client:
    await api("POST", "/app", {"name": "Shop", "uid": "shop"})
    await api("POST", "/app", {"name": "Other", "uid": "other"})
    return api


async def emitted(client: Client, tenant: str, count: int, **more: Any) -> list[str]:
    """The ids of so many, the newest first."""
    body = {"eventType": "a", "payload": {}, **more}
    return [(await client("POST", f"/app/{tenant}/msg", body)).body["id"] for _ in range(count)][::-1]


async def listed(client: Client, path: str) -> list[str]:
    """All ids, over all pages."""
    found, iterator, join = list[str](), "", "&" if "?" in path else "?"
    for _ in range(100):
        page = await client("GET", f"{path}{f'{join}iterator={iterator}' if iterator else ''}")
        assert page.status == 200, page
        found += [each["id"] for each in page.body["data"]]
        if page.body["done"]:
            return found
        iterator = page.body["iterator"]
    raise AssertionError("no end")


@pytest.mark.parametrize("tenant", ["shop", "default"])
async def test_pages_there_and_back(shop: Client, sql: Sql, tenant: str) -> None:
    ids = await emitted(shop, tenant, 7)
    await emitted(shop, "other", 3)
    await insert(sql, tenant="elsewhere")
    assert await listed(shop, f"/app/{tenant}/msg?limit=3") == ids
    pages, iterator = [], None
    for _ in range(3):
        page = await shop("GET", f"/app/{tenant}/msg?limit=3{f'&iterator={iterator}' if iterator else ''}")
        pages.append(page.body)
        iterator = page.body["iterator"]
    assert [[each["id"] for each in page["data"]] for page in pages] == [ids[:3], ids[3:6], ids[6:]]
    assert pages[0]["prevIterator"] is None
    back = await shop("GET", f"/app/{tenant}/msg?limit=3&iterator={pages[2]['prevIterator']}")
    assert [each["id"] for each in back.body["data"]] == ids[3:6]
    back = await shop("GET", f"/app/{tenant}/msg?limit=3&iterator={back.body['prevIterator']}")
    assert ([each["id"] for each in back.body["data"]], back.body["prevIterator"]) == (ids[:3], None)


async def test_only_what_is_asked_for(shop: Client) -> None:
    (b,) = await emitted(shop, "shop", 1, eventType="b", channels=["blue", "red"])
    (a,) = await emitted(shop, "shop", 1, channels=["red"], tags=["x y"])
    (c,) = await emitted(shop, "shop", 1, eventType="c.d", metadata={"channels": "red"})
    for query, found in {
        "": [c, a, b],
        "event_types=b": [b],
        "event_types=b&event_types=c.d": [c, b],
        "event_types=b,c.d": [c, b],
        "channel=red": [c, a, b],
        "channel=blue": [b],
        "channel=red&event_types=a": [a],
        "tag=x%20y": [a],
        "tag=z": [],
    }.items():
        assert await listed(shop, f"/app/shop/msg?{query}") == found, query


async def test_between_two_moments(shop: Client, sql: Sql) -> None:
    ids = await emitted(shop, "shop", 3)
    moments = [row[0] for row in await sql.fetch("SELECT created_at FROM webhookd.outbox ORDER BY id DESC")]
    first, last = (quote(moment.isoformat()) for moment in (moments[2], moments[0]))
    assert await listed(shop, f"/app/shop/msg?after={first}&before={last}") == ids[1:]
    for wrong in ("after=yesterday", "before=2026-01-01", "limit=0", "limit=251", "iterator=x", f"iterator={'0' * 22}"):
        assert (await shop("GET", f"/app/shop/msg?{wrong}")).status == 422, wrong
    far = quote((datetime.now(UTC) + timedelta(days=1)).isoformat())
    assert await listed(shop, f"/app/shop/msg?after={far}") == []


async def test_without_content(shop: Client) -> None:
    await emitted(shop, "shop", 1, payload={"n": 1}, eventId="mine")
    (shown,) = (await shop("GET", "/app/shop/msg")).body["data"]
    assert (shown["payload"], shown["eventId"]) == ({"n": 1}, "mine")
    (shown,) = (await shop("GET", "/app/shop/msg?with_content=false")).body["data"]
    assert shown["payload"] == {}


async def test_a_page_is_bounded_in_bytes(shop: Client) -> None:
    ids = await emitted(shop, "shop", 10, payload={"x": "x" * 1_000_000})
    page = await shop("GET", "/app/shop/msg?limit=10")
    assert [each["id"] for each in page.body["data"]] == ids[:8]
    assert not page.body["done"]
    assert await listed(shop, "/app/shop/msg?limit=10") == ids


@pytest.mark.parametrize("tenant", ["shop", "default"])
async def test_a_page_looks_at_so_many_and_the_next_goes_on(shop: Client, sql: Sql, tenant: str) -> None:
    rare = await emitted(shop, tenant, 2, eventType="rare")
    key = "" if tenant == "default" else tenant
    await sql.execute(
        "INSERT INTO webhookd.outbox (type, tenant, payload) SELECT 'often', $1, '{}' FROM generate_series(1, 12000)",
        key,
    )
    newest = await emitted(shop, tenant, 1, eventType="rare")
    page = await shop("GET", f"/app/{tenant}/msg?event_types=rare")
    assert ([each["id"] for each in page.body["data"]], page.body["done"]) == (newest, False)
    assert await listed(shop, f"/app/{tenant}/msg?event_types=rare") == newest + rare
    assert await listed(shop, f"/app/{tenant}/msg?event_types=none") == []
    empty = await shop("GET", f"/app/{tenant}/msg?event_types=none")  # and there and back over what does not fit
    back = await shop("GET", f"/app/{tenant}/msg?iterator={empty.body['iterator']}&limit=1")
    again = await shop("GET", f"/app/{tenant}/msg?event_types=none&iterator={back.body['prevIterator']}")
    assert again.body["data"] == []
    there = await shop("GET", f"/app/{tenant}/msg?limit=1&iterator={again.body['iterator']}")
    assert there.body["data"] == back.body["data"]


async def test_it_is_looked_for_by_the_index(shop: Client, sql: Sql) -> None:
    await sql.execute(
        "INSERT INTO webhookd.outbox (type, tenant, payload)"
        " SELECT 'a', 't' || n % 500, '{}' FROM generate_series(1, 20000) n"
    )
    await sql.execute("ANALYZE webhookd.outbox")
    await shop("POST", "/app", {"name": "One", "uid": "t1"})

    async def scans() -> int:
        found: int = await sql.fetchval(
            "SELECT sum(idx_scan) FROM pg_stat_user_indexes"
            " WHERE schemaname = 'webhookd' AND indexrelname LIKE 'outbox%tenant%'"
        )
        return found

    before = await scans()
    assert len(await listed(shop, "/app/t1/msg?limit=50")) == 40

    async def is_used() -> bool:
        return await scans() > before

    await eventually(is_used, "the index to be used")


async def test_of_others_nothing_is_seen(shop: Client, as_role: dict[str, Client]) -> None:
    await emitted(shop, "shop", 2)
    mine = await emitted(shop, "default", 2)
    portal = as_role["portal"]
    assert await listed(portal, "/app/default/msg") == mine
    assert (await portal("GET", "/app/shop/msg")).status == 404
    assert (await portal("DELETE", f"/app/default/msg/{mine[0]}/content")).status == 403


async def test_one_is_forgotten(shop: Client, sql: Sql, as_role: dict[str, Client]) -> None:
    one, other = await emitted(shop, "shop", 2)
    await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}, "eventId": "mine"})
    await insert(sql, tenant="elsewhere", event_id=one)
    for name in (one, "mine"):
        assert (await shop("DELETE", f"/app/other/msg/{name}/content")).status == 404
        assert (await as_role["operator"]("DELETE", f"/app/shop/msg/{name}/content")).status == 403
        assert (await shop("DELETE", f"/app/shop/msg/{name}/content")).status == 204
        assert (await shop("GET", f"/app/shop/msg/{name}")).status == 404
        assert (await shop("DELETE", f"/app/shop/msg/{name}/content")).status == 404
    assert await listed(shop, "/app/shop/msg") == [other]
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox WHERE tenant = 'elsewhere'") == 1
    assert await sql.fetchval("SELECT count(*) FROM webhookd.event_alias") == 0
    deeds = await sql.fetch("SELECT who, tenant FROM webhookd.audit WHERE action = 'erase'")
    assert len(deeds) == 2
    assert all("the admin" in deed["who"] and deed["tenant"] == "shop" for deed in deeds)
