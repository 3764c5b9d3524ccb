"""What may happen to a database while daemons use it: each is an `async with` that lasts as long as its block."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import NamedTuple

import asyncpg

from tests.conftest import database
from tests.fault.fleet import Fleet
from tests.fault.proxy import Proxy
from tests.fault.server import Server
from tests.fault.verdict import Connection
from tests.waiting import until

OURS = """FROM pg_stat_activity
  WHERE application_name = 'webhookd' AND backend_type = 'client backend' AND datname = current_database()"""
# A connection that is being made has a place and no name yet, so what counts is that others have all places.
OTHERS_HAVE_ALL = """SELECT count(*) = current_setting('max_connections')::int FROM pg_stat_activity
  WHERE application_name <> 'webhookd' AND backend_type = 'client backend' AND datname IS NOT NULL"""
DISK_FULL = """
CREATE TABLE audit.disk (is_full boolean);
INSERT INTO audit.disk VALUES (false);
CREATE FUNCTION audit.extend() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN
    IF (SELECT is_full FROM audit.disk) THEN
      RAISE EXCEPTION 'could not extend file "base/1/2": No space left on device' USING ERRCODE = 'disk_full';
    END IF;
    RETURN NULL;
  END $$;
CREATE TRIGGER extend BEFORE INSERT ON webhookd.attempt FOR EACH STATEMENT EXECUTE FUNCTION audit.extend();
CREATE TRIGGER extend BEFORE INSERT OR UPDATE ON webhookd.batch FOR EACH STATEMENT EXECUTE FUNCTION audit.extend();
CREATE TRIGGER extend BEFORE INSERT OR UPDATE ON webhookd.backlog FOR EACH STATEMENT EXECUTE FUNCTION audit.extend();
"""


class Scene(NamedTuple):
    """A database on a server of the test's own, and daemons that reach it through a proxy."""

    server: Server
    name: str
    proxy: Proxy
    processes: Fleet

    @property
    def dsn(self) -> str:
        """The direct way to the database, as long as the server is not started anew."""
        return database(self.server.dsn, self.name)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """A connection to the database."""
        connection = await asyncpg.connect(self.dsn)
        try:
            yield connection
        finally:
            await connection.close()


class Trouble(NamedTuple):
    """What happens for so many seconds. Do applications go on? Does all sending come to rest, and at which cost?"""

    reigns: Callable[[Scene], AbstractAsyncContextManager[None]]
    seconds: float
    apps_go_on: bool = True
    pauses: bool = True


def restarted(how: signal.Signals) -> Callable[[Scene], AbstractAsyncContextManager[None]]:
    """The server stops, and comes back at the end."""

    @asynccontextmanager
    async def reigns(scene: Scene) -> AsyncIterator[None]:
        await asyncio.to_thread(scene.server.stop, how)
        try:
            yield
        finally:
            await asyncio.to_thread(scene.server.start)
            scene.proxy.target = scene.dsn

    return reigns


@asynccontextmanager
async def black_hole(scene: Scene) -> AsyncIterator[None]:
    """Nothing gets through, and nobody says so."""
    scene.proxy.freeze()
    try:
        yield
    finally:
        scene.proxy.heal()


@asynccontextmanager
async def read_only(scene: Scene) -> AsyncIterator[None]:
    """The server takes no writes, as if it were a standby."""
    async with scene.session() as admin:
        await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await admin.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await admin.execute("SELECT pg_reload_conf()")


@asynccontextmanager
async def too_many_connections(scene: Scene) -> AsyncIterator[None]:
    """Others have all connections, those for superusers too, when the daemons must connect anew."""
    others: list[Connection] = []

    async def all_taken() -> bool:
        await admin.execute(f"SELECT pg_terminate_backend(pid) {OURS}")
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                others.append(await asyncpg.connect(scene.dsn))
        return bool(await admin.fetchval(OTHERS_HAVE_ALL))

    async with scene.session() as admin:
        try:
            nothing_left: Callable[[], bool | Awaitable[bool]] = all_taken
            await until(nothing_left, "nothing is left for the daemons")
            yield
        finally:
            for other in others:
                await other.close()


@asynccontextmanager
async def disk_full(scene: Scene) -> AsyncIterator[None]:
    """Postgres cannot extend the tables that daemons write to."""
    async with scene.session() as admin:
        await admin.execute(DISK_FULL)
        await admin.execute("UPDATE audit.disk SET is_full = true")
        try:
            yield
        finally:
            await admin.execute("UPDATE audit.disk SET is_full = false")


def locked(table: str) -> Callable[[Scene], AbstractAsyncContextManager[None]]:
    """Somebody has the table for himself."""

    @asynccontextmanager
    async def reigns(scene: Scene) -> AsyncIterator[None]:
        async with scene.session() as somebody, somebody.transaction():
            await somebody.execute(f"LOCK TABLE webhookd.{table} IN ACCESS EXCLUSIVE MODE")
            yield

    return reigns


@asynccontextmanager
async def each_backend_terminated(scene: Scene) -> AsyncIterator[None]:
    """One after the other the daemons' connections are ended by an administrator, also those made since."""
    ended: list[int] = []

    gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"

    async def end_them() -> None:
        while True:
            for (pid,) in await admin.fetch(f"SELECT pid {OURS} ORDER BY backend_start"):
                await admin.execute("SELECT pg_terminate_backend($1)", pid)
                await until(lambda: admin.fetchval(gone, pid), "the backend is gone")  # noqa: B023 - it is waited for
                ended.append(pid)
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.05)

    async with scene.session() as admin, asyncio.TaskGroup() as group:
        ending = group.create_task(end_them())
        yield
        ending.cancel()
    assert len(ended) > 12, "there were enough to end"


TROUBLES: Mapping[str, Trouble] = {
    "fast_restart": Trouble(restarted(signal.SIGINT), 4.0, apps_go_on=False),
    "immediate_restart": Trouble(restarted(signal.SIGQUIT), 4.0, apps_go_on=False),
    "black_hole": Trouble(black_hole, 6.0),
    "read_only": Trouble(read_only, 3.0, apps_go_on=False),
    "too_many_connections": Trouble(too_many_connections, 3.0),
    "disk_full": Trouble(disk_full, 3.0),
    "backlog_locked": Trouble(locked("backlog"), 4.0, pauses=False),
    "attempt_locked": Trouble(locked("attempt"), 4.0, pauses=False),
    "each_backend_terminated": Trouble(each_backend_terminated, 5.0, pauses=False),
}
MORE: Mapping[str, Trouble] = {
    "batch_locked": Trouble(locked("batch"), 4.0),
    "daemon_locked": Trouble(locked("daemon"), 4.0),
}
