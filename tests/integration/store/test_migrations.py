"""The schema: how it comes about, who may run on it, and what its functions say.

`python -m tests.integration.store.test_migrations` writes tests/vectors/schema.txt anew after an intended change.
"""

import asyncio
import tempfile
from asyncio.subprocess import PIPE
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from tests.conftest import SETTINGS
from tests.integration.conftest import as_user
from webhookd.cli.embedded import _programs, postgres
from webhookd.errors import SchemaMismatch, StoreUnavailable
from webhookd.store.migrations import _BEGIN, as_sql, check_schema, migrate
from webhookd.store.statements import GRANTS, MIGRATIONS, parse

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

VECTOR = Path(__file__).parents[2] / "vectors" / "schema.txt"
CATALOGUE = r"""
WITH relation AS (
  SELECT c.oid, c.relname, c.relkind, c.reloptions FROM pg_class c
   WHERE c.relnamespace = 'webhookd'::regnamespace AND c.relname !~ '_\d{8}')  -- dates: daily partitions
SELECT format('table %s %s%s', r.relname, r.reloptions, ' partition by ' || pg_get_partkeydef(r.oid))
  FROM relation r WHERE r.relkind IN ('r', 'p')
UNION ALL
SELECT format('table %s: partition of %s %s', r.relname, i.inhparent::regclass, pg_get_expr(c.relpartbound, c.oid))
  FROM relation r JOIN pg_class c ON c.oid = r.oid JOIN pg_inherits i ON i.inhrelid = r.oid WHERE r.relkind = 'r'
UNION ALL
SELECT format('column %s.%s %s%s%s%s', r.relname, lpad(a.attnum::text, 2, '0') || ' ' || a.attname,
              format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN ' not null' END,
              CASE WHEN a.attgenerated <> '' THEN ' generated ' WHEN d.oid IS NOT NULL THEN ' default ' END
                || pg_get_expr(d.adbin, d.adrelid),
              CASE WHEN a.attidentity <> '' THEN ' identity' END)
  FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid
  LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (r.oid, a.attnum)
 WHERE r.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT format('constraint %s.%s %s', r.relname, k.conname, pg_get_constraintdef(k.oid))
  FROM relation r JOIN pg_constraint k ON k.conrelid = r.oid WHERE k.contype <> 'n'  -- NOT NULL, since 18
UNION ALL
SELECT format('index %s', pg_get_indexdef(r.oid)) FROM relation r WHERE r.relkind IN ('i', 'I')
UNION ALL
SELECT format('sequence %s %s', r.relname, s.seqcache) FROM relation r JOIN pg_sequence s ON s.seqrelid = r.oid
UNION ALL
SELECT format('trigger %s', pg_get_triggerdef(t.oid)) FROM relation r JOIN pg_trigger t ON t.tgrelid = r.oid
 WHERE NOT t.tgisinternal AND t.tgparentid = 0
UNION ALL
SELECT format('function %s(%s) returns %s %s%s%s%s body %s', p.proname, pg_get_function_arguments(p.oid),
              pg_get_function_result(p.oid), p.provolatile, CASE WHEN p.prosecdef THEN ' security definer' END,
              ' set ' || array_to_string(p.proconfig, '; '),
              CASE WHEN has_function_privilege('public', p.oid, 'execute') THEN ' public' END, md5(p.prosrc))
  FROM pg_proc p WHERE p.pronamespace = 'webhookd'::regnamespace
"""


async def catalogue(dsn: str) -> str:
    """What the schema consists of, a line each; the same on every supported PostgreSQL."""
    connection = await asyncpg.connect(dsn)
    try:
        return "".join(sorted(f"{row[0]}\n" for row in await connection.fetch(CATALOGUE)))
    finally:
        await connection.close()


# Migrating


async def test_migrating_twice_applies_everything_once(empty_dsn: str) -> None:
    assert await migrate(empty_dsn) == [migration.name for migration in MIGRATIONS]
    assert await migrate(empty_dsn) == []


async def test_two_at_once_apply_everything_once(empty_dsn: str) -> None:
    one, other = await asyncio.gather(migrate(empty_dsn), migrate(empty_dsn))
    assert sorted(one + other) == [migration.name for migration in MIGRATIONS]


async def test_the_sum_of_the_migrations_is_the_expected_schema(dsn: str) -> None:
    assert await catalogue(dsn) == VECTOR.read_text()


