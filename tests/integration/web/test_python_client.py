"""Svix' client library for Python, unmodified: a customer's whole way, and what it does when replies are lost."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import pytest
import svix
from aiohttp import ClientSession, web
from svix.api import (
    ApplicationIn,
    ApplicationListOptions,
    EndpointIn,
    EndpointPatch,
    EventTypeIn,
    MessageIn,
    MessageListOptions,
    PollingEndpointConsumerSeekIn,
    Svix,
    SvixOptions,
)
from svix.api.message_poller import MessagePollerConsumerPollOptions, MessagePollerPollOptions
from svix.exceptions import HttpError

from tests.integration.conftest import Receiver, Running, Sql
from tests.integration.web.conftest import a_token
from tests.integration.web.test_endpoints import config
from tests.waiting import until

T = TypeVar("T")


class Served(NamedTuple):
    """Where a daemon serves the API, and an administrator's token."""

    url: str
    token: str


@pytest.fixture
async def served(dsn: str, receiver: Receiver, daemon: Running) -> AsyncIterator[Served]:
    """It may send to loopback."""
    async with daemon(config(receiver)) as running:
        yield Served(running.api_url, await a_token(dsn, "admin"))


@contextmanager
def client(served: Served, url: str | None = None) -> Iterator[Svix]:
    api = Svix(served.token, SvixOptions(server_url=url or served.url, retry_schedule=[0.01, 0.02, 0.04]))
    try:
        yield api
    finally:
        api._httpx_client.close()  # which it leaves to the garbage collector


async def polled(served: Served, app: str, uid: str = "polled") -> None:
    """Make an endpoint that is polled, which is the operator's to say, and nothing that the library knows of."""
    body = {"url": "", "uid": uid, "webhookd": {"kind": "poll"}}
    async with (
        ClientSession(headers={"authorization": f"Bearer {served.token}"}) as session,
        session.post(f"{served.url}/api/v1/app/{app}/endpoint", json=body) as response,
    ):
        assert response.status == 201


async def blocking(asked: Callable[[], T]) -> T:
    """The library waits; the daemon under test must not."""
    return await asyncio.to_thread(asked)


async def test_from_an_application_to_a_message_that_its_receiver_verifies(served: Served, receiver: Receiver) -> None:
    with client(served) as api:
        app = await blocking(lambda: api.application.create(ApplicationIn(name="Shop", uid="shop")))
        assert (await blocking(lambda: api.application.get_or_create(ApplicationIn(name="x", uid="shop")))).id == app.id
        await blocking(lambda: api.event_type.create(EventTypeIn(name="order.created", description="An order is made")))
        given = EndpointIn(url=receiver.url("hook"), event_types=["order.created"], uid="mine")
        endpoint = await blocking(lambda: api.endpoint.create("shop", given))
        secret = (await blocking(lambda: api.endpoint.get_secret("shop", endpoint.id))).key
        message = await blocking(
            lambda: api.message.create(
                "shop", MessageIn(event_type="order.created", payload={"n": 1}, event_id="evt-1")
            )
        )
        await blocking(lambda: api.message.create("shop", MessageIn(event_type="order.paid", payload={})))
        await until(lambda: bool(receiver.got), "it")
        got = receiver.got[0]
        svix.Webhook(secret).verify(got.body, dict(got.headers))
        assert got.body == b'{"n":1}'
        assert got.event_id == message.id
        assert (await blocking(lambda: api.message.get("shop", "evt-1"))).id == message.id
        listed = await blocking(lambda: api.message.list("shop", MessageListOptions(event_types=["order.created"])))
        assert [each.id for each in listed.data] == [message.id]
        changed = await blocking(lambda: api.endpoint.patch("shop", "mine", EndpointPatch(disabled=True)))
        assert changed.disabled
        page = await blocking(lambda: api.application.list(ApplicationListOptions(limit=1)))
        assert len(page.data) == 1
        await blocking(lambda: api.endpoint.delete("shop", endpoint.id))
        await blocking(lambda: api.application.delete("shop"))
        with pytest.raises(HttpError) as refused:
            await blocking(lambda: api.application.get("shop"))
        assert (refused.value.status_code, refused.value.code) == (404, "not_found")
        assert [each.event_id for each in receiver.got] == [message.id]


