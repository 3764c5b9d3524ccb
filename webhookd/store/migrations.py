"""The schema in the database: bring it up to date, take a copy over, or say why this binary cannot run on it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, NamedTuple

import asyncpg

from webhookd.errors import SchemaMismatch, StoreUnavailable
from webhookd.store.dial import dial, target
from webhookd.store.session import pins
from webhookd.store.statements import MIGRATIONS, Migration

_TRIES, _PAUSE = 240, 0.5  # an application's long transaction, or another migration, may be in the way
# INSERTs queue up behind a lock that we wait for, so it is waited for briefly. No session state: poolers.
_BEGIN = """SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL standard_conforming_strings = on; SET LOCAL quote_all_identifiers = off;
SET LOCAL DateStyle = 'ISO'; SET LOCAL IntervalStyle = 'postgres'; SET LOCAL TimeZone = 'UTC';
SET LOCAL row_security = off;
SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL lock_timeout = '2s';
DO $$ BEGIN
  -- PostgreSQL 17 has it; its clock runs since BEGIN, and this stops it.
  PERFORM set_config(name, '0', true) FROM pg_settings WHERE name = 'transaction_timeout';
  IF to_regclass('webhookd.lock_tables') IS NULL THEN PERFORM pg_advisory_xact_lock(7301, 0); END IF;
  -- Another may have made it while we waited, of which to_regclass would not hear.
  IF EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE n.nspname = 'webhookd' AND c.relname = 'lock_tables') THEN
    LOCK TABLE webhookd.lock_tables IN SHARE UPDATE EXCLUSIVE MODE;
  END IF;
END $$;
SET LOCAL lock_timeout = '50ms';"""
_MAKE_PARTITIONS = "SELECT * FROM webhookd.make_partitions(30);"
# Partitions whose index of that kind is missing, or was begun and not finished.
_UNINDEXED = """
SELECT t.relname AS part, to_regclass(format('webhookd.%I', t.relname || '_tenant')) IS NOT NULL AS begun,
       COALESCE(bool_or(x.indisvalid), false) AS built,
       EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.relid = t.oid) AS is_being_built
  FROM pg_inherits i JOIN pg_class t ON t.oid = i.inhrelid
  LEFT JOIN pg_index x ON x.indexrelid = to_regclass(format('webhookd.%I', t.relname || '_tenant'))
 WHERE i.inhparent = 'webhookd.outbox'::regclass AND to_regclass('webhookd.outbox_tenant') IS NOT NULL
   AND NOT EXISTS (SELECT FROM pg_inherits a JOIN pg_index c ON c.indexrelid = a.inhrelid
                    WHERE a.inhparent = to_regclass('webhookd.outbox_tenant') AND c.indrelid = t.oid)
 GROUP BY t.oid, t.relname ORDER BY t.relname"""
# Another migration was a moment earlier, or retention has taken the partition.
_OVERTAKEN = (
    asyncpg.DuplicateTableError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedObjectError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.DependentObjectsStillExistError,
    asyncpg.UniqueViolationError,
)
_WAKE = """CREATE OR REPLACE TRIGGER wake AFTER INSERT ON webhookd.outbox
  FOR EACH STATEMENT EXECUTE FUNCTION webhookd.wake();"""
_NO_WAKE = "DROP TRIGGER IF EXISTS wake ON webhookd.outbox;"
_BOUND = "SELECT system_identifier = split_part(webhookd.place(), '/', 1) AND environment = $1 FROM webhookd.binding"

Owed = Literal["deliver", "drop"]


class Rebased(NamedTuple):
    """What was owed by a copy: events that nobody had read, batches in hand, deliveries to retry, scheduled events."""

    events: int
    batches: int
    deliveries: int
    later: int


async def migrate(dsn: str, *, wake: bool | None = None) -> list[str]:
    """Apply what is missing and make partitions for 30 days; return the names of what was applied, in order.

    `wake` makes or drops the trigger that wakes daemons, None leaves it as it is. Several may run at once. Raises
    StoreUnavailable, and SchemaMismatch if the schema is too new for this binary.
    """
    applied = []
    async with _connected(dsn) as connection:
        check_encoding(connection)
        for migration in MIGRATIONS:
            if await _retried(connection, _script(migration), migration.version):
                applied.append(migration.name)
        await check_schema(connection)
        await _retried(connection, _MAKE_PARTITIONS)
        await _build_indexes(connection)
        if wake is not None:
            await _retried(connection, _WAKE if wake else _NO_WAKE)
    return applied


async def _build_indexes(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Build the index by tenant where there are events, beside INSERTs, which wait for none of it."""
    for _ in range(_TRIES):
        missing = await connection.fetch(_UNINDEXED)
        if not missing:
            return
        for part, begun, built, is_being_built in missing:
            if is_being_built:
                await asyncio.sleep(_PAUSE)
                continue
            with suppress(*_OVERTAKEN):
                await _build_index(connection, part, begun=begun, built=built)
    raise StoreUnavailable("another migration builds an index by tenant: let it end, and try again")


