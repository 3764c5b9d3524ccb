"""Secrets, tokens and payloads are planted wherever they belong, and looked for wherever they do not."""

import asyncio
import base64
import json
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from aiohttp import web

from tests.integration.cli.test_cli import PLAIN, webhookd
from tests.integration.conftest import Got, Receiver, Sql, attempts, eventually, insert
from tests.waiting import HANGS, until

SIGNING = b"PLANTED-signing-secret-0123456789"
SECRET = "whsec_" + base64.b64encode(SIGNING).decode()
MARKS = {
    "signing secret": SECRET.removeprefix("whsec_"),
    "signing secret, raw": "PLANTED-signing",
    "DSN password": "PLANTED-password",
    "API key": "PLANTED-api-key",
    "API key of a file": "PLANTED-file-key",
    "secret of another scheme": "PLANTED-text",
    "client secret": "PLANTED-client",
    "access token": "PLANTED-access",
    "answer of the server of tokens": "PLANTED-denied",
    "proxy": "PLANTED-proxy",
    "token in a URL": "PLANTED-token",
    "payload": "PLANTED-payload",
    "body of an answer": "PLANTED-answer",
    "refused configuration": "PLANTED-refused",
}
# `webhookd run` with the worst of bugs in the way of one endpoint: an exception that quotes all it can reach.
BROKEN = """
from webhookd.message import request
from webhookd.cli.main import main
right = request.build
def build(delivery, payload, *arguments):
    made = right(delivery, payload, *arguments)
    if delivery.endpoint.name == "broken":
        try:
            raise KeyError(payload, delivery.endpoint.url, made)
        except KeyError as error:
            raise ValueError(f"{payload} {delivery.endpoint.secrets[0].raw} {made}") from error
    return made
request.build = build
main()
"""
ENDPOINT = """
[endpoint.{name}]
url = "{url}?token=PLANTED-token"
events = ["order.*"]
secret = "{secret}"
headers = {{ authorization = "Bearer PLANTED-api-key" }}
timeout = "{timeout}"
"""
TOKENS = """
[endpoint.{name}]
url = "{url}?token=PLANTED-token"
events = ["order.*"]
signature = "none"
[endpoint.{name}.auth]
token_url = "{server}?token=PLANTED-token"
client_id = "webhookd"
client_secret = "PLANTED-client-secret"
"""
OTHER = """
[endpoint.other]
url = "{url}?token=PLANTED-token"
events = ["order.*"]
signature = "stripe"
secrets = ["PLANTED-text-1", {{ secret = "PLANTED-text-2", until = 2099-12-31 }}]
headers = {{ authorization = {{ file = "api.key", prefix = "Bearer " }} }}
"""
REFUSED = """
[database]
dsn = "mysql://app:PLANTED-refused@db/app"
[delivery]
timeout = "PLANTED"
[egress]
proxy = "http://user:PLANTED-proxy@proxy:3128"
proxy_authorization = "PLANTED-proxy\n"
[endpoint.a]
url = "https://user:PLANTED-refused@hooks.example.com/?token=PLANTED-refused"
events = ["order.*"]
secret = "whsec_PLANTED-refused"
headers = { authorization = "Bearer PLANTED-refused\\nx" }
[endpoint.b]
url = "ftp://hooks.example.com/?token=PLANTED-refused"
events = ["order.*"]
secrets = ["PLANTED-refused", 7]
[endpoint.c]
url = "https://hooks.example.com/?token=PLANTED-refused"
events = ["order.*"]
secret_env = "PLANTED-refused"
headers = { authorization = "PLANTED-refused $nothing" }
[endpoint.d]
url = "https://hooks.example.com/?token=PLANTED-refused"
events = ["order.*"]
signature = "github"
secrets = ["PLANTED refused", { secret = "PLANTED-refused", until = "PLANTED-refused" }]
headers = { x-a = { env = "PLANTED-refused" }, x-b = { file = "PLANTED-refused", user = "PLANTED-refused" } }
hmac = { header = "PLANTED refused" }
tls = { ca_file = "PLANTED-refused", key_file = "PLANTED-refused" }
[endpoint.d.auth]
token_url = "https://user:PLANTED-refused@login.example.com"
client_id = "PLANTED-refused\n"
client_secret = "PLANTED-refused\n"
"""


def found(places: dict[str, str]) -> list[str]:
    """Where something planted came up: "the mark in the place"."""
    return [f"{what} in {place}" for place, text in places.items() for what, mark in MARKS.items() if mark in text]


def configuration(folder: Path, dsn: str, receiver: Receiver) -> Path:
    names = {"hook": "5s", "failing": "5s", "slow": "200ms", "broken": "5s"}
    tables = [
        ENDPOINT.format(name=name, url=receiver.url(name), secret=SECRET, timeout=timeout)
        for name, timeout in names.items()
    ]
    tables.append(ENDPOINT.format(name="away", url="http://127.0.0.1:9/away", secret=SECRET, timeout="5s"))
    (folder / "api.key").write_text("PLANTED-file-key\n")
    tables.append(OTHER.format(url=receiver.url("other")))
    for name in ("granted", "denied"):
        tables.append(TOKENS.format(name=name, url=receiver.url(name), server=receiver.url(f"{name}-token")))
    file = folder / "webhookd.toml"
    file.write_text(
        f"""
[database]
dsn = "{dsn}"
[egress]
allow_http = true
allow_networks = ["127.0.0.0/8"]
[retry]
first = "100ms"
max_interval = "200ms"
[log]
level = "debug"
{"".join(tables)}"""
    )
    return file


