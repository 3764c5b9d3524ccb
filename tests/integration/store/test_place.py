"""Where a database belongs: nothing is sent from a copy, a copy can be taken over, a daemon begins anew elsewhere."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from tests.conftest import SETTINGS
from tests.integration.cli.test_cli import configuration as written
from tests.integration.cli.test_cli import webhookd
from tests.integration.conftest import (
    QUICK,
    Receiver,
    Running,
    Sql,
    configuration,
    eventually,
    finished,
    insert,
    insert_many,
    states,
)
from tests.waiting import until
from webhookd.cli.embedded import postgres
from webhookd.errors import Moved, OtherPlace, StoreUnavailable
from webhookd.store.database import Database
from webhookd.store.migrations import Owed, Rebased, migrate, rebase

ELSEWHERE = "UPDATE webhookd.binding SET system_identifier = '7000000000000000007'"
OLDER = "UPDATE webhookd.batch SET pos_xmax = '9000000000'"  # as in a dump of a cluster with more transactions


async def test_the_schema_knows_its_server_and_the_first_daemon_says_the_environment(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    bound = "SELECT system_identifier = split_part(webhookd.place(), '/', 1), environment FROM webhookd.binding"
    assert tuple((await sql.fetch(bound))[0]) == (True, "")
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, daemon={"environment": "shop"})):
        pass
    assert [tuple(row) for row in await sql.fetch(bound)] == [(True, "shop")]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (ELSEWHERE, "on server .* was bound to 7000000000000000007"),
        ("UPDATE webhookd.binding SET environment = 'shop'", 'belongs to environment "shop".*says "production"'),
    ],
)
async def test_a_copy_sends_nothing_and_says_the_way_out(
    sql: Sql, receiver: Receiver, daemon: Running, change: str, why: str
) -> None:
    await insert_many(sql, 3)
    await sql.execute(change)
    with pytest.RaisesGroup(pytest.RaisesExc(OtherPlace, match=f"{why}.*--rebase --owed=drop")):
        async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
            pass
    assert receiver.got == []
    assert await sql.fetchval("SELECT count(*) FROM webhookd.daemon") == 0


@pytest.mark.parametrize("change", [ELSEWHERE, "UPDATE webhookd.binding SET environment = 'shop'"])
async def test_check_says_of_a_copy_what_run_would(sql: Sql, dsn: str, tmp_path: Path, change: str) -> None:
    file = written(tmp_path, dsn)
    assert (await asyncio.to_thread(webhookd, "check", "-c", file)).returncode == 0, "nobody has said where it belongs"
    assert await sql.fetchval("SELECT environment FROM webhookd.binding") == "", "and nobody has now"
    await sql.execute(change)
    said = []
    for command in ("check", "run"):
        found = await asyncio.to_thread(webhookd, command, "-c", file)
        assert found.returncode == 78, command
        said.append([line for line in found.stderr.splitlines() if line.startswith("webhookd: This database seems")])
    assert said[0] == said[1] != []


async def test_a_database_that_forgot_its_daemon_gets_a_new_one_that_keeps_the_newest_configuration(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    config = configuration({"hook": {"url": receiver.url("old")}})
    newer = configuration({"hook": {"url": receiver.url("new")}})
    healed = receiver.hangs("new")
    async with daemon(config, replace(QUICK, patience=30.0), load=lambda: newer) as running:
        running.reload()
        hash_ = "SELECT config_hash = $1 FROM webhookd.daemon"
        await until(lambda: sql.fetchval(hash_, newer.config_hash), "it has reloaded")
        event = await insert(sql)
        await until(lambda: receiver.of("new"), "an attempt is in flight")
        first = await sql.fetchval("DELETE FROM webhookd.daemon RETURNING id")
        second = await until(lambda: sql.fetchval("SELECT id FROM webhookd.daemon"), "it has joined anew")
        healed.set()
        await finished(sql)
        assert second > first
        assert await states(sql, event) == {"hook": "delivered"}
        assert set(receiver.events("new")) == {event}
        assert receiver.of("old") == []


async def test_no_connection_is_used_that_leads_elsewhere(dsn: str) -> None:
    async with Database(dsn) as database:
        database.place = "7000000000000000007/00000002"
        with pytest.raises(Moved, match="another server or another timeline"):
            await database.fetch("SELECT 1")


# Taking over


async def what_is_owed(sql: Sql) -> dict[str, str]:
    """One event of each kind, on a database whose transaction ids come from an older cluster; their ids."""
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('hook', 'file', '{}')")
    ids = {"done": await insert(sql)}
    await sql.execute("SELECT webhookd.cut(100, 500, 1)")
    await sql.execute("UPDATE webhookd.batch SET done_at = now()")
    await sql.execute(
        "INSERT INTO webhookd.attempt (outbox_id, endpoint_id, attempt, ok) SELECT id, 1, 1, true FROM webhookd.outbox"
    )
    ids["open"] = await insert(sql)
    ids["later"] = await insert(sql, deliver_after=await sql.fetchval("SELECT now() + interval '1 hour'"))
    await sql.execute("SELECT webhookd.cut(100, 500, 1)")
    ids["retry"] = await insert(sql)
    await sql.execute("UPDATE webhookd.batch SET outbox_ids = outbox_ids || 4 WHERE id = 1")
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due)
           SELECT 1, id, created_at, 1, now() FROM webhookd.outbox WHERE event_id = $1""",
        ids["retry"],
    )
    ids["unread"] = await insert(sql)
    ids["unread and later"] = await insert(sql, deliver_after=await sql.fetchval("SELECT now() + interval '1 hour'"))
    await sql.execute("UPDATE webhookd.outbox SET xid = (xid::text::bigint + 8000000000)::text::xid8")
    await sql.execute(OLDER)
    await sql.execute(ELSEWHERE)
    ids["new"] = await insert(sql)  # by an application that was let in before the copy was taken over
    return ids


