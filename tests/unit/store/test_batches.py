"""Events that cannot be read are found by halving: each is set aside, and no other."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from webhookd.errors import StoreDamaged, StoreRefused, StoreUnavailable
from webhookd.model import Event
from webhookd.store import batches
from webhookd.store.batches import UNREADABLE, Batches
from webhookd.store.statements import QUERIES
from webhookd.store.translation import translated
from webhookd.tally import Tally

DAY = datetime(2021, 1, 27, tzinfo=UTC)
CORRUPT = asyncpg.DataCorruptedError("invalid page in block 7 of relation base/5/16384")
LOST = asyncpg.PostgresIOError("could not read blocks 7..7 in file: Input/output error")
LATE = OverflowError("date value out of range")
AWAY = asyncpg.PostgresConnectionError("connection was closed")


class Damaged:
    """A database: what reading an event of `poison` raises, so many times, and what was set aside."""

    def __init__(self, poison: dict[int, Exception], times: int = 1_000_000) -> None:
        self.poison = poison
        self.times = times
        self.aside: dict[int, str] = {}
        self.reads: list[list[int]] = []
        self.tally = Tally()

    async def fetch(self, query: str, *arguments: Any) -> Sequence[Any]:
        if query == QUERIES["set_aside"]:
            self.aside |= dict(zip(*arguments, strict=True))
            return [(id_,) for id_ in arguments[0]]
        ids = list(arguments[0])
        self.reads.append(ids)
        for id_ in ids:
            if id_ in self.poison and self.times > 0:
                self.times -= 1
                with translated():
                    raise self.poison[id_]
        if query in (QUERIES["payloads"], QUERIES["metadata"]):
            return [(id_, b"{}") for id_ in ids]
        return [tuple(event(id_)) for id_ in ids]


def event(id_: int) -> Event:
    return Event(id_, f"evt_{id_}", DAY, "order.created", "", None, None, None, 2)


async def heads(database: Damaged, ids: Sequence[int]) -> list[int]:
    found = await Batches(database).heads(ids, DAY, DAY)  # type: ignore[arg-type]
    return [each.id for each in found]


async def payloads(database: Damaged, ids: Sequence[int]) -> dict[int, bytes | str]:
    return await Batches(database).payloads([event(id_) for id_ in ids], 100)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SURE_AFTER", 0.001)


@pytest.mark.parametrize("error", [CORRUPT, LOST, LATE])
@pytest.mark.parametrize("bad", [{1}, {500}, {250, 251}, {3, 77, 78, 499}])
async def test_each_that_cannot_be_read_is_set_aside_and_no_other(error: Exception, bad: set[int]) -> None:
    ids = range(1, 501)
    database = Damaged(dict.fromkeys(bad, error))
    assert await heads(database, ids) == [id_ for id_ in ids if id_ not in bad]
    assert database.aside.keys() == bad
    assert len(database.reads) <= 1 + 21 * len(bad)  # 2 log2(500) for each
    assert all(str(error) in why for why in database.aside.values())
    database = Damaged(dict.fromkeys(bad, error))
    found = await payloads(database, ids)
    assert {id_ for id_, content in found.items() if content == UNREADABLE} == bad
    assert {id_ for id_, content in found.items() if content == b"{}"} == set(ids) - bad
    assert database.aside.keys() == bad
    database = Damaged(dict.fromkeys(bad, error))
    metadata = await Batches(database).metadata([event(id_) for id_ in ids])  # type: ignore[arg-type]
    assert metadata.keys() == set(ids) - bad
    assert database.aside.keys() == bad


@pytest.mark.parametrize("error", [CORRUPT, LOST])
@pytest.mark.parametrize("times", [1, 2, 5, 9])
async def test_what_passes_while_it_is_looked_for_sets_nothing_aside(error: Exception, times: int) -> None:
    database = Damaged(dict.fromkeys(range(1, 9), error), times)
    assert await heads(database, range(1, 9)) == list(range(1, 9))
    assert database.aside == {}


async def test_all_of_a_disk_that_fails_is_the_fault_of_no_event() -> None:
    database = Damaged(dict.fromkeys(range(1, 9), LOST))
    for read in (heads, payloads):
        with pytest.raises(StoreDamaged, match="Input/output error"):
            await read(database, range(1, 9))
    with pytest.raises(StoreDamaged):
        await heads(database, [1])
    assert database.aside == {}


@pytest.mark.parametrize("error", [AWAY, TimeoutError()])
async def test_a_database_that_is_away_is_not_looked_into(error: Exception) -> None:
    database = Damaged({1: error})
    with pytest.raises(StoreUnavailable):
        await heads(database, [1, 2])
    assert len(database.reads) == 1


def test_which_errors_are_what_passes() -> None:
    for error, kind, passes in ((CORRUPT, StoreRefused, True), (LOST, StoreDamaged, True), (LATE, StoreRefused, False)):
        with pytest.raises(kind) as caught, translated():
            raise error
        assert caught.value.passes is passes  # type: ignore[attr-defined]
