"""What is offered is sent: within the limits, in turns, within memory, and never at the cost of another endpoint."""

import asyncio
import functools
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from tests.stopwatch import Stopwatch
from tests.waiting import HANGS, until
from webhookd.engine.clock import Clock
from webhookd.engine.dispatch import answers, feeder
from webhookd.engine.dispatch.dispatcher import DEATHS_MOST, UNSEEN_SECONDS, Dispatcher
from webhookd.engine.dispatch.feeds import Feed, FeedState
from webhookd.engine.dispatch.limits import AT_A_TIME
from webhookd.engine.dispatch.payloads import Payloads
from webhookd.engine.dispatch.queues import EndpointQueue
from webhookd.engine.dispatch.scheduler import EGRESS_DOWN_SECONDS
from webhookd.engine.state import Heartbeat
from webhookd.errors import StoreUnavailable
from webhookd.exchange import NoResponse, Request, Response
from webhookd.message.formats import FORMATS
from webhookd.message.signing import SCHEMES
from webhookd.model import (
    Batch,
    Body,
    Delivered,
    Delivery,
    Ended,
    Endpoint,
    Event,
    Key,
    Postponed,
    Result,
    Retry,
    RetryPolicy,
)
from webhookd.policy.members import Shares, alone
from webhookd.policy.payload_filter import compiled
from webhookd.tasks import Setbacks

DAY = datetime(2021, 1, 27, tzinfo=UTC)
MB = 1_000_000
BUDGET = 32 * 1024 * 1024
FOREVER = float("inf")
HOOK = Endpoint(
    id=1,
    tenant="",
    name="hook",
    url="https://1.example.com/",
    events=("*",),
    format=FORMATS["raw"],
    signature=SCHEMES["none"],
    secrets=(),
    retry=RetryPolicy(jitter=0.0),
    timeout=20.0,
    max_in_flight=10,
)
Answer = Response | NoResponse


def hook(number: int, **changes: Any) -> Endpoint:
    return replace(HOOK, id=number, name=f"hook-{number}", url=f"https://{number}.example.com/", **changes)


class Content(bytes):
    """A payload that tells its store when it has left memory."""

    store: "Store"

    def __del__(self) -> None:
        self.store.alive -= len(self)


class Store:
    """Payloads of any size; counts what is alive."""

    def __init__(self) -> None:
        self.fetches: list[list[int]] = []
        self.alive = 0
        self.peak = 0
        self.gone: set[int] = set()
        self.troubles: list[Exception] = []
        self.open = asyncio.Event()  # fetches wait for it
        self.open.set()

    @property
    def fetched(self) -> list[int]:
        return [id_ for ids in self.fetches for id_ in ids]

    async def metadata(self, events: Sequence[Event]) -> dict[int, bytes]:
        return {event.id: b"m" * event.unread for event in events}

    async def payloads(self, events: Sequence[Event], most_bytes: int) -> dict[int, bytes | str]:
        self.fetches.append([event.id for event in events])
        await asyncio.sleep(0)
        await self.open.wait()
        if self.troubles:
            raise self.troubles.pop(0)
        found: dict[int, bytes | str] = {}
        for event in events:
            if event.id in self.gone:
                continue
            if event.size > most_bytes:
                found[event.id] = "payload_too_large"
                continue
            content = Content(event.size)
            content.store = self
            self.alive += event.size
            found[event.id] = content
        self.peak = max(self.peak, self.alive)
        return found


class Network:
    """Receivers: `answers` says what each does, by URL; everything else answers 200 in the next turn of the loop."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Request], Awaitable[Answer]]] = {}
        self.sent: list[tuple[str, str]] = []  # (url, event)
        self.sizes: list[int] = []
        self.flying: Counter[str] = Counter()
        self.peaks: defaultdict[str, int] = defaultdict(int)
        self.peak = 0

    async def send(self, request: Request) -> Answer:
        url = request.url
        self.sent.append((url, request.headers["webhook-id"]))
        self.sizes.append(len(request.content))
        self.flying[url] += 1
        self.peaks[url] = max(self.peaks[url], self.flying[url])
        self.peak = max(self.peak, self.flying.total())
        try:
            if url in self.answers:
                return await self.answers[url](request)
            await asyncio.sleep(0)
            return Response(200)
        finally:
            self.flying[url] -= 1

    def events(self, endpoint: Endpoint) -> list[str]:
        return [event for url, event in self.sent if url == endpoint.url]


class Recorder:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.leases: list[tuple[Delivery, float]] = []
        self.pending = 0
        self.stuck = False
        self.put_so_far = self.written = 0

    def put(self, result: Result) -> None:
        self.results.append(result)
        self.put_so_far += 1

    def lease(self, delivery: Delivery, seconds: float) -> None:
        self.leases.append((delivery, seconds))
        delivery.batch = None  # as the recorder does when it is written

    @property
    def delivered(self) -> list[int]:
        return [result.delivery.event.id for result in self.results if isinstance(result.outcome, Delivered)]

    @property
    def postponed(self) -> list[Result]:
        return [result for result in self.results if isinstance(result.outcome, Postponed)]


@dataclass(frozen=True)
class Settings:
    """`[delivery]` of a configuration."""

    max_in_flight: int = 500
    max_in_flight_per_host: int = 500
    max_payload: int = 32 * 1024 * 1024
    source: str = "https://shop.example"
    response_body: str = "failures"


class Parts:
    """A dispatcher between fakes."""

    def __init__(self, endpoints: Sequence[Endpoint], **changes: Any) -> None:
        self.endpoints = {endpoint.id: endpoint for endpoint in endpoints}
        self.store, self.network, self.recorder = Store(), Network(), Recorder()
        self.batch = Batch(1, 7, 0.0, [], DAY, DAY, 1, 0)
        self.clock, self.heartbeat = Clock(), Heartbeat()
        told = {field.name: changes.pop(field.name) for field in fields(Settings) if field.name in changes}
        self.settings = Settings(**told)
        self.dispatcher = Dispatcher(
            self.store,
            self.network,
            self.recorder,
            self.clock,
            self.heartbeat,
            self.settings,
            on_trouble=lambda *_: None,
            random=lambda: 0.5,
            user_agent="webhookd/9.9",
            **{"patience": 0.2, **changes},
        )
        self.dispatcher.configure(endpoints, self.settings)
        self.idle = self.dispatcher.room

    @property
    def empty(self) -> bool:
        """Nothing that was offered is in memory any longer."""
        return self.dispatcher.room >= self.idle

    def offer(self, event: int, endpoint: int = 1, size: int = 2, claimed: bool = False, **changes: Any) -> Delivery:
        plain = Event(event, f"evt_{event}", DAY, "order.created", "", None, None, None, size)
        head = changes.pop("head", plain)
        start = time.monotonic()
        delivery = Delivery(
            head, self.endpoints[endpoint], None if claimed else self.batch, 0, self.clock.now(), start, FOREVER
        )
        for name, value in changes.items():
            setattr(delivery, name, value)
        self.dispatcher.offer(delivery)
        return delivery


@asynccontextmanager
async def running(*endpoints: Endpoint, **changes: Any) -> AsyncIterator[Parts]:
    """A dispatcher that runs, and is stopped in order at the end."""
    parts = Parts(endpoints or (HOOK,), **changes)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(parts.dispatcher.run())
        try:
            yield parts
        except BaseException:
            task.cancel()  # a test that failed may have left a receiver that never answers
            raise
        parts.dispatcher.stop()


class Gate:
    """A receiver that answers when it is opened."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.opened = asyncio.Event()
        self.answer = answer or Response(200)

    async def __call__(self, request: Request) -> Answer:
        await self.opened.wait()
        return self.answer


