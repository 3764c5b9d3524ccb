"""Every endpoint that does not work is seen to, also when the database is away, or when others fail meanwhile."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby, pairwise
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from tests.endpoints import HOOK
from tests.waiting import until
from webhookd.engine.dispatch.queues import SPILLED_MOST
from webhookd.engine.parked import endings, follower, log_pages, windows
from webhookd.engine.parked.follower import Dispatcher, Follower, Store
from webhookd.engine.parked.log_pages import LogPages
from webhookd.engine.parked.windows import Recorder
from webhookd.engine.state import Heartbeat, Subscriptions
from webhookd.errors import StoreRefused, StoreUnavailable
from webhookd.model import Delivery, Endpoint, Event, Result, Window
from webhookd.policy.members import Shares
from webhookd.policy.parking import Cursor, Parked, Parking
from webhookd.store.parking import Page

DAY = datetime(2021, 1, 27, tzinfo=UTC)


class Tables:
    """A store that only parks; `during` happens while it does."""

    def __init__(self) -> None:
        self.parked: list[tuple[str, list[int]]] = []
        self.troubles: list[Exception] = []
        self.during: list[Any] = []
        self.looks = 0  # at who is parked

    async def version(self) -> int:
        self.looks += 1
        return 0

    async def owing_little(self, endpoint_ids: Sequence[int], most: int) -> set[int]:
        return set()

    async def park(self, breakers: dict[int, tuple[int, float]], why: str, owner: int) -> int:
        if self.during:
            self.during.pop()()
        await asyncio.sleep(0)
        if self.troubles:
            raise self.troubles.pop()
        before = {id_ for _, ids in self.parked for id_ in ids}
        self.parked.append((why, sorted(breakers)))
        return len(breakers.keys() - before)


class Nobody:
    """A dispatcher without queues."""

    def __init__(self) -> None:
        self.counted_anew: list[int] = []
        self.ordering = self

    def unparked(self) -> list[int]:
        """None of them keeps an order."""
        return []

    def still_flies(self, endpoint_id: int) -> bool:
        return False

    def follow(self, fed: object) -> None:
        pass

    def breaker(self, endpoint_id: int) -> tuple[int, float]:
        return 1, 1.0

    def keeps_up(self, endpoint_id: int) -> None:
        self.counted_anew.append(endpoint_id)


class Known(Subscriptions):
    """Any endpoint that is asked for."""

    def __init__(self, find: Callable[[int], Endpoint | None]) -> None:
        super().__init__(42)
        self.endpoint = find


def follow(
    store: Tables,
    dispatcher: Nobody | None = None,
    endpoint: Endpoint | Callable[[int], Endpoint | None] | None = None,
    dead_after: float = 15.0,
) -> Follower:
    return Follower(
        cast(Store, store),
        cast(LogPages, None),
        cast(Dispatcher, dispatcher or Nobody()),
        cast(Recorder, None),
        Parking(0),
        Heartbeat(),
        Known(endpoint if callable(endpoint) else lambda _: endpoint),
        lambda _: False,
        lambda _: 0.0,
        dead_after=dead_after,
        look_seconds=0.01,
    )


@pytest.mark.parametrize("troubles", [[], [StoreUnavailable("gone")]])
async def test_no_trouble_is_forgotten(monkeypatch: pytest.MonkeyPatch, troubles: list[Exception]) -> None:
    monkeypatch.setattr(follower, "AWAY_SECONDS", 0.001)
    store = Tables()
    following = follow(store)
    store.troubles = list(troubles)
    store.during = [lambda: following.trouble(3, "failing")]
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        following.trouble(1, "failing")
        following.trouble(2, "saturated")

        def all_parked() -> bool:
            return {(why, id_) for why, ids in store.parked for id_ in ids} == {
                ("failing", 1),
                ("saturated", 2),
                ("failing", 3),
            }

        await until(all_parked, "each to be parked")
        following.stop()


async def test_it_tells_of_those_alone_that_were_not_parked() -> None:
    store = Tables()
    following = follow(store)
    with capture_logs() as logs:
        async with asyncio.TaskGroup() as group:
            group.create_task(following.run())
            for ids in ((1, 2), (2, 3), (3,)):
                before = len(store.parked)
                for id_ in ids:
                    following.trouble(id_, "failing")
                await until(lambda before=before: len(store.parked) > before, "them to be seen to")  # type: ignore[misc]
            following.stop()
    assert sum(line["endpoints"] for line in logs if line["event"] == "parked") == 3


async def test_it_says_that_it_is_parking_until_others_know() -> None:
    store = Tables()
    following = follow(store)
    said: list[bool] = []
    store.during = [lambda: said.append(following.is_parking)]
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        said.append(following.is_parking)
        following.trouble(1, "failing")
        said.append(following.is_parking)
        await until(lambda: said == [False, True, True], "it to be seen to")
        await until(lambda: not following.is_parking, "the end of it")
        following.stop()


async def test_where_parking_is_refused_others_wait_for_a_moment_alone_and_the_parked_are_seen_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follower, "AWAY_SECONDS", 0.001)
    store = Tables()
    following = follow(store)
    refused = [StoreRefused("violates check constraint")] * 10_000
    store.troubles = list(refused)
    with capture_logs():
        async with asyncio.TaskGroup() as group:
            group.create_task(following.run())
            following.trouble(1, "failing")
            await until(lambda: len(store.troubles) < len(refused) - 2, "it to be refused some times")
            said = [following.is_parking]
            monkeypatch.setattr(follower, "PARKING_MOST", 0.0)
            said.append(following.is_parking)
            assert said == [True, False]
            looks = store.looks
            await until(lambda: store.looks > looks + 2, "the others to be looked at meanwhile")
            store.troubles.clear()
            await until(lambda: store.parked == [("failing", [1])], "it to be parked, since nothing is forgotten")
            following.stop()


class Ranges(Tables):
    """A store with an endpoint that is parked twice, before batch 9 and from there on; the log ends at 10."""

    def __init__(self) -> None:
        super().__init__()
        self.next_batch = 3
        self.changes = 0
        self.looks = 0
        self.unparked: list[int] = []
        self.owed = 0

    async def version(self) -> int:
        return self.changes

    async def parking(self) -> Parking:
        def row(first: int, last: int | None, next_batch: int) -> Parked:
            return Parked(1, first, last, next_batch, 0, "saturated", 42, 1, 0, None, False, False, 0.0, False)

        rows = [row(3, 9, self.next_batch), row(9, None, 10)]
        return Parking(self.changes, rows[1:] if self.unparked else rows)

    async def newest(self) -> int:
        self.looks += 1
        return 10

    async def take(self, *_: object) -> int:
        return 0

    async def let_go_of(self, *_: object) -> None: ...

    async def forget(self) -> None: ...

    async def owing_little(self, endpoint_ids: Sequence[int], most: int) -> set[int]:
        return {id_ for id_ in endpoint_ids if self.owed < most}

    async def unpark(self, epochs: dict[int, int], owner: int) -> int:
        self.unparked += epochs
        return len(epochs)


class Well(Nobody):
    """A dispatcher whose endpoints are well and have all they can take."""

    room = 100

    def breaker(self, endpoint_id: int) -> tuple[int, float]:
        return 0, 0.0

    def reads_on(self, endpoint_id: int) -> bool:
        return True

    def claimable(self, endpoint_id: int) -> tuple[int, float]:
        return 0, 45.0

    def is_well(self, endpoint_id: int) -> bool:
        return True


async def test_an_endpoint_is_live_again_only_when_no_older_range_has_more() -> None:
    store = Ranges()
    following = follow(store, Well(), endpoint=HOOK)
    following.changed()
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        await until(lambda: store.looks > 5, "some looks")
        assert store.unparked == []
        store.next_batch, store.changes = 9, 1
        await until(lambda: store.unparked[:1] == [1], "it to be live again")
        following.stop()


async def test_an_endpoint_is_live_again_only_when_little_of_it_is_in_the_backlog() -> None:
    """Whoever put it there, and whoever sent it."""
    store = Ranges()
    store.next_batch, store.owed = 9, SPILLED_MOST // 2
    following = follow(store, Well(), endpoint=HOOK)
    following.changed()
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        await until(lambda: store.looks > 5, "some looks")
        assert store.unparked == []
        store.owed -= 1
        await until(lambda: store.unparked[:1] == [1], "it to be live again")
        following.stop()


class Orphans(Tables):
    """A store with two endpoints that the daemon 9 has, of one of them two cursors."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = 9
        self.changes = 0
        self.asked: list[list[int]] = []
        self.freed: list[list[int]] = []

    async def version(self) -> int:
        return self.changes

    async def parking(self) -> Parking:
        def row(endpoint: int, first: int, last: int | None) -> Parked:
            return Parked(endpoint, first, last, first, 0, "failing", self.owner, 1, 0, None, True, False, 0.0, False)

        return Parking(self.changes, [row(1, 3, 9), row(1, 9, None), row(2, 3, None)])

    async def take(self, owner: int, endpoint_ids: Sequence[int], steady_until: float, dead_after: float) -> int:
        self.asked.append(list(endpoint_ids))
        return 0

    async def let_go_of(self, owner: int, endpoint_ids: Sequence[int]) -> None:
        self.freed.append(list(endpoint_ids))
        self.owner, self.changes = 0, self.changes + 1

    async def newest(self) -> int:
        return 10

    async def forget(self) -> None: ...


