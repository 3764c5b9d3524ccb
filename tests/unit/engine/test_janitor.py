"""What the janitor does when: it beats beside the work on the tables, which goes on while there is some."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
import structlog
from structlog.testing import capture_logs

from tests.waiting import until
from webhookd.engine import janitor
from webhookd.engine.clock import Clock
from webhookd.engine.janitor import Janitor
from webhookd.errors import Moved, StoreForbidden, StoreRefused, StoreUnavailable
from webhookd.policy.members import Member

KEPT = 604800.0


class Heard(NamedTuple):
    now: float = 0.0
    known: bool = True
    members: tuple[Member, ...] = ()
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
        self.away = 0  # so many beats fail
        self.trouble: Exception | None = None  # of each beat
        self.missing: Exception | None = None  # of what comes with it
        self.beats = 0
        self.shown: list[tuple[str | None, int | None]] = []
        self.told: list[str] = []
        self.asked: list[str] = []

    async def beat(
        self, daemon: int, low: int, dead_after: float, listen_pid: int | None = None, problem: str | None = None
    ) -> Heard:
        self.beats += 1
        if self.away:
            self.away -= 1
            raise StoreUnavailable("the connection was ended")
        if self.trouble:
            raise self.trouble
        self.shown.append((problem, listen_pid))
        return Heard(known=self.known)

    async def hindered(self, daemon: int, problem: str) -> None:
        self.told.append(problem)

    async def silence(self, daemon: int, dead_after: float) -> int:
        return 0

    async def low(self, low: int) -> int:
        if self.missing:
            raise self.missing
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
async def running(
    tables: Tables,
    keep: Keep = Keep(),  # noqa: B008 - it is frozen
    *,
    said: list[str] | None = None,
    beat_seconds: float = 0.05,
    problem: Callable[[], str] = lambda: "",
    listen_pid: Callable[[], int | None] = lambda: None,
    since_boot: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Janitor]:
    """`said` is what it tells the daemon, in that order."""
    telling = [] if said is None else said
    made = Janitor(
        tables,
        1,
        0,
        Clock(),
        keep,
        on_beat=lambda *_: telling.append("beat"),
        on_silence=lambda: telling.append("silence"),
        beat_seconds=beat_seconds,
        problem=problem,
        listen_pid=listen_pid,
        since_boot=since_boot,
    )
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


async def test_a_beat_that_failed_is_tried_again_before_the_next_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "AGAIN", 0.0)
    tables, said = Tables(), list[str]()
    tables.away = 3
    async with running(tables, said=said, beat_seconds=600.0):
        await until(lambda: said, "the database has heard us")
    assert (said, tables.beats) == (["beat"], 4)


async def test_who_is_not_heard_falls_silent_whenever_the_next_beat_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "AGAIN", 1e6)
    tables, said = Tables(), list[str]()
    tables.away = 1
    async with running(tables, said=said):
        await until(lambda: said, "it starts nothing any more")
    assert (said, tables.beats) == (["silence"], 1)


async def test_who_is_heard_again_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "AGAIN", 2.5)
    tables, said = Tables(), list[str]()
    tables.away = 1
    async with running(tables, said=said):
        await until(lambda: said[-1:] == ["beat"], "it is alive again")
    assert said[0] == "silence"


async def test_of_a_clock_that_differs_is_told_less_and_less() -> None:
    tables, said = Tables(), list[str]()
    with capture_logs() as logs:
        async with running(tables, said=said, beat_seconds=0.01):
            await until(lambda: len(said) >= 10, "heartbeats")
    told = sum(line["event"] == "clock_differs" for line in logs)
    assert told == len(said).bit_length(), "at the 1st, 2nd, 4th, 8th"


async def test_news_of_ourselves_come_with_an_early_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "EARLY", 1e-5)
    tables, problem, pid = Tables(), "", 7
    async with running(tables, beat_seconds=1000.0, problem=lambda: problem, listen_pid=lambda: pid):
        await until(lambda: tables.shown == [(None, 7)], "the first beat")
        problem = "a lock is kept"
        await until(lambda: tables.shown[-1] == ("a lock is kept", 7), "a problem that is new")
        pid = 8
        await until(lambda: tables.shown[-1] == ("a lock is kept", 8), "a connection that is new")
        problem = ""
        await until(lambda: tables.shown[-1] == (None, 8), "that it is over")
        await asyncio.sleep(0.1)  # some steps more
    assert tables.beats == 4, "nothing new, no early beat"


async def test_a_heartbeat_that_may_not_be_written_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "AGAIN", 0.0)
    tables = Tables()
    tables.trouble = StoreForbidden("permission denied for table downtime")
    with capture_logs() as logs:
        async with running(tables, beat_seconds=600.0, problem=lambda: made.beating.sentence) as made:
            await until(lambda: tables.told, "its row to say it")
            tables.trouble = None
            await until(lambda: not made.beating.problem, "it is heard")
    assert set(tables.told) == {"its heartbeat waits: permission denied for table downtime"}
    told = [(line["event"], line["part"]) for line in logs if line["event"].startswith("part_")]
    assert told == [("part_failed", "heartbeat"), ("part_works", "heartbeat")]


async def test_a_database_that_does_not_answer_is_not_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "AGAIN", 0.0)
    tables = Tables()
    tables.away = 3
    async with running(tables, beat_seconds=600.0):
        await until(lambda: tables.beats > 3, "it is heard")
    assert tables.told == []


async def test_who_may_not_look_at_the_others_is_alive_and_says_so() -> None:
    tables = Tables()
    tables.missing = StoreForbidden("permission denied for table batch")
    async with running(tables, beat_seconds=0.02, problem=lambda: made.minding.sentence) as made:
        said = "its look at the others waits: permission denied for table batch"
        await until(lambda: tables.shown and tables.shown[-1] == (said, None), "it says so")
        tables.missing = None
        await until(lambda: tables.shown[-1] == (None, None), "that it is over")


async def test_a_refused_heartbeat_is_told_by_its_name() -> None:
    tables = Tables()
    tables.trouble = StoreRefused("broken")
    async with running(tables, beat_seconds=0.02, problem=lambda: made.beating.sentence) as made:
        await until(lambda: tables.told, "its row to say it")
    assert tables.told[0] == "its heartbeat waits: broken"


async def test_who_stood_still_until_the_others_took_it_for_dead_says_so_and_starts_nothing_before_it_is_heard() -> (
    None
):
    """By a clock that goes on while the machine sleeps, as the others have it."""
    tables, said, boot = Tables(), list[str](), 1000.0
    with capture_logs() as logs:
        async with running(tables, said=said, beat_seconds=10.0, since_boot=lambda: boot) as made:
            await until(lambda: said == ["beat"], "the first beat")
            boot += made.dead_after  # not longer than that
            await asyncio.sleep(0)
            made._was_frozen()
            boot += made.dead_after + 5.0
            await until(lambda: len(said) > 2, "it is heard again")
    assert said == ["beat", "silence", "beat"]
    assert [line["seconds"] for line in logs if line["event"] == "was_frozen"] == [35.0]
