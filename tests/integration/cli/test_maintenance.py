"""The commands that keep a database: maintain, erase, all that migrate can do, and what status says of the tables."""

import json
import re
from pathlib import Path

import pytest

from tests.integration.cli.test_cli import fails, webhookd
from tests.integration.cli.test_commands import endpoint, written
from tests.integration.conftest import Sql, insert, insert_many
from tests.integration.store.test_retention import event, make_day, old_event, part
from webhookd.store.statements import MIGRATIONS

MARK = "planted-payload-of-the-erasure-test"


def test_maintain_does_all_there_is_to_do_and_says_so(dsn: str, tmp_path: Path) -> None:
    file = written(tmp_path, endpoint("hook"), dsn=dsn, more='[retention]\nevents = "8d"')
    assert webhookd("maintain", "-c", file).stdout == "nothing more to do\n"


async def test_maintain_drops_what_is_past_its_time_and_says_what_is_in_the_way(
    dsn: str, sql: Sql, tmp_path: Path
) -> None:
    file = written(tmp_path, endpoint("hook"), dsn=dsn, more='[retention]\nevents = "8d"')
    for days in (-12, -9, -8):
        await make_day(sql, days)
        await old_event(sql, days, done=days > -12)
    found = webhookd("maintain", "-c", file)
    assert found.returncode == 1
    assert found.stdout.splitlines()[:2] == [f"emptied {part(-9)}", f"dropped {part(-9)}"]
    assert found.stderr == f"webhookd: {part(-12)}: it has events that a daemon has in hand\n"
    await sql.execute("UPDATE webhookd.batch SET done_at = now()")
    found = webhookd("maintain", env={"WEBHOOKD_DSN": dsn})  # without a configuration: seven days
    assert (found.returncode, found.stderr) == (0, "")
    assert f"dropped {part(-8)}" in found.stdout
    assert found.stdout.endswith("nothing more to do\n")


async def test_status_shows_the_tables_and_warns_of_what_is_to_come(dsn: str, sql: Sql) -> None:
    await insert(sql)
    shown = webhookd("status", env={"WEBHOOKD_DSN": dsn}).stdout
    assert re.search(r"^tables .*B, the oldest event for \d+ \w+, partitions for (29|30) days$", shown, re.M)
    await event(sql, 90)
    for parent in ("outbox", "attempt"):
        for days in range(3, 30):
            await sql.execute(f"DROP TABLE webhookd.{part(days, parent)}")
    shown = webhookd("status", env={"WEBHOOKD_DSN": dsn}).stdout
    assert re.search(r"^problem +there are partitions for [23] more days only: see `webhookd maintain`$", shown, re.M)
    assert "problem      rows have fallen into a DEFAULT partition" in shown
    document = json.loads(webhookd("status", "--json", env={"WEBHOOKD_DSN": dsn}).stdout)
    assert document["database"]["rows_in_default"] == 1
    assert 2 < document["database"]["days_ahead"] <= 3
    assert document["database"]["bytes"] > 100_000


def test_migrate_writes_one_file_per_version(tmp_path: Path) -> None:
    found = webhookd("migrate", "--sql-files", tmp_path / "sql", "--no-wake")
    names = [*(f"{each.name}.sql" for each in MIGRATIONS), "partitions.sql", "wake.sql"]
    assert found.stdout.split() == [str(tmp_path / "sql" / name) for name in names]
    for name in names:
        text = (tmp_path / "sql" / name).read_text()
        assert text.startswith("BEGIN ISOLATION LEVEL READ COMMITTED;\nSET LOCAL ")
        assert "SET LOCAL lock_timeout = '50ms'" in text
    assert "DROP TRIGGER" in (tmp_path / "sql" / "wake.sql").read_text()


@pytest.mark.parametrize("arguments", [["--rebase"], ["--owed=drop"], ["--rebase", "--owed=both"]])
def test_what_a_copy_owes_has_to_be_said(arguments: list[str]) -> None:
    assert webhookd("migrate", *arguments).returncode == 2


async def test_rebase_tells_what_it_did(dsn: str, sql: Sql, tmp_path: Path) -> None:
    file = written(tmp_path, endpoint("hook"), dsn=dsn, more='[daemon]\nenvironment = "staging"')
    await insert_many(sql, 2)
    await sql.execute("UPDATE webhookd.binding SET environment = 'production'")
    fails(webhookd("run", "-c", file), 78, 'belongs to environment "production"')
    assert webhookd("migrate", "-c", file, "--rebase", "--owed=drop").stdout.splitlines()[1] == (
        "the database belongs to this server and to environment staging now; 2 events that nobody had read, "
        "0 batches in hand, 0 deliveries to be tried again and 0 scheduled events were dropped"
    )
    again = webhookd("migrate", "-c", file, "--rebase", "--owed=deliver").stdout
    assert again.endswith("the database belongs to this server and to environment staging already\n")


async def test_maintain_takes_no_default_for_what_is_to_be_kept_when_the_files_have_a_mistake(
    dsn: str, sql: Sql, tmp_path: Path
) -> None:
    """They may say 30 days."""
    file = written(tmp_path, endpoint("hook"), dsn=dsn, more='[retention]\nevents = "30 days"')
    await make_day(sql, -12)
    for arguments, env in ((("-c", file), {}), ((), {"WEBHOOKD_CONFIG": str(file), "WEBHOOKD_DSN": dsn})):
        fails(webhookd("maintain", *arguments, env=env), 78, "[retention] events")
    assert await sql.fetchval("SELECT to_regclass($1) IS NOT NULL", f"webhookd.{part(-12)}")


