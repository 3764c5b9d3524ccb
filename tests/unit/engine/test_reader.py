"""The log becomes deliveries: what is cut, adopted, opened, waited for and given back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Literal

import pytest
from structlog.testing import capture_logs

from tests.endpoints import HOOK
from tests.waiting import HANGS, until
from webhookd.engine.intake import deferred, fanout, outage, polling, reader
from webhookd.engine.intake.outage import Outage
from webhookd.engine.intake.reader import Reader
from webhookd.engine.state import Heartbeat, Subscriptions
from webhookd.errors import Moved, OtherPlace, SchemaMismatch, StoreForbidden, StoreRefused, StoreUnavailable
from webhookd.model import Batch, Delivery, Endpoint, Event, Postponed, Result, Window
from webhookd.policy.cutting import Cut, Share
from webhookd.store.wakeup import WakeUp as RealWakeUp

DAY = datetime(2021, 1, 27, tzinfo=UTC)
OTHER = replace(HOOK, id=2, name="other")


def batch(number: int, *events: int, claims: int = 1, parked: int = 0) -> Batch:
    return Batch(number, 7, 1000.0 + number, list(events), DAY, DAY, claims, parked)


class Log:
    """A store whose cuts and orphans are handed out one list at a time; `troubles` are raised first, by method."""

    def __init__(self) -> None:
        self.cuts: list[list[Batch]] = []
        self.orphans: list[list[Batch]] = []
        self.settled: set[tuple[int, int]] = set()
        self.troubles: dict[str, list[Exception]] = {}
        self.poison: dict[int, Exception] = {}  # by event: what reading a batch with it raises, until it is taken away
        self.aside: dict[int, str] = {}
        self.calls: list[str] = []
        self.shares: list[Share] = []
        self.tenants: dict[int, str] = {}
        self.metadata: dict[int, bytes] = {}
        self.drawn: str | None = None
        self.adopt_arguments: list[tuple[int, list[int], float]] = []
        self.along: list[tuple[int, int]] = []  # how many heads were asked for, with payloads of so many bytes
        self.during_cuts: list[Callable[[], None]] = []
        self.refusals: list[bool] = []  # another has the log

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.troubles.get(name):
            raise self.troubles[name].pop(0)

    async def cut(self, owner: int, share: Share) -> Cut:
        assert owner == 42
        self.shares.append(share)
        self._call("cut")
        found = self.cuts.pop(0) if self.cuts and share.most else []
        if self.during_cuts:
            self.during_cuts.pop(0)()  # committed behind the snapshot of this cut
        await asyncio.sleep(0)
        return Cut(found, drawn=self.drawn, more=self.refusals.pop(0) if self.refusals else False)

    async def adopt(
        self, owner: int, low: int, mine: Iterable[int], *, steady_until: float, dead_after: float, most: int
    ) -> list[Batch]:
        self.adopt_arguments.append((low, list(mine), steady_until))
        self._call("adopt")
        return self.orphans.pop(0) if self.orphans else []

    async def known(self, batch: Batch) -> set[tuple[int, int]]:
        self._call("known")
        return self.settled

    async def set_aside(self, unreadable: Mapping[int, str]) -> None:
        self._call("set_aside")
        self.aside |= unreadable

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime, along: int) -> list[Event]:
        self._call("heads")
        self.along.append((len(ids), along))
        for id_ in ids:
            if id_ in self.poison:
                raise self.poison[id_]
        return [
            Event(id_, f"evt_{id_}", DAY, "order.created", self.tenants.get(id_, ""), None, text, None, 2, unread)
            for id_ in sorted(ids)
            for text, unread in [self.heads_of(id_)]
        ]

    def heads_of(self, id_: int) -> tuple[bytes | None, int]:
        """Metadata, and how much of it is read only when it is asked for."""
        text = self.metadata.get(id_)
        return (None, len(text)) if text and len(text) > 100_000 else (text, 0)

    async def whole(self, event: Event) -> Event:
        self._call("whole")
        return event._replace(metadata=self.metadata[event.id], unread=0)


class WakeUp:
    """A wake-up that the test rings; `rest` is what it answers."""

    def __init__(self, rest: Literal["sleep", "listen", "poll"] = "sleep") -> None:
        self.rung = asyncio.Event()
        self.rest: Literal["sleep", "listen", "poll"] = rest
        self.asleep = False
        self.calls: list[str] = []

    def request(self) -> Literal["sleep", "listen", "poll"]:
        self.calls.append("request")
        self.asleep = True
        return self.rest

    def release(self) -> None:
        self.calls.append("release")
        self.asleep = False


class Dispatcher:
    """Takes `room` deliveries, then no more until the test makes room."""

    def __init__(self, room: int = 10_000) -> None:
        self.room_freed = asyncio.Event()
        self.room = room
        self.offered: list[Delivery] = []
        self.full: set[str] = set()

    def room_for(self, tenant: str) -> int:
        return self.room if tenant not in self.full else 0

    def offer(self, delivery: Delivery) -> None:
        assert self.room > 0, "offered although there was no room"
        self.room -= 1
        self.offered.append(delivery)

    def free(self, room: int) -> None:
        self.room += room
        self.room_freed.set()

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(delivery.event.id, delivery.endpoint.id) for delivery in self.offered]


class Parking:
    """Knows who is parked at which version only once it is asked to catch up."""

    def __init__(self) -> None:
        self.versions: dict[int, frozenset[int]] = {}
        self.version = -1
        self.is_parking = False

    async def catch_up(self, version: int) -> None:
        await asyncio.sleep(0)
        self.version = max(self.version, version)

    def by_cursor(self, batch: int) -> frozenset[int]:
        return self.versions.get(self.version, frozenset())


class Recorder:
    """Ends batches at once."""

    def __init__(self) -> None:
        self.flushed = asyncio.Event()
        self.results: list[Result] = []

    def put(self, result: Result) -> None:
        self.results.append(result)

    def settle(self, batch: Batch | Window) -> None:
        batch.open -= 1
        if batch.open == 0:
            batch.recorded = True
        self.flushed.set()


class Parts:
    """A reader between fakes."""

    def __init__(self, endpoints: tuple[Endpoint, ...], rescue_seconds: float, room: int) -> None:
        self.log = Log()
        self.wakeup = WakeUp()
        self.dispatcher = Dispatcher(room)
        self.recorder = Recorder()
        self.parking = Parking()
        self.heartbeat, self.subscriptions, self.outage = Heartbeat(), Subscriptions(42), Outage()
        self.reader = Reader(
            self.log,
            self.wakeup,
            self.dispatcher,
            self.recorder,
            self.parking,
            self.heartbeat,
            self.subscriptions,
            self.outage,
            dead_after=15.0,
            rescue_seconds=rescue_seconds,
        )
        self.subscriptions.endpoints_for = lambda _: endpoints


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "AWAY_FIRST", 0.001)
    monkeypatch.setattr(reader, "AWAY_MOST", 0.002)
    monkeypatch.setattr(deferred, "DEFER_FIRST", 0.001)
    monkeypatch.setattr(deferred, "DEFER_MOST", 0.002)
    monkeypatch.setattr(polling, "NAP", 0.02)


@asynccontextmanager
async def reading(
    *prepared: list[Batch],
    endpoints: tuple[Endpoint, ...] = (HOOK,),
    orphans: Sequence[list[Batch]] = (),
    rescue_seconds: float = 600.0,
    room: int = 10_000,
    troubles: dict[str, list[Exception]] | None = None,
) -> AsyncIterator[Parts]:
    """A reader that runs, and is stopped in order at the end."""
    parts = Parts(endpoints, rescue_seconds, room)
    parts.log.cuts += prepared
    parts.log.orphans += orphans
    parts.log.troubles = troubles or {}
    async with asyncio.TaskGroup() as group:
        group.create_task(parts.reader.run())
        yield parts
        parts.reader.stop()


async def test_every_event_is_offered_to_every_endpoint_in_order() -> None:
    mine = batch(1, 11, 12, 13)
    async with reading([mine], endpoints=(HOOK, OTHER)) as parts:
        await until(lambda: mine.open == 6, "all offered and the reader done with it")
        assert parts.dispatcher.pairs == [(11, 1), (11, 2), (12, 1), (12, 2), (13, 1), (13, 2)]
        first = parts.dispatcher.offered[0]
        assert (first.batch, first.attempts, first.clock_from, first.start_by) == (mine, 0, 1001.0, float("inf"))
        assert first.since <= time.monotonic()
        assert "known" not in parts.log.calls  # a first claim has no past
        assert parts.reader.unfinished == [1]


async def test_a_parked_endpoint_is_left_to_its_cursor() -> None:
    """As of the moment when the batch was cut: what was known before is not enough."""
    parts = Parts((HOOK, OTHER), 600.0, 100)
    parts.parking.versions = {3: frozenset({1})}
    parts.log.cuts += [[batch(1, 11, parked=2)], [batch(2, 12, parked=3)]]
    async with asyncio.TaskGroup() as group:
        group.create_task(parts.reader.run())
        await until(lambda: len(parts.dispatcher.pairs) == 3, "both batches")
        parts.reader.stop()
    assert parts.dispatcher.pairs == [(11, 1), (11, 2), (12, 2)]


async def test_others_have_their_turn_while_a_large_batch_is_opened() -> None:
    seen: set[int] = set()
    async with reading([batch(1, *range(1000))]) as parts:
        while len(parts.dispatcher.offered) < 1000:
            seen.add(len(parts.dispatcher.offered))
            await asyncio.sleep(0)
    assert len(seen) > 5


async def test_small_payloads_come_along_with_a_few_events_and_with_no_more() -> None:
    few, more = batch(1, *range(fanout.FEW)), batch(2, *range(100, 101 + fanout.FEW))
    async with reading([few], [more]) as parts:
        await until(lambda: len(parts.log.along) == 2, "both")
    assert parts.log.along == [(fanout.FEW, fanout.SMALL), (fanout.FEW + 1, -1)]


async def test_a_batch_that_nobody_wants_ends_at_once() -> None:
    mine = batch(1, 11)
    async with reading([mine], [batch(2)], endpoints=()) as parts:
        await until(lambda: mine.recorded, "the end of the batch")
        await until(lambda: not parts.reader.unfinished, "the end of the empty batch")
    assert parts.dispatcher.offered == []


async def test_a_ring_during_a_cut_survives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "NAP", 600.0)
    async with reading() as parts:
        await until(lambda: parts.wakeup.asleep, "a sleeping reader")

        def commit() -> None:
            number = 1 + len(parts.dispatcher.offered)
            parts.log.cuts.append([batch(number, number)])
            parts.wakeup.rung.set()

        for _ in range(2):
            offered = len(parts.dispatcher.offered)
            parts.log.during_cuts = [commit]
            parts.wakeup.rung.set()
            await until(lambda n=offered: len(parts.dispatcher.offered) > n, "the event that came during a cut")  # type: ignore[misc]


async def test_a_ring_that_was_answered_leaves_the_reader_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "NAP", 600.0)
    async with reading() as parts:
        await until(lambda: parts.wakeup.asleep, "a sleeping reader")
        parts.wakeup.rung.set()
        await asyncio.sleep(0.1)
        assert len(parts.log.shares) < 20  # it does not spin


async def test_what_rings_for_nothing_is_listened_to_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """And as before once it rang for something."""
    waits: list[float] = []

    async def wait_for(event: asyncio.Event, seconds: float) -> bool:
        waits.append(seconds)
        return event.is_set()

    monkeypatch.setattr(polling, "wait_for", wait_for)
    wakeup = WakeUp()
    resting = polling.Polling(wakeup, asyncio.Event())
    monkeypatch.setattr(wakeup, "request", lambda: "sleep")

    async def look(events: int) -> None:
        wakeup.rung.set()
        resting.look()
        resting.found(events)
        await resting.sleep()

    await look(0)  # it lies down
    waits.clear()
    for _ in range(10):
        await look(0)
    assert waits[1::2] == [polling.NAP] * 10, "and is woken"
    assert waits[::2] == [min(polling.LULL_FIRST * 2**n, polling.LULL_MOST) for n in range(1, 11)]
    waits.clear()
    await look(1)
    resting.look()
    await resting.sleep()
    assert waits == [polling.LULL_FIRST, polling.NAP, polling.NAP], "at last nobody rang"


async def test_it_looks_again_soon_where_another_had_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "NAP", 600.0)
    async with reading() as parts:
        await until(lambda: parts.wakeup.asleep, "a sleeping reader")
        await asyncio.sleep(0.05)
        parts.log.refusals = [True] * 3
        parts.wakeup.rung.set()
        await until(lambda: not parts.log.refusals, "cuts until it is free", timeout=10)


async def test_one_that_listens_naps_between_its_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although what it is told is true of the moment alone, and it has to ask again each time."""
    waits: list[float] = []
    wakeup = RealWakeUp("")
    monkeypatch.setattr(wakeup, "_connection", SimpleNamespace(is_closed=lambda: False))

    async def wait_for(event: asyncio.Event, seconds: float) -> bool:
        waits.append(seconds)
        return event.is_set()

    monkeypatch.setattr(polling, "wait_for", wait_for)
    resting = polling.Polling(wakeup, asyncio.Event())
    for _ in range(40):
        resting.look()
        resting.found(0)
        if wakeup._wanted.is_set():  # a part of its own asks while it cuts, and another sleeps
            wakeup._wanted.clear()
            wakeup._answer = "listen"
            wakeup.rung.set()
        await resting.sleep()
    assert waits.count(polling.NAP) >= 19


