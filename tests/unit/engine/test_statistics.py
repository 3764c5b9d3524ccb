"""Sums of how attempts went, written once also where the database fails in between."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.endpoints import HOOK
from tests.waiting import until
from webhookd.engine import statistics
from webhookd.engine.statistics import Statistics
from webhookd.errors import StoreUnavailable
from webhookd.model import Attempt, Delivered, Delivery, Ended, Event, Outcome, Postponed, Result, Retry
from webhookd.policy.statistics import ALL, Row

EVENT = Event(7, "e", datetime(2026, 1, 31, tzinfo=UTC), "t", "", None, None, None, 2, 0, b"{}")
FOREVER = float("inf")


class Store:
    """Fails as often as it is told to."""

    def __init__(self, failures: Sequence[int] = ()) -> None:
        self.rows: list[Row] = []
        self.asked = 0
        self._failures = failures

    async def add(self, rows: Sequence[Row]) -> None:
        self.asked += 1
        if self.asked in self._failures:
            raise StoreUnavailable("away")
        self.rows += rows


def result(endpoint: int, outcome: Outcome, at: float = 60.0, ms: int | None = 5) -> Result:
    delivery = Delivery(EVENT, replace(HOOK, id=endpoint), None, 0, at, 0.0, FOREVER)
    attempt = None if ms is None else Attempt(at, 1, True, 200, ms, None, None)
    return Result(delivery, attempt, outcome)


async def run(store: Store, results: Sequence[Result]) -> None:
    """Until all is written that can be."""
    summing = Statistics(store)
    for each in results:
        summing.add(each)
    async with asyncio.TaskGroup() as group:
        group.create_task(summing.run())
        await until(lambda: len(store.rows) > 0 or store.asked > 0, "a first look")
        summing.stop()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_left", lambda: 0.01)
    monkeypatch.setattr(statistics, "AT_ONCE", 3)


def counts(rows: Sequence[Row]) -> list[int]:
    return [sum(column) for column in zip(*(row.counts for row in rows), strict=True)]


@pytest.mark.parametrize("failures", [(), (1,), (2,), (3, 4)])
async def test_nothing_twice_and_nothing_lost_where_some_of_it_fails(failures: Sequence[int]) -> None:
    store = Store(failures)
    await run(store, [result(n % 10 + 1, Delivered()) for n in range(100)])
    own, total = [row for row in store.rows if row.endpoint != ALL], [row for row in store.rows if row.endpoint == ALL]
    assert counts(own) == counts(total) == [100, 0, 0, 0]
    assert sum(sum(row.took) for row in total) == 100


async def test_what_counts_as_what() -> None:
    store = Store()
    outcomes = (Delivered(), Retry(1.0), Ended("exhausted", "x"), Ended("rejected", "x"), Postponed(1.0))
    await run(store, [*(result(1, each) for each in outcomes), result(1, Ended("rejected", "discarded"), ms=None)])
    (own,) = [row for row in store.rows if row.endpoint == 1]
    assert (own.minute, own.counts, sum(own.took)) == (1, (1, 1, 1, 1), 4)
