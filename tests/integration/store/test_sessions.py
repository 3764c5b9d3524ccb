"""Whatever a role or a database sets by default, everything works as it does without; and strangers hold nothing up."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.conftest import connected
from tests.fault.pooler import PROGRAM, Pooler
from tests.integration.cli.test_cli import configuration as files
from tests.integration.cli.test_cli import running, webhookd
from tests.integration.conftest import (
    QUICK,
    Receiver,
    Running,
    Sql,
    as_user,
    attempts,
    configuration,
    eventually,
    finished,
    insert,
    settled,
)
from tests.integration.store.test_migrations import VECTOR, catalogue
from tests.integration.store.test_retention import make_day
from tests.waiting import HANGS, until
from webhookd.config.config import Config
from webhookd.daemon.daemon import Daemon
from webhookd.errors import StoreForbidden, StoreUnavailable
from webhookd.policy.cutting import Share
from webhookd.store.batches import Batches
from webhookd.store.database import Database
from webhookd.store.erasure import Erased, pieces
from webhookd.store.listings import STATES, Asked, Listings
from webhookd.store.migrations import migrate
from webhookd.store.parking import ParkingStore
from webhookd.store.registry import Registry
from webhookd.store.reports import NewEvent, Producer, Reports
from webhookd.store.statements import MIGRATIONS

DEFAULTS = {
    "repeatable_read": ("default_transaction_isolation = 'repeatable read'",),
    "serializable": ("default_transaction_isolation = 'serializable'", "default_transaction_deferrable = on"),
    "written": (
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = 'sql_standard'",
        "TimeZone = 'Asia/Kolkata'",
        "extra_float_digits = -15",
        "client_encoding = 'LATIN1'",
        "xmloption = 'document'",
    ),
    "strings": (
        "standard_conforming_strings = off",
        "backslash_quote = off",
        "escape_string_warning = on",
        "bytea_output = 'escape'",
        "search_path = public",
        "quote_all_identifiers = on",
        "row_security = on",
    ),
    "timeouts": (
        "statement_timeout = '500ms'",  # less would end statements that no session has pinned anything for yet
        "lock_timeout = '1ms'",
        "idle_session_timeout = '2s'",
        "idle_in_transaction_session_timeout = '500ms'",
        "transaction_timeout = '600ms'",
    ),
    "planner": (
        "transform_null_equals = on",
        "array_nulls = off",
        "plan_cache_mode = 'force_generic_plan'",
        "enable_partition_pruning = off",
        "jit = on",
        "jit_above_cost = 0",
        "enable_indexscan = off",
    ),
}
WHERE = {
    "of_the_role_there": "ALTER ROLE postgres IN DATABASE {name}",
    "of_the_role": "ALTER ROLE postgres",
    "of_the_database": "ALTER DATABASE {name}",
}
POOLER = pytest.mark.skipif(not Path(PROGRAM).exists(), reason="Debian's pgbouncer is not installed")
# All of them in one place, some in the others: it is one mechanism.
PLACES = [
    *((name, "of_the_database", False) for name in DEFAULTS),
    *((name, "of_the_role", False) for name in ("serializable", "timeouts")),
    ("written", "of_the_role_there", False),
    *(pytest.param(name, "of_the_database", True, marks=POOLER) for name in DEFAULTS),
]
VERSIONS = {"standard_conforming_strings": (150000, 190000), "transaction_timeout": (170000, 1_000_000)}  # who has it
PINNED = "SELECT " + ", ".join(
    f"current_setting('{name}')"
    for name in (
        "DateStyle",
        "transaction_isolation",
        "standard_conforming_strings",
        "statement_timeout",
        "lock_timeout",
        "row_security",
        "search_path",
        "client_encoding",
        "jit",
    )
)
WEEK = 7 * 86_400.0


@asynccontextmanager
async def defaults(dsn: str, server: str, kind: str, where: str) -> AsyncIterator[None]:
    """Each new session has these defaults; not those of who sets them."""
    target = WHERE[where].format(name=urlsplit(dsn).path[1:])
    async with connected(server) as admin:
        version = await admin.fetchval("SELECT current_setting('server_version_num')::int")
        settings = []
        for setting in DEFAULTS[kind]:
            least, below = VERSIONS.get(setting.split()[0], (0, 1_000_000))
            if least <= version < below:
                settings.append(setting)
        try:
            for setting in settings:
                await admin.execute(f"{target} SET {setting}")
            yield
        finally:
            for setting in settings:
                await admin.execute(f"{target} RESET {setting.split()[0]}")


@pytest.mark.parametrize(("kind", "where", "pooled"), PLACES)
async def test_the_whole_path_works_under_defaults_of_others(
    kind: str, where: str, pooled: bool, dsn: str, server: str, sql: Sql, receiver: Receiver
) -> None:
    async with AsyncExitStack() as stack:
        through = (await stack.enter_async_context(Pooler(dsn))).dsn("postgres") if pooled else dsn
        await stack.enter_async_context(defaults(dsn, server, kind, where))
        await whole_path(through, dsn, sql, receiver)


async def whole_path(dsn: str, direct: str, sql: Sql, receiver: Receiver) -> None:
    """All that daemons and commands ask of a database."""
    receiver.answers("hook", 500, 200)
    async with Database(dsn) as database, database.transaction() as connection:
        row = await connection.fetchrow(PINNED)
        assert row is not None
        assert row[0] in ("ISO, MDY", "ISO, DMY")
        assert tuple(each.replace('"', "") for each in row)[1:] == (
            "read committed",
            "on",
            "0",
            "0",
            "off",
            "pg_catalog, pg_temp",
            "UTF8",
            "off",
        )
    before = configuration({"hook": {"url": receiver.url("hook")}})
    after = configuration({"hook": {"url": receiver.url("hook")}, "other": {"url": receiver.url("other")}})
    config = [before]
    async with Database(dsn) as database:
        ready = asyncio.Event()
        running = Daemon(before, dsn, load=lambda: config[-1], intervals=QUICK, on_ready=lambda _: ready.set())
        async with asyncio.TaskGroup() as group:
            task = group.create_task(running.run())
            try:
                async with asyncio.timeout(HANGS):
                    await ready.wait()
                await daily_life(database, sql, running, config, after)
            except BaseException:
                task.cancel()
                raise
            running.stop()
        await what_people_ask(database, sql)
        await what_is_kept_in_shape(database, sql)
    assert await migrate(direct) == []


async def daily_life(database: Database, sql: Sql, running: Daemon, config: list[Config], after: Config) -> None:
    """Events, a retry, a pause, and a reload."""
    event_id = await Producer(database).emit(NewEvent("order.created", b'{"a": "\\u00e9"}', metadata=b'{"a": "b"}'))
    await settled(sql, event_id, {"hook": "delivered"})
    assert len(await attempts(sql, event_id)) == 2
    parking, hook = ParkingStore(database), await sql.fetchval("SELECT id FROM webhookd.endpoint")
    assert await parking.pause([hook], "me") == [hook]
    kept = await Producer(database).insert("order.created", b"{}")
    await settled(sql, kept, {"hook": "parked"})
    assert await parking.resume([hook], "me") == [hook]
    await settled(sql, kept, {"hook": "delivered"})
    config.append(after)
    running.reload()

    async def there() -> bool:
        return bool(await sql.fetchval("SELECT count(*) = 2 FROM webhookd.endpoint"))

    await eventually(there, "the other endpoint")
    both = await insert(sql)
    await settled(sql, both, {"hook": "delivered", "other": "delivered"})
    await finished(sql)


async def what_people_ask(database: Database, sql: Sql) -> None:
    """Commands that only read, and `erase`."""
    event_id = await sql.fetchval("SELECT event_id FROM webhookd.outbox ORDER BY id LIMIT 1")
    reports, listings = Reports(database), Listings(database)
    found = await reports.status(15.0)
    assert {each.name for each in found.endpoints} == {"hook", "other"}
    assert len((await reports.deployed(15.0)).specs) == 2
    ((event, fates),) = await reports.fates(event_id)
    assert [(fate.endpoint, fate.state) for fate in fates] == [("hook", "delivered")]
    assert event.created_at.utcoffset() == timedelta(0)
    lines, _ = await listings.events(Asked(10), None, None)
    assert len(lines) == 3
    lines_of_deliveries, _ = await listings.deliveries(Asked(10), None, STATES, event_id)
    assert [line.state for line in lines_of_deliveries] == ["delivered"]
    assert len(await listings.endpoints()) == 2
    erased = [piece async for piece in pieces(database, "me", event_id=event_id)]
    assert sum(erased, Erased()).events == 1


async def what_is_kept_in_shape(database: Database, sql: Sql) -> None:
    """Rows in DEFAULT get their partition, one past its time goes, and days are made ahead."""
    registry = Registry(database)
    old = datetime.now(UTC) - timedelta(days=40)
    await sql.execute("DELETE FROM webhookd.outbox")
    await make_day(sql, -40)
    for moment in (old, old + timedelta(days=20)):
        await sql.execute("INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('a', '{}', $1)", moment)
    await sql.execute("SELECT webhookd.cut(100, 500, 1)")
    await sql.execute("UPDATE webhookd.batch SET done_at = now() WHERE done_at IS NULL")
    await sql.execute("INSERT INTO webhookd.attempt_default SELECT $1, 1, 1, 1, true", old + timedelta(days=20))
    done = []
    while some := await registry.maintain(WEEK, WEEK):
        assert [problem for _, problem in some if problem] == []
        done += [what for what, _ in some]
    assert {f"{what} outbox_{old:%Y%m%d}" for what in ("emptied", "dropped")} <= set(done)
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 1
    await registry.sweep(WEEK)
    bounds = await sql.fetch("SELECT since, until FROM webhookd.partitions('outbox') WHERE name ~ '_[0-9]{8}$'")
    assert len(bounds) >= 30
    assert {(row["since"].hour, row["since"].minute) for row in bounds} == {(0, 0)}


@pytest.mark.parametrize("kind", ["repeatable_read", "serializable"])
async def test_nothing_is_lost_and_no_producer_fails_while_an_endpoint_is_parked_and_comes_back(
    kind: str, dsn: str, server: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    """Whatever isolation all sessions begin with, those of the producers too."""
    made: list[str] = []
    enough = asyncio.Event()

    async def produce() -> None:
        async with connected(dsn) as connection:
            while not enough.is_set():
                async with connection.transaction():
                    some = [await insert(connection) for _ in range(3)]
                    await asyncio.sleep(0)
                made.extend(some)  # what is committed

    async with defaults(dsn, server, kind, "of_the_database"), Database(dsn) as database:
        config = configuration({"hook": {"url": receiver.url("hook")}})
        async with daemon(config), daemon(config):
            parking, hook = ParkingStore(database), await sql.fetchval("SELECT id FROM webhookd.endpoint")
            async with asyncio.TaskGroup() as producers:
                for _ in range(3):
                    producers.create_task(produce())
                for _ in range(10):
                    for move in (parking.pause, parking.resume):
                        await move([hook], "me")
                        least = len(made) + 30
                        await until(lambda: len(made) >= least, "events between")  # noqa: B023
                enough.set()
            await finished(sql)
    assert sorted(set(receiver.events("hook"))) == sorted(made)
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == len(made)


@pytest.mark.parametrize("kind", DEFAULTS)
async def test_the_schema_comes_about_under_defaults_of_others(kind: str, empty_dsn: str, server: str) -> None:
    async with defaults(empty_dsn, server, kind, "of_the_database"):
        assert len(await migrate(empty_dsn)) == len(MIGRATIONS)
    assert await catalogue(empty_dsn) == VECTOR.read_text()


async def test_a_migration_may_take_longer_than_transactions_of_others(dsn: str, server: str, sql: Sql) -> None:
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'relation' AND now() - xact_start > '1.2s'"
    async with defaults(dsn, server, "timeouts", "of_the_database"), asyncio.TaskGroup() as group:
        async with sql.transaction():
            await sql.execute("SELECT webhookd.lock_tables()")
            migration = group.create_task(migrate(dsn))
            async with connected(server) as watch:
                await until(lambda: watch.fetchval(waits), "a migration that waits")
        assert await migration == []


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
        assert await ParkingStore(database).pause([], "me") == []
    assert await migrate(dsn) == []


async def test_who_has_the_lock_of_the_log_keeps_others_from_cutting_and_uses_no_transaction_id(
    dsn: str, sql: Sql
) -> None:
    async with connected(dsn) as other, sql.transaction():
        assert await sql.fetchval("SELECT webhookd.try_lock_log()")
        assert await sql.fetchval("SELECT pg_current_xact_id_if_assigned()") is None
        assert not await other.fetchval("SELECT webhookd.try_lock_log()")
        assert await other.fetch("SELECT * FROM webhookd.cut(1, 1, 1)") == [], "as daemons of before ask"
        async with Database(dsn) as database:
            refused = await Batches(database).cut(1, Share(10, 10, 0, [], [], None))
            assert (refused.batches, refused.more) == ([], True), "it has to look again"
    async with Database(dsn) as database:
        empty = await Batches(database).cut(1, Share(10, 10, 0, [], [], None))
        assert (empty.batches, empty.more) == ([], False)


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
