"""Opens a batch: reads its events, and finds whom each is owed to.

known ──▶ heads ──▶ endpoints_for ──▶ but for what is settled, or read with a cursor
"""

import time
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from typing import Final, Protocol

import structlog

from webhookd.engine.intake.buffer import Pairs, weight
from webhookd.engine.intake.unmatched import Unmatched
from webhookd.engine.state import Subscriptions
from webhookd.model import Batch, Endpoint, Event
from webhookd.policy.matching import OWN_TYPES

LOOKED_AT: Final = 500  # pairs that turn out to be no deliveries, before others have their turn on the loop
MATCHING: Final = 0.003  # seconds of looking for endpoints, the same
FEW: Final = 10  # events of a batch whose small payloads come along: at a trickle, that is one question less
SMALL: Final = 4096  # bytes of such a payload

log = structlog.get_logger("webhookd.reader")


class Batches(Protocol):
    """What is read of a batch."""

    async def known(self, batch: Batch) -> set[tuple[int, int]]:
        """What of an adopted batch is settled: (event, endpoint) pairs."""

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime, along: int) -> list[Event]:
        """Events, but those that cannot be read, with payloads of so many bytes at most."""

    async def whole(self, event: Event) -> Event:
        """The event with what `heads` has left out of it."""


class Parking(Protocol):
    """Who reads the log with a cursor."""

    async def catch_up(self, version: int) -> None:
        """Know at least what was parked by then."""

    def by_cursor(self, batch: int) -> frozenset[int]:
        """The endpoints that get the events of this batch by their cursor."""


class FanOut:
    """`broken` are events that a bug keeps from being matched."""

    def __init__(self, batches: Batches, parking: Parking, subscriptions: Subscriptions) -> None:
        self._store = batches
        self._parking = parking
        self._subscriptions = subscriptions
        self.unmatched = Unmatched()
        self.broken: dict[int, str] = {}  # why, by the event's number

    async def read(self, batch: Batch, *, next_up: bool) -> dict[str, tuple[int, Pairs]]:
        """By tenant, the weight of its events and whom they are owed to. `next_up`: nothing else is handed out before.

        Only then do payloads come along, since what waits may be erased meanwhile, and is counted nowhere.
        """
        # A first claim has no past; of a later one, the ledger and the backlog know what is settled.
        known = await self._store.known(batch) if batch.claims > 1 else frozenset[tuple[int, int]]()
        await self._subscriptions.catch_up(batch.config)
        along = SMALL if next_up and len(batch.event_ids) <= FEW else -1
        events = await self._store.heads(batch.event_ids, batch.lo, batch.hi, along) if batch.event_ids else []
        if (pollers := self._subscriptions.pollers) is not None:
            await pollers(batch, events)
        whole = {event.id: self._matched(await self._store.whole(event)) for event in events if event.unread}
        await self._parking.catch_up(batch.parked)
        by_tenant: dict[str, list[Event]] = {}
        for event in events:
            by_tenant.setdefault(event.tenant, []).append(event)
        but_for = whole, known, self._parking.by_cursor(batch.id)
        return {key: (sum(map(weight, each)), self._owed(each, *but_for)) for key, each in by_tenant.items()}

    def _owed(
        self,
        events: Sequence[Event],
        whole: Mapping[int, tuple[Endpoint, ...]],
        known: Set[tuple[int, int]],
        by_cursor: Set[int],
    ) -> Pairs:
        """Whom the events are sent to, but for what is settled or read with a cursor; whole ones are matched."""
        looked_at, spent = 0, 0.0
        for event in events:
            began = time.monotonic()
            endpoints = whole[event.id] if event.unread else self._matched(event)
            lean = event.lean()
            spent += time.monotonic() - began
            for endpoint in endpoints:
                if not endpoint.polled and endpoint.id not in by_cursor and (event.id, endpoint.id) not in known:
                    yield lean, endpoint
                elif (looked_at := looked_at + 1) % LOOKED_AT == 0:
                    yield None
            if spent > MATCHING or (looked_at := looked_at + 1) % LOOKED_AT == 0:
                spent = 0.0
                yield None

    def _matched(self, event: Event) -> tuple[Endpoint, ...]:
        try:
            found = self._subscriptions.endpoints_for(event)
        except Exception as error:  # which must cost no other event its turn
            log.exception("matching_broke", event_id=event.event_id)
            self.broken[event.id] = f"a bug of webhookd in matching: {type(error).__name__}"
            return ()
        # What we say ourselves, few want to hear.
        if not found and not event.type.startswith(OWN_TYPES) and not self._subscriptions.is_discarded_for_all(event):
            self.unmatched.add(event.type)
        return found