async def test_a_few_events_leave_it_where_producers_ring_and_many_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "NAP", 600.0)
    async with reading() as parts:
        await until(lambda: parts.wakeup.asleep, "a sleeping reader")
        looks = len(parts.log.shares)
        parts.log.cuts.append([batch(1, 1)])
        parts.wakeup.rung.set()
        await until(lambda: parts.dispatcher.offered, "the event")
        await asyncio.sleep(0.1)
        assert "release" not in parts.wakeup.calls
        assert len(parts.log.shares) == looks + 2, "the cut that finds it, and the one after which it sleeps on"
        parts.log.cuts.append([batch(2, *range(100, 600))])
        parts.wakeup.rung.set()
        await until(lambda: "release" in parts.wakeup.calls, "it gets up")
        await until(lambda: parts.wakeup.asleep, "it sleeps again", timeout=20)


async def test_a_ring_is_answered_long_before_the_nap_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "NAP", 600.0)
    async with reading() as parts:
        for number in (1, 2, 3):
            asked = len(parts.wakeup.calls)
            await until(lambda n=asked: "request" in parts.wakeup.calls[n:] or parts.wakeup.asleep, "sleep")  # type: ignore[misc]
            parts.log.cuts.append([batch(number, number)])
            parts.wakeup.rung.set()
            await until(lambda n=number: (n, 1) in parts.dispatcher.pairs, "the event that rang")  # type: ignore[misc]


