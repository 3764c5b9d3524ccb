"""Knows which daemons of this machine have died, and buries them, so that what they had in hand waits for no lease.

By their beats a daemon is dead after some time, wherever it ran. One of this machine is known to be dead as soon as its
process is no more; so a daemon that was killed and comes back goes on at once.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from webhookd.policy.liveness import Process, Seen, is_dead
from webhookd.tasks import Setbacks

LOOK_SECONDS = 1.0
ASK_EVERY = 5  # looks between two questions who else there is

log = structlog.get_logger("webhookd.neighbours")


class Store(Protocol):
    """What is asked of the registry."""

    async def neighbours(self, machine: str, daemon: int) -> list[tuple[int, Process]]:
        """The other daemons of this machine."""

    async def bury(self, daemons: Sequence[int], longest_lease: float) -> list[int]:
        """Know these to be dead; those that nobody had buried."""


class Neighbours:
    """`ourselves` is None where nothing can be known; `see(pid)` says what is to be seen of a process of this machine.

    `longest_lease()`: seconds for which a delivery may be leased.
    """

    def __init__(
        self,
        store: Store,
        ourselves: Process | None,
        see: Callable[[int], Seen],
        longest_lease: Callable[[], float],
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._store = store
        self._ourselves = ourselves
        self._see = see
        self._longest_lease = longest_lease
        self._look_seconds = look_seconds
        self.setbacks = Setbacks("watch over neighbours", look_seconds)
        self._known: list[tuple[int, Process]] = []

    async def run(self, daemon: int, on_buried: Callable[[], None]) -> None:
        """Look until cancelled, as this daemon; `on_buried()` hears that there is something to adopt."""
        looks = 0
        while self._ourselves is not None:
            pause = self._look_seconds
            try:
                if looks % ASK_EVERY == 0:
                    await self.ask(daemon)
                if await self.bury():
                    on_buried()
                looks += 1
            except Exception as error:
                pause = self.setbacks.met(error)
            else:
                self.setbacks.over()
            await asyncio.sleep(pause)

    async def ask(self, daemon: int = 0) -> None:
        """Learn who else there is; without a number we are none of them yet."""
        if self._ourselves is not None:
            self._known = await self._store.neighbours(self._ourselves.machine, daemon)

    async def bury(self) -> bool:
        """Let the database know who has died; True when nobody had."""
        dead = [daemon for daemon, process in self._known if is_dead(process, self._see(process.pid))]
        if not dead:
            return False
        buried = await self._store.bury(dead, self._longest_lease())
        self._known = [(daemon, process) for daemon, process in self._known if daemon not in dead]
        if buried:
            log.warning("neighbours_died", daemons=buried)
        return bool(buried)