async def test_the_script_makes_the_same_schema(empty_dsn: str) -> None:
    psql = await asyncio.create_subprocess_exec(
        *(_programs(18) / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_dsn),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    _, errors = await psql.communicate("\n".join(as_sql().values()).encode())
    assert (psql.returncode, errors) == (0, b"")
    assert await catalogue(empty_dsn) == VECTOR.read_text()
    assert await migrate(empty_dsn) == []


async def test_a_schema_that_the_operator_made_is_used(empty_dsn: str) -> None:
    connection: Connection = await asyncpg.connect(empty_dsn)
    await connection.execute("CREATE SCHEMA webhookd")
    await connection.close()
    assert await migrate(empty_dsn) == [migration.name for migration in MIGRATIONS]


async def test_a_role_that_may_not_is_told_in_one_sentence(empty_dsn: str, roles: None) -> None:
    with pytest.raises(StoreUnavailable, match=r"^this role may not .*permission denied.* as its owner$"):
        await migrate(as_user(empty_dsn, "webhookd_reader"))


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("postgresql://u:pa55word@/x?host=/nonexistent", "does not answer"),
        ("postgresql://u:pa55word@localhost:1/x", "does not answer"),
        ("postgresql://u:pa55word@localhost:nope/x", "The DSN"),
        ("mysql://u:pa55word@localhost/x", "The DSN"),
    ],
)
async def test_trouble_says_what_to_check_and_never_the_password(bad: str, what: str) -> None:
    with pytest.raises(StoreUnavailable, match=what) as caught:
        await migrate(bad)
    assert "pa55word" not in str(caught.value)


async def test_a_database_that_does_not_exist_is_named_as_the_trouble(server: str) -> None:
    with pytest.raises(StoreUnavailable, match=r'database "nothing_here" does not exist at .*: create it'):
        await migrate(server.replace("/postgres?", "/nothing_here?"))


async def test_a_lock_in_the_way_is_waited_for(dsn: str, sql: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhookd.store.migrations._BEGIN", _BEGIN.replace("'2s'", "'20ms'"))
    monkeypatch.setattr("webhookd.store.migrations._TRIES", 3)
    async with sql.transaction():
        await sql.execute("SELECT webhookd.lock_tables()")
        with pytest.raises(StoreUnavailable, match="a lock of another transaction"):
            await migrate(dsn)
    assert await migrate(dsn) == []


# Who may run on it


async def test_a_binary_runs_on_its_own_schema_and_on_a_newer_one_that_breaks_nothing(sql: Connection) -> None:
    await check_schema(sql)
    await sql.execute("INSERT INTO webhookd.schema_version VALUES (9999, '9999_more', false)")
    await check_schema(sql)


async def test_an_older_binary_refuses_a_newer_breaking_schema(dsn: str, sql: Connection) -> None:
    await sql.execute("INSERT INTO webhookd.schema_version VALUES (9998, 'breaks', true), (9999, 'more', false)")
    with pytest.raises(SchemaMismatch, match="upgrade webhookd"):
        await check_schema(sql)
    with pytest.raises(SchemaMismatch, match="upgrade webhookd"):
        await migrate(dsn)


async def test_an_older_schema_asks_for_a_migration(sql: Connection) -> None:
    await sql.execute("DELETE FROM webhookd.schema_version WHERE version = $1", MIGRATIONS[-1].version)
    with pytest.raises(SchemaMismatch, match=r"older .*run `webhookd migrate`"):
        await check_schema(sql)


async def test_a_missing_schema_asks_for_a_migration(empty_dsn: str) -> None:
    connection: Connection = await asyncpg.connect(empty_dsn)
    with pytest.raises(SchemaMismatch, match=r"no webhookd schema.*run `webhookd migrate`"):
        await check_schema(connection)
    await connection.close()


# Partitions

INSERT_AT = """INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('a', '{}', $1)
               RETURNING tableoid::regclass::text"""


async def test_partitions_are_made_once(sql: Connection) -> None:
    assert await sql.fetch("SELECT * FROM webhookd.make_partitions(30)") == []
    made = await sql.fetch("SELECT * FROM webhookd.make_partitions(32)")
    assert [row["problem"] for row in made] == [None] * 4  # two days, two tables


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati"])
async def test_rows_land_in_the_partition_of_their_utc_day(sql: Connection, zone: str) -> None:
    await sql.execute(f"SET timezone = '{zone}'")
    await sql.execute("SELECT webhookd.make_partitions(40)")
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=35)
    for moment in (day, day + timedelta(hours=23, minutes=59)):
        assert await sql.fetchval(INSERT_AT, moment) == f"webhookd.outbox_{day:%Y%m%d}"


