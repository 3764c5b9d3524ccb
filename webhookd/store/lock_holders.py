"""Who keeps a lock that our work needs: without this, what waits for it would wait in silence."""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Self

import structlog

from webhookd.errors import WebhookdError
from webhookd.store.database import Database
from webhookd.store.dial import Dsn
from webhookd.store.statements import QUERIES
from webhookd.tasks import Setbacks

LOOK_EVERY: Final = 1.0
RESTRAINT: Final = 100.0  # times what a look took, until the next: where there are thousands of locks it takes long
RESTRAINT_MOST: Final = 2.0  # seconds, or nobody would be told within 10 of them: so long, twice, and a heartbeat
IN_THE_WAY_AFTER: Final = 2.0  # seconds for which the same one has had it; daemons have these locks for milliseconds
WAITS: Final = {  # by the lock: what does
    "lock_log": "nothing is read from the outbox, and no endpoint parked: the table webhookd.lock_log",
    "lock_endpoints": "no configuration is taken: the table webhookd.lock_endpoints",
    "lock_tables": "partitions and old rows are not seen to: the table webhookd.lock_tables",
}
OTHER: Final = "statements of ours wait: what they need"

log = structlog.get_logger("webhookd.lock_holders")


class Lasting:
    """Tells what has been there for some seconds from what comes and goes."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[Hashable, float] = {}

    def of(self, keys: Iterable[Hashable], now: float) -> set[Hashable]:
        """Those of these, which are all that are there now, that have been there each time for so long."""
        self._since = {key: self._since.get(key, now) for key in keys}
        return {key for key, since in self._since.items() if now - since >= self._seconds}


def named(row: Any) -> str:
    """A process as an operator knows it: its number, its role, and what its application calls itself."""
    if row["pid"] is None:
        return "a prepared transaction (see pg_prepared_xacts)"
    role, application = row["usename"], row["application_name"]
    return f"process {row['pid']}{f' of {role}' if role else ''}{f' ({application})' if application else ''}"


class LockHolders:
    """Looks for those who keep a lock from us, as long as it is entered; `problem` names them.

    It has a connection of its own, since all others may be what waits; `is_alone()` where it alone has none.
    """

    def __init__(self, dsn: Dsn, is_alone: Callable[[], bool] = lambda: False) -> None:
        self.setbacks = Setbacks("look for who keeps locks", is_alone=is_alone)
        self.problem = ""
        self._told = False  # that somebody keeps one
        self._database = Database(dsn, size=1)
        self._lasting = Lasting(IN_THE_WAY_AFTER)
        self._first: dict[Hashable, str] = {}  # what was said first of who is there: so the moment stays the same

    async def __aenter__(self) -> Self:
        await self._database.__aenter__()
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._looking.cancel()
        await asyncio.wait([self._looking])
        await self._database.__aexit__()

    async def _look(self) -> None:
        while True:
            pause, began = LOOK_EVERY, time.monotonic()
            try:
                self._see(await self._database.fetch(QUERIES["lock_holders"]))
                pause = max(pause, min((time.monotonic() - began) * RESTRAINT, RESTRAINT_MOST))
            except Exception as error:
                self.problem = ""  # who keeps what is not known any longer
                with suppress(WebhookdError):  # what ends a daemon, its other parts meet as well
                    pause = self.setbacks.met(error)
            else:
                self.setbacks.over()
            await asyncio.sleep(pause)

    def _see(self, rows: Sequence[Any]) -> None:
        found = {(row["lock"], row["pid"], row["transaction"]): row for row in rows}
        self._first = {key: self._first.get(key) or _sentence(row) for key, row in found.items()}
        lasting = self._lasting.of(found, time.monotonic())
        self._tell("; ".join(said for key, said in self._first.items() if key in lasting))

    def _tell(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("lock_kept", reason=problem)
        elif self._told and not problem:
            log.info("lock_free")
        self.problem, self._told = problem, bool(problem)


def _sentence(row: Any) -> str:
    return f"{WAITS.get(row['lock'], OTHER)} is kept by {named(row)}, since {row['since']:%Y-%m-%d %H:%M:%S} UTC"
