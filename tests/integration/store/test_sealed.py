"""Secrets in the database: sealed, replaced with an overlap, sealed anew with another key, and nobody's to read."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from tests.integration.cli.test_cli import webhookd
from tests.integration.conftest import Sql, as_user
from webhookd.message.sealing import Keyring, SealingKey, Unreadable, new_key, parse_key
from webhookd.store.database import Database
from webhookd.store.secrets import PAGE, Kept, Lost, Secrets

OLD, NEW, LOST = (SealingKey(name, name.encode() * 8) for name in ("2025", "2026", "lost"))
FIRST, SECOND = "whsec_PLANTED-first", "whsec_PLANTED-second"


@pytest.fixture
async def endpoint(sql: Sql) -> int:
    found: int = await sql.fetchval(
        "INSERT INTO webhookd.endpoint (tenant, name, source, spec) VALUES ('acme', 'hook', 'api', '{}') RETURNING id"
    )
    return found


def secrets(database: Database, *keys: SealingKey) -> Secrets:
    return Secrets(database, Keyring(keys))


async def test_a_secret_is_replaced_with_an_overlap(dsn: str, sql: Sql, endpoint: int) -> None:
    async with Database(dsn) as database:
        kept = secrets(database, NEW)
        assert await kept.of(endpoint) == []
        with pytest.raises(LookupError):
            await kept.add(endpoint + 1, FIRST, None)
        await kept.add(endpoint, FIRST, None)
        soon = datetime.now(UTC) + timedelta(hours=1)
        await kept.add(endpoint, SECOND, soon)
        assert await kept.of(endpoint) == [Kept(SECOND, None), Kept(FIRST, soon)]
        assert "PLANTED" not in repr(await kept.of(endpoint))
        await kept.add(endpoint, "third", datetime.now(UTC) - timedelta(seconds=1))
        assert await kept.of(endpoint) == [Kept("third", None)]
        rows = await sql.fetch("SELECT * FROM webhookd.secret")
        assert len(rows) == 3
        assert not any(b"PLANTED" in row["sealed"] or "PLANTED" in str(row) for row in rows)
        await kept.add(endpoint, "fourth", None)  # what has ended is no longer kept
        assert await sql.fetchval("SELECT array_agg(number ORDER BY number) FROM webhookd.secret") == [3, 4]


async def test_it_ends_with_its_endpoint(dsn: str, sql: Sql, endpoint: int) -> None:
    async with Database(dsn) as database:
        await secrets(database, NEW).add(endpoint, FIRST, None)
    await sql.execute("DELETE FROM webhookd.endpoint")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.secret") == 0


async def test_a_row_that_was_copied_to_another_endpoint_is_worth_nothing(dsn: str, sql: Sql, endpoint: int) -> None:
    other = await sql.fetchval(
        "INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('other', 'api', '{}') RETURNING id"
    )
    async with Database(dsn) as database:
        await secrets(database, NEW).add(endpoint, FIRST, None)
        await sql.execute("UPDATE webhookd.secret SET endpoint_id = $1", other)
        with pytest.raises(Unreadable):
            await secrets(database, NEW).of(other)


async def test_all_are_sealed_anew_page_by_page(dsn: str, sql: Sql, endpoint: int) -> None:
    async with Database(dsn) as database:
        await secrets(database, LOST).add(endpoint, "lost", None)
        await secrets(database, NEW).add(endpoint, SECOND, None)
        for _ in range(PAGE + 2):
            await secrets(database, OLD).add(endpoint, FIRST, None)
        both = secrets(database, NEW, OLD)
        lost = [Lost("acme/hook", "the key lost is not in [encryption] keys")]
        assert await both.rekey() == (PAGE + 2, lost)
        assert await both.rekey() == (0, lost)
        await sql.execute("DELETE FROM webhookd.secret WHERE key_id = 'lost'")
        assert [kept.secret for kept in await secrets(database, NEW).of(endpoint)] == [FIRST] * (PAGE + 2) + [SECOND]


async def test_readers_see_nothing_of_them(granted: Sql, dsn: str, endpoint: int) -> None:
    async with Database(as_user(dsn, "webhookd_daemon")) as database:
        await secrets(database, NEW).add(endpoint, FIRST, None)
        assert await secrets(database, NEW).of(endpoint) == [Kept(FIRST, None)]
    for role in ("webhookd_reader", "webhookd_producer"):
        reader = await asyncpg.connect(as_user(dsn, role))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await reader.fetch("SELECT * FROM webhookd.secret")
        await reader.close()


async def test_a_key_is_replaced_by_hand(dsn: str, sql: Sql, endpoint: int, tmp_path: Path) -> None:
    old = new_key()
    async with Database(dsn) as database:
        await secrets(database, SealingKey("2025", parse_key(old))).add(endpoint, FIRST, None)
    made = await asyncio.to_thread(webhookd, "secret", "key", "--json")
    (tmp_path / "new.key").write_text(json.loads(made.stdout)["key"] + "\n")
    (tmp_path / "old.key").write_text(old)
    endpoint_table = '[endpoint.a]\nurl = "https://hooks.example.com/"\nevents = ["*"]\nsignature = "none"\n'
    file = tmp_path / "webhookd.toml"
    keys = ['{ id = "2026", file = "new.key" }', '{ id = "2025", file = "old.key" }']

    def rekey(*keys: str) -> tuple[int, str]:
        file.write_text(f'[database]\ndsn = "{dsn}"\n[encryption]\nkeys = [{", ".join(keys)}]\n{endpoint_table}')
        done = webhookd("secret", "rekey", "-c", file)
        return done.returncode, done.stdout + done.stderr

    why = "a secret of acme/hook cannot be opened: the key 2025 is not in [encryption] keys\n"
    assert await asyncio.to_thread(rekey, keys[0]) == (1, f"0 secrets sealed anew, with the key 2026\n{why}")
    assert await asyncio.to_thread(rekey, *keys) == (0, "1 secret sealed anew, with the key 2026\n")
    assert await asyncio.to_thread(rekey, keys[0]) == (0, "0 secrets sealed anew, with the key 2026\n")
    (tmp_path / "new.key").write_text(old)  # another key of the same name
    code, said = await asyncio.to_thread(rekey, keys[0])
    assert code == 1
    assert "a secret of acme/hook cannot be opened: it was changed, or not sealed with the key 2026" in said
    code, said = await asyncio.to_thread(rekey)
    assert code == 2
    assert "[encryption] has no keys; make one with `webhookd secret key`" in said