async def test_without_a_partition_rows_land_in_default_which_becomes_one(sql: Connection) -> None:
    day = datetime.now(UTC) + timedelta(days=31)
    assert await sql.fetchval(INSERT_AT, day) == "webhookd.outbox_default"
    made = await sql.fetch("SELECT * FROM webhookd.make_partitions(33)")
    assert [tuple(row) for row in made] == [(f"outbox_until_{day + timedelta(days=1):%Y%m%d}", None)]
    made = await sql.fetch("SELECT * FROM webhookd.make_partitions(33)")
    assert [row["problem"] for row in made] == [None] * 4, "the 33rd day of the outbox, and three of attempts"
    assert await sql.fetchval(INSERT_AT, day) == f"webhookd.outbox_until_{day + timedelta(days=1):%Y%m%d}"


async def test_partitions_are_made_beside_an_open_transaction_that_writes(dsn: str, sql: Connection) -> None:
    writer: Connection = await asyncpg.connect(dsn)
    async with writer.transaction():
        await writer.execute("INSERT INTO webhookd.outbox (type, payload) VALUES ('a', '{}')")
        made = await sql.fetch("SELECT * FROM webhookd.make_partitions(31)")
        assert [row["problem"] for row in made] == [None, None]
    await writer.close()


async def test_a_default_partition_in_use_is_left_for_later(dsn: str, sql: Connection) -> None:
    writer: Connection = await asyncpg.connect(dsn)
    async with writer.transaction():
        await writer.execute("LOCK TABLE webhookd.outbox_default IN ROW EXCLUSIVE MODE")
        made = await sql.fetch("SELECT * FROM webhookd.make_partitions(32)")
        assert [row["problem"] for row in made] == ["outbox_default is in use", None, None]
    await writer.close()
    assert len(await sql.fetch("SELECT * FROM webhookd.make_partitions(32)")) == 2


# Emitting, and what became of an event

Status = list[tuple[object, ...]]


async def status(sql: Connection, event_id: str) -> Status:
    rows = await sql.fetch(
        "SELECT endpoint, state, attempts, last_code, last_error FROM webhookd.event_status($1)", event_id
    )
    return [tuple(row) for row in rows]


async def cut(sql: Connection) -> None:
    await sql.execute("SELECT * FROM webhookd.cut(500, 500, 1)")


async def test_emit_writes_what_it_is_given_and_returns_the_event_id(sql: Connection) -> None:
    assert await sql.fetchval("SELECT webhookd.emit('a.b', '{\"n\": 1.50}', event_id => 'mine')") == "mine"
    row = await sql.fetchrow(
        "SELECT payload, tenant, metadata, ordering_key, size FROM webhookd.outbox WHERE event_id = 'mine'"
    )
    assert row is not None
    assert tuple(row) == ('{"n": 1.50}', "", None, None, 11)
    made = await sql.fetchval(
        "SELECT webhookd.emit('a.b', '1', 'acme', 'key', '{\"x\": \"y\"}', NULL, '2030-01-01Z', '2031-01-01Z')"
    )
    row = await sql.fetchrow(
        "SELECT tenant, ordering_key, metadata, occurred_at, deliver_after FROM webhookd.outbox WHERE event_id = $1",
        made,
    )
    assert row is not None
    assert tuple(row) == (
        "acme", "key", '{"x": "y"}', datetime(2030, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC),
    )  # fmt: skip


async def test_an_event_waits_is_sent_and_was_nobodys(sql: Connection) -> None:
    event = await sql.fetchval("SELECT webhookd.emit('a', '{}')")
    assert await status(sql, event) == [(None, "waiting", 0, None, None)]
    await cut(sql)
    assert await status(sql, event) == [(None, "sending", 0, None, None)]
    await sql.execute("UPDATE webhookd.batch SET done_at = now()")
    assert await status(sql, event) == [(None, "unmatched", 0, None, None)]


