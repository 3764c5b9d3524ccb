"""Shots, where the database or the endpoint does not do what it should."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest

from tests.endpoints import HOOK
from tests.waiting import HANGS, until
from webhookd.engine.clock import Clock
from webhookd.engine.shots import AT_ONCE, LEFT_TO_SENDER, OF_ENDPOINT, OF_TENANT, Shots
from webhookd.errors import Moved, StoreRefused, StoreUnavailable
from webhookd.exchange import Request, Response
from webhookd.model import Attempt, Endpoint, Event

AT = datetime(2026, 1, 31, tzinfo=UTC)
EVENT = Event(7, "e", AT, "t", "", None, None, None, 2, 0, b"{}")
DELIVERY = SimpleNamespace(max_payload=1000, source="here", response_body="failures")


class Open(NamedTuple):
    id: int
    endpoint_id: int = HOOK.id
    age: float = 0.0
    is_taken: bool = False
    is_over: bool = False


class Claimed(NamedTuple):
    id: int
    kind: Any = "resend"
    endpoint_id: int = HOOK.id
    outbox_id: int | None = 7
    outbox_at: datetime | None = AT
    event_id: str | None = None
    type: str | None = None
    tenant: str | None = None
    payload: bytes | None = None
    created_at: datetime = AT
    left: float = 5.0
    attempts: int = 3


class Store:
    """What is open until it is claimed; `troubles` are raised by `done`, one after the other."""

    def __init__(self, *shots: Open, troubles: Sequence[Exception] = ()) -> None:
        self.shots = list(shots)
        self.troubles = list(troubles)
        self.claims: list[int] = []
        self.left: list[int] = []
        self.settled: list[int] = []
        self.ended = 0
        self.written: list[tuple[int, datetime | None, Attempt]] = []

    async def open(self) -> list[Open]:
        return self.shots

    async def end(self) -> None:
        self.ended += 1
        self.shots = [shot for shot in self.shots if not shot.is_over]

    async def claim(self, shots: Sequence[tuple[int, float]]) -> list[Claimed]:
        ids = [id_ for id_, _ in shots]
        self.claims += ids
        found = [shot for shot in self.shots if shot.id in ids]
        self.shots = [shot for shot in self.shots if shot.id not in ids]
        return [Claimed(shot.id, endpoint_id=shot.endpoint_id) for shot in found]

    async def leave(self, shot: int) -> None:
        self.left.append(shot)

    async def done(self, shot: int, at: datetime | None, attempt: Attempt, request: bytes | None) -> None:
        if self.troubles:
            raise self.troubles.pop(0)
        self.written.append((shot, at, attempt))

    async def settle(self, shot: int) -> None:
        self.settled.append(shot)


class Reservations:
    """Slots without end; or none."""

    def __init__(self) -> None:
        self.is_open = self.has_slots = self.sends = True

    def is_sender(self, _: int) -> bool:
        return self.sends

    def left(self, _: Endpoint) -> int:
        return 1_000

    @asynccontextmanager
    async def slot(self, _: Endpoint, __: float) -> AsyncIterator[bool]:
        yield self.has_slots


class Network:
    """Answers when it may."""

    def __init__(self) -> None:
        self.sent: list[Request] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, request: Request) -> Response:
        self.sent.append(request)
        await self.gate.wait()
        return Response(200)


class Heads:
    async def heads(self, *_: object) -> list[Event]:
        return [EVENT]

    async def whole(self, event: Event) -> Event:
        return event


class Parts(NamedTuple):
    shots: Shots
    store: Store
    reservations: Reservations
    network: Network


@asynccontextmanager
async def running(store: Store, *endpoints: Endpoint) -> AsyncIterator[Parts]:
    reservations, network = Reservations(), Network()
    shots = Shots(
        store, cast(Any, Heads()), cast(Any, reservations), network, Clock(), user_agent="agent", look_seconds=0.01
    )
    shots.configure(endpoints or [HOOK], cast(Any, DELIVERY))
    async with asyncio.TaskGroup() as group:
        group.create_task(shots.run())
        yield Parts(shots, store, reservations, network)
        shots.stop()


async def test_what_came_of_it_is_written_when_the_database_is_back() -> None:
    async with running(Store(Open(1), troubles=[StoreUnavailable("away")] * 3)) as parts:
        await until(lambda: parts.store.written, "it to be written")
        assert parts.shots.setbacks.problem in ("away", "")
    ((shot, at, attempt),) = parts.store.written
    assert (shot, attempt.number, attempt.ok) == (1, 4, True)
    assert at is not None
    assert len(parts.network.sent) == 1


async def test_an_attempt_whose_row_is_refused_is_told_all_the_same() -> None:
    async with running(Store(Open(1), troubles=[StoreRefused("a rule")])) as parts:
        await until(lambda: parts.store.written, "it to be written")
    ((_, at, attempt),) = parts.store.written
    assert (at, attempt.ok) == (None, True)


async def test_a_bug_ends_no_other() -> None:
    async with running(Store(Open(1), Open(2), troubles=[ZeroDivisionError()])) as parts:
        await until(lambda: parts.store.written, "the other")
        assert len(parts.store.written) == 1


async def test_a_bug_in_one_request_is_an_attempt() -> None:
    def broken(*_: object) -> Any:
        raise ZeroDivisionError

    store = Store(Open(1))
    async with running(store, replace(HOOK, format=broken)) as parts:
        await until(lambda: parts.store.written, "it to be written")
    ((_, at, attempt),) = parts.store.written
    assert (at is not None, attempt.ok, attempt.error) == (True, False, "internal")
    assert parts.network.sent == []


async def test_a_database_that_moved_ends_the_life() -> None:
    async def live() -> None:
        async with running(Store(Open(1), troubles=[Moved("elsewhere")])) as parts:
            await until(lambda: not parts.store.troubles, "the trouble")
            await asyncio.sleep(HANGS)

    with pytest.raises(ExceptionGroup) as caught:
        await live()
    assert caught.group_contains(Moved, depth=2)


async def test_no_more_than_some_at_once() -> None:
    """Of all, of one tenant, and of one endpoint; and all of them in the end."""
    few = [replace(HOOK, id=n, tenant=f"t{n % 8}") for n in range(1, 81)]
    async with running(Store(*(Open(n, endpoint_id=n) for n in range(1, 81))), *few) as parts:
        parts.network.gate.clear()
        await until(lambda: len(parts.network.sent) == AT_ONCE, "some of them")
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert len(parts.store.claims) == AT_ONCE
        parts.network.gate.set()
        await until(lambda: len(parts.store.written) == 80, "all of them")


async def test_one_tenant_leaves_room_for_others() -> None:
    hers = [replace(HOOK, id=n, tenant="a") for n in range(1, 41)]
    other = replace(HOOK, id=99, tenant="b")
    store = Store(*(Open(n, endpoint_id=n) for n in range(1, 41)))
    async with running(store, *hers, other) as parts:
        parts.network.gate.clear()
        await until(lambda: len(parts.network.sent) == OF_TENANT, "hers")
        store.shots.append(Open(100, endpoint_id=99))
        await until(lambda: len(parts.network.sent) == OF_TENANT + 1, "that of another")
        assert parts.store.claims[-1] == 100
        parts.network.gate.set()
        await until(lambda: len(parts.store.written) == 41, "all of them")


async def test_of_one_endpoint_five_at_a_time() -> None:
    async with running(Store(*map(Open, range(1, 21)))) as parts:
        parts.network.gate.clear()
        await until(lambda: len(parts.network.sent) == OF_ENDPOINT, "some of them")
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert len(parts.store.claims) == OF_ENDPOINT
        parts.network.gate.set()
        await until(lambda: len(parts.store.written) == 20, "all of them")


async def test_whose_it_is() -> None:
    """Not what another has, what is over, or is for an endpoint of others; what others send to, after a while."""
    not_ours = Open(1, is_taken=True), Open(2, is_over=True), Open(3, endpoint_id=99)
    store = Store(*not_ours, Open(4), Open(5, age=LEFT_TO_SENDER))
    async with running(store) as parts:
        parts.reservations.sends = False
        await until(lambda: len(store.written) == 1, "the one that anybody takes")
        assert store.claims == [5]
        assert store.ended == 1
        parts.reservations.sends = True
        await until(lambda: len(store.written) == 2, "ours")
        assert store.claims == [5, 4]


async def test_what_was_not_sent_is_left_when_nothing_may_start_any_longer() -> None:
    async with running(Store(Open(1))) as parts:
        parts.reservations.has_slots = False
        await until(lambda: parts.store.written or parts.store.left, "its end")
        assert [attempt.error for _, _, attempt in parts.store.written] == ["no_slot"]
    async with running(Store()) as parts:
        parts.reservations.has_slots = False
        await asyncio.sleep(0.02)
        parts.reservations.is_open = False
        parts.store.shots = [Open(1)]
        await asyncio.sleep(0.1)
        assert parts.store.claims == []
