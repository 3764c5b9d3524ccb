"""What comes that is no request of a client library, and what is answered while the database is away."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, UnixConnector

from tests.integration.conftest import eventually
from tests.integration.web.conftest import Client
from tests.waiting import until
from webhookd.config.schema import Api as Settings
from webhookd.errors import ConfigError
from webhookd.store.database import Database
from webhookd.web import body, server
from webhookd.web.api import Api
from webhookd.web.operation import Around
from webhookd.web.server import serve


class Raw:
    """A connection that says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def says(self, text: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of what is answered."""
        self.writer.write(text)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        content = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, content


@pytest.fixture
async def raw(api: Client) -> AsyncIterator[Raw]:
    host, _, port = api.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    yield Raw(reader, writer)
    writer.close()


def post(api: Client, path: str, length: int, more: str = "") -> bytes:
    return (
        f"POST /api/v1{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.token}\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n"
    ).encode()


async def test_half_a_body_and_then_silence_is_408(api: Client, raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "SECONDS", 0.2)
    status, headers, content = await raw.says(post(api, "/app", 100) + b'{"name":')
    assert (status, json.loads(content)["code"]) == (408, "timeout")
    assert headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "upto"), [("/app", 64 << 10), ("/event-type", 320 << 10), ("/app/default/msg", (1 << 20) + (64 << 10))]
)
async def test_a_large_body_is_413(api: Client, raw: Raw, path: str, upto: int) -> None:
    status, _, content = await raw.says(post(api, path, upto + 1))
    assert (status, json.loads(content)["code"]) == (413, "too_large")
    chunked = await api("POST", path, b" " * (upto + 1))
    assert (chunked.status, chunked.body["code"]) == (413, "too_large")


async def test_a_body_that_is_not_what_its_headers_say_is_400(api: Client) -> None:
    for path in ("/app", "/app/default/msg"):
        reply = await api("POST", path, b"no gzip at all", content_encoding="gzip")
        assert (reply.status, reply.body["code"]) == (400, "bad_request")


async def test_who_waits_to_be_told_to_go_on_is_told(api: Client, raw: Raw) -> None:
    raw.writer.write(post(api, "/app", 13, "expect: 100-continue\r\n"))
    assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await raw.says(b'{"name": "a"}'))[0] == 201


async def test_who_does_not_read_has_no_connection(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UNREAD_SECONDS", 0.2)
    host, _, port = api.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
    ask = b"GET /api/v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"

    async def is_gone() -> bool:
        with contextlib.suppress(ConnectionError):
            writer.write(ask * 100)
        return writer.transport.is_closing() or reader.at_eof() or reader.exception() is not None

    await eventually(is_gone, "the end of the connection")
    writer.close()


async def test_a_deep_body_is_400(api: Client) -> None:
    for path in ("/app", "/app/default/msg"):
        reply = await api("POST", path, b"[" * (60_000 if path == "/app" else 200_000))
        assert (reply.status, reply.body["code"]) == (400, "too_deep")


@pytest.mark.parametrize(
    "text",
    [
        b"no http at all\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\n bad\x00: y\r\n\r\n",
        b"POST /api/v1/app HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /api/v1/app HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 9_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_told_as_all_is(raw: Raw, text: bytes) -> None:
    status, headers, content = await raw.says(text)
    assert status == 400
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(content)["status"] == 400
    assert await raw.reader.read() == b""


@pytest.mark.parametrize("path", ["/", "/api", "/api/v2/app", "/api/v1", "/api/v1/", "/api/v1/nothing", "/api/v1app"])
async def test_elsewhere_is_404_as_a_document(api: Client, path: str) -> None:
    async with ClientSession() as session, session.get(api.url + path) as response:
        assert response.status == 404
        assert json.loads(await response.read())["code"] == "not_found"


async def test_the_head_alone(api: Client) -> None:
    for path, status in (("/app/default", 200), ("/app/nobody", 404), ("/health", 204)):
        reply = await api("HEAD", path)
        assert (reply.status, reply.body) == (status, None)


async def test_another_method_is_405(api: Client) -> None:
    reply = await api("PATCH", "/app")
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")


async def test_health_and_the_document_need_no_token(api: Client) -> None:
    nobody = api.with_token(None)
    assert (await nobody("GET", "/health")).status == 204
    document = await nobody("GET", "/openapi.json")
    assert document.body["openapi"] == "3.1.0"
    assert document.body["servers"] == [{"url": "/api/v1"}]


async def test_a_database_that_is_away_is_503(unused: str) -> None:
    async with (
        Database(unused) as database,
        serve(Api(database, Around(Settings())).answer, "127.0.0.1:0", {}, "[api]") as url,
        ClientSession() as session,
    ):
        reply = await Client(session, url, "x" * 30)("GET", "/app")
        assert (reply.status, reply.body["code"], reply.headers["retry-after"]) == (503, "database_away", "1")
        assert (await Client(session, url, None)("GET", "/health")).status == 204


async def test_a_schema_that_is_not_there_is_503(empty_dsn: str) -> None:
    async with (
        Database(empty_dsn) as database,
        serve(Api(database, Around(Settings())).answer, "127.0.0.1:0", {}, "[api]") as url,
        ClientSession() as session,
    ):
        reply = await Client(session, url, "x" * 30)("GET", "/app")
        assert (reply.status, reply.body["code"]) == (503, "unavailable")


@pytest.fixture
def unused() -> str:
    """The DSN of a server that is not there."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"postgresql://nobody@127.0.0.1:{one.getsockname()[1]}/none"


async def test_hosts_base_path_and_origins(dsn: str) -> None:
    settings = Settings(base_path="/hooks", hosts=("api.example",), cors_origins=("https://app.example",))
    async with (
        Database(dsn) as database,
        serve(Api(database, Around(settings)).answer, "127.0.0.1:0", {}, "[api]") as url,
        ClientSession() as session,
    ):

        async def ask(method: str, path: str, **headers: str) -> tuple[int, dict[str, str]]:
            async with session.request(method, url + path, headers={"host": "api.example", **headers}) as response:
                return response.status, {name.lower(): value for name, value in response.headers.items()}

        assert (await ask("GET", "/hooks/api/v1/health"))[0] == 204
        assert (await ask("GET", "/api/v1/health"))[0] == 404
        assert (await ask("GET", "/hooks/api/v1/health", host="other.example"))[0] == 421
        for host in ("api.example:8484", "API.example"):
            assert (await ask("GET", "/hooks/api/v1/health", host=host))[0] == 204
        status, headers = await ask("OPTIONS", "/hooks/api/v1/app", origin="https://app.example")
        assert (status, headers["access-control-allow-origin"]) == (204, "https://app.example")
        assert headers["access-control-allow-methods"] == "GET, HEAD, POST"
        assert {"authorization", "idempotency-key"} <= set(headers["access-control-allow-headers"].split(", "))
        assert "access-control-allow-credentials" not in headers
        for origin in ("https://evil.example", "null"):
            assert "access-control-allow-origin" not in (await ask("GET", "/hooks/api/v1/app", origin=origin))[1]
        assert "access-control-allow-origin" in (await ask("GET", "/hooks/api/v1/app", origin="https://app.example"))[1]


async def test_a_foreign_page_writes_nothing(api: Client) -> None:
    own = api.url
    for origin, status in (("https://evil.example", 403), ("null", 403), (own, 201)):
        reply = await api("POST", "/app", {"name": "a"}, origin=origin, content_type="text/plain")
        assert reply.status == status
    assert (await api("GET", "/app", origin="https://evil.example")).status == 200


async def test_a_socket_of_the_file_system(dsn: str, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as left:  # behind, by one that was killed
        left.bind(str(path))
    async with Database(dsn) as database:
        async with (
            serve(Api(database, Around(Settings())).answer, f"unix:{path}", {}, "[api]"),
            ClientSession(connector=UnixConnector(str(path))) as session,
        ):
            assert (await Client(session, "http://api", None)("GET", "/health")).status == 204
            with pytest.raises(ConfigError, match="cannot be listened on"):
                async with serve(Api(database, Around(Settings())).answer, f"unix:{path}", {}, "[api]"):
                    pass
        assert not path.exists()


async def test_an_address_that_is_taken_is_a_mistake_of_the_configuration(api: Client, dsn: str) -> None:
    async with Database(dsn) as database:
        with pytest.raises(ConfigError, match=r"\[api\] listen: .* cannot be listened on"):
            async with serve(Api(database, Around(Settings())).answer, api.url.removeprefix("http://"), {}, "[api]"):
                pass


async def test_connections_are_bounded(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MOST", 3)
    host, _, port = api.url.removeprefix("http://").rpartition(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(6)]
    ends = [asyncio.ensure_future(reader.read()) for reader, _ in held]
    await until(lambda: sum(end.done() for end in ends) >= 3, "the end of those that are too many")
    assert sum(end.done() for end in ends) == 3
    for _, writer in held:
        writer.close()
    for end in ends:
        end.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await end
