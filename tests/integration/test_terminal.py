"""What each command shows on terminals of 80 and of 120 columns: no id is ever broken, whatever else has no room."""

import json
import os
import pty
import re
import subprocess
import sys
import termios
import uuid

import asyncpg
import pytest

from tests.integration.conftest import insert
from tests.integration.test_cli import PLAIN
from tests.integration.test_listings import attempt, endpoint, owe

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


def on_terminal(columns: int, dsn: str, *arguments: str) -> str:
    """What a command writes to a terminal that wide, without colours."""
    terminal, there = pty.openpty()
    termios.tcsetwinsize(there, (40, columns))
    env = {**PLAIN, "WEBHOOKD_DSN": dsn, "TERM": "xterm", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "webhookd", *arguments]
    process = subprocess.Popen(command, env=env, stdin=there, stdout=there, stderr=there)
    os.close(there)
    text = b""
    try:
        while some := os.read(terminal, 65536):
            text += some
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    assert process.wait() == 0, text.decode()
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


@pytest.mark.parametrize("columns", [80, 120])
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
    if command != "endpoints show hook-07":  # whose facts are one to a line
        for line in text.splitlines():
            assert len(line) <= columns or "  " not in line.strip() or line.startswith(("problem", "daemon")), line


async def test_what_has_no_room_is_named_with_where_it_is(dsn: str, ids: list[str]) -> None:
    assert ids
    text = on_terminal(80, dsn, "events")
    assert re.search(r"\nno room for .*created_at.*: a wider terminal or --json has them\n", text)
    assert "no room" not in on_terminal(200, dsn, "events")
