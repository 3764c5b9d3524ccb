"""Being woken by producers: a connection that listens, and the lock that tells them somebody sleeps."""

import asyncio
from types import TracebackType
from typing import Any, Literal, Self

import asyncpg

from webhookd.errors import StoreUnavailable, WebhookdError
from webhookd.sql import QUERIES
from webhookd.store.database import Dsn, connect, translated

CHANNEL = "webhookd"
# A listening daemon that hangs pins the NOTIFY queue and the sleep lock, so its silence must end by itself.
SILENCE = {
    "tcp_user_timeout": "15000",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
RECONNECT_AFTER = 5.0
ANSWER_WITHIN = 5.0
CHECK_AFTER = 10.0

Rest = Literal["sleep", "listen", "poll"]


class Bell:
    """`rung` is set by each NOTIFY; without a connection nothing rings and the reader polls.

    The payload of a NOTIFY is ignored: any role can send one.
    """

    def __init__(self, dsn: Dsn) -> None:
        self.rung = asyncio.Event()
        self._dsn = dsn
        self._connection: asyncpg.Connection[Any] | None = None
        self._asleep = False
        self._next_try = 0.0
        self._next_check = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.terminate()  # the server lets go of the lock; there is nothing to say goodbye for

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
        except StoreUnavailable:
            self._lose(connection)
            return None

    async def _listen(self) -> "asyncpg.Connection[Any] | None":
        now = asyncio.get_running_loop().time()
        if now < self._next_try:
            return None
        self._next_try = now + RECONNECT_AFTER
        self._asleep = False
        try:
            connection = await connect(self._dsn, **SILENCE)
            with translated():
                await connection.add_listener(CHANNEL, self._ring)
        except WebhookdError:
            return None  # the reader's own queries say what is wrong
        self._connection = connection
        return connection

    def _ring(self, *_: object) -> None:
        self.rung.set()

    def _lose(self, connection: "asyncpg.Connection[Any]") -> None:
        connection.terminate()
        self._connection = None
        self._asleep = False
