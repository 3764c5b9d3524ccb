"""`webhookd status --watch`, as someone in front of a terminal has it."""

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import asyncpg
import pytest

from tests.fault.proxy import Proxy
from tests.fault.server import Server
from tests.integration.cli.test_cli import NOWHERE, PLAIN, fails, webhookd
from tests.integration.conftest import insert
from tests.waiting import HANGS, until
from webhookd.store.migrations import migrate

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
AWAY = r"The database does not answer, since \d\d:\d\d:\d\d; asking again each second, until Ctrl-C\."


class Screen:
    """A command on a pseudo-terminal, and all that it wrote there."""

    def __init__(self, dsn: str, rows: int = 40, columns: int = 120) -> None:
        self.terminal, there = pty.openpty()
        termios.tcsetwinsize(there, (rows, columns))
        self.before = termios.tcgetattr(self.terminal)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "webhookd", "status", "--watch"],
            env={**PLAIN, "WEBHOOKD_DSN": dsn, "TERM": "xterm"},
            stdin=there,
            stdout=there,
            stderr=there,
            preexec_fn=lambda: os.login_tty(there),  # so that ^C typed here is a signal there
        )
        os.close(there)
        os.set_blocking(self.terminal, False)
        self.text = ""

    def read(self) -> str:
        try:
            while some := os.read(self.terminal, 65536):
                self.text += some.decode()
        except (BlockingIOError, OSError):  # nothing now, or the other end is closed
            pass
        return self.text

    def shows(self, pattern: str, after: int = 0) -> bool:
        return re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.read()[after:])) is not None

    async def ended(self) -> int:
        await until(lambda: (self.read(), self.process.poll() is not None)[1], "it ends")
        self.read()
        return self.process.returncode


@contextmanager
def screen(dsn: str, rows: int = 40, columns: int = 120) -> Iterator[Screen]:
    made = Screen(dsn, rows, columns)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.terminal)


async def watched(dsn: str, *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "webhookd", "status", "--watch", *options,
        env={**PLAIN, "WEBHOOKD_DSN": dsn}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["typed", "SIGTERM"])
async def test_it_draws_updates_ends_and_restores_the_terminal(
    dsn: str, sql: "asyncpg.Connection[asyncpg.Record]", how: str
) -> None:
    await sql.execute(
        "INSERT INTO webhookd.endpoint (tenant, name, source, spec) VALUES ('acme', 'orders', 'file', '{}')"
    )
    with screen(dsn) as terminal:
        await until(lambda: terminal.shows(r"acme/orders +active +0 +0"), "the table is drawn")
        assert HIDE in terminal.text
        assert terminal.shows(r"waiting +0 events")
        await insert(sql)
        await until(lambda: terminal.shows(r"waiting +1 event,"), "the event is seen")
        await sql.execute(
            """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due)
               SELECT id, 1, now(), now() FROM webhookd.endpoint"""
        )
        await until(lambda: terminal.shows(r"acme/orders +active +1 +0"), "what is owed is seen")
        if how == "typed":
            os.write(terminal.terminal, b"\x03")
        else:
            terminal.process.send_signal(signal.SIGTERM)
        assert await terminal.ended() == 0
        assert terminal.text.rindex(SHOW) > terminal.text.rindex(HIDE)
        assert "Traceback" not in terminal.text
        assert "\x1b[?1049h" not in terminal.text  # the last picture stays on the screen
        assert termios.tcgetattr(terminal.terminal) == terminal.before


