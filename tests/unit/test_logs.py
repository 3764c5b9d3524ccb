"""The log: each event is in its page, what repeats is told rarely, and nothing that is shown acts on a terminal."""

import ast
import asyncio
import json
import logging
import os
import pty
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from structlog.testing import capture_logs

from tests.endpoints import HOOK
from tests.waiting import until
from webhookd.cli.logging import configure
from webhookd.engine.given_up import GivenUp
from webhookd.engine.intake.unmatched import Unmatched
from webhookd.engine.parked.pauses import Pauses
from webhookd.engine.recorder import Recorder
from webhookd.errors import StoreUnavailable
from webhookd.tasks import LASTS, Setbacks, is_worth_a_line

REPOSITORY = Path(__file__).parents[2]
LEVELS = {name: name for name in ("debug", "info", "warning", "error", "critical")} | {"exception": "error"}
ROW = re.compile(r"\| (?P<events>`[^|]+`) \| (?P<level>\w+) \| (?P<beside>[^|]*)\| (?P<means>[^|]+) \| (?P<do>.*)\|")

Entry = tuple[str, str, frozenset[str]]  # event, level, what stands beside it


def names(node: ast.expr) -> Iterator[str]:
    """The events that an expression may name."""
    if isinstance(node, ast.IfExp):
        yield from names(node.body)
        yield from names(node.orelse)
    else:
        assert isinstance(node, ast.Constant), f"no page can name this event: {ast.unparse(node)}"
        yield str(node.value)


def said() -> Iterator[Entry]:
    """What the source says in the log."""
    totals = Recorder(cast(Any, None), 0).totals.keys()
    for file in sorted((REPOSITORY / "webhookd").rglob("*.py")):
        text = file.read_text()
        loggers = re.findall(r".*get_logger.*", text)
        assert all(line.startswith('log = structlog.get_logger("webhookd.') for line in loggers), file
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("log"), attr=level), args=[event]) if level in LEVELS:
                    beside = {name for each in node.keywords for name in (totals if each.arg is None else {each.arg})}
                    for name in names(event):
                        yield name, LEVELS[level], frozenset(beside - {"exc_info"})
                case ast.Dict(keys=keys, values=values):
                    record = {str(getattr(key, "value", "")): value for key, value in zip(keys, values, strict=True)}
                    if "msg" in record:  # the one line without a logger: by the thread that writes all others
                        for name in names(record["msg"]):
                            yield name, "error", frozenset(record.keys() - {"name", "msg", ""})


def documented() -> Iterator[Entry]:
    for line in (REPOSITORY / "docs" / "logs.md").read_text().splitlines():
        if line.startswith("| `"):
            row = ROW.fullmatch(line)
            assert row is not None, line
            for event in re.findall(r"`(\w+)`", row["events"]):
                yield event, row["level"], frozenset(re.findall(r"`(\w+)`", row["beside"]))


def test_each_event_of_the_source_is_in_the_page_and_each_of_the_page_in_the_source() -> None:
    page = list(documented())
    assert len(page) == len({event for event, _, _ in page}), "an event has one row"
    assert set(page) == set(said())


