"""`webhookd replay` and `webhookd replays`, as people use them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.integration.cli.conftest import Shell
from tests.integration.conftest import Receiver, Running, Sql, configuration, eventually, finished, insert, insert_many
from tests.waiting import until
from webhookd.cli.options import who


async def test_from_count_to_end(sql: Sql, shell: Shell, receiver: Receiver, daemon: Running) -> None:
    tables = {name: {"url": receiver.url(name), "tenant": "acme"} for name in ("one", "two")}
    async with daemon(configuration(tables)):
        for _ in range(5):
            await insert(sql, type="order.paid", tenant="acme")
        await finished(sql)
        receiver.got.clear()
        every = ("--tenant", "acme", "--since", "1h", "--state", "all")
        counts = await shell.json("replay", *every, "--dry-run")
        assert counts == {
            "endpoints": [{"endpoint": "acme/one", "deliveries": 5}, {"endpoint": "acme/two", "deliveries": 5}],
            "deliveries": 10,
        }
        assert await shell.json("replay", *every, "--dry-run", "--yes") == counts
        assert (await shell.json("replays", "list"))["replays"] == []
        said = await shell("replay", *every, "--dry-run")
        assert said.split() == ["endpoint", "deliveries", "acme/one", "5", "acme/two", "5"]
        assert (await shell.json("replay", "--endpoint", "one", "--since", "1h", "--dry-run"))["deliveries"] == 0
        begun = await shell.json("replay", *every, "--type", "order.*", "--yes")
        assert [each["endpoint"] for each in begun["replays"]] == ["acme/one", "acme/two"]
        await until(lambda: len(receiver.got) == 10, "all of it")
        await finished(sql)

        async def are_done() -> bool:
            found = (await shell.json("replays", "list"))["replays"]
            return [each["state"] for each in found] == ["done", "done"]

        await eventually(are_done, "the end")
        (number, _) = (each["id"] for each in begun["replays"])
        shown = await shell("replays", "show", number)
        assert f"replay      {number}, done" in shown
        assert f"by {who()}" in shown
        assert "owed again  5 deliveries, of which 0 are to be tried still" in shown
        found = await shell.json("replays", "show", number)
        assert (found["sent"], found["part"], found["query"]["state"]) == (5, 1.0, "all")
        assert await shell("replays", "cancel", number, code=1) == f"replay {number} is over: done"
        assert "replay" in await shell("audit")


async def test_cancel_and_a_second_one(sql: Sql, shell: Shell, receiver: Receiver, daemon: Running) -> None:
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        await insert_many(sql, 3)
        await finished(sql)
        await shell("pause", "hook")
        begin = ("replay", "--endpoint", "hook", "--since", "1h", "--state", "all", "--yes")
        said = await shell(*begin)
        assert said == "replay 1 to hook begins: `webhookd replays show 1` says how far it is\n"
        again = await shell(*begin, code=1, output=True)
        assert again == "to hook one runs already: see `webhookd replays list`\n"
        assert json.loads(await shell(*begin, "--json", code=1, output=True)) == {"replays": [], "running": ["hook"]}
        assert "1, running; it waits, since its endpoint is paused" in await shell("replays", "show", 1)
        assert await shell("replays", "cancel", 1) == "replay 1 is over; 0 deliveries had been owed again\n"
        assert (await shell("replays", "show", 2, code=1)) == "there is no replay 2: `webhookd replays list` shows all"


async def test_explain_says_which_replays_an_event_was_of(
    sql: Sql, shell: Shell, receiver: Receiver, daemon: Running, tmp_path: Path
) -> None:
    files = tmp_path / "webhookd.toml"
    files.write_text('[endpoint.hook]\nurl = "https://hooks.example.com"\nevents = ["*"]\nsignature = "none"\n')
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        event_id = await insert(sql)
        await finished(sql)
        for number in (1, 2):
            await shell("replay", "--endpoint", "hook", "--since", "1h", "--state", "all", "--yes")
            await until(lambda n=number: len(receiver.got) == 1 + n, "the replay")  # type: ignore[misc]
            await finished(sql)
        await shell("pause", "hook")
        await shell("replay", "--endpoint", "hook", "--since", "1h", "--state", "all", "--yes")
        (found,) = await shell.json("explain", event_id, "-c", files)
        assert [(each["id"], each["by"], each["endpoint"]) for each in found["replayed"]] == [
            (1, who(), "hook"), (2, who(), "hook"),
        ]  # fmt: skip
        assert "hook: in replay 2, begun " in await shell("explain", event_id, "-c", files)


async def test_mistakes_are_one_sentence(sql: Sql, shell: Shell) -> None:
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('hook', 'file', '{}')")
    assert await shell("replays", "list") == "there has been no replay\n"
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for arguments, sentence in (  # each ends with 2
        (("--since", "1h"), "say to whom: --endpoint NAME, or --tenant TENANT"),
        (("--since", "1h", "--endpoint", "hook", "--tenant", ""), "say to whom: --endpoint NAME, or --tenant TENANT"),
        (("--since", "soon", "--endpoint", "hook"), '--since: "soon" is neither like "12h" nor like'),
        (("--since", later, "--endpoint", "hook"), f'--since: "{later}" is to come'),
        (("--since", "1h", "--until", "2h", "--endpoint", "hook"), "--until is not after --since"),
        (("--since", "1h", "--endpoint", "hook"), "nobody can be asked here: give --yes, or --dry-run"),
        (("--since", "1h", "--endpoint", "hook", "--type", "a*", "--yes"), '--type: "a*" is no event pattern'),
    ):
        assert (await shell("replay", *arguments, code=2)).startswith(sentence)
    assert (await shell("replay", "--since", "1h", "--endpoint", "x", "--yes", code=1)).startswith(
        "there is no endpoint"
    )
    assert (await shell("replay", "--since", "1h", "--tenant", "x", "--yes", code=1)).startswith("there is no such")
    await sql.execute("UPDATE webhookd.endpoint SET removed_at = now()")
    removed = await shell("replay", "--since", "1h", "--endpoint", "hook", "--yes", code=1)
    assert removed == "hook is removed: no live daemon's files have it"
    assert (await shell("replays", "show", 10**30, code=2)).startswith("Usage")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.replay") == 0
