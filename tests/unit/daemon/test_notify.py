"""What systemd would hear, on a real socket."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stopwatch import Stopwatch
from tests.waiting import HANGS, until
from webhookd.daemon.notify import Notifier

Listener = Callable[[str], socket.socket]


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A service manager's socket at an address."""
    opened: list[socket.socket] = []

    def listen(address: str) -> socket.socket:
        heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        heard.setblocking(False)
        heard.bind(address.replace("@", "\0"))
        opened.append(heard)
        return heard

    yield listen
    for each in opened:
        each.close()


def said(heard: socket.socket) -> list[str]:
    """The messages that are there."""
    messages = []
    while True:
        try:
            messages.append(heard.recv(4096).decode())
        except BlockingIOError:
            return messages


@pytest.mark.parametrize("abstract", [False, True])
def test_what_is_said_and_how(listener: Listener, tmp_path: Path, abstract: bool) -> None:
    address = f"@webhookd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    heard = listener(address)
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.ready("delivering")
    notifier.status("waiting\nREADY=1 for ü")
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.stopping(30.5, "finishing")
    first, second, third, reload, last = said(heard)
    assert first == "READY=1"
    assert second == "READY=1\nSTATUS=delivering"
    assert third == "STATUS=waiting READY=1 for ü"
    name, _, stamp = reload.partition("\nMONOTONIC_USEC=")
    assert name == "RELOADING=1"
    assert before <= int(stamp) <= time.monotonic_ns() // 1000
    assert last == "STOPPING=1\nEXTEND_TIMEOUT_USEC=30500000\nSTATUS=finishing"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "vsock:2:1"},
        {"NOTIFY_SOCKET": "/nobody/listens/here"},
        {"NOTIFY_SOCKET": "/" + "x" * 500},
        {"NOTIFY_SOCKET": "@nobody-listens-here"},
    ],
)
def test_nobody_who_listens_is_no_trouble(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environ(environ)
    notifier.ready("\ud800")
    notifier.status("")
    notifier.reloading()
    notifier.stopping(0)


def test_a_manager_that_does_not_read_blocks_nobody(listener: Listener, tmp_path: Path) -> None:
    heard = listener(str(tmp_path / "notify"))
    notifier = Notifier(str(tmp_path / "notify"))
    watch = Stopwatch()
    for _ in range(5_000):
        notifier.status("x" * 500)
    assert watch.seconds < 5
    assert 0 < len(said(heard)) < 5_000
    heard.close()
    notifier.status("after it is gone")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "40000", "WATCHDOG_PID": "1"},
    ],
)
async def test_no_watchdog_where_none_is_asked_for(listener: Listener, tmp_path: Path, environ: dict[str, str]) -> None:
    heard = listener(str(tmp_path / "notify"))
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": str(tmp_path / "notify"), **environ})
    await asyncio.wait_for(notifier.watchdog(), HANGS)
    assert said(heard) == []


async def test_the_watchdog_beats_twice_an_interval_and_a_blocked_loop_stops_it(
    listener: Listener, tmp_path: Path
) -> None:
    heard = listener(str(tmp_path / "notify"))
    environ = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "100000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    started = time.monotonic()
    watching = asyncio.create_task(Notifier.from_environ(environ).watchdog())
    beats: list[str] = []

    def several() -> bool:
        beats.extend(said(heard))
        return len(beats) >= 5

    await until(several, "it beats")
    assert set(beats) == {"WATCHDOG=1"}
    assert time.monotonic() - started > 0.19  # five beats are four pauses of half the interval, in whole milliseconds
    time.sleep(0.3)  # noqa: ASYNC251 - the bug the watchdog is for
    assert said(heard) == []
    await until(lambda: said(heard), "it beats again")
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
