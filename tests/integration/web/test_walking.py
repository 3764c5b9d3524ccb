"""Lists walked forwards and back while rows come in: nothing twice, nothing of before left out."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession

from tests.integration.conftest import Receiver, Running, Sql, finished
from tests.integration.web.conftest import Client, a_token
from tests.integration.web.test_endpoints import config
from tests.waiting import until

LISTS = ("/msg", "/attempt/endpoint/hook", "/endpoint/hook/msg")


@pytest.fixture
async def shop(dsn: str, receiver: Receiver, daemon: Running) -> AsyncIterator[Client]:
    async with daemon(config(receiver)) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        await client("POST", "/app", {"name": "Shop", "uid": "shop"})
        await client("POST", "/app/shop/endpoint", {"url": receiver.url("hook"), "uid": "hook"})
        yield client


async def emit(shop: Client) -> None:
    assert (await shop("POST", "/app/shop/msg", {"eventType": "a", "payload": {}})).status == 202


@pytest.mark.parametrize("path", LISTS)
async def test_there_and_back_while_rows_come_in(shop: Client, sql: Sql, receiver: Receiver, path: str) -> None:
    for _ in range(17):
        await emit(shop)
    await until(lambda: len(receiver.got) == 17, "all")
    await finished(sql)
    before = [each["id"] for each in (await shop("GET", f"/app/shop{path}?limit=250")).body["data"]]
    assert len(before) == 17
    there, iterator = list[str](), ""
    for _ in range(20):
        page = (await shop("GET", f"/app/shop{path}?limit=3{iterator}")).body
        there += [each["id"] for each in page["data"]]
        await emit(shop)
        if page["done"]:
            break
        iterator = f"&iterator={page['iterator']}"
    assert there == before
    back, iterator = [page["data"]], page["prevIterator"]
    while iterator is not None:
        page = (await shop("GET", f"/app/shop{path}?limit=3&iterator={iterator}")).body
        back.insert(0, page["data"])
        iterator = page["prevIterator"]
        await emit(shop)
        assert len(back) < 100
    walked = [each["id"] for page in back for each in page]
    assert len(set(walked)) == len(walked)
    assert walked[-17:] == before
    assert len(walked) > 17, "what has come in meanwhile stands before"