@pytest.mark.parametrize("others", [(), (43,), (43, 44, 45)])
async def test_what_has_no_sender_is_taken_by_one_at_once_and_soon_by_anybody(others: tuple[int, ...]) -> None:
    store = Orphans()
    following = follow(store, Well(), endpoint=HOOK, dead_after=1.2)
    following._subscriptions.shares = Shares(42, (42, *others), {})
    at_once = [id_ for id_ in (1, 2) if following._subscriptions.shares.first(id_) == 42]
    following.changed()
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        await until(lambda: [1, 2] in store.asked, "both to be taken")
        following.stop()
    assert store.asked[0] == (at_once or [1, 2])


async def test_what_another_can_send_to_is_left_to_it() -> None:
    store = Orphans()
    following = follow(store, Well(), endpoint=HOOK, dead_after=0.06)
    following._subscriptions.shares = Shares(42, (9, 42), {2: (42,)})  # the second it has no longer
    following.changed()
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        await until(lambda: len(store.asked) > 5, "some looks")
        following.stop()
    assert store.asked == [[2]] * len(store.asked)


async def test_what_our_files_do_not_have_any_longer_is_left_to_others_once_it_is_settled() -> None:
    store = Orphans()
    store.owner = 42
    ours: list[Endpoint] = [HOOK]
    following = follow(store, Well(), endpoint=lambda _: ours[0] if ours else None)
    following.changed()
    window = Window(1, 9, 1, 10, 0)
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        await until(lambda: following._cursors.get((1, 9)), "its cursors")
        cast(Cursor, following._cursors.get((1, 9))).last = window
        ours.clear()
        following.changed()
        await until(lambda: store.freed, "the other to be free")
        assert store.freed[0] == [2]
        store.owner, store.changes = 42, store.changes + 1
        window.recorded = True
        await until(lambda: any(1 in ids for ids in store.freed), "the first, when it is settled")
        following.stop()