async def test_what_is_offered_is_sent_and_recorded() -> None:
    async with running() as parts:
        before = parts.clock.now()
        delivery = parts.offer(7, size=5)
        await until(lambda: parts.recorder.results, "the result")
        (result,) = parts.recorder.results
        assert result.delivery is delivery
        assert result.outcome == Delivered()
        assert result.attempt is not None
        assert result.attempt[1:4] == (1, True, 200)
        assert before <= result.attempt.at <= parts.clock.now()
        assert parts.network.sent == [("https://1.example.com/", "evt_7")]
        assert parts.dispatcher.in_flight == 0
        assert parts.empty
        del result, delivery
        await until(lambda: parts.store.alive == 0, "the payload to leave memory")


@pytest.mark.parametrize(("daemon", "limits"), [(7, (3, 3, 3)), (4, (10, 10, 10)), (500, (1, 5, 10)), (1, (2, 2, 2))])
async def test_no_limit_is_ever_exceeded_and_each_is_used(daemon: int, limits: tuple[int, ...]) -> None:
    endpoints = [hook(n, max_in_flight=limit, tenant=f"t{n % 2}") for n, limit in enumerate(limits, 1)]
    pauses = itertools.cycle([0, 0.001, 0.003, 0, 0.002])

    async def slow(request: Request) -> Answer:
        for _ in range(3):
            await asyncio.sleep(next(pauses))
        return Response(200)

    async with running(*endpoints, max_in_flight=daemon, patience=60.0) as parts:
        parts.network.answers = {endpoint.url: slow for endpoint in endpoints}
        for event in range(60):
            for endpoint in endpoints:
                parts.offer(event, endpoint.id, claimed=event % 3 == 0)
            if event % 7 == 0:
                await asyncio.sleep(0.002)
        await until(lambda: len(parts.recorder.delivered) == 60 * len(limits), "all of them")
        assert parts.network.peak == min(daemon, sum(limits))
        for endpoint, limit in zip(endpoints, limits, strict=True):
            assert 1 <= parts.network.peaks[endpoint.url] <= limit
            if daemon >= sum(limits):
                assert parts.network.peaks[endpoint.url] == limit


async def test_what_waits_for_a_hung_endpoint_is_spilled_and_others_flow() -> None:
    hung, fine = hook(1, max_in_flight=2), hook(2)
    async with running(hung, fine) as parts:
        gate = parts.network.answers[hung.url] = Gate()
        for event in range(30):
            parts.offer(event, 1)
        await until(lambda: parts.dispatcher.in_flight == 2, "its slots to be taken")
        parts.offer(100, 2)
        await until(lambda: parts.recorder.delivered == [100], "the other endpoint")
        await until(lambda: len(parts.recorder.postponed) == 28, "what waits to leave memory")
        assert {result.attempt for result in parts.recorder.postponed} == {None}
        assert all(result.outcome == Postponed(0.0) for result in parts.recorder.postponed)
        assert parts.dispatcher.room == parts.idle - 2
        await until(lambda: len(parts.recorder.leases) == 2, "leases for what is in flight")
        assert len(parts.network.events(hung)) == 2
        gate.opened.set()
        await until(lambda: len(parts.recorder.delivered) == 3, "the answers")


async def test_while_our_way_out_is_shut_little_is_taken_into_memory() -> None:
    away = NoResponse("proxy_error", ours=True)
    patient = hook(2, timeout=60.0)
    async with running(HOOK, patient) as parts:
        gate, held = Gate(away), Gate()
        parts.network.answers = {HOOK.url: gate, patient.url: held}
        parts.offer(1)
        parts.offer(2, patient.id)
        await until(lambda: parts.dispatcher.in_flight == 2, "both in flight")
        gate.opened.set()
        await until(lambda: parts.recorder.postponed, "our way out to be found shut")
        assert parts.dispatcher.room == 0
        assert parts.dispatcher.claimable(HOOK.id) == (0, 0.0)
        shut_at = parts.dispatcher.scheduler.egress_down_at
        parts.dispatcher.scheduler.egress_down_at = shut_at - EGRESS_DOWN_SECONDS  # as if that had passed
        assert parts.dispatcher.room == 0  # what is held can look
        parts.dispatcher.scheduler.egress_down_at = shut_at - UNSEEN_SECONDS
        assert parts.dispatcher.room > 0  # but has not
        parts.dispatcher.scheduler.egress_down_at = shut_at - EGRESS_DOWN_SECONDS
        held.opened.set()
        await until(lambda: parts.recorder.delivered, "nothing is held any longer")
        assert parts.dispatcher.room > 0
        parts.network.answers = {}
        parts.offer(3)
        await until(lambda: len(parts.recorder.delivered) == 2, "it is open again")
        assert parts.dispatcher.scheduler.egress_down_at == 0


async def test_thousands_for_a_hung_endpoint_do_not_fill_the_memory() -> None:
    hung = hook(1, max_in_flight=2)
    async with running(hung) as parts:
        gate = parts.network.answers[hung.url] = Gate()
        parts.offer(0, 1)
        await until(lambda: parts.dispatcher.in_flight == 1, "a request in flight")
        least = parts.dispatcher.room

        def more() -> bool:
            nonlocal least
            for _ in range(100):
                parts.offer(len(parts.recorder.postponed) + 1000, 1)
            least = min(least, parts.dispatcher.room)
            return len(parts.recorder.postponed) > 2000

        await until(more, "two thousand spilled")
        assert least > 500
        gate.opened.set()


async def test_what_waits_for_the_slots_of_the_daemon_is_not_spilled() -> None:
    endpoints = [hook(n, max_in_flight=10) for n in range(1, 6)]

    async def steady(_: Request) -> Answer:
        await asyncio.sleep(0.02)
        return Response(200)

    async with running(*endpoints, max_in_flight=5, patience=0.3) as parts:
        parts.network.answers = {endpoint.url: steady for endpoint in endpoints}
        for event in range(50):
            for endpoint in endpoints:
                parts.offer(event, endpoint.id)
        # It takes a second, more than the patience and several sweeps.
        await until(lambda: len(parts.recorder.delivered) == 250, "all of them, from memory")
        assert parts.recorder.postponed == []
        assert parts.network.peak == 5


async def test_a_claim_is_not_spilled_again() -> None:
    async with running(hook(1, max_in_flight=1), patience=0.05) as parts:
        gate = parts.network.answers["https://1.example.com/"] = Gate()
        for event in range(5):
            parts.offer(event, claimed=True)
        parts.offer(9)
        await until(lambda: len(parts.recorder.postponed) == 1, "the only one that came with a batch")
        assert parts.recorder.postponed[0].delivery.event.id == 9
        gate.opened.set()
        await until(lambda: len(parts.recorder.delivered) == 5, "the claims")
        assert parts.recorder.leases == []  # they have one