@pytest.fixture
async def admin(server: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to another database of the same server."""
    connection = await asyncpg.connect(server)
    yield connection
    await connection.close()


async def test_a_database_that_goes_away_is_told_and_comes_back(
    dsn: str, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    name = dsn.partition("?")[0].rpartition("/")[2]
    with screen(dsn) as terminal:
        await until(lambda: terminal.shows("waiting"), "it draws")
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        await until(lambda: terminal.shows(AWAY), "it says so")
        seen = len(terminal.read())
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await until(lambda: terminal.shows("waiting", seen), "it goes on")
        os.write(terminal.terminal, b"\x03")
        assert await terminal.ended() == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_a_restart_of_postgres_is_told_in_a_sentence_of_ours_and_survived(
    version: int, how: signal.Signals
) -> None:
    with Server(version) as server:
        await migrate(server.dsn)
        async with Proxy(server.dsn) as proxy:
            with screen(proxy.dsn("postgres")) as terminal:
                await until(lambda: terminal.shows("waiting"), "it draws")
                seen = len(terminal.read())
                await asyncio.to_thread(server.stop, how)
                await until(lambda: terminal.shows(AWAY, seen), "it says so")
                assert not terminal.shows(r"Errno|connection|terminating", seen)
                await asyncio.to_thread(server.start)
                proxy.target = server.dsn
                seen = len(terminal.read())
                await until(lambda: terminal.shows("waiting", seen), "it goes on")
                os.write(terminal.terminal, b"\x03")
                assert await terminal.ended() == 0


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (40, 120)])
async def test_what_fits_is_shown_and_what_does_not_is_counted(
    dsn: str, sql: "asyncpg.Connection[asyncpg.Record]", rows: int, columns: int
) -> None:
    await sql.execute(
        """INSERT INTO webhookd.endpoint (tenant, name, source, spec)
           SELECT 'acme', 'hook-' || to_char(n, 'FM000'), 'file', '{}' FROM generate_series(1, 100) n"""
    )
    with screen(dsn, rows, columns) as terminal:
        await until(lambda: terminal.shows(r"no room for \d+ more endpoints"), "it is drawn")
        picture = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text)
        shown = re.findall(r"acme/hook-\d\d\d", picture)
        (more,) = set(re.findall(r"no room for (\d+) more endpoints", picture))
        assert set(shown) == {f"acme/hook-{n:03}" for n in range(1, 101 - int(more))}
        assert int(more) > 100 - rows
        assert "..." not in picture
        os.write(terminal.terminal, b"\x03")
        assert await terminal.ended() == 0


async def test_elsewhere_it_is_a_line_each(dsn: str) -> None:
    for options in ((), ("--json",)):
        process = await watched(dsn, *options)
        assert process.stdout is not None
        lines = [(await asyncio.wait_for(process.stdout.readline(), HANGS)).decode() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), HANGS) == 0
        for line in lines:
            if options:
                assert json.loads(line)["daemons"] == []
            else:
                assert re.fullmatch(r"\d\d:\d\d:\d\d  0 daemons, 0 waiting, 0 in hand, 0 owed; last minute .*\n", line)


def test_a_database_that_was_never_there_is_69() -> None:
    fails(webhookd("status", "--watch", env={"WEBHOOKD_DSN": NOWHERE}), 69, "does not answer")


async def test_daemons_that_differ_and_a_refused_configuration_are_shown(
    dsn: str, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    env = {"WEBHOOKD_DSN": dsn}
    add = """INSERT INTO webhookd.daemon (id, host, version, config_hash, config_problem, beat_at)
             VALUES ($1, 'h', '1', $2, $3, now() + '1 h')"""  # alive however slow the machine is
    await sql.execute(add, 1, "aaa", None)
    await sql.execute(add, 2, "aaa", None)
    assert "problem" not in webhookd("status", env=env).stdout
    await sql.execute(add, 3, "bbb", "a.toml:2: [endpoint.a] url: is required\na.toml:9: is not TOML")
    shown = webhookd("status", env=env).stdout
    assert "problem      daemons run different configurations\n" in shown
    mistakes = "a.toml:2: [endpoint.a] url: is required; a.toml:9: is not TOML"
    assert f"problem      daemon 3 keeps an older configuration: {mistakes}\n" in shown
    found = json.loads(webhookd("status", "--json", env=env).stdout)
    assert found["configurations_differ"] is True
    assert [each["config_problem"] is None for each in found["daemons"]] == [True, True, False]