async def dump(sql: Sql, query: str) -> str:
    return "\n".join(str(dict(row)) for row in await sql.fetch(query))


async def test_nothing_planted_comes_up_in_what_the_daemon_says_and_stores(
    dsn: str, sql: Sql, receiver: Receiver, tmp_path: Path
) -> None:
    async def refuse(_: Got) -> web.Response:
        return web.Response(status=500, text="PLANTED-answer", reason="PLANTED-answer")

    async def grant(_: Got) -> web.Response:
        return web.json_response({"access_token": "PLANTED-access-token", "token_type": "Bearer"})

    async def deny(_: Got) -> web.Response:
        said = {"error": "invalid_client", "error_description": "PLANTED-denied", "PLANTED-denied": "PLANTED-denied"}
        return web.json_response(said, status=401)

    receiver.scripts |= {"failing": refuse, "granted-token": grant, "denied-token": deny}
    receiver.hangs("slow").clear()
    with_password = dsn.replace("postgres@", "postgres:PLANTED-password@")
    assert with_password != dsn
    config = configuration(tmp_path, with_password, receiver)
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BROKEN, "run", "-c", config, stdout=PIPE, stderr=PIPE, env=PLAIN
    )
    assert daemon.stdout is not None
    assert daemon.stderr is not None
    output, errors = daemon.stdout, bytearray()

    async def read(stream: asyncio.StreamReader) -> None:
        async for line in stream:
            errors.extend(line)

    reading = asyncio.create_task(read(daemon.stderr))
    try:
        event = await insert(sql, '{"card": "PLANTED-payload"}')

        async def failed() -> bool:
            codes = {name: [row["error"] for row in await attempts(sql, event, name)] for name in names}
            once = ("hook", "other", "granted")
            return all(len(found) >= (1 if name in once else 2) for name, found in codes.items())

        names = ("hook", "other", "granted", "failing", "slow", "broken", "away")
        await eventually(failed, "each endpoint was tried, twice where it fails")
        assert [got.headers["authorization"] for got in receiver.of("hook")] == ["Bearer PLANTED-api-key"]
        assert [got.headers["authorization"] for got in receiver.of("other")] == ["Bearer PLANTED-file-key"]
        assert [got.headers["authorization"] for got in receiver.of("granted")] == ["Bearer PLANTED-access-token"]
        assert receiver.of("hook")[0].body.count(b"PLANTED-payload") == 1

        good = config.read_text()
        config.write_text(REFUSED)
        daemon.send_signal(signal.SIGHUP)
        await until(lambda: b'"reload_refused"' in errors, "the reload is refused")
        config.write_text(good)
        stored = {
            "attempt": await dump(sql, "SELECT error FROM webhookd.attempt"),
            "backlog": await dump(sql, "SELECT last_error FROM webhookd.backlog"),
            "daemon": await dump(sql, "SELECT * FROM webhookd.daemon"),
            "endpoint": await dump(sql, "SELECT spec FROM webhookd.endpoint"),
        }
        said = await asyncio.to_thread(webhookd, "status", "--json", "-c", config)
        assert json.loads(said.stdout)["endpoints"]
        await sql.execute("ALTER TABLE webhookd.daemon ADD CHECK (low < -1) NOT VALID")  # which no code expects
        await until(lambda: b'"part_failed"' in errors, "its heartbeat breaks")
        daemon.terminate()
        await asyncio.wait_for(daemon.wait(), HANGS)
        await reading
    finally:
        if daemon.returncode is None:
            daemon.kill()
        await daemon.wait()
    log = errors.decode()
    for needed in ("attempt_failed", "attempt_broke", "no_token", "ValueError", "KeyError", "Traceback", "http_500"):
        assert needed in log
    assert "timeout" in log
    places = {"stdout": (await output.read()).decode(), "stderr": log, **stored}
    places["status"] = said.stdout + said.stderr
    assert found(places) == []


async def test_a_refused_configuration_and_an_absent_database_keep_secrets(tmp_path: Path) -> None:
    file = tmp_path / "webhookd.toml"
    file.write_text(REFUSED)
    refused = await asyncio.to_thread(webhookd, "run", "-c", file)
    assert refused.returncode == 78
    env = {"WEBHOOKD_DSN": "postgresql://nobody:PLANTED-password@127.0.0.1:1/nothing"}
    away = await asyncio.to_thread(webhookd, "status", env=env)
    assert away.returncode == 69
    places = {"run": refused.stdout + refused.stderr, "status": away.stdout + away.stderr}
    assert found(places) == []