class Clear(Tables):
    """A store in which little is owed to the first endpoint."""

    async def owing_little(self, endpoint_ids: Sequence[int], most: int) -> set[int]:
        return {1} & set(endpoint_ids)


async def test_one_whose_backlog_is_small_is_not_parked_for_what_was_put_off() -> None:
    store, dispatcher = Clear(), Nobody()
    following = follow(store, dispatcher)
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        for endpoint in (1, 2):
            following.trouble(endpoint, "saturated")
        await until(lambda: store.parked, "the other to be parked")
        following.stop()
    assert store.parked == [("saturated", [2])]
    assert dispatcher.counted_anew == [1]


class Many(Tables):
    """A store with so many that are parked that it takes a moment to read them."""

    async def version(self) -> int:
        return len(self.parked)

    async def parking(self) -> Parking:
        await asyncio.sleep(0.01)
        return Parking(len(self.parked))


async def test_where_many_are_parked_they_are_seen_to_together() -> None:
    store = Many()
    following = follow(store)
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        for number in range(200):
            following.trouble(number, "failing")
            await asyncio.sleep(0.001)
        await until(lambda: sum(len(ids) for _, ids in store.parked) == 200, "all to be parked")
        following.stop()
    assert len(store.parked) <= 2 + (time.monotonic() - began) / (0.01 * follower.RESTRAINT)


