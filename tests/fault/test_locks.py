"""An application's transaction stays open while the tables change: no INSERT of the others waits long for a lock."""

import asyncio
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

import asyncpg
import pytest

from tests.conftest import database, execute
from tests.fault.verdict import Connection
from tests.integration.cli.test_cli import PLAIN
from tests.integration.store.test_retention import at, make_day, old_event, part, parts
from tests.waiting import HANGS
from webhookd.store.database import Database
from webhookd.store.migrations import migrate
from webhookd.store.registry import Registry
from webhookd.store.statements import MIGRATIONS, Migration

INSERT_AT = "INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('order.created', '{}', $1)"
INSERT = "INSERT INTO webhookd.outbox (type, payload) VALUES ('order.created', '{}')"
# Each session hears from the server itself how long it has waited for a lock, whatever else this machine does.
HEAR = "SET client_min_messages = log; SET log_lock_waits = on; SET deadlock_timeout = '2ms'"
WAITED = re.compile(r"acquired .* after ([0-9.]+) ms")
SLEEP = """SELECT extract(epoch FROM clock_timestamp() - began)::float8 * 1000 - 50
  FROM (SELECT clock_timestamp() AS began, pg_sleep(0.05) OFFSET 0) s"""
OPEN_SECONDS = 10.0
QUIET_SECONDS = 3.0
MOST_WAIT = 100.0  # milliseconds
WEEK = timedelta(days=7).total_seconds()
IN_SHAPE = """SELECT NOT EXISTS (SELECT FROM webhookd.outbox_default) AND max(until) > now() + interval '29 days'
  AND min(until) > now() - interval '7 days' FROM webhookd.partitions('outbox')"""
FUTURE = Migration(9999, "9999_future", False, "ALTER TABLE webhookd.outbox ADD COLUMN future int;")
WAKES = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhookd.outbox'::regclass AND tgname = 'wake')"


class Inserted(NamedTuple):
    """One INSERT: when it began, how long it took, and how long it waited for each lock; milliseconds."""

    at: float
    took: float
    waits: Sequence[float]

    @property
    def waited(self) -> float:
        """For all locks together."""
        return sum(self.waits)


class Applications:
    """Connections that insert as long as they are not stopped, one small transaction after the other."""

    def __init__(self, dsn: str, count: int) -> None:
        self._inserted: list[Inserted] = []
        self._late: list[tuple[float, float]] = []  # when, and by how many milliseconds
        self._dsn = dsn
        self._count = count
        self._stopped = False

    @property
    def count(self) -> int:
        """How often they have inserted."""
        return len(self._inserted)

    def stop(self) -> None:
        """Insert nothing more."""
        self._stopped = True

    async def run(self) -> None:
        """Insert until stopped."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sleep())
            for _ in range(self._count):
                group.create_task(self._insert())

    async def _insert(self) -> None:
        heard: list[str] = []
        connection = await asyncpg.connect(self._dsn)
        try:
            await connection.execute(HEAR)
            connection.add_log_listener(lambda _, message: heard.append(str(message.message)))
            while not self._stopped:
                began = time.monotonic()
                await connection.execute(INSERT)
                took = time.monotonic() - began
                await asyncio.sleep(0.003)  # listeners are called later
                waits = [float(found[1]) for line in heard if (found := WAITED.search(line))]
                self._inserted.append(Inserted(began, took * 1000, waits))
                heard.clear()
        finally:
            await connection.close()

    async def _sleep(self) -> None:
        """Find out how late a server's process is on this machine when it wants to wake up, as after lock_timeout."""
        connection = await asyncpg.connect(self._dsn)
        try:
            while not self._stopped:
                began = time.monotonic()
                self._late.append((began, await connection.fetchval(SLEEP)))
        finally:
            await connection.close()

    def met(self, what: str, since: float, until: float) -> tuple[Inserted, float]:
        """Of the INSERTs that began then the one that waited longest for locks, and how late the machine was."""
        found = [each for each in self._inserted if since <= each.at < until]
        took = sorted(each.took for each in found)
        worst = max(found, key=lambda each: each.waited)
        late = max(late for at, late in self._late if since - 0.1 <= at < until)
        print(  # noqa: T201 - the figures are what the test is for
            f"{what}: {len(found)} INSERTs, p50 {statistics.median(took):.1f} ms, p99 {took[len(took) * 99 // 100]:.1f}"
            f" ms, longest {took[-1]:.1f} ms; {sum(each.waited > 0 for each in found)} waited for locks, the longest"
            f" {worst.waits} ms; the machine was {late:.1f} ms late"
        )
        return worst, late


