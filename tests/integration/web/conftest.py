"""The API over HTTP, on a database of the test's own, with a token of each role."""

import io
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import orjson
import pytest
from aiohttp import ClientSession

from webhookd.config.schema import Api as Settings
from webhookd.ids import new_id
from webhookd.policy.access import CAPABILITIES, ROLES
from webhookd.store import tokens
from webhookd.store.database import Database
from webhookd.store.tokens import New
from webhookd.web.api import Api
from webhookd.web.operation import Around
from webhookd.web.server import serve


class Reply(NamedTuple):
    """What was answered."""

    status: int
    body: Any
    headers: Any


class Client:
    """Asks as somebody."""

    def __init__(self, session: ClientSession, url: str, token: str | None) -> None:
        self._session = session
        self.url = url
        self.token = token

    def with_token(self, token: str | None) -> "Client":
        return Client(self._session, self.url, token)

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """`body`: bytes as they are, or anything as JSON; headers with _ for -."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token is not None:
            sent["authorization"] = f"Bearer {self.token}"
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        if data is not None:
            sent.setdefault("content-type", "application/json")
        stream = None if data is None else io.BytesIO(data)  # what is large is sent in pieces
        async with self._session.request(method, f"{self.url}/api/v1{path}", data=stream, headers=sent) as response:
            content = await response.read()
            return Reply(response.status, json.loads(content) if content else None, response.headers)


async def a_token(
    dsn: str, role: str, tenant: str | None = None, capabilities: tuple[str, ...] = (), endpoint: int | None = None
) -> str:
    """A token that counts."""
    token = tokens.new_token()
    async with Database(dsn, size=1) as database:
        await tokens.add(
            database, new_id("tok_"), token, New(role, f"the {role}", "test", tenant, capabilities, endpoint=endpoint)
        )
    return token


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Client]:
    """As an administrator."""
    async with (
        Database(dsn, size=4) as database,
        serve(Api(database, Around(Settings())).answer, "127.0.0.1:0", {}, "[api]") as url,
    ):
        token = await a_token(dsn, "admin")
        async with ClientSession() as session:
            yield Client(session, url, token)


@pytest.fixture
async def as_role(dsn: str, api: Client) -> dict[str, Client]:
    """As each role; a portal's is of the default application and capable of all, a poller's of an endpoint."""
    tenant = "app_" + "0" * 27
    found = {}
    for role in ROLES:
        is_portal = role == "portal"
        token = await a_token(
            dsn,
            role,
            tenant if is_portal else None,
            tuple(CAPABILITIES) if is_portal else (),
            1 if role == "poll" else None,
        )
        found[role] = api.with_token(token)
    return found
