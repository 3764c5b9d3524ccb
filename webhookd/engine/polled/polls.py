"""Answers who polls, at once or when there is something: at the end of the log he waits.

Our own fan-out tells what it reads, and for whom. Where other daemons live, who cut as well, the end of the log is
looked at, once for all who wait.
"""

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from webhookd.engine.parked.log_pages import LogPages
from webhookd.engine.parked.log_pages import Store as Log
from webhookd.engine.polled.reading import Contents, Read, Reading, Wanted
from webhookd.engine.polled.tail import Tail
from webhookd.engine.state import Subscriptions
from webhookd.model import Batch, Endpoint, Event
from webhookd.policy.matching import ANY_TENANT
from webhookd.policy.polling import Place
from webhookd.tasks import Setbacks, in_slices, wait_for

KNOWN: Final = 1_000  # sets of endpoints
MATCHING: Final = 0.003  # seconds of looking who is owed what has come, until others have their turn on the loop
WOKEN: Final = 50  # of those that wait, in one turn of the loop
TICK: Final = 0.1  # seconds between two looks for whom nothing came in time
TAIL_SECONDS: Final = 0.01  # between two looks at what other daemons cut, while somebody waits


class Newest(Log, Protocol):
    """The log."""

    async def newest(self) -> int:
        """The last batch of it."""


class Settings(Protocol):
    """`[delivery]` of the configuration."""

    @property
    def source(self) -> str: ...
    @property
    def max_payload(self) -> int: ...


