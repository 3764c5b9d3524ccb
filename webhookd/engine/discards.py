"""Discards: learns of them, has all that is in hand let go, and ends what the backlog has, some at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from webhookd.policy.discards import Discards
from webhookd.tasks import Setbacks, wait_for

LOOK_SECONDS: Final = 0.5


class Store(Protocol):
    """Where they are. A step belongs to nobody: it is one transaction, and who comes second finds it done."""

    async def mark(self) -> tuple[tuple[int, int], bool]:
        """Something that changes when they do, and whether the backlog is to be looked through for one."""

    async def all(self) -> Discards:
        """All there are."""

    async def to_look_for(self) -> Sequence[int]:
        """Those that the backlog is to be looked through for."""

    async def step(self, discard: int) -> bool:
        """End what the next rows of the backlog have of one; True when there may be more at once."""


class DiscardKeeper:
    """Knows them. `apply(discards)` is called with all there are whenever they change."""

    def __init__(
        self, store: Store, apply: Callable[[Discards], Awaitable[None]], *, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._store = store
        self._apply = apply
        self._look_seconds = look_seconds
        self._mark = 0, 0
        self._stopped = asyncio.Event()
        self.setbacks = Setbacks("discards")

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    async def run(self) -> None:
        """Look until stopped."""
        pause = 0.0
        while not await wait_for(self._stopped, pause):
            try:
                pause = 0.0 if await self.look() else self._look_seconds
            except Exception as error:
                pause = self.setbacks.met(error)
            else:
                self.setbacks.over()

    async def look(self) -> bool:
        """Know what there is, and do a step for each that is not through; True when there may be more at once."""
        mark, is_open = await self._store.mark()
        if mark != self._mark:
            discards = await self._store.all()
            await self._apply(discards)
            self._mark = mark
        more = False
        for discard in await self._store.to_look_for() if is_open else ():
            more = await self._store.step(discard) or more
        return more
