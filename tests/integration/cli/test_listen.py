"""The local receiver, as a user starts it: what it prints, how it behaves, and a first delivery to it."""

import asyncio
import json
import re
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import orjson
import pytest
from aiohttp import web
from yarl import URL

from tests.integration.cli.test_cli import PLAIN, fails, running, said, webhookd
from tests.integration.cli.test_commands import OTHER, SECRET, endpoint
from tests.waiting import HANGS, until
from webhookd.message.signing import parse_secret, standard


class Listening:
    """`webhookd listen`, and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []

    async def read(self, stream: asyncio.StreamReader | None, into: list[str]) -> None:
        assert stream is not None
        async for line in stream:
            into.append(line.decode().rstrip("\n"))

    def url(self) -> str:
        found = re.search(r"listening on (http://127\.0\.0\.1:\d+/)", "\n".join([*self.out, *self.err]))
        return found[1] if found else ""


@asynccontextmanager
async def listening(*arguments: object, columns: str = "") -> AsyncIterator[tuple[Listening, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "webhookd", "listen", *map(str, arguments), stdout=PIPE, stderr=PIPE,
        env={**PLAIN, **({"COLUMNS": columns} if columns else {})},
    )  # fmt: skip
    there = Listening(process)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(there.read(process.stdout, there.out))
        tasks.create_task(there.read(process.stderr, there.err))
        try:
            yield there, await until(there.url, "it listens")
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), HANGS) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def post(
    url: str, body: bytes = b'{"type":"order.created","data":{"n":1.10}}', secret: str = SECRET
) -> tuple[int, str]:
    now = int(time.time())
    headers = {"webhook-id": "evt_1", "webhook-timestamp": str(now), "webhook-attempt": "1", "x-own": "mine"}
    headers |= dict(standard((parse_secret(secret),), {"webhook-id": "evt_1"}, now, body))
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as response:
        return response.status, await response.text()


async def test_listen_prints_what_to_paste_and_each_request() -> None:
    async with listening("--secret", SECRET) as (there, url):
        assert await post(url) == (200, "")
        assert (await post(f"{url}other", b"\x1b[2J", OTHER))[0] == 401
        await until(lambda: len(there.out) >= 24, "both are printed")
    start = there.out.index("[endpoint.listen]")
    assert there.out[start : start + 10] == [
        "[endpoint.listen]",
        f'url = "{url}"',
        'events = ["*"]',
        f'secret = "{SECRET}"',
        "",
        "# into webhookd.toml, for a receiver on this machine;",
        "# `webhookd run --dev` needs no such lines",
        "[egress]",
        "allow_http = true",
        'allow_networks = ["127.0.0.0/8"]',
    ]
    first, *rest = there.out[start + 11 :]
    assert first.endswith("  POST /  order.created  evt_1  attempt 1  verified  answered 200")
    assert rest[:7] == ["  {", '    "type": "order.created",', '    "data": {', '      "n": 1.10', "    }", "  }", ""]
    assert rest[7].endswith(
        "  POST /other  (no type)  evt_1  attempt 1  "
        "NOT VERIFIED: no signature matches: another secret, or not the exact bytes that were sent  answered 401"
    )
    assert rest[8] == r"  \x1b[2J"


async def test_what_listen_prints_fits_the_terminal() -> None:
    async with listening("--secret", SECRET, columns="80") as (there, url):
        assert (await post(url, b"x" * 100, OTHER))[0] == 401
        await until(lambda: any("answered 401" in line for line in there.out), "it is printed")
    assert [line for line in there.out if len(line) > 80 and "xxx" not in line] == [], "but for what was received"


async def test_what_listen_prints_is_a_configuration_that_reaches_it(dsn: str, tmp_path: Path) -> None:
    """The whole first try: init's layout, the printed lines pasted, an event, and it arrives verified."""
    async with listening() as (there, url):
        await until(lambda: "allow_networks" in "".join(there.out), "all lines are printed")
        pasted = "\n".join(line for line in there.out if not line.startswith("listening on"))
        config = tmp_path / "webhookd.toml"
        config.write_text(f'[database]\ndsn = "{dsn}"\n{pasted}')
        async with running(config) as (daemon, log):
            await until(lambda: said(log, "started"), "the daemon runs")
            await asyncio.to_thread(webhookd, "emit", "-c", config, "order.created", '{"n": 1}')
            await until(lambda: any("verified  answered 200" in line for line in there.out), "it arrives")
            daemon.send_signal(signal.SIGTERM)
        assert url in pasted


async def test_listen_json_fails_in_its_share_and_is_slow_as_told(tmp_path: Path) -> None:
    file = tmp_path / "listen.secret"
    file.write_text(f"{SECRET}\n")
    told = ("--secret-file", file, "--json", "--fail", "100%", "--status", "503", "--delay", "300ms")
    async with listening(*told) as (there, url):
        started = time.monotonic()
        assert (await post(url))[0] == 503
        assert time.monotonic() - started >= 0.3
    assert f"secret_file = {json.dumps(str(file))}" in there.err
    assert SECRET not in "".join(there.out + there.err)
    (line,) = there.out
    seen = json.loads(line)
    assert (seen["type"], seen["id"], seen["attempt"], seen["verified"], seen["status"]) == (
        "order.created",
        "evt_1",
        1,
        True,
        503,
    )