async def test_it_cuts_once_more_after_it_has_lain_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "NAP", 600.0)
    parts = Parts((HOOK,), 600.0, 10)

    class Late(WakeUp):
        def request(self) -> Literal["sleep", "listen", "poll"]:
            if not self.calls:  # committed between the cut that was empty and the lock: it rang nobody
                parts.log.cuts.append([batch(1, 11)])
            return super().request()

    late = Late()
    reading = Reader(
        parts.log,
        late,
        parts.dispatcher,
        parts.recorder,
        parts.parking,
        parts.heartbeat,
        parts.subscriptions,
        parts.outage,
        dead_after=15.0,
        rescue_seconds=600.0,
    )
    parts.subscriptions.endpoints_for = lambda _: (HOOK,)
    async with asyncio.TaskGroup() as group:
        group.create_task(reading.run())
        await until(lambda: parts.dispatcher.pairs == [(11, 1)], "the event that rang nobody")
        reading.stop()


async def test_who_is_not_woken_polls_and_finds() -> None:
    async with reading() as parts:
        parts.wakeup.rest = "poll"
        await until(lambda: "request" in parts.wakeup.calls, "a first look")
        parts.log.cuts.append([batch(1, 11)])
        await until(lambda: parts.dispatcher.pairs == [(11, 1)], "the event, without a ring")


