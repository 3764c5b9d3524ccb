"""A copy of the database sends nothing until somebody says what becomes of what it owes."""

import asyncio
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SETTINGS, connected, database, execute, open_directory, programs
from tests.fault.fleet import Fleet, fleet
from tests.fault.standby import give_away
from tests.fault.verdict import ROLES, changed
from tests.fault.writers import Connection, events_of, insert
from tests.waiting import until
from webhookd.cli.embedded import postgres
from webhookd.store.migrations import migrate

# Transactions that a server has behind it.
ORIGINAL = 20_000
AGES = {"younger": 0, "older": 2 * ORIGINAL}
UNTIL_THEY_COME_AGAIN = 2 * ORIGINAL
SOME = 20  # events of each kind
LATER = timedelta(hours=1)
IT_IS_LATER = "UPDATE webhookd.scheduled SET due = now()"
BURN = "DO $$ BEGIN FOR n IN 1..{} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
ENDPOINTS: Mapping[str, Mapping[str, Any]] = {
    "healthy": {},
    # With a retry owed all the time, however long the test takes.
    "failing": {"events": ["bad.*"], "retry": {"schedule": ["1s"] * 100}},
    "hold": {"events": ["held.*"], "timeout": "60s", "max_in_flight": SOME},
}
# But for what daemons tell of themselves, as that an endpoint fails: it may have been told and not be in a batch yet.
FATE = """
SELECT (SELECT count(*) FROM webhookd.attempt WHERE ok) AS delivered,
       (SELECT count(*) FROM webhookd.backlog WHERE state = 'retry') AS retry,
       (SELECT count(*) FROM webhookd.scheduled) AS scheduled,
       (SELECT count(*) FROM webhookd.outbox o WHERE deliver_after IS NULL AND type NOT LIKE 'webhookd.%'
           AND NOT EXISTS (SELECT FROM webhookd.batch WHERE o.id = ANY (outbox_ids))) AS unread,
       (SELECT COALESCE(sum(cardinality(outbox_ids)), 0) FROM webhookd.batch WHERE done_at IS NULL) AS in_hand
"""
TRACES = """SELECT (SELECT count(*) FROM webhookd.attempt), (SELECT count(*) FROM webhookd.batch),
                   (SELECT count(*) FROM webhookd.daemon)"""
NOBODY = """SELECT NOT EXISTS (
  SELECT FROM pg_stat_activity WHERE application_name = 'webhookd' AND datname = current_database())"""
QUIET = """SELECT NOT EXISTS (SELECT FROM webhookd.batch WHERE done_at IS NULL)
              AND NOT EXISTS (SELECT FROM webhookd.backlog WHERE state = 'retry')
              AND NOT EXISTS (SELECT FROM webhookd.scheduled)"""
AHEAD = "SELECT max(pos_xmax::text::bigint) > pg_snapshot_xmax(pg_current_snapshot())::text::bigint FROM webhookd.batch"


@contextmanager
def aged(version: int, transactions: int) -> Iterator[str]:
    """The DSN of a server that has so many transactions behind it."""
    with (
        open_directory() as directory,
        postgres(directory, bin_directory=programs(version), settings=SETTINGS) as server,
    ):
        execute(server, BURN.format(transactions))
        yield server


@pytest.fixture(scope="module")
def source(version: int) -> Iterator[str]:
    """The server of the originals."""
    with aged(version, ORIGINAL) as server:
        yield server


@pytest.fixture
def dsn(source: str) -> Iterator[str]:
    """The DSN of the original, which is empty."""
    execute(source, "CREATE DATABASE original TEMPLATE template0")
    yield database(source, "original")
    execute(source, "DROP DATABASE original WITH (FORCE)")


@pytest.fixture
def copy_dsn(version: int, age: str) -> Iterator[str]:
    """The DSN of a database for the copy, on a server of that age."""
    with aged(version, AGES[age]) as server:
        execute(server, "CREATE DATABASE copy TEMPLATE template0")
        yield database(server, "copy")


@pytest.fixture
async def processes(tmp_path: Path, dsn: str, seed: int) -> AsyncIterator[Fleet]:
    """A receiver, and daemons that end with the test."""
    await migrate(dsn)
    async with fleet(tmp_path, dsn, seed) as made:
        made.configure(ENDPOINTS)
        yield made


