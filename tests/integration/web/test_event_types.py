"""Event types: registered, changed, archived, forgotten."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from aiohttp import ClientSession

from tests.integration.web.conftest import Client, a_token
from webhookd.config.schema import Api as Settings
from webhookd.store.database import Database
from webhookd.web.api import Api
from webhookd.web.operation import Around
from webhookd.web.server import serve

CREATED = {"name": "order.created", "description": "An order was made", "schemas": {"1": {"type": "object"}}}


async def test_one_is_registered_changed_and_forgotten(api: Client) -> None:
    made = await api("POST", "/event-type", {**CREATED, "featureFlag": "beta"})
    assert made.status == 201
    assert made.body | {**CREATED, "featureFlags": ["beta"], "featureFlag": "beta", "archived": False} == made.body
    assert (await api("GET", "/event-type/order.created")).body == made.body
    assert (await api("POST", "/event-type", CREATED)).body["code"] == "conflict"
    changed = await api("PATCH", "/event-type/order.created", {"deprecated": True, "schemas": None})
    assert (changed.body["deprecated"], changed.body["schemas"], changed.body["description"]) == (
        True,
        None,
        "An order was made",
    )
    replaced = await api("PUT", "/event-type/order.created", {"description": "new"})
    assert (replaced.status, replaced.body["deprecated"], replaced.body["featureFlag"]) == (200, False, None)
    assert (await api("DELETE", "/event-type/order.created?expunge=true")).status == 204
    assert (await api("GET", "/event-type/order.created")).status == 404
    assert (await api("PUT", "/event-type/order.created", {"description": "new"})).status == 201


async def test_an_archived_one_is_left_out_and_comes_back(api: Client) -> None:
    await api("POST", "/event-type", CREATED)
    assert (await api("DELETE", "/event-type/order.created")).status == 204
    assert (await api("GET", "/event-type")).body["data"] == []
    (left,) = (await api("GET", "/event-type?include_archived=true")).body["data"]
    assert left["archived"]
    assert (await api("POST", "/event-type", CREATED)).status == 201
    assert [each["archived"] for each in (await api("GET", "/event-type")).body["data"]] == [False]


async def test_lists_have_schemas_where_they_are_wanted(api: Client) -> None:
    await api("POST", "/event-type", CREATED)
    assert (await api("GET", "/event-type")).body["data"][0]["schemas"] is None
    assert (await api("GET", "/event-type?with_content=true")).body["data"][0]["schemas"] == CREATED["schemas"]


async def test_schemas_keep_their_numbers(api: Client) -> None:
    schemas = {"1": {"maximum": 123456789012345678901234567890, "minimum": 0.1}}
    made = await api("POST", "/event-type", json.dumps({**CREATED, "schemas": schemas}).encode())
    assert (made.status, made.body["schemas"]) == (201, schemas)
    for bad in ("NaN", "1e999", '"\\ud800"'):
        body = f'{{"name": "b", "description": "", "schemas": {{"1": {{"x": {bad}}}}}}}'
        assert (await api("POST", "/event-type", body.encode())).status == 422
    large = {**CREATED, "name": "c", "schemas": {"1": {"x": "x" * 262_144}}}
    assert (await api("POST", "/event-type", large)).status == 422


async def test_two_changes_at_once_are_both_made(api: Client) -> None:
    await api("POST", "/event-type", CREATED)
    for n in range(10):
        changes = {"description": f"{n}"}, {"deprecated": n % 2 == 0}, {"featureFlag": f"f{n}"}
        await asyncio.gather(*(api("PATCH", "/event-type/order.created", change) for change in changes))
        found = (await api("GET", "/event-type/order.created")).body
        assert (found["description"], found["deprecated"], found["featureFlag"]) == (f"{n}", n % 2 == 0, f"f{n}")


async def test_of_many_puts_of_one_all_are_done(api: Client) -> None:
    replies = await asyncio.gather(*(api("PUT", "/event-type/a", {"description": f"{n}"}) for n in range(8)))
    assert sorted(reply.status for reply in replies) == [200] * 7 + [201]


async def test_a_name_may_begin_with_any_of_its_signs(api: Client) -> None:
    for name in ("-a", "-b", ".c", "_d"):
        await api("POST", "/event-type", {"name": name, "description": ""})
    found, iterator = [], ""
    for _ in range(4):
        page = (await api("GET", f"/event-type?limit=1{iterator}")).body
        found += [each["name"] for each in page["data"]]
        iterator = f"&iterator={page['iterator']}"
    assert (found, page["done"]) == (["-a", "-b", ".c", "_d"], True)


async def test_pages(api: Client) -> None:
    for name in "abcde":
        await api("POST", "/event-type", {"name": name, "description": ""})
    first = (await api("GET", "/event-type?limit=2")).body
    second = (await api("GET", f"/event-type?limit=2&iterator={first['iterator']}")).body
    last = (await api("GET", f"/event-type?limit=2&iterator={second['iterator']}")).body
    assert ["".join(each["name"] for each in page["data"]) for page in (first, second, last)] == ["ab", "cd", "e"]
    assert [page["done"] for page in (first, second, last)] == [False, False, True]
    falling = (await api("GET", "/event-type?order=descending&limit=2")).body
    assert "".join(each["name"] for each in falling["data"]) == "ed"


async def test_what_makes_no_sense_is_422(api: Client) -> None:
    await api("POST", "/event-type", CREATED)
    for body in (
        {"name": "a b", "description": ""},
        {"name": "a"},
        {"description": ""},
        {**CREATED, "schemas": {"1": 7}},
    ):
        assert (await api("POST", "/event-type", body)).status == 422
    for change in ({"description": None}, {"archived": None}, {"archived": "yes"}):
        assert (await api("PATCH", "/event-type/order.created", change)).status == 422
    assert (await api("PATCH", "/event-type/none", {})).status == 404
    assert (await api("PUT", "/event-type/a%20b", {"description": ""})).status == 404
    assert (await api("DELETE", "/event-type/none")).status == 404


@pytest.fixture
async def filed(dsn: str) -> AsyncIterator[Client]:
    """An API of files that describe three types."""
    described = {name: f"of a file: {name}" for name in ("b.filed", "d.filed", "z.filed")}
    around = Around(Settings(), event_types=described, since=datetime(2026, 11, 29, tzinfo=UTC))
    async with (
        Database(dsn, size=4) as database,
        serve(Api(database, around).answer, "127.0.0.1:0", {}, "[api]") as url,
        ClientSession() as session,
    ):
        yield Client(session, url, await a_token(dsn, "admin"))


async def test_those_of_files_are_among_them(filed: Client) -> None:
    for name in ("a", "c", "y"):
        await filed("POST", "/event-type", {"name": name, "description": ""})
    every = ["a", "b.filed", "c", "d.filed", "y", "z.filed"]
    for order, wanted in (("ascending", every), ("descending", every[::-1])):
        for limit in (1, 2, 3, 6, 50):
            found, iterator = list[str](), None
            for _ in range(10):
                more = f"&iterator={iterator}" if iterator else ""
                page = (await filed("GET", f"/event-type?order={order}&limit={limit}{more}")).body
                found += [each["name"] for each in page["data"]]
                iterator = page["iterator"]
                if page["done"]:
                    break
            assert found == wanted, (order, limit)
    one = (await filed("GET", "/event-type/b.filed")).body
    assert (one["description"], one["readOnly"]) == ("of a file: b.filed", True)
    assert not (await filed("GET", "/event-type/a")).body["readOnly"]


async def test_those_of_files_are_changed_there(filed: Client) -> None:
    for method, path, body in (
        ("POST", "/event-type", {"name": "b.filed", "description": ""}),
        ("PUT", "/event-type/b.filed", {"description": ""}),
        ("PATCH", "/event-type/b.filed", {"description": ""}),
        ("DELETE", "/event-type/b.filed", None),
        ("DELETE", "/event-type/b.filed?expunge=true", None),
    ):
        refused = await filed(method, path, body)
        assert (refused.status, refused.body["code"]) == (409, "read_only"), (method, path)