class Full(Well):
    """A dispatcher with so much room; each endpoint takes up to 200."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.left = self.least = room
        self.offered: list[Delivery] = []
        self.passed_on: list[Delivery] = []

    def room_for(self, tenant: str) -> int:
        return self.left

    def reads_on(self, endpoint_id: int) -> bool:
        return True

    def claimable(self, endpoint_id: int) -> tuple[int, float]:
        return 200 - sum(delivery.endpoint.id == endpoint_id for delivery in self.offered[-200:]), 45.0

    def offer(self, delivery: Delivery) -> None:
        self.left -= 1
        self.least = min(self.least, self.left)
        self.offered.append(delivery)

    def put_off(self, delivery: Delivery) -> None:
        self.passed_on.append(delivery)


class Resumed(Tables):
    """A store with so many endpoints that are owed the same 500 events of one batch, and what is asked of it."""

    def __init__(self, endpoints: int, fails: int = 0, deaths: int = 0) -> None:
        super().__init__()
        self.recorder = Ends()
        self.deaths = deaths
        self.endpoints = {id_: replace(HOOK, id=id_, name=f"hook-{id_}") for id_ in range(1, endpoints + 1)}
        self.fails = fails
        self.settled_pairs: list[int] = []
        self.given_up: list[list[int]] = []
        self.versions = 0

    async def version(self) -> int:
        self.versions += 1
        return 1

    async def parking(self) -> Parking:
        return Parking(
            1,
            [
                Parked(id_, 1, None, 1, 0, "x", 42, 1, self.fails, None, False, False, 0.0, False, self.deaths)
                for id_ in self.endpoints
            ],
        )

    async def newest(self) -> int:
        return 1

    async def take(self, *_: object) -> int:
        return 0

    async def pages(self, first: int, most: int) -> list[Page]:
        return [Page(1, 1000.0, list(range(500)), DAY, DAY, False)] if first == 1 else []

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime) -> list[Event]:
        return [Event(id_, f"evt_{id_}", DAY, "order.created", "", None, None, None, 2) for id_ in ids]

    async def set_aside(self, unreadable: object) -> None: ...

    async def whole(self, event: Event) -> Event:
        return event

    async def settled(self, pairs: Sequence[tuple[int, int]], lo: datetime) -> set[tuple[int, int]]:
        self.settled_pairs.append(len(pairs))
        return set()

    async def give_up(self, endpoints: Sequence[tuple[int, int, float]], owner: int) -> dict[int, int]:
        self.given_up.append([id_ for id_, _, _ in endpoints])
        return {}

    def follower(self, dispatcher: Nobody) -> Follower:
        subscriptions = Subscriptions(42)
        subscriptions.endpoint = self.endpoints.get
        subscriptions.endpoints_for = lambda _: tuple(self.endpoints.values())
        pages = LogPages(cast(log_pages.Store, self), self, subscriptions)
        following = Follower(
            cast(Store, self),
            pages,
            cast(Dispatcher, dispatcher),
            cast(Recorder, self.recorder),
            Parking(-1),
            Heartbeat(),
            subscriptions,
            lambda _: False,
            lambda _: 1e9,
            dead_after=15.0,
            look_seconds=0.01,
        )
        following.changed()
        return following


class Ends:
    """A recorder that writes nothing."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def put(self, result: Result) -> None:
        self.results.append(result)

    def settle(self, batch: Window) -> None:
        batch.open -= 1


async def test_cursors_hand_out_what_memory_has_room_for() -> None:
    """However many endpoints are resumed at once; and what changes meanwhile is looked at between."""
    store, dispatcher = Resumed(300), Full(1_000)
    following = store.follower(dispatcher)
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        await until(lambda: dispatcher.left <= 0, "as much as there is room for")
        looks = store.versions
        await until(lambda: store.versions > looks + 2, "more looks")
        assert len(dispatcher.offered) == 1_000
        dispatcher.left = 50_000
        await until(lambda: dispatcher.left <= 0, "the rest", timeout=30.0)
        following.stop()
    assert dispatcher.least == 0  # never more than that
    assert max(store.settled_pairs) <= windows.AT_ONCE + 200


async def test_others_have_their_turn_while_cursors_hand_out() -> None:
    store, dispatcher = Resumed(300), Full(20_000)
    following = store.follower(dispatcher)
    seen: set[int] = set()
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        while dispatcher.left > 0:
            seen.add(len(dispatcher.offered))
            await asyncio.sleep(0)
        following.stop()
    assert len(seen) >= 20_000 // (windows.AT_ONCE + 200)


