"""Connections to Postgres.

A pooler may hand every transaction to another connection of the server. It is known by its PID, which is not that of
the server; behind one, each statement is a transaction with an unnamed statement, and nothing is left in a session.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, Self

import asyncpg

from webhookd.errors import Moved, StoreConflict, StoreForbidden, WebhookdError
from webhookd.store.dial import CONNECT_TIMEOUT, Dsn, Target, dial, target
from webhookd.store.migrations import check_schema
from webhookd.store.session import expect_primary, is_pooled, learn_types, pins, prepare
from webhookd.store.statements import QUERIES
from webhookd.store.translation import NO_ROW_SECURITY, UNAVAILABLE, decoded, kind_of, ours, translated
from webhookd.tally import Tally

POOL_SIZE = 5  # more only queue up behind each other
APPLICATION_NAME = "webhookd"
STATEMENTS = 100  # prepared ones a connection keeps
COMMAND_TIMEOUT = 30.0
RELEASE_TIMEOUT = 0.5
UNUSED_SECONDS = 10.0  # that a connection is at hand without the pool, which closes it after another minute
IDLE_SECONDS = 10.0  # within a transaction, whose rows a daemon that froze would keep; shorter than it takes to be dead

CONFLICTS_MOST = 3  # times that a statement which was ended for another is tried again at once
TABLES_NAMED = 3  # of those with row security

COMMITTED: dict[str, Any] = {"isolation": "read_committed"}  # whatever the default of the role or the database is


async def connect(dsn: Dsn) -> "asyncpg.Connection[Any]":
    """A connection of its own, outside the pool."""
    with translated():
        where = target(dsn)
        connection = await dial(where, **_settings(where))
        await prepare(connection)
        return connection


def _settings(where: Target, *, pooled: bool = False) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "command_timeout": COMMAND_TIMEOUT,
        # asyncpg's own 'utf-8' is not what the server calls it, and a pooler would set it before each transaction.
        "server_settings": {"application_name": APPLICATION_NAME, "client_encoding": "UTF8"},
    }
    # Of several hosts the primary, but a pooler says of it what was true of the first server that it met.
    if not pooled and len(where.places) > 1 and "target_session_attrs" not in where.given:
        settings["target_session_attrs"] = "read-write"
    return settings


def _idle() -> str:
    return f"idle_in_transaction_session_timeout = {IDLE_SECONDS * 1000:.0f}"


async def _keep(_: object) -> None:
    # Statements here leave nothing behind in a session, so there is nothing to reset: a round trip saved on each.
    return None


async def _release(pool: "asyncpg.Pool[Any]", connection: "asyncpg.pool.PoolConnectionProxy[Any]") -> None:
    # A cancelled statement is waited for, but not where the network is silent; and whoever cancelled hears of that, not
    # of the connection, which asyncpg has ended then.
    with suppress(*UNAVAILABLE):
        await pool.release(connection, timeout=RELEASE_TIMEOUT)


def _is_closed(connection: "asyncpg.pool.PoolConnectionProxy[Any]") -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # it broke, and the pool has it back since then
        return True


class _Pooled(Exception):
    """A connection goes through a pooler, and was opened as if there were none."""


class _Lent:
    """A connection, as long as the block runs."""

    __slots__ = ("_connection", "_database", "_expiries", "_pool")

    def __init__(self, database: "Database") -> None:
        self._database = database

    async def __aenter__(self) -> "asyncpg.pool.PoolConnectionProxy[Any]":
        tally, began = self._database.tally, time.monotonic()
        try:
            with translated():
                self._pool, self._connection = await self._database._acquire()
        except WebhookdError as error:
            tally.database_errors[kind_of(error)] += 1
            raise
        tally.pool_waits.observe(time.monotonic() - began)
        self._expiries = self._database._expiries
        return self._connection

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        with translated():
            await self._database._have_back(self._pool, self._connection, error, self._expiries)
        if error is None:
            return
        found = ours(error)
        if found is not None or isinstance(error, WebhookdError):
            self._database.tally.database_errors[kind_of(found or error)] += 1
        if found is not None:
            raise found from error


class Database:
    """A small pool of connections, used with `async with`; it connects when it is first asked.

    Once `place` is set, the answer of `webhookd.place()`, it raises Moved rather than use a server that is elsewhere.
    """

    def __init__(self, dsn: Dsn, *, size: int = POOL_SIZE, tally: Tally | None = None) -> None:
        self._dsn = dsn
        self.tally = tally or Tally()
        self._size = size
        self._pool: asyncpg.Pool[Any] | None = None
        self._pooled = False
        self._opening = asyncio.Lock()
        self._seconds = CONNECT_TIMEOUT
        self._idle: deque[tuple[float, asyncpg.pool.PoolConnectionProxy[Any]]] = deque()  # since when; not the pool's
        self._had = 0  # connections that the pool has given us, idle ones included
        self._waiting: deque[asyncio.Future[Any]] = deque()  # who have one next, or None where the pool has one
        self._expiries = 0  # how often all connections were known to lead to the wrong server
        self.place = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pool is not None:
            try:
                async with asyncio.timeout(2.0):
                    await self._let_go_of_idle(0.0)
                    await self._pool.close()
            except (TimeoutError, OSError, asyncpg.InterfaceError, asyncpg.PostgresError):
                self._pool.terminate()

    def connection(self) -> AbstractAsyncContextManager["asyncpg.pool.PoolConnectionProxy[Any]"]:
        """A connection from the pool, for one transaction; errors of what is done with it come out translated."""
        return _Lent(self)

    async def _have_back(
        self,
        pool: "asyncpg.Pool[Any]",
        connection: "asyncpg.pool.PoolConnectionProxy[Any]",
        error: BaseException | None,
        expiries: int,
    ) -> None:
        """Keep it at hand, for who waits or for the next; or leave it to the pool, which looks at it anew."""
        if error is not None:
            try:
                if isinstance(error, asyncpg.ReadOnlySQLTransactionError):  # another server is the primary now
                    await self.reconnect()
            finally:
                await self._give_back(pool, connection)
        elif self._pool is not pool or self._expiries != expiries or _is_closed(connection):
            await self._give_back(pool, connection)
        elif not self._hand_on(connection):
            self._idle.append((time.monotonic(), connection))
            await self._let_go_of_idle(UNUSED_SECONDS)

    async def reconnect(self) -> None:
        """Use no connection for another statement that is there now."""
        self._expiries += 1
        await self._let_go_of_idle(0.0)
        if self._pool is not None:
            await self._pool.expire_connections()

    def _hand_on(self, connection: "asyncpg.pool.PoolConnectionProxy[Any] | None") -> bool:
        """Let who has waited the longest go on with it, or ask the pool; False when nobody waits."""
        while self._waiting:
            if not (first := self._waiting.popleft()).done():
                first.set_result(connection)
                return True
        return False

    async def _give_back(self, pool: "asyncpg.Pool[Any]", connection: "asyncpg.pool.PoolConnectionProxy[Any]") -> None:
        try:
            await _release(pool, connection)
        finally:
            self._had -= 1
            self._hand_on(None)

    async def _let_go_of_idle(self, seconds: float) -> None:
        """Give the pool what has not been used for so long: it closes what stays so."""
        before = time.monotonic() - seconds
        while self._idle and self._idle[0][0] <= before and self._pool is not None:
            await self._give_back(self._pool, self._idle.popleft()[1])

    @asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator["asyncpg.pool.PoolConnectionProxy[Any]"]:
        """A connection in a transaction, with asyncpg's options for one."""
        async with self.connection() as connection, connection.transaction(**{**COMMITTED, **options}):
            await self.check_place(connection)
            yield connection

    async def expect_all_rows(self) -> None:
        """Raise StoreForbidden if row security may hide rows of any table, from us or from functions of the owner."""
        hidden = [f"{table} (from {role})" for table, role in await self.fetch(QUERIES["hidden"])]
        if hidden:
            more = f" and {len(hidden) - TABLES_NAMED} more" if len(hidden) > TABLES_NAMED else ""
            raise StoreForbidden(
                f"Row security would hide events: it is enabled on {', '.join(hidden[:TABLES_NAMED])}{more}. "
                + NO_ROW_SECURITY
            )

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator["asyncpg.pool.PoolConnectionProxy[Any]"]:
        """A connection that only reads, one moment for all statements, in a schema that this binary knows."""
        async with self.transaction(isolation="repeatable_read", readonly=True) as connection:
            await check_schema(connection)
            yield connection

    async def check_place(self, connection: "asyncpg.pool.PoolConnectionProxy[Any]") -> None:
        """Raise Moved if this transaction is elsewhere. Without a pooler that was seen when it was connected."""
        if self._pooled:
            await self._same_place(connection, f"{pins(connection, local=True)}SET LOCAL {_idle()};")

    async def _same_place(self, connection: Any, first: str) -> None:
        """Do `first`, and raise Moved if we are elsewhere: in one round trip, by the simple protocol."""
        statement = first + (f"SELECT WHERE webhookd.place() = '{self.place}'" if self.place else "")
        if statement and await connection.execute(statement) == "SELECT 0":
            raise Moved("the database is on another server or another timeline: it failed over, or was restored")

    async def _acquire(self) -> tuple["asyncpg.Pool[Any]", "asyncpg.pool.PoolConnectionProxy[Any]"]:
        until = None
        while True:
            pool = self._pool or await self._open()
            while self._idle:  # the one that was used last, without the tasks that the pool makes for each
                _, connection = self._idle.pop()
                if not _is_closed(connection):
                    return pool, connection
                await self._give_back(pool, connection)
            until = until or asyncio.get_running_loop().time() + self._seconds
            async with asyncio.timeout_at(until):
                if self._had < self._size:
                    if (new := await self._ask(pool)) is not None:
                        return pool, new
                elif (handed := await self._turn()) is not None:
                    if self._pool is not None:
                        return self._pool, handed
                    await self._give_back(pool, handed)

    async def _ask(self, pool: "asyncpg.Pool[Any]") -> "asyncpg.pool.PoolConnectionProxy[Any] | None":
        """One of the pool's; None when there is to be another pool, since this one is not for a pooler."""
        self._had += 1
        connection: asyncpg.pool.PoolConnectionProxy[Any]
        try:
            connection = await pool.acquire()
            return connection
        except BaseException as error:
            self._had -= 1
            self._hand_on(None)
            if not isinstance(error, _Pooled):
                raise
            if self._pool is pool:
                self._pool, self._pooled = None, True
            pool.terminate()
            return None

    async def _turn(self) -> "asyncpg.pool.PoolConnectionProxy[Any] | None":
        """The next that is given back, without the tasks of the pool; None when the pool has one now."""
        turn: asyncio.Future[asyncpg.pool.PoolConnectionProxy[Any] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # it came at the very moment that nobody wanted it any more
                handed = turn.result()
                if not self._hand_on(handed) and handed is not None:
                    self._idle.append((time.monotonic(), handed))
            raise
        return turn.result()

    async def _open(self) -> "asyncpg.Pool[Any]":
        async with self._opening:
            if self._pool is None:
                # Longer than connecting may take, which says more of what went wrong.
                self._seconds = max(CONNECT_TIMEOUT, target(self._dsn).seconds) + 1.0
                self._pool = await asyncpg.create_pool(
                    connect=self._connect,
                    min_size=0,
                    max_size=self._size,
                    max_inactive_connection_lifetime=60.0,
                    statement_cache_size=0 if self._pooled else STATEMENTS,
                    init=partial(self._init, pooled=self._pooled),
                    reset=_keep,
                )
            return self._pool

    async def _connect(self, *_: object, **settings: Any) -> "asyncpg.Connection[Any]":
        where = target(self._dsn)
        return await dial(where, **settings, **_settings(where, pooled=self._pooled))

    async def _init(self, connection: "asyncpg.Connection[Any]", *, pooled: bool) -> None:
        if not pooled:  # a pooler says of every server what was true of the first one it met
            if await is_pooled(connection):
                raise _Pooled
            expect_primary(connection)
        await self._same_place(connection, "" if pooled else f"{pins(connection)}SET {_idle()};")
        await prepare(connection)
        if pooled:
            await learn_types(connection)  # after the codecs above, which make it forget

    async def fetch(self, query: str, *arguments: object) -> Sequence["asyncpg.Record"]:
        """The rows of one statement, which is a transaction of its own."""
        for _ in range(CONFLICTS_MOST):
            with suppress(StoreConflict):
                return await self._fetch(query, *arguments)
        return await self._fetch(query, *arguments)

    async def _fetch(self, query: str, *arguments: object) -> Sequence["asyncpg.Record"]:
        rows: list[asyncpg.Record]
        async with self.connection() as connection:
            if not self._pooled:
                with decoded():
                    rows = await connection.fetch(query, *arguments)
                return rows
            # Only a transaction keeps what asyncpg sends, and the look at the place, on one connection of the server.
            async with connection.transaction(**COMMITTED):
                await self.check_place(connection)
                with decoded():
                    rows = await connection.fetch(query, *arguments)
                return rows

    async def fetch_row(self, query: str, *arguments: object) -> "asyncpg.Record":
        """The one row of a statement that always has one."""
        rows = await self.fetch(query, *arguments)
        return rows[0]
