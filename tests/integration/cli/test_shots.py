"""`webhookd resend` and `webhookd test`, as people use them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.conftest import Shell
from tests.integration.conftest import Receiver, Running, Sql, configuration, finished, insert, settled
from tests.planted import SECRET
from webhookd.cli.options import who

LONG = {"first": "1h", "max_interval": "1h"}
FILES = """
[egress]
allow_http = true
allow_networks = ["127.0.0.0/8"]
[event_types."order.created"]
example = { id = 42, status = "created" }
[event_types."order.paid"]
example = { id = 42, status = "paid" }
[event_types."invoice.paid"]
example = { id = 7 }
[event_types."order.lost"]
description = "without an example"
[endpoint.hook]
url = "https://hooks.example.com"
events = ["order.*"]
signature = "none"
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files with examples of events."""
    file = tmp_path / "webhookd.toml"
    file.write_text(FILES)
    return file


def endpoints(receiver: Receiver, **tables: Any) -> Any:
    return configuration({name: {"url": receiver.url(name), **table} for name, table in tables.items()}, retry=LONG)


async def test_resend_goes_to_all_that_were_owed_it(
    sql: Sql, shell: Shell, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("bad", 500)
    async with daemon(endpoints(receiver, good={}, bad={}, other={"events": ["invoice.*"]})):
        event_id = await insert(sql)
        await settled(sql, event_id, {"good": "delivered", "bad": "retrying"})
        found = json.loads(await shell("resend", event_id, "--json", code=1, output=True))
        assert [(each["endpoint"], each["ok"], each["code"], each["error"]) for each in found["resent"]] == [
            ("bad", False, 500, "http_500"),
            ("good", True, 200, None),
        ]
        assert {each["event_id"] for each in found["resent"]} == {event_id}
        receiver.answers("bad", 200)
        said = await shell("resend", event_id, "--endpoint", "bad")
        assert [word for word in said.split() if not word.isdigit()] == ["endpoint", "answer", "ms", "bad"]
        await settled(sql, event_id, {"good": "delivered", "bad": "delivered"})
        listed = (await shell.json("attempts", "--endpoint", "bad"))["attempts"]
        assert [(each["attempt"], each["trigger"]) for each in listed] == [(3, "resend"), (2, "resend"), (1, None)]
        assert "3 (resend)" in await shell("attempts", "--endpoint", "bad")
        assert "3 (resend)" in await shell("endpoints", "show", "bad")
        deeds = (await shell.json("audit", "--of", event_id))["audit"]
        assert len((await shell.json("audit", "--of", "bad"))["audit"]) == 2
        assert {(each["who"], each["action"]) for each in deeds} == {(who(), "resend")}
        assert sorted(each["after"]["endpoint"] for each in deeds) == ["bad", "bad", "good"]


async def test_explain_says_what_was_resent(
    sql: Sql, shell: Shell, receiver: Receiver, daemon: Running, files: Path
) -> None:
    async with daemon(endpoints(receiver, hook={})):
        event_id = await insert(sql)
        await finished(sql)
        await shell("resend", event_id)
        (found,) = await shell.json("explain", event_id, "-c", files)
        (said,) = found["resent"]
        assert (said["endpoint"], said["by"], said["ok"], said["code"]) == ("hook", who(), True, 200)
        assert f"by {who()}, answered 200" in await shell("explain", event_id, "-c", files)


async def test_resend_to_somebody_who_was_not_owed_it(
    sql: Sql, shell: Shell, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(endpoints(receiver, hook={"events": ["invoice.*"]}, acme={"tenant": "acme"})):
        event_id = await insert(sql)
        await settled(sql, event_id, {None: "unmatched"})
        assert (await shell("resend", event_id, code=1)).startswith(f'nobody was owed "{event_id}": name an endpoint')
        await shell("resend", event_id, "--endpoint", "hook")
        assert receiver.events("hook") == [event_id]
        sentence = "acme/acme gets no events of no tenant, and this is one"
        assert await shell("resend", event_id, "--endpoint", "acme/acme", code=1) == sentence


async def test_who_cannot_be_sent_to_is_told(sql: Sql, shell: Shell, receiver: Receiver, daemon: Running) -> None:
    async with daemon(endpoints(receiver, hook={}, away={})):
        event_id = await insert(sql)
        await settled(sql, event_id, {"hook": "delivered", "away": "delivered"})
    async with daemon(endpoints(receiver, hook={})):
        found = json.loads(await shell("resend", event_id, "--json", code=1, output=True))["resent"]
        assert [(each["endpoint"], each["ok"], each["error"]) for each in found] == [
            ("away", False, "no_daemon"), ("hook", True, None),
        ]  # fmt: skip
        assert "no live daemon has it in its files" in await shell("resend", event_id, code=1, output=True)


async def test_mistakes_are_one_sentence(sql: Sql, shell: Shell, receiver: Receiver, daemon: Running) -> None:
    assert (await shell("resend", "nothing", code=1)).startswith('the outbox has no event "nothing"')
    assert (await shell("test", "nobody", code=1)).startswith('there is no endpoint "nobody"')
    both = await shell("test", "hook", "--event", "order.created", "--all", code=2)
    assert both == "give --event TYPE, or --all"
    async with daemon(endpoints(receiver, hook={})):
        event_id = await insert(sql)
        await finished(sql)
    sentence = "no live daemon has hook in its files: start one, or see `webhookd status`"
    assert await shell("resend", event_id, code=1) == sentence
    assert await shell("test", "hook", code=1) == sentence
    assert await sql.fetchval("SELECT count(*) FROM webhookd.shot") == 0
    assert await sql.fetchval("SELECT count(*) FROM webhookd.audit") == 0


async def test_test_sends_examples(sql: Sql, shell: Shell, receiver: Receiver, daemon: Running, files: Path) -> None:
    async with daemon(endpoints(receiver, hook={"events": ["order.*"], "format": "raw"})):
        report = await shell.json("test", "hook", "--all", "-c", files)
        assert report["error"] is None
        data = report["data"]
        assert (data["testsRun"], data["testsSucceeded"], data["testsFailed"]) == (3, 3, 0)
        assert [each["event"] for each in data["tests"]] == ["order.created", "order.paid", "order.lost"]
        assert {each["status"] for each in data["tests"]} == {200}
        bodies = [json.loads(each["request"]["body"]) for each in data["tests"]]
        assert bodies[0] == {"id": 42, "status": "created"}
        assert bodies[2] == {
            "test": True,
            "message": "This was made up by `webhookd test`: [event_types] has no example of order.lost.",
        }
        await shell("test", "hook", "-c", files)
        assert json.loads(receiver.of("hook")[-1].body)["status"] == "created"  # the first that it subscribes to
        await shell("test", "hook", "--event", "invoice.paid", "-c", files)
        assert json.loads(receiver.of("hook")[-1].body) == {"id": 7}
        assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 0


@pytest.mark.parametrize(
    ("events", "type_"), [("*", "webhookd.test"), ("order.*", "order.test"), ("order.created", "order.created")]
)
async def test_test_makes_one_up_where_there_are_no_files(
    sql: Sql, shell: Shell, receiver: Receiver, daemon: Running, events: str, type_: str
) -> None:
    async with daemon(endpoints(receiver, hook={"events": [events]})):
        (found,) = (await shell.json("test", "hook"))["data"]["tests"]
    assert found["event"] == type_
    assert "made up" in found["request"]["body"]


async def test_what_it_says_of_failures(sql: Sql, shell: Shell, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("hook", 422)
    hook = {"headers": {"x-api-key": SECRET}, "active": False}
    async with daemon(endpoints(receiver, hook=hook)):
        said = await shell("test", "hook", "--verbose", code=1, output=True)
    lines = said.splitlines()
    assert lines[1].split()[:2] == ["webhookd.test", "422"]
    assert any(line.endswith("x-api-key: …") for line in lines)
    assert any(line.endswith("webhook-trigger: test") for line in lines)
    assert "answered 422:" in lines
    assert lines[-1].endswith("answer 422")
    assert SECRET not in said
