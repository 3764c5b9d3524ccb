"""Results are written in batches, in an order that keeps them safe, and none is ever dropped."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from tests.waiting import HANGS, until
from webhookd.engine import recorder
from webhookd.engine.recorder import Recorder
from webhookd.errors import Moved, OtherPlace, StoreForbidden, StoreRefused, StoreUnavailable
from webhookd.message.formats import FORMATS
from webhookd.message.signing import SCHEMES
from webhookd.model import (
    Attempt,
    Batch,
    Delivered,
    Delivery,
    Ended,
    Endpoint,
    Event,
    Outcome,
    Postponed,
    Result,
    Retry,
    RetryPolicy,
    Window,
)

DAY = datetime(2021, 1, 27, tzinfo=UTC)
ENDPOINT = Endpoint(
    id=1,
    tenant="",
    name="hook",
    url="https://hooks.example.com/",
    events=("*",),
    format=FORMATS["raw"],
    signature=SCHEMES["none"],
    secrets=(),
    retry=RetryPolicy(),
    timeout=20.0,
    max_in_flight=10,
)
GOOD = Attempt(0.0, 1, True, 200, 5, None, None)
BAD = Attempt(0.0, 1, False, 500, 5, "http_500", b"poison")


def batch(number: int = 1) -> Batch:
    return Batch(number, 7, 0.0, [], DAY, DAY, 1, 0, open=0)


def delivery(number: int, of: Batch | None) -> Delivery:
    if of is not None:
        of.open += 1
    event = Event(number, f"evt_{number}", DAY, "order.created", "", None, None, None, 2)
    return Delivery(event, ENDPOINT, of, 0, 0.0, 0.0, 0.0)


def in_window(number: int, window: Window) -> Delivery:
    made = delivery(number, None)
    made.batch = window
    return made


def delivered(number: int, of: Batch | None) -> Result:
    return Result(delivery(number, of), GOOD, Delivered())


class Flush:
    """What one call of the store was asked to write, as it stood at that moment."""

    def __init__(
        self, results: Sequence[Result], leases: Sequence[tuple[Delivery, float]], done: Sequence[Batch | Window]
    ) -> None:
        self.results = list(results)
        self.leases = list(leases)
        self.done = [each.id for each in done if isinstance(each, Batch)]
        self.windows = [(each.batch, each.pos) for each in done if isinstance(each, Window)]
        self.rows = [result.delivery.event.id for result in results if result.delivery.batch is None]

    def __bool__(self) -> bool:
        return bool(self.results or self.leases or self.done)

    @property
    def ids(self) -> list[int]:
        return [result.delivery.event.id for result in self.results]


class Store:
    """Keeps what it is given; `trouble` may raise instead, and `gate` holds every write back."""

    def __init__(self) -> None:
        self.asked: list[Flush] = []
        self.written: list[Flush] = []
        self.trouble: Callable[[Flush], None] = lambda _: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.aside: dict[int, str] = {}

    async def set_aside(self, event_id: int, why: str) -> None:
        self.aside[event_id] = why

    async def record(
        self,
        owner: int,
        results: Sequence[Result],
        leases: Sequence[tuple[Delivery, float]],
        done: Sequence[Batch | Window],
    ) -> None:
        assert owner == 42
        flush = Flush(results, leases, done)
        self.asked.append(flush)
        await self.gate.wait()
        self.trouble(flush)
        if flush:
            self.written.append(flush)

    @property
    def ids(self) -> list[int]:
        return [id_ for flush in self.written for id_ in flush.ids]

    @property
    def done(self) -> list[int]:
        return [id_ for flush in self.written for id_ in flush.done]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "RETRY_FIRST", 0.001)
    monkeypatch.setattr(recorder, "RETRY_MOST", 0.002)


@pytest.fixture
async def store() -> Store:
    return Store()


@asynccontextmanager
async def running(store: Store, flush_seconds: float = 0.005) -> AsyncIterator[Recorder]:
    """A recorder that runs, and is stopped in order at the end."""
    recording = Recorder(store, 42, flush_seconds=flush_seconds)
    async with asyncio.TaskGroup() as group:
        group.create_task(recording.run())
        yield recording
        recording.stop()


async def test_results_are_written_together_and_the_batch_ends_with_the_last(store: Store) -> None:
    mine = batch()
    async with running(store) as recording:
        for number in range(5):
            recording.put(delivered(number, mine))
        assert recording.pending == 5
        await until(lambda: store.written, "a flush")
    (flush,) = store.written
    assert flush.ids == [0, 1, 2, 3, 4]
    assert flush.done == [1]
    assert mine.recorded
    assert recording.pending == 0
    assert recording.totals["delivered"] == 5


async def test_no_transaction_is_spent_on_nothing(store: Store) -> None:
    async with running(store) as recording:
        for number in range(3):
            recording.flushed.clear()
            recording.put(delivered(number, batch()))
            async with asyncio.timeout(HANGS):
                await recording.flushed.wait()
            await asyncio.sleep(0.03)  # several times the pause between flushes
    assert [flush.ids for flush in store.asked] == [[0], [1], [2]]


async def test_a_batch_with_something_open_does_not_end(store: Store) -> None:
    mine = batch()
    mine.open = 1  # the reader is still handing it out
    async with running(store) as recording:
        recording.put(delivered(1, mine))
        await until(lambda: store.ids == [1], "the result")
        assert store.done == []
        assert not mine.recorded
        recording.settle(mine)
        await until(lambda: mine.recorded, "the end of the batch")
    assert store.done == [1]


async def test_a_batch_is_recorded_only_when_its_results_are(store: Store) -> None:
    mine = batch()
    store.gate.clear()
    async with running(store) as recording:
        recording.put(delivered(1, mine))
        await until(lambda: store.asked, "a write under way")
        assert store.asked[0].done == [1]
        assert not mine.recorded
        assert recording.pending == 1
        store.gate.set()
        await until(lambda: mine.recorded, "the end of the batch")


async def test_a_cursor_moves_when_its_window_is_settled_and_all_before_it(store: Store) -> None:
    first, second = Window(1, 10, 3, 11, 0, open=2), Window(1, 10, 3, 12, 5, open=2)
    first.next = second
    async with running(store) as recording:
        recording.settle(second)  # the follower has handed it out
        recording.put(Result(in_window(1, second), GOOD, Delivered()))
        second.open += 1
        await until(lambda: store.ids == [1], "the result of the second")
        assert [flush.windows for flush in store.written] == [[]]
        recording.settle(first)
        recording.put(Result(in_window(2, first), GOOD, Delivered()))
        await until(lambda: second.recorded, "both windows")
    assert [flush.windows for flush in store.written] == [[], [(11, 0), (12, 5)]]


async def test_nothing_is_dropped_while_the_database_is_away(store: Store) -> None:
    mine = batch()
    mine.open = 1  # the reader is still handing it out
    refused = 0

    def away(flush: Flush) -> None:
        nonlocal refused
        if refused < 25:
            refused += 1
            raise StoreUnavailable("gone")

    store.trouble = away
    with capture_logs() as lines:
        async with running(store) as recording:
            for number in range(50):
                recording.put(delivered(number, mine))
                await asyncio.sleep(0)
            await until(lambda: refused > 3, "tries")
            for number in range(50, 100):
                recording.put(delivered(number, mine))
            recording.settle(mine)
            assert recording.pending == 100
            await until(lambda: len(store.ids) == 100, "all of them")
    assert [line["reason"] for line in lines if line["event"] == "record_waits"] == ["gone"] * 5  # 1st, 2nd, 4th …
    assert store.ids == list(range(100))  # in order, each once
    assert store.done == [1]
    assert store.written[-1].done == [1]  # never before its last result
    assert refused == 25


async def test_stop_writes_what_is_left_however_often_the_database_refuses(store: Store) -> None:
    mine = batch()
    refused = 0

    def away(flush: Flush) -> None:
        nonlocal refused
        refused += 1
        if refused < 10:
            raise StoreUnavailable("gone")

    store.trouble = away
    async with running(store, flush_seconds=60.0) as recording:
        await asyncio.sleep(0)
        for number in range(3):
            recording.put(delivered(number, mine))
        recording.lease(delivery(3, mine), 45.0)
    assert store.ids == [0, 1, 2]
    assert [lease[1] for lease in store.written[-1].leases] == [45.0]
    assert store.done == [1]


async def test_a_result_that_comes_during_the_last_write_is_written_too(store: Store) -> None:
    mine = batch()
    store.gate.clear()
    async with running(store) as recording:
        recording.put(delivered(1, mine))
        await until(lambda: store.asked, "a write under way")
        recording.stop()
        recording.put(delivered(2, mine))
        store.gate.set()
    assert store.ids == [1, 2]


async def test_five_hundred_results_do_not_wait_for_the_clock(store: Store) -> None:
    mine = batch()
    async with running(store, flush_seconds=600.0) as recording:
        for number in range(recorder.FLUSH_RESULTS):
            recording.put(delivered(number, mine))
        await until(lambda: store.written, "a flush")
        assert len(store.ids) == recorder.FLUSH_RESULTS


async def test_a_flood_of_results_is_written_in_pieces_and_the_batch_ends_with_the_last(store: Store) -> None:
    of = batch()
    async with running(store) as written:
        for number in range(2 * recorder.FLUSH_MOST + 10):
            written.put(delivered(number, of))
        await until(lambda: of.recorded, "the end of the batch")
        assert [len(flush.results) for flush in store.written] == [recorder.FLUSH_MOST, recorder.FLUSH_MOST, 10]
        assert [len(flush.done) for flush in store.written] == [0, 0, 1]
        assert written.pending == 0


async def test_it_is_stuck_until_all_that_waited_is_written(store: Store) -> None:
    def away(flush: Flush) -> None:
        raise StoreUnavailable("gone")

    store.trouble = away
    async with running(store) as recording:
        for number in range(recorder.FLUSH_MOST + 10):
            recording.put(delivered(number, None))
        recording.put(Result(delivery(-1, None), None, Postponed(0.0)))  # nobody has tried it
        await until(lambda: recording.stuck, "it notices")
        assert len(recording.unwritten()) == recorder.FLUSH_MOST + 10
        stuck: list[bool] = []
        store.trouble = lambda _: stuck.append(recording.stuck)
        await until(lambda: not recording.stuck, "it goes on")
        assert stuck == [True, True]
        assert recording.unwritten() == set()


async def test_a_lease_is_dropped_when_the_result_comes_first(store: Store) -> None:
    mine = batch()
    late = delivery(1, mine)
    async with running(store) as recording:
        recording.lease(late, 45.0)
        recording.put(Result(late, GOOD, Delivered()))
        await until(lambda: store.ids == [1], "the result")
    assert all(flush.leases == [] for flush in store.written)
    assert all(flush.rows == [] for flush in store.written)  # it never had a row
    assert store.done == [1]


async def test_a_lease_frees_the_batch_and_the_result_goes_to_its_row(store: Store) -> None:
    mine = batch()
    late = delivery(1, mine)
    async with running(store) as recording:
        recording.lease(late, 45.0)
        await until(lambda: mine.recorded, "the end of the batch without the result")
        assert late.batch is None
        assert [flush.leases for flush in store.written] == [[(late, 45.0)]]
        recording.put(Result(late, GOOD, Delivered()))
        await until(lambda: store.ids == [1], "the result")
    assert store.written[-1].rows == [1]
    assert store.done == [1]


async def test_a_result_that_comes_while_its_lease_is_written_goes_to_the_row(store: Store) -> None:
    mine = batch()
    late = delivery(1, mine)
    store.gate.clear()
    async with running(store) as recording:
        recording.lease(late, 45.0)
        await until(lambda: store.asked, "a write under way")
        recording.put(Result(late, BAD, Retry(5.0)))
        store.gate.set()
        await until(lambda: store.ids == [1], "the result")
    assert store.written[0].leases == [(late, 45.0)]
    assert store.written[1].rows == [1]
    assert store.done == [1]


async def test_a_lease_asked_for_twice_is_one_lease(store: Store) -> None:
    mine = batch()
    late = delivery(1, mine)
    async with running(store) as recording:
        recording.lease(late, 45.0)
        recording.lease(late, 44.0)
        await until(lambda: mine.recorded, "the end of the batch")
    assert [lease for flush in store.written for lease in flush.leases] == [(late, 44.0)]
    assert mine.open == 0


async def test_results_of_rows_are_written_beside_those_of_batches(store: Store) -> None:
    mine = batch()
    async with running(store) as recording:
        recording.put(delivered(1, None))
        recording.put(delivered(2, mine))
        recording.put(delivered(3, None))
        await until(lambda: len(store.ids) == 3, "all of them")
    assert sorted(id_ for flush in store.written for id_ in flush.rows) == [1, 3]
    assert store.done == [1]


def poisoned(*numbers: int) -> Callable[[Flush], None]:
    def trouble(flush: Flush) -> None:
        if any(
            result.delivery.event.id in numbers and result.attempt and result.attempt.response
            for result in flush.results
        ):
            raise StoreRefused("invalid byte sequence")

    return trouble


@pytest.mark.parametrize("where", [0, 1, 31, 62, 99])
async def test_the_one_result_that_postgres_refuses_is_isolated(store: Store, where: int) -> None:
    mine = batch()
    store.trouble = poisoned(where)
    held = delivery(1000, mine)
    async with running(store) as recording:
        recording.lease(held, 45.0)
        for number in range(100):
            recording.put(Result(delivery(number, mine), BAD, Retry(5.0)))
        await until(lambda: len(store.ids) == 100, "all of them")
    assert sorted(store.ids) == list(range(100))
    results = {result.delivery.event.id: result for flush in store.written for result in flush.results}
    assert results[where].attempt == BAD._replace(error="internal", response=None, code=None)
    assert all(result.attempt == BAD for number, result in results.items() if number != where)
    assert results[where].outcome == Retry(5.0)  # it is still owed
    assert len(store.asked) < 3 * 8  # halving, not one by one
    assert store.done == [1]
    assert store.written[-1].done == [1]  # the end of the batch is the last that is written
    assert [lease for flush in store.written for lease in flush.leases] == [(held, 45.0)]


async def test_many_bad_results_and_a_database_that_goes_away_meanwhile(store: Store) -> None:
    mine = batch()
    refuse = poisoned(*range(0, 64, 5))
    asked = 0

    def trouble(flush: Flush) -> None:
        nonlocal asked
        asked += 1
        if asked % 3 == 0:
            raise StoreUnavailable("gone")
        refuse(flush)

    store.trouble = trouble
    async with running(store) as recording:
        for number in range(64):
            recording.put(Result(delivery(number, mine), BAD, Retry(5.0)))
        await until(lambda: len(store.ids) == 64, "all of them")
    assert store.ids == list(range(64))
    assert store.done == [1]


@pytest.mark.parametrize(
    "error", [StoreRefused("out of range"), StoreRefused("damaged", passes=True), KeyError("a bug")]
)
@pytest.mark.parametrize("where", ["result", "lease", "end"])
async def test_what_cannot_be_written_at_all_is_told_and_holds_up_nothing_else(
    store: Store, where: str, error: Exception
) -> None:
    def refuse(flush: Flush) -> None:
        poisoned = {
            "result": 7 in flush.ids,
            "lease": any(leased.event.id == 1007 for leased, _ in flush.leases),
            "end": 7 in flush.done,
        }
        if poisoned[where]:
            raise error

    store.trouble = refuse
    batches = {number: batch(number) for number in range(10)}
    with capture_logs() as logs:
        async with running(store) as recording:
            for number in range(10):
                recording.put(delivered(number, batches[number]))
                recording.lease(delivery(1000 + number, batches[number]), 45.0)
            await until(lambda: recording.pending == 0 and batches[9].recorded, "all of them")
            recording.put(delivered(2000, batch(2000)))
            await until(lambda: 2000 in store.ids, "what comes after it")
    assert sorted(store.ids) == [n for n in (*range(10), 2000) if (where, n) != ("result", 7)]
    leased = sorted(each.event.id for flush in store.written for each, _ in flush.leases)
    assert leased == [n for n in range(1000, 1010) if (where, n) != ("lease", 1007)]
    assert sorted(store.done) == [n for n in (*range(10), 2000) if (where, n) != ("end", 7)]
    assert list(store.aside) == {"result": [7], "lease": [1007], "end": []}[where]
    assert [line["event"] for line in logs if line["event"] in ("not_recorded", "not_ended")] == [
        "not_ended" if where == "end" else "not_recorded"
    ]


@pytest.mark.parametrize("passes", [False, True])
async def test_attempts_that_are_refused_cost_no_delivery_its_next_one(store: Store, passes: bool) -> None:
    """As by a constraint, or a trigger, that the owner of the table has put on it."""

    def refuse(flush: Flush) -> None:
        if any(result.attempt is not None for result in flush.results):
            raise StoreRefused("violates check constraint", passes=passes)

    store.trouble = refuse
    mine = batch()
    with capture_logs() as logs:
        async with running(store) as recording:
            for number in range(20):
                recording.put(Result(delivery(number, mine), BAD, Retry(5.0)))
            await until(lambda: mine.recorded, "all of them")
            assert "refuses attempts" in recording.problem
    results = [result for flush in store.written for result in flush.results]
    assert [(each.delivery.event.id, each.attempt, each.outcome) for each in results] == [
        (number, None, Retry(5.0)) for number in range(20)
    ]
    assert store.aside == {}
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["attempts_refused"]  # and no line each


async def test_an_unknown_error_that_passes_loses_nothing(store: Store) -> None:
    mine, errors = batch(), [AttributeError("a connection that broke oddly")] * 12

    def break_(_: Flush) -> None:
        if errors:
            raise errors.pop()

    store.trouble = break_
    with capture_logs():
        async with running(store) as recording:
            for number in range(4):
                recording.put(Result(delivery(number, mine), BAD, Retry(5.0)))
            await until(lambda: mine.recorded, "all of them")
    assert (sorted(store.ids), store.done, store.aside) == ([0, 1, 2, 3], [1], {})


@pytest.mark.parametrize("error", [Moved("elsewhere"), OtherPlace("a copy")])
async def test_what_ends_the_daemon_is_no_refusal(store: Store, error: Exception) -> None:
    def end(_: Flush) -> None:
        raise error

    store.trouble = end
    recording = Recorder(store, 42, flush_seconds=0.005)
    recording.put(delivered(1, batch()))
    with pytest.raises(type(error)):
        await recording.run()
    assert len(store.asked) == 1


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (Delivered(), "delivered"),
        (Retry(1.0), "failed"),
        (Postponed(1.0), "spilled"),
        (Ended("exhausted", "over"), "exhausted"),
        (Ended("rejected", "payload_too_large"), "rejected"),
    ],
)
async def test_each_outcome_is_counted(store: Store, outcome: Outcome, name: str) -> None:
    async with running(store) as recording:
        recording.put(Result(delivery(1, batch()), None, outcome))
        await until(lambda: store.written, "a flush")
    assert {key: count for key, count in recording.totals.items() if count} == {name: 1}


async def test_what_ends_without_success_is_one_warning_for_all(store: Store) -> None:
    ended = Ended("exhausted", "the time to retry is over")
    with capture_logs() as lines:
        async with running(store) as recording:
            for number in range(1, 701):
                recording.put(Result(delivery(number, None), BAD, ended))
            recording.put(Result(delivery(701, None), None, Ended("rejected", "payload_too_large")))
            recording.put(Result(delivery(702, None), BAD, Retry(5.0)))
            recording.put(delivered(703, None))
            await until(lambda: len(store.ids) == 703, "all of them")
    told = [(line["event"], line["deliveries"], line["event_id"], line["code"]) for line in lines]
    assert told == [
        ("deliveries_exhausted", 700, "evt_1", "http_500"),
        ("deliveries_rejected", 1, "evt_701", "payload_too_large"),
    ]


async def test_each_flush_tells_who_waits(store: Store) -> None:
    async with running(store) as recording:
        for number in range(3):
            recording.flushed.clear()
            recording.put(delivered(number, batch()))
            async with asyncio.timeout(HANGS):
                await recording.flushed.wait()
            assert number in store.ids


async def test_why_results_wait_is_its_problem_until_they_are_written(store: Store) -> None:
    mine = batch()

    def forbidden(_: Flush) -> None:
        raise StoreForbidden("permission denied for table attempt")

    store.trouble = forbidden
    with capture_logs() as lines:
        async with running(store) as recording:
            recording.put(delivered(1, mine))
            said = "its recorder waits: permission denied for table attempt"
            await until(lambda: recording.problem == said, "it says what it waits for")
            store.trouble = lambda _: None
            await until(lambda: store.ids == [1] and not recording.problem, "it goes on")
    told = [(line["event"], line["part"]) for line in lines if line["event"].startswith("part_")]
    assert told == [("part_failed", "recorder"), ("part_works", "recorder")]


async def test_what_may_pass_is_its_problem_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = batch()

    def damaged(_: Flush) -> None:
        raise StoreRefused("invalid page", passes=True)

    store.trouble = damaged
    async with running(store) as recording:
        recording.put(Result(delivery(1, mine), GOOD._replace(error=recorder.REFUSED), Delivered()))
        await until(lambda: "what became of a delivery is refused" in recording.problem, "it says so")
        store.trouble = lambda _: None
        await until(lambda: store.ids == [1] and not recording.problem, "it goes on")
