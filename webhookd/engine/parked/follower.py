"""Sends to parked endpoints: each has a cursor in the log, and one daemon that is its only sender.

    failing, saturated, paused ──▶ parked ──▶ taken by one daemon ──▶ pages of the log ──▶ windows ──▶ dispatcher
                       live again ◀── near the end, and well ◀──┘          settled: the cursor moves ◀──┘

A cursor hands out what its endpoint has room for. So what is owed to one that is dead or paused stays in the log, where
it costs nothing, and neither memory nor the backlog knows of it.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Protocol

import structlog

from webhookd.engine.dispatch.feeds import Feed, FeedState
from webhookd.engine.dispatch.queues import SPILLED_MOST
from webhookd.engine.parked import endings, windows
from webhookd.engine.parked.cursors import Cursors
from webhookd.engine.parked.endings import Endings
from webhookd.engine.parked.log_pages import LogPages
from webhookd.engine.parked.pauses import Pauses
from webhookd.engine.parked.windows import Recorder, Windows
from webhookd.engine.state import Heartbeat, Subscriptions
from webhookd.model import Endpoint
from webhookd.policy.parking import Parking, without_sender
from webhookd.tasks import Setbacks, decided, in_slices, wait_for

LOOK_SECONDS = 0.5
AWAY_SECONDS = 1.0
RESTRAINT, RESTRAINT_MOST = 10.0, 2.0  # times what it took to read who is parked, until more are parked; seconds
LEFT_BY_OTHERS = 1 / 6  # of the time after which a daemon is dead: half a heartbeat, and anybody takes what is left
AT_A_TIME = 100  # endpoints that are looked at before others have their turn on the loop
PARKING_MOST = 5.0  # seconds for which others may have to wait while an endpoint is parked

log = structlog.get_logger("webhookd.follower")


class Store(windows.Store, endings.Store, Protocol):
    """What the follower needs of the store."""

    async def parking(self) -> Parking: ...
    async def version(self) -> int: ...
    async def park(self, breakers: dict[int, tuple[int, float]], why: str, owner: int) -> int: ...
    async def disable(self, endpoint_id: int, why: str, since: float) -> bool: ...
    async def disable_failing(self, endpoint_id: int, failures: int, seconds: float) -> bool: ...
    async def take(self, owner: int, endpoint_ids: Sequence[int], steady_until: float, dead_after: float) -> int: ...
    async def let_go_of(self, owner: int, endpoint_ids: Sequence[int]) -> None: ...
    async def forget(self) -> None: ...


class Ordered(windows.Ordered, Protocol):
    """The endpoints that keep an order."""

    def unparked(self) -> Sequence[int]: ...
    def still_flies(self, endpoint_id: int) -> bool: ...


class Dispatcher(windows.Dispatcher, endings.Dispatcher, Protocol):
    """Where deliveries go, and what is known of their endpoints."""

    @property
    def ordering(self) -> Ordered: ...
    def keeps_up(self, endpoint_id: int) -> None: ...
    def last_word(self, endpoint_id: int) -> tuple[str, float] | None: ...
    def follow(self, fed: Mapping[int, FeedState]) -> None: ...


class Follower:
    """Parks, follows and unparks.

    `owes(endpoint id)` says whether its backlog has something that is due, and `over_before(endpoint)` is the moment
    before which the time of its deliveries is over.
    """

    def __init__(
        self,
        store: Store,
        pages: LogPages,
        dispatcher: Dispatcher,
        recorder: Recorder,
        parking: Parking,
        heartbeat: Heartbeat,
        subscriptions: Subscriptions,
        owes: Callable[[int], bool],
        over_before: Callable[[Endpoint], float],
        *,
        dead_after: float,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._owner = subscriptions.me
        self._heartbeat = heartbeat
        self._subscriptions = subscriptions
        self._dead_after = dead_after
        self._look_seconds = look_seconds
        self._next_look = 0.0
        self._parking = parking
        self._is_old = bool(parking.rows)  # our endpoints are others than when we looked at it
        self._cursors = Cursors()
        self._senderless: dict[int, float] = {}  # endpoints without a sender, and since when
        self._troubles: dict[int, set[str]] = {}
        self._seen_to = True  # what was taken of them is in our parking
        self._parking_since = 0.0
        self._restraint = 0.0
        self._pauses = Pauses(subscriptions.endpoint)
        self._catching_up = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stopped = asyncio.Event()
        self.setbacks = Setbacks("follower", AWAY_SECONDS)
        self._windows = Windows(store, pages, dispatcher, recorder, self._cursors, subscriptions, owes, self._stopped)
        self._endings = Endings(
            store, dispatcher, self._cursors, subscriptions, owes, over_before, lambda: self._parking.rows, look_seconds
        )
        # Before anything is claimed: what is parked is not ours to send to until we have looked.
        self._feed({row.endpoint_id: FeedState(Feed.NONE) for row in parking.rows if row.to_batch is None})

    def changed(self) -> None:
        """Our endpoints are others now, and so may be what is parked."""
        self._is_old = True

    def trouble(self, endpoint_id: int, trouble: str) -> None:
        """See to an endpoint that does not work, soon."""
        self._troubles.setdefault(endpoint_id, set()).add(trouble)
        self._wake.set()

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopped.set()
        self._wake.set()

    def by_cursor(self, batch: int) -> frozenset[int]:
        """The endpoints that get the events of this batch by a cursor; `catch_up` with the batch first."""
        return self._parking.by_cursor(batch)

    @property
    def is_parking(self) -> bool:
        """True when an endpoint is about to be parked; not where the database refuses that, for others would wait."""
        if self._seen_to:
            return bool(self._troubles)
        return time.monotonic() < self._parking_since + PARKING_MOST

    async def catch_up(self, version: int) -> None:
        """Know at least what was parked by then."""
        if self._is_old or self._parking.version < version:
            async with self._catching_up:
                if self._is_old or self._parking.version < version:
                    began = time.monotonic()
                    self._is_old = False
                    try:
                        parking = await self._store.parking()
                        await self._assign(parking)
                    except BaseException:
                        self._is_old = True
                        raise
                    self._parking = parking
                    self._restraint = min((time.monotonic() - began) * RESTRAINT, RESTRAINT_MOST)

    async def run(self) -> None:
        """Follow until stopped."""
        pause = 0.0
        while not self._stopped.is_set():
            if await wait_for(self._wake, pause):
                self._wake.clear()
                # Trouble rarely comes alone, and each that is parked makes every daemon read them all again.
                await wait_for(self._stopped, max(self._look_seconds / 10, self._restraint))
            try:
                pause = await self._look()
            except Exception as error:
                pause = self.setbacks.met(error)
            else:
                self.setbacks.over()
        self._endings.close()

    async def _look(self) -> float:
        """Do what there is to do; the seconds until there may be more."""
        if not self._troubles:
            return await self._follow()
        troubles, self._troubles = self._troubles, {}
        if self._seen_to:
            self._seen_to, self._parking_since = False, time.monotonic()
        try:
            await self._see_to(troubles)
        except Exception:
            for id_, several in troubles.items():  # a breaker opens once, and tells it once
                self._troubles.setdefault(id_, set()).update(several)
            await self._follow(self._seen_to)  # those that are parked wait for no other
            raise
        return await self._follow()

    async def _follow(self, seen_to: bool = True) -> float:
        """Know who is parked, send to them, and say the same as `_look`."""
        await self.catch_up(await self._store.version())
        if unparked := self._dispatcher.ordering.unparked():  # other files than ours may have said that it is inactive
            await self._store.park(dict.fromkeys(unparked, (0, 0.0)), "ordered", self._owner)
            await self.catch_up(await self._store.version())
        self._seen_to = seen_to
        if not self._parking.rows:
            return self._look_seconds
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + self._look_seconds
            await self._let_go()
            await self._take_over()
            if await self._endings.look():
                await self.catch_up(await self._store.version())
            if any(row.to_batch is not None for row in self._parking.rows):
                await self._store.forget()  # cursors that have come to their end
        return self._look_seconds / 10 if await self._windows.hand_out() else self._look_seconds

    # Who is parked.

    async def _assign(self, parking: Parking) -> None:
        """Tell the dispatcher whom it feeds from where, and have a cursor for each that is ours; of some at a time.

        Meanwhile some are as they were, as they all would be a moment before. Who reads the log with a cursor, others
        ask only when we are through.
        """
        self._cursors.settle()
        keys: set[tuple[int, int]] = set()
        fed: dict[int, FeedState] = {}
        parked: set[int] = set()
        paused: list[int] = []
        async for row in in_slices(parking.rows, AT_A_TIME):
            if row.paused and not row.disabled and row.to_batch is None:
                paused.append(row.endpoint_id)
            ours = row.owner == self._owner and self._subscriptions.endpoint(row.endpoint_id) is not None
            if row.to_batch is None:
                feed = Feed.CURSOR if ours and not row.is_halted else Feed.NONE
                fed[row.endpoint_id] = FeedState(feed, row.fails, time.monotonic() + (row.retry_in or 0.0), row.epoch)
                if ours:
                    self._endings.note(row)
            if ours and row.reason != "disabled" and not row.is_at_its_end:
                self._cursors.follow(row)
                keys.add((row.endpoint_id, row.from_batch))
            if len(fed) >= AT_A_TIME:
                parked |= fed.keys()
                self._feed(fed)
                fed = {}
        parked |= fed.keys()
        self._feed(fed)
        self._cursors.keep(keys)
        known = self._cursors.fed
        live = list(known.keys() - parked)
        for since in range(0, len(live), AT_A_TIME):
            self._feed(dict.fromkeys(live[since : since + AT_A_TIME], FeedState()))
            await asyncio.sleep(0)
        self._pauses.now(paused)
        self._endings.keep()

    def _feed(self, fed: Mapping[int, FeedState]) -> None:
        self._cursors.feed(fed)
        self._dispatcher.follow(fed)

    async def _see_to(self, troubles: Mapping[int, set[str]]) -> None:
        """Park or disable those that do not work; to those that are parked already it does nothing."""
        for trouble in ("failing", "saturated"):
            ids = [id_ for id_, several in troubles.items() if trouble in several]
            if trouble == "saturated" and ids:
                ids = await self._behind(ids)
            if ids:
                # Who parks what fails tells of it; of one that came to fail otherwise `Endings` tells.
                breakers = {id_: self._dispatcher.breaker(id_) if trouble == "failing" else (0, 0.0) for id_ in ids}
                if count := await self._store.park(breakers, trouble, self._owner):
                    log.info("parked", endpoints=count, reason=trouble)
        for id_, several in troubles.items():
            if (reason := await self._disabled(id_, several)) is not None:
                endpoint = self._subscriptions.endpoint(id_)
                log.warning("endpoint_disabled", endpoint=endpoint and endpoint.label, reason=reason)

    async def _disabled(self, endpoint_id: int, troubles: Set[str]) -> str | None:
        """Disable this endpoint if its troubles are of the kind; why that was done."""
        word = self._dispatcher.last_word(endpoint_id) if "gone" in troubles else None
        if word is not None and await self._store.disable(endpoint_id, *word):
            return word[0]
        endpoint = self._subscriptions.endpoint(endpoint_id) if "hopeless" in troubles else None
        if endpoint is None or endpoint.disable_after is None:
            return None
        return "failing" if await self._store.disable_failing(endpoint_id, *endpoint.disable_after) else None

    async def _behind(self, endpoint_ids: Sequence[int]) -> list[int]:
        """Those that cannot keep up; what one daemon puts off, another may have sent long since."""
        little = await self._store.owing_little(endpoint_ids, SPILLED_MOST // 2)
        for id_ in little:
            self._dispatcher.keeps_up(id_)
        return [id_ for id_ in endpoint_ids if id_ not in little]

    async def _take_over(self) -> None:
        """Become the sender of those that have none: of some at once, of all when nobody else has for a moment.

        So those that have an endpoint share the work, and none of them is kept from it by what it takes the others for.
        """
        now = time.monotonic()
        found = await decided(self._parking.rows, without_sender, self._owner, self._able)
        self._senderless = {id_: self._senderless.get(id_, now) for id_ in found}
        before = now - self._dead_after * LEFT_BY_OTHERS
        ours = [
            id_
            for id_, since in self._senderless.items()
            if found[id_] or since <= before or self._subscriptions.shares.first(id_) == self._owner
        ]
        if ours and await self._store.take(self._owner, ours, self._heartbeat.steady_until, self._dead_after):
            await self.catch_up(await self._store.version())

    def _able(self, endpoint_id: int) -> Collection[int]:
        """The daemons that can send to this endpoint; none where we cannot."""
        return () if self._subscriptions.endpoint(endpoint_id) is None else self._subscriptions.shares.of(endpoint_id)

    async def _let_go(self) -> None:
        """Leave to others what our files do not have any longer, once all is settled that we had handed out."""
        if self._cursors.settle():
            async with self._catching_up:
                await self._assign(self._parking)  # one that came back to us has a cursor now
        gone: set[int] = set()
        async for row in in_slices(self._parking.rows, AT_A_TIME):
            if (
                row.owner == self._owner
                and not row.is_at_its_end
                and self._subscriptions.endpoint(row.endpoint_id) is None
            ):
                gone.add(row.endpoint_id)
        gone -= self._cursors.leaving
        gone = {id_ for id_ in gone if not self._dispatcher.ordering.still_flies(id_)}
        if gone:
            await self._store.let_go_of(self._owner, sorted(gone))
            await self.catch_up(await self._store.version())