# Erasing


async def full_of_words(sql: Sql) -> list[str]:
    """Two events of acme, one delivered and one owed, one of nobody; their ids. Three receivers have answered."""
    words, labels = f'{{"name": "{MARK}"}}', f'{{"label": "{MARK}"}}'
    ids = [await insert(sql, words, tenant="acme", metadata=labels) for _ in range(2)] + [await insert(sql, words)]
    await insert(sql, words, tenant="acme", deliver_after=await sql.fetchval("SELECT now() + interval '1 day'"))
    await sql.execute("SELECT webhookd.cut(100, 500, 1)")
    await sql.execute(
        "INSERT INTO webhookd.attempt (outbox_id, endpoint_id, attempt, ok, response) SELECT id, 1, 1, false, $1"
        " FROM webhookd.outbox WHERE deliver_after IS NULL",
        MARK.encode(),
    )
    await sql.execute(
        "INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due)"
        " SELECT 1, id, created_at, now() FROM webhookd.outbox WHERE event_id = ANY($1)",
        ids[1:],
    )
    return ids


async def hits(sql: Sql) -> int:
    """Rows of any table that hold the mark."""
    found = 0
    for (table,) in await sql.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'webhookd'"):
        rows = f"SELECT count(*) FROM ONLY webhookd.{table} t WHERE t::text ~ $1 OR t::text ~ $2"
        found += await sql.fetchval(rows, MARK, MARK.encode().hex())
    return found


async def test_erasing_a_tenant_leaves_no_byte_of_its_payloads_and_can_be_repeated(dsn: str, sql: Sql) -> None:
    await full_of_words(sql)
    environment = {"WEBHOOKD_DSN": dsn}
    assert await hits(sql) == 7
    told = "erase 3 events, 1 delivery of the backlog and 2 answers\n"
    assert webhookd("erase", "--tenant", "acme", "--dry-run", env=environment).stdout == f"would {told}"
    assert await hits(sql) == 7
    assert webhookd("erase", "--tenant", "acme", env=environment).stdout == told.replace("erase", "erased")
    assert await hits(sql) == 2, "those of nobody"
    assert await sql.fetchval("SELECT count(*) FROM webhookd.attempt") == 3, "that it was sent stays"
    assert await sql.fetchval("SELECT count(*) FROM webhookd.scheduled") == 0
    assert webhookd("erase", "--tenant", "", env=environment).stdout.startswith("erased 1 event,")
    assert await hits(sql) == 0
    assert json.loads(webhookd("erase", "--tenant", "acme", "--json", env=environment).stdout) == {
        "erased": True, "events": 0, "deliveries": 0, "responses": 0,
    }  # fmt: skip


async def test_erasing_an_event_spares_the_others(dsn: str, sql: Sql) -> None:
    ids = await full_of_words(sql)
    found = webhookd("erase", "--event", ids[1], env={"WEBHOOKD_DSN": dsn})
    assert found.stdout == "erased 1 event, 1 delivery of the backlog and 1 answer\n"
    assert await hits(sql) == 5


async def test_a_large_tenant_is_erased_a_piece_at_a_time(dsn: str, sql: Sql) -> None:
    await sql.execute(
        "INSERT INTO webhookd.outbox (type, payload, tenant)"
        " SELECT 'a', '{}', CASE WHEN n % 2 = 0 THEN 'acme' ELSE '' END FROM generate_series(1, 25000) n"
    )
    found = webhookd("erase", "--tenant", "acme", env={"WEBHOOKD_DSN": dsn})
    assert found.stdout.startswith("erased 12500 events,")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 12500


async def test_an_event_that_is_not_there_cannot_be_erased(dsn: str, sql: Sql) -> None:
    environment = {"WEBHOOKD_DSN": dsn}
    event_id = await insert(sql)
    assert webhookd("erase", "--event", event_id, env=environment).returncode == 0
    for unknown in ("nope", event_id):
        for more in ((), ("--dry-run",), ("--json",)):
            found = webhookd("erase", "--event", unknown, *more, env=environment)
            fails(found, 1, f'webhookd: the outbox has no event "{unknown}": it was erased before, was never committed')


def test_what_to_erase_has_to_be_named() -> None:
    fails(webhookd("erase"), 2, "name what to erase")
    fails(webhookd("erase", "--tenant", "a", "--event", "b"), 2, "name what to erase")


async def test_a_daemon_whose_event_was_erased_goes_on(sql: Sql) -> None:
    """The log has gaps then: a batch names an event that is gone."""
    one, other = [await insert(sql) for _ in range(2)]
    await sql.fetch("SELECT * FROM webhookd.erase(event_id => $1)", one)
    rows = await sql.fetch("SELECT o_ids FROM webhookd.cut(100, 500, 1)")
    assert [len(row[0]) for row in rows] == [1]
    assert await sql.fetchval("SELECT event_id FROM webhookd.outbox") == other
