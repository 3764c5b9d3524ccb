"""Deliveries go on whatever becomes of the log: nobody reads it, it is closed, its disk is full."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from tests.integration.cli.test_cli import PLAIN, configuration
from tests.integration.conftest import Receiver, Sql, finished, insert_many
from tests.waiting import until

# `webhookd run` that says much: 300 lines of 300 characters about each attempt, and a queue of 1,000 lines for them.
NOISY = """
import structlog
from webhookd.message import request
from webhookd.cli import logging
from webhookd.cli.main import main
logging.MOST_LINES = 1_000
quiet, log = request.build, structlog.get_logger("webhookd.noise")
def build(*arguments):
    for _ in range(300):
        log.info("noise", text="x" * 300)
    return quiet(*arguments)
request.build = build
main()
"""
EVENTS = 20


def started(arguments: Sequence[str | Path], **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, env=PLAIN, **streams)


@asynccontextmanager
async def noisy(config: Path, **streams: int | IO[bytes] | None) -> AsyncIterator[subprocess.Popen[bytes]]:
    """The noisy daemon; it ends on SIGTERM within the bound of its flush, with 0."""
    arguments = [sys.executable, "-c", NOISY, "run", "-c", str(config)]
    daemon = started(arguments, stdin=subprocess.DEVNULL, **streams)
    try:
        yield daemon
        daemon.send_signal(signal.SIGTERM)
        await until(lambda: daemon.poll() is not None, "it ends")
        assert daemon.returncode == 0
    finally:
        daemon.kill()
        daemon.wait()
        for stream in (daemon.stdout, daemon.stderr):
            if stream is not None:
                stream.close()


async def delivered(receiver: Receiver, sql: Sql, events: int = EVENTS) -> None:
    """Insert events, and wait until each one has come and is recorded."""
    ids = await insert_many(sql, events)
    await until(lambda: set(ids) <= set(receiver.events("hook")), "every event comes")
    await finished(sql)


def lines(text: bytes) -> list[dict[str, object]]:
    """The lines that are whole."""
    found: list[dict[str, object]] = []
    for line in text.splitlines():
        if line.startswith(b"{") and line.endswith(b"}"):
            found.append(json.loads(line))
    return found


def dropped(text: bytes) -> int:
    return sum(int(str(line["count"])) for line in lines(text) if line["event"] == "log_lines_dropped")


async def test_nobody_reads(dsn: str, sql: Sql, receiver: Receiver, tmp_path: Path) -> None:
    config = configuration(tmp_path, dsn, receiver.url("hook"))
    pipe = subprocess.PIPE
    async with noisy(config, stdout=pipe, stderr=pipe) as daemon:
        await delivered(receiver, sql)  # 6,000 lines: a pipe holds 200 and the queue 1,000
        assert daemon.poll() is None
        daemon.send_signal(signal.SIGTERM)
        await until(lambda: daemon.poll() is not None, "it ends though its log does not")


async def test_what_was_dropped_is_told_when_somebody_reads_again(
    dsn: str, sql: Sql, receiver: Receiver, tmp_path: Path
) -> None:
    config = configuration(tmp_path, dsn, receiver.url("hook"))
    reading, writing = os.pipe()
    async with noisy(config, stdout=subprocess.DEVNULL, stderr=writing):
        os.close(writing)
        await delivered(receiver, sql)
        os.set_blocking(reading, False)
        text = b""

        def accounted() -> bool:
            nonlocal text
            with suppress(BlockingIOError):
                text += os.read(reading, 1 << 20)
            noise = sum(line["event"] == "noise" for line in lines(text))
            return dropped(text) > 0 and noise + dropped(text) == EVENTS * 300

        await until(accounted, "every line was read or is counted")
    os.close(reading)


@pytest.mark.parametrize("closing", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
async def test_closed(dsn: str, sql: Sql, receiver: Receiver, tmp_path: Path, closing: str) -> None:
    """Closed, not /dev/null: the sockets of the daemon must not get the numbers 0 to 2."""
    config = configuration(tmp_path, dsn, receiver.url("hook"))
    script = tmp_path / "noisy.py"
    script.write_text(NOISY)
    daemon = started(["sh", "-c", f'exec "$0" "$@" {closing}', sys.executable, script, "run", "-c", config])
    try:
        await delivered(receiver, sql)
        at = Path(f"/proc/{daemon.pid}/fd")
        assert not [each for each in "012" if os.readlink(at / each).startswith("socket:")]
        daemon.send_signal(signal.SIGTERM)
        await until(lambda: daemon.poll() is not None, "it ends")
        assert daemon.returncode == 0
    finally:
        daemon.kill()
        daemon.wait()


async def test_dev_full(dsn: str, sql: Sql, receiver: Receiver, tmp_path: Path) -> None:
    config = configuration(tmp_path, dsn, receiver.url("hook"))
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with noisy(config, stdout=full, stderr=full):
            await delivered(receiver, sql)
    finally:
        os.close(full)


async def test_it_may_open_as_many_files_as_the_system_allows(
    dsn: str, sql: Sql, receiver: Receiver, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        async with noisy(configuration(tmp_path, dsn, receiver.url("hook")), stdout=subprocess.DEVNULL) as daemon:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await delivered(receiver, sql)
            allowed, _ = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
            assert allowed == (65_536 if hard == resource.RLIM_INFINITY else min(65_536, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_disk_that_is_full_for_a_while(dsn: str, sql: Sql, receiver: Receiver, tmp_path: Path) -> None:
    """A limit of the file's size, set from outside: full, with half a line at its end, and then full no more."""
    config = configuration(tmp_path, dsn, receiver.url("hook"))
    file = tmp_path / "log"
    with file.open("wb") as stream:
        async with noisy(config, stdout=subprocess.DEVNULL, stderr=stream) as daemon:
            _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (50_000, hard))
            await delivered(receiver, sql)
            assert file.stat().st_size == 50_000
            resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (hard, hard))
            await delivered(receiver, sql, 1)
            await until(lambda: dropped(file.read_bytes()), "the count is told")
    text = file.read_bytes()
    noise = sum(line["event"] == "noise" for line in lines(text))
    other = sum(1 for line in lines(text) if line["event"] not in ("noise", "log_lines_dropped"))
    assert other >= 1
    assert noise + dropped(text) >= (EVENTS + 1) * 300  # lines of other kinds may have been dropped, too