async def test_an_event_of_the_future_waits_until_it_is_due(sql: Connection) -> None:
    event = await sql.fetchval("SELECT webhookd.emit('a', '{}', deliver_after => now() + interval '1 hour')")
    for _ in range(2):
        assert await status(sql, event) == [(None, "waiting", 0, None, None)]
        assert await sql.fetchval("SELECT due > now() FROM webhookd.event_status($1)", event)
        await cut(sql)
    await sql.execute("UPDATE webhookd.scheduled SET due = now()")
    await cut(sql)
    assert await status(sql, event) == [(None, "sending", 0, None, None)]


@pytest.mark.parametrize(
    ("state", "shown"),
    [("retry", "retrying"), ("held", "held"), ("exhausted", "exhausted"), ("rejected", "rejected")],
)
async def test_a_backlog_row_tells_the_state(sql: Connection, state: str, shown: str) -> None:
    event = await sql.fetchval("SELECT webhookd.emit('a', '{}')")
    await cut(sql)
    await sql.execute("INSERT INTO webhookd.endpoint (tenant, name, source, spec) VALUES ('acme', 'crm', 'file', '{}')")
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, state, last_code, last_error)
           SELECT 1, id, created_at, 2, now(), $1, 503, 'status' FROM webhookd.outbox""",
        state,
    )
    assert await status(sql, event) == [("acme/crm", shown, 2, 503, "status")]
    has_due = await sql.fetchval("SELECT due IS NOT NULL FROM webhookd.event_status($1)", event)
    assert has_due == (state in ("retry", "held"))


async def test_each_endpoint_has_its_row(sql: Connection) -> None:
    event = await sql.fetchval("SELECT webhookd.emit('a', '{}')")
    await cut(sql)
    await sql.execute(
        "INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('a', 'file', '{}'), ('b', 'file', '{}')"
    )
    await sql.execute(
        """INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok, code, error)
           SELECT now() + n * interval '1 s', id, p, n, ok, code, error
             FROM webhookd.outbox,
                  (VALUES (1, 1, false, 500, 'status'), (1, 2, true, 200, NULL), (2, 1, false, NULL, 'timeout'),
                          (77, 1, true, 204, NULL)) v(p, n, ok, code, error)"""
    )
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, last_error)
           SELECT 2, id, created_at, 1, now(), 'timeout' FROM webhookd.outbox"""
    )
    assert await status(sql, event) == [
        ("#77", "delivered", 1, 204, None),
        ("a", "delivered", 2, 200, None),
        ("b", "retrying", 1, None, "timeout"),
    ]
    last = await sql.fetchval("SELECT last_attempt_at FROM webhookd.event_status($1) WHERE endpoint = 'a'", event)
    assert last == await sql.fetchval("SELECT max(at) FROM webhookd.attempt WHERE endpoint_id = 1")


async def test_a_failed_attempt_without_a_backlog_row_is_still_owed(sql: Connection) -> None:
    event = await sql.fetchval("SELECT webhookd.emit('a', '{}')")
    await sql.execute(
        """INSERT INTO webhookd.attempt (outbox_id, endpoint_id, attempt, ok, error)
           SELECT id, 1, 1, false, 'timeout' FROM webhookd.outbox"""
    )
    assert await status(sql, event) == [("#1", "retrying", 1, None, "timeout")]


async def test_an_event_that_nobody_knows_has_no_row(sql: Connection) -> None:
    assert await status(sql, "unknown") == []


# Roles


