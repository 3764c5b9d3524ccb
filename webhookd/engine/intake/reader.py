"""Reads the log: cuts batches, opens them piece by piece, and adopts what nobody handles.

    wake ──▶ cut ──▶ heads ──▶ endpoints_for ──▶ dispatcher.offer
    every few seconds: adopt ──▶ known ──▶ heads ──▶ …

Tenants take turns, and the reader cuts between them. What one has committed beyond its share stays in the log, as does
the rest of a large transaction; of that it takes a piece when it has nothing else of that tenant to hand out. So nobody
waits for the events of another.

After an empty cut the daemon sleeps: it takes the sleep lock, cuts once more, and waits until a producer rings. It
keeps the lock, but under load, when it lets a few milliseconds pass between two cuts so that batches are worth their
row.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import structlog

from webhookd.engine.intake import fanout
from webhookd.engine.intake.buffer import Buffer, Portion
from webhookd.engine.intake.deferred import Deferred
from webhookd.engine.intake.fanout import FanOut
from webhookd.engine.intake.outage import Outage
from webhookd.engine.intake.polling import Polling, WakeUp
from webhookd.engine.state import Heartbeat, Subscriptions
from webhookd.errors import SchemaMismatch, StoreForbidden, StoreUnavailable
from webhookd.model import Batch, Delivery, Endpoint, Event, Postponed, Result
from webhookd.policy.cutting import Cut, Share
from webhookd.tasks import Setbacks, wait_for

MOST_PER_CUT = 1_000  # events of one tenant that become batches at a time; what it has beyond is surplus
MOST_READ = 10_000  # events of all that are read at a time
PIECE = 500  # events of the surplus
MOST_IN_HAND = 5_000  # events that are ours and not yet offered: the less is left of it, the less a tenant may have
LEAST_PER_CUT = 50  # events of a tenant that it may have whatever others have
HARD_LIMIT = 20_000  # events in hand, from which on nobody gets more
MOST_DEFERRED = 100_000  # events of batches that cannot be read, the same
MOST_ADOPTED = 20
RESCUE_SECONDS = 3.0
AT_A_TIME = 100  # deliveries that are offered before others have their turn on the loop, and other tenants
LEAST_AT_A_TIME = 10  # of a tenant, when many take turns
CUT_BETWEEN = 0.1  # seconds after which the reader cuts although it has not offered everything
ANOTHER_CUTS = 0.003  # seconds after which the log is looked at again that another had
CUT_AGAIN = 0.02  # the same when the last cut has not come to the end of the log
NO_ROOM = 0.02  # seconds after which a full memory is looked at again, whether or not anything left it
AWAY_FIRST, AWAY_MOST = 0.1, 5.0
ONE_BY_ONE = 3  # claims beyond which a batch is opened event by event, since it may have killed its daemons
ALL_TO_BACKLOG = 5  # claims beyond which nothing of it is tried from memory
FOREVER = float("inf")
FLUSHED_WITHIN = 0.2  # seconds, after which we look again what has become of it
DONE = None, None

log = structlog.get_logger("webhookd.reader")


class Batches(fanout.Batches, Protocol):
    """What the reader needs of the store."""

    async def cut(self, owner: int, share: Share) -> Cut:
        """New batches, ours, and what is said of the rest."""

    async def adopt(
        self, owner: int, low: int, mine: Iterable[int], *, steady_until: float, dead_after: float, most: int
    ) -> list[Batch]:
        """Orphaned batches, now ours."""

    async def set_aside(self, unreadable: Mapping[int, str]) -> None:
        """Show that these events, by their numbers, cannot be seen through, and why."""


class Dispatcher(Protocol):
    """Where opened batches go."""

    room_freed: asyncio.Event

    @property
    def room(self) -> int:
        """Deliveries that may still be offered."""

    def room_for(self, tenant: str) -> int:
        """The same of events of this tenant."""

    def offer(self, delivery: Delivery) -> None:
        """Take a delivery."""


class Parking(fanout.Parking, Protocol):
    """Who reads the log with a cursor."""

    @property
    def is_parking(self) -> bool:
        """True when an endpoint is about to be parked."""


class Recorder(Protocol):
    """Where batches end."""

    flushed: asyncio.Event

    def put(self, result: Result) -> None:
        """Record a result."""

    def settle(self, batch: Batch) -> None:
        """One thing less keeps the batch open."""


class Reader:
    """Turns the log into deliveries, as many as memory allows."""

    def __init__(
        self,
        batches: Batches,
        wakeup: WakeUp,
        dispatcher: Dispatcher,
        recorder: Recorder,
        parking: Parking,
        heartbeat: Heartbeat,
        subscriptions: Subscriptions,
        outage: Outage,
        *,
        dead_after: float,
        rescue_seconds: float = RESCUE_SECONDS,
    ) -> None:
        self._store = batches
        self._wakeup = wakeup
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._parking = parking
        self._heartbeat = heartbeat
        self._fanout = FanOut(batches, parking, subscriptions)
        self._owner = subscriptions.me
        self._outage = outage
        self._dead_after = dead_after
        self._rescue_seconds = rescue_seconds
        self._next_rescue = 0.0
        self._unsure = False  # the reply to a cut was lost: there may be batches that are ours and that we do not know
        self._open: dict[int, Batch] = {}
        self._unread: deque[Batch] = deque()  # of the open ones, those whose events we do not know yet
        self._buffer = Buffer()  # and those not yet offered to the end
        self._drawn: str | None = None  # whose surplus was drawn last
        self._deferred = Deferred()  # of the open ones, those that let others pass until they can be read
        self._cut_again_at = 0.0
        self._more = False  # the last cut has not come to the end of the log
        self._stopped = asyncio.Event()
        self._polling = Polling(wakeup, self._stopped)
        self.setbacks = Setbacks("reader", AWAY_FIRST, AWAY_MOST)

    @property
    def unfinished(self) -> list[int]:
        """Ids of the batches whose end is not in the database."""
        return [batch.id for batch in self._open.values() if not batch.recorded]

    @property
    def problem(self) -> str:
        """Why nothing is read, or which batch cannot be."""
        return self.setbacks.problem or self._deferred.problem

    def rescue(self) -> None:
        """Look for batches without an owner with the next turn, rather than in some seconds."""
        self._next_rescue = 0.0

    def stop(self) -> None:
        """Cut and adopt nothing more."""
        self._stopped.set()
        self._wakeup.rung.set()
        self._dispatcher.room_freed.set()

    async def run(self) -> None:
        """Read until stopped."""
        while not self._stopped.is_set():
            try:
                await self._turn()
            except Exception as error:
                pause = self.setbacks.met(error)
                # One that forbids us something is there, and `part_failed` says what it refuses.
                if isinstance(error, (StoreUnavailable, SchemaMismatch)) and not isinstance(error, StoreForbidden):
                    self._outage.begin(self.setbacks.problem)
                await wait_for(self._stopped, pause)
            else:
                self.setbacks.over()
        self._fanout.unmatched.close()

    async def _turn(self) -> None:
        await self._wait_for_room()
        if self._stopped.is_set():
            return
        now = time.monotonic()
        self._unread.extend(self._deferred.due(now))
        if not self._in_hand or now >= self._cut_again_at:
            if now >= self._next_rescue:
                await self._rescue()
            await self._look()
        if self._unread:
            await self._open_next()
        if self._buffer:
            await self._hand_out()

    async def _look(self) -> None:
        self._polling.look()
        if await self._cut() or self._in_hand:
            return
        if self._polling.is_over:
            await self._polling.pause()
        elif self._more:  # another has the log, and may have looked before what rang for us was committed
            await wait_for(self._stopped, ANOTHER_CUTS)
        else:
            await self._polling.sleep()

    @property
    def _in_hand(self) -> int:
        """Events that are ours and not yet offered."""
        return self._buffer.events + sum(len(batch.event_ids) for batch in self._unread)

    @property
    def _takes_more(self) -> bool:
        return self._in_hand < HARD_LIMIT and self._deferred.events < MOST_DEFERRED

    async def _cut(self) -> bool:
        """Cut; True when there was something new."""
        most = min(max(MOST_IN_HAND - self._in_hand, LEAST_PER_CUT), MOST_PER_CUT) if self._takes_more else 0
        # A surplus waits while an endpoint that it may be for is being parked, since from then on a cursor reads it.
        can_draw = self._takes_more and not self._unread and not self._parking.is_parking
        self._unsure, unsure = True, self._unsure
        piece, full = PIECE if can_draw else 0, self._buffer.full(most)
        share = Share(most, MOST_READ, piece, full, self._buffer.tenants, self._drawn)
        found = await self._store.cut(self._owner, share)
        self._unsure = False
        self._reached(unsure)
        self._drawn = found.drawn or self._drawn
        self._more = found.more
        self._cut_again_at = time.monotonic() + (CUT_AGAIN if found.more else CUT_BETWEEN)
        self._polling.found(sum(len(batch.event_ids) for batch in found.batches))
        self._take_on(found.batches)
        return bool(found.batches)

    async def _rescue(self) -> None:
        self._open = {id_: batch for id_, batch in self._open.items() if not batch.recorded}
        most = min((HARD_LIMIT - self._in_hand) // PIECE, MOST_ADOPTED) if self._takes_more else 0
        self._next_rescue = FOREVER  # if it fails a cut comes first, or it would be tried for ever and nothing else
        if most <= 0:
            return
        batches = await self._store.adopt(
            self._owner,
            self._heartbeat.low,
            self._open,
            steady_until=self._heartbeat.steady_until,
            dead_after=self._dead_after,
            most=most,
        )
        self._next_rescue = time.monotonic() + self._rescue_seconds
        if batches:
            log.info(
                "batches_adopted",
                batches=len(batches),
                first=batches[0].id,
                of_daemons=sorted({batch.left_by for batch in batches if batch.left_by is not None}),
                given_back=sum(batch.left_by is None for batch in batches),
            )
            self._next_rescue = 0.0  # there may be more
            self._take_on(batches)

    def _take_on(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self._open[batch.id] = batch
            self._unread.append(batch)

    async def _open_next(self) -> None:
        """Have the events of the next batch in hand; one that cannot be read goes behind the others."""
        batch = self._unread[0]
        try:
            owed = await self._fanout.read(batch, next_up=not self._buffer)
        except Exception as error:
            self._deferred.put(batch, error, time.monotonic())  # if it is the database, the next cut tells
            self._unread.popleft()
            self._cut_again_at = 0.0
            return
        self._unread.popleft()
        self._deferred.forget(batch)
        self._buffer.take(batch, owed)
        if not owed:
            await self._finish(batch)

    async def _hand_out(self) -> None:
        """Offer some deliveries of whose turn it is, of all who have room."""
        is_full = False
        for _ in range(len(self._buffer)):
            portion = self._buffer.turn()
            one_by_one = portion.batch.claims > ONE_BY_ONE
            room = self._dispatcher.room_for(portion.tenant)
            is_full = is_full or room <= 0
            if room > 0 and not (one_by_one and portion.batch.open > 1):
                await self._hand_out_some(
                    portion, 1 if one_by_one else min(room, max(AT_A_TIME // len(self._buffer), LEAST_AT_A_TIME))
                )
                return
        if is_full:
            await self._wait_for_room_again()
        else:  # all wait for the results of what has been offered
            self._recorder.flushed.clear()
            await wait_for(self._recorder.flushed, FLUSHED_WITHIN)

    async def _hand_out_some(self, portion: Portion, most: int) -> None:
        for _ in range(most):
            if self._dispatcher.room <= 0 or self._stopped.is_set():
                return  # the batch stays open, and is given back
            if (pair := next(portion.pairs, DONE)) is DONE:
                if self._fanout.broken:
                    await self._store.set_aside(self._fanout.broken)
                    self._fanout.broken.clear()
                if self._buffer.finish(portion):
                    await self._finish(portion.batch)
                return
            if pair is None:
                break
            self._offer(portion.batch, *pair)
        await asyncio.sleep(0)

    async def _finish(self, batch: Batch) -> None:
        self._recorder.settle(batch)
        if not self._buffer and not self._unread:
            self._cut_again_at = 0.0
            await self._polling.pause()

    def _offer(self, batch: Batch, event: Event, endpoint: Endpoint) -> None:
        batch.open += 1
        delivery = Delivery(event, endpoint, batch, 0, batch.cut_at, time.monotonic(), FOREVER)
        if batch.claims > ALL_TO_BACKLOG:
            self._recorder.put(Result(delivery, None, Postponed(0.0)))
        else:
            self._dispatcher.offer(delivery)

    async def _wait_for_room(self) -> None:
        while self._dispatcher.room <= 0 and not self._stopped.is_set():
            await self._wait_for_room_again()

    async def _wait_for_room_again(self) -> None:
        self._dispatcher.room_freed.clear()
        await wait_for(self._dispatcher.room_freed, NO_ROOM)

    def _reached(self, unsure: bool) -> None:
        self._outage.end()
        self.setbacks.over()
        if unsure:
            self._next_rescue = 0.0
        elif self._next_rescue == FOREVER:
            self._next_rescue = time.monotonic() + min(self._rescue_seconds, AWAY_MOST)