async def test_under_load_nobody_is_asked_to_ring() -> None:
    async with reading() as parts:
        parts.log.cuts += [[batch(n, *range(n * 500, n * 500 + 500))] for n in range(1, 20)]
        parts.wakeup.rung.set()
        await until(lambda: len(parts.dispatcher.offered) == 19 * 500, "all of them")
        calls = parts.wakeup.calls
        last = len(calls) - 1 - calls[::-1].index("release")
        assert "request" not in calls[calls.index("release") : last]
        await until(lambda: parts.wakeup.asleep, "sleep when the load is over")


async def test_no_room_stops_the_reading_and_freed_room_resumes_it() -> None:
    first, second = batch(1, 1, 2, 3), batch(2, 4, 5)
    async with reading([first, second], room=2) as parts:
        await until(lambda: len(parts.dispatcher.offered) == 2, "as many as there is room for")
        cuts = len(parts.log.shares)
        parts.dispatcher.free(1)
        await until(lambda: len(parts.dispatcher.offered) == 3, "one more")
        assert len(parts.log.shares) == cuts  # what is cut but not opened is handed out first
        parts.dispatcher.free(7)
        await until(lambda: len(parts.dispatcher.offered) == 5, "the rest")
        await until(lambda: len(parts.log.shares) > cuts, "the next cut")


async def test_a_settled_delivery_of_an_adopted_batch_is_not_repeated() -> None:
    mine = batch(5, 11, 12, claims=2)
    parts_settled = {(11, 1), (12, 2)}
    async with reading(endpoints=(HOOK, OTHER), rescue_seconds=0.01) as parts:
        parts.log.settled = parts_settled
        parts.log.orphans.append([mine])
        await until(lambda: mine.open == 2, "the rest of it")
        assert parts.dispatcher.pairs == [(11, 2), (12, 1)]


async def test_it_adopts_again_at_once_while_it_finds_some() -> None:
    orphans = [[batch(n, n, claims=2)] for n in range(1, 30)]
    async with reading(orphans=orphans) as parts:  # the pause between two rescues is ten minutes
        await until(lambda: len(parts.dispatcher.offered) == 29, "all of them")


async def test_it_says_whose_the_batches_were_that_it_adopts() -> None:
    orphans = [replace(batch(n, n, claims=2), left_by=left_by) for n, left_by in ((1, 8), (2, None), (3, 7), (4, 8))]
    with capture_logs() as logs:
        async with reading(orphans=[orphans]) as parts:
            await until(lambda: len(parts.dispatcher.offered) == 4, "all of them")
    (told,) = (line for line in logs if line["event"] == "batches_adopted")
    assert (told["batches"], told["first"], told["of_daemons"], told["given_back"]) == (4, 1, [7, 8], 1)


async def test_it_says_once_that_the_database_is_away_and_once_that_it_is_back() -> None:
    with capture_logs() as logs:
        async with reading() as parts:
            await until(lambda: parts.outage.is_over, "a first answer")
            for times in (1, 2):
                parts.log.troubles["cut"] = [StoreUnavailable("gone") for _ in range(3)]
                parts.wakeup.rung.set()
                await until(lambda n=times: len(logs) == 1 + 2 * n, "it is away, and back")  # type: ignore[misc]
    told = [(line["event"], line["log_level"]) for line in logs]
    assert told == [("reading", "info"), *[("database_away", "warning"), ("database_back", "info")] * 2]
    assert [line["seconds"] >= 0 for line in logs if line["event"] == "database_back"] == [True, True]


