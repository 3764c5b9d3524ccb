"""Being woken by producers: a connection that listens, and the lock that tells them somebody sleeps.

A part of its own, so that the reader waits for nothing here: it says what it wants and looks at what is so.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

import asyncpg
import structlog

from webhookd.store.database import connect
from webhookd.store.dial import Dsn
from webhookd.store.lock_holders import IN_THE_WAY_AFTER, Lasting, named
from webhookd.store.session import is_pooled, pins
from webhookd.store.statements import QUERIES
from webhookd.store.translation import translated
from webhookd.tasks import Setbacks, wait_for

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
LOOK_EVERY = 1.0  # while the sleep lock is not ours: who has it?
MOST_RINGS = 2_000  # in a second: more than daemons ever ask for, which costs us more than polls
FLOODERS_NAMED = 3
LEAVE_FIRST, LEAVE_MOST = 10.0, 300.0  # seconds for which a flooded channel is left alone
QUIET_FOR = 5.0  # seconds on the channel without a flood, until that is over

Answer = Literal["sleep", "listen", "poll"]

log = structlog.get_logger("webhookd.wakeup")


class WakeUp:
    """`rung` is set by each NOTIFY, and when there is an answer to `request`.

    The reader polls where a pooler stands in the way, whose connections must be left as they were, and where the
    trigger is missing that rings (`webhookd migrate --no-wake`). The payload of a NOTIFY is ignored: any role can send
    one. What any role can also do, to keep the lock or to flood the channel, costs no more than that we poll, and
    `problem` says who does it. `is_alone()` where the database is away for this connection alone.
    """

    def __init__(self, dsn: Dsn, is_alone: Callable[[], bool] = lambda: False) -> None:
        self.rung = asyncio.Event()
        self.setbacks = Setbacks("wake-up", is_alone=is_alone)
        self._dsn = dsn
        self._connection: asyncpg.Connection[Any] | None = None
        self._wanted = asyncio.Event()
        self._wants_sleep = False
        self._held = False  # the sleep lock is ours
        self._answer: Answer = "poll"
        self._next_try = 0.0
        self._next_check = 0.0
        self._told = ""
        self._next_look = 0.0
        self._lasting = Lasting(IN_THE_WAY_AFTER)
        self._kept = ""  # who keeps it
        self._flood = ""  # who floods the channel
        self._flooders: list[int] = []  # processes that are yet to be told
        self._rings: Counter[int] = Counter()  # by process, of this second
        self._second = 0.0
        self._leave_for = LEAVE_FIRST
        self._quiet_at = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lose()  # the server lets go of the lock; there is nothing to say goodbye for

    @property
    def pid(self) -> int | None:
        """The server's process that listens for us: who finds us dead ends it, since it pins the queue of NOTIFY."""
        return None if self._connection is None else self._connection.get_server_pid()

    @property
    def problem(self) -> str:
        """Who keeps producers from waking us, or nothing."""
        return self._flood or self._kept

    def request(self) -> Answer:
        """Ask producers to ring. 'sleep', 'listen': they do. 'poll': not yet, or not at all, so look again soon."""
        answer: Answer = "poll"
        if self._connection is not None and not self._connection.is_closed():
            answer = self._answer
        if answer == "listen":
            self._answer = "poll"  # true of this moment: who sleeps now may get up
        if not self._wants_sleep or answer == "poll":
            self._wants_sleep = True
            self._wanted.set()
        return answer

    def release(self) -> None:
        """Tell producers that nobody sleeps."""
        if self._wants_sleep:
            self._wants_sleep = False
            self._answer = "poll"
            self._wanted.set()

    async def run(self, daemon: int) -> None:
        """Ask for what the reader wants, until cancelled, as this daemon."""
        while True:
            try:
                await self._turn(daemon)
            except Exception as error:
                self._lose()
                await asyncio.sleep(self.setbacks.met(error))
            else:
                if self._connection is not None or not self._wants_sleep:
                    self.setbacks.over()
            await wait_for(self._wanted, LOOK_EVERY)

    async def _turn(self, daemon: int) -> None:
        self._wanted.clear()
        if self._flooders:
            await self._tell_flood()
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = await self._listen(daemon) if self._wants_sleep else None
            if connection is None:
                return
        self._see_whether_it_is_quiet()
        if self._wants_sleep and not self._held:
            answer: Answer = await _ask(connection, "take_sleep_lock")
            self._held = answer == "sleep"
            if self._wants_sleep:
                self._answer = answer
                if answer != "poll":
                    self.rung.set()
            await self._see_who_keeps_it(connection, self._held)
        elif self._wants_sleep:
            if self._answer != "sleep":
                self._answer = "sleep"
                self.rung.set()
            await self._check(connection)
        elif self._held:
            self._held = False
            await _ask(connection, "release_sleep_lock")

    def _see_whether_it_is_quiet(self) -> None:
        if self._flood and _now() >= self._quiet_at:
            log.info("flood_over")
            self._flood, self._leave_for = "", LEAVE_FIRST

    async def _check(self, connection: "asyncpg.Connection[Any]") -> None:
        """Ask now and then: a half-open connection says for ever that it is open, while its lock may be gone."""
        now = _now()
        if now >= self._next_check:
            self._next_check = now + CHECK_AFTER
            await _ask(connection, "ping")

    async def _listen(self, daemon: int) -> "asyncpg.Connection[Any] | None":
        now = _now()
        if now < self._next_try:
            return None
        self._next_try = now + RECONNECT_AFTER
        self._lose()
        connection = await connect(self._dsn)
        try:
            with translated():
                if why := await _useless(connection):
                    self._next_try = now + USELESS_FOR
                    self._tell(why)
                    self.setbacks.over()
                    connection.terminate()
                    return None
                await connection.execute(pins(connection) + SILENCE)
                await connection.add_listener(CHANNEL, self._ring)
                # Before the lock, or others would take us for a stranger until the next heartbeat.
                await connection.execute(QUERIES["listens"], daemon, timeout=ANSWER_WITHIN)
        except BaseException:
            connection.terminate()
            raise
        self._connection, self._told = connection, ""
        self._quiet_at = _now() + QUIET_FOR
        return connection

    async def _see_who_keeps_it(self, connection: "asyncpg.Connection[Any]", held: bool) -> None:
        """Who has had the lock for seconds, and is no daemon?"""
        now = _now()
        if not held and now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY
        rows = []
        if not held:
            with translated():
                rows = await connection.fetch(QUERIES["sleepers"], timeout=ANSWER_WITHIN)
        lasting = self._lasting.of((row["pid"] for row in rows), now)
        kept = ", ".join(named(row) for row in rows if row["pid"] in lasting)
        if kept and not self._kept:
            log.warning("sleep_lock_kept", by=kept)
        elif self._kept and not kept:
            log.info("sleep_lock_free")
        self._kept = kept and f"producers cannot wake us, so we poll: advisory lock (7301, 2) is kept by {kept}"

    def _tell(self, why: str) -> None:
        if why != self._told:
            log.info("polling", reason=why)
        self._told = why

    def _ring(self, connection: object, pid: int, *_: object) -> None:
        self.rung.set()
        now = _now()
        if now - self._second > 1.0:
            self._second = now
            self._rings.clear()
        self._rings[pid] += 1
        if self._rings.total() > MOST_RINGS and connection is self._connection:
            self._flooders = [pid for pid, _ in self._rings.most_common(FLOODERS_NAMED)]
            self._next_try = now + self._leave_for
            self._leave_for = min(self._leave_for * 2, LEAVE_MOST)
            self._lose()
            self._wanted.set()

    async def _tell_flood(self) -> None:
        """Say who floods the channel: by their names as well, if they are still there."""
        pids, self._flooders = self._flooders, []
        senders = ", ".join(f"process {pid}" for pid in pids)
        try:
            connection = await connect(self._dsn)  # ours would bring what is left of the flood
            try:
                with translated():
                    rows = await connection.fetch(QUERIES["processes"], pids, timeout=ANSWER_WITHIN)
                senders = ", ".join(map(named, rows))
            finally:
                connection.terminate()
        finally:
            if not self._flood:
                log.warning("flooded", by=senders)
            self._flood = f"producers cannot wake us, so we poll: NOTIFY {CHANNEL} is flooded by {senders}"

    def _lose(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None
        self._held = False
        self._answer = "poll"


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _ask(connection: "asyncpg.Connection[Any]", query: str) -> Any:
    with translated():
        return await connection.fetchval(QUERIES[query], timeout=ANSWER_WITHIN)


async def _useless(connection: "asyncpg.Connection[Any]") -> str:
    """Why nobody can be woken over this connection, or nothing."""
    if await is_pooled(connection):
        return "the connection for LISTEN goes through a pooler: set [database] direct_dsn to be woken at once"
    if not await connection.fetchval(QUERIES["rings"]):
        return "the trigger wake is not there: `webhookd migrate --wake` makes it"
    return ""