def to(path: str, events: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Their payloads by path and event."""
    return {(path, event_id): text for event_id, text in events.items()}


async def leave_much_undone(processes: Fleet, dsn: str) -> dict[tuple[str, str], str]:
    """Kill a daemon that owes something of each kind; the payloads of what it owes, by path and event."""
    async with connected(dsn) as sql:
        receiver = processes.receiver
        daemon = await processes.start(ROLES[0], "--patience", "60", dsn=dsn)
        await insert(sql, events_of(0, SOME, "done"), "good.event")
        retry = await insert(sql, events_of(0, SOME, "retry"), "bad.event")
        held = await insert(sql, events_of(0, SOME, "held"), "held.event")

        recorded = f"SELECT (delivered, retry) = ($1, $2) FROM ({FATE}) fate"
        await until(lambda: sql.fetchval(recorded, 3 * SOME, SOME), "all but the held ones is recorded")
        await until(lambda: receiver.count("hold", 0) == SOME, "the held ones are in flight")
        late = await insert(sql, events_of(0, SOME, "late"), "good.event", LATER)
        await until(lambda: sql.fetchval("SELECT count(*) = $1 FROM webhookd.scheduled", SOME), "they wait")
        await daemon.kill()
        await until(lambda: sql.fetchval(NOBODY), "the server has ended the statement that it was killed in")
        unread = await insert(sql, events_of(0, SOME, "unread"), "good.event")
        delivered, *owed, in_hand = (await sql.fetch(FATE))[0]
        assert (delivered, owed) == (3 * SOME, [SOME, SOME, SOME])
        assert in_hand >= SOME
    return {
        **to("/failing", retry),
        **to("/hold", held),
        **to("/healthy", late | unread),
    }


def dump_and_restore(version: int, dsn: str, copy: str, file: Path) -> None:
    """As people do it."""
    there = programs(version)
    commands: tuple[list[str | Path], ...] = (
        [there / "pg_dump", "--format=custom", "--file", file, dsn],
        [there / "pg_restore", "--exit-on-error", "--dbname", copy, file],
    )
    for command in commands:
        made = subprocess.run(command, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr


async def refused(processes: Fleet, sql: Connection, dsn: str) -> None:
    """The real command ends at once, says the way out, and leaves no trace."""
    before, traces = len(processes.receiver.receipts()), await sql.fetchrow(TRACES)
    daemon = await processes.command(ROLES[1], dsn=dsn)
    assert await daemon.ended() == 78, daemon.log()
    assert "webhookd migrate --rebase --owed=" in daemon.log()
    assert len(processes.receiver.receipts()) == before
    assert await sql.fetchrow(TRACES) == traces


async def rebase(processes: Fleet, owed: str, dsn: str) -> None:
    """What the refusal said."""
    command = await processes.command("rebase", "migrate", "--rebase", "--owed", owed, dsn=dsn)
    assert await command.ended() == 0, command.log()


async def go_on(processes: Fleet, dsn: str) -> int:
    """Make all endpoints well and start a daemon; how many receipts there were before."""
    before = len(processes.receiver.receipts())
    processes.receiver.heal()
    processes.receiver.release()
    await processes.start(ROLES[2], dsn=dsn)
    async with connected(dsn) as sql:
        await sql.execute(IT_IS_LATER)
    return before


async def received(processes: Fleet, sql: Connection, before: int, wanted: Mapping[tuple[str, str], str]) -> None:
    """Wait for these; they come once each and unchanged, and nothing else does."""

    def got() -> Counter[tuple[str, str]]:
        return Counter((receipt.path, receipt.id) for receipt in processes.receiver.receipts()[before:])

    with suppress(AssertionError):  # it is told below what is missing
        await until(lambda: wanted.keys() <= got().keys(), "all that is owed is received")
    missing = wanted.keys() - got().keys()
    assert not missing, processes.log()
    await until(lambda: sql.fetchval(QUIET), "nothing is owed any more")
    await asyncio.sleep(1)  # for what must not happen
    assert got() == Counter(wanted.keys())
    assert changed({id_: text for (_, id_), text in wanted.items()}, processes.receiver.receipts()[before:]) == 0


@pytest.mark.parametrize("age", ["younger", pytest.param("older", marks=pytest.mark.long)])
@pytest.mark.parametrize("owed", ["deliver", "drop"])
@pytest.mark.parametrize("outbox", ["full", "empty"])
async def test_a_dump_that_was_restored_sends_what_it_is_told_to(
    processes: Fleet, dsn: str, copy_dsn: str, version: int, tmp_path: Path, outbox: str, owed: str, age: str
) -> None:
    expected: dict[tuple[str, str], str] = {}
    if outbox == "full":
        expected = await leave_much_undone(processes, dsn)
    else:
        await processes.start(ROLES[0], dsn=dsn)
        await processes.stop(ROLES[0])
    dump_and_restore(version, dsn, copy_dsn, tmp_path / "dump")
    async with connected(copy_dsn) as sql:
        assert await sql.fetchval(AHEAD) == (age == "younger"), "its position is one that this server has yet to reach"

        await refused(processes, sql, copy_dsn)
        if owed == "drop":
            expected = {}
        else:  # an application was let in before
            early = await insert(sql, events_of(0, SOME, "early"), "good.event")
            expected |= to("/healthy", early)
        await rebase(processes, owed, copy_dsn)
        new = await insert(sql, events_of(0, SOME, "new"), "good.event")
        expected |= to("/healthy", new)
        before = await go_on(processes, copy_dsn)
        await received(processes, sql, before, expected)

        await sql.execute(BURN.format(UNTIL_THEY_COME_AGAIN))
        newest = await insert(sql, events_of(0, SOME, "newest"), "good.event")
        await received(processes, sql, before, expected | to("/healthy", newest))


async def test_a_copy_of_the_files_sends_nothing_in_another_environment(
    tmp_path: Path, version: int, seed: int
) -> None:
    there = programs(version)
    with open_directory() as directory:
        original, copy = directory / "original", directory / "copy"
        async with fleet(tmp_path, "", seed) as processes:
            processes.configure(ENDPOINTS, daemon={"environment": "production"})
            with postgres(original, bin_directory=there, settings=SETTINGS) as dsn:
                await migrate(dsn)
                await leave_much_undone(processes, dsn)
                identity = "SELECT system_identifier FROM pg_control_system()"
                async with connected(dsn) as sql:
                    identifier = await sql.fetchval(identity)
            shutil.copytree(original / "postgres", copy / "postgres")
            give_away(copy / "postgres", original / "postgres")
            with postgres(copy, bin_directory=there, settings=SETTINGS) as dsn:
                async with connected(dsn) as sql:
                    assert await sql.fetchval(identity) == identifier
                    processes.configure(ENDPOINTS, daemon={"environment": "staging"})
                    await refused(processes, sql, dsn)
                    await rebase(processes, "drop", dsn)
                    new = await insert(sql, events_of(0, SOME, "new"), "good.event")
                    await received(processes, sql, await go_on(processes, dsn), to("/healthy", new))