async def test_another_reason_for_the_same_outage_is_told_as_well_and_a_right_that_is_missing_is_none() -> None:
    """What comes first, such as the end of a connection, is rarely what lasts, such as a password that is wrong."""
    reasons = ["ended", "ended", "refused", "ended", *map(str, range(20))]
    with capture_logs() as logs:
        async with reading() as parts:
            await until(lambda: parts.outage.is_over, "a first answer")
            for troubles in ([StoreUnavailable(each) for each in reasons], [StoreForbidden("no")] * 2):
                parts.log.troubles["cut"] = list(troubles)
                parts.reader.setbacks._most = 0.001
                parts.wakeup.rung.set()
                await until(lambda: not parts.log.troubles["cut"] and not parts.reader.problem, "that it goes on")
    told = [(line["event"], line.get("reason")) for line in logs]
    told_of = ["ended", "refused", *map(str, range(outage.MOST_TOLD - 2))]
    assert told == [
        ("reading", None),
        *(("database_away", reason) for reason in told_of),
        ("database_back", None),
        ("part_failed", "no"),
        ("part_works", None),
    ]


async def test_it_tells_which_batches_it_has_and_what_a_heartbeat_told() -> None:
    async with reading([batch(1, 11), batch(2, 12)], rescue_seconds=0.01) as parts:
        await until(
            lambda: [each[1] for each in parts.log.adopt_arguments[-1:]] == [[1, 2]], "a rescue that knows its batches"
        )
        assert parts.log.adopt_arguments[-1][0] == 0
        assert parts.log.adopt_arguments[-1][2] == 0.0
        parts.heartbeat.low = 1
        parts.heartbeat.steady_until = 7.5
        await until(lambda: parts.log.adopt_arguments[-1] == (1, [1, 2], 7.5), "what a heartbeat told")
        batches = {delivery.batch for delivery in parts.dispatcher.offered if delivery.batch}
        for each in batches:
            parts.recorder.settle(each)
        await until(lambda: parts.log.adopt_arguments[-1][1] == [], "finished batches are forgotten")
        assert parts.reader.unfinished == []


async def test_a_batch_that_may_have_killed_its_daemons_is_opened_one_event_at_a_time() -> None:
    mine = batch(5, 11, 12, 13, claims=reader.ONE_BY_ONE + 1)
    async with reading(orphans=[[mine]], endpoints=(HOOK, OTHER)) as parts:
        for at, pair in enumerate([(11, 1), (11, 2), (12, 1), (12, 2), (13, 1), (13, 2)], start=1):
            await until(lambda p=pair: parts.dispatcher.pairs[-1:] == [p], "the next delivery")  # type: ignore[misc]
            assert mine.open == 2  # the delivery, and the reader
            await asyncio.sleep(0.05)
            assert len(parts.dispatcher.offered) == at
            parts.recorder.settle(mine)
        await until(lambda: mine.recorded, "the end of the batch")


async def test_such_a_batch_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "NAP", 0.001)
    slow = [batch(5, 11, 12, claims=reader.ONE_BY_ONE + 1), batch(6, 13, claims=reader.ONE_BY_ONE + 1)]
    async with reading(orphans=[slow]) as parts:
        await until(lambda: len(parts.dispatcher.offered) == 2, "the first delivery of each")
        parts.log.cuts.append([batch(7, *range(500, 900))])
        parts.wakeup.rung.set()
        await until(lambda: len(parts.dispatcher.offered) == 402, "all of the other batch")
        assert slow[0].open == 2


async def test_a_large_cut_does_not_delay_what_is_cut_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CUT_BETWEEN", 0.0)
    async with reading([batch(1, *range(2000))], room=1000) as parts:
        await until(lambda: len(parts.dispatcher.offered) == 1000, "as many as there is room for")
        parts.log.cuts.append([batch(3, 5001, 5002)])
        for _ in range(10):
            parts.dispatcher.free(100)
            await until(lambda: parts.dispatcher.room == 0, "more of it")
        assert {(5001, 1), (5002, 1)} <= set(parts.dispatcher.pairs[:1500])
        of_large = [event for event, _ in parts.dispatcher.pairs if event < 5000]
        assert of_large == sorted(of_large)


async def test_a_surplus_waits_until_nothing_else_of_its_tenant_is_to_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CUT_BETWEEN", 0.0)
    async with reading([batch(1, *range(1000))], room=900) as parts:
        shares = parts.log.shares
        await until(lambda: len(parts.dispatcher.offered) == 900, "as many as there is room for")
        assert (shares[0].surplus, shares[0].busy) == (reader.PIECE, [])
        assert {tuple(share.busy) for share in shares[2:]} == {("",)}
        parts.dispatcher.free(10_000)
        await until(lambda: shares[-1].surplus == reader.PIECE and not shares[-1].busy, "it to be asked for")
        parts.parking.is_parking = True  # it may be for that endpoint, whose cursor will read it
        await until(lambda: shares[-1].surplus == 0, "a cut that leaves it")
        await asyncio.sleep(0.05)
        assert shares[-1].surplus == 0
        parts.parking.is_parking = False
        await until(lambda: shares[-1].surplus == reader.PIECE, "it to be asked for again")