@pytest.mark.parametrize("form", [(), ("--json",)])
async def test_listen_shows_what_no_text_can_be_and_what_a_terminal_would_act_on(form: tuple[str, ...]) -> None:
    """A header that is not UTF-8, a surrogate alone, controls of both kinds, and the query of the URL."""
    body = '{"type":"\\ud800","id":"\x9b31m\u202e","n":1.10}'.encode()
    head = b"POST /hook?a=%2F&b= HTTP/1.1\r\nhost: x\r\nx-own: \xff\xc2\x9b\r\ncontent-length: "
    async with listening("--secret", SECRET, *form) as (there, url):
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(url).port)
        try:
            writer.write(head + b"%d\r\n\r\n" % len(body) + body)
            assert (await asyncio.wait_for(reader.readline(), HANGS)).split()[1] == b"401"
        finally:
            writer.close()
        await until(lambda: any("/hook?a=%2F&b=" in line for line in there.out), "it is shown")
    assert all(line.isprintable() for line in there.out)
    if form:
        (seen,) = map(orjson.loads, there.out)
        assert (seen["headers"]["x-own"], seen["body"]) == ("\N{REPLACEMENT CHARACTER}\x9b", body.decode())
    else:
        assert r'    "id": "\u009b31m\u202e",' in there.out


async def test_listen_hangs_as_told() -> None:
    async with asyncio.TaskGroup() as tasks, listening("--secret", SECRET, "--hang") as (there, url):
        asking = tasks.create_task(unanswered(url))
        await until(lambda: any(line.endswith("verified  hangs") for line in there.out), "it is printed")
        assert not asking.done()


async def unanswered(url: str) -> None:
    with pytest.raises(aiohttp.ClientError):
        await post(url)


async def test_listen_passes_on_what_is_verified_and_answers_what_is_answered() -> None:
    got: list[tuple[str, str, bytes, str]] = []

    async def target(request: web.Request) -> web.Response:
        got.append((request.path_qs, request.headers["x-own"], await request.read(), request.headers["webhook-id"]))
        return web.json_response({"seen": True}, status=202)

    application = web.Application()
    application.router.add_post("/app/hooks", target)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    async with listening("--secret", SECRET, "--forward-to", f"http://127.0.0.1:{port}/app/hooks?a=%2F") as (
        there,
        url,
    ):
        body = b'{"type": "a", "n": 1.10}'
        assert await post(url, body) == (202, '{"seen": true}')
        assert (await post(url, body, OTHER))[0] == 401
        await runner.cleanup()
        assert await post(url, body) == (502, "the target of --forward-to did not answer")
        await until(lambda: there.err, "it says so")
    assert got == [("/app/hooks?a=%2F", "mine", body, "evt_1")]
    assert there.err[0].startswith("webhookd: --forward-to did not answer, so 502 goes back: ")
    assert any(line.endswith("answered 202") for line in there.out)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--secret", "hello"), 2, "--secret: a secret starts with whsec_ (HMAC-SHA256) or whsk_ (ed25519)"),
        (("--secret-file", "/does/not/exist"), 2, "--secret-file: /does/not/exist cannot be read: No such file"),
        (("--secret", SECRET, "--secret-file", "x"), 2, "--secret and --secret-file: give only one of them"),
        (("--fail", "often"), 2, '--fail: write a share such as "0.3" or "30%"'),
        (("--fail", "nan"), 2, '--fail: write a share such as "0.3" or "30%"'),
        (("--delay", "2"), 2, '--delay: "2" is no duration'),
        (("--forward-to", "localhost:3000"), 2, "--forward-to: the URL must start with https:// or http://\n"),
    ],
)
def test_listen_says_in_one_sentence_what_is_wrong(arguments: tuple[str, ...], code: int, sentence: str) -> None:
    found = webhookd("listen", *arguments)
    fails(found, code, f"webhookd: {sentence}")
    assert found.stderr.count("\n") == 1


async def test_listen_on_a_port_that_is_taken() -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await asyncio.to_thread(webhookd, "listen", "--port", port)
    fails(found, 1, f"webhookd: port {port} of 127.0.0.1 is taken by another process: choose another with --port")
    assert found.stderr.count("\n") == 1


async def test_run_dev_on_a_postgres_of_its_own_delivers_to_localhost(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    async with listening("--secret", SECRET) as (there, url):
        config = tmp_path / "webhookd.toml"
        config.write_text(
            endpoint("mine", url=url.replace("127.0.0.1", "localhost"), secret=SECRET, signature="standard")
        )
        fails(webhookd("run", "-c", config), 78, "allow_http = true")
        daemon = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "webhookd", "run", "--dev", "--embedded", folder, "-c", config),
            stdout=PIPE,
            stderr=PIPE,
            env=PLAIN,
        )
        try:
            assert daemon.stdout is not None
            assert daemon.stderr is not None
            assert b"--dev ALLOWS HTTP AND PRIVATE NETWORKS" in await daemon.stderr.readline()
            line = (await asyncio.wait_for(daemon.stdout.readline(), HANGS)).decode()
            assert line == f"PostgreSQL runs in {folder}; its DSN, to be quoted in a shell:\n"
            dsn = (await asyncio.wait_for(daemon.stdout.readline(), HANGS)).decode().strip()
            assert re.fullmatch(r"postgresql://postgres@/postgres\?host=/[\w./-]+&port=5432", dsn), "alone on its line"
            emitted = await asyncio.to_thread(webhookd, "emit", "order.created", "{}", env={"WEBHOOKD_DSN": dsn})
            assert emitted.returncode == 0
            await until(lambda: any("verified  answered 200" in each for each in there.out), "it arrives")
            daemon.send_signal(signal.SIGTERM)
            await asyncio.wait_for(daemon.communicate(), HANGS)
            assert daemon.returncode == 0
        finally:
            if daemon.returncode is None:
                daemon.kill()
                await daemon.wait()