@dataclass(slots=True, eq=False)
class _Waiter:
    """Somebody who asked for what an endpoint is owed, and how far he has come."""

    endpoint: Endpoint
    place: Place
    until: float  # monotonic
    is_woken: bool = False
    waits: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Let him look again."""
        self.is_woken = True
        if self.waits is not None and not self.waits.done():
            self.waits.set_result(None)

    async def woken(self) -> None:
        """Wait for that. (An asyncio.Event would take as much memory as all the rest of it.)"""
        if not self.is_woken:
            self.waits = asyncio.get_running_loop().create_future()
            await self.waits
            self.waits = None


class Polls:
    """Answers who polls. With connections of its own, so that it takes none from what delivers."""

    def __init__(self, pages: Newest, contents: Contents, subscriptions: Subscriptions, user_agent: str) -> None:
        self._log = pages
        self._subscriptions = subscriptions
        self._pages = LogPages(pages, contents, subscriptions)
        self._tail = Tail()
        self._reading = Reading(self._pages, self._tail, contents, user_agent)
        self._endpoints: dict[int, Endpoint] = {}
        self._waiters: dict[int, list[_Waiter]] = {}  # by endpoint
        self._tenants: Set[str] = frozenset()  # of those that are polled here
        self._polled: dict[int, tuple[tuple[Endpoint, ...], list[int]]] = {}  # of endpoints that events have in common
        self._owed = set[int]()  # endpoints of which those who wait are to be woken
        self._rung = asyncio.Event()
        self._is_alone = True
        self._next_tick = 0.0  # monotonic
        self._changes = 0  # of what is owed to whom
        self.is_stopped = False
        self.setbacks = Setbacks("polls")

    # What it is told.

    def configure(self, endpoints: Iterable[Endpoint], settings: Settings) -> None:
        """Answer for those of these that are polled."""
        self._reading.source, self._reading.max_payload = settings.source, settings.max_payload
        before, self._endpoints = self._endpoints, {each.id: each for each in endpoints if each.polled}
        self._configured({id_ for id_ in self._waiters if self._endpoints.get(id_) != before.get(id_)})

    def change(self, endpoints: Iterable[Endpoint], gone: Iterable[int]) -> None:
        """Answer for these as they are now, and for those no longer."""
        for id_ in gone:
            self._endpoints.pop(id_, None)
        changed = {endpoint.id: endpoint for endpoint in endpoints if endpoint.polled}
        self._endpoints |= changed
        self._configured({*gone, *changed})

    def _configured(self, changed: Set[int]) -> None:
        self._tenants = {endpoint.tenant for endpoint in self._endpoints.values()}
        self.forget()
        self._wake(changed)

    def forget(self) -> None:
        """Match all anew."""
        self._pages.forget()
        self._polled.clear()
        self._listen_anew()

    def _listen_anew(self) -> None:
        """Who waits has passed over what he was not owed; of the rest nothing is known, as something may be missed."""
        for waiter in self._all():
            waiter.place = self._tail.passed(waiter.place, waiter.endpoint.id)
        self._tail.forget()
        self._changes += 1

    def share(self, daemons: int) -> None:
        """So many live, of which each may cut what ours wait for."""
        if self._is_alone is not (daemons <= 1):
            self._is_alone = not self._is_alone
            self._look_out(bool(self._waiters))

    def stop(self) -> None:
        """Let everybody have his answer."""
        self.is_stopped = True
        self._rung.set()
        for waiter in self._all():
            waiter.wake()

    def _all(self) -> Iterator[_Waiter]:
        return itertools.chain.from_iterable(self._waiters.values())

    # What it is asked.

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiters.values()))

    def endpoint(self, id_: int) -> Endpoint | None:
        """One that can be polled here."""
        return self._endpoints.get(id_)

    async def catch_up(self, version: int) -> None:
        """Know at least the endpoints of that version."""
        await self._subscriptions.catch_up(version)

    async def page(self, endpoint: Endpoint, place: Place, wanted: Wanted, seconds: float) -> Read:
        """What the endpoint is owed from this place on; where there is nothing, what comes within so many seconds."""
        with self._waiter(endpoint, place, seconds) as waiter:  # before the first look, so that nothing is missed
            while True:
                waiter.is_woken = False
                found = await self._reading.read(endpoint, waiter.place, wanted)
                if found.items or waiter.until <= time.monotonic() or self.is_stopped:
                    return found
                waiter.place = found.place
                if found.at_end:
                    await waiter.woken()
                if endpoint.id not in self._endpoints:
                    return found
                endpoint = self._endpoints[endpoint.id]

    # Who waits.

    @contextmanager
    def _waiter(self, endpoint: Endpoint, place: Place, seconds: float) -> Iterator[_Waiter]:
        waiter = _Waiter(endpoint, place, time.monotonic() + seconds)
        if not self._waiters:
            self._look_out(True)
        self._waiters.setdefault(endpoint.id, []).append(waiter)
        try:
            yield waiter
        finally:
            of_it = self._waiters[endpoint.id]
            of_it.remove(waiter)
            if not of_it:
                del self._waiters[endpoint.id]
            if not self._waiters:
                self._look_out(False)

    def _look_out(self, waiting: bool) -> None:
        """While somebody waits, hear what our own fan-out reads, or see what is cut where others do so, too."""
        self._listen_anew()
        self._subscriptions.pollers = self._came if waiting and self._is_alone else None
        self._rung.set()

    async def _came(self, batch: Batch, events: Sequence[Event]) -> None:
        changes, began, owed = self._changes, time.monotonic(), set[int]()
        to_all = ANY_TENANT in self._tenants
        for event in events:
            if not to_all and event.tenant not in self._tenants:
                continue
            if (polled := self._polled_of(event)) is None:
                return self._wake(self._waiters.keys())  # it has to be looked at, by all
            owed.update(polled)
            if time.monotonic() > began + MATCHING:
                await asyncio.sleep(0)
                began = time.monotonic()
        if changes == self._changes:
            self._tail.add(batch.id, batch.nonce, owed)
        return self._wake(owed)

    def _polled_of(self, event: Event) -> list[int] | None:
        """Which endpoints that are polled are owed it; None where that cannot be told here."""
        if event.unread:  # its metadata was left out, which may be what is filtered by
            return None
        try:
            endpoints = self._subscriptions.endpoints_for(event)
        except Exception:  # the fan-out meets it, too, and says so
            return None
        known = self._polled.get(id(endpoints))  # events of a type have the same, where nobody filters them
        if known is None:
            if len(self._polled) >= KNOWN:
                self._polled.clear()
            known = self._polled[id(endpoints)] = endpoints, [each.id for each in endpoints if each.polled]
        return known[1]

    def _wake(self, owed: Set[int]) -> None:
        """Have those look again who wait for these, soon: the fan-out does not wait for that."""
        if waited := owed & self._waiters.keys():
            self._owed |= waited
            self._rung.set()

    async def run(self) -> None:
        """Wake who waits, and look where others cut as well at what they do, until stopped."""
        while not self.is_stopped:
            await (wait_for(self._rung, TICK) if self._waiters else self._rung.wait())
            self._rung.clear()
            try:
                await self._ring()
                if self._waiters and not self._is_alone:
                    await self._follow()
            except Exception as error:
                again = time.monotonic() + self.setbacks.met(error)
                while time.monotonic() < again and not self.is_stopped:
                    await self._ring()  # time goes on for who waits
                    await asyncio.sleep(TICK)
                self._rung.set()

    async def _ring(self) -> None:
        owed, self._owed = self._owed, set()
        waiters = [waiter for id_ in owed for waiter in self._waiters.get(id_, ())]
        if (now := time.monotonic()) >= self._next_tick:  # one clock for all of them
            self._next_tick = now + TICK
            waiters += [waiter for waiter in self._all() if waiter.until <= now]
        async for waiter in in_slices(waiters, WOKEN):
            waiter.wake()

    async def _follow(self) -> None:
        newest = await self._log.newest()
        self._wake(self._waiters.keys())  # who has looked before that may have missed something
        while self._waiters and not self._is_alone and not self.is_stopped:
            if await self._log.newest() > newest:
                changes = self._changes
                while (page := await self._pages.page(newest + 1)) is not None:
                    newest, owed = page.id, page.endpoints
                    if changes == self._changes:
                        self._tail.add(page.id, page.nonce, owed)
                        self._wake(owed)
                    else:  # it may have been matched for those of before
                        self._wake(self._waiters.keys())
                        changes = self._changes
            await self._ring()
            self.setbacks.over()
            await asyncio.sleep(TAIL_SECONDS)
        self._wake(self._waiters.keys())  # what came since the last look
