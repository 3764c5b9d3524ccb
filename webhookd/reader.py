"""Reads the log: cuts batches, opens them piece by piece, and adopts what nobody handles.

    wake ──▶ cut ──▶ heads ──▶ endpoints_for ──▶ dispatcher.offer
    every few seconds: adopt ──▶ known ──▶ heads ──▶ …

Tenants take turns, and the reader cuts between them. What one has committed beyond its share stays in the log, as does
the rest of a large transaction; of that it takes a piece when it has nothing else of that tenant to hand out. So nobody
waits for the events of another.

After an empty cut the daemon sleeps: it takes the sleep lock, cuts once more, and waits until a producer rings. Under
load it never sleeps, and lets a few milliseconds pass between two cuts so that batches are worth their row.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import datetime
from typing import Literal, Protocol

import structlog

from webhookd.errors import SchemaMismatch, StoreUnavailable
from webhookd.hand import Hand, Pairs, Portion, weight
from webhookd.matching import Matcher
from webhookd.model import Batch, Cut, Delivery, Endpoint, Event, Postponed, Result, Share
from webhookd.tasks import Setbacks, wait_for

MOST_PER_CUT = 1_000  # events of one tenant that become batches at a time; what it has beyond is surplus
MOST_READ = 10_000  # events of all that are read at a time
PIECE = 500  # events of the surplus
MOST_IN_HAND = 5_000  # events that are ours and not yet offered: the less is left of it, the less a tenant may have
LEAST_PER_CUT = 50  # events of a tenant that it may have whatever others have
HARD_LIMIT = 20_000  # events in hand, from which on nobody gets more
MOST_ADOPTED = 20
RESCUE_SECONDS = 3.0
AT_A_TIME = 100  # deliveries that are offered before others have their turn on the loop, and other tenants
LEAST_AT_A_TIME = 10  # of a tenant, when many take turns
LOOKED_AT = 500  # the same of pairs that turn out to be no deliveries
MATCHING = 0.003  # seconds of looking for endpoints, the same
CUT_BETWEEN = 0.1  # seconds after which the reader cuts although it has not offered everything
CUT_AGAIN = 0.02  # the same when the last cut has not come to the end of the log
NO_ROOM = 0.02  # seconds after which a full memory is looked at again, whether or not anything left it
NAP = 0.2  # seconds after which a sleeper looks, whether or not anybody rang
POLL_FIRST, POLL_MOST = 0.003, 0.05
NEVER_SLEEP_ABOVE = 500.0  # events/s: more NOTIFYs than that cost producers more than the polls cost us
PAUSE_PER_RATE = 5e-6  # seconds between cuts per event/s: 0.5 ms at 100/s, 20 ms from 4,000/s
PAUSE_LEAST, PAUSE_MOST = 0.0005, 0.02
RATE_WINDOW = 0.25  # seconds over which the rate of events is averaged
AWAY_FIRST, AWAY_MOST = 0.1, 5.0
BEHIND_FIRST, BEHIND_MOST = 0.1, 60.0  # seconds for which a batch that could not be read lets others pass
ONE_BY_ONE = 3  # claims beyond which a batch is opened event by event, since it may have killed its daemons
ALL_TO_BACKLOG = 5  # claims beyond which nothing of it is tried from memory
FOREVER = float("inf")
DONE = None, None

log = structlog.get_logger("webhookd.reader")


class Batches(Protocol):
    """What the reader needs of the store."""

    async def cut(self, owner: int, share: Share) -> Cut:
        """New batches, ours, and what is said of the rest."""

    async def adopt(
        self, owner: int, low: int, mine: Iterable[int], *, steady_until: float, dead_after: float, most: int
    ) -> list[Batch]:
        """Orphaned batches, now ours."""

    async def known(self, batch: Batch) -> set[tuple[int, int]]:
        """What of an adopted batch is settled: (event, endpoint) pairs."""

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime) -> list[Event]:
        """Events without payloads, but for those that cannot be read."""

    async def set_aside(self, unreadable: Mapping[int, str]) -> None:
        """Show that these events, by their numbers, cannot be seen through, and why."""

    async def whole(self, event: Event) -> Event:
        """The event with what `heads` has left out of it."""


class Bell(Protocol):
    """How producers wake the reader."""

    rung: asyncio.Event

    def lie_down(self) -> Literal["sleep", "listen", "poll"]:
        """Ask to be woken; whether we are, by now."""

    def get_up(self) -> None:
        """No longer ask."""


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


class Hindered:
    """A batch that could not be read, and why; it is tried again when it is due."""

    __slots__ = ("batch", "due", "setbacks")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.setbacks = Setbacks(f"reading of batch {batch.id}", BEHIND_FIRST, BEHIND_MOST)
        self.due = 0.0  # monotonic


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
        self._unsure = False  # the reply to a cut was lost: there may be batches that are ours and that we do not know
        self._open: dict[int, Batch] = {}
        self._unread: deque[Batch] = deque()  # of the open ones, those whose events we do not know yet
        self._hand = Hand()  # and those not yet offered to the end
        self._drawn: str | None = None  # whose surplus was drawn last
        self._behind: dict[int, Hindered] = {}  # by id, those that let others pass until they can be read
        self._broken: dict[int, str] = {}  # events that a bug keeps from being matched
        self._cut_again_at = 0.0
        self._dozing = False  # what is in hand was found when it had lain down
        self._poll = POLL_FIRST
        self._stopped = asyncio.Event()
        self._rate = 0.0
        self._rate_at = time.monotonic()
        self.low = low  # every batch up to here is done; the janitor moves it
        self.steady_until = 0.0  # until then, on the database's clock, we may call others dead: the janitor's word
        self.connected = False  # the last question was answered
        self._setbacks = Setbacks("reader", AWAY_FIRST, AWAY_MOST)
        self.asked = asyncio.Event()  # the database has been asked once, whatever it said

    @property
    def unfinished(self) -> list[int]:
        """Ids of the batches whose end is not in the database."""
        return [batch.id for batch in self._open.values() if not batch.recorded]

    @property
    def problem(self) -> str:
        """Why nothing is read, or which batch cannot be."""
        for hindered in self._behind.values():
            if not self._setbacks.problem:
                events, why = len(hindered.batch.event_ids), hindered.setbacks.problem
                return f"batch {hindered.batch.id} cannot be read, {events} events: {why}"
        return self._setbacks.problem

    def rescue(self) -> None:
        """Look for batches without an owner with the next turn, rather than in some seconds."""
        self._next_rescue = 0.0

    def stop(self) -> None:
        """Cut and adopt nothing more."""
        self._stopped.set()
        self._bell.rung.set()
        self._dispatcher.room_freed.set()

    async def run(self) -> None:
        """Read until stopped."""
        while not self._stopped.is_set():
            try:
                await self._turn()
            except Exception as error:
                known, pause = self._setbacks.problem, self._setbacks.met(error)
                if isinstance(error, (StoreUnavailable, SchemaMismatch)):
                    self._lost(known)
                await wait_for(self._stopped, pause)
            else:
                self._setbacks.over()

    async def _turn(self) -> None:
        await self._wait_for_room()
        if self._stopped.is_set():
            return
        now = time.monotonic()
        if self._behind:
            self._let_in(now)
        if not self._in_hand or now >= self._cut_again_at:
            if now >= self._next_rescue:
                await self._rescue()
            await self._look()
        if self._unread:
            await self._open_next()
        if self._hand:
            await self._hand_out()

    async def _look(self) -> None:
        self._bell.rung.clear()  # before the query: a ring that comes meanwhile must survive
        if await self._cut() or self._in_hand:
            return
        if self._rate >= NEVER_SLEEP_ABOVE:
            await self._pause()
        else:
            await self._rest()

    @property
    def _in_hand(self) -> int:
        """Events that are ours and not yet offered."""
        return self._hand.events + sum(len(batch.event_ids) for batch in self._unread)

    async def _cut(self) -> bool:
        """Cut; True when there was something new."""
        in_hand = self._in_hand
        most = min(max(MOST_IN_HAND - in_hand, LEAST_PER_CUT), MOST_PER_CUT) if in_hand < HARD_LIMIT else 0
        # A surplus waits while an endpoint that it may be for is being parked, since from then on a cursor reads it.
        can_draw = in_hand < HARD_LIMIT and not self._unread and not self._parking.is_parking
        self._unsure, unsure = True, self._unsure
        found = await self._store.cut(
            self._owner,
            Share(most, MOST_READ, PIECE if can_draw else 0, self._hand.full(most), self._hand.tenants, self._drawn),
        )
        self._unsure = False
        self._reached(unsure)
        self._drawn = found.drawn or self._drawn
        self._cut_again_at = time.monotonic() + (CUT_AGAIN if found.more else CUT_BETWEEN)
        self._measure(sum(len(batch.event_ids) for batch in found.batches))
        self._take_on(found.batches)
        return bool(found.batches)

    async def _pause(self) -> None:
        self._bell.get_up()
        await wait_for(self._stopped, min(max(self._rate * PAUSE_PER_RATE, PAUSE_LEAST), PAUSE_MOST))

    def _measure(self, events: int) -> None:
        now = time.monotonic()
        elapsed = max(now - self._rate_at, 1e-6)
        self._rate += (events / elapsed - self._rate) * min(elapsed / RATE_WINDOW, 1.0)
        self._rate_at = now

    async def _rest(self) -> None:
        rest = self._bell.lie_down()
        if rest == "poll":
            await wait_for(self._bell.rung, self._poll)  # it also rings when it has an answer
            self._poll = min(self._poll * 1.5, POLL_MOST)
            return
        self._poll = POLL_FIRST
        if self._bell.rung.is_set():
            return
        self._dozing = await self._cut()  # what was committed before the lock was ours has rung nobody
        if not self._dozing:
            await wait_for(self._bell.rung, NAP)

    async def _rescue(self) -> None:
        self._open = {id_: batch for id_, batch in self._open.items() if not batch.recorded}
        most = min((HARD_LIMIT - self._in_hand) // PIECE, MOST_ADOPTED)
        self._next_rescue = FOREVER  # if it fails a cut comes first, or it would be tried for ever and nothing else
        if most <= 0:
            return
        batches = await self._store.adopt(
            self._owner,
            self.low,
            self._open,
            steady_until=self.steady_until,
            dead_after=self._dead_after,
            most=most,
        )
        self._next_rescue = time.monotonic() + self._rescue_seconds
        if batches:
            log.info("batches_adopted", batches=len(batches), first=batches[0].id)
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
            owed = await self._read(batch)
        except Exception as error:
            self._put_behind(batch, error)
            return
        self._unread.popleft()
        self._behind.pop(batch.id, None)
        self._hand.take(batch, owed)
        if not owed:
            await self._finish(batch)

    def _put_behind(self, batch: Batch, error: Exception) -> None:
        """Let all others pass for a while. Whether the database is away, or only this batch, the next cut tells."""
        hindered = self._behind.setdefault(batch.id, Hindered(batch))
        pause = hindered.setbacks.met(error)
        log.warning(
            "batch_waits",
            batch=batch.id,
            events=len(batch.event_ids),
            seconds=round(pause, 1),
            reason=hindered.setbacks.problem,
        )
        hindered.due = time.monotonic() + pause
        self._unread.popleft()
        self._cut_again_at = 0.0

    def _let_in(self, now: float) -> None:
        for hindered in self._behind.values():
            if hindered.due <= now:
                hindered.due = FOREVER  # it has its turn, and may fail again
                self._unread.append(hindered.batch)

    async def _read(self, batch: Batch) -> dict[str, tuple[int, Pairs]]:
        # A first claim has no past; of a later one, the ledger and the backlog know what is settled.
        known = await self._store.known(batch) if batch.claims > 1 else frozenset[tuple[int, int]]()
        events = await self._store.heads(batch.event_ids, batch.lo, batch.hi) if batch.event_ids else []
        whole = {event.id: self._matched(await self._store.whole(event)) for event in events if event.unread}
        await self._parking.catch_up(batch.parked)
        by_tenant: dict[str, list[Event]] = {}
        for event in events:
            by_tenant.setdefault(event.tenant, []).append(event)
        asides = whole, known, self._parking.aside(batch.id)
        return {key: (sum(map(weight, each)), self._owed(each, *asides)) for key, each in by_tenant.items()}

    def _owed(
        self,
        events: Sequence[Event],
        whole: Mapping[int, tuple[Endpoint, ...]],
        known: Set[tuple[int, int]],
        aside: Set[int],
    ) -> Pairs:
        """Whom the events are owed to, but for what is settled or aside; those of whole ones have been found before."""
        looked_at, spent = 0, 0.0
        for event in events:
            began = time.monotonic()
            endpoints = whole[event.id] if event.unread else self._matched(event)
            lean = event.lean()
            spent += time.monotonic() - began
            for endpoint in endpoints:
                if endpoint.id not in aside and (event.id, endpoint.id) not in known:
                    yield lean, endpoint
                elif (looked_at := looked_at + 1) % LOOKED_AT == 0:
                    yield None
            if spent > MATCHING or (looked_at := looked_at + 1) % LOOKED_AT == 0:
                spent = 0.0
                yield None

    def _matched(self, event: Event) -> tuple[Endpoint, ...]:
        try:
            return self.endpoints_for(event)
        except Exception as error:  # which must cost no other event its turn
            log.exception("matching_broke", event_id=event.event_id)
            self._broken[event.id] = f"a bug of webhookd in matching: {type(error).__name__}"
            return ()

    async def _hand_out(self) -> None:
        """Offer some deliveries of whose turn it is, of all who have room."""
        is_full = False
        for _ in range(len(self._hand)):
            portion = self._hand.turn()
            one_by_one = portion.batch.claims > ONE_BY_ONE
            room = self._dispatcher.room_for(portion.tenant)
            is_full = is_full or room <= 0
            if room > 0 and not (one_by_one and portion.batch.open > 1):
                await self._hand_out_some(
                    portion, 1 if one_by_one else min(room, max(AT_A_TIME // len(self._hand), LEAST_AT_A_TIME))
                )
                return
        if is_full:
            await self._wait_for_room_again()
        else:  # all wait for the results of what has been offered
            self._recorder.flushed.clear()
            await wait_for(self._recorder.flushed, NAP)

    async def _hand_out_some(self, portion: Portion, most: int) -> None:
        for _ in range(most):
            if self._dispatcher.room <= 0 or self._stopped.is_set():
                return  # the batch stays open, and is given back
            if (pair := next(portion.pairs, DONE)) is DONE:
                if self._broken:
                    await self._store.set_aside(self._broken)
                    self._broken.clear()
                if self._hand.finish(portion):
                    await self._finish(portion.batch)
                return
            if pair is None:
                break
            self._offer(portion.batch, *pair)
        await asyncio.sleep(0)

    async def _finish(self, batch: Batch) -> None:
        self._recorder.settle(batch)
        if not self._hand and not self._unread:
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
            await self._wait_for_room_again()

    async def _wait_for_room_again(self) -> None:
        self._dispatcher.room_freed.clear()
        await wait_for(self._dispatcher.room_freed, NO_ROOM)

    def _reached(self, unsure: bool) -> None:
        if not self.connected:
            log.info("reading")
        self.connected = True
        self._setbacks.over()
        if unsure:
            self._next_rescue = 0.0
        elif self._next_rescue == FOREVER:
            self._next_rescue = time.monotonic() + min(self._rescue_seconds, AWAY_MOST)
        self.asked.set()

    def _lost(self, known: str) -> None:
        if self.connected or not known:
            log.warning("database_away", reason=self._setbacks.problem)
        self.connected = False
        self.asked.set()
