"""Applications: made, found by id and uid, changed, listed and ended."""

import asyncio

import pytest

from tests.integration.conftest import Sql
from tests.integration.web.conftest import Client, Reply, a_token


async def test_one_is_made_found_changed_and_ended(api: Client, sql: Sql) -> None:
    made = await api("POST", "/app", {"name": "Shop", "uid": "shop", "metadata": {"plan": "gold"}, "rateLimit": 7})
    assert made.status == 201
    assert made.body["id"].startswith("app_")
    assert made.body | {"uid": "shop", "name": "Shop", "metadata": {"plan": "gold"}, "throttleRate": 7} == made.body
    for name in (made.body["id"], "shop", "shop/"):
        assert (await api("GET", f"/app/{name}")).body == made.body
    changed = await api("PATCH", "/app/shop", {"name": "Shop 2", "rateLimit": None})
    assert (
        changed.body | {"name": "Shop 2", "rateLimit": None, "uid": "shop", "metadata": {"plan": "gold"}}
        == changed.body
    )
    for name in ("name", "metadata"):
        assert (await api("PATCH", "/app/shop", {name: None})).status == 422
    cleared = await api("PATCH", "/app/shop", {"uid": None})
    assert cleared.body["uid"] is None
    assert (await api("GET", "/app/shop")).status == 404
    assert (await api("DELETE", f"/app/{made.body['id']}")).status == 204
    assert (await api("GET", f"/app/{made.body['id']}")).status == 404
    deeds = await sql.fetch(
        "SELECT action, who, subject, before, after FROM webhookd.audit WHERE action LIKE '%tenant' ORDER BY id"
    )
    assert [deed["action"] for deed in deeds] == ["create tenant", "change tenant", "change tenant", "delete tenant"]
    assert {deed["subject"] for deed in deeds} == {made.body["id"]}
    row = await sql.fetchrow("SELECT uid, name, metadata FROM webhookd.tenant WHERE id = $1", made.body["id"])
    assert row is not None
    assert tuple(row) == (None, "", "{}")
    assert all("the admin" in deed["who"] for deed in deeds)


async def test_its_key_is_what_producers_write_and_never_changes(api: Client, sql: Sql) -> None:
    with_uid = (await api("POST", "/app", {"name": "a", "uid": "first"})).body["id"]
    without = (await api("POST", "/app", {"name": "b"})).body["id"]
    await api("PATCH", f"/app/{with_uid}", {"uid": "second"})
    keys = {row["id"]: row["key"] for row in await sql.fetch("SELECT id, key FROM webhookd.tenant")}
    assert (keys[with_uid], keys[without]) == ("first", without)
    # What producers write for one is nobody else's uid, nor is another's uid.
    for taken in ("first", "second", "default", with_uid):
        refused = await api("POST", "/app", {"name": "c", "uid": taken})
        assert (refused.status, refused.body["code"]) == (409, "conflict")


async def test_who_takes_the_key_of_one_that_is_gone_sees_nothing_of_it(api: Client) -> None:
    await api("POST", "/app", {"name": "a", "uid": "shop"})
    old = (await api("POST", "/app/shop/msg", {"eventType": "order.created", "payload": {"of": "the first"}})).body[
        "id"
    ]
    await api("DELETE", "/app/shop")
    await api("POST", "/app", {"name": "b", "uid": "shop"})
    assert (await api("GET", f"/app/shop/msg/{old}")).status == 404
    new = (await api("POST", "/app/shop/msg", {"eventType": "order.created", "payload": {}})).body["id"]
    assert (await api("GET", f"/app/shop/msg/{new}")).status == 200


async def test_get_if_exists(api: Client) -> None:
    first = await api("POST", "/app?get_if_exists=true", {"name": "a", "uid": "shop"})
    again = await api("POST", "/app?get_if_exists=true", {"name": "b", "uid": "shop"})
    assert (first.status, again.status) == (201, 200)
    assert again.body == first.body


async def test_put_makes_one_or_replaces_it(api: Client) -> None:
    made = await api("PUT", "/app/shop", {"name": "a", "metadata": {"x": "y"}})
    assert (made.status, made.body["uid"]) == (201, "shop")
    again = await api("PUT", "/app/shop", {"name": "b"})
    assert (again.status, again.body["name"], again.body["metadata"], again.body["uid"]) == (200, "b", {}, "shop")
    assert again.body["id"] == made.body["id"]
    moved = await api("PUT", f"/app/{made.body['id']}", {"name": "b", "uid": "store"})
    assert moved.body["uid"] == "store"
    assert (await api("PUT", "/app/app_none", {"name": "b"})).status == 404
    assert (await api("PUT", "/app/one", {"name": "b", "uid": "two"})).status == 409


async def test_of_many_at_once_one_is_made(api: Client, sql: Sql) -> None:
    replies = await asyncio.gather(*(api("POST", "/app", {"name": "a", "uid": "shop"}) for _ in range(8)))
    assert sorted(reply.status for reply in replies) == [201] + [409] * 7
    assert await sql.fetchval("SELECT count(*) FROM webhookd.tenant WHERE uid = 'shop'") == 1


@pytest.mark.parametrize("way", ["POST", "PUT", "message"])
async def test_of_many_that_want_one_all_have_it(api: Client, sql: Sql, way: str) -> None:
    async def asked(n: int) -> Reply:
        if way == "POST":
            return await api("POST", "/app?get_if_exists=true", {"name": f"{n}", "uid": "shop"}, idempotency_key=f"{n}")
        if way == "PUT":
            return await api("PUT", "/app/shop", {"name": f"{n}"})
        body = {"eventType": "a", "payload": {}, "application": {"name": f"{n}"}}
        return await api("POST", "/app/shop/msg", body)

    replies = await asyncio.gather(*(asked(n) for n in range(8)))
    assert all(reply.status in (200, 201, 202) for reply in replies), replies
    assert await sql.fetchval("SELECT count(*) FROM webhookd.tenant WHERE uid = 'shop'") == 1
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == (8 if way == "message" else 0)


