"""Reads the log: cuts batches, opens them piece by piece, and adopts what nobody handles.

    wake ──▶ cut ──▶ heads ──▶ endpoints_for ──▶ dispatcher.offer
    every few seconds: adopt ──▶ known ──▶ heads ──▶ …

Batches in hand take turns, and the reader cuts between them. Of a very large transaction it takes a piece when there is
nothing else to hand out. So nobody waits for the events of another.

After an empty cut the daemon sleeps: it takes the sleep lock, cuts once more, and waits until a producer rings. Under
load it never sleeps, and lets a few milliseconds pass between two cuts so that batches are worth their row.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Literal, Protocol

import structlog

from webhookd.errors import SchemaMismatch, StoreUnavailable
from webhookd.matching import Matcher
from webhookd.model import Batch, Delivery, Endpoint, Event, Postponed, Result
from webhookd.tasks import wait_for

MOST_PER_CUT = 1_000  # events; a transaction that has more is cut in pieces
PIECE = 500
MOST_IN_HAND = 5_000  # events that are ours and not yet offered, from which on nothing more is cut or adopted
MOST_ADOPTED = 20
RESCUE_SECONDS = 3.0
AT_A_TIME = 100  # deliveries that are offered before others have their turn on the loop, and other batches
CUT_BETWEEN = 0.1  # seconds after which the reader cuts although it has not offered everything
NO_ROOM = 0.02  # seconds after which a full memory is looked at again, whether or not anything left it
NAP = 0.2  # seconds after which a sleeper looks, whether or not anybody rang
POLL_FIRST, POLL_MOST = 0.003, 0.05
NEVER_SLEEP_ABOVE = 500.0  # events/s: more NOTIFYs than that cost producers more than the polls cost us
PAUSE_PER_RATE = 5e-6  # seconds between cuts per event/s: 0.5 ms at 100/s, 20 ms from 4,000/s
PAUSE_LEAST, PAUSE_MOST = 0.0005, 0.02
RATE_WINDOW = 0.25  # seconds over which the rate of events is averaged
AWAY_FIRST, AWAY_MOST = 0.1, 5.0
ONE_BY_ONE = 3  # claims beyond which a batch is opened event by event, since it may have killed its daemons
ALL_TO_BACKLOG = 5  # claims beyond which nothing of it is tried from memory
FOREVER = float("inf")

log = structlog.get_logger("webhookd.reader")


class Batches(Protocol):
    """What the reader needs of the store."""

    async def cut(self, owner: int, most: int, rest: int) -> list[Batch]:
        """New batches, ours; also so many events of a transaction that is cut in pieces."""

    async def adopt(
        self, owner: int, low: int, mine: Iterable[int], *, steady_until: float, dead_after: float, most: int
    ) -> list[Batch]:
        """Orphaned batches, now ours."""

    async def known(self, batch: Batch) -> set[tuple[int, int]]:
        """What of an adopted batch is settled: (event, endpoint) pairs."""

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime) -> list[Event]:
        """Events without payloads."""


class Bell(Protocol):
    """How producers wake the reader."""

    rung: asyncio.Event

    async def lie_down(self) -> Literal["sleep", "listen", "poll"]:
        """Ask to be woken."""

    async def get_up(self) -> None:
        """No longer ask."""


class Dispatcher(Protocol):
    """Where opened batches go."""

    room_freed: asyncio.Event

    @property
    def room(self) -> int:
        """Deliveries that may still be offered."""

    def offer(self, delivery: Delivery) -> None:
        """Take a delivery."""


class Parking(Protocol):
    """Who reads the log with a cursor."""

    async def catch_up(self, version: int) -> None:
        """Know at least what was parked by then."""

    def aside(self, batch: int) -> frozenset[int]:
        """The endpoints that get the events of this batch by their cursor."""

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


class Opening:
    """A batch in hand, and what of it has not been offered once it was read."""

    __slots__ = ("batch", "owed")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.owed: Iterator[tuple[Event, Endpoint]] | None = None


class Reader:
    """Turns the log into deliveries, as many as memory allows."""

    def __init__(
        self,
        batches: Batches,
        bell: Bell,
        dispatcher: Dispatcher,
        recorder: Recorder,
        parking: Parking,
        owner: int,
        low: int,
        *,
        dead_after: float,
        rescue_seconds: float = RESCUE_SECONDS,
    ) -> None:
        self._store = batches
        self._bell = bell
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._parking = parking
        self.endpoints_for: Callable[[Event], tuple[Endpoint, ...]] = Matcher(()).endpoints_for
        self._owner = owner
        self._dead_after = dead_after
        self._rescue_seconds = rescue_seconds
        self._next_rescue = 0.0
        self._open: dict[int, Batch] = {}
        self._openings: deque[Opening] = deque()  # of the open ones, those not yet offered to the end
        self._in_hand = 0  # events of these
        self._blocked = 0  # of these, how many in a row had to wait
        self._cut_again_at = 0.0
        self._dozing = False  # what is in hand was found when it had lain down
        self._poll = POLL_FIRST
        self._stopped = asyncio.Event()
        self._rate = 0.0
        self._rate_at = time.monotonic()
        self.low = low  # every batch up to here is done; the janitor moves it
        self.steady_until = 0.0  # until then, on the database's clock, we may call others dead: the janitor's word
        self.connected = False  # the last question was answered
        self.problem = ""  # why it was not
        self.asked = asyncio.Event()  # the database has been asked once, whatever it said

    @property
    def unfinished(self) -> list[int]:
        """Ids of the batches whose end is not in the database."""
        return [batch.id for batch in self._open.values() if not batch.recorded]

    def stop(self) -> None:
        """Cut and adopt nothing more."""
        self._stopped.set()
        self._bell.rung.set()
        self._dispatcher.room_freed.set()

    async def run(self) -> None:
        """Read until stopped."""
        away = AWAY_FIRST
        while not self._stopped.is_set():
            try:
                await self._turn()
            except (StoreUnavailable, SchemaMismatch) as error:
                self._lost(str(error))
                await wait_for(self._stopped, away)
                away = min(away * 2, AWAY_MOST)
            else:
                away = AWAY_FIRST

    async def _turn(self) -> None:
        await self._wait_for_room()
        if self._stopped.is_set():
            return
        now = time.monotonic()
        if self._openings and (now < self._cut_again_at or self._in_hand >= MOST_IN_HAND):
            await self._hand_out()
        elif now >= self._next_rescue:
            await self._rescue()
        else:
            await self._look()

    async def _look(self) -> None:
        self._bell.rung.clear()  # before the query: a ring that comes meanwhile must survive
        if await self._cut() or self._openings:
            await self._hand_out()
        elif self._rate >= NEVER_SLEEP_ABOVE:
            await self._pause()
        else:
            await self._rest()

    async def _cut(self) -> bool:
        """Cut; True when there was something new."""
        # The rest of a large transaction waits while other things are handed out, and while an endpoint that it may
        # be for is being parked, since from then on a cursor reads it.
        rest = 0 if self._openings or self._parking.is_parking else PIECE
        batches = await self._store.cut(self._owner, MOST_PER_CUT, rest)
        self._reached()
        self._cut_again_at = time.monotonic() + CUT_BETWEEN
        self._measure(sum(len(batch.event_ids) for batch in batches))
        self._take_on(batches)
        return bool(batches)

    async def _pause(self) -> None:
        await self._bell.get_up()
        await wait_for(self._stopped, min(max(self._rate * PAUSE_PER_RATE, PAUSE_LEAST), PAUSE_MOST))

    def _measure(self, events: int) -> None:
        now = time.monotonic()
        elapsed = max(now - self._rate_at, 1e-6)
        self._rate += (events / elapsed - self._rate) * min(elapsed / RATE_WINDOW, 1.0)
        self._rate_at = now

    async def _rest(self) -> None:
        rest = await self._bell.lie_down()
        if rest == "poll":
            await wait_for(self._stopped, self._poll)
            self._poll = min(self._poll * 1.5, POLL_MOST)
            return
        self._poll = POLL_FIRST
        if self._bell.rung.is_set():
            return
        self._dozing = await self._cut()  # what was committed before the lock was ours has rung nobody
        if not self._dozing:
            await wait_for(self._bell.rung, NAP)

    async def _rescue(self) -> None:
        self._next_rescue = time.monotonic() + self._rescue_seconds
        self._open = {id_: batch for id_, batch in self._open.items() if not batch.recorded}
        batches = await self._store.adopt(
            self._owner,
            self.low,
            self._open,
            steady_until=self.steady_until,
            dead_after=self._dead_after,
            most=MOST_ADOPTED,
        )
        if batches:
            log.info("batches_adopted", batches=len(batches), first=batches[0].id)
            self._next_rescue = 0.0  # there may be more
            self._take_on(batches)

    def _take_on(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self._open[batch.id] = batch
            self._openings.append(Opening(batch))
            self._in_hand += len(batch.event_ids)

    async def _hand_out(self) -> None:
        """Offer some deliveries of the batch whose turn it is, which keeps its place if the database goes away."""
        opening = self._openings[0]
        batch = opening.batch
        if opening.owed is None:
            opening.owed = await self._owed(batch)
        self._openings.rotate(-1)
        if batch.claims > ONE_BY_ONE and batch.open > 1:
            await self._wait_for_the_rest()
            return
        self._blocked = 0
        for _ in range(1 if batch.claims > ONE_BY_ONE else AT_A_TIME):
            if self._dispatcher.room <= 0 or self._stopped.is_set():
                return  # the batch stays open, and is given back
            if (pair := next(opening.owed, None)) is None:
                await self._finish(opening)
                return
            self._offer(batch, *pair)
        await asyncio.sleep(0)

    async def _owed(self, batch: Batch) -> Iterator[tuple[Event, Endpoint]]:
        # A first claim has no past; of a later one, the ledger and the backlog know what is settled.
        known = await self._store.known(batch) if batch.claims > 1 else frozenset[tuple[int, int]]()
        events = await self._store.heads(batch.event_ids, batch.lo, batch.hi) if batch.event_ids else []
        await self._parking.catch_up(batch.parked)
        aside = self._parking.aside(batch.id)
        return (
            (event, endpoint)
            for event in events
            for endpoint in self.endpoints_for(event)
            if endpoint.id not in aside and (event.id, endpoint.id) not in known
        )

    async def _finish(self, opening: Opening) -> None:
        self._openings.remove(opening)
        self._in_hand -= len(opening.batch.event_ids)
        self._recorder.settle(opening.batch)
        if not self._openings:
            self._cut_again_at = 0.0
            if self._dozing:
                self._dozing = False  # it lies down again at once, if that was all
            else:
                await self._pause()

    def _offer(self, batch: Batch, event: Event, endpoint: Endpoint) -> None:
        batch.open += 1
        delivery = Delivery(event, endpoint, batch, 0, batch.cut_at, time.monotonic(), FOREVER)
        if batch.claims > ALL_TO_BACKLOG:
            self._recorder.put(Result(delivery, None, Postponed(0.0)))
        else:
            self._dispatcher.offer(delivery)

    async def _wait_for_room(self) -> None:
        while self._dispatcher.room <= 0 and not self._stopped.is_set():
            self._dispatcher.room_freed.clear()
            await wait_for(self._dispatcher.room_freed, NO_ROOM)

    async def _wait_for_the_rest(self) -> None:
        """Let other batches have their turn; when they all wait, until results are written."""
        self._blocked += 1
        if self._blocked >= len(self._openings):
            self._blocked = 0
            self._recorder.flushed.clear()
            await wait_for(self._recorder.flushed, NAP)

    def _reached(self) -> None:
        if not self.connected:
            log.info("reading")
        self.connected, self.problem = True, ""
        self.asked.set()

    def _lost(self, problem: str) -> None:
        if self.connected or not self.problem:
            log.warning("database_away", reason=problem)
        self.connected, self.problem = False, problem
        self._next_rescue = 0.0  # a reply that was lost leaves batches that are ours and that we do not know of
        self.asked.set()