async def _build_index(
    connection: "asyncpg.Connection[asyncpg.Record]", part: str, *, begun: bool, built: bool
) -> None:
    name, table = quoted_name(f"{part}_tenant"), quoted_name(part)
    if begun and not built:  # it was interrupted
        await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS webhookd.{name}")
    if not built:
        await connection.execute(
            f"CREATE INDEX CONCURRENTLY {name} ON webhookd.{table} (tenant, id)"
            " WHERE tenant <> '' AND char_length(tenant) <= 255"
        )
    await _retried(connection, f"ALTER INDEX webhookd.outbox_tenant ATTACH PARTITION webhookd.{name};")


def quoted_name(name: str) -> str:
    """As SQL has the name of a table."""
    return '"' + name.replace('"', '""') + '"'


async def rebase(dsn: str, environment: str, owed: Owed, who: str) -> Rebased | None:
    """Bind a copy to the server it is on, and send or end what it owes; None if it is bound there already."""
    async with _connected(dsn) as connection, connection.transaction(isolation="read_committed"):
        await connection.execute(pins(connection, local=True))
        await check_schema(connection)
        if await connection.fetchval(_BOUND, environment):
            return None
        await connection.execute("SELECT set_config('webhookd.who', $1, true)", who)
        rows = await connection.fetch("SELECT * FROM webhookd.rebase($1, $2)", environment, owed)
        return Rebased(**rows[0])


async def check_schema(connection: "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]") -> None:
    """Raise SchemaMismatch unless this binary can run on the schema; a newer one that is not breaking is fine."""
    check_encoding(connection)
    versions = await _versions(connection)
    newest = MIGRATIONS[-1].version
    if not versions:
        raise SchemaMismatch("the database has no webhookd schema: run `webhookd migrate`")
    if max(versions) < newest:
        raise SchemaMismatch(f"the schema is version {max(versions)}, older than {newest}: run `webhookd migrate`")
    if breaking := [version for version, breaks in versions.items() if breaks and version > newest]:
        raise SchemaMismatch(
            f"the schema is version {max(breaking)}, too new for this binary: upgrade webhookd", final=True
        )


def check_encoding(connection: "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]") -> None:
    """Raise SchemaMismatch in a database whose encoding is not UTF8: there, text may be such as nobody can read."""
    encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")  # said by the server when we connected
    if encoding != "UTF8":
        raise SchemaMismatch(
            f"the encoding of this database is {encoding}, and webhookd needs UTF8: make one with CREATE DATABASE "
            "name ENCODING 'UTF8' TEMPLATE template0 (and a LOCALE that fits), and move this one there with pg_dump",
            final=True,
        )


def as_sql(*, wake: bool | None = None) -> dict[str, str]:
    """All of it as scripts for an empty database, by names of files: `psql -v ON_ERROR_STOP=1 -f FILE`, in order."""
    scripts = {migration.name: _script(migration) for migration in MIGRATIONS}
    scripts["partitions"] = _MAKE_PARTITIONS
    if wake is not None:
        scripts["wake"] = _WAKE if wake else _NO_WAKE
    return {
        f"{name}.sql": f"BEGIN ISOLATION LEVEL READ COMMITTED;\n{_BEGIN}\n{script}\nCOMMIT;\n"
        for name, script in scripts.items()
    }


def _script(migration: Migration) -> str:
    values = f"{migration.version}, '{migration.name}', {str(migration.breaking).lower()}"
    return f"{migration.text}\nINSERT INTO webhookd.schema_version (version, name, breaking) VALUES ({values});"


async def _versions(connection: "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]") -> dict[int, bool]:
    if await connection.fetchval("SELECT to_regclass('webhookd.schema_version') IS NULL"):
        return {}
    rows = await connection.fetch("SELECT version, breaking FROM webhookd.schema_version")
    return {row["version"]: row["breaking"] for row in rows}


async def _retried(connection: "asyncpg.Connection[asyncpg.Record]", script: str, version: int | None = None) -> bool:
    """Run the script in a transaction of its own; False if its version has been applied before."""
    for last in (*[False] * (_TRIES - 1), True):
        try:
            async with connection.transaction(isolation="read_committed"):
                await connection.execute(_BEGIN)
                if version is not None and version in await _versions(connection):
                    return False
                await connection.execute(script)
                return True
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if last:
                raise StoreUnavailable(
                    "a lock of another transaction is in the way of the migration: end it, or try again later"
                ) from error
        await asyncio.sleep(_PAUSE)
    raise AssertionError("unreachable")


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection for the block; what goes wrong on it is told in one sentence that holds nothing of the DSN."""
    try:
        connection = await dial(target(dsn), statement_cache_size=0)  # poolers
        try:
            yield connection
        finally:
            await connection.close()
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreUnavailable(
            f"this role may not change the schema ({error.message}): run `webhookd migrate` as its owner"
        ) from error
    except asyncpg.LockNotAvailableError as error:
        raise StoreUnavailable("a transaction that has inserted is still open: end it, or try again later") from error
    except asyncpg.PostgresError as error:
        raise StoreUnavailable(f"Postgres refused the migration (SQLSTATE {error.sqlstate}): see its log") from error
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
        raise StoreUnavailable("Postgres does not answer: check the DSN, and that the server runs") from error
