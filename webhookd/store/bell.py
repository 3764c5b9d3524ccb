"""Being woken by producers: a connection that listens, and the lock that tells them somebody sleeps."""

import asyncio
from types import TracebackType
from typing import Any, Literal, Self

import asyncpg
import structlog

from webhookd.errors import WebhookdError
from webhookd.sql import QUERIES
from webhookd.store.database import Dsn, connect, is_pooled, translated
from webhookd.store.session import pins

CHANNEL = "webhookd"
# A listening daemon that hangs pins the NOTIFY queue and the sleep lock, so its silence must end by itself.
SILENCE = """
SET tcp_user_timeout = 15000;
SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3
"""
RECONNECT_AFTER = 5.0
USELESS_FOR = 60.0  # a connection that cannot wake us, until it is tried again
ANSWER_WITHIN = 5.0
CHECK_AFTER = 10.0

Rest = Literal["sleep", "listen", "poll"]

log = structlog.get_logger("webhookd.bell")


class Bell:
    """`rung` is set by each NOTIFY; without a connection nothing rings and the reader polls.

    It also polls where a pooler stands in the way, whose connections must be left as they were, and where the trigger
    is missing that rings (`webhookd migrate --no-wake`). The payload of a NOTIFY is ignored: any role can send one.
    """

    def __init__(self, dsn: Dsn) -> None:
        self.rung = asyncio.Event()
        self._dsn = dsn
        self._connection: asyncpg.Connection[Any] | None = None
        self._asleep = False
        self._next_try = 0.0
        self._next_check = 0.0
        self._told = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.terminate()  # the server lets go of the lock; there is nothing to say goodbye for

    @property
    def pid(self) -> int | None:
        """The server's process that listens for us: who finds us dead ends it, since it pins the queue of NOTIFY."""
        return None if self._connection is None else self._connection.get_server_pid()

    async def lie_down(self) -> Rest:
        """Ask producers to ring. 'sleep', 'listen': they do. 'poll': look again soon, for they do not."""
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = await self._listen()
            if connection is None:
                return "poll"
        if self._asleep:
            await self._check(connection)
            return "sleep" if self._asleep else "poll"
        rest: Rest | None = await self._ask(connection, "sleep")
        self._asleep = rest == "sleep"
        return rest or "poll"

    async def get_up(self) -> None:
        """Tell producers that nobody sleeps."""
        if self._asleep and self._connection is not None:
            self._asleep = False
            await self._ask(self._connection, "get_up")

    async def _check(self, connection: "asyncpg.Connection[Any]") -> None:
        """Ask now and then: a half-open connection says for ever that it is open, while its lock may be gone."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_check:
            self._next_check = now + CHECK_AFTER
            await self._ask(connection, "ping")

    async def _ask(self, connection: "asyncpg.Connection[Any]", query: str) -> Any:
        try:
            with translated():
                return await connection.fetchval(QUERIES[query], timeout=ANSWER_WITHIN)
        except WebhookdError:
            self._lose(connection)
            return None

    async def _listen(self) -> "asyncpg.Connection[Any] | None":
        now = asyncio.get_running_loop().time()
        if now < self._next_try:
            return None
        self._next_try = now + RECONNECT_AFTER
        self._asleep = False
        try:
            connection = await connect(self._dsn)
        except WebhookdError:
            return None  # the reader's own queries say what is wrong
        try:
            with translated():
                if why := await _useless(connection):
                    self._next_try = now + USELESS_FOR
                    self._tell(why)
                    connection.terminate()
                    return None
                await connection.execute(pins(connection) + SILENCE)
                await connection.add_listener(CHANNEL, self._ring)
        except WebhookdError:
            connection.terminate()
            return None
        self._connection, self._told = connection, ""
        return connection

    def _tell(self, why: str) -> None:
        if why != self._told:
            log.info("polling", reason=why)
        self._told = why

    def _ring(self, *_: object) -> None:
        self.rung.set()

    def _lose(self, connection: "asyncpg.Connection[Any]") -> None:
        connection.terminate()
        self._connection = None
        self._asleep = False


async def _useless(connection: "asyncpg.Connection[Any]") -> str:
    """Why nobody can be woken over this connection, or nothing."""
    if await is_pooled(connection):
        return "the connection for LISTEN goes through a pooler: set [database] direct_dsn to be woken at once"
    if not await connection.fetchval(QUERIES["rings"]):
        return "the trigger wake is not there: `webhookd migrate --wake` makes it"
    return ""