def test_what_the_page_links_to_is_there() -> None:
    page = (REPOSITORY / "docs" / "logs.md").read_text()
    for file, anchor in re.findall(r"\]\(([\w.]+)#([\w-]+)\)", page):
        heads = re.findall(r"^#+ (.+)$", (REPOSITORY / "docs" / file).read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


# What repeats


def test_the_same_is_worth_a_line_less_and_less() -> None:
    assert [times for times in range(1, 100) if is_worth_a_line(times)] == [1, 2, 4, 8, 16, 32, 64]
    setbacks = Setbacks("part")
    told = []
    for _ in range(9):
        setbacks.met(OSError())
        told.append(setbacks.is_worth_a_line)
    assert told == [True, True, False, True, False, False, False, True, False]
    setbacks.over()
    setbacks.met(OSError())
    assert setbacks.is_worth_a_line, "the next outage is another one"


def test_a_database_that_is_away_for_a_part_alone_is_told_by_that_part_and_by_nobody_else() -> None:
    alone = False
    setbacks = Setbacks("wake-up", is_alone=lambda: alone)
    with capture_logs() as lines:
        for _ in range(2 * LASTS):
            setbacks.met(StoreUnavailable("gone"))
        assert not lines, "the reader tells it"
        alone = True
        for _ in range(2 * LASTS):
            setbacks.met(StoreUnavailable("gone"))
        setbacks.over()
        for _ in range(LASTS - 1):
            setbacks.met(StoreUnavailable("gone"))
        setbacks.over()
    assert [(line["event"], line["part"]) for line in lines] == [("part_failed", "wake-up"), ("part_works", "wake-up")]


async def test_a_flood_of_what_is_given_up_is_a_line_now_and_then() -> None:
    given_up = GivenUp(0.1)
    with capture_logs() as lines:
        for number in range(5_000):
            given_up.add("exhausted", f"hook{number % 7}", f"evt_{number}", "http_500")
        given_up.add("rejected", "hook", "evt_big", "payload_too_large")
        await until(lambda: len(lines) == 2, "both are told at once")
        given_up.add("exhausted", "hook", None, "endpoint_failing", 3)
        given_up.add("exhausted", "hook", "evt_last", "timeout")
        await asyncio.sleep(0)
        assert len(lines) == 2
        await until(lambda: len(lines) == 3, "the rest is told when its time has come")
        given_up.close()
    common = {"log_level": "warning"}
    assert lines == [
        {"event": "deliveries_exhausted", "deliveries": 5_000, "endpoints": 7, "endpoint": "hook0",
         "event_id": "evt_0", "code": "http_500", **common},
        {"event": "deliveries_rejected", "deliveries": 1, "endpoints": 1, "endpoint": "hook",
         "event_id": "evt_big", "code": "payload_too_large", **common},
        {"event": "deliveries_exhausted", "deliveries": 4, "endpoints": 1, "endpoint": "hook",
         "event_id": None, "code": "endpoint_failing", **common},
    ]  # fmt: skip


async def test_after_a_quiet_while_the_first_is_told_at_once_again() -> None:
    given_up = GivenUp(0.01)
    with capture_logs() as lines:
        given_up.add("exhausted", "hook", "evt_1", "timeout")
        await until(lambda: lines and given_up._alarm is None, "nothing more is to be told")
        given_up.add("exhausted", "hook", "evt_2", "timeout")
        await until(lambda: len(lines) == 2, "the next is told")


async def test_at_the_end_what_is_left_is_told() -> None:
    given_up = GivenUp(1e6)
    with capture_logs() as lines:
        for event_id in ("evt_1", "evt_2"):
            given_up.add("exhausted", "hook", event_id, "timeout")
            await until(lambda: lines, "the first is told")
        given_up.close()
        assert [line["event_id"] for line in lines] == ["evt_1", "evt_2"]


async def test_events_that_nobody_gets_are_a_line_now_and_then() -> None:
    unmatched = Unmatched(0.1)
    with capture_logs() as lines:
        for number in range(1_000):
            unmatched.add(f"{number}." + "x" * 200)
        await until(lambda: lines, "they are told at once")
        unmatched.add("late")
        await asyncio.sleep(0)
        assert len(lines) == 1
        await until(lambda: len(lines) == 2, "the rest is told when its time has come")
        unmatched.add("last")
        unmatched.close()
    assert [line["events"] for line in lines] == [1_000, 1, 1]
    assert lines[0]["types"] == [f"{number}." + "x" * 98 for number in range(5)]
    assert lines[1]["types"] == ["late"]


def test_who_is_paused_is_told_once_and_only_of_ours() -> None:
    ours = {id_: replace(HOOK, id=id_, name=f"e{id_:02}") for id_ in range(1, 40)}
    pauses = Pauses(ours.get)
    with capture_logs() as lines:
        pauses.now([])
        pauses.now([1, 2, 99])
        pauses.now([1, 2, 99])
        pauses.now([2, *range(10, 40)])
        del ours[2]  # gone from our files: neither here nor there
        pauses.now([*range(10, 40)])
        ours[2] = replace(HOOK, id=2, name="e02")
        pauses.now([])
    assert [(line["event"], line["count"], line["names"]) for line in lines] == [
        ("endpoints_paused", 2, ["e01", "e02"]),
        ("endpoints_paused", 30, [f"e{id_}" for id_ in range(10, 20)]),
        ("endpoints_resumed", 1, ["e01"]),
        ("endpoints_resumed", 30, [f"e{id_}" for id_ in range(10, 20)]),
    ]


# How it looks

HOSTILE = "evt\x1b[2J\u009b2J\u202e\nlevel=error"


@pytest.fixture
async def configured() -> AsyncIterator[None]:
    """Whatever a test configures is undone."""
    root, level = logging.getLogger(), logging.getLogger("webhookd").level
    handlers, before = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers = handlers
    root.setLevel(before)
    logging.getLogger("webhookd").setLevel(level)
    structlog.reset_defaults()


def lines_of(form: Any, opened: tuple[int, int], say: Callable[[Any], None]) -> str:
    reading, writing = opened
    with os.fdopen(writing, "w") as stream:
        configure("info", form, stream)
        say(structlog.get_logger("webhookd.test"))
        logging.getLogger().handlers[0].flush()
        text = os.read(reading, 100_000).decode()
    os.close(reading)
    return text


def hostile(log: Any) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("attempt_broke", event_id=HOSTILE, mistakes=[HOSTILE])
    logging.getLogger("asyncio").warning(HOSTILE)


@pytest.mark.parametrize(
    ("form", "open_", "is_json"),
    [
        ("auto", pty.openpty, False),
        ("auto", os.pipe, True),
        ("json", pty.openpty, True),
        ("console", os.pipe, False),
    ],
)
@pytest.mark.usefixtures("configured")
async def test_columns_on_a_terminal_and_json_elsewhere_and_both_inert(
    form: str, open_: Callable[[], tuple[int, int]], is_json: bool
) -> None:
    text = lines_of(form, open_(), hostile)
    colours = re.sub(r"\x1b\[[0-9;]*m", "", text.replace("\r\n", "\n"))
    assert all(c.isprintable() or c == "\n" for c in colours)
    assert not any(line.startswith("level=error") for line in colours.splitlines())
    if is_json:
        ours, theirs = map(json.loads, text.splitlines())
        assert (ours["event_id"], theirs["event"]) == (HOSTILE, HOSTILE)
    else:
        assert "attempt_broke" in text
        assert r"evt\x1b[2J\x9b2J\u202e\nlevel=error" in colours