async def test_a_straggler_gets_a_lease_that_outlasts_its_attempt_once() -> None:
    async with running(hook(1, timeout=9.0), patience=0.05) as parts:
        gate = parts.network.answers["https://1.example.com/"] = Gate()
        delivery = parts.offer(1)
        await until(lambda: parts.recorder.leases, "the lease")
        await asyncio.sleep(0.6)  # two more sweeps
        ((leased, seconds),) = parts.recorder.leases
        assert leased is delivery
        assert seconds > 9.0
        gate.opened.set()
        await until(lambda: parts.recorder.delivered == [1], "the answer")


async def test_a_quick_delivery_gets_no_lease() -> None:
    async with running(patience=5.0) as parts:
        for event in range(50):
            parts.offer(event)
        await until(lambda: len(parts.recorder.delivered) == 50, "all of them")
        assert parts.recorder.leases == []


async def test_small_payloads_pass_large_ones_and_memory_is_bounded() -> None:
    large, small = hook(1, tenant="a"), hook(2, tenant="b")
    async with running(large, small, patience=600.0) as parts:
        gate = parts.network.answers[large.url] = Gate()
        for event in range(20):
            parts.offer(event, 1, size=10 * MB)
        for event in range(1000, 2000):
            parts.offer(event, 2, size=1000)
        await until(lambda: len(parts.recorder.delivered) == 1000, "every small one while the large ones hang")
        assert len(parts.network.events(large)) < 4
        gate.opened.set()
        await until(lambda: len(parts.recorder.delivered) == 1020, "the large ones, in portions")
        assert parts.store.peak <= BUDGET
        assert sorted(parts.store.fetched) == sorted([*range(20), *range(1000, 2000)])  # each read once
        parts.recorder.results.clear()
        await until(lambda: parts.store.alive == 0, "all to leave memory")


async def test_small_payloads_pass_large_ones_of_the_same_endpoint() -> None:
    async with running(patience=600.0) as parts:

        async def hang_on_large(request: Request) -> Answer:
            return await gate(request) if len(request.content) > MB else Response(200)

        gate = Gate()
        parts.network.answers[HOOK.url] = hang_on_large
        for event in range(20):
            parts.offer(event, size=10 * MB)
        for event in range(1000, 2000):
            parts.offer(event, size=1000)
        await until(lambda: len(parts.recorder.delivered) == 1000, "every small one")
        gate.opened.set()
        await until(lambda: len(parts.recorder.delivered) == 1020, "the large ones")
        assert parts.store.peak <= BUDGET


async def test_many_small_payloads_stay_within_the_budget_too() -> None:
    endpoints = [hook(n, max_in_flight=100) for n in range(1, 9)]
    async with running(*endpoints, patience=600.0) as parts:
        for event in range(400):  # 400 MB
            parts.offer(event, 1 + event % 8, size=MB)
        await until(lambda: len(parts.recorder.delivered) == 400, "all of them")
        assert parts.store.peak <= BUDGET


async def test_one_payload_as_large_as_the_budget_passes() -> None:
    async with running(patience=600.0) as parts:
        for event in range(3):
            parts.offer(event, size=BUDGET)
        await until(lambda: len(parts.recorder.delivered) == 3, "one after the other")
        assert parts.store.peak <= BUDGET


async def test_a_payload_that_is_too_large_is_never_read() -> None:
    async with running(max_payload=100) as parts:
        parts.offer(1, size=101)
        parts.offer(2, size=100)
        await until(lambda: len(parts.recorder.results) == 2, "both ends")
        rejected = next(result for result in parts.recorder.results if result.delivery.event.id == 1)
        assert rejected.attempt is None
        assert rejected.outcome == Ended("rejected", "payload_too_large")
        assert parts.store.fetched == [2]
        assert parts.recorder.delivered == [2]


async def test_an_event_for_many_endpoints_is_read_once() -> None:
    endpoints = [hook(n) for n in range(1, 40)]
    async with running(*endpoints) as parts:
        for endpoint in endpoints:
            parts.offer(7, endpoint.id)
        await until(lambda: len(parts.recorder.delivered) == 39, "all of them")
        assert parts.store.fetched == [7]


async def test_an_event_that_is_gone_ends_rejected() -> None:
    async with running() as parts:
        parts.store.gone = {1}
        parts.offer(1)
        parts.offer(2)
        await until(lambda: len(parts.recorder.results) == 2, "both ends")
        assert {r.delivery.event.id: r.outcome for r in parts.recorder.results} == {
            1: Ended("rejected", "event_missing"),
            2: Delivered(),
        }
        assert parts.empty


async def test_behind_many_events_that_are_gone_the_rest_is_sent() -> None:
    async with running(patience=600.0) as parts:
        parts.store.gone = set(range(1, 301))
        for event in range(1, 350):
            parts.offer(event)
        await until(lambda: len(parts.recorder.results) == 349, "every end")
        assert sorted(parts.recorder.delivered) == list(range(301, 350))


async def test_behind_a_large_event_that_is_gone_the_next_large_one_is_sent() -> None:
    async with running(patience=600.0) as parts:
        parts.store.gone = {1}
        parts.offer(1, size=20 * MB)
        parts.offer(2, size=20 * MB)
        await until(lambda: len(parts.recorder.results) == 2, "every end")
        assert parts.recorder.delivered == [2]


async def test_payloads_are_asked_for_again_when_the_database_was_away() -> None:
    async with running(hook(1), hook(2), patience=600.0) as parts:
        parts.store.troubles = [StoreUnavailable("gone")]
        for event in range(300):
            parts.offer(event, 1)
            parts.offer(event, 2)
        for event in range(300, 305):
            parts.offer(event, 1, size=10 * MB)
        await until(lambda: len(parts.recorder.delivered) == 605, "all of them")
        first = [int(event.removeprefix("evt_")) for event in parts.network.events(hook(2))]
        assert first == sorted(first)  # what had to wait keeps its place


async def test_of_payloads_that_wait_is_told_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "Setbacks", lambda part, _: Setbacks(part, 0.001, 0.002))
    with capture_logs() as lines:
        async with running(hook(1)) as parts:
            parts.store.troubles = [StoreUnavailable("gone") for _ in range(20)]
            parts.offer(1, 1)
            await until(lambda: parts.recorder.delivered == [1], "it, at last")
    told = [line for line in lines if line["event"] == "payloads_wait"]
    assert [line["reason"] for line in told] == ["gone"] * 5  # the 1st, 2nd, 4th, 8th and 16th
    assert all(line["seconds"] >= 0 and line["log_level"] == "warning" for line in told)