async def test_after_rebase_what_is_owed_is_delivered_once_and_new_events_too(
    dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    ids = await what_is_owed(sql)
    assert await rebase(dsn, "production", "deliver", "me") == Rebased(events=3, batches=1, deliveries=1, later=1)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        ids["newest"] = await insert(sql)
        await until(lambda: len(receiver.got) >= 5, "all of it has come")
        await finished(sql)
    assert sorted(receiver.events("hook")) == sorted(ids[key] for key in ("open", "retry", "unread", "new", "newest"))
    assert await sql.fetchval("SELECT count(*) FROM webhookd.scheduled") == 2


async def test_after_rebase_with_drop_only_new_events_are_delivered(
    dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    ids = await what_is_owed(sql)
    assert await rebase(dsn, "production", "drop", "me") == Rebased(events=3, batches=1, deliveries=1, later=1)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        newest = await insert(sql)
        await finished(sql)
    assert receiver.events("hook") == [newest]
    assert await states(sql, ids["retry"]) == {"hook": "rejected"}
    missed = await sql.fetch("SELECT DISTINCT reason FROM webhookd.missed WHERE endpoint_id = 1")
    assert [row["reason"] for row in missed] == ["discarded"]


@pytest.mark.parametrize("owed", ["deliver", "drop"])
async def test_rebase_takes_cursors_along(dsn: str, sql: Sql, receiver: Receiver, daemon: Running, owed: Owed) -> None:
    """A parked endpoint of a copy has no daemon here; what it is owed is read, or dropped."""
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('hook', 'file', '{}')")
    await sql.execute("SELECT webhookd.park('{1}', 'saturated', 5)")
    old = await insert(sql)
    await sql.execute("SELECT webhookd.cut(100, 500, 5)")
    await sql.execute("UPDATE webhookd.batch SET done_at = now()")
    await sql.execute(ELSEWHERE)
    await rebase(dsn, "production", owed, "me")
    assert await sql.fetchval("SELECT owner FROM webhookd.parked") is None
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        new = await insert(sql)
        await finished(sql)
    assert sorted(receiver.events("hook")) == sorted([old, new] if owed == "deliver" else [new])
    assert await states(sql, old) == ({"hook": "delivered"} if owed == "deliver" else {"hook": "missed"})


async def test_a_transaction_that_is_open_during_rebase_is_read_when_it_commits(
    dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    await sql.execute(ELSEWHERE)
    writer: Sql = await asyncpg.connect(dsn)
    async with writer.transaction():
        await writer.execute("SELECT pg_current_xact_id()")
        assert await rebase(dsn, "production", "drop", "me") is not None
        event = await insert(writer)
    await writer.close()
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        await finished(sql)
    assert receiver.events("hook") == [event]


async def test_a_transaction_that_has_inserted_is_waited_for(dsn: str, sql: Sql) -> None:
    await sql.execute(ELSEWHERE)
    async with sql.transaction():
        await insert(sql)
        with pytest.raises(StoreUnavailable, match="still open"):
            await rebase(dsn, "production", "deliver", "me")
    assert await rebase(dsn, "production", "deliver", "me") == Rebased(1, 0, 0, 0)


async def test_a_database_that_belongs_here_is_left_alone(dsn: str, sql: Sql) -> None:
    await sql.execute("UPDATE webhookd.binding SET environment = 'production'")
    assert await rebase(dsn, "production", "drop", "me") is None


# Waking


async def test_without_the_trigger_transactions_can_be_prepared_and_daemons_poll(
    dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    await migrate(dsn, wake=False)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        await asyncio.sleep(0)
        # None can be prepared on this server, but one that has sent a NOTIFY is refused for that reason before.
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="max_prepared_transactions"):
            await sql.execute(
                "BEGIN; INSERT INTO webhookd.outbox (type, payload) VALUES ('a', '{}'); PREPARE TRANSACTION 'one'"
            )
        await insert_many(sql, 3)
        await until(lambda: len(receiver.got) == 3, "the poll finds them")
        assert await sql.fetchval("SELECT listen_pid IS NULL FROM webhookd.daemon")
    await migrate(dsn, wake=True)
    assert await sql.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname = 'wake'") > 0


# Which server


@pytest.fixture
def other_server() -> Iterator[str]:
    """The DSN of a second server, for as long as the test."""
    directory = Path(tempfile.mkdtemp(prefix="webhookd-tests-"))
    directory.chmod(0o755)
    with postgres(directory, 18, SETTINGS) as dsn:
        yield dsn
    shutil.rmtree(directory)


async def read_only(dsn: str, on: bool) -> None:
    """As a standby, or a primary that is being replaced, answers."""
    connection: Sql = await asyncpg.connect(dsn)
    await connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
    await connection.execute("SELECT pg_reload_conf()")
    word = "on" if on else "off"
    await eventually(lambda: word_of(dsn, word), f"it is {word}")
    await connection.close()


async def word_of(dsn: str, word: str) -> bool:
    connection: Sql = await asyncpg.connect(dsn)
    found = await connection.fetchval("SELECT current_setting('default_transaction_read_only') = $1", word)
    await connection.close()
    return bool(found)


async def test_of_several_servers_the_one_is_used_that_can_be_written_to(server: str, other_server: str) -> None:
    def socket(dsn: str) -> str:
        return parse_qs(urlsplit(dsn).query)["host"][0]

    both = f"postgresql://postgres@/postgres?host={socket(other_server)},{socket(server)}&port=5432,5432"
    where = "SELECT trim('\"' FROM current_setting('unix_socket_directories'))"
    async with Database(both, size=1) as database:
        assert (await database.fetch_row(where))[0] == socket(other_server), "the first one can be"
        await read_only(other_server, True)
        with pytest.raises(StoreUnavailable, match="waiting for the primary"):
            await database.fetch("CREATE TABLE one ()")
        assert (await database.fetch_row(where))[0] == socket(server)
    async with Database(other_server) as alone:
        with pytest.raises(StoreUnavailable, match="waiting for the primary"):
            await alone.fetch("SELECT 1")
        await read_only(other_server, False)
        assert await alone.fetch("SELECT 1")
