"""`webhookd poll`, and what other commands say of an endpoint that is polled."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from tests.integration.cli.conftest import Shell
from tests.integration.cli.test_cli import PLAIN
from tests.integration.conftest import Running, Sql, eventually, insert, states
from tests.planted import SECRET
from tests.waiting import HANGS
from webhookd.config.config import Config, build
from webhookd.errors import ConfigError

POLLED = {"kind": "poll", "events": ["order.*"], "secret": SECRET}


def config(**endpoints: Mapping[str, Any]) -> Config:
    return build({"endpoint": endpoints}, [], {}, lambda path, file: "")


@pytest.fixture
async def running(daemon: Running, sql: Sql) -> AsyncIterator[Sql]:
    """A daemon with an endpoint that is polled, and one that pays no attention to it."""
    filtered = {**POLLED, "filter": {"data": {"n": {"gte": 2}}}}
    async with daemon(config(polled=POLLED, filtered=filtered)):
        yield sql


async def test_it_shows_what_there_is(running: Sql, shell: Shell) -> None:
    events = [await insert(running, json.dumps({"n": n})) for n in range(4)]
    await insert(running, type="other")

    async def shown() -> list[Any]:
        said = await shell("poll", "polled", "--json")
        return [json.loads(line) for line in said.splitlines()]

    async def all_there() -> bool:
        return len(await shown()) == 4

    await eventually(all_there, "four events")
    found = await shown()
    assert [(each["event_id"], each["payload"]) for each in found] == [(id_, {"n": n}) for n, id_ in enumerate(events)]
    assert found[0]["type"] == "order.created"
    lines = (await shell("poll", "filtered")).splitlines()
    assert [events[2] in lines[0], events[3] in lines[1], len(lines)] == [True, True, 2]
    assert '{"n": 2}' in lines[0]
    assert await shell("poll", "polled", "--since", "0s") == ""
    assert (await shell("poll", "nobody", code=1)).startswith("there is no endpoint")
    assert (await shell("poll", "polled", "--since", "soon", code=2)).startswith("--since")


async def test_it_follows(running: Sql, dsn: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "webhookd", "poll", "polled", "--follow", "--json",
        env={**PLAIN, "WEBHOOKD_DSN": dsn}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for n in range(3):
            event = await insert(running, json.dumps({"n": n}))
            async with asyncio.timeout(HANGS):
                assert json.loads(await process.stdout.readline())["event_id"] == event
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(HANGS):
            assert (await process.communicate())[1] == b""
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_nothing_is_sent_to_it(running: Sql, shell: Shell) -> None:
    event = await insert(running)
    nothing = "nothing is sent to polled: who polls seeks instead"
    for command in (
        ("pause", "polled"),
        ("resume", "polled"),
        ("resend", event, "--endpoint", "polled"),
        ("test", "polled"),
        ("replay", "--endpoint", "polled", "--since", "1h", "--yes"),
    ):
        assert (await shell(*command, code=1)).startswith(nothing), command
    assert (await shell("pause", "--all", code=1)).startswith("nothing is sent to filtered, polled")
    assert list(await running.fetch("SELECT webhookd.pause(ARRAY[1, 2])")) == []
    for table in ("parked", "backlog", "replay", "shot"):
        assert await running.fetchval(f"SELECT count(*) FROM webhookd.{table}") == 0, table

    async def is_polled() -> bool:
        return await states(running, event) == {"polled": "polled", "filtered": "polled"}

    await eventually(is_polled, "the state of what is fetched")
    said = await shell("explain", event, code=1, output=True)
    assert "polled: polled, so that who asks for it has it" in said


async def test_of_one_that_is_sent_to_it_says_so(daemon: Running, shell: Shell) -> None:
    async with daemon(config(hook={"url": "https://example.com", "events": ["*"], "secret": SECRET})):
        assert (await shell("poll", "hook", code=1)).startswith('endpoint "hook" is sent to: `webhookd tail')


async def test_it_stays_what_it_is(daemon: Running, sql: Sql) -> None:
    files = [config(hook=POLLED)]
    async with daemon(files[0], load=lambda: files[-1]) as running:
        files.append(config(hook={"url": "https://example.com", "events": ["*"], "secret": SECRET}))
        running.reload()
        refused = "SELECT config_problem FROM webhookd.daemon WHERE config_problem IS NOT NULL"
        await eventually(lambda: sql.fetchval(refused), "the refusal")
        assert "hook is polled, and stays so: give the new one another name" in await sql.fetchval(refused)
        assert await sql.fetchval("SELECT spec ->> 'kind' FROM webhookd.endpoint") == "poll"
    with pytest.raises(BaseExceptionGroup) as raised:
        async with daemon(files[-1]):
            pass
    (error,) = raised.value.exceptions
    assert isinstance(error, ConfigError)
    assert "hook is polled, and stays so" in str(error)


async def test_a_token_of_a_poller(running: Sql, shell: Shell) -> None:
    made = await shell("token", "new", "poll", "printer", "--tenant", "default", "--endpoint", "polled", "--json")
    row = await running.fetchrow("SELECT role, endpoint_id FROM webhookd.token WHERE id = $1", json.loads(made)["id"])
    assert row is not None
    assert row["role"] == "poll"
    assert row["endpoint_id"] == await running.fetchval("SELECT id FROM webhookd.endpoint WHERE name = 'polled'")
    for arguments, sentence in (
        (("poll", "x"), "--tenant and --endpoint are wanted with the role poll"),
        (("poll", "x", "--tenant", "default"), "--tenant and --endpoint are wanted with the role poll"),
        (("read", "x", "--endpoint", "polled"), "--endpoint goes with the role poll"),
        (("poll", "x", "--tenant", "default", "--endpoint", "none"), 'the application has no endpoint "none" that is'),
    ):
        code = 1 if "none" in arguments else 2
        assert (await shell("token", "new", *arguments, code=code)).startswith(sentence), arguments
