"""Endpoints that want a token: from a server of tokens to the receiver, through a whole daemon."""

import json
from typing import Any

from aiohttp import web

from tests.integration.conftest import Got, Receiver, Running, Sql, attempts, configuration, eventually, insert, settled
from webhookd.config.config import Config

PLANTED = "PLANTED-client-secret"


def hook(receiver: Receiver, **changes: Any) -> Config:
    auth = {"token_url": receiver.url("token"), "client_id": "webhookd", "client_secret": PLANTED, "scope": "events"}
    return configuration({"hook": {"url": receiver.url("hook"), "auth": auth, **changes}})


def issues(receiver: Receiver, *tokens: str) -> None:
    """Give these tokens in turn, the last for ever; the receiver takes only the newest."""
    given = list(tokens)
    newest = ""

    async def token(_: Got) -> web.Response:
        nonlocal newest
        newest = given.pop(0) if len(given) > 1 else given[0]
        return web.json_response({"access_token": newest, "token_type": "Bearer", "expires_in": 3600})

    async def checks(got: Got) -> web.Response:
        return web.Response(status=200 if got.headers.get("authorization") == f"Bearer {newest}" else 401)

    receiver.scripts |= {"token": token, "hook": checks}


def refuses(receiver: Receiver, status: int) -> None:
    """Give no token."""

    async def token(_: Got) -> web.Response:
        return web.Response(status=status)

    receiver.scripts["token"] = token


async def test_a_delivery_with_a_token(sql: Sql, daemon: Running, receiver: Receiver) -> None:
    issues(receiver, "fake-1")
    async with daemon(hook(receiver)):
        for _ in range(3):
            await settled(sql, await insert(sql), {"hook": "delivered"})
    (asked,) = receiver.of("token")
    assert asked.body == b"grant_type=client_credentials&scope=events"
    assert [got.headers["authorization"] for got in receiver.of("hook")] == ["Bearer fake-1"] * 3
    spec = await sql.fetchval("SELECT spec FROM webhookd.endpoint")
    assert json.loads(spec)["auth"] == {"client_id": "webhookd", "scope": "events", "audience": ""}
    assert PLANTED not in spec


async def test_no_token_costs_no_attempt_and_the_endpoint_is_probed(
    sql: Sql, daemon: Running, receiver: Receiver
) -> None:
    """A hundred events wait behind an endpoint that fails, and have all their attempts when the server is back."""
    refuses(receiver, 503)
    async with daemon(hook(receiver)):
        event_ids = [await insert(sql) for _ in range(100)]

        async def is_failing() -> bool:
            return bool(await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.parked WHERE reason = 'failing')"))

        await eventually(is_failing, "the endpoint to be known as failing")
        assert await sql.fetchval("SELECT count(*) FROM webhookd.attempt") == 0
        assert receiver.of("hook") == []
        assert await sql.fetchval(
            "SELECT array_agg(DISTINCT last_error) FILTER (WHERE last_error > '') FROM webhookd.backlog"
        ) == ["auth_error"]
        assert len(receiver.of("token")) < 10
        issues(receiver, "fake-2")
        for event_id in event_ids:
            await settled(sql, event_id, {"hook": "delivered"})
    assert [row["attempt"] for row in await attempts(sql, event_ids[0])] == [1]
    assert len(receiver.of("hook")) == 100


async def test_without_a_token_the_time_runs_out(sql: Sql, daemon: Running, receiver: Receiver) -> None:
    refuses(receiver, 400)
    async with daemon(hook(receiver, retry={"give_up_after": "1s"})):
        await settled(sql, await insert(sql), {"hook": "exhausted"})
    assert receiver.of("hook") == []