async def refused(sql: Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await sql.execute(statement)


async def test_a_producer_can_insert_and_emit_and_read_nothing_else(granted: Connection) -> None:
    sql = granted
    await sql.execute("SET ROLE webhookd_producer")
    row = await sql.fetchrow(
        """INSERT INTO webhookd.outbox
                  (type, payload, tenant, ordering_key, metadata, event_id, occurred_at, deliver_after)
           VALUES ('a', '{}', 't', 'k', '{}', 'mine', now(), NULL) RETURNING id, event_id, created_at"""
    )
    assert row is not None
    assert row["event_id"] == "mine"
    await sql.execute("INSERT INTO webhookd.outbox (type, payload) VALUES ('a', '{}')")
    assert await sql.fetchval("SELECT webhookd.emit('a', '{}', event_id => 'other')") == "other"
    await sql.execute("SELECT id, event_id, created_at FROM webhookd.outbox")
    await refused(sql, "SELECT payload FROM webhookd.outbox")
    await refused(sql, "INSERT INTO webhookd.outbox (type, payload, xid) VALUES ('a', '{}', '1')")
    await refused(sql, "INSERT INTO webhookd.outbox (type, payload, own) VALUES ('a', '{}', true)")
    await refused(sql, "SELECT webhookd.tell('endpoint.disabled', 1)")
    for forged in ("INSERT INTO webhookd.outbox (type, payload) VALUES ($1, '{}')", "SELECT webhookd.emit($1, '{}')"):
        for type_ in ("webhookd.endpoint.disabled", "webhookd."):
            with pytest.raises(asyncpg.CheckViolationError):
                await sql.execute(forged, type_)
        await sql.execute(forged, "webhookd_orders")
    await refused(sql, "DELETE FROM webhookd.outbox")
    await refused(sql, "SELECT * FROM webhookd.event_status('mine')")
    await refused(sql, "SELECT * FROM webhookd.cut(1, 1, 1)")
    await refused(sql, "SELECT * FROM webhookd.make_partitions(1)")
    for table in ("batch", "backlog", "attempt", "endpoint", "outbox_default", "schema_version"):
        await refused(sql, f"SELECT FROM webhookd.{table}")


async def test_what_we_tell_is_ours_and_what_was_told_before_stays(granted: Connection) -> None:
    """The constraint came when there were such events: they may move to another partition, and go."""
    sql = granted
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('a', 'file', '{}')")
    bounds = await sql.fetch(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'webhookd.outbox'::regclass"
        " AND contype = 'c' AND conname LIKE 'types that begin%'"
    )
    ((name, definition),) = bounds
    await sql.execute(f'ALTER TABLE webhookd.outbox DROP CONSTRAINT "{name}"')
    far = "now() + interval '400 days'"
    await sql.execute(
        f"INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('webhookd.before', '{{}}', {far}),"
        f" ('webhookd.before', '{{}}', {far} - interval '3 days')"
    )
    await sql.execute(f'ALTER TABLE webhookd.outbox ADD CONSTRAINT "{name}" {definition}')
    await sql.execute("SET ROLE webhookd_daemon")
    await sql.execute("SELECT webhookd.tell('endpoint.disabled', 1)")
    for _ in range(10):
        await sql.execute("SELECT webhookd.maintain()")
    await sql.execute("RESET ROLE")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox_default") == 0
    assert [tuple(row) for row in await sql.fetch("SELECT type, own FROM webhookd.outbox ORDER BY 1")] == [
        ("webhookd.before", False),
        ("webhookd.before", False),
        ("webhookd.endpoint.disabled", True),
    ]


async def test_a_reader_reads_and_changes_nothing(granted: Connection) -> None:
    sql = granted
    event = await sql.fetchval("SELECT webhookd.emit('a', '{}')")
    await sql.execute("SET ROLE webhookd_reader")
    assert await status(sql, event) == [(None, "waiting", 0, None, None)]
    await refused(sql, "SELECT * FROM webhookd.outbox")
    await refused(sql, "INSERT INTO webhookd.outbox (type, payload) VALUES ('a', '{}')")
    await refused(sql, "SELECT webhookd.emit('a', '{}')")
    await refused(sql, "UPDATE webhookd.endpoint SET name = 'x'")


SAID = {  # by applications; and by receivers, and to them, in tests
    "outbox": {"payload", "metadata"},
    "shot": {"payload", "request", "response"},
    "token": {"hash"},
}


async def test_a_reader_sees_everything_but_what_applications_say_and_what_is_sealed(granted: Connection) -> None:
    """Also where the rights are those of an earlier version, of which the first statement is all that counts."""
    sql = granted
    await sql.execute("GRANT SELECT ON ALL TABLES IN SCHEMA webhookd TO webhookd_reader")
    await sql.execute(GRANTS)
    for _ in range(100):
        if not await sql.fetch("SELECT FROM webhookd.maintain(days => 40)"):
            break
    columns = await sql.fetch(
        """SELECT c.relname, a.attname, has_column_privilege('webhookd_reader', c.oid, a.attnum, 'SELECT'),
                  c.relispartition
             FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            WHERE c.relnamespace = 'webhookd'::regnamespace AND c.relkind IN ('r', 'p', 'v')"""
    )
    assert len({table for table, *_ in columns}) > 90
    for table, column, readable, partition in columns:
        closed = partition or table in ("secret", "sealed", "cipher") or column in SAID.get(table, ())
        assert readable is not closed, (table, column)
    for table in ("lock_log", "lock_tables", "lock_endpoints"):  # they have no column
        assert await sql.fetchval("SELECT has_table_privilege('webhookd_reader', $1, 'SELECT')", f"webhookd.{table}")


async def test_a_monitoring_role_needs_the_view_and_nothing_else(granted: Connection) -> None:
    sql = granted
    await sql.execute("REVOKE ALL ON ALL TABLES IN SCHEMA webhookd FROM webhookd_reader")
    await sql.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA webhookd FROM webhookd_reader")
    await sql.execute("GRANT SELECT ON webhookd.health TO webhookd_reader")
    await sql.execute("SET ROLE webhookd_reader")
    assert await sql.fetchval("SELECT days_ahead > 28 FROM webhookd.health")
    await refused(sql, "SELECT * FROM webhookd.outbox")


async def test_a_daemon_has_what_it_needs_and_cannot_change_what_happened(granted: Connection) -> None:
    sql = granted
    await sql.execute("SET ROLE webhookd_daemon")
    await check_schema(sql)
    await sql.execute("SELECT webhookd.emit('a', '{}'); SELECT webhookd.emit('a', '{}', deliver_after => '9999-01-01')")
    await cut(sql)
    await sql.execute(
        """SELECT nextval('webhookd.daemon_id_seq');
           INSERT INTO webhookd.daemon (id) VALUES (1);
           UPDATE webhookd.daemon SET beat_at = now();
           UPDATE webhookd.batch SET done_at = now();
           INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('a', 'file', '{}');
           UPDATE webhookd.config_version SET version = version + 1;
           INSERT INTO webhookd.attempt (outbox_id, endpoint_id, attempt, ok) VALUES (1, 1, 1, true);
           INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due) VALUES (1, 1, now(), now());
           SELECT FROM webhookd.backlog FOR UPDATE;
           DELETE FROM webhookd.backlog;
           SELECT webhookd.park('{1}', 'test'), webhookd.unpark('{1}', 1, '{1}'), webhookd.pause('{1}'),
                  webhookd.resume('{1}'), webhookd.disable(1, 'test'), webhookd.give_up(1, 1, 1, now())"""
    )
    assert len(await sql.fetch("SELECT * FROM webhookd.make_partitions(31)")) == 2
    await refused(sql, "UPDATE webhookd.outbox SET type = 'b'")
    await refused(sql, "DELETE FROM webhookd.attempt")
    await refused(sql, "INSERT INTO webhookd.schema_version VALUES (9, 'x', false)")
    await refused(sql, "SELECT webhookd.erase(tenant => 'a')")
    await refused(sql, "SELECT webhookd.rebase('production', 'drop')")
    await sql.fetch("SELECT * FROM webhookd.maintain()")
    await sql.fetch("SELECT webhookd.sweep(), webhookd.place()")


# The files


def test_statements_are_read_by_name() -> None:
    text = "-- A file.\n\n-- name: one\n-- Why.\nSELECT 1;\n\n-- name: two\nSELECT 2;\n"
    assert parse(text) == {"one": "-- Why.\nSELECT 1;", "two": "SELECT 2;"}


def test_versions_count_from_one_without_a_gap() -> None:
    versions = [migration.version for migration in MIGRATIONS]
    assert versions == list(range(1, len(versions) + 1))


async def test_every_function_depends_on_no_default_and_no_lock_that_a_stranger_can_take(sql: Connection) -> None:
    """Whoever redefines one says so again: its settings are part of its definition."""
    wanted = {
        "row_security=off",
        "DateStyle=ISO",
        "IntervalStyle=postgres",
        "TimeZone=UTC",
        "standard_conforming_strings=on",
    }
    cut = {"row_security=off"}
    often = {"cut": cut, "part_of_transaction": cut, "place": set(), "emit": set(), "wake": None, "try_lock_log": None}
    rows = await sql.fetch("SELECT * FROM pg_proc WHERE pronamespace = 'webhookd'::regnamespace")
    for row in rows:
        name, settings = row["proname"], set(row["proconfig"] or ())
        least = often.get(name, set() if "lock_" in name or name.startswith("expect") else wanted)
        if least is not None:
            assert least | {"search_path=pg_catalog, pg_temp"} <= settings, name
        assert "advisory" not in row["prosrc"] or name == "wake"


async def regenerate() -> None:
    with tempfile.TemporaryDirectory() as directory, postgres(Path(directory), 18, SETTINGS) as dsn:
        await migrate(dsn)
        VECTOR.write_text(await catalogue(dsn))


if __name__ == "__main__":
    asyncio.run(regenerate())
