"""What is owed comes back: claimed as there is room, forgotten when too late, ended when it cannot be tried."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from tests.endpoints import HOOK
from tests.stopwatch import Stopwatch
from tests.waiting import HANGS, until
from webhookd.engine import retrier
from webhookd.engine.retrier import AT_A_TIME, START_MARGIN, Retrier
from webhookd.errors import SchemaMismatch, StoreUnavailable
from webhookd.model import Delivery, Ended, Event, Result

DAY = datetime(2021, 1, 27, tzinfo=UTC)
LEASE = 45.0


class Row(NamedTuple):
    event_id: int
    endpoint_id: int
    attempts: int
    event_at: datetime
    clock_from: float
    asked: int = 0
    deaths: int = 0
    replay: int = 0
    is_suspect: bool = False


def row(event: int, endpoint: int = 1, attempts: int = 1, **changes: Any) -> Row:
    return Row(event, endpoint, attempts, DAY + timedelta(seconds=event), time.time() - 60)._replace(**changes)


class Store:
    """A backlog, and the events behind it."""

    def __init__(self) -> None:
        self.due: dict[int, float] = {}
        self.rows: list[Row] = []
        self.gone: set[int] = set()
        self.claims: list[list[tuple[int, int, float, float]]] = []
        self.ranges: list[tuple[datetime, datetime]] = []
        self.looks = 0
        self.claimed: Callable[[], None] = lambda: None  # what happens while a claim is under way
        self.troubles: dict[str, list[Exception]] = {}

    def _call(self, name: str) -> None:
        if self.troubles.get(name):
            raise self.troubles[name].pop(0)

    async def owing(self) -> dict[int, float]:
        self.looks += 1
        self._call("owing")
        return {**self.due, **{each.endpoint_id: -1.0 for each in self.rows}}

    async def claim(self, wanted: Sequence[tuple[int, int, float, float]], *, suspects: bool = True) -> Sequence[Row]:
        assert wanted
        assert all(overdue >= 0 for *_, overdue in wanted)
        self._call("claim")
        self.claims.append(list(wanted))
        self.claimed()
        taken: list[Row] = []
        for endpoint_id, room, _, _ in wanted:
            taken += [
                each for each in self.rows if each.endpoint_id == endpoint_id and (suspects or not each.is_suspect)
            ][:room]
        self.rows = [each for each in self.rows if each not in taken]
        return taken

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime) -> list[Event]:
        self._call("heads")
        self.ranges.append((lo, hi))
        assert len(set(ids)) == len(ids)
        return [Event(i, f"evt_{i}", DAY, "order.created", "", None, None, None, 2) for i in ids if i not in self.gone]


class Dispatcher:
    """Takes everything; `rooms` says how much each endpoint has room for."""

    def __init__(self) -> None:
        self.room = 100
        self.rooms: dict[int, int] = {1: 10}
        self.rooms_of: dict[str, int] = {}
        self.offered: list[Delivery] = []

    def room_for(self, tenant: str) -> int:
        return self.rooms_of.get(tenant, self.room)

    def claimable(self, endpoint_id: int) -> tuple[int, float]:
        return self.rooms.get(endpoint_id, 0), LEASE

    def offer(self, delivery: Delivery) -> None:
        self.offered.append(delivery)


class Recorder:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.waiting: set[tuple[int, int, int]] = set()

    def unwritten(self) -> set[tuple[int, int, int]]:
        return set(self.waiting)

    def put(self, result: Result) -> None:
        self.results.append(result)


class Parts:
    """A retrier between fakes."""

    def __init__(self, look_seconds: float) -> None:
        self.store = Store()
        self.dispatcher = Dispatcher()
        self.recorder = Recorder()
        self.endpoints = {1: HOOK, 2: replace(HOOK, id=2, name="other", timeout=5.0)}
        self.retrier = Retrier(
            self.store,
            self.store,
            self.dispatcher,
            self.recorder,
            self.endpoints.get,
            look_seconds=look_seconds,
        )


@pytest.fixture
def parts() -> Parts:
    return Parts(look_seconds=0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrier, "AWAY_SECONDS", 0.01)


@asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[Parts]:
    """It runs, and is stopped in order at the end."""
    async with asyncio.TaskGroup() as group:
        group.create_task(parts.retrier.run())
        yield parts
        parts.retrier.stop()


async def test_a_due_row_is_offered_with_its_past(parts: Parts) -> None:
    parts.store.rows = [row(7, attempts=3, clock_from=123.5, asked=2)]
    before = time.monotonic()
    async with running(parts):
        await until(lambda: parts.dispatcher.offered, "the delivery")
    (delivery,) = parts.dispatcher.offered
    assert (delivery.event.id, delivery.endpoint, delivery.batch) == (7, HOOK, None)
    assert (delivery.attempts, delivery.attempt, delivery.clock_from) == (3, 4, 123.5)
    assert (delivery.asked, delivery.step) == (2, 2)
    assert before <= delivery.since <= time.monotonic()
    # An attempt that starts then is over before the lease is.
    assert delivery.start_by == pytest.approx(delivery.since + LEASE - HOOK.timeout - START_MARGIN)
    assert [claim[:3] for claims in parts.store.claims for claim in claims] == [(1, 10, LEASE)]


async def test_a_lease_may_have_begun_when_its_claim_was_sent(parts: Parts) -> None:
    moments: list[float] = []

    def slow() -> None:
        moments.append(time.monotonic())
        time.sleep(0.05)

    parts.store.rows = [row(7)]
    parts.store.claimed = slow
    async with running(parts):
        await until(lambda: parts.dispatcher.offered, "the delivery")
    assert parts.dispatcher.offered[0].start_by <= moments[0] + LEASE - HOOK.timeout - START_MARGIN


async def test_only_endpoints_with_room_are_asked_for(parts: Parts) -> None:
    parts.dispatcher.rooms = {1: 0, 2: 3}
    parts.store.rows = [row(n) for n in range(5)] + [row(n, endpoint=2) for n in range(5)] + [row(9, endpoint=9)]
    async with running(parts):
        await until(lambda: len(parts.dispatcher.offered) == 5, "all of the endpoint with room")
        looks = parts.store.looks
        await until(lambda: parts.store.looks > looks + 3, "a few more looks")
    assert {claim[0] for claims in parts.store.claims for claim in claims} == {2}
    assert all(claim[1] == 3 for claims in parts.store.claims for claim in claims)
    assert {delivery.endpoint.id for delivery in parts.dispatcher.offered} == {2}


async def test_a_claim_begins_behind_those_that_had_a_part_of_the_last(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrier, "AT_ONCE", 2)
    parts.endpoints = {id_: replace(HOOK, id=id_) for id_ in range(1, 6)}
    parts.retrier._endpoint = parts.endpoints.get
    parts.dispatcher.rooms = dict.fromkeys(parts.endpoints, 1)
    parts.store.rows = [row(n, endpoint=id_) for id_ in (5, 1, 3, 2, 4) for n in range(50)]
    async with running(parts):
        await until(lambda: len(parts.store.claims) >= 4, "some claims")
    order = [[wanted[0] for wanted in claim] for claim in parts.store.claims[:4]]
    assert order == [[1, 2, 3, 4, 5], [3, 4, 5, 1, 2], [5, 1, 2, 3, 4], [2, 3, 4, 5, 1]]


async def test_a_suspect_waits_until_what_became_of_the_one_before_is_written(parts: Parts) -> None:
    """Or it would seem that daemons have died of that."""
    parts.store.rows = [row(7, deaths=4, is_suspect=True)]
    async with running(parts):
        await until(lambda: parts.dispatcher.offered, "a first one")
        parts.store.rows = [row(8, deaths=4, is_suspect=True)]
        claims = len(parts.store.claims)
        await until(lambda: len(parts.store.claims) > claims + 2, "some claims while it is in hand")
        parts.recorder.waiting = {(7, 1, 1)}
        parts.dispatcher.offered[0].deaths = 0
        claims = len(parts.store.claims)
        await until(lambda: len(parts.store.claims) > claims + 2, "some more before it is written")
        assert len(parts.dispatcher.offered) == 1
        parts.recorder.waiting = set()
        await until(lambda: len(parts.dispatcher.offered) == 2, "the next")


async def test_a_suspect_that_is_put_off_holds_up_others_no_longer_than_its_lease(parts: Parts) -> None:
    parts.store.rows = [row(7, deaths=4, is_suspect=True)]
    async with running(parts):
        await until(lambda: parts.dispatcher.offered, "a first one")
        parts.dispatcher.offered[0].start_by = time.monotonic()
        parts.store.rows = [row(8, deaths=4, is_suspect=True)]
        await until(lambda: len(parts.dispatcher.offered) == 2, "the next")


async def test_nothing_is_claimed_while_memory_is_full(parts: Parts) -> None:
    parts.dispatcher.room = 0
    parts.store.rows = [row(1)]
    async with running(parts):
        await asyncio.sleep(0.1)  # several looks
        assert parts.store.looks == 0
        parts.dispatcher.room = 1
        await until(lambda: parts.dispatcher.offered, "the delivery, once there is room")


async def test_a_row_that_is_not_due_is_not_claimed(parts: Parts) -> None:
    parts.store.due = {1: 0.2}
    async with running(parts):
        await until(lambda: parts.store.looks > 5, "some looks")
    assert parts.store.claims == []


async def test_it_looks_when_the_first_is_due_rather_than_at_its_pace() -> None:
    parts = Parts(look_seconds=600.0)
    parts.store.due = {1: 0.05}
    async with running(parts):
        await until(lambda: parts.store.looks == 1, "the first look")
        parts.store.due, parts.store.rows = {}, [row(1)]
        await until(lambda: parts.dispatcher.offered, "the delivery")


async def test_a_full_backlog_is_drained_without_pauses() -> None:
    parts = Parts(look_seconds=1.0)
    parts.store.rows = [row(n) for n in range(100)]
    watch = Stopwatch()
    async with running(parts):
        await until(lambda: len(parts.dispatcher.offered) == 100, "all of them")
    assert watch.seconds < 5.0  # 10 at its usual pace


async def test_one_event_for_two_endpoints_is_read_once(parts: Parts) -> None:
    parts.dispatcher.rooms = {1: 10, 2: 10}
    parts.store.rows = [row(7), row(7, endpoint=2), row(3, endpoint=2)]
    async with running(parts):
        await until(lambda: len(parts.dispatcher.offered) == 3, "all of them")
    assert parts.store.ranges == [(DAY + timedelta(seconds=3), DAY + timedelta(seconds=7))]
    short = next(delivery for delivery in parts.dispatcher.offered if delivery.endpoint.id == 2)
    assert short.start_by - short.since == pytest.approx(LEASE - 5.0 - START_MARGIN)


async def test_an_event_that_retention_took_ends_rejected(parts: Parts) -> None:
    parts.store.rows = [row(7, attempts=2), row(8)]
    parts.store.gone = {7}
    async with running(parts):
        await until(lambda: parts.recorder.results and parts.dispatcher.offered, "both")
    (result,) = parts.recorder.results
    assert result.attempt is None
    assert result.outcome == Ended("rejected", "event_missing")
    assert (result.delivery.event.id, result.delivery.attempts, result.delivery.batch) == (7, 2, None)
    assert [delivery.event.id for delivery in parts.dispatcher.offered] == [8]


async def test_an_endpoint_that_our_files_do_not_name_is_not_claimed_for(parts: Parts) -> None:
    parts.dispatcher.rooms = {1: 10, 3: 10}
    parts.store.rows = [row(7, endpoint=3), row(8)]
    async with running(parts):
        await until(lambda: parts.dispatcher.offered, "the other")
    assert [delivery.event.id for delivery in parts.dispatcher.offered] == [8]
    assert [[wanted[0] for wanted in claim] for claim in parts.store.claims] == [[1]]
    assert parts.recorder.results == []


async def test_a_row_whose_endpoint_goes_while_it_is_claimed_is_offered_so_that_it_is_put_back(parts: Parts) -> None:
    parts.store.rows = [row(7)]
    parts.store.claimed = parts.endpoints.clear
    async with running(parts):
        await until(lambda: parts.dispatcher.offered, "the row")
    assert [delivery.endpoint for delivery in parts.dispatcher.offered] == [HOOK]


async def test_a_row_whose_result_waits_to_be_written_is_not_sent_again(parts: Parts) -> None:
    parts.store.rows = [row(7), row(8), row(9), row(10)]
    made = row(7).attempts
    parts.recorder.waiting = {(7, 1, made), (8, 2, made), (10, 1, made - 1)}  # of 10 the row has the attempt already

    def written() -> None:
        parts.recorder.waiting = {(9, 1, made)}  # and 7 is in the database now, behind the snapshot of the claim

    parts.store.claimed = written
    async with running(parts):
        await until(lambda: parts.dispatcher.offered, "the others")
    assert [delivery.event.id for delivery in parts.dispatcher.offered] == [8, 10]


async def test_a_row_whose_endpoint_changes_while_it_is_claimed_is_sent_to_the_new_one(parts: Parts) -> None:
    changed = replace(HOOK, timeout=7.0)
    parts.store.rows = [row(7)]
    parts.store.claimed = lambda: parts.endpoints.update({1: changed})
    async with running(parts):
        await until(lambda: parts.dispatcher.offered, "the row")
    (delivery,) = parts.dispatcher.offered
    assert delivery.endpoint is changed
    assert delivery.start_by == pytest.approx(time.monotonic() + LEASE - 7.0 - START_MARGIN, abs=5.0)


@pytest.mark.parametrize("method", ["owing", "claim", "heads"])
@pytest.mark.parametrize("error", [StoreUnavailable("gone"), SchemaMismatch("older")])
async def test_it_goes_on_when_the_database_comes_back(parts: Parts, method: str, error: Exception) -> None:
    parts.store.troubles = {method: [error] * 3}
    parts.store.rows = [row(n) for n in range(40)]
    async with running(parts):
        await until(lambda: not parts.store.troubles[method] and not parts.store.rows, "the database")
        # Rows whose events could not be read are left to their leases.
        expected = 40 - (30 if method == "heads" else 0)
        await until(lambda: len(parts.dispatcher.offered) == expected, "the rest")


async def test_stop_ends_a_long_pause() -> None:
    async with asyncio.timeout(HANGS), running(Parts(look_seconds=600.0)) as parts:
        await until(lambda: parts.store.looks, "a look")


async def test_who_owes_is_not_asked_for_more_than_a_part_of_the_time(parts: Parts) -> None:
    class Slow(Store):
        async def owing(self) -> dict[int, float]:
            self.rows.append(row(len(self.claims)))  # there is always more
            await asyncio.sleep(0.01)
            return await super().owing()

    slow = Slow()
    parts.retrier = Retrier(slow, slow, parts.dispatcher, parts.recorder, parts.endpoints.get, look_seconds=0.001)
    async with running(parts):
        began = time.monotonic()
        await until(lambda: slow.looks == 6, "some looks")
        assert time.monotonic() - began > 5 * 0.01 * (1 + retrier.RESTRAINT) * 0.9


async def test_thousands_that_owe_are_looked_at_some_at_a_time() -> None:
    asked: list[int] = []

    class Room(Dispatcher):
        def claimable(self, endpoint_id: int) -> tuple[int, float]:
            asked.append(endpoint_id)
            return 0, 0.0

    store = Store()
    store.due = dict.fromkeys(range(1, 4_001), -1.0)
    looking = asyncio.create_task(Retrier(store, store, Room(), Recorder(), lambda _: HOOK)._look())
    most, before = 0, 0
    while not looking.done():
        await asyncio.sleep(0)
        most, before = max(most, len(asked) - before), len(asked)
    await looking
    assert asked == list(range(1, 4_001))
    assert most <= AT_A_TIME


async def test_of_each_tenant_is_claimed_what_there_is_room_for_and_its_endpoints_take_turns() -> None:
    store, dispatcher = Store(), Dispatcher()
    store.due = dict.fromkeys(range(1, 7), -1.0)
    dispatcher.rooms = dict.fromkeys(store.due, 10)
    dispatcher.rooms_of = {"flood": 15, "full": 0}
    tenants = {1: "flood", 2: "flood", 3: "flood", 4: "other", 5: "full", 6: "flood"}
    looking = Retrier(store, store, dispatcher, Recorder(), lambda id_: replace(HOOK, id=id_, tenant=tenants[id_]))
    for _ in range(4):
        await looking._look()
    wanted = [[(id_, room) for id_, room, *_ in asked] for asked in store.claims]
    assert [sum(room for id_, room in asked if tenants[id_] == "flood") for asked in wanted] == [15] * 4
    assert all((4, 10) in asked for asked in wanted)
    assert {id_ for asked in wanted for id_, _ in asked} == {1, 2, 3, 4, 6}
