"""What keeps a daemon from some of its work is said by its row, by `health` and by `status`, as long as it does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fault.proxy import Proxy
from tests.integration.cli.test_cli import PLAIN, webhookd
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
from tests.waiting import until
from webhookd.config.config import Config
from webhookd.daemon.daemon import Daemon
from webhookd.engine.engine import Intervals
from webhookd.errors import ConfigError
from webhookd.store.statements import QUERIES

PROBLEM = "SELECT COALESCE(problem, '') FROM webhookd.daemon ORDER BY id DESC LIMIT 1"


def says(sql: Sql, what: str) -> Callable[[], Awaitable[bool]]:
    """Whether the row of the newest daemon has this in its problem; "" when it has none."""

    async def said() -> bool:
        found = await sql.fetchval(PROBLEM)
        return found is not None and (what in found if what else not found)

    return said


@asynccontextmanager
async def with_few_rights(
    dsn: str, receiver: Receiver, direct_dsn: str | None = None, pace: Intervals = QUICK
) -> AsyncIterator[Daemon]:
    """A daemon of the role of grants.sql, which has joined."""
    joined = asyncio.Event()
    daemon = Daemon(
        configuration({"hook": {"url": receiver.url("hook")}}),
        as_user(dsn, "webhookd_daemon"),
        direct_dsn,
        intervals=pace,
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


async def test_a_wake_up_that_has_no_connection_is_told(granted: Sql, dsn: str, receiver: Receiver) -> None:
    sql = granted
    async with Proxy(dsn) as proxy:
        proxy.cut()
        async with with_few_rights(dsn, receiver, proxy.dsn("webhookd_daemon")):
            await eventually(says(sql, "its wake-up waits: The database does not answer"), "it says so")
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
        # Its only heartbeat may have been under way before it listened; of its next connection no heartbeat tells.
        await sql.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                WHERE (locktype, classid, objid, mode) = ('advisory', 7301, 2, 'ExclusiveLock')
                  AND datname = current_database()"""
        )
        await until(lambda: sql.fetchval(f"SELECT NOT ({held})"), "it has lost its connection")
        await eventually(lambda: sql.fetchval(held), "it sleeps again")
        assert await sql.fetch(QUERIES["sleepers"]) == []


# What is told besides


async def test_who_is_paused_and_what_nobody_gets_is_in_the_log_and_in_health(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    paused = "SELECT paused_endpoints FROM webhookd.health"
    of_hook = "(SELECT array_agg(id) FROM webhookd.endpoint WHERE name = 'hook')"
    with capture_logs() as lines:

        def told(event: str) -> list[MutableMapping[str, Any]]:
            return [line for line in lines if line["event"] == event]

        async with daemon(configuration({"hook": {"url": receiver.url("hook"), "events": ["order.*"]}})):
            await eventually(lambda: sql.fetchval(f"SELECT ({paused}) = 0"), "nobody is paused")
            await sql.execute(f"SELECT webhookd.pause({of_hook})")
            assert await sql.fetchval(paused) == 1
            await until(lambda: told("endpoints_paused"), "the pause")
            await sql.execute(f"SELECT webhookd.resume({of_hook})")
            assert await sql.fetchval(paused) == 0
            await until(lambda: told("endpoints_resumed"), "its end")
            await insert(sql, type="nobody.wants.it")
            await until(lambda: told("events_unmatched"), "an event for nobody")
            event_id = await insert(sql)
            await settled(sql, event_id, {"hook": "delivered"})
    found = [(line["count"], line["names"]) for line in told("endpoints_paused") + told("endpoints_resumed")]
    assert found == [(1, ["hook"])] * 2
    assert [(line["events"], line["types"]) for line in told("events_unmatched")] == [(1, ["nobody.wants.it"])]


async def test_a_refused_reload_is_a_problem_until_one_succeeds(
    sql: Sql, dsn: str, receiver: Receiver, daemon: Running
) -> None:
    """Also where it could not be shown at once, and by a daemon that began anew meanwhile."""
    now = configuration({"hook": {"url": receiver.url("hook")}})
    files: list[Config | Exception] = [now]

    def load() -> Config:
        if isinstance(files[-1], Exception):
            raise files[-1]
        return files[-1]

    said = "a reload was refused, and the old configuration goes on: webhookd.toml:3: no"

    async def told() -> bool:
        return said in (await sql.fetchval("SELECT problems FROM webhookd.health") or "")

    async with daemon(now, load=load) as running:
        files.append(ConfigError(["webhookd.toml:3: no", "webhookd.toml:4: no"]))
        await sql.execute("ALTER TABLE webhookd.daemon ADD CONSTRAINT kept CHECK (config_problem IS NULL) NOT VALID")
        with capture_logs() as lines:
            running.reload()
            await until(lambda: "refusal_not_shown" in [line["event"] for line in lines], "it could not be shown")
        await sql.execute("ALTER TABLE webhookd.daemon DROP CONSTRAINT kept")
        await eventually(told, "the refusal")
        await sql.execute("DELETE FROM webhookd.daemon")
        await eventually(lambda: sql.fetchval("SELECT count(*) = 1 FROM webhookd.daemon"), "a new life")
        await eventually(told, "the refusal goes on")
        shown = (await asyncio.to_thread(webhookd, "status", env={**PLAIN, "WEBHOOKD_DSN": dsn})).stdout
        assert "keeps an older configuration: webhookd.toml:3: no" in shown
        files.append(now)
        running.reload()
        await eventually(lambda: sql.fetchval("SELECT problems IS NULL FROM webhookd.health"), "that it is over")


async def test_health_has_those_whose_heartbeat_is_refused(sql: Sql) -> None:
    await sql.execute(
        """INSERT INTO webhookd.daemon (id, host, version, config_hash, beat_at, problem)
           VALUES (7, 'here', '1', 'h', now() - interval '5 min', 'its heartbeat waits: no'),
                  (8, 'here', '1', 'h', now() - interval '5 min', 'its recorder waited, and then it died'),
                  (9, 'here', '1', 'h', now() - interval '2 h', 'its heartbeat waits: long ago')"""
    )
    assert (
        await sql.fetchval("SELECT problems FROM webhookd.health") == "daemon 7 is not heard: its heartbeat waits: no"
    )