class Cutting:
    """A proxy that loses the first replies to each request, once what was asked for is done."""

    def __init__(self, served: Served, lost: int) -> None:
        self._url = served.url
        self._lost = lost
        self._seen: dict[str, int] = {}
        self.statuses: list[int] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {
            name: text for name, text in request.headers.items() if name.lower() not in ("host", "content-length")
        }
        body = await request.read()
        async with (
            ClientSession() as session,
            session.request(request.method, self._url + str(request.rel_url), headers=headers, data=body) as reply,
        ):
            content = await reply.read()
        self.statuses.append(reply.status)
        key = request.headers.get("idempotency-key", "")
        self._seen[key] = self._seen.get(key, 0) + 1
        if request.method == "POST" and self._seen[key] <= self._lost:
            return web.json_response({"code": "bad_gateway", "detail": "the reply was lost"}, status=502)
        return web.Response(status=reply.status, body=content, headers={"content-type": reply.headers["content-type"]})


@asynccontextmanager
async def cutting(served: Served, lost: int) -> AsyncIterator[tuple[Cutting, str]]:
    proxy = Cutting(served, lost)
    runner = web.AppRunner(_app(proxy))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield proxy, f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


def _app(proxy: Cutting) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    return app


async def test_a_reply_that_is_lost_makes_nothing_twice(served: Served, sql: Sql, receiver: Receiver) -> None:
    async with cutting(served, lost=2) as (proxy, url):
        with client(served, url) as api:
            app = await blocking(lambda: api.application.create(ApplicationIn(name="Shop")))
            endpoint = await blocking(lambda: api.endpoint.create(app.id, EndpointIn(url=receiver.url("hook"))))
            message = await blocking(lambda: api.message.create(app.id, MessageIn(event_type="a", payload={"n": 1})))
        assert proxy.statuses == [201] * 6 + [202] * 3
    await until(lambda: bool(receiver.got), "it")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.tenant WHERE id = $1", app.id) == 1
    assert await sql.fetchval("SELECT count(*) FROM webhookd.tenant") == 2, "and the default one"
    assert await sql.fetchval("SELECT array_agg(name) FROM webhookd.endpoint") == [endpoint.id]
    assert await sql.fetchval("SELECT array_agg(event_id) FROM webhookd.outbox") == [message.id]
    assert receiver.events("hook") == [message.id]


async def test_polling_with_consumers_and_a_seek(served: Served) -> None:
    with client(served) as api:
        await blocking(lambda: api.application.create(ApplicationIn(name="Shop", uid="shop")))
        await polled(served, "shop")
        key = (await blocking(lambda: api.endpoint.get_secret("shop", "polled"))).key
        began = datetime.now(UTC)
        for n in range(7):
            given = MessageIn(event_type="order.created", payload={"n": n}, event_id=f"order-{n}", channels=["eu"])
            await blocking(lambda given=given: api.message.create("shop", given))  # type: ignore[misc]

        async def all_of(iterator: str | None = None) -> list[int]:
            found: list[int] = []
            while len(found) < 7:
                options = MessagePollerConsumerPollOptions(limit=3, iterator=iterator)
                page = await blocking(
                    lambda options=options: api.message.poller.consumer_poll("shop", "polled", "one", options)  # type: ignore[misc]
                )
                for each in page.data:
                    body = json.dumps(each.payload, separators=(",", ":"))
                    svix.Webhook(key).verify(body, each.headers or {})
                    assert (each.event_type, each.channels) == ("order.created", ["eu"])
                    assert each.event_id == f"order-{each.payload['n']}"
                found += [each.payload["n"] for each in page.data]
                iterator = page.iterator
                assert not page.done  # it would sleep
            return found

        assert await all_of() == list(range(7))
        sought = await blocking(
            lambda: api.message.poller.consumer_seek(
                "shop", "polled", "one", PollingEndpointConsumerSeekIn(after=began)
            )
        )
        assert await all_of() == await all_of(sought.iterator) == list(range(7))
        page = await blocking(
            lambda: api.message.poller.poll("shop", "polled", MessagePollerPollOptions(channel="us", event_type="a"))
        )
        assert (page.data, page.done) == ([], False)  # after the ten seconds for which it is held