async def test_two_changes_at_once_are_both_made(api: Client) -> None:
    await api("POST", "/app", {"name": "a", "uid": "shop"})
    for n in range(10):
        changes = {"name": f"{n}"}, {"metadata": {"n": f"{n}"}}, {"rateLimit": n + 1}
        replies = await asyncio.gather(*(api("PATCH", "/app/shop", change) for change in changes))
        assert [reply.status for reply in replies] == [200] * 3
        found = (await api("GET", "/app/shop")).body
        assert (found["name"], found["metadata"], found["rateLimit"]) == (f"{n}", {"n": f"{n}"}, n + 1)


async def test_the_default_one_stays(api: Client) -> None:
    default = (await api("GET", "/app/default")).body
    assert default["id"] == "app_" + "0" * 27
    assert (await api("DELETE", "/app/default")).body["code"] == "read_only"
    assert (await api("PATCH", "/app/default", {"uid": "mine"})).status == 409
    assert (await api("PATCH", "/app/default", {"name": "Mine"})).body["name"] == "Mine"


@pytest.mark.parametrize("order", ["ascending", "descending"])
async def test_pages_lead_forth_and_back(api: Client, order: str) -> None:
    made = ["app_" + "0" * 27, *[(await api("POST", "/app", {"name": f"{n}"})).body["id"] for n in range(6)]]
    wanted = made if order == "ascending" else made[::-1]
    pages, iterator = [], ""
    while True:
        page = (await api("GET", f"/app?limit=3&order={order}{iterator}")).body
        pages.append(page)
        if page["done"]:
            break
        iterator = f"&iterator={page['iterator']}"
    assert [[each["id"] for each in page["data"]] for page in pages] == [wanted[:3], wanted[3:6], wanted[6:]]
    assert pages[0]["prevIterator"] is None
    back = (await api("GET", f"/app?limit=3&order={order}&iterator={pages[2]['prevIterator']}")).body
    assert [each["id"] for each in back["data"]] == wanted[3:6]
    first = (await api("GET", f"/app?limit=3&order={order}&iterator={back['prevIterator']}")).body
    assert [each["id"] for each in first["data"]] == wanted[:3]
    assert first["prevIterator"] is None


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ("limit=0", "limit"),
        ("limit=251", "limit"),
        ("limit=x", "limit"),
        ("iterator=%00", "iterator"),
        ("order=up", "order"),
    ],
)
async def test_a_bad_query_is_422(api: Client, query: str, loc: str) -> None:
    reply = await api("GET", f"/app?{query}")
    assert (reply.status, reply.body["detail"][0]["loc"]) == (422, ["query", loc])


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({}, ["body", "name"]),
        ({"name": ""}, ["body", "name"]),
        ({"name": 7}, ["body", "name"]),
        ({"name": "a\0b"}, ["body", "name"]),
        ({"name": "a", "uid": "a b"}, ["body", "uid"]),
        ({"name": "a", "uid": "x" * 256}, ["body", "uid"]),
        ({"name": "a", "metadata": {f"{n}": "" for n in range(101)}}, ["body", "metadata"]),
        ({"name": "a", "metadata": {f"{n}": 0 for n in range(5_000)}}, ["body", "metadata"]),
        ({"name": "a", "metadata": {"a": 1}}, ["body", "metadata", "a"]),
        ({"name": "a", "rateLimit": 0}, ["body", "rateLimit"]),
        ({"name": "a", "rateLimit": "7"}, ["body", "rateLimit"]),
        ([], ["body"]),
    ],
)
async def test_a_bad_body_is_422(api: Client, body: object, loc: list[str]) -> None:
    reply = await api("POST", "/app", body)
    assert (reply.status, reply.body["detail"][0]["loc"]) == (422, loc)
    assert reply.headers["content-type"] == "application/json"


async def test_what_is_known_of_one_for_a_second_is_never_older_than_a_change_here(dsn: str, api: Client) -> None:
    await api("POST", "/app", {"name": "a", "uid": "shop"})
    old = (await api("POST", "/app/shop/msg", {"eventType": "order.created", "payload": {}})).body["id"]
    assert (await api("GET", f"/app/shop/msg/{old}")).status == 200
    await api("PATCH", "/app/shop", {"uid": "store"})
    assert [(await api("GET", f"/app/{uid}/msg/{old}")).status for uid in ("shop", "store")] == [404, 200]
    await api("DELETE", "/app/store")
    assert (await api("GET", f"/app/store/msg/{old}")).status == 404
    new = (await api("POST", "/app", {"name": "b", "uid": "store"})).body["id"]
    assert (await api("GET", "/app/store/endpoint")).body["data"] == []
    # A token of another tenant is never answered from what was known for somebody else.
    portal = api.with_token(await a_token(dsn, "portal", new, ("ViewBase",)))
    assert (await portal("GET", "/app/store/endpoint")).status == 200
    other = (await api("POST", "/app", {"name": "c", "uid": "other"})).body["id"]
    assert (await api("GET", "/app/other/endpoint")).status == 200
    assert (await portal("GET", "/app/other/endpoint")).status == 404
    assert (await portal("GET", f"/app/{other}/endpoint")).status == 404