async def test_tenants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also within a batch, and whoever has no room stops nobody."""
    mine = batch(1, *range(3000))
    async with reading(room=0) as parts:
        parts.log.tenants = {**dict.fromkeys(range(500, 3000), "b"), 2999: "c"}
        parts.log.cuts.append([mine])
        parts.dispatcher.free(400)
        await until(lambda: parts.dispatcher.room == 0, "as many as there is room for")
        assert (2999, 1) in parts.dispatcher.pairs[:200]
        assert {event < 500 for event, _ in parts.dispatcher.pairs} == {True, False}
        parts.dispatcher.full = {"b"}
        offered = len(parts.dispatcher.offered)
        parts.dispatcher.free(10_000)
        await until(lambda: parts.log.shares[-1:] and parts.log.shares[-1].busy == ["b"], "all of the others")
        assert {event < 500 for event, _ in parts.dispatcher.pairs[offered:]} == {True}
        assert parts.log.shares[-1].full == ["b"]
        parts.log.cuts.append([batch(2, 1)])
        await until(lambda: parts.dispatcher.pairs[-1] == (1, 1), "what comes later")
        parts.dispatcher.full = set()
        await until(lambda: len(parts.dispatcher.offered) == 3001, "the rest")
    assert mine.open == 3000
    assert sorted(parts.dispatcher.pairs) == sorted([*((event, 1) for event in range(3000)), (1, 1)])


@pytest.mark.parametrize("size", [10, 2_000, 200_000])
async def test_metadata_is_there_to_be_matched_and_not_kept_when_it_is_large(size: int) -> None:
    async with reading() as parts:
        seen: list[bytes | None] = []

        def endpoints_for(event: Event) -> tuple[Endpoint, ...]:
            seen.append(event.metadata)
            return HOOK, OTHER

        parts.subscriptions.endpoints_for = endpoints_for
        text = b'"' + b"x" * size + b'"'
        parts.log.metadata = {1: text}
        parts.log.cuts.append([batch(1, 1)])
        parts.wakeup.rung.set()
        await until(lambda: len(parts.dispatcher.offered) == 2, "both")
        assert seen == [text]  # once
        first, second = (delivery.event for delivery in parts.dispatcher.offered)
        assert first is second
        assert (first.metadata, first.unread) == ((text, 0) if size == 10 else (None, len(text)))


async def test_large_heads_fill_the_share_of_a_tenant() -> None:
    async with reading(room=0) as parts:
        parts.log.metadata = dict.fromkeys(range(100), b"x" * 60_000)
        parts.log.cuts.append([batch(1, *range(100))])
        parts.dispatcher.free(10)
        await until(lambda: parts.dispatcher.room == 0, "some")
        parts.dispatcher.full = {""}
        parts.dispatcher.free(10)
        await until(lambda: parts.log.shares[-1].full == [""], "it to be full")
        assert parts.log.shares[-1].most == reader.LEAST_PER_CUT


async def test_others_have_their_turn_while_events_are_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "MATCHING", 0.0)
    async with reading() as parts:
        matched: list[int] = []
        seen: set[int] = set()

        def endpoints_for(event: Event) -> tuple[Endpoint, ...]:
            matched.append(event.id)
            return ()

        parts.subscriptions.endpoints_for = endpoints_for
        parts.log.cuts.append([batch(1, *range(500))])
        parts.wakeup.rung.set()
        while len(matched) < 500:
            seen.add(len(matched))
            await asyncio.sleep(0)
    assert len(seen) > 400


async def test_it_draws_on_after_whose_surplus_was_drawn_last() -> None:
    async with reading() as parts:
        parts.log.drawn = "acme"
        parts.log.cuts.append([batch(1, 1)])
        parts.wakeup.rung.set()
        await until(lambda: parts.log.shares[-1:] and parts.log.shares[-1].after == "acme", "a cut that knows")
        parts.log.drawn = None
        parts.wakeup.rung.set()
        await until(lambda: len(parts.log.shares) > 5, "more cuts")
        assert parts.log.shares[-1].after == "acme"


async def test_adoption_and_cuts_stop_each_other_for_no_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_IN_HAND", 100)
    orphans = [[batch(n, n, claims=2)] for n in range(1000, 1030)]
    async with reading(batch_of_a_full_one := [batch(1, *range(500))], orphans=orphans, rescue_seconds=0.001) as parts:
        parts.dispatcher.full = {"a"}
        parts.log.tenants = dict.fromkeys(range(500), "a")
        parts.log.cuts += [[batch(n, n)] for n in range(2000, 2020)]
        await until(lambda: len(parts.dispatcher.offered) == 50, "all that is not for whoever has no room")
        assert batch_of_a_full_one[0].open == 1
        sizes = {share.most for share in parts.log.shares[2:]}
        assert sizes == {reader.LEAST_PER_CUT}  # the more is in hand, the less anybody gets


async def test_nothing_more_is_taken_while_enough_is_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CUT_BETWEEN", 0.0)
    monkeypatch.setattr(reader, "HARD_LIMIT", 1500)
    cuts = [[batch(n, *range(n * 1000, n * 1000 + 1000))] for n in range(1, 5)]
    async with reading(*cuts, rescue_seconds=0.001, room=100) as parts:
        await until(lambda: len(parts.dispatcher.offered) == 100, "as many as there is room for")
        for _ in range(5):
            parts.dispatcher.free(100)
            await until(lambda: parts.dispatcher.room == 0, "more of it")
        adopted, asked = parts.log.calls.count("adopt"), len(parts.log.shares)
        assert len(parts.log.cuts) == 2
        for _ in range(3):
            parts.dispatcher.free(100)
            await until(lambda: parts.dispatcher.room == 0, "more of it")
        assert parts.log.calls.count("adopt") == adopted
        assert {(share.most, share.surplus) for share in parts.log.shares[asked:]} == {(0, 0)}
        parts.dispatcher.free(10_000)
        await until(lambda: not parts.log.cuts, "the rest")


async def test_a_batch_that_keeps_killing_goes_to_the_backlog() -> None:
    mine = batch(5, 11, 12, claims=reader.ALL_TO_BACKLOG + 1)
    async with reading(orphans=[[mine]]) as parts:

        def put(result: Result) -> None:
            parts.recorder.results.append(result)
            parts.recorder.settle(mine)

        parts.recorder.put = put  # type: ignore[method-assign]
        await until(lambda: mine.recorded, "the end of the batch")
        assert parts.dispatcher.offered == []
        assert [(r.delivery.event.id, r.attempt, r.outcome) for r in parts.recorder.results] == [
            (11, None, Postponed(0.0)),
            (12, None, Postponed(0.0)),
        ]


@pytest.mark.parametrize("method", ["cut", "adopt", "heads", "known"])
@pytest.mark.parametrize("error", [StoreUnavailable("gone"), SchemaMismatch("older")])
async def test_it_goes_on_when_the_database_comes_back(method: str, error: Exception) -> None:
    new, old = batch(2, 21, 22), batch(1, 11, claims=2)
    async with reading([new], orphans=[[old]], troubles={method: [error] * 5}) as parts:
        await until(lambda: len(parts.dispatcher.offered) == 3, "everything, once the database is back")
        assert sorted(parts.dispatcher.pairs) == [(11, 1), (21, 1), (22, 1)]  # and each once
        await until(lambda: parts.outage.is_over, "it to know that, from the next cut")
    assert (new.open, old.open) == (2, 1)


@pytest.mark.parametrize(
    "error", [StoreUnavailable("an I/O error"), StoreRefused("damaged"), SchemaMismatch("older"), KeyError("a bug")]
)
async def test_a_batch_that_cannot_be_read_lets_all_others_pass_and_is_told_and_tried_again(error: Exception) -> None:
    with capture_logs() as logs:
        async with reading([batch(1, 11, 12), batch(2, 21)]) as parts:
            parts.log.poison[12] = error
            await until(lambda: parts.log.calls.count("heads") > 5, "some tries")
            for number in range(3, 6):
                parts.log.cuts.append([batch(number, number * 10)])
                parts.wakeup.rung.set()
                await until(lambda n=number: (n * 10, 1) in parts.dispatcher.pairs, "what was cut after it")  # type: ignore[misc]
            assert parts.dispatcher.pairs == [(21, 1), (30, 1), (40, 1), (50, 1)]
            assert "batch 1 cannot be read, 2 events: " in parts.reader.problem
            assert parts.outage.is_over
            assert parts.reader.unfinished == [1, 2, 3, 4, 5]  # it is given back if we stop now
            parts.log.poison.clear()
            await until(lambda: len(parts.dispatcher.pairs) == 6, "it, once it can be read")
            assert parts.dispatcher.pairs[-2:] == [(11, 1), (12, 1)]
            assert parts.reader.problem == ""
    told = [line for line in logs if line["event"] == "batch_waits"]
    assert {(line["batch"], line["events"]) for line in told} == {(1, 2)}
    assert len(told) >= 5


async def test_while_nothing_can_be_read_no_more_is_taken_than_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CUT_BETWEEN", 0.0)
    monkeypatch.setattr(reader, "MOST_DEFERRED", 3)
    with capture_logs():
        async with reading(*([batch(n, n * 10, n * 10 + 1)] for n in range(1, 4)), rescue_seconds=0.001) as parts:
            parts.log.poison |= {n * 10: StoreUnavailable("an I/O error") for n in range(1, 4)}
            await until(lambda: parts.reader._deferred.events >= 4, "two batches that wait")
            await until(lambda: parts.log.shares[-1].most == 0, "no more to be wanted")
            adopted, asked = parts.log.calls.count("adopt"), len(parts.log.shares)
            await until(lambda: len(parts.log.shares) > asked + 5, "some looks")
            assert {(share.most, share.surplus) for share in parts.log.shares[asked:]} == {(0, 0)}
            assert parts.log.calls.count("adopt") <= adopted + 1  # which may have been under way
            parts.log.poison.clear()
            await until(lambda: len(parts.dispatcher.pairs) == 6, "all, once they can be read")
            await until(lambda: parts.log.shares[-1].most > 0, "more to be wanted")


async def test_a_batch_that_cannot_be_read_is_tried_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "DEFER_FIRST", 1.0)
    monkeypatch.setattr(deferred, "DEFER_MOST", 60.0)
    with capture_logs() as logs:
        async with reading([batch(1, 11)]) as parts:
            parts.log.poison[11] = StoreUnavailable("an I/O error")
            for tries in range(1, 9):
                await until(lambda n=tries: parts.log.calls.count("heads") == n, "a try")  # type: ignore[misc]
                await until(lambda: parts.reader._deferred._hindered[1].due < reader.FOREVER, "it to be put behind")
                parts.reader._deferred._hindered[1].due = 0.0
    assert [line["seconds"] for line in logs if line["event"] == "batch_waits"][:8] == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_bug_in_matching_sets_one_event_aside_and_costs_no_other() -> None:
    mine = batch(1, *range(10))
    parts = Parts((HOOK,), 600.0, 100)

    def endpoints_for(event: Event) -> tuple[Endpoint, ...]:
        if event.id == 4:
            raise KeyError("a bug")
        return (HOOK,)

    parts.subscriptions.endpoints_for = endpoints_for
    parts.log.cuts.append([mine])
    parts.log.troubles["set_aside"] = [StoreUnavailable("away for a moment")]
    with capture_logs():
        async with asyncio.TaskGroup() as group:
            group.create_task(parts.reader.run())
            await until(lambda: mine.open == 9, "all others, and the reader to be done with it")
            parts.reader.stop()
    assert [event for event, _ in parts.dispatcher.pairs] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert parts.log.aside == {4: "a bug of webhookd in matching: KeyError"}


@pytest.mark.parametrize("error", [StoreUnavailable("a lock"), StoreRefused("damaged"), ValueError("a bug")])
async def test_what_cannot_be_adopted_does_not_keep_it_from_cutting(error: Exception) -> None:
    with capture_logs():
        await _cuts_though_nothing_can_be_adopted(error)


async def _cuts_though_nothing_can_be_adopted(error: Exception) -> None:
    async with reading(rescue_seconds=0.01, troubles={"adopt": [error] * 1_000}) as parts:
        for number in range(1, 4):
            parts.log.cuts.append([batch(number, number)])
            parts.wakeup.rung.set()
            await until(lambda n=number: len(parts.dispatcher.offered) == n, "what is cut")  # type: ignore[misc]


@pytest.mark.parametrize("method", ["cut", "adopt", "heads"])
@pytest.mark.parametrize("error", [Moved("elsewhere"), OtherPlace("a copy"), SchemaMismatch("too new", final=True)])
async def test_what_ends_the_daemon_ends_it(method: str, error: Exception) -> None:
    parts = Parts((HOOK,), 600.0, 100)
    parts.log.cuts.append([batch(1, 11)])
    parts.log.troubles[method] = [error]
    with pytest.raises(type(error)):
        async with asyncio.timeout(10):
            await parts.reader.run()


async def test_after_a_lost_reply_it_looks_at_once_for_what_it_may_own() -> None:
    async with reading() as parts:  # the pause between two rescues is ten minutes
        await until(lambda: len(parts.log.shares) > 2, "some cuts")
        rescues = parts.log.calls.count("adopt")
        parts.log.orphans.append([batch(7, 71, claims=2)])
        parts.log.troubles["cut"] = [StoreUnavailable("the reply was lost")]
        parts.wakeup.rung.set()
        await until(lambda: parts.dispatcher.pairs == [(71, 1)], "the batch whose number never reached us")
        assert parts.log.calls.count("adopt") > rescues


async def test_a_rescue_that_fails_is_an_outage_as_well() -> None:
    with capture_logs() as logs:
        async with reading(troubles={"adopt": [StoreUnavailable("no route")] * 3}) as parts:
            await until(lambda: [line["event"] for line in logs][-1:] == ["database_back"], "it to be back")
            assert parts.outage.is_over
            assert parts.reader.problem == ""
    assert (logs[0]["event"], logs[0]["reason"]) == ("database_away", "no route")


async def test_stop_leaves_what_is_not_handed_out_unfinished() -> None:
    first, second, third = batch(1, 1), batch(2, 2, 3), batch(3, 4)
    async with reading([first, second, third], room=2) as parts:
        await until(lambda: len(parts.dispatcher.offered) == 2, "as many as there is room for")
        parts.recorder.settle(first)
        assert first.recorded
    assert parts.reader.unfinished == [2, 3]
    assert second.open == 2  # one delivery, and the reader that did not finish: it cannot end


@pytest.mark.parametrize("answer", ["sleep", "listen", "poll"])
async def test_stop_wakes_a_sleeper(
    answer: Literal["sleep", "listen", "poll"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "NAP", 600.0)
    async with asyncio.timeout(HANGS), reading() as parts:
        parts.wakeup.rest = answer
        await until(lambda: parts.wakeup.calls, "a look")
        await asyncio.sleep(0.05)
