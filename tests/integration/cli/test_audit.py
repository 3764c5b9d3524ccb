"""`webhookd audit`: each thing that people do leaves a row, in the transaction that does it."""

import json

from tests.integration.cli.conftest import Prompt
from tests.integration.conftest import Sql, insert
from webhookd.cli.options import who
from webhookd.store.database import Database
from webhookd.store.registry import Registry


async def deeds(prompt: Prompt, *options: object) -> list[tuple[str, str | None]]:
    return [(each["action"], each["subject"]) for each in (await prompt.json("audit", *options))["audit"]]


async def test_pauses_and_resumes(prompt: Prompt, sql: Sql) -> None:
    await prompt("pause", "--tenant", "acme")
    await prompt("pause", "acme/mail")  # it is already
    await sql.execute("SELECT webhookd.disable(2, 'http_410')")
    await prompt("enable", "stock")
    await prompt("resume", "acme/orders")
    assert await deeds(prompt) == [
        ("resume", "acme/orders"), ("enable", "stock"), ("pause", "acme/orders"), ("pause", "acme/mail"),
    ]  # fmt: skip
    first, second, *_ = (await prompt.json("audit"))["audit"]
    assert (first["who"], first["role"], first["tenant"]) == (who(), "postgres", "acme")
    assert list(first["before"]) == ["paused_at"]
    assert second["before"]["disabled_why"] == "http_410"
    paused = (await prompt.json("audit", "--action", "pause", "--of", "acme/mail"))["audit"]
    assert [list(each["after"]) for each in paused] == [["paused_at"]]


async def test_what_others_do_with_sql(prompt: Prompt, sql: Sql) -> None:
    """Nobody has said who that is, so it is whom Postgres knows."""
    await sql.execute("SELECT webhookd.pause('{1}')")
    (deed,) = (await prompt.json("audit"))["audit"]
    assert (deed["who"], deed["role"], deed["subject"]) == ("postgres", "postgres", "orders")


async def test_what_is_rolled_back_leaves_nothing(prompt: Prompt, sql: Sql) -> None:
    for number, is_over in ((1, False), (2, True)):
        move = sql.transaction()
        await move.start()
        await sql.execute(f"SELECT webhookd.pause('{{{number}}}')")
        await (move.rollback() if is_over else move.commit())
    assert await deeds(prompt) == [("pause", "orders")]


async def test_erasing_a_tenant_takes_along_what_was_done_with_it(prompt: Prompt, sql: Sql) -> None:
    await prompt("pause", "--all")
    await insert(sql, tenant="acme", event_id="a")
    await insert(sql, tenant="acme", event_id="b")
    await prompt("erase", "--event", "b")
    await prompt("erase", "--tenant", "acme", "--dry-run")
    assert len(await deeds(prompt)) == 5
    await prompt("erase", "--tenant", "acme")
    await prompt("erase", "--tenant", "acme")
    assert await deeds(prompt) == [
        ("erase", "acme"), ("erase", "b"), ("pause", "stock"), ("pause", "orders"),
    ]  # fmt: skip
    await prompt("erase", "--tenant", "")  # which takes along nothing, or all would be gone where there are no tenants
    assert len(await deeds(prompt)) == 5


async def test_a_copy_and_removals(prompt: Prompt, dsn: str, sql: Sql) -> None:
    async with Database(dsn, size=1) as database:
        await Registry(database).accept_removals(["orders"], "somebody@here")
    await sql.execute("SELECT webhookd.rebase('staging', 'drop')")
    rebased, accepted = (await prompt.json("audit"))["audit"]
    assert (rebased["action"], rebased["subject"], rebased["after"]["owed"]) == ("rebase", "staging", "drop")
    assert (accepted["who"], accepted["after"]) == ("somebody@here", {"endpoints": ["orders"]})


async def test_no_number_is_given_twice_after_a_copy(sql: Sql) -> None:
    """Logical replication copies rows, not how far sequences are."""
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('a', 'file', '{}')")
    await sql.execute("INSERT INTO webhookd.audit (id, action) OVERRIDING SYSTEM VALUE VALUES (1, 'x'), (7, 'y')")
    await sql.execute("SELECT webhookd.rebase('production', 'deliver')")
    assert [row[0] for row in await sql.fetch("SELECT id FROM webhookd.audit ORDER BY id")] == [1, 7, 8]


async def test_pages(prompt: Prompt) -> None:
    for _ in range(2):
        await prompt("pause", "--all")
        await prompt("resume", "--all")
    page = await prompt.json("audit", "--limit", 10)
    rest = await prompt.json("audit", "--limit", 10, "--before", page["more"])
    assert (len(page["audit"]), len(rest["audit"]), rest["more"]) == (10, 6, None)
    shown = await prompt("audit", "--limit", 10)
    assert shown.splitlines()[-1] == f"more: --before {page['more']}"
    assert "paused_at" in json.dumps(page)
    assert await prompt("audit", "--since", "0s") == "nothing found\n"


async def test_old_rows_go(sql: Sql) -> None:
    await sql.execute("INSERT INTO webhookd.audit (at, action) VALUES (now() - interval '91 days', 'x'), (now(), 'y')")
    await sql.execute("SELECT webhookd.sweep()")
    assert [row[0] for row in await sql.fetch("SELECT action FROM webhookd.audit")] == ["y"]