@pytest.mark.parametrize("level", ["debug", "info"])
async def test_of_a_success_is_told_at_level_debug(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = structlog.make_filtering_bound_logger(level)
    monkeypatch.setattr(answers, "log", structlog.wrap_logger(structlog.PrintLogger(), wrapper_class=wrapper))
    with capture_logs() as lines:
        async with running(hook(1)) as parts:
            parts.offer(7, 1)
            await until(lambda: parts.recorder.delivered == [7], "it")
    told = [line for line in lines if line["event"] == "attempt_succeeded"]
    assert [line.pop("ms") >= 0 for line in told] == [True] * (level == "debug")
    success = {"endpoint": hook(1).label, "event_id": "evt_7", "attempt": 1, "code": 200, "log_level": "debug"}
    assert told == [{"event": "attempt_succeeded", **success}] * (level == "debug")


async def test_tenants_take_turns_and_so_do_the_endpoints_of_one() -> None:
    busy = [hook(n, tenant="busy", max_in_flight=10) for n in (1, 2)]
    quiet = hook(3, tenant="quiet")
    async with running(*busy, quiet, max_in_flight=1, patience=600.0) as parts:
        for event in range(150):
            parts.offer(event, 1)
        for event in range(150):
            parts.offer(event, 2)
        for event in range(20):
            parts.offer(event, 3)
        await until(lambda: len(parts.recorder.delivered) == 320, "all of them")
        urls = [url for url, _ in parts.network.sent]
        last = max(index for index, url in enumerate(urls) if url == quiet.url)
        assert last <= 2 * 20 + 2  # a turn of the busy tenant for each of its own
        assert abs(urls[: last + 1].count(busy[0].url) - urls[: last + 1].count(busy[1].url)) <= 2


async def test_a_tenant_that_comes_late_waits_one_turn() -> None:
    async with running(hook(1, tenant="busy"), hook(2, tenant="quiet"), max_in_flight=2, patience=600.0) as parts:

        async def slow(request: Request) -> Answer:
            await asyncio.sleep(0.001)
            return Response(200)

        parts.network.answers["https://1.example.com/"] = slow
        for event in range(1000):
            parts.offer(event, 1)
        await until(lambda: len(parts.recorder.delivered) > 10, "a busy tenant")
        sent = len(parts.network.sent)
        parts.offer(5000, 2)
        await until(lambda: 5000 in parts.recorder.delivered, "the quiet tenant")
        place = parts.network.sent.index(("https://2.example.com/", "evt_5000"))
        assert place - sent < 50  # far before the busy one's thousand


async def test_a_bug_in_a_format_is_an_attempt_of_that_delivery_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(event: Event, payload: bytes, source: str) -> Body:
        if event.id == 2:
            raise ZeroDivisionError
        return Body("application/json", payload)

    async with running(hook(1, format=broken)) as parts:
        for event in (1, 2, 3):
            parts.offer(event)
        await until(lambda: len(parts.recorder.results) == 3, "every end")
        failed = next(result for result in parts.recorder.results if result.delivery.event.id == 2)
        assert failed.outcome == Retry(5.0)
        assert failed.attempt is not None
        assert (failed.attempt.ok, failed.attempt.code, failed.attempt.error) == (False, None, "internal")
        assert sorted(parts.recorder.delivered) == [1, 3]


async def test_a_bug_in_the_sender_is_an_attempt_and_frees_its_slots() -> None:
    async def broken(request: Request) -> Answer:
        raise UnicodeError("oops")

    async with running(hook(1, max_in_flight=1), max_in_flight=1) as parts:
        parts.network.answers["https://1.example.com/"] = broken
        for event in range(10):
            parts.offer(event)
        await until(lambda: len(parts.recorder.results) == 10, "every end")
        assert [r.attempt.error for r in parts.recorder.results if r.attempt] == ["internal"] * 10
        assert parts.dispatcher.in_flight == 0
        assert parts.empty


async def test_a_fault_of_ours_is_no_attempt() -> None:
    async def out_of_sockets(request: Request) -> Answer:
        return NoResponse("internal", ours=True)

    async with running() as parts:
        parts.network.answers[HOOK.url] = out_of_sockets
        parts.offer(1)
        await until(lambda: parts.recorder.results, "the result")
        assert parts.recorder.results[0].attempt is None
        assert isinstance(parts.recorder.results[0].outcome, Postponed)


@pytest.mark.parametrize("keep", [True, False])
async def test_failures_keep_their_body_if_wanted(keep: bool) -> None:
    async def failing(request: Request) -> Answer:
        return Response(500, b"why")

    async with running(response_body="failures" if keep else "none") as parts:
        parts.network.answers[HOOK.url] = failing
        parts.offer(1)
        await until(lambda: parts.recorder.results, "the result")
        assert parts.recorder.results[0].attempt is not None
        assert parts.recorder.results[0].attempt.response == (b"why" if keep else None)


async def test_a_claim_that_is_too_late_for_its_lease_is_forgotten() -> None:
    async with running() as parts:
        parts.offer(1, claimed=True, start_by=time.monotonic() - 0.001)
        parts.offer(2, claimed=True, start_by=time.monotonic() + 60)
        await until(lambda: parts.recorder.delivered == [2], "the one in time")
        assert parts.network.sent == [("https://1.example.com/", "evt_2")]
        assert len(parts.recorder.results) == 1
        await until(lambda: parts.empty, "it to leave memory")


async def test_on_hold_nothing_starts_and_nothing_is_claimed() -> None:
    async with running(patience=600.0) as parts:
        gate = parts.network.answers[HOOK.url] = Gate()
        parts.offer(1)
        await until(lambda: parts.dispatcher.in_flight == 1, "a request in flight")
        parts.dispatcher.hold(True)
        for event in range(2, 20):
            parts.offer(event)
        gate.opened.set()
        await until(lambda: parts.recorder.delivered == [1], "what was in flight")
        await asyncio.sleep(0.4)  # a sweep
        assert len(parts.network.sent) == 1
        assert parts.dispatcher.claimable(1) == (0, 0.0)
        parts.dispatcher.hold(True)
        parts.dispatcher.hold(False)
        await until(lambda: len(parts.recorder.delivered) == 19, "the rest")


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_delays_the_endpoint_and_nobody_else(status: int) -> None:
    async def throttled(request: Request) -> Answer:
        return Response(status, b"", "60")

    async with running(hook(1, max_in_flight=1), hook(2)) as parts:
        parts.network.answers["https://1.example.com/"] = throttled
        for event in range(10):
            parts.offer(event, 1)
            parts.offer(event, 2)
        await until(lambda: len(parts.recorder.delivered) == 10, "the other endpoint")
        await until(lambda: len(parts.recorder.results) == 20, "what waits to be spilled")
        assert len(parts.network.events(hook(1))) == 1
        failed = [r for r in parts.recorder.results if isinstance(r.outcome, Retry)]
        assert [r.outcome for r in failed] == [Retry(60.0, asked=True)]
        assert all(isinstance(r.outcome, Postponed) and 50 < r.outcome.delay <= 60 for r in parts.recorder.postponed)
        assert parts.dispatcher.claimable(1)[0] == 0
        assert parts.dispatcher.claimable(2)[0] > 0


async def test_an_old_delivery_that_is_asked_to_wait_holds_up_its_endpoint_no_longer_than_that() -> None:
    answers = iter([Response(429, b"", "1")])

    async def once(request: Request) -> Answer:
        return next(answers, Response(200))

    async with running(hook(1)) as parts:
        parts.network.answers["https://1.example.com/"] = once
        parts.offer(0, claimed=True, attempts=8)  # the schedule would wait for hours
        await until(lambda: parts.recorder.results, "the 429")
        (asked,) = parts.recorder.results
        assert asked.outcome == Retry(1.0, asked=True)
        assert asked.attempt is not None
        assert asked.attempt.number == 9
        await until(lambda: parts.dispatcher.claimable(1)[0], "the endpoint to be asked again")
        parts.offer(1)
        await until(lambda: parts.recorder.delivered == [1], "a new one")


async def test_the_longest_that_was_asked_for_holds_for_all_that_were_in_flight() -> None:
    waits = iter(["60", "1", None])

    async def busy(request: Request) -> Answer:
        return Response(429, retry_after=next(waits))

    async with running(hook(1)) as parts:
        parts.network.answers["https://1.example.com/"] = busy
        for event in range(3):
            parts.offer(event)
        await until(lambda: len(parts.recorder.results) == 3, "all three")
        for result in parts.recorder.results:
            assert isinstance(result.outcome, Retry)
            assert result.outcome.asked
            assert 59 < result.outcome.delay <= 60  # due when its endpoint is
        assert parts.dispatcher.claimable(1)[0] == 0


async def test_when_the_pause_is_over_what_waits_is_sent() -> None:
    answers = iter([Response(429, b"", "1")])

    async def once(request: Request) -> Answer:
        return next(answers, Response(200))

    async with running(hook(1, retry=RetryPolicy(first=0.001, jitter=0.0)), patience=600.0) as parts:
        parts.network.answers["https://1.example.com/"] = once
        started = time.monotonic()
        parts.offer(0)
        await until(lambda: parts.recorder.results, "the 429")
        for event in range(1, 6):
            parts.offer(event)
        await until(lambda: len(parts.recorder.delivered) == 5, "the rest")
        assert time.monotonic() - started >= 1.0


async def test_the_horizon_knows_when_nobody_ran() -> None:
    parts = Parts([hook(1, retry=RetryPolicy(give_up_after=100.0))])
    delivery = parts.offer(1, clock_from=1000.0)
    assert parts.dispatcher.answers.last_start(delivery) == 1100
    parts.heartbeat.downtimes = ((1010.0, 1060.0),)
    assert parts.dispatcher.answers.last_start(delivery) == 1150


async def test_behind_its_horizon_a_failure_is_the_end() -> None:
    async def failing(request: Request) -> Answer:
        return Response(500)

    async with running(hook(1, retry=RetryPolicy(give_up_after=100.0))) as parts:
        parts.network.answers["https://1.example.com/"] = failing
        parts.offer(1, clock_from=time.time() - 101)
        parts.offer(2, clock_from=time.time() - 50)
        await until(lambda: len(parts.recorder.results) == 2, "both")
        outcomes = {result.delivery.event.id: result.outcome for result in parts.recorder.results}
        assert outcomes[1] == Ended("exhausted", "the time to retry is over")
        assert outcomes[2] == Retry(5.0)
        assert all(result.attempt for result in parts.recorder.results)


async def test_what_may_be_claimed_shrinks_with_what_is_there() -> None:
    async with running(hook(1, max_in_flight=4)) as parts:
        parts.network.answers["https://1.example.com/"] = Gate()
        room, lease = parts.dispatcher.claimable(1)
        assert room >= 4
        assert lease > HOOK.timeout + 5
        for event in range(3):
            parts.offer(event, claimed=True)
        assert parts.dispatcher.claimable(1)[0] == room - 3
        assert parts.dispatcher.claimable(99) == (0, 0.0)
        for event in range(3, 50):
            parts.offer(event, claimed=True)
        assert parts.dispatcher.claimable(1)[0] == 0
        for gate in parts.network.answers.values():
            assert isinstance(gate, Gate)
            gate.opened.set()


async def test_room_counts_what_is_not_recorded_yet() -> None:
    parts = Parts([HOOK], most_deliveries=10)
    for event in range(4):
        parts.offer(event)
    assert parts.dispatcher.room == 6
    parts.recorder.pending = 6
    assert parts.dispatcher.room == 0


async def test_room_that_is_freed_is_told() -> None:
    async with running(most_deliveries=1) as parts:
        parts.dispatcher.room_freed.clear()
        parts.offer(1)
        async with asyncio.timeout(HANGS):
            await parts.dispatcher.room_freed.wait()
        assert parts.dispatcher.room == 1


async def test_stop_waits_for_what_is_in_flight_and_gives_claims_back() -> None:
    parts = Parts([hook(1, max_in_flight=2)], patience=600.0)
    gate = parts.network.answers["https://1.example.com/"] = Gate()
    for event in range(4):
        parts.offer(event, claimed=event % 2 == 0)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(parts.dispatcher.run())
        await until(lambda: parts.dispatcher.in_flight == 2, "its slots to be taken")
        parts.dispatcher.stop()
        assert parts.dispatcher.claimable(1) == (0, 0.0)
        await asyncio.sleep(0.05)
        assert not task.done()
        gate.opened.set()
    assert sorted(parts.recorder.delivered) == [0, 1]
    # The claim can be claimed by the next daemon at once; the other is still in its batch, which is given back.
    assert [(r.delivery.event.id, r.attempt, r.outcome) for r in parts.recorder.postponed] == [
        (2, None, Postponed(0.0))
    ]
    assert len(parts.network.sent) == 2


async def test_what_is_queued_follows_its_endpoint() -> None:
    first, gate = hook(1, max_in_flight=1), asyncio.Event()

    async def held(_: Request) -> Answer:
        await gate.wait()
        return Response(200)

    async with running(first, patience=600.0) as parts:
        parts.network.answers[first.url] = held
        parts.offer(1)
        await until(lambda: parts.dispatcher.in_flight == 1, "one in flight")
        parts.offer(2)
        moved = replace(first, url="https://moved.example/")
        parts.dispatcher.configure([moved], parts.settings)
        gate.set()
        await until(lambda: len(parts.recorder.delivered) == 2, "both")
        assert len(parts.network.events(first)) == len(parts.network.events(moved)) == 1


async def test_what_is_offered_for_an_endpoint_as_it_was_goes_where_it_is_now() -> None:
    first = hook(1, signature=SCHEMES["standard"], secrets=(Key("v1", b"old secret, visibly fake"),))
    moved = replace(first, url="https://moved.example/", secrets=(Key("v1", b"new secret, visibly fake"),))
    signed: dict[str, str] = {}

    async def keep(request: Request) -> Answer:
        signed[request.headers["webhook-id"]] = request.headers["webhook-signature"]
        return Response(200)

    other, gate = hook(2), Gate()
    async with running(first, other) as parts:
        parts.network.answers = {moved.url: keep, other.url: gate}
        for event in (1, 2):
            parts.offer(event, other.id)
        await until(lambda: parts.dispatcher.in_flight == 2, "the payloads to be at hand")
        parts.dispatcher.configure([moved, other], parts.settings)
        parts.offer(1)  # by who had looked before
        parts.offer(2, claimed=True)
        await until(lambda: len(parts.recorder.delivered) == 2, "both")
        assert len(parts.network.events(moved)) == len(signed) == 2
        assert not parts.network.events(first)
        gate.opened.set()
        sent = {result.delivery.event.event_id: result.attempt for result in parts.recorder.results}
        for event_id, signature in signed.items():
            attempt = sent[event_id]
            assert attempt is not None
            moments, named = (int(attempt.at) - 1, int(attempt.at), int(attempt.at) + 1), {"webhook-id": event_id}
            assert ("webhook-signature", signature) in [
                pair for moment in moments for pair in SCHEMES["standard"](moved.secrets, named, moment, b"\0\0")
            ]


async def test_a_timeout_that_was_raised_meanwhile_ends_within_the_lease_too() -> None:
    first = hook(1, timeout=5.0)
    async with running(first) as parts:
        parts.dispatcher.configure([replace(first, timeout=20.0)], parts.settings)
        parts.offer(1, claimed=True, start_by=time.monotonic() + 10)  # 15 s before its lease ends
        parts.offer(2, claimed=True, start_by=time.monotonic() + 25)
        await until(lambda: parts.recorder.delivered, "what has the time")
        assert [event for _, event in parts.network.sent] == ["evt_2"]
        assert parts.empty


async def test_a_change_forgets_neither_what_is_in_flight_nor_what_the_receiver_asked_for() -> None:
    busy, asleep, gate = hook(1, max_in_flight=1), hook(2), Gate()

    async def unavailable(_: Request) -> Answer:
        return Response(503, retry_after="60")

    async with running(busy, asleep, patience=600.0) as parts:
        parts.network.answers = {busy.url: gate, asleep.url: unavailable}
        parts.offer(1, 1)
        parts.offer(2, 2)
        await until(lambda: parts.recorder.results and parts.dispatcher.in_flight == 1, "one in flight, one answered")
        parts.dispatcher.configure([busy, asleep], parts.settings)
        assert parts.dispatcher.in_flight == 1
        assert parts.dispatcher.claimable(2)[0] == 0
        parts.offer(3, 1)
        await until(lambda: len(parts.store.fetched) == 3, "its payload")
        gate.opened.set()
        await until(lambda: len(parts.recorder.delivered) == 2, "both")
        assert parts.network.peaks[busy.url] == 1


async def test_what_a_removed_endpoint_was_owed_goes_to_the_backlog() -> None:
    first, kept, gate = hook(1, max_in_flight=1), hook(2), asyncio.Event()

    async def held(_: Request) -> Answer:
        await gate.wait()
        return Response(200)

    async with running(first, kept, patience=600.0) as parts:
        parts.network.answers[first.url] = held
        for event in range(5):
            parts.offer(event, 1)
        await until(lambda: parts.dispatcher.in_flight == 1, "one in flight")
        parts.dispatcher.configure([kept], parts.settings)
        assert len(parts.recorder.postponed) == 4
        gate.set()
        await until(lambda: len(parts.recorder.delivered) == 1, "the one in flight")
        parts.offer(9, 1)  # the reader had it in hand
        assert len(parts.recorder.postponed) == 5
        parts.offer(10, 2)
        await until(lambda: 10 in parts.recorder.delivered, "the other endpoint")
        assert parts.empty


async def test_an_endpoint_that_changes_or_goes_while_payloads_come_is_obeyed() -> None:
    changed, gone = hook(1), hook(2)
    moved = replace(changed, url="https://moved.example/")
    async with running(changed, gone) as parts:
        parts.store.open.clear()
        parts.offer(1, 1)
        parts.offer(2, 2, claimed=True)
        await until(lambda: parts.store.fetches, "the fetch")
        parts.dispatcher.configure([moved], parts.settings)
        parts.store.open.set()
        await until(lambda: len(parts.recorder.results) == 2, "both")
        assert parts.network.sent == [(moved.url, "evt_1")]
        assert [(result.delivery.event.id, result.outcome) for result in parts.recorder.postponed] == [
            (2, Postponed(0.0))
        ]
        assert parts.empty


async def test_what_is_silent_gives_its_slot_to_others() -> None:
    silent, fine = hook(1), hook(2)
    async with running(silent, fine, max_in_flight=4) as parts:
        gate = parts.network.answers[silent.url] = Gate()
        for event in range(4):
            parts.offer(event, 1)
        await until(lambda: parts.network.flying[silent.url] == 4, "all slots to be taken")
        parts.offer(9, 2)
        await until(lambda: parts.recorder.delivered == [9], "the other endpoint")
        assert parts.dispatcher.in_flight == 4
        gate.opened.set()


async def test_a_flood_for_an_endpoint_that_says_nothing_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhookd.engine.dispatch.room.LEAST_DELIVERIES", 100)
    silent, fine = hook(1), hook(2)
    async with running(silent, fine, patience=600.0, most_deliveries=250) as parts:
        gate = parts.network.answers[silent.url] = Gate()
        for event in range(200):
            parts.offer(event, 1)
        assert parts.dispatcher.room <= 0
        await until(lambda: parts.dispatcher.room > 0, "room for others")
        assert parts.dispatcher.room <= 50  # memory is bounded all the same
        parts.offer(999, 2)
        await until(lambda: 999 in parts.recorder.delivered, "the other endpoint")
        gate.opened.set()
        await until(lambda: len(parts.recorder.delivered) == 201, "the rest")


async def test_what_waits_for_an_endpoint_that_is_stuck_leaves_memory_at_once() -> None:
    async def lost(_: Request) -> Answer:
        return NoResponse("connect_refused")

    async with running(patience=600.0) as parts:
        parts.network.answers[HOOK.url] = lost
        parts.offer(1)
        await until(lambda: parts.recorder.results, "the failure")
        gate = parts.network.answers[HOOK.url] = Gate()
        for event in range(2, 52):
            parts.offer(event)
        await until(lambda: len(parts.recorder.postponed) == 49, "all but the one that is tried")
        await until(lambda: parts.network.flying[HOOK.url] == 1, "that one")
        gate.opened.set()
        await until(lambda: len(parts.recorder.delivered) == 1, "it")
        parts.offer(99)
        await until(lambda: 99 in parts.recorder.delivered, "the next, from memory again")
        assert len(parts.recorder.postponed) == 49


async def test_what_an_endpoint_has_in_memory_when_it_falls_silent_leaves_it_soon() -> None:
    async with running(patience=600.0) as parts:
        gate = parts.network.answers[HOOK.url] = Gate()
        for event in range(50):
            parts.offer(event)
        await until(lambda: len(parts.recorder.postponed) == 40, "all but those in flight")
        gate.opened.set()


async def test_a_rate_is_kept_to_the_millisecond_rather_than_to_the_sweep() -> None:
    async with running(hook(1, rate_limit=20.0), patience=600.0) as parts:
        started, watch = time.monotonic(), Stopwatch()
        for event in range(22):
            parts.offer(event)
        await until(lambda: len(parts.recorder.delivered) == 22, "all")
        assert time.monotonic() - started >= 0.95  # two at once, then one each 50 ms
        assert watch.seconds < 2.0  # by sweeps 2.5
        assert parts.recorder.postponed == []


async def test_a_share_of_nothing_is_left_to_the_others() -> None:
    async with running(hook(1, max_in_flight=1)) as parts:
        parts.dispatcher.share(Shares(8, (8, 9), {}))
        parts.offer(1)
        assert [result.outcome for result in parts.recorder.postponed] == [Postponed(0.0)]
        assert parts.dispatcher.claimable(1)[0] == 0
        parts.dispatcher.share(alone(8))  # the other is gone
        assert parts.dispatcher.claimable(1)[0] > 0
        parts.offer(2)
        await until(lambda: parts.recorder.delivered == [2], "it")


async def test_what_a_failed_fetch_puts_back_leaves_memory_if_its_endpoint_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another takes the payload budget meanwhile, and nobody asks for a queue that is no longer there."""
    monkeypatch.setattr(feeder, "AWAY_SECONDS", 0.01)
    stays, goes = hook(1), hook(2)
    async with running(stays, goes, patience=600.0) as parts:
        gate = parts.network.answers[stays.url] = Gate()
        parts.store.open.clear()
        parts.store.troubles = [StoreUnavailable("away")]
        parts.offer(1, goes.id, size=20 * MB)
        await until(lambda: parts.store.fetches, "the fetch")
        parts.offer(2, stays.id, size=20 * MB)
        parts.dispatcher.configure([stays], parts.settings)
        parts.store.open.set()
        await until(lambda: [result.delivery.event.id for result in parts.recorder.postponed] == [1], "it to be owed")
        gate.opened.set()
        await until(lambda: parts.recorder.delivered == [2], "the other")
        assert parts.empty


async def test_nothing_more_is_taken_while_results_cannot_be_written() -> None:
    async with running() as parts:
        assert parts.dispatcher.room > 0
        parts.recorder.stuck = True
        assert parts.dispatcher.room == 0


async def test_what_too_many_daemons_died_with_is_not_tried_but_waits_for_its_next_step() -> None:
    async with running() as parts:
        parts.offer(1, claimed=True, attempts=2, deaths=DEATHS_MOST + 1)
        (blamed,) = parts.recorder.results
        assert blamed.attempt is not None
        assert (blamed.attempt.number, blamed.attempt.ok, blamed.attempt.error) == (3, False, "internal")
        assert blamed.outcome == Retry(45.0)
        assert blamed.delivery.deaths == DEATHS_MOST  # so it is tried when that is due
        parts.offer(2, claimed=True, deaths=DEATHS_MOST)
        await until(lambda: parts.recorder.delivered == [2], "what did no harm")
        assert parts.recorder.results[-1].delivery.deaths == 0
        assert [event for _, event in parts.network.sent] == ["evt_2"]
        assert parts.empty


async def test_what_many_daemons_died_with_ends_on_its_horizon_too() -> None:
    async with running() as parts:
        parts.offer(1, claimed=True, deaths=DEATHS_MOST + 1, clock_from=time.time() - 30 * 86400)
        (blamed,) = parts.recorder.results
        assert isinstance(blamed.outcome, Ended)
        assert blamed.attempt is not None


async def test_what_was_never_tried_keeps_the_count_of_the_dead() -> None:
    async with running() as parts:
        parts.dispatcher.hold(True)
        parts.offer(1, claimed=True, deaths=5)
    assert [result.delivery.deaths for result in parts.recorder.postponed] == [5]


async def test_three_times_410_in_a_row_is_trouble_and_what_lies_between_begins_anew() -> None:
    statuses = iter([410, 410, 200, 410, 410, 500, 410, 410, 410, 410])
    troubles: list[str] = []

    async def once(_: Request) -> Answer:
        return Response(next(statuses))

    async with running(HOOK) as parts:
        parts.network.answers[HOOK.url] = once
        parts.dispatcher.answers.on_trouble = lambda _, trouble: troubles.append(trouble)
        starts = []
        for number in range(1, 11):
            parts.offer(number)
            await until(lambda n=number: len(parts.recorder.results) == n, "its answer")  # type: ignore[misc]
            attempt = parts.recorder.results[-1].attempt
            assert attempt is not None
            starts.append(attempt.at)
            assert len(troubles) == max(0, number - 8)
            word = parts.dispatcher.last_word(1)
            if number > 8:
                assert word is not None
                assert word[0] == "http_410"
                assert starts[-4] < word[1] <= starts[-3]
            else:
                assert word is None
        parts.clock.measure(time.time(), time.monotonic() - 60, time.monotonic() + 60)
        word = parts.dispatcher.last_word(1)
        assert word is not None
        assert word[1] <= starts[-3] - 59, "what may have begun before it was enabled undoes that no more"
    assert set(troubles) == {"gone"}
    assert parts.dispatcher.last_word(99) is None


async def test_a_payload_that_came_along_is_not_asked_for_and_counts_all_the_same() -> None:
    async with running() as parts:
        gate = parts.network.answers[HOOK.url] = Gate()
        small = Event(1, "evt_1", DAY, "order.created", "", None, None, None, 4, payload=b'"ab"')
        parts.offer(1, head=small)
        parts.offer(2, head=small._replace(id=2, payload=None))
        parts.offer(3, head=small._replace(id=3, unread=5_000))  # metadata has to come, and the payload with it
        await until(lambda: len(parts.network.sent) == 3, "all of them")
        assert sorted(parts.store.fetched) == [2, 3]
        assert parts.dispatcher.feeder._payloads._bytes == 4 + 4 + 5_004
        gate.opened.set()
        await until(lambda: sorted(parts.recorder.delivered) == [1, 2, 3], "their answers")
        assert parts.dispatcher.feeder._payloads._bytes == 0


def test_what_came_along_waits_for_the_budget_as_others_do() -> None:
    payloads = Payloads(budget=100)
    events = [Event(n, "", DAY, "", "", None, None, None, 60, payload=b"x" * 60) for n in (1, 2)]
    assert payloads.use(events[0])
    assert payloads.use(events[1]) is None
    assert payloads.drop(events[0])
    assert payloads.use(events[1])


async def test_metadata_that_is_not_kept_comes_with_the_payload_and_counts_with_it() -> None:
    seen: list[bytes | None] = []

    def form(event: Event, payload: bytes, source: str) -> Body:
        seen.append(event.metadata)
        return FORMATS["raw"](event, payload, source)

    async with running(hook(1, format=form)) as parts:
        head = Event(8, "evt_8", DAY, "order.created", "", None, b"m" * 20_000, None, 2).lean()
        delivery = parts.offer(7)
        parts.offer(8, head=head)
        await until(lambda: len(parts.recorder.results) == 2, "the results")
        assert sorted(seen, key=bool) == [None, b"m" * 20_000]
        assert parts.recorder.results[-1].delivery.event is head  # nothing large waits to be written
        assert delivery.event.metadata is None


def test_metadata_takes_of_the_budget_of_payloads() -> None:
    payloads = Payloads(budget=100_000)
    heads = [Event(n, "", DAY, "", "", None, b"m" * 5_000, None, 1_000).lean() for n in range(20)]
    assert [payloads.reserve(head) for head in heads] == [True] * 16 + [False] * 4
    payloads.release(heads[0])
    assert payloads.reserve(heads[16])


async def test_one_tenant_leaves_room_for_others() -> None:
    """However much it is offered; and all of it is free again when its deliveries have left."""
    gate = Gate()
    async with running(hook(1), hook(2), most_deliveries=4_000, patience=600.0) as parts:
        parts.network.answers["https://1.example.com/"] = gate
        parts.offer(0)
        offered = 0
        while parts.dispatcher.room_for("a") > 0:
            offered += 1
            parts.offer(offered, head=Event(offered, f"evt_{offered}", DAY, "order.created", "a", None, None, None, 2))
        assert 3_000 < offered < 3_600
        assert parts.dispatcher.room_for("b") >= 300
        gate.opened.set()
        await until(lambda: len(parts.recorder.results) == offered + 1, "all of it")
        parts.recorder.results.clear()
        assert parts.dispatcher.room_for("a") == parts.dispatcher.room


@pytest.mark.parametrize("where", ["_on_ready", "_on_ended", "_on_fed"])
@pytest.mark.parametrize("behind", [False, True], ids=["first", "behind_a_fetch"])
async def test_an_error_of_its_own_loses_the_feeder_no_delivery(
    monkeypatch: pytest.MonkeyPatch, where: str, behind: bool
) -> None:
    monkeypatch.setattr(feeder, "AWAY_SECONDS", 0.01)
    async with running(hook(1), hook(2)) as parts:
        fed, calls = parts.dispatcher.feeder, itertools.count()
        works = getattr(fed, where)

        def breaks(*arguments: Any) -> None:
            if (parts.store.fetches or not behind) and next(calls) in (0, 2):
                raise RuntimeError("a bug")
            works(*arguments)

        parts.store.gone = {3, 4}
        for event in range(1, 9):
            parts.offer(event, 1 + event % 2)
        monkeypatch.setattr(fed, where, breaks)
        await until(lambda: len(parts.recorder.results) == 8, "all of them to come to an end")
        ended = [result.delivery.event.id for result in parts.recorder.results]
        assert sorted(ended) == list(range(1, 9))
        assert sorted(parts.recorder.delivered) == [1, 2, 5, 6, 7, 8]
        await until(lambda: parts.empty, "memory to be empty")
    assert (fed._payloads._bytes, fed._payloads._held) == (0, {})


async def test_who_does_not_want_a_payload_takes_it_from_nobody() -> None:
    """The payload of an event comes once for all; nor does it stay in memory."""
    async with running(hook(1, data_filter=compiled({"n": 1})), hook(2)) as parts:
        for event in range(1, 41):
            parts.offer(event, 1)
            parts.offer(event, 2)
        await until(lambda: len(parts.recorder.results) == 80, "all of them to come to an end")
        ends = Counter((r.delivery.endpoint.id, type(r.outcome).__name__) for r in parts.recorder.results)
        assert ends == {(2, "Delivered"): 40, (1, "Unwanted"): 40}
        await until(lambda: parts.empty, "memory to be empty")
        fed = parts.dispatcher.feeder
        assert (fed._payloads._bytes, fed._payloads._held) == (0, {})


async def test_to_look_into_payloads_stalls_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have their turn between some of them, though each is quick."""
    looked: list[int] = []

    def slow(content: bytes, paths: Any) -> None:
        looked.append(len(content))
        time.sleep(0.002)

    monkeypatch.setattr("webhookd.engine.dispatch.payloads.look_up", slow)
    async with running(hook(1, data_filter=compiled({"n": 1}))) as parts:

        def offer() -> None:
            for event in range(1, 101):
                parts.offer(event, 1)

        assert await most_between_turns(looked, offer, lambda: len(looked) == 100) < 20
        await until(lambda: len(parts.recorder.results) == 100, "all of them to come to an end")


async def most_between_turns(calls: list[int], work: Callable[[], object], done: Callable[[], bool]) -> int:
    """How many calls were made at most before others had a turn on the loop, until it is done."""
    most, before = 0, len(calls)
    work()
    while True:
        most, before = max(most, len(calls) - before), len(calls)
        if done():
            return most
        await asyncio.sleep(0)


async def test_thousands_of_endpoints_get_new_shares_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoints = [hook(number) for number in range(1, 4_001)]
    async with running(*endpoints) as parts:
        await until(lambda: all(queue.host.most for queue in parts.dispatcher._queues.values()), "their slots")
        shared: list[int] = []
        share = EndpointQueue.share

        def spy(queue: EndpointQueue, rank: int, live: int) -> None:
            shared.append(queue.endpoint.id)
            share(queue, rank, live)

        monkeypatch.setattr(EndpointQueue, "share", spy)
        work = functools.partial(parts.dispatcher.share, Shares(0, (0, 1), {}))
        most = await most_between_turns(shared, work, lambda: len(shared) >= 4_000)
        assert most <= AT_A_TIME
        assert sorted(shared) == list(range(1, 4_001)), "each once"
        assert {queue.most for queue in parts.dispatcher._queues.values()} == {5}

        await until(lambda: not parts.dispatcher._limits.is_under_way, "their hosts")
        shared.clear()
        parts.dispatcher.follow({7: FeedState(Feed.CURSOR)})
        assert set(shared) == {7}, "no other, when one is parked"
        assert parts.dispatcher._queues[7].most == 10


async def test_an_endpoint_that_shares_a_host_leaves_its_slots_right_when_it_alone_is_parked() -> None:
    one, other = hook(1, max_in_flight=8), replace(hook(2), url=hook(1).url, max_in_flight=2)
    async with running(one, other, max_in_flight_per_host=4) as parts:
        host = parts.dispatcher._queues[2].host
        assert host.most == 8
        parts.dispatcher.follow({2: FeedState(Feed.NONE)})
        assert host.most == 8, "its neighbour has as many"
        parts.dispatcher.configure([other], parts.settings)
        assert host.most == 4


async def test_thousands_of_endpoints_are_prepared_some_at_a_time_and_start_nothing_before() -> None:
    endpoints = [hook(number) for number in range(1, 4_001)]
    async with running(HOOK) as parts:
        there = parts.dispatcher._queues
        before = [len(there)]
        for _ in parts.dispatcher.prepare(endpoints):
            assert len(there) - before[-1] <= AT_A_TIME
            before.append(len(there))
        assert before[-1] == 4_000
        assert {there[number].host.most for number in range(2, 4_001)} == {0}
        parts.dispatcher.configure(endpoints, parts.settings)
        await until(lambda: all(queue.host.most for queue in there.values()), "their slots")
        parts.endpoints = {endpoint.id: endpoint for endpoint in endpoints}
        parts.offer(1, endpoint=4_000)
        await until(lambda: parts.recorder.delivered == [1], "the last of them")


async def test_thousands_of_endpoints_are_looked_through_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoints = [hook(number) for number in range(1, 4_001)]
    async with running(*endpoints) as parts:
        looked_at: list[int] = []

        def spy(queue: EndpointQueue, now: float) -> bool:
            looked_at.append(queue.endpoint.id)
            return False

        monkeypatch.setattr(EndpointQueue, "is_held_up", spy)
        parts.store.open.clear()
        for number in range(1, 4_001):
            parts.offer(number, endpoint=number)
        most = await most_between_turns(looked_at, lambda: None, lambda: len(looked_at) >= 4_000)
        assert 0 < most <= AT_A_TIME
        parts.store.open.set()
