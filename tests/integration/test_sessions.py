"""Whatever a role or a database sets by default, everything works as it does without; and strangers hold nothing up."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import connected
from tests.integration.conftest import Receiver, Running, Sql, as_user, configuration, eventually, insert, settled
from tests.integration.test_cli import configuration as files
from tests.integration.test_cli import running, webhookd
from tests.waiting import until
from webhookd.errors import StoreForbidden, StoreUnavailable
from webhookd.store.database import Database
from webhookd.store.migrations import migrate
from webhookd.store.parking import ParkingStore
from webhookd.store.registry import Registry
from webhookd.store.reports import Reports

DEFAULTS = {
    "repeatable_read": ("default_transaction_isolation = 'repeatable read'",),
    "serializable": ("default_transaction_isolation = 'serializable'", "default_transaction_deferrable = on"),
    "written": ("DateStyle = 'SQL, DMY'", "IntervalStyle = 'sql_standard'", "TimeZone = 'Asia/Kolkata'"),
    "strings": ("standard_conforming_strings = off", "bytea_output = 'escape'", "search_path = public"),
    "timeouts": ("statement_timeout = '2s'", "lock_timeout = '1ms'", "idle_session_timeout = '2s'"),
}
PINNED = "SELECT " + ", ".join(
    f"current_setting('{name}')"
    for name in (
        "transaction_isolation",
        "DateStyle",
        "standard_conforming_strings",
        "statement_timeout",
        "lock_timeout",
        "idle_session_timeout",
        "row_security",
    )
)
WEEK = 7 * 86_400.0


@pytest.fixture(params=DEFAULTS.keys())
async def defaults(request: pytest.FixtureRequest, sql: Sql) -> str:
    """A name of defaults that each new session has."""
    name = await sql.fetchval("SELECT current_database()")
    for setting in DEFAULTS[request.param]:
        if setting.split()[0] != "standard_conforming_strings" or await sql.fetchval(
            "SELECT current_setting('server_version_num')::int < 190000"
        ):
            await sql.execute(f"ALTER ROLE postgres IN DATABASE {name} SET {setting}")
    return str(request.param)


async def test_the_whole_path_works_under_defaults_of_others(
    defaults: str, dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 500, 200)
    style = "ISO, DMY" if defaults == "written" else "ISO, MDY"
    async with Database(dsn) as database:
        assert tuple(await database.fetch_row(PINNED)) == ("read committed", style, "on", "0", "0", "0", "off")
    async with Database(dsn) as database, daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        event_id = await insert(sql, metadata='{"a": "b"}')
        await settled(sql, event_id, {"hook": "delivered"})
        parking, hook = ParkingStore(database), await sql.fetchval("SELECT id FROM webhookd.endpoint")
        assert await parking.pause([hook]) == [hook]
        kept = await insert(sql)
        await settled(sql, kept, {"hook": "parked"})
        assert await parking.resume([hook]) == [hook]
        await settled(sql, kept, {"hook": "delivered"})
        found = await Reports(database).status(15.0)
        assert found.endpoints[0].name == "hook"
        # A day past its time, that of DEFAULT, and those ahead.
        old = datetime.now(UTC) - timedelta(days=40)
        await sql.execute("UPDATE webhookd.batch SET done_at = now() WHERE done_at IS NULL")
        await sql.execute("INSERT INTO webhookd.attempt_default SELECT $1, 1, 1, 1, true", old)
        while pieces := await Registry(database).maintain(WEEK, WEEK):
            assert [problem for _, problem in pieces if problem] == []
    bounds = await sql.fetch("SELECT since, until FROM webhookd.partitions('outbox') WHERE name ~ '_[0-9]{8}$'")
    assert len(bounds) >= 30
    assert {(row["since"].hour, row["since"].minute) for row in bounds} == {(0, 0)}
    assert await migrate(dsn) == []


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_what_judges_by_what_others_commit_refuses_another_isolation(sql: Sql, isolation: str) -> None:
    for call in ("pause('{1}')", "resume('{1}')", "maintain()", "cut(1, 1, 1)", "park('{1}', 'paused')", "sweep()"):
        with pytest.raises(asyncpg.PostgresError, match="READ COMMITTED"):
            async with sql.transaction(isolation=isolation):  # type: ignore[arg-type]
                await sql.execute(f"SELECT webhookd.{call}")


async def test_a_stranger_holds_up_nothing_and_may_not_lock(granted: Sql, dsn: str) -> None:
    await granted.execute("GRANT webhookd_reader TO my_app")
    async with connected(as_user(dsn, "my_app")) as stranger, Database(as_user(dsn, "webhookd_daemon")) as database:
        for number in (0, 1, 3):
            await stranger.execute(f"SELECT pg_advisory_lock(7301, {number})")
        for table in ("lock_log", "lock_tables", "lock_endpoints"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with stranger.transaction():
                    await stranger.execute(f"LOCK TABLE webhookd.{table} IN EXCLUSIVE MODE")
        async with stranger.transaction():
            await stranger.execute("LOCK TABLE webhookd.lock_log IN ACCESS SHARE MODE")
            assert await database.fetch("SELECT webhookd.try_lock_log()") == [(True,)]  # type: ignore[comparison-overlap]
        assert await ParkingStore(database).pause([]) == []
    assert await migrate(dsn) == []


async def test_who_has_the_lock_of_the_log_keeps_others_from_cutting_and_uses_no_transaction_id(
    dsn: str, sql: Sql
) -> None:
    async with connected(dsn) as other, sql.transaction():
        assert await sql.fetchval("SELECT webhookd.try_lock_log()")
        assert await sql.fetchval("SELECT pg_current_xact_id_if_assigned()") is None
        assert not await other.fetchval("SELECT webhookd.try_lock_log()")
        assert await other.fetch("SELECT * FROM webhookd.cut(1, 1, 1)") == []


async def test_row_security_is_an_error_and_not_a_loss(granted: Sql, dsn: str) -> None:
    await granted.execute("ALTER TABLE webhookd.outbox ENABLE ROW LEVEL SECURITY")
    await granted.execute("CREATE POLICY all_of_it ON webhookd.outbox USING (true)")
    async with Database(as_user(dsn, "webhookd_daemon")) as database:
        with pytest.raises(StoreUnavailable, match=r"Row security would hide events.*BYPASSRLS"):
            await database.fetch("SELECT * FROM webhookd.cut(100, 100, 1)")
        await granted.execute("ALTER ROLE webhookd_daemon BYPASSRLS")
        await database.fetch("SELECT * FROM webhookd.cut(100, 100, 1)")


ROW_SECURITY = {  # what an operator did, and on which tables of whom `check` says that it hides rows
    "of_the_log": (["ALTER TABLE webhookd.outbox ENABLE ROW LEVEL SECURITY"], "outbox (from webhookd_daemon)"),
    "of_another": (["ALTER TABLE webhookd.missed ENABLE ROW LEVEL SECURITY"], "missed (from webhookd_daemon)"),
    "of_a_partition": (
        ["ALTER TABLE webhookd.outbox_default ENABLE ROW LEVEL SECURITY"],
        "outbox_default (from webhookd_daemon)",
    ),
    "forced": (
        [
            "ALTER TABLE webhookd.batch ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "ALTER ROLE webhookd_daemon BYPASSRLS",
        ],
        "batch (from webhookd_owner)",
    ),
    "everywhere": (
        [
            f"ALTER TABLE webhookd.{table} ENABLE ROW LEVEL SECURITY"
            for table in ("attempt", "backlog", "batch", "daemon", "endpoint", "outbox")
        ],
        "attempt (from webhookd_daemon), backlog (from webhookd_daemon), batch (from webhookd_daemon) and 3 more",
    ),
}


@pytest.fixture
async def owned(granted: Sql, server: str) -> AsyncIterator[Sql]:
    """A schema whose owner is no superuser, and has the role of a daemon beside it."""
    await granted.execute("CREATE ROLE webhookd_owner LOGIN")
    await granted.execute(
        f"GRANT CREATE ON DATABASE {await granted.fetchval('SELECT current_database()')} TO webhookd_owner"
    )
    for kind, name in await granted.fetch(
        """SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, oid::regclass::text
             FROM pg_class WHERE relnamespace = 'webhookd'::regnamespace
                             AND (relkind IN ('r', 'p', 'v') OR relname = 'outbox_id_seq')
           UNION ALL
           SELECT 'FUNCTION', oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'webhookd'::regnamespace
           UNION ALL SELECT 'SCHEMA', 'webhookd'"""
    ):
        await granted.execute(f"ALTER {kind} {name} OWNER TO webhookd_owner")
    yield granted
    await granted.execute("REASSIGN OWNED BY webhookd_owner TO postgres")
    await granted.execute("DROP OWNED BY webhookd_owner")
    await granted.execute("DROP ROLE webhookd_owner")


@pytest.mark.parametrize("kind", ROW_SECURITY)
async def test_check_finds_row_security_before_it_hurts(owned: Sql, dsn: str, tmp_path: Path, kind: str) -> None:
    file = files(tmp_path, as_user(dsn, "webhookd_daemon"))
    found = await asyncio.to_thread(webhookd, "check", "-c", file)
    assert (found.returncode, found.stderr) == (0, "")
    done, told = ROW_SECURITY[kind]
    for statement in done:
        await owned.execute(statement)
    found = await asyncio.to_thread(webhookd, "check", "-c", file)
    assert found.returncode == 69
    assert f"Row security would hide events: it is enabled on {told}. No policy helps:" in found.stderr
    await owned.execute("ALTER ROLE webhookd_daemon BYPASSRLS")
    await owned.execute("ALTER ROLE webhookd_owner BYPASSRLS")
    found = await asyncio.to_thread(webhookd, "check", "-c", file)
    assert (found.returncode, found.stderr) == (0, "")


async def test_a_daemon_and_status_say_that_row_security_is_in_the_way(
    owned: Sql, dsn: str, tmp_path: Path, receiver: Receiver
) -> None:
    file = files(tmp_path, as_user(dsn, "webhookd_daemon"), receiver.url("hook"))
    async with running(file) as (daemon, log):
        await until(lambda: any(line["event"] == "started" for line in log), "it runs")
        await owned.execute("ALTER TABLE webhookd.outbox ENABLE ROW LEVEL SECURITY")
        event_id = await insert(owned)
        await until(lambda: "Row security would hide events" in json.dumps(log), "the log to say it")

        async def in_health() -> bool:
            problems = await owned.fetchval("SELECT problems FROM webhookd.health")
            return "Row security would hide events" in (problems or "")

        await eventually(in_health, "health to say it")
        found = await asyncio.to_thread(webhookd, "status", "-c", file)
        assert found.returncode == 69
        assert "Row security would hide events" in found.stderr
        assert receiver.got == []
        await owned.execute("ALTER TABLE webhookd.outbox DISABLE ROW LEVEL SECURITY")
        await settled(owned, event_id, {"orders": "delivered"})
        daemon.terminate()


async def test_forced_row_security_stops_what_runs_with_the_owner_s_rights_with_a_sentence(
    owned: Sql, dsn: str
) -> None:
    await owned.execute("ALTER TABLE webhookd.batch ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    await owned.execute("ALTER ROLE webhookd_daemon BYPASSRLS")
    await owned.execute("DROP TABLE webhookd.outbox_" + f"{datetime.now(UTC) + timedelta(days=9):%Y%m%d}")
    async with Database(as_user(dsn, "webhookd_daemon")) as database:
        registry = Registry(database)
        assert await registry.maintain(WEEK, WEEK) != []  # days ahead need no row of it
        with pytest.raises(
            StoreForbidden, match=r"Row security would hide events.*owner of the schema where it is FORCED"
        ):
            await registry.sweep(WEEK)
        await owned.execute("ALTER ROLE webhookd_owner BYPASSRLS")
        await registry.sweep(WEEK)


async def test_a_clock_that_was_ahead_for_a_moment_leaves_one_day(sql: Sql) -> None:
    far = datetime.now(UTC) + timedelta(days=400)
    for moment in (far, far):
        await sql.execute("INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('a', '{}', $1)", moment)
    assert await sql.fetch("SELECT * FROM webhookd.maintain()") == [(f"outbox_{far:%Y%m%d}", None)]  # type: ignore[comparison-overlap]
    made = await sql.fetch("SELECT done, problem FROM webhookd.maintain(days => 40)")
    assert len(made) == 20
    assert not any(row["problem"] for row in made)
