"""What keeps a daemon from some of its work is said by its row, by `health` and by `status`, as long as it does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from tests.fault.proxy import Proxy
from tests.integration.conftest import (
    QUICK,
    Receiver,
    Running,
    Sql,
    as_user,
    configuration,
    eventually,
    insert,
    settled,
)
from tests.integration.test_cli import PLAIN, webhookd
from tests.waiting import until
from webhookd.daemon import Daemon, Pace
from webhookd.sql import QUERIES

PROBLEM = "SELECT COALESCE(problem, '') FROM webhookd.daemon ORDER BY id DESC LIMIT 1"


def says(sql: Sql, what: str) -> Callable[[], Awaitable[bool]]:
    """Whether the row of the newest daemon has this in its problem; "" when it has none."""

    async def said() -> bool:
        found = await sql.fetchval(PROBLEM)
        return found is not None and (what in found if what else not found)

    return said


@asynccontextmanager
async def with_few_rights(
    dsn: str, receiver: Receiver, direct_dsn: str | None = None, pace: Pace = QUICK
) -> AsyncIterator[Daemon]:
    """A daemon of the role of grants.sql, which has joined."""
    joined = asyncio.Event()
    daemon = Daemon(
        configuration({"hook": {"url": receiver.url("hook")}}),
        as_user(dsn, "webhookd_daemon"),
        direct_dsn,
        pace=pace,
        on_ready=lambda _: joined.set(),
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(daemon.run())
        await joined.wait()
        yield daemon
        daemon.stop()


@pytest.mark.parametrize(
    ("part", "right"),
    [
        ("recorder", "INSERT ON webhookd.attempt"),
        ("heartbeat", "INSERT ON webhookd.downtime"),
        ("look at the others", "EXECUTE ON FUNCTION pg_catalog.pg_terminate_backend(int, bigint)"),
    ],
)
async def test_a_right_that_is_taken_away_is_told_by_the_part_that_lacks_it(
    part: str, right: str, granted: Sql, dsn: str, receiver: Receiver
) -> None:
    sql = granted
    whom = "PUBLIC" if "pg_catalog" in right else "webhookd_daemon"
    with capture_logs() as lines:
        async with with_few_rights(dsn, receiver):
            await sql.execute(f"REVOKE {right} FROM {whom}")
            event_id = await insert(sql)
            await eventually(says(sql, f"its {part} waits: The database refuses us: permission denied"), "it says so")
            await sql.execute(f"GRANT {right} TO {whom}")
            await eventually(says(sql, ""), "and that it is over")
            await settled(sql, event_id, {"hook": "delivered"})
    told = {(line["event"], line["part"]) for line in lines if line["event"] in ("part_failed", "part_works")}
    assert {("part_failed", part), ("part_works", part)} <= told


async def test_a_bell_that_has_no_connection_is_told(granted: Sql, dsn: str, receiver: Receiver) -> None:
    sql = granted
    async with Proxy(dsn) as proxy:
        proxy.cut()
        async with with_few_rights(dsn, receiver, proxy.dsn("webhookd_daemon")):
            await eventually(says(sql, "its bell waits: The database does not answer"), "it says so")
            event_id = await insert(sql)
            await settled(sql, event_id, {"hook": "delivered"})
            proxy.heal()
            await eventually(says(sql, ""), "and that it is over")


async def test_a_daemon_that_is_not_heard_has_said_why(sql: Sql, dsn: str) -> None:
    await sql.execute(
        """INSERT INTO webhookd.daemon (id, host, version, config_hash, beat_at, stopped_at, problem)
           VALUES (7, 'here', '1', 'h', now() - interval '5 min', NULL, 'its heartbeat waits'),
                  (8, 'here', '1', 'h', now() - interval '5 min', now(), 'this one has stopped'),
                  (9, 'here', '1', 'h', now() - interval '2 h', NULL, 'this one is long gone')"""
    )
    shown = (await asyncio.to_thread(webhookd, "status", env={**PLAIN, "WEBHOOKD_DSN": dsn})).stdout
    assert "problem      daemon 7 has not been heard for 5 min: its heartbeat waits\n" in shown
    assert "this one" not in shown


async def test_whose_listener_it_is_is_known_before_it_has_the_lock(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    """Not only from the next heartbeat on: until then it would look like a stranger who keeps it."""
    beats_once = QUICK.__class__(beat=10_000.0)
    held = """SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
               WHERE (locktype, classid, objid, mode) = ('advisory', 7301, 2, 'ExclusiveLock')
                 AND granted AND datname = current_database())"""
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}), beats_once):
        await eventually(lambda: sql.fetchval(held), "a daemon that sleeps")
        assert await sql.fetch(QUERIES["sleepers"]) == []
        await sql.execute("SELECT pg_terminate_backend(listen_pid) FROM webhookd.daemon")
        await until(lambda: sql.fetchval(f"SELECT NOT ({held})"), "it has lost its connection")
        await eventually(lambda: sql.fetchval(held), "it sleeps again")
        assert await sql.fetch(QUERIES["sleepers"]) == []
