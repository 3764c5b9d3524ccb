"""Replays: some at a time, what they are of is owed again, and the retrier has it as all that is to be tried."""

import asyncio
import time
from typing import Final, Protocol

from webhookd.engine.dispatch.reservations import Reservations
from webhookd.engine.state import Subscriptions
from webhookd.tasks import Setbacks, wait_for

LOOK_SECONDS: Final = 0.5
AT_A_TIME: Final = 0.1  # seconds of steps of one replay, before the next has its turn


class Store(Protocol):
    """Where they are. A step belongs to nobody: it is one transaction, and who comes second finds it done."""

    async def running(self) -> list[tuple[int, int]]:
        """(replay, endpoint id) of those that are not through."""

    async def step(self, replay: int) -> bool:
        """Have its next piece owed, as its rate allows; True when there may be more at once."""


class Dispatcher(Protocol):
    """Where what is owed goes in the end."""

    reservations: Reservations

    @property
    def room(self) -> int:
        """Deliveries that may still be offered."""


class Replays:
    """Takes the next steps of those whose endpoints we send to."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        subscriptions: Subscriptions,
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._subscriptions = subscriptions
        self._look_seconds = look_seconds
        self._stopped = asyncio.Event()
        self.setbacks = Setbacks("replays")

    def stop(self) -> None:
        """Take no further step."""
        self._stopped.set()

    async def run(self) -> None:
        """Take steps until stopped."""
        pause = 0.0
        while not await wait_for(self._stopped, pause):
            try:
                await self._look()
                pause = self._look_seconds
            except Exception as error:
                pause = self.setbacks.met(error)
            else:
                self.setbacks.over()

    async def _look(self) -> None:
        """Take what steps there are to take: few and large ones, as the same in ten small ones is twice the work."""
        if not self._dispatcher.reservations.is_open:
            return
        for replay, endpoint_id in await self._store.running():
            if self._subscriptions.endpoint(endpoint_id) is None:
                continue
            until = time.monotonic() + AT_A_TIME
            while self._dispatcher.room > 0 and await self._store.step(replay):
                if time.monotonic() > until or self._stopped.is_set():
                    break
