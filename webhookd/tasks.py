"""Waiting and stopping under structured concurrency, and going on after trouble."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sized
from typing import Any, Final, TypeVar

import structlog

from webhookd.errors import (
    ConfigError,
    Moved,
    OtherPlace,
    SchemaMismatch,
    StoreForbidden,
    StoreUnavailable,
    WebhookdError,
)

T = TypeVar("T")
AGAIN_FIRST: Final = 0.1  # seconds until a part that met trouble goes on; twice as long each time in a row
AGAIN_MOST: Final = 5.0
LASTS: Final = 6  # tries in a row, some seconds, after which an outage that nobody else may have met is told
MANY: Final = 500  # things that a decision looks at, from which on it is found in a thread

log = structlog.get_logger("webhookd.tasks")


class Setbacks:
    """What a part of the daemon meets while it works, and how long it then waits, so that no error ends the others.

    `problem` says what it was until the part works again. A bug is told with its traceback, each time; a database that
    is away by the reader alone, for all; by a part with a connection of its own where `is_alone()`, after some tries.
    """

    def __init__(
        self,
        part: str,
        first: float = AGAIN_FIRST,
        most: float = AGAIN_MOST,
        is_alone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._part = part
        self._first = first
        self._most = most
        self._is_alone = is_alone  # the database is away for this part, and not for the reader
        self._pause = first
        self._met = 0
        self._told = False  # that it cannot do its work
        self.problem = ""

    @property
    def sentence(self) -> str:
        """The problem and whose it is, or nothing."""
        return f"its {self._part} waits: {self.problem}" if self.problem else ""

    @property
    def is_worth_a_line(self) -> bool:
        """True of the first error in a row, the second, the fourth and so on, so that a long outage says little."""
        return is_worth_a_line(self._met)

    def met(self, error: Exception) -> float:
        """The seconds to wait after this error, growing.

        Raises what ends a daemon: a configuration that may not be run, another place, a newer schema.
        """
        if isinstance(error, (ConfigError, Moved, OtherPlace)) or (isinstance(error, SchemaMismatch) and error.final):
            raise error
        problem = str(error) or type(error).__name__
        self._met += 1
        if not isinstance(error, WebhookdError):
            problem = f"a bug of webhookd in its {self._part}: {type(error).__name__}; the log has more"
            log.error("part_broke", part=self._part, exc_info=error)
        elif isinstance(error, (StoreUnavailable, SchemaMismatch)) and not isinstance(error, StoreForbidden):
            if self._met >= LASTS and not self._told and self._is_alone():
                self._fail(problem)
        elif problem != self.problem:
            self._fail(problem)
        self.problem = problem
        pause, self._pause = self._pause, min(self._pause * 2, self._most)
        return pause

    def over(self) -> None:
        """The part works."""
        if self._told:
            log.info("part_works", part=self._part)
        self._told = False
        self._pause = self._first
        self._met = 0
        self.problem = ""

    def _fail(self, problem: str) -> None:
        log.error("part_failed", part=self._part, reason=problem)
        self._told = True


def is_worth_a_line(times: int) -> bool:
    """True of the 1st, 2nd, 4th, 8th … time in a row that the same has to be said."""
    return times & (times - 1) == 0


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """True when `event` was set within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def cancelled_by(stopped: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives, or None when `stopped` is set before; then the work is cancelled."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return None
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.wait((working, waiting))


async def in_slices(things: Iterable[T], most: int) -> AsyncIterator[T]:
    """Each of these; after so many of them others have their turn on the loop."""
    for number, thing in enumerate(things, start=1):
        yield thing
        if number % most == 0:
            await asyncio.sleep(0)


async def decided(about: Sized, decide: Callable[..., T], *more: object) -> T:
    """What the pure function says about these; of many it is found in a thread, so that the loop goes on."""
    if len(about) > MANY:
        return await asyncio.to_thread(decide, about, *more)
    return decide(about, *more)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One of the errors in a group, which all say the same."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