async def test_no_endpoint_waits_until_others_have_had_their_turns_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little there is time for at once."""
    monkeypatch.setattr(windows, "HAND_OUT_SECONDS", 0.0)
    store, dispatcher = Resumed(20), Full(100_000)
    store.endpoints[20] = replace(store.endpoints[20], tenant="b")
    following = store.follower(dispatcher)
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        await until(lambda: len({delivery.endpoint.id for delivery in dispatcher.offered}) == 20, "each to have a turn")
        following.stop()
    turns = [id_ for id_, _ in groupby(delivery.endpoint.id for delivery in dispatcher.offered)]
    assert turns[1] == 20  # of another tenant, behind the first
    assert [id_ for id_ in turns if id_ != 20][:19] == list(range(1, 20))


@pytest.mark.parametrize("deaths", [windows.DEATHS_MOST, windows.DEATHS_MOST + 1])
async def test_what_daemons_may_have_died_of_goes_to_the_backlog_once(deaths: int) -> None:
    store, dispatcher = Resumed(1, deaths=deaths), Full(1_000)
    following = store.follower(dispatcher)
    suspect = deaths > windows.DEATHS_MOST
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        await until(lambda: len(dispatcher.offered) + len(dispatcher.passed_on) >= 200, "a turn")
        await until(lambda: dispatcher.offered, "what is tried")
        following.stop()
    passed_on = [delivery.event.id for delivery in dispatcher.passed_on]
    assert passed_on == list(range(windows.PASSED_ON if suspect else 0))
    assert dispatcher.offered[0].event.id == len(passed_on)


class Thousands(Tables):
    """A store in which thousands are parked, or none when they have no owner."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.owner: int | None = 42

    async def parking(self) -> Parking:
        self.asked += 1
        rows = [
            Parked(id_, 3, None, 3, 0, "failing", self.owner, 1, 0, None, False, False, 0.0, False)
            for id_ in range(1, 2_001)
        ]
        return Parking(self.asked, rows if self.owner else [])


class Told(Nobody):
    """A dispatcher that remembers how many it was told about at a time; `meanwhile` happens then."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[int] = []
        self.meanwhile: list[Callable[[], None]] = []

    def follow(self, fed: object) -> None:
        self.told.append(len(cast(dict[int, object], fed)))
        if self.meanwhile:
            self.meanwhile.pop()()


async def test_thousands_that_are_parked_are_seen_to_some_at_a_time_and_are_aside_when_all_are() -> None:
    store, dispatcher = Thousands(), Told()
    following = follow(store, dispatcher, endpoint=HOOK)
    turns: list[int] = []
    async with asyncio.TaskGroup() as group:
        catching_up = group.create_task(following.catch_up(1))
        while not catching_up.done():
            turns.append(sum(dispatcher.told))
            assert following.by_cursor(10) == frozenset()
            await asyncio.sleep(0)
    assert len(following.by_cursor(10)) == 2_000
    assert sum(dispatcher.told) == 2_000
    assert max(after - before for before, after in pairwise(turns)) <= follower.AT_A_TIME
    assert len(list(following._cursors)) == 2_000

    dispatcher.told.clear()
    store.owner = None  # all are live again
    await following.catch_up(2)
    assert (sum(dispatcher.told), max(dispatcher.told)) == (2_000, follower.AT_A_TIME)
    assert (list(following._cursors), following._cursors.fed) == ([], {})


async def test_what_a_reload_changes_while_others_are_seen_to_is_looked_at_again() -> None:
    store, dispatcher = Thousands(), Told()
    following = follow(store, dispatcher, endpoint=HOOK)
    dispatcher.meanwhile = [following.changed]
    await following.catch_up(1)
    assert store.asked == 1
    await following.catch_up(1)
    assert store.asked == 2
    await following.catch_up(1)
    assert store.asked == 2


class Failing(Well):
    """A dispatcher all of whose endpoints fail."""

    def breaker(self, endpoint_id: int) -> tuple[int, float]:
        return 3, 1.0

    def room_for(self, tenant: str) -> int:
        return 1


async def test_what_waited_for_its_whole_time_is_ended_for_some_at_a_time() -> None:
    store = Resumed(120, fails=3)
    following = store.follower(Failing())
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        await until(lambda: len(store.given_up) == 3, "all of them")
        following.stop()
    assert max(map(len, store.given_up)) <= endings.GIVE_UP_AT_ONCE
    assert sorted(id_ for ids in store.given_up for id_ in ids) == list(range(1, 121))


async def test_what_was_resumed_meanwhile_is_not_ended_by_what_was_known_before() -> None:
    """The reader has who is parked read anew whenever it wants, also between two statements of the follower."""

    class Resuming(Resumed):
        resumed_at = 0.0

        async def parking(self) -> Parking:
            found = await super().parking()
            return Parking(self.versions, [row._replace(resumed_at=self.resumed_at) for row in found.rows])

        async def version(self) -> int:
            self.versions += 1
            return self.versions

        async def breakers(self, breakers: dict[int, tuple[int, float]], owner: int) -> None:
            self.resumed_at = 2e9
            await following.catch_up(self.versions + 1)

    store = Resuming(3, fails=1)  # which is three by now, so that it is written
    following = store.follower(Failing())
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        await until(lambda: store.versions > 5 and store.resumed_at > 0, "some looks")
        following.stop()
    assert store.given_up == []
