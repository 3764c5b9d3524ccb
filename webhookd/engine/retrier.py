"""Brings back what is owed later: claims from the backlog as much as each endpoint has room for."""

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime
from operator import itemgetter
from typing import Protocol

import structlog

from webhookd.model import Delivery, Ended, Endpoint, Event, Result
from webhookd.tasks import Setbacks, wait_for

LOOK_SECONDS = 0.5
AWAY_SECONDS = 1.0
RESTRAINT, RESTRAINT_MOST = 10.0, 2.0  # times what it took to ask who owes, until that is asked again; seconds
AT_ONCE = 500  # endpoints that have a part of what is claimed at a time
AT_A_TIME = 500  # endpoints that are looked at before others have their turn on the loop
START_MARGIN = 5.0  # seconds before the end of a lease by which its attempt must be over

log = structlog.get_logger("webhookd.retrier")


Wanted = tuple[int, int, float, float]  # an endpoint, its room, the seconds of the lease, and how late its first is


class Claimed(Protocol):
    """A row of the backlog that is leased to us."""

    @property
    def event_id(self) -> int: ...
    @property
    def endpoint_id(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def event_at(self) -> datetime: ...
    @property
    def clock_from(self) -> float: ...
    @property
    def asked(self) -> int: ...
    @property
    def deaths(self) -> int: ...
    @property
    def replay(self) -> int: ...
    @property
    def is_suspect(self) -> bool: ...


class Backlog(Protocol):
    """What the retrier needs of the store."""

    async def owing(self) -> dict[int, float]:
        """Endpoint id -> seconds until its first delivery is due."""

    async def claim(
        self, wanted: Sequence[tuple[int, int, float, float]], *, suspects: bool = True
    ) -> Sequence[Claimed]:
        """Lease what is due, of the first endpoints at least a part."""


class Heads(Protocol):
    """The events behind the rows."""

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime) -> list[Event]:
        """Events without payloads."""


class Dispatcher(Protocol):
    """Where claimed deliveries go."""

    @property
    def room(self) -> int:
        """Deliveries that may still be offered."""

    def room_for(self, tenant: str) -> int:
        """The same of events of this tenant."""

    def claimable(self, endpoint_id: int) -> tuple[int, float]:
        """Room of an endpoint, and the seconds of the lease."""

    def offer(self, delivery: Delivery) -> None:
        """Take a delivery."""


class Recorder(Protocol):
    """Where deliveries end that cannot be tried."""

    def unwritten(self) -> set[tuple[int, int, int]]:
        """Event, endpoint, and attempts made before, of the attempts that are not in the database yet."""

    def put(self, result: Result) -> None:
        """Record a result."""


