"""What each command shows on terminals of 60, 80 and 120 columns: no id is ever broken, whatever else has no room."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import uuid
from pathlib import Path

import asyncpg
import pytest

from tests.integration.cli.test_cli import PLAIN, webhookd
from tests.integration.cli.test_listings import attempt, endpoint, owe
from tests.integration.conftest import insert

Sql = asyncpg.Connection
LONG = "a-team-with-a-very-long-name-indeed", "orders-and-invoices-of-all-our-regions-2026"
COMMANDS = (
    "events",
    "deliveries",
    "deliveries --state retrying",
    "attempts",
    "attempts --failed",
    "endpoints list",
    "endpoints show hook-07",
    "status",
)


END = b"\x04"  # behind the last that a command writes


def on_terminal(columns: int, dsn: str, *arguments: str, code: int = 0, said: str = "") -> str:
    """What a command writes to a terminal that wide, without colours, where $COLUMNS says something."""
    terminal, there = pty.openpty()
    termios.tcsetwinsize(there, (40, columns))
    env = {**PLAIN, "WEBHOOKD_DSN": dsn, "TERM": "xterm", "NO_COLOR": "1"} | ({"COLUMNS": said} if said else {})
    command = [sys.executable, "-m", "webhookd", *arguments]
    process = subprocess.Popen(command, env=env, stdin=there, stdout=there, stderr=there)
    text, ended = b"", False
    while not text.endswith(END):
        if select.select([terminal], [], [], 0.05)[0]:
            text += os.read(terminal, 65536)
        elif not ended and process.poll() is not None:
            ended = bool(os.write(there, END))  # a terminal that is closed may lose what it has not passed on
    os.close(there)
    os.close(terminal)
    text = text.removesuffix(END)
    assert process.wait() == code, text.decode()
    return re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).replace("\r\n", "\n")


@pytest.fixture
async def ids(sql: "Sql[asyncpg.Record]") -> list[str]:
    """Many endpoints and events, with names and ids as people have them; those that must be shown whole."""
    labels = [f"hook-{n:02}" for n in range(12)]
    numbers = [await endpoint(sql, name) for name in labels]
    numbers.append(await endpoint(sql, LONG[1], LONG[0], events=[f"order.{n}.changed" for n in range(9)]))
    events = [
        await insert(sql, event_id=str(uuid.UUID(int=n << 90 | n)), type="order.status.changed") for n in range(9)
    ]
    for number, event_id in zip(numbers[4:], events, strict=True):
        await attempt(sql, event_id, number, 1, 500)
        await owe(sql, event_id, number)
    return [*labels, "/".join(LONG), *events]


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", COMMANDS)
async def test_no_id_is_broken_and_what_is_wider_than_the_terminal_is_one_cell(
    dsn: str, ids: list[str], command: str, columns: int
) -> None:
    text = on_terminal(columns, dsn, *command.split())
    whole = on_terminal(columns, dsn, *command.split(), "--json")
    there = json.dumps(json.loads(whole))
    named = [each for each in ids if all(part in there for part in each.split("/"))]
    assert named
    words = re.split(r"\s+", text)
    for each in named:
        assert each in words or f"{each}," in words or f"{each}:" in words, f"{each} is not to be copied from\n{text}"
    for line in text.splitlines():
        assert len(line) <= columns or "  " not in line.strip(), line


async def test_what_has_no_room_is_named_with_where_it_is(dsn: str, ids: list[str]) -> None:
    assert ids
    text = on_terminal(80, dsn, "events")
    assert re.search(r"\nno room for .*created_at.*: a wider terminal or --json has them\n", text)
    assert "no room" not in on_terminal(200, dsn, "events")


def piped(columns: str, dsn: str, *arguments: object) -> list[str]:
    """The lines that a command writes to something that is no terminal, where $COLUMNS says something."""
    found = webhookd(*arguments, env={"WEBHOOKD_DSN": dsn} | ({"COLUMNS": columns} if columns else {}))
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout.splitlines()


async def test_columns_says_how_wide_it_is_where_there_is_no_terminal(dsn: str, ids: list[str]) -> None:
    wide = piped("", dsn, "deliveries")
    assert max(map(len, wide)) > 120
    for columns in (60, 80):
        narrow = piped(str(columns), dsn, "deliveries")
        assert all(len(line) <= columns or "  " not in line.strip() for line in narrow)
        text = re.sub(r"\s+", " ", " ".join(narrow))
        assert all(f" {each} " in text for each in ids[-9:])
    for nothing in ("0", "-1", "many"):
        assert piped(nothing, dsn, "deliveries") == wide
    assert piped("60", dsn, "deliveries", "--json") == piped("", dsn, "deliveries", "--json")
    seen = on_terminal(80, dsn, "deliveries", said="200")  # what a shell has exported before the window became smaller
    assert seen == on_terminal(80, dsn, "deliveries")


def test_mistakes_are_as_wide_as_the_terminal_and_one_line_each_elsewhere(dsn: str, tmp_path: Path) -> None:
    folder = tmp_path / "my files"
    (folder / "endpoints.d").mkdir(parents=True)
    file, orders = folder / "webhookd.toml", folder / "endpoints.d" / "orders.toml"
    file.write_text('[deliveri]\n[log]\nlevel = "loud"\n[retention]\nevents = "1d"\n')
    orders.write_text('[endpoint.a]\nurl = "http://127.0.0.1/"\nevents = ["a.b"]\nsignature = "none"\n')
    found = webhookd("check", "-c", file, env={"COLUMNS": "60"})
    mistakes = re.split(r"\n(?=webhookd: )", found.stderr.strip())
    assert len(mistakes) == 4
    assert len(found.stderr.splitlines()) == 4 + 3  # one of which has the lines of a file that would allow it
    for command in ("check", "run", "reload"):
        for columns in (60, 80):
            text = on_terminal(columns, dsn, command, "-c", str(file), code=78)
            shown = re.split(r"\n(?=webhookd:\s)", text.strip())
            assert [re.sub(r"\s+", " ", each) for each in shown] == [re.sub(r"\s+", " ", each) for each in mistakes]
            for each in text.splitlines():
                assert len(each) <= columns or " " not in each.strip().replace(str(folder), "folder").removeprefix(
                    "webhookd: "
                ), each
                assert each.startswith(("webhookd:", "  ")), each
            assert text.count(f"{file}:") == 3
            assert f"{orders}:2:" in text


def test_a_long_sentence_is_wrapped_and_its_command_stays_whole(empty_dsn: str) -> None:
    text = on_terminal(60, empty_dsn, "status", code=69)
    assert all(len(line) <= 60 for line in text.splitlines())
    assert "`webhookd migrate`" in text


async def test_an_answer_that_is_wide_looks_like_no_line_of_ours(dsn: str, sql: "Sql[asyncpg.Record]") -> None:
    hook = await endpoint(sql, "hook")
    event_id = await insert(sql)
    answered = "daemons      none is alive " * 9 + "x" * 300
    await attempt(sql, event_id, hook, 1, 500, answered.encode())
    text = on_terminal(60, dsn, "attempts", "--show-response")
    bars = text.splitlines()[text.splitlines().index(next(line for line in text.splitlines() if line[:4] == "  | ")) :]
    assert all(line.startswith("  | ") and len(line) <= 60 for line in bars)
    assert "".join(line[4:] for line in bars).replace(" ", "") == answered.replace(" ", "")
