"""`webhookd check` names each right that the daemon's role lacks, with the GRANT that gives it."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.integration.cli.test_cli import configuration, webhookd
from tests.integration.conftest import Sql, as_user
from webhookd.store.database import Database
from webhookd.store.rights import NOT_OURS, READ, WRITTEN, rights
from webhookd.store.statements import QUERIES

WRITES = """SELECT table_name, string_agg(privilege_type, ' ' ORDER BY strpos('INSERT UPDATE DELETE', privilege_type))
  FROM information_schema.role_table_grants
 WHERE grantee = 'webhookd_daemon' AND table_schema = 'webhookd' AND privilege_type <> 'SELECT' GROUP BY 1"""


async def test_what_it_looks_for_is_what_the_template_gives(granted: Sql) -> None:
    assert {row[0]: row[1] for row in await granted.fetch(WRITES)} == WRITTEN


async def test_each_right_that_is_taken_away_is_told_and_what_is_told_gives_it_back(granted: Sql, dsn: str) -> None:
    wanted = {**dict.fromkeys(READ, "SELECT"), **{name: f"SELECT {what}" for name, what in WRITTEN.items()}}
    rows = await granted.fetch(QUERIES["rights"], list(wanted), list(wanted.values()), NOT_OURS)
    assert len(rows) > 100
    async with Database(as_user(dsn, "webhookd_daemon"), size=1) as database:
        assert not (await rights(database)).lacking
        for row in rows:
            await granted.execute(f"REVOKE {row['name']} ON {row['what']} FROM webhookd_daemon, PUBLIC")
            found = await rights(database)
            sentence, advice = found.sentences()
            told, grant = sentence.split(": ")
            assert told == f"webhookd_daemon lacks {row['name']} on {row['what']}"
            assert grant == f"GRANT {row['name']} ON {row['what']} TO webhookd_daemon;"
            assert advice.startswith("`webhookd grants --sql`")
            assert not found.only_reads
            await granted.execute(grant)
            assert not (await rights(database)).lacking


@pytest.mark.usefixtures("granted")
async def test_a_role_without_rights_is_69_with_some_of_them_named(dsn: str, tmp_path: Path) -> None:
    file = configuration(tmp_path, as_user(dsn, "my_app"))
    found = await asyncio.to_thread(webhookd, "check", "-c", file)
    assert found.returncode == 69
    assert "no mistake; 1 endpoint" in found.stdout
    assert "--offline" not in found.stdout, "the database was asked"
    assert "webhookd: my_app lacks USAGE on SCHEMA webhookd: GRANT USAGE ON SCHEMA webhookd TO my_app;" in found.stderr
    told = " ".join(found.stderr.split())
    assert told.count("my_app lacks ") == 3
    assert " more of the kind `webhookd grants --sql` prints all that the roles need" in told


async def test_a_right_that_is_missing_is_told_by_check(granted: Sql, dsn: str, tmp_path: Path) -> None:
    file = configuration(tmp_path, as_user(dsn, "webhookd_daemon"))
    assert (await asyncio.to_thread(webhookd, "check", "-c", file)).returncode == 0
    await granted.execute("REVOKE INSERT, DELETE ON webhookd.backlog FROM webhookd_daemon")
    found = await asyncio.to_thread(webhookd, "check", "-c", file)
    grant = "GRANT DELETE, INSERT ON webhookd.backlog TO webhookd_daemon;"
    assert found.returncode == 69
    assert f"webhookd_daemon lacks DELETE, INSERT on webhookd.backlog: {grant}" in found.stderr


@pytest.mark.usefixtures("granted")
async def test_a_role_that_only_reads_is_told_what_it_is_for(dsn: str, tmp_path: Path) -> None:
    file = configuration(tmp_path, as_user(dsn, "webhookd_reader"))
    found = await asyncio.to_thread(webhookd, "check", "-c", file)
    assert (found.returncode, found.stderr) == (0, "")
    assert "note: webhookd_reader only reads: that is enough for `webhookd status`" in found.stdout
    assert (await asyncio.to_thread(webhookd, "status", "-c", file)).returncode == 0
    document = json.loads((await asyncio.to_thread(webhookd, "check", "--json", "-c", file)).stdout)
    assert document["role_only_reads"] is True
