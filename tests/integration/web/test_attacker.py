"""Somebody with a portal's token, and everything that it should not reach."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientSession, web

from tests.integration.conftest import Got, Receiver, Running, Sql, eventually
from tests.integration.web.conftest import Client, a_token
from tests.integration.web.test_endpoints import config
from webhookd.policy.access import CAPABILITIES


class Scene(NamedTuple):
    admin: Client
    portal: Client


@pytest.fixture
async def scene(dsn: str, receiver: Receiver, daemon: Running) -> AsyncIterator[Scene]:
    """Two applications, of which the portal has one and may do all; endpoints may be on the internet alone."""
    closed = config(receiver, allow_networks=[])
    async with daemon(closed) as running, ClientSession() as session:
        admin = Client(session, running.api_url, await a_token(dsn, "admin"))
        mine = (await admin("POST", "/app", {"name": "Mine", "uid": "mine"})).body["id"]
        await admin("POST", "/app", {"name": "Theirs", "uid": "theirs"})
        token = await a_token(dsn, "portal", mine, tuple(CAPABILITIES))
        yield Scene(admin, admin.with_token(token))


async def outcome(scene: Scene, sql: Sql, url: str) -> str:
    """What became of an event for an endpoint at this URL."""
    made = await scene.portal("POST", "/app/mine/endpoint", {"url": url})
    if made.status != 201:
        assert made.status == 422, made
        return "refused"
    await scene.admin("POST", "/app/mine/msg", {"eventType": "a", "payload": {}})

    async def is_tried() -> bool:
        return bool(await sql.fetchval("SELECT count(*) FROM webhookd.attempt"))

    await eventually(is_tried, "an attempt")
    error: str = await sql.fetchval("SELECT error FROM webhookd.attempt ORDER BY at LIMIT 1")
    return error


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",  # noqa: S104
        "2130706433",
        "0x7f.1",
        "169.254.169.254",
        "10.0.0.1",
    ],
)
async def test_nothing_inside_is_reached(scene: Scene, sql: Sql, receiver: Receiver, host: str) -> None:
    assert await outcome(scene, sql, f"http://{host}:{receiver.port}/hook") in (
        "egress_denied",
        "invalid_url",
        "refused",
    )
    assert receiver.got == []


async def test_a_redirect_leads_nowhere(dsn: str, sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """The receiver itself may be reached here; where it points to is not looked at."""

    async def script(_: Got) -> web.Response:
        return web.Response(status=307, headers={"location": receiver.url("inside")})

    receiver.scripts["hook"] = script
    async with daemon(config(receiver)) as running, ClientSession() as session:
        admin = Client(session, running.api_url, await a_token(dsn, "admin"))
        await admin("POST", "/app/default/endpoint", {"url": receiver.url("hook")})
        await admin("POST", "/app/default/msg", {"eventType": "a", "payload": {}})

        async def is_tried() -> bool:
            return bool(await sql.fetchval("SELECT count(*) FROM webhookd.attempt WHERE code = 307"))

        await eventually(is_tried, "an attempt")
    assert not receiver.of("inside")


@pytest.mark.parametrize(
    "more",
    [
        {"secret": {"file": "/etc/passwd"}},
        {"secret": {"env": "HOME"}},
        {"secret": "short"},
        {"headers": {"X": {"env": "HOME"}}},
        {"headers": {"X": {"file": "/etc/passwd"}}},
        {"headers": {"X": "a\r\nhost: other"}},
        {"headers": {"X\r\nY": "a"}},
        {"headers": {"Host": "other"}},
        {"headers": {"Content-Length": "1"}},
        {"headers": {"webhook-id": "a"}},
        {"headers": {"svix-signature": "a"}},
        {"headers": {"Transfer-Encoding": "chunked"}},
        {"headers": {"X": "ä"}},
        {"url": "file:///etc/passwd"},
        {"url": "https://user:pass@example.com\\@127.0.0.1/"},
        {"url": "https://example.com/\nx"},
        {"url": "gopher://example.com"},
        {"timeout": 31},
        {"timeout": 0},
        {"retry": {"first": 0}},
        {"retry": {"giveUpAfter": 8 * 86_400}},
        {"description": "\x00"},
        {"uid": "ep_1"},
        {"uid": "../x"},
    ],
)
async def test_an_endpoint_says_nothing_but_values_in_their_bounds(
    scene: Scene, sql: Sql, more: dict[str, Any]
) -> None:
    refused = await scene.portal("POST", "/app/mine/endpoint", {"url": "https://hooks.example.com/", **more})
    assert refused.status == 422, refused
    assert await sql.fetchval("SELECT count(*) FROM webhookd.endpoint") == 0


@pytest.mark.parametrize("more", [{"format": "standard"}, {"signature": "svix"}, {"webhookd": {"maxInFlight": 1000}}])
async def test_what_is_the_operators_stays_the_operators(scene: Scene, more: dict[str, Any]) -> None:
    path, url = "/app/mine/endpoint", {"url": "https://hooks.example.com/"}
    assert (await scene.portal("POST", path, {**url, **more})).status == 403
    made = await scene.admin("POST", path, {**url, "uid": "one", "webhookd": {"maxInFlight": 2}})
    replaced = await scene.portal("PUT", f"{path}/one", {**url, **more})  # which has no format and no signature
    assert replaced.status == (403 if "webhookd" in more else 200)
    assert (await scene.portal("PATCH", f"{path}/one", more)).status == 403
    replaced = await scene.portal("PUT", f"{path}/one", url)
    assert replaced.body["webhookd"] == {"maxInFlight": 2}
    assert all(replaced.body[key] == made.body[key] for key in ("format", "signature"))


async def test_others_are_not_there(scene: Scene) -> None:
    made = (await scene.admin("POST", "/app/theirs/endpoint", {"url": "https://hooks.example.com/"})).body["id"]
    message = (await scene.admin("POST", "/app/theirs/msg", {"eventType": "a", "payload": {}, "eventId": "evt"})).body[
        "id"
    ]
    for app in ("theirs", "default"):
        for method, path, body in (
            ("GET", "", None),
            ("GET", "/endpoint", None),
            ("GET", f"/endpoint/{made}", None),
            ("GET", f"/endpoint/{made}/secret", None),
            ("GET", f"/endpoint/{made}/headers", None),
            ("PATCH", f"/endpoint/{made}", {"disabled": True}),
            ("PUT", f"/endpoint/{made}", {"url": "https://evil.example.com/"}),
            ("POST", f"/endpoint/{made}/secret/rotate", {}),
            ("DELETE", f"/endpoint/{made}", None),
            ("GET", "/msg", None),
            ("GET", f"/msg/{message}", None),
            ("GET", "/msg/evt", None),
        ):
            assert (await scene.portal(method, f"/app/{app}{path}", body)).status == 404, (method, path)
    for name in (made, message, "evt"):
        assert (await scene.portal("GET", f"/app/mine/endpoint/{name}")).status == 404
        assert (await scene.portal("GET", f"/app/mine/msg/{name}")).status == 404


async def test_it_makes_itself_no_more_than_it_is(scene: Scene) -> None:
    for method, path, body in (
        ("POST", "/token", {"role": "admin", "name": "x"}),
        ("GET", "/token", None),
        ("POST", "/auth/app-portal-access/mine", {}),
        ("GET", "/app", None),
        ("POST", "/app", {"name": "x"}),
        ("PATCH", "/app/mine", {"uid": "theirs-too"}),
        ("DELETE", "/app/mine", None),
        ("POST", "/app/mine/msg", {"eventType": "a", "payload": {}}),
        ("POST", "/event-type", {"name": "a", "description": ""}),
    ):
        assert (await scene.portal(method, path, body)).status == 403, (method, path)


async def test_what_it_stores_comes_back_as_data(scene: Scene) -> None:
    text = "<script>alert(1)</script>\u202e\x1b[31m\x07'\"--"
    made = await scene.portal("POST", "/app/mine/endpoint", {"url": "https://hooks.example.com/", "description": text})
    assert made.body["description"] == text
    assert made.headers["content-type"] == "application/json"