class Retrier:
    """Claims what is due, for the endpoints of our configuration that can take it."""

    def __init__(
        self,
        backlog: Backlog,
        heads: Heads,
        dispatcher: Dispatcher,
        recorder: Recorder,
        endpoint: Callable[[int], Endpoint | None],
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._backlog = backlog
        self._heads = heads
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._endpoint = endpoint
        self._look_seconds = look_seconds
        self.due: frozenset[int] = frozenset()  # the endpoints that owed something when we looked last
        self._last = 0  # the endpoint behind which the next claim begins
        self._suspect: Delivery | None = None  # the last one that daemons may have died of
        self._stopped = asyncio.Event()
        self.setbacks = Setbacks("retrier", AWAY_SECONDS)

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopped.set()

    async def run(self) -> None:
        """Claim until stopped."""
        pause = 0.0
        while not await wait_for(self._stopped, pause):
            try:
                pause = await self._look()
            except Exception as error:
                pause = self.setbacks.met(error)
            else:
                self.setbacks.over()

    async def _look(self) -> float:
        """Claim once; the seconds until there may be more."""
        if self._dispatcher.room <= 0:
            return self._look_seconds
        began = time.monotonic()
        owing = await self._backlog.owing()
        # It costs the database a step for each endpoint that owes, which may be thousands.
        least = min((time.monotonic() - began) * RESTRAINT, RESTRAINT_MOST)
        self.due = frozenset(endpoint_id for endpoint_id, due_in in owing.items() if due_in <= 0)
        wanted: list[Wanted] = []
        asked: dict[int, tuple[Endpoint, float]] = {}
        for number, (endpoint_id, due_in) in enumerate(owing.items(), start=1):
            endpoint = self._endpoint(endpoint_id)
            if due_in <= 0 and endpoint is not None:
                room, lease = self._dispatcher.claimable(endpoint_id)
                if room > 0:
                    wanted.append((endpoint_id, room, lease, -due_in))
                    asked[endpoint_id] = endpoint, lease
            if number % AT_A_TIME == 0:
                await asyncio.sleep(0)
        if wanted:
            wanted.sort()
            first = bisect_right(wanted, self._last, key=itemgetter(0))
            wanted = self._within_rooms(wanted[first:] + wanted[:first], asked)
        if wanted:
            self._last = wanted[AT_ONCE - 1 if len(wanted) > AT_ONCE else 0][0]
            # A lease may have run out while the database was away and the result waited here: it is no reason to
            # send once more. What was written while the claim was under way had waited before.
            unwritten = self._recorder.unwritten()
            asked_at = time.monotonic()  # no lease has begun before, however long the answer takes
            found = await self._backlog.claim(wanted, suspects=not self._has_suspect(unwritten))
            unwritten |= self._recorder.unwritten()
            if rows := [row for row in found if (row.event_id, row.endpoint_id, row.attempts) not in unwritten]:
                await self._offer(rows, asked, asked_at)
                return max(self._look_seconds / 10, least)
        upcoming = min((due_in for due_in in owing.values() if due_in > 0), default=self._look_seconds)
        return max(min(upcoming, self._look_seconds), least)

    def _within_rooms(self, wanted: Sequence[Wanted], asked: Mapping[int, tuple[Endpoint, float]]) -> list[Wanted]:
        """What memory has room for of each tenant, those first that come first."""
        left: dict[str, int] = {}
        found = []
        for endpoint_id, room, lease, overdue in wanted:
            tenant = asked[endpoint_id][0].tenant
            if tenant not in left:
                left[tenant] = self._dispatcher.room_for(tenant)
            if (room := min(room, left[tenant])) > 0:
                left[tenant] -= room
                found.append((endpoint_id, room, lease, overdue))
        return found

    def _has_suspect(self, unwritten: Set[tuple[int, int, int]]) -> bool:
        """True while one is in hand, or what became of it is not in the database: whoever died then had it."""
        if (delivery := self._suspect) is None:
            return False
        if (delivery.event.id, delivery.endpoint.id, delivery.attempts) in unwritten:
            return True
        return bool(delivery.deaths) and time.monotonic() < delivery.start_by  # an answer ends the count

    async def _offer(self, rows: Sequence[Claimed], asked: dict[int, tuple[Endpoint, float]], asked_at: float) -> None:
        moments = [row.event_at for row in rows]
        # When this fails the leases run out, and the rows are claimed again.
        found = await self._heads.heads(list({row.event_id for row in rows}), min(moments), max(moments))
        events = {event.id: event.lean() for event in found}
        for row in rows:
            endpoint, lease = asked[row.endpoint_id]
            # Changed since, or gone: then the dispatcher has no queue for it, and puts the row back.
            endpoint = self._endpoint(row.endpoint_id) or endpoint
            start_by = asked_at + lease - endpoint.timeout - START_MARGIN
            event = events.get(row.event_id)
            if event is None:
                delivery = Delivery(gone(row), endpoint, None, row.attempts, row.clock_from, asked_at, start_by)
                self._recorder.put(Result(delivery, None, Ended("rejected", "event_missing")))
                continue
            # What is owed was due before its horizon, so it has this attempt, however late we or its endpoint are.
            past = (
                row.attempts,
                row.clock_from,
                asked_at,
                start_by,
                row.asked,
                row.deaths,
                "replay" if row.replay else None,
                row.replay,
            )
            delivery = Delivery(event, endpoint, None, *past)
            if row.is_suspect:
                self._suspect = delivery
            self._dispatcher.offer(delivery)


def gone(row: Claimed) -> Event:
    """What is left of an event whose row retention has taken."""
    return Event(row.event_id, "", row.event_at, "", "", None, None, None, 0)
