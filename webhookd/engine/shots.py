"""Shots: what somebody wants to be sent now and once, an event again or a test, whatever keeps the rest back.

    open ──▶ ours? ──▶ claim ──▶ a slot of the endpoint ──▶ sender ──▶ what came of it

Nobody sends one twice: who claims one and dies has sent it, or not, and nobody knows.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple, Protocol, TypeVar

import orjson
import structlog

from webhookd.engine.clock import Clock
from webhookd.engine.dispatch.lanes import Sender
from webhookd.engine.dispatch.reservations import Reservations
from webhookd.errors import Moved, OtherPlace, SchemaMismatch, StoreRefused, StoreUnavailable
from webhookd.exchange import NoResponse, Response
from webhookd.message import request
from webhookd.model import Attempt, Delivery, Endpoint, Event
from webhookd.policy import outcome
from webhookd.tasks import Setbacks, wait_for

LOOK_SECONDS: Final = 0.5
AT_ONCE: Final = 50  # of one daemon, under way or waiting for a slot
OF_ENDPOINT: Final = 5  # of these, to one endpoint
OF_TENANT: Final = 25  # and to all of one tenant
LEFT_TO_SENDER: Final = 1.0  # seconds, after which anybody takes one whose endpoint another daemon sends to
LEASE_MARGIN: Final = 25.0  # seconds beyond the timeout, until nobody will say what came of it
SETTLED_SECONDS: Final = 1.0  # after which what the recorder was just writing is in the database
LAST_SECONDS: Final = 8.0  # for writing what came of one, once we stop
ENDING: Final = (Moved, OtherPlace)  # what ends a daemon, or its life
FOREVER = float("inf")

T = TypeVar("T")

log = structlog.get_logger("webhookd.shots")


class Open(Protocol):
    """One that has not ended."""

    @property
    def id(self) -> int: ...
    @property
    def endpoint_id(self) -> int: ...
    @property
    def age(self) -> float: ...
    @property
    def is_taken(self) -> bool: ...
    @property
    def is_over(self) -> bool: ...


class Claimed(Protocol):
    """One that is ours: a resend has an event of the outbox, a test brings its own."""

    @property
    def id(self) -> int: ...
    @property
    def kind(self) -> Literal["resend", "test"]: ...
    @property
    def endpoint_id(self) -> int: ...
    @property
    def outbox_id(self) -> int | None: ...
    @property
    def outbox_at(self) -> datetime | None: ...
    @property
    def event_id(self) -> str | None: ...
    @property
    def type(self) -> str | None: ...
    @property
    def tenant(self) -> str | None: ...
    @property
    def payload(self) -> bytes | None: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def left(self) -> float: ...
    @property
    def attempts(self) -> int: ...


class Store(Protocol):
    """Where they are."""

    async def open(self) -> Sequence[Open]:
        """Those that have not ended, the oldest first."""

    async def end(self) -> None:
        """End those whose time is over."""

    async def claim(self, shots: Sequence[tuple[int, float]]) -> Sequence[Claimed]:
        """Take these, each with the seconds that one may last."""

    async def leave(self, shot: int) -> None:
        """Give back one that was not sent."""

    async def done(self, shot: int, at: datetime | None, attempt: Attempt, request: bytes | None) -> None:
        """Write what came of it."""

    async def settle(self, shot: int) -> None:
        """End what is to be tried again of a resend that was delivered."""


class Heads(Protocol):
    """The events of the outbox."""

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime, along: int = -1) -> list[Event]:
        """Events, but those that cannot be read, with payloads of so many bytes at most."""

    async def whole(self, event: Event) -> Event:
        """The event with what `heads` has left out of it."""


class Settings(Protocol):
    """`[delivery]` of the configuration."""

    @property
    def max_payload(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def response_body(self) -> str: ...


class End(NamedTuple):
    """What came of one; `at` is None when no request was made, and the attempt says why."""

    at: float | None
    attempt: Attempt
    request: bytes | None = None


class Shots:
    """Takes them for the endpoints of our files, active or not."""

    def __init__(
        self,
        store: Store,
        heads: Heads,
        reservations: Reservations,
        sender: Sender,
        clock: Clock,
        *,
        user_agent: str,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._store = store
        self._heads = heads
        self._reservations = reservations
        self._sender = sender
        self._clock = clock
        self._user_agent = user_agent
        self._look_seconds = look_seconds
        self._endpoints: dict[int, Endpoint] = {}
        self._delivery: Settings | None = None
        self._under_way = 0
        self._to: Counter[int | str] = Counter()  # under way, by endpoint, and by tenant
        self._stopped = asyncio.Event()
        self.setbacks = Setbacks("shots")

    def configure(self, endpoints: Collection[Endpoint], delivery: Settings) -> None:
        """Send to these, as these settings say."""
        self._endpoints = {endpoint.id: endpoint for endpoint in endpoints}
        self._delivery = delivery

    def change(self, endpoints: Iterable[Endpoint], gone: Iterable[int]) -> None:
        """Send to these as they are now, and to those no longer."""
        self._endpoints.update((endpoint.id, endpoint) for endpoint in endpoints)
        for id_ in gone:
            self._endpoints.pop(id_, None)

    def stop(self) -> None:
        """Take nothing more; `run` returns when what is under way is answered and written."""
        self._stopped.set()

    async def run(self) -> None:
        """Take and send until stopped."""
        async with asyncio.TaskGroup() as group:
            pause = 0.0
            while not await wait_for(self._stopped, pause):
                try:
                    await self._look(group)
                except Exception as error:
                    pause = self.setbacks.met(error)
                else:
                    self.setbacks.over()
                    pause = self._look_seconds

    async def _look(self, group: asyncio.TaskGroup) -> None:
        if not self._reservations.is_open:
            return
        found = await self._store.open()
        if any(shot.is_over for shot in found):
            await self._store.end()
        wanted = self._ours(found)
        if (room := AT_ONCE - self._under_way) > 0 and wanted:
            for shot in await self._store.claim(wanted[:room]):
                self._under_way += 1
                self._to.update(whose := self._whose(shot.endpoint_id))
                group.create_task(self._shoot(shot, time.monotonic() + shot.left, whose))

    def _ours(self, found: Sequence[Open]) -> list[tuple[int, float]]:
        """Those that we may take, each with the seconds that it may last: of each endpoint what it has slots for."""
        left: dict[int, int] = {}
        to: Counter[int | str] = Counter(self._to)
        ours = []
        for shot in found:
            endpoint = self._endpoints.get(shot.endpoint_id)
            if endpoint is None or shot.is_taken or shot.is_over:
                continue
            if shot.age < LEFT_TO_SENDER and not self._reservations.is_sender(endpoint.id):
                continue
            left.setdefault(endpoint.id, self._reservations.left(endpoint))
            left[endpoint.id] -= 1
            if left[endpoint.id] >= 0 and to[endpoint.id] < OF_ENDPOINT and to[endpoint.tenant] < OF_TENANT:
                to.update((endpoint.id, endpoint.tenant))
                ours.append((shot.id, endpoint.timeout + LEASE_MARGIN))
        return ours

    def _whose(self, endpoint_id: int) -> tuple[int | str, ...]:
        endpoint = self._endpoints.get(endpoint_id)
        return (endpoint_id,) if endpoint is None else (endpoint_id, endpoint.tenant)

    async def _shoot(self, shot: Claimed, until: float, whose: Sequence[int | str]) -> None:
        try:
            end = await self._end_of(shot, until)
            if end is None:
                await self._insist(lambda: self._store.leave(shot.id))
            else:
                await self._write(shot, end)
        except ENDING:
            raise
        except Exception as error:  # it ends as one that is lost, and no other for it
            log.error("shot_broke", shot=shot.id, endpoint=shot.endpoint_id, exc_info=error)
        finally:
            self._under_way -= 1
            self._to.subtract(whose)
            for each in whose:
                if self._to[each] <= 0:
                    del self._to[each]

    async def _end_of(self, shot: Claimed, until: float) -> End | None:
        """What came of it; None when it was not sent, and others may."""
        endpoint, delivery = self._endpoints.get(shot.endpoint_id), self._delivery
        if endpoint is None or delivery is None:
            return None  # gone from our files a moment ago
        event = await self._insist(lambda: self._event(shot, delivery.max_payload), until)
        if event is None:
            return _none(shot, "event_missing")
        if event.payload is None:
            return _none(shot, "payload_too_large")
        async with self._reservations.slot(endpoint, until - time.monotonic()) as got:
            if got:
                return await self._sent(shot, endpoint, event, delivery)
            return _none(shot, "no_slot") if self._reservations.is_open else None

    async def _event(self, shot: Claimed, max_payload: int) -> Event | None:
        if shot.outbox_id is None or shot.outbox_at is None:
            payload = shot.payload or b""
            about = shot.event_id or "", shot.created_at, shot.type or "", shot.tenant or "", None, None, None
            return Event(0, *about, len(payload), 0, payload if len(payload) <= max_payload else None)
        found = await self._heads.heads([shot.outbox_id], shot.outbox_at, shot.outbox_at, max_payload)
        if not found:
            return None
        return await self._heads.whole(found[0]) if found[0].unread else found[0]

    async def _sent(self, shot: Claimed, endpoint: Endpoint, event: Event, settings: Settings) -> End:
        started, at = time.monotonic(), self._clock.now()
        delivery = Delivery(event, endpoint, None, shot.attempts, at, started, FOREVER, trigger=shot.kind)
        answer: Response | NoResponse
        seen = None
        try:
            payload = event.payload or b""
            post = request.build(delivery, payload, int(time.time()), settings.source, self._user_agent)
            if shot.kind == "test":
                post = post._replace(whole=True)
                seen = orjson.dumps(request.shown(post, endpoint))
            answer = await self._sender.send(post)
        except Exception:
            log.exception("shot_broke", shot=shot.id, endpoint=shot.endpoint_id)
            answer = NoResponse("internal")
        ms = round((time.monotonic() - started) * 1000)
        attempt = outcome.attempt_of(answer, delivery.attempt, at, ms)
        if settings.response_body == "none":
            attempt = attempt._replace(response=None)
        elif shot.kind == "test" and isinstance(answer, Response):
            attempt = attempt._replace(response=answer.body)
        log.info(
            "shot_sent",
            kind=shot.kind,
            endpoint=endpoint.label,
            event_id=event.event_id,
            code=attempt.error or attempt.code,
            ms=ms,
        )
        return End(at, attempt, seen)

    async def _write(self, shot: Claimed, end: End) -> None:
        at = None if end.at is None else datetime.fromtimestamp(end.at, UTC)
        try:
            await self._insist(lambda: self._store.done(shot.id, at, end.attempt, end.request))
        except StoreRefused as error:  # a rule of the owner's on the log of attempts
            log.error("shot_refused", shot=shot.id, reason=str(error))
            without = end.attempt._replace(ok=end.attempt.ok, response=None)
            await self._insist(lambda: self._store.done(shot.id, None, without, None))
        if end.attempt.ok and shot.kind == "resend":
            # A failure of the schedule may be on its way into the database, written before it could see this.
            await wait_for(self._stopped, SETTLED_SECONDS)
            await self._insist(lambda: self._store.settle(shot.id))

    async def _insist(self, ask: Callable[[], Awaitable[T]], until: float = FOREVER) -> T:
        """Ask until the database answers, or it is too late; while we stop, for some seconds."""
        while True:
            try:
                return await ask()
            except (StoreUnavailable, SchemaMismatch) as error:
                pause = self.setbacks.met(error)
                if self._stopped.is_set():
                    until = min(until, time.monotonic() + LAST_SECONDS)
                if time.monotonic() + pause > until:
                    raise
            await asyncio.sleep(pause)


def _none(shot: Claimed, why: str) -> End:
    return End(None, Attempt(0.0, shot.attempts, False, None, 0, why, None))