# The work: each returns when it has done all, which may be after the transaction has ended.


async def maintains(dsn: str) -> None:
    """Partitions are made and dropped, and what fell into DEFAULT gets one, as a daemon does it and more often."""
    async with Database(dsn) as store:
        while not (await store.fetch_row(IN_SHAPE))[0]:
            pieces = await Registry(store).maintain(WEEK, WEEK)
            await asyncio.sleep(0.3 if any(problem for _, problem in pieces) else 0.1)


async def alters(dsn: str) -> None:
    """A migration wants the outbox for itself."""
    await migrate(dsn)


async def changes_the_trigger(dsn: str) -> None:
    """The trigger that wakes daemons goes, and comes back."""
    await migrate(dsn, wake=False)
    await migrate(dsn, wake=True)


async def migrates(dsn: str) -> None:
    """`webhookd migrate`, again and again."""
    for _ in range(4):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "webhookd", "migrate", env={**PLAIN, "WEBHOOKD_DSN": dsn}, stdout=subprocess.DEVNULL
        )
        assert await process.wait() == 0


WORK: Mapping[str, Callable[[str], Coroutine[None, None, None]]] = {
    "maintain": maintains,
    "alter": alters,
    "trigger": changes_the_trigger,
    "migrate": migrates,
}
IN_THE_WAY = {"maintain", "alter", "trigger"}  # what cannot be done before the transaction ends


async def neglected(sql: Connection) -> None:
    """Days past their time, and none for today: what is inserted falls into DEFAULT."""
    for parent in ("outbox", "attempt"):
        for name in await parts(sql, parent):
            if not name.endswith("_default"):
                await sql.execute(f"DROP TABLE webhookd.{name}")
    for days in (-12, -9):
        await make_day(sql, days)
        await old_event(sql, days)
    await make_day(sql, -1)


async def change(dsn: str, sql: Connection, day: int) -> list[str]:
    """Do the work, beside a transaction that has inserted on that day; the waits that were too long."""
    await neglected(sql)
    applications = Applications(dsn, 4)
    async with asyncio.TaskGroup() as group:
        group.create_task(applications.run())
        await asyncio.sleep(QUIET_SECONDS)
        async with sql.transaction():
            await sql.execute(INSERT_AT, at(day))
            opened = time.monotonic()
            working = [group.create_task(work(dsn), name=name) for name, work in WORK.items()]
            await asyncio.sleep(OPEN_SECONDS)
            unfinished = {each.get_name() for each in working if not each.done()}
        ended = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*working), HANGS)
        await asyncio.sleep(0.5)
        applications.stop()
    applications.met("before", opened - QUIET_SECONDS, opened)
    while_open = applications.met("while it is open", opened, ended)
    afterwards = applications.met("afterwards", ended, time.monotonic())
    assert unfinished >= IN_THE_WAY, "the transaction was in their way"
    assert while_open[0].waited > 0
    names = await parts(sql)
    assert not {part(-12), part(-9)} & set(names)
    assert part(29) in names
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox_default") == 0
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 1 + applications.count
    assert await sql.fetchval(WAKES)
    assert await sql.fetchval("SELECT max(version) FROM webhookd.schema_version") == FUTURE.version
    return [
        f"{worst.waits} ms for locks" for worst, late in (while_open, afterwards) if worst.waited > MOST_WAIT + late
    ]


@pytest.fixture
def databases(server: str, template: str) -> Iterator[list[str]]:
    """Two of them, since what only a busy machine has done does not come twice."""
    names = ["locks_1", "locks_2"]
    for name in names:
        execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield [database(server, name) for name in names]
    for name in names:
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("day", [0, -1], ids=["has_inserted_into_default", "has_inserted_yesterday"])
async def test_no_insert_waits_long_while_a_transaction_is_open_and_the_tables_change(
    databases: list[str], monkeypatch: pytest.MonkeyPatch, day: int
) -> None:
    monkeypatch.setattr("webhookd.store.migrations.MIGRATIONS", (*MIGRATIONS, FUTURE))
    too_long: list[str] = []
    for dsn in databases:
        sql: Connection = await asyncpg.connect(dsn)
        try:
            too_long = await change(dsn, sql, day)
        finally:
            await sql.close()
        if not too_long:
            return
    raise AssertionError(f"an INSERT waited {' and '.join(too_long)}")
