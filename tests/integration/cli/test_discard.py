"""`webhookd discard`, as people use it."""

from pathlib import Path

from tests.integration.cli.conftest import Shell
from tests.integration.conftest import Receiver, Running, Sql, configuration, insert, settled
from webhookd.cli.options import who

LONG = {"first": "1h", "max_interval": "1h"}
FILES = """
[endpoint.hook]
url = "https://hooks.example.com"
events = ["*"]
signature = "none"
"""


async def test_from_count_to_end(sql: Sql, shell: Shell, receiver: Receiver, daemon: Running, tmp_path: Path) -> None:
    receiver.answers("hook", 500)
    files = tmp_path / "webhookd.toml"
    files.write_text(FILES)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, retry=LONG)):
        event_id = await insert(sql, type="order.created")
        other = await insert(sql, type="invoice.paid")
        for each in (event_id, other):
            await settled(sql, each, {"hook": "retrying"})
        some = ("discard", "--type", "order.*", "--since", "1h")
        assert await shell(*some, "--dry-run") == (
            "would cover 1 event: 0 not handed out yet, 1 delivery of the backlog, 0 before cursors\n"
        )
        assert await shell.json(*some, "--dry-run") == {
            "events": 1, "waiting": 0, "owed": 1, "parked": 0, "parked_more": False,
        }  # fmt: skip
        assert (await shell.json(*some, "--dry-run", "--yes"))["events"] == 1
        assert await sql.fetchval("SELECT count(*) FROM webhookd.discard") == 0
        said = await shell(*some, "--yes")
        assert said == "discarded; 1 delivery of the backlog ended, and what waits elsewhere is not sent\n"
        await settled(sql, event_id, {"hook": "rejected"})
        await settled(sql, other, {"hook": "retrying"})
        found = await shell.json("discard", "--endpoint", "hook", "--yes")
        assert (found["ended"], found["done"]) == (1, True)
        explained = await shell("explain", event_id, "-c", files)
        assert "all: discarded " in explained
        assert "hook: discarded " in explained
        assert f"by {who()}" in explained
        (document,) = await shell.json("explain", event_id, "-c", files)
        assert [each["endpoint"] for each in document["discarded"]] == [None, "hook"]
        deeds = (await shell.json("audit", "--action", "discard"))["audit"]
        assert [each["subject"] for each in deeds] == ["hook", None]
        assert deeds[1]["after"]["type"] == "order.*"


async def test_without_a_daemon_it_does_what_daemons_would(sql: Sql, shell: Shell) -> None:
    event_id = await insert(sql)
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due)
           SELECT 1, id, created_at, now() FROM webhookd.outbox"""
    )
    assert (await shell.json("discard", "--tenant", "", "--yes"))["ended"] == 1
    rows = await sql.fetch("SELECT state FROM webhookd.event_status($1)", event_id)
    assert [row["state"] for row in rows] == ["rejected"]


async def test_mistakes_are_one_sentence(sql: Sql, shell: Shell) -> None:
    for arguments, sentence in (
        (("--yes",), "say what: --type, --tenant, --endpoint or --since, or several"),
        (("--until", "1h", "--yes"), "say what: --type, --tenant, --endpoint or --since, or several"),
        (("--type", "a*", "--yes"), '--type: "a*" is no event pattern'),
        (("--type", "a"), "nobody can be asked here: give --yes, or --dry-run"),
        (("--since", "1h", "--until", "2h", "--yes"), "--until is not after --since"),
        (("--tenant", "*", "--yes"), "--tenant: events have a tenant, and it is not '*'"),
        (("--since", "2999-01-01T00:00:00Z", "--yes"), '--since: "2999-01-01T00:00:00Z" is to come'),
    ):
        assert (await shell("discard", *arguments, code=2)).startswith(sentence)
    assert (await shell("discard", "--endpoint", "x", "--yes", code=1)).startswith("there is no endpoint")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.discard") == 0
