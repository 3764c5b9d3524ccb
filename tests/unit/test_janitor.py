"""What the janitor does when: it beats beside the work on the tables, which goes on while there is some."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
import structlog
from structlog.testing import capture_logs

from tests.waiting import until
from webhookd import janitor
from webhookd.clock import Clock
from webhookd.errors import Moved, StoreUnavailable
from webhookd.janitor import Janitor

KEPT = 604800.0


class Heard(NamedTuple):
    now: float = 0.0
    known: bool = True
    live: int = 1
    rank: int = 0
    downtimes: tuple[tuple[float, float], ...] = ()


class Keep(NamedTuple):
    events: float = KEPT
    attempts: float = KEPT
    manage_partitions: bool = True


class Tables:
    """A store whose work is a list of answers; the last one is given for ever."""

    def __init__(self) -> None:
        self.pieces: list[list[tuple[str, str | None]] | StoreUnavailable] = [[]]
        self.swept = [0]
        self.lags: dict[int, float] = {}
        self.known = True
        self.beats = 0
        self.asked: list[str] = []

    async def beat(self, daemon: int, low: int, dead_after: float, listen_pid: int | None = None) -> Heard:
        self.beats += 1
        return Heard(known=self.known)

    async def silence(self, daemon: int, dead_after: float) -> int:
        return 0

    async def low(self, low: int) -> int:
        return low

    async def maintain(self, events: float, attempts: float) -> list[tuple[str, str | None]]:
        self.asked.append("maintain")
        answer = self.pieces.pop(0) if len(self.pieces) > 1 else self.pieces[0]
        if isinstance(answer, StoreUnavailable):
            raise answer
        return answer

    async def sweep(self, events: float) -> int:
        self.asked.append("sweep")
        return self.swept.pop(0) if len(self.swept) > 1 else self.swept[0]

    async def lagging(self, seconds: float) -> dict[int, float]:
        self.asked.append(f"lagging {seconds / KEPT:g}")
        return self.lags


@asynccontextmanager
async def running(tables: Tables, keep: Keep = Keep()) -> AsyncIterator[Janitor]:  # noqa: B008 - it is frozen
    made = Janitor(tables, 1, 0, Clock(), keep, on_beat=lambda *_: None, on_silence=lambda: None, beat_seconds=0.05)
    async with asyncio.TaskGroup() as group:
        group.create_task(made.run())
        yield made
        made.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "TIDY_ON", 0.0)


@pytest.mark.usefixtures("quick")
async def test_the_work_goes_on_while_there_is_some_and_then_waits_for_an_hour() -> None:
    tables = Tables()
    tables.pieces = [[("made a", None)], [("dropped b", None)], []]
    tables.swept = [3, 0]
    async with running(tables):
        await until(lambda: "lagging 0.8" in tables.asked, "all is done")
        beats = tables.beats
        await until(lambda: tables.beats > beats + 3, "it beats on")
    assert tables.asked == ["maintain"] * 3 + ["sweep", "maintain", "sweep", "lagging 0.8"]


@pytest.mark.usefixtures("quick")
async def test_without_the_right_to_partitions_only_rows_go() -> None:
    tables = Tables()
    async with running(tables, Keep(manage_partitions=False)):
        await until(lambda: "lagging 0.8" in tables.asked, "all is done")
    assert tables.asked == ["sweep", "lagging 0.8"]


async def test_a_lock_in_the_way_is_tried_again_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "TIDY_AGAIN", 0.0)
    structlog.reset_defaults()
    tables = Tables()
    problem = ("outbox_20260101", "a transaction that uses outbox is open")
    tables.pieces = [[problem], [problem], StoreUnavailable("away"), [problem], []]
    with capture_logs() as logs:
        async with running(tables):
            await until(lambda: "lagging 0.8" in tables.asked, "the lock is gone")
    assert tables.asked[:5] == ["maintain"] * 5
    assert [line["what"] for line in logs if line["event"] == "not_maintained"] == ["outbox_20260101"]


async def test_a_cursor_that_lags_is_an_alarm() -> None:
    structlog.reset_defaults()
    tables = Tables()
    tables.lags = {7: 500_000.0}
    with capture_logs() as logs:
        async with running(tables):
            await until(lambda: "lagging 0.8" in tables.asked, "it has looked")
    assert [line["endpoint_id"] for line in logs if line["event"] == "cursor_lags"] == [7]


async def test_a_daemon_that_the_database_forgot_ends_with_all_that_it_has() -> None:
    tables = Tables()
    tables.known = False
    with pytest.RaisesGroup(Moved, flatten_subgroups=True):
        async with running(tables):
            await asyncio.sleep(10)
